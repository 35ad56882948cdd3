"""`GAN`: learns to generate images, and generates them. Driver only, except `MakeImages`, which predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigError
from tfspark.feed.columns import Column, Columns
from tfspark.feed.spark_names import quoted
from tfspark.inference.outputs import Output
from tfspark.inference.predict import apply
from tfspark.inference.predictor import Predictor
from tfspark.ml.estimator import SEEDS, KerasModel, NetworkEstimator, Plan, State, module_network
from tfspark.ml.moments import largest_value
from tfspark.ml.params import declare, mapping
from tfspark.ml.ready_made import image_shape
from tfspark.ml.rows import Target, find_classes

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MODULE = "models/gan.py"
ID = "id"


@dataclass(frozen=True)
class MakeImages:
    """Calls the generator; the same row ``id`` always gets the same noise.

    Attributes:
        seed: of the noise.
    """

    seed: int

    def __call__(self, model: Any, ids: Any) -> Mapping[str, Any]:
        """Return an image for each number; a conditional model generates its classes in turn.

        Shapes:
            ids: (rows,) integers.
            image: (rows, height, width, channels).
        """
        import tensorflow as tf

        draw = lambda number: tf.random.stateless_normal([model.latent], tf.stack([self.seed, number]))  # noqa: E731
        noise = tf.map_fn(draw, tf.cast(ids, tf.int64), fn_output_signature=tf.float32)
        if not model.is_conditional:
            return {"image": model.generator(noise, training=False)}
        label = tf.cast(ids % model.num_classes, tf.int32)
        image = model.generator({"noise": noise, "label": label}, training=False)
        return {"image": image, "label": label}


class GANModel(KerasModel):
    """Generates images by `sample`."""

    def sample(self, n: int, seed: int = 0, spark: SparkSession | None = None) -> DataFrame:
        """Return a DataFrame of `n` generated images: ``id``, `predictionCol`, and `labelCol` for a conditional model.

        Args:
            n: rows, 1 or more.
            seed: of the noise; the same seed gives the same images.
            spark: the session; None: the active one.

        Images are arrays of height x width x channels, in the units of the training images.
        """
        from pyspark.sql import SparkSession

        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ConfigError(f"expected a number of images, 1 or more, got {n!r}")
        state, session = self._known, spark or SparkSession.active()
        outputs = [Output(self.getOrDefault("predictionCol"), "value", "array<array<array<float>>>", "image")]
        if state.target.num_classes is not None:
            kind = "string" if state.target.classes and isinstance(state.target.classes[0], str) else "double"
            outputs.append(Output(self.getOrDefault("labelCol"), "name", kind, "label", state.target.classes))
        columns = Columns((Column(ID),))
        predictor = Predictor(state.files, columns, tuple(outputs), call=MakeImages(seed))
        made = apply(session.range(n), predictor)
        return self._in_units(made, state)

    def _in_units(self, made: DataFrame, state: State) -> DataFrame:
        from pyspark.sql import functions as sf

        scale = 1.0 if state.inputs is None else state.inputs.scale or 1.0
        if scale == 1.0:
            return made
        name = self.getOrDefault("predictionCol")
        pixel = f"pixel -> transform(pixel, value -> value * {float(scale)}F)"
        return made.withColumn(name, sf.expr(f"transform({quoted(name)}, line -> transform(line, {pixel}))"))

    def _transform(self, dataset: DataFrame) -> DataFrame:
        raise ConfigError(
            "expected sample(n) of a GANModel, got transform(df): it generates images, and reads none; call sample(n)"
        )


class GAN(NetworkEstimator):
    """Two networks that compete and so learn to generate images (models/gan.py).

    Images are vectors (one of 784 values is 28 x 28), arrays, bytes or files; height and width are multiples of 4. With
    a `labelCol` the model is conditional: both networks get the class.
    """

    modelParams = declare(
        "modelParams", "further parameters of models/gan.py, such as {'filters': 16}", mapping
    )

    model_class = GANModel

    def _set_own_defaults(self) -> None:
        self._setDefault(modelParams={}, labelCol="", predictionCol="image")

    def _plan(self, dataset: DataFrame) -> Plan:
        inputs = self._find_inputs(dataset)
        if inputs.kind != "dense":
            raise ConfigError(
                f"expected images in column {inputs.name!r}, got {inputs.kind}; set featuresCol"
            )
        inputs = replace(inputs, shape=image_shape(inputs))
        if inputs.scale is None:
            inputs = replace(inputs, scale=self._once(largest_value, dataset, inputs))
        label = self.getOrDefault("labelCol")
        target = self._once(find_classes, dataset, label, None) if label else Target()
        params: dict[str, Any] = {
            "input_shape": list(inputs.shape),
            "seed": self.getOrDefault("seed") % SEEDS,
        }
        if label:
            params |= {"conditional": True, "num_classes": target.num_classes}
        rows = self._rows(dataset, inputs, target)
        given = {**params, **self.getOrDefault("modelParams")}
        network = self._once(module_network, rows.train, MODULE, given)
        return Plan(network, inputs, target, rows)
