"""`Estimator.from_keras`: train and predict with little code, in the style of Orca and BigDL. Driver only."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tfspark.cluster.tfcluster import TFCluster
from tfspark.errors import ConfigError
from tfspark.feed.described import read_signature
from tfspark.history import History
from tfspark.inference.model_files import of_keras
from tfspark.inference.values import to_arrow
from tfspark.ml.estimator import KerasEstimator, KerasModel, State
from tfspark.ml.inputs import Inputs
from tfspark.ml.rows import Target
from tfspark.ml.slots import FITS
from tfspark.ml.summary import TrainingSummary

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

X, Y, HELD = "x", "y", "__tfspark_held"


@dataclass(frozen=True)
class Created:
    """A training on datasets that the workers create.

    Attributes:
        build_model: ``build_model(config)``, or a function without arguments.
        config: its argument, and that of the creators.
        create: ``create(config, batch_size)``.
        validation: the same for rows to evaluate after each epoch; None: there are none.
        epochs: passes over the rows.
        batch_size: rows of a step over all workers.
    """

    build_model: Callable[..., Any]
    config: Mapping[str, Any]
    create: Callable[..., Any]
    validation: Callable[..., Any] | None
    epochs: int
    batch_size: int


def _train_created(task: Created, ctx: Any) -> dict[str, list[float]]:
    """Train on this worker's share of the datasets; return the history. Runs in a trainer."""
    import keras
    import tensorflow as tf

    from tfspark.training.build import call_build_model

    def share(create: Callable[..., Any]) -> Any:
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        dataset = create(dict(task.config), task.batch_size).with_options(options)
        return ctx.strategy.experimental_distribute_dataset(dataset)

    keras.utils.set_random_seed(ctx.seed)
    with ctx.strategy.scope():
        model = call_build_model(task.build_model, dict(task.config))
    fitted = model.fit(
        share(task.create),
        epochs=task.epochs,
        validation_data=None if task.validation is None else share(task.validation),
        verbose=0,
    )
    ctx.export(model)
    return {name: [float(value) for value in values] for name, values in fitted.history.items()}


class Estimator:
    """Trains a Keras model; create it by `from_keras`."""

    def __init__(
        self,
        spark: SparkSession,
        build_model: Callable[..., Any] | None,
        config: Mapping[str, Any],
        workers: int,
    ):
        self._spark = spark
        self._build_model = build_model
        self._config = dict(config)
        self._workers = workers
        self._model: KerasModel | None = None

    @classmethod
    def from_keras(
        cls,
        model_creator: Callable[..., Any],
        config: Mapping[str, Any] | None = None,
        num_workers: int = 1,
        spark: SparkSession | None = None,
    ) -> Estimator:
        """Return an estimator for the model that a function builds.

        Args:
            model_creator: ``model_creator(config)``, or a function without arguments; returns a compiled `keras.Model`
                with one input.
            config: its argument.
            num_workers: TensorFlow workers; each holds one of Spark's task slots.
            spark: the session; None: the active one.
        """
        from pyspark.sql import SparkSession

        return cls(spark or SparkSession.active(), model_creator, config or {}, num_workers)

    def fit(
        self,
        data: Any,
        epochs: int = 1,
        batch_size: int = 32,
        feature_cols: Sequence[str] | str | None = None,
        label_cols: Sequence[str] | str | None = None,
        validation_data: Any = None,
        seed: int = 0,
    ) -> dict[str, list[float]]:
        """Train from the beginning, and return metric -> its value after each epoch.

        Args:
            data: a Spark or pandas DataFrame, or NumPy arrays: ``(x, y)`` or ``{"x": x, "y": y}``; or a function
                ``creator(config, batch_size)`` that returns a batched `tf.data.Dataset` of ``(x, y)``. Each worker
                calls the function itself and uses its share of the dataset.
            epochs: passes over the rows.
            batch_size: rows of a step over all workers.
            feature_cols: the column of features; several columns of numbers are combined to one vector.
            label_cols: the column of the label.
            validation_data: rows to evaluate after each epoch, in the same form.
            seed: of weights and shuffling.

        Raises:
            ConfigError: the data have a different form, or a column does not exist.
        """
        if self._build_model is None:
            raise ConfigError(
                "expected an estimator from from_keras() to fit, but this one was loaded; create one by from_keras()"
            )
        if callable(data):
            return self._fit_created(data, epochs, batch_size, validation_data, seed)
        rows = self._rows(data, feature_cols, label_cols)
        settings: dict[str, Any] = {}
        if validation_data is not None:
            from pyspark.sql import functions as sf

            held = self._rows(validation_data, feature_cols, label_cols)
            rows = rows.withColumn(HELD, sf.lit(False)).unionByName(held.withColumn(HELD, sf.lit(True)))
            settings["validationIndicatorCol"] = HELD
        estimator = KerasEstimator(
            modelBuilder=self._build_model,
            modelParams=self._config,
            featuresCol=X,
            labelCol=Y,
            maxIter=epochs,
            batchSize=batch_size,
            numWorkers=self._workers,
            seed=seed,
            **settings,
        )
        self._model = estimator.fit(rows)
        return dict(self._model.summary.history)

    def _fit_created(
        self, create: Callable[..., Any], epochs: int, batch_size: int, validation: Any, seed: int
    ) -> dict[str, list[float]]:
        """Train on datasets that the workers create."""
        if validation is not None and not callable(validation):
            raise ConfigError(
                "expected validation_data to be a function creator(config, batch_size), like data, got "
                f"{type(validation).__name__}"
            )
        assert self._build_model is not None
        task = Created(self._build_model, self._config, create, validation, epochs, batch_size)
        began = time.monotonic()
        with (
            FITS.hold(self._spark, self._workers),
            tempfile.TemporaryDirectory(prefix="tfspark-fit-") as folder,
        ):
            cluster = TFCluster.run(
                self._spark,
                _train_created,
                task,
                num_executors=self._workers,
                input_mode=TFCluster.InputMode.TENSORFLOW,
                log_dir=folder,
                seed=seed,
            )
            with cluster:
                history: dict[str, list[float]] = cluster.shutdown()["worker 0"]
            export = Path(folder, "export")
            files, signature = of_keras((export / "model.keras").read_bytes()), read_signature(export)
        if signature is None or len(signature.inputs) != 1:
            raise ConfigError(
                "expected a model with one input, got a different one; use KerasEstimator for it"
            )
        (tensor,) = signature.inputs
        shape = tuple(size for size in tensor.shape if size is not None)
        inputs = Inputs(X, "text" if tensor.dtype == "string" else "dense", shape, "float32")
        target = Target(Y, signature.num_classes)
        summary = TrainingSummary(history, time.monotonic() - began)
        self._model = KerasModel(featuresCol=X, labelCol=Y)
        self._model._state = State(files, inputs, target, signature, summary)
        return History(history)

    def evaluate(
        self,
        data: Any,
        feature_cols: Sequence[str] | str | None = None,
        label_cols: Sequence[str] | str | None = None,
    ) -> dict[str, Any]:
        """Return the model's metrics over all rows."""
        found = self._fitted.evaluate(self._rows(data, feature_cols, label_cols))
        return {name: value for name, value in found.items() if name not in ("confusion_matrix", "roc")}

    def predict(self, data: Any, feature_cols: Sequence[str] | str | None = None) -> Any:
        """Return a DataFrame with a column ``prediction`` for DataFrames, an array for arrays.

        The predictions are the model's own outputs; for a classifier these are the probabilities.
        """
        model = self._fitted.copy()
        is_array = not hasattr(data, "columns")
        rows = self._rows(data, feature_cols, None, is_labelled=False)
        wanted = "probability" if model.numClasses is not None else "prediction"
        made = model.transform(rows).drop(X)
        if wanted == "probability":
            made = made.drop("prediction", "rawPrediction").withColumnRenamed("probability", "prediction")
        if not is_array:
            return made
        values = [row["prediction"] for row in made.select("prediction").collect()]
        return np.array([value.toArray() if hasattr(value, "toArray") else value for value in values])

    def get_model(self) -> Any:
        """Return the trained `keras.Model`."""
        return self._fitted.keras()

    def save(self, path: str) -> None:
        """Save the trained model as `KerasModel` does."""
        self._fitted.write().overwrite().save(path)

    @classmethod
    def load(cls, path: str, spark: SparkSession | None = None) -> Estimator:
        """Load a model that `save` wrote, to predict and evaluate."""
        from pyspark.sql import SparkSession

        loaded = cls(spark or SparkSession.active(), None, {}, 1)
        loaded._model = KerasModel.load(path)
        return loaded

    @property
    def _fitted(self) -> KerasModel:
        if self._model is None:
            raise ConfigError(
                "expected an estimator that was fitted or loaded, but this one was not; call fit() first"
            )
        return self._model

    def _rows(
        self,
        data: Any,
        features: Sequence[str] | str | None,
        labels: Sequence[str] | str | None,
        is_labelled: bool = True,
    ) -> DataFrame:
        """Return a DataFrame with the columns ``x`` and ``y``; without labels, its own columns and ``x``."""
        from pyspark.sql import functions as sf

        from tfspark.feed.spark_names import quoted

        if callable(data):
            raise ConfigError(
                "expected a DataFrame or arrays to evaluate or to predict, got a function; functions that create a "
                "dataset are for fit()"
            )
        df = self._as_dataframe(data)
        if not hasattr(data, "columns"):
            return df
        named = [features] if isinstance(features, str) else list(features or [])
        label = labels if isinstance(labels, str) else next(iter(labels or []), None)
        if not named or (is_labelled and label is None):
            raise ConfigError(
                f"expected feature_cols{' and label_cols' if is_labelled else ''} for a DataFrame of {df.columns}, got "
                f"{features} and {labels}; name the columns"
            )
        columns = [df[quoted(name)] for name in named]
        x = columns[0] if len(columns) == 1 else sf.array(*[column.cast("float") for column in columns])
        if not is_labelled:
            return df.withColumn(X, x)
        return df.select(x.alias(X), df[quoted(str(label))].alias(Y))

    def _as_dataframe(self, data: Any) -> DataFrame:
        if hasattr(data, "mapInArrow"):
            found: DataFrame = data
            return found
        if hasattr(data, "columns"):
            return self._spark.createDataFrame(data)
        if isinstance(data, Mapping):
            data = tuple(data[name] for name in (X, Y) if name in data)
        arrays = [np.asarray(part) for part in (data if isinstance(data, tuple | list) else (data,))]
        if not arrays or any(array.ndim < 1 or array.dtype == object for array in arrays):
            raise ConfigError(
                "expected a Spark or pandas DataFrame, or NumPy arrays of numbers as (x, y) or {'x': x, 'y': y}, got "
                f"{type(data).__name__}"
            )
        table = pa.table({name: to_arrow(array) for name, array in zip((X, Y), arrays, strict=False)})
        return self._spark.createDataFrame(table)
