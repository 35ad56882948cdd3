"""Ready-made estimators: dense, convolutional and recurrent networks for classes and numbers. Driver only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigError
from tfspark.feed.columns import Columns
from tfspark.inference.windows import TARGET, WINDOW, Windows, with_windows
from tfspark.ml.estimator import KerasModel, NetworkEstimator, Plan, State, module_network
from tfspark.ml.inputs import Inputs, vocabulary_of
from tfspark.ml.layers import LayerFactory, as_layers, make_layer
from tfspark.ml.moments import feature_moments, label_moments, largest_value, per_variable
from tfspark.ml.networks import build_network, check_output, loss_of
from tfspark.ml.params import ClassParams, declare, flag, labels, mapping, names, number, texts, whole
from tfspark.ml.params import text as text_of
from tfspark.ml.persistence import own_modules
from tfspark.ml.rows import Target, find_classes, find_numbers
from tfspark.ml.training import Network

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

CNN_MODULE, RNN_MODULE = "models/cnn.py", "models/rnn.py"
LEAST_LENET = 16
"""Smaller images use the architecture `simple`."""


class LayeredEstimator(NetworkEstimator):
    """An estimator whose network is a list of layers, or one of tfspark's architectures."""

    layers = declare(
        "layers",
        'the network as layers such as [Dense(64, "relu"), Dense(10, "softmax")]; an output layer is added if the last '
        "layer is not one, and Flatten where a layer needs it; unset: the estimator's default",
        as_layers,
    )
    regParam = declare("regParam", "L2 penalty on the kernels, 0 or more", number(0))
    standardization = declare(
        "standardization", "whether each value is scaled to mean 0 and deviation 1 within the network", flag
    )

    default_layers: Sequence[Mapping[str, Any]] = ()
    metrics: Sequence[str] = ()

    def _set_own_defaults(self) -> None:
        self._setDefault(regParam=0.0, standardization=True)

    def _plan(self, dataset: DataFrame) -> Plan:
        target = self._target(dataset)
        inputs = self._inputs_of(dataset)
        rows = self._rows(dataset, inputs, target)
        return Plan(self._network(dataset, inputs, target, rows.train), inputs, target, rows)

    def _target(self, dataset: DataFrame) -> Target:
        raise NotImplementedError

    def _inputs_of(self, dataset: DataFrame) -> Inputs:
        return self._find_inputs(dataset, takes_sparse=True, plain=True)

    def _network(self, dataset: DataFrame, inputs: Inputs, target: Target, train: DataFrame) -> Network:
        return self._of_layers(dataset, inputs, target, train)

    def _of_layers(
        self, dataset: DataFrame, inputs: Inputs, target: Target, train: DataFrame, **more: Any
    ) -> Network:
        """Return the network of `layers`, or of the default ones."""
        given = self._value("layers") or [dict(layer) for layer in self.default_layers]
        check_output(given, target.output)
        params: dict[str, Any] = {
            "inputs": inputs.to_json(),
            "layers": given,
            "output": target.output,
            "loss": loss_of(given, target.output),
            "metrics": list(self.metrics),
            "l2": self.getOrDefault("regParam"),
            **more,
        }
        if self.getOrDefault("standardization"):
            if (
                inputs.kind == "dense"
                and len(inputs.shape) == 1
                and inputs.scale is None
                and "mean" not in more
            ):
                mean, deviation = self._once(feature_moments, dataset, inputs)
                params |= {"mean": mean.tolist(), "std": deviation.tolist()}
            if target.num_classes is None and target.label is not None:
                moments = self._once(label_moments, train, target.label)
                params["label_mean"], params["label_std"] = moments
        # The process that loads the model must know the layer that reads sparse vectors.
        modules = own_modules(["tfspark.ml.sparse_dense"]) if inputs.kind == "sparse" else ()
        return Network(build_network, params, modules=modules)


class ClassifierMixin(LayeredEstimator, ClassParams):
    """A classifier: labels are 0 to k-1, or texts, or the values of `classes`."""

    classes = declare(
        "classes", "values of the label in the order of the classes; unset: those in the rows", labels
    )

    metrics = ("accuracy",)

    def __init__(self, **params: Any):
        if "rawPrediction" in params:  # The form of tutorials: whether the column is added.
            params["rawPredictionCol"] = "rawPrediction" if flag(params.pop("rawPrediction")) else ""
        super().__init__(**params)

    def _set_own_defaults(self) -> None:
        super()._set_own_defaults()
        self._set_class_defaults()

    def _target(self, dataset: DataFrame) -> Target:
        return self._once(find_classes, dataset, self.getOrDefault("labelCol"), self._value("classes"))

    def _contradiction(self) -> str | None:
        if self.isSet("layers") and self.isSet("classes"):
            try:
                check_output(self.getOrDefault("layers"), {"classes": len(self.getOrDefault("classes"))})
            except ConfigError as error:
                return str(error)
        return super()._contradiction()


class DenseClassifier(ClassifierMixin):
    """A network of dense layers that classifies vectors or arrays of numbers.

    Sparse vectors of more than 4,096 dimensions, such as those of HashingTF, stay sparse.
    """

    default_layers = ({"layer": "Dense", "units": 64, "activation": "relu"},)


class DenseRegressor(LayeredEstimator):
    """A network of dense layers that predicts a number, or a vector of numbers."""

    default_layers = (
        {"layer": "Dense", "units": 64, "activation": "relu"},
        {"layer": "Dense", "units": 64, "activation": "relu"},
    )
    metrics = ("rmse", "mae")

    def _target(self, dataset: DataFrame) -> Target:
        return self._once(find_numbers, dataset, self.getOrDefault("labelCol"))


# --- images -------------------------------------------------------------------------------------------


class CNNClassifier(ClassifierMixin):
    """A convolutional network that classifies images.

    Images are vectors (one of 784 values is 28 x 28 unless `inputShape` says otherwise), arrays, bytes of pixels, image
    files, or rows of ``spark.read.format("image")``. Pixels are scaled to [0, 1].
    """

    architecture = declare(
        "architecture",
        "one of models/cnn.py, such as lenet, simple, resnet20, vgg11; used without layers",
        text_of,
    )
    modelParams = declare(
        "modelParams", "further parameters of models/cnn.py, such as {'dropout': 0.2}", mapping
    )

    def _set_own_defaults(self) -> None:
        super()._set_own_defaults()
        self._setDefault(modelParams={})

    def _contradiction(self) -> str | None:
        return _one_network(self, "architecture", "modelParams") or super()._contradiction()

    def _inputs_of(self, dataset: DataFrame) -> Inputs:
        inputs = self._find_inputs(dataset)
        if inputs.kind != "dense":
            raise ConfigError(
                f"expected images in column {inputs.name!r}: vectors, arrays, bytes or files, got {inputs.kind}; "
                "use RNNClassifier for texts"
            )
        inputs = replace(inputs, shape=image_shape(inputs))
        if inputs.scale is not None:
            return inputs
        return replace(inputs, scale=self._once(largest_value, dataset, inputs))

    def _network(self, dataset: DataFrame, inputs: Inputs, target: Target, train: DataFrame) -> Network:
        if self._value("layers") is not None:
            return self._of_layers(dataset, inputs, target, train)
        small = min(inputs.shape[:2]) < LEAST_LENET
        params = {
            "architecture": self._value("architecture") or ("simple" if small else "lenet"),
            "input_shape": list(inputs.shape),
            "num_classes": target.num_classes,
            "weight_decay": self.getOrDefault("regParam"),
            **self.getOrDefault("modelParams"),
        }
        return self._once(module_network, train, CNN_MODULE, params)


def image_shape(inputs: Inputs) -> tuple[int, ...]:
    """Return height, width and channels of images.

    Raises:
        ConfigError: the length of a vector is not a square number.
    """
    shape = inputs.shape
    if len(shape) == 3:
        return shape
    if len(shape) == 2:
        return (*shape, 1)
    side = math.isqrt(shape[0])
    if len(shape) == 1 and side * side == shape[0]:
        return (side, side, 1)
    raise ConfigError(
        f"expected images in column {inputs.name!r}, got rows of shape {list(shape)}, which is not a square image of "
        "one channel; set inputShape=[height, width, channels]"
    )


def _one_network(estimator: Any, *others: str) -> str | None:
    given = [name for name in others if estimator.isSet(name) and estimator.getOrDefault(name)]
    if estimator.isSet("layers") and given:
        return (
            f"expected either layers or {given[0]}, got both: layers are the complete network; leave one out"
        )
    return None


class CNN(CNNClassifier):
    """`CNNClassifier` with layers as methods: ``CNN(layers=[CNN.Convolution(32), CNN.MaxPooling(kernelSize=2)])``."""

    Convolution = LayerFactory("Convolution")
    MaxPooling = LayerFactory("MaxPooling")
    AveragePooling = LayerFactory("AveragePooling")
    GlobalMaxPooling = LayerFactory("GlobalMaxPooling")
    GlobalAveragePooling = LayerFactory("GlobalAveragePooling")
    BatchNormalization = LayerFactory("BatchNormalization")
    Dense = LayerFactory("Dense")
    Dropout = LayerFactory("Dropout")
    Flatten = LayerFactory("Flatten")


# --- texts and series ---------------------------------------------------------------------------------


class RecurrentEstimator(LayeredEstimator):
    """Base class of recurrent networks on texts, term vectors and series."""

    modelParams = declare(
        "modelParams", "further parameters of models/rnn.py, such as {'cell': 'lstm'}", mapping
    )
    vocabularySize = declare("vocabularySize", "number of different words of texts, 3 or more", whole(3))
    textLength = declare("textLength", "maximum number of words that are read of a text", whole(1))
    embeddingSize = declare("embeddingSize", "size of the embedding of a word or a term", whole(1))

    default_layers = (make_layer("GRU", 32).to_json(),)

    def _set_own_defaults(self) -> None:
        super()._set_own_defaults()
        self._setDefault(modelParams={}, vocabularySize=20_000, textLength=256, embeddingSize=64)

    def _contradiction(self) -> str | None:
        return _one_network(self, "modelParams") or super()._contradiction()

    @property
    def _splits_words(self) -> bool:
        """Whether the network gets texts as words in lower case, not unchanged."""
        return bool(self.isSet("layers"))

    def _inputs_of(self, dataset: DataFrame) -> Inputs:
        inputs = self._find_inputs(dataset, takes_sparse=True, plain=self._splits_words)
        if inputs.kind == "dense" and len(inputs.shape) == 1 and not self.isSet("layers"):
            return replace(inputs, shape=(*inputs.shape, 1))
        return inputs

    def _network(self, dataset: DataFrame, inputs: Inputs, target: Target, train: DataFrame) -> Network:
        is_text = inputs.kind in ("text", "words")
        sizes = {"embedding": self.getOrDefault("embeddingSize"), "length": self.getOrDefault("textLength")}
        # models/rnn.py can forecast series, but not predict a number from a text.
        is_number_of_text = is_text and target.num_classes is None
        if self._value("layers") is not None or inputs.kind == "sparse" or is_number_of_text:
            size = self.getOrDefault("vocabularySize")
            known = self._once(vocabulary_of, train, size) if is_text else []
            return self._of_layers(dataset, inputs, target, train, vocabulary=known, **sizes)
        params: dict[str, Any] = {
            "weight_decay": self.getOrDefault("regParam"),
            "task": "classify" if target.num_classes else "forecast",
        }
        if target.num_classes:
            params["num_classes"] = target.num_classes
        if is_text:
            params |= {"inputs": "text", "vocabulary_size": self.getOrDefault("vocabularySize"), **sizes}
        else:
            params |= {"inputs": "series", "input_shape": list(inputs.shape)}
            params |= self._series_params(dataset, inputs, target)
        return self._once(module_network, train, RNN_MODULE, {**params, **self.getOrDefault("modelParams")})

    def _series_params(self, dataset: DataFrame, inputs: Inputs, target: Target) -> dict[str, Any]:
        del target
        mean, deviation = per_variable(*self._once(feature_moments, dataset, inputs))
        return {"mean": mean, "std": deviation}


class RNNClassifier(RecurrentEstimator, ClassifierMixin):
    """A recurrent network that classifies texts, term vectors or series.

    Texts and arrays of words enter as words. Sparse vectors of more than 4,096 dimensions, such as those of HashingTF
    and IDF, enter as the sequence of their terms; each is an embedding times the term's value. Other vectors and arrays
    enter as series: one step for each value, or for each row of an array of arrays.
    """


class RNN(RNNClassifier):
    """`RNNClassifier` with layers as methods: ``RNN(layers=[RNN.LSTM(100), RNN.Dense(1, activation="sigmoid")])``."""

    LSTM = LayerFactory("LSTM")
    GRU = LayerFactory("GRU")
    SimpleRNN = LayerFactory("SimpleRNN")
    Dense = LayerFactory("Dense")
    Dropout = LayerFactory("Dropout")


class RNNRegressionModel(KerasModel):
    """Forecasts the values after each row of a series, from the window of rows that ends with it.

    Rows without a complete window have no prediction (null), or are dropped with ``handleInvalid="skip"``. Spark
    sorts the rows by series and order.
    """

    def _transform(self, dataset: DataFrame) -> DataFrame:
        windows = self._known.extra.get("windows")
        if windows is None:
            return super()._transform(dataset)
        handling = self.getOrDefault("handleInvalid")
        model = self.copy({self.getParam("handleInvalid"): "keep" if handling == "error" else handling})
        found = with_windows(dataset, Windows.from_json(windows))
        return KerasModel._transform(model, found)

    def _inputs(self, state: State) -> Inputs:
        assert state.inputs is not None
        return state.inputs if "windows" in state.extra else super()._inputs(state)

    def _predictor(self, state: State, columns: Columns, inputs: Inputs | None = None) -> Any:
        predictor = super()._predictor(state, columns, inputs)
        hidden = (WINDOW,) if "windows" in state.extra else ()
        return replace(predictor, hidden=(*predictor.hidden, *hidden))


class RNNRegressor(RecurrentEstimator):
    """A recurrent network that forecasts a series, and cuts the series into windows itself.

    With `orderCol` each row is a point in time: a window is the last `steps` rows of its series (`groupCols`), and the
    network forecasts the `horizon` values of `labelCol` that follow. Without `orderCol`, `featuresCol` has windows and
    `labelCol` the values to predict.
    """

    orderCol = declare("orderCol", "the column that orders rows in time; with it windows are cut", text_of)
    groupCols = declare("groupCols", "the columns that identify a series; unset: there is one series", texts)
    inputCols = declare(
        "inputCols",
        "with orderCol the further variables of a window beside labelCol; unset: there are none",
        names,
    )
    steps = declare("steps", "number of rows in a window", whole(1))
    horizon = declare("horizon", "number of values to forecast", whole(1))

    metrics = ("rmse", "mae")
    model_class = RNNRegressionModel

    @property
    def _splits_words(self) -> bool:
        return True

    def _set_own_defaults(self) -> None:
        super()._set_own_defaults()
        self._setDefault(steps=24, horizon=1, groupCols=[])

    def _contradiction(self) -> str | None:
        for name in ("groupCols", "inputCols", "steps", "horizon"):
            if self.isSet(name) and not self.isSet("orderCol"):
                return f"expected orderCol together with {name}: windows are cut in its order; set orderCol"
        if self.isSet("orderCol") and self.isSet("featuresCol"):
            return "expected no featuresCol with orderCol: windows are cut from inputCols; leave one out"
        return super()._contradiction()

    def _plan(self, dataset: DataFrame) -> Plan:
        if not self.isSet("orderCol"):
            return super()._plan(dataset)
        label = self.getOrDefault("labelCol")
        # The first variable is the one that the network forecasts, in its units.
        values = dict.fromkeys([label, *(self._value("inputCols") or [])])
        windows = Windows(
            self.getOrDefault("orderCol"),
            tuple(self.getOrDefault("groupCols")),
            tuple(values),
            label,
            self.getOrDefault("steps"),
            self.getOrDefault("horizon"),
        )
        cut = with_windows(dataset, windows, with_target=True)
        inputs = Inputs(WINDOW, "dense", (windows.steps, len(windows.values)), "float32")
        target = Target(TARGET, units=windows.horizon)
        rows = self._rows(cut, inputs, target)
        network = self._network(cut, inputs, target, rows.train)
        return Plan(network, inputs, target, rows, {"windows": windows.to_json()})

    def _target(self, dataset: DataFrame) -> Target:
        return self._once(find_numbers, dataset, self.getOrDefault("labelCol"))

    def _network(self, dataset: DataFrame, inputs: Inputs, target: Target, train: DataFrame) -> Network:
        if self.isSet("orderCol") or self._value("layers") is not None or inputs.kind != "dense":
            return super()._network(dataset, inputs, target, train)
        mean, std = per_variable(*self._once(feature_moments, dataset, inputs))
        return self._of_layers(dataset, inputs, target, train, mean=mean, std=std)

    def _series_params(self, dataset: DataFrame, inputs: Inputs, target: Target) -> dict[str, Any]:
        found = super()._series_params(dataset, inputs, target)
        return {**found, "horizon": target.units, "pooling": "last", "bidirectional": False}
