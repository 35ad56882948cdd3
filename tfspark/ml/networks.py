"""Build the ready-made networks from layer specifications. Runs in trainers; functions import Keras inside.

`tfspark.ml` passes `build_network(params)` to a cluster. The parameters are plain data:

    inputs      ``Inputs.to_json()``
    layers      specifications of `tfspark.ml.layers`
    output      ``{"classes": k}``, ``{"units": m}``, or ``{}``: the last layer is the output
    mean, std   of each value: values are standardised first; empty: they are not
    vocabulary  words by falling frequency, for texts; length: maximum number of words of a text; embedding: its size
    label_mean, label_std  the output of a regression is scaled to them; empty: it is not
    loss, metrics, l2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfspark.errors import ConfigError
from tfspark.ml.inputs import INDICES, VALUES
from tfspark.ml.layers import KINDS, OUTPUT_ACTIVATIONS, RECURRENT

Json = Mapping[str, Any]


def build_network(params: Json) -> Any:
    """Build and compile a network.

    Input shape: that of ``params["inputs"]`` for one row; sparse vectors are a dict of padded indices and values.
    Output shape: ``(batch, classes)`` probabilities, ``(batch, 1)`` for two, or ``(batch, units)``.

    Raises:
        ConfigError: a layer does not match the one before.
    """
    import keras

    inputs, x = _inputs(params)
    layers = list(params["layers"])
    for position, layer in enumerate(layers):
        try:
            x = _apply(x, layer, layers[position + 1 :], params)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"expected a layer {position + 1} of the network that matches the layers before, got {layer}: {error}; "
                "change the layers"
            ) from None
    x = _output(x, params["output"], layers[-1] if layers else None, params)
    model = keras.Model(inputs, x, name="network")
    model.compile("adam", loss=params["loss"], metrics=_metrics(params["metrics"]))
    return model


def _metrics(names: Sequence[str]) -> list[Any]:
    import keras

    known = {
        "rmse": lambda: keras.metrics.RootMeanSquaredError(name="rmse"),
        "mae": lambda: keras.metrics.MeanAbsoluteError(name="mae"),
    }
    return [known[name]() if name in known else name for name in names]


def _inputs(params: Json) -> tuple[Any, Any]:
    """Return the inputs and the tensor that the first layer reads."""
    import keras

    given = params["inputs"]
    if given["kind"] == "sparse":
        return _sparse_inputs(params)
    if given["kind"] in ("text", "words"):
        return _text_inputs(params)
    inputs = keras.Input(tuple(given["shape"]), name="features")
    x = inputs
    if params.get("mean"):
        variance = [std**2 for std in params["std"]]
        x = keras.layers.Normalization(axis=-1, mean=params["mean"], variance=variance)(x)
    if x.dtype != keras.config.floatx():
        x = keras.layers.Rescaling(1.0)(x)
    if params["layers"] and params["layers"][0]["layer"] in RECURRENT and len(x.shape) == 2:
        x = keras.layers.Reshape((-1, 1))(x)  # (batch, steps, 1): each value is a step
    return inputs, x


def _sparse_inputs(params: Json) -> tuple[Any, Any]:
    """Read a sparse vector by its indices and values.

    A dense layer gets the same result as from the dense vector (`SparseDense`). A recurrent layer gets a sequence of
    terms; each is an embedding times the term's value.
    """
    import keras

    name, size, first = params["inputs"]["name"], params["inputs"]["size"], params["layers"][0]
    indices = keras.Input((None,), dtype="int32", name=name + INDICES)
    values = keras.Input((None,), name=name + VALUES)
    inputs = {name + INDICES: indices, name + VALUES: values}
    if first["layer"] in RECURRENT:
        ahead = ((0, 0), (0, 1))  # One more step, of padding: a vector may have no terms.
        steps, weights = keras.ops.pad(indices, ahead), keras.ops.pad(values, ahead)
        embedded = keras.layers.Embedding(size, params["embedding"])(steps)  # (batch, terms, embedding)
        x = keras.layers.Multiply()([embedded, weights[..., None]])
        return inputs, keras.layers.Masking()(x)
    return inputs, [indices, values]


def _text_inputs(params: Json) -> tuple[Any, Any]:
    import keras

    inputs = keras.Input((), dtype="string", name="text")
    split = keras.layers.TextVectorization(
        standardize=None, split="whitespace", vocabulary=list(params["vocabulary"])
    )
    tokens = keras.ops.pad(
        split(inputs)[:, : params["length"]], ((0, 0), (0, 1))
    )  # A text may have no words.
    size = len(params["vocabulary"]) + 2  # padding, unknown words
    return inputs, keras.layers.Embedding(size, params["embedding"], mask_zero=True)(tokens)


def _apply(x: Any, layer: Json, later: Sequence[Json], params: Json) -> Any:
    import keras

    kind = layer["layer"]
    arguments = {name: value for name, value in layer.items() if name != "layer"}
    if isinstance(x, list):
        return _first_on_sparse(x, kind, arguments, params)
    if kind == "Dense" and len(x.shape) > 2:
        x = keras.layers.Flatten()(x)
    if params.get("l2") and "kernel_regularizer" in (*KINDS[kind].options,):
        arguments.setdefault("kernel_regularizer", keras.regularizers.L2(params["l2"]))
    if kind not in RECURRENT:
        return getattr(keras.layers, KINDS[kind].keras)(**arguments)(x)
    is_bidirectional = arguments.pop("bidirectional", False)
    stacked = bool(later) and later[0]["layer"] in RECURRENT
    arguments.setdefault("return_sequences", stacked)
    made = getattr(keras.layers, KINDS[kind].keras)(**arguments)
    return (keras.layers.Bidirectional(made) if is_bidirectional else made)(x)


def _first_on_sparse(parts: list[Any], kind: str, arguments: dict[str, Any], params: Json) -> Any:
    import keras

    from tfspark.ml.sparse_dense import SparseDense

    if kind != "Dense":
        raise ValueError("the first layer for sparse vectors must be Dense or recurrent")
    known = ("units", "activation", "kernel_regularizer", "name")
    arguments = {name: value for name, value in arguments.items() if name in known}
    if params.get("l2"):
        arguments.setdefault("kernel_regularizer", keras.regularizers.L2(params["l2"]))
    return SparseDense(size=params["inputs"]["size"], **arguments)(*parts)


def _output(x: Any, output: Json, last: Json | None, params: Json) -> Any:
    """Add the output layer unless the last layer is one; scale the output of a regression to the label's units."""
    import keras

    if not (last is not None and _is_output(last, output)):
        if len(x.shape) > 2:
            x = keras.layers.Flatten()(x)
        regularizer = keras.regularizers.L2(params["l2"]) if params.get("l2") else None
        if "classes" in output:
            last_layer = keras.layers.Dense(
                output["classes"], "softmax", name="class", kernel_regularizer=regularizer
            )
        else:
            last_layer = keras.layers.Dense(output["units"], name="value", kernel_regularizer=regularizer)
        x = last_layer(x)
    if params.get("label_std"):
        x = keras.layers.Rescaling(params["label_std"], params["label_mean"])(x)
    return x


def _is_output(last: Json, output: Json) -> bool:
    """Return whether the last layer is an output layer; `check_output` rejects one with a wrong number of classes."""
    if not output or last["layer"] != "Dense":
        return False
    activation = last.get("activation")
    if "classes" in output:
        return activation in OUTPUT_ACTIVATIONS
    return last["units"] == output["units"] and activation in (None, "linear")


def check_output(layers: Sequence[Json], output: Json) -> None:
    """Reject a last layer whose number of probabilities differs from the number of classes.

    Raises:
        ConfigError: names both numbers.
    """
    classes = output.get("classes")
    if classes is None or not layers or not _is_output(layers[-1], output):
        return
    units, activation = layers[-1]["units"], layers[-1]["activation"]
    fits = units == classes or (units == 1 and classes == 2)
    if not fits or (units == 1) != (activation == "sigmoid"):
        raise ConfigError(
            f"expected a last layer for {classes} classes, Dense({classes}, activation='softmax')"
            + (" or Dense(1, activation='sigmoid')" if classes == 2 else "")
            + f", got Dense({units}, activation={activation!r}); change it, or leave it out: an output layer is added"
        )


def loss_of(layers: Sequence[Json], output: Json) -> str:
    """Return the loss for a network that ends in these layers."""
    if "classes" not in output:
        return "mean_squared_error"
    is_binary = bool(layers) and _is_output(layers[-1], output) and layers[-1]["units"] == 1
    return "binary_crossentropy" if is_binary else "sparse_categorical_crossentropy"
