"""`Autoencoder`: codes, reconstructions and their errors. Driver only, except `Reconstruct`, which predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigError
from tfspark.inference.outputs import Output
from tfspark.ml.estimator import KerasModel, NetworkEstimator, Plan, State, module_network
from tfspark.ml.inputs import Inputs
from tfspark.ml.layers import as_layers
from tfspark.ml.moments import feature_moments
from tfspark.ml.params import CheckedParams, declare, flag, mapping, number, text, whole
from tfspark.ml.ready_made import image_shape
from tfspark.ml.rows import Target

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MODULE = "models/autoencoder.py"
DEFAULT_CODE = 16


class CodeParams(CheckedParams):
    """Columns of an autoencoder; its `predictionCol` is the reconstruction."""

    codeCol = declare("codeCol", "the column of the codes, vectors; empty: none", text)
    errorCol = declare("errorCol", "the column of each row's mean squared error; empty: none", text)

    def _set_code_defaults(self) -> None:
        self._setDefault(codeCol="code", errorCol="error", predictionCol="reconstruction", labelCol="")


@dataclass(frozen=True)
class Reconstruct:
    """Calls the encoder and the decoder of an autoencoder.

    Attributes:
        std: deviation of each value; its error is divided by it. Empty: 1.
    """

    std: tuple[float, ...] = ()

    def __call__(self, model: Any, x: Any) -> Mapping[str, Any]:
        """Return code, reconstruction and error.

        Shapes:
            x: (rows, ...).
            code: (rows, code); reconstruction: as x; error: (rows,).
        """
        import keras

        x = keras.ops.cast(x, "float32")
        encoded = model.encoder(x, training=False)
        code = encoded[0] if isinstance(encoded, list | tuple) else encoded
        rebuilt = model.decoder(code, training=False)
        rows = keras.ops.shape(x)[0]
        lacking = keras.ops.reshape(x - rebuilt, (rows, -1))
        if self.std:
            lacking = lacking / keras.ops.convert_to_tensor(self.std, "float32")
        return {
            "code": code,
            "reconstruction": rebuilt,
            "error": keras.ops.mean(keras.ops.square(lacking), axis=-1),
        }


class AutoencoderModel(KerasModel, CodeParams):
    """Adds the code, the reconstruction and its error, which is large if a row differs from the training rows."""

    def __init__(self, **params: Any):
        super().__init__()
        self._set_code_defaults()
        self._set(**self._named(params))

    def _call(self, inputs: Inputs | None) -> Callable[[Any, Any], Mapping[str, Any]] | None:
        del inputs
        return Reconstruct(tuple(self._known.extra["std"]))

    def _outputs(self, state: State) -> tuple[Output, ...]:
        del state
        wanted = [
            ("codeCol", "code", "vector"),
            ("predictionCol", "reconstruction", "vector"),
            ("errorCol", "error", "number"),
        ]
        return tuple(
            Output(self.getOrDefault(param), kind, "double" if kind == "number" else "vector", tensor)  # type: ignore[arg-type]
            for param, tensor, kind in wanted
            if self.getOrDefault(param)
        )


class Autoencoder(NetworkEstimator, CodeParams):
    """A network that learns to reproduce its rows through a narrow code.

    Vectors and arrays are standardised and go through dense layers; images (three axes, or
    ``modelParams={"architecture": "convolutional"}``) are scaled to [0, 1]. ``layers=[Dense(64), Dense(8)]`` is the
    encoder; the decoder mirrors it.
    """

    layers = declare("layers", "the encoder as dense layers; the last one is the code", as_layers)
    codeSize = declare("codeSize", "number of values of a code; used without layers", whole(1))
    regParam = declare("regParam", "L2 penalty on the kernels, 0 or more", number(0))
    standardization = declare("standardization", "whether each value is divided by its deviation", flag)
    modelParams = declare(
        "modelParams", "further parameters of models/autoencoder.py, such as {'noise': 0.1}", mapping
    )

    model_class = AutoencoderModel

    def _set_own_defaults(self) -> None:
        self._set_code_defaults()
        self._setDefault(regParam=0.0, standardization=True, modelParams={}, codeSize=DEFAULT_CODE)

    def _contradiction(self) -> str | None:
        if not self.isSet("layers"):
            return super()._contradiction()
        given = self.getOrDefault("layers")
        if any(layer["layer"] != "Dense" for layer in given):
            return "expected only Dense layers in layers, where the last one is the code; use modelParams for others"
        activations = {layer.get("activation") for layer in given} - {None, "relu", "linear"}
        if activations:
            return (
                "expected layers with activation relu, which all layers but the code have, got "
                f"{sorted(activations)}; leave activation out"
            )
        if self.isSet("codeSize"):
            return (
                "expected either layers or codeSize, got both: the last layer is the code; leave codeSize out"
            )
        return super()._contradiction()

    def _plan(self, dataset: DataFrame) -> Plan:
        inputs = self._find_inputs(dataset)
        if inputs.kind != "dense":
            raise ConfigError(
                f"expected numbers in column {inputs.name!r} for an autoencoder, got {inputs.kind}; convert them to "
                "vectors, for example with pyspark.ml.feature.HashingTF(numFeatures=1000)"
            )
        own = dict(self.getOrDefault("modelParams"))
        if own.get("architecture") == "convolutional":
            inputs = Inputs.from_json({**inputs.to_json(), "shape": image_shape(inputs)})
        standardise = self.getOrDefault("standardization") and inputs.scale is None
        params: dict[str, Any] = {
            "input_shape": list(inputs.shape),
            "weight_decay": self.getOrDefault("regParam"),
            "standardise": standardise,
            **self._sizes(),
        }
        std: list[float] = []
        if standardise:
            mean, deviation = self._once(feature_moments, dataset, inputs)
            std = deviation.reshape(-1).tolist()
            params |= {"mean": mean.reshape(-1).tolist(), "std": std}
        target = Target()
        rows = self._rows(dataset, inputs, target)
        network = self._once(module_network, rows.train, MODULE, {**params, **own})
        return Plan(network, inputs, target, rows, {"std": std})

    def _sizes(self) -> dict[str, Any]:
        given = self._value("layers")
        if given is None:
            return {"code": self.getOrDefault("codeSize")}
        return {"hidden": [layer["units"] for layer in given[:-1]], "code": given[-1]["units"]}
