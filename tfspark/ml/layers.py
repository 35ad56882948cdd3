"""Layers as data: small specifications that can be set as a Param, saved, and built in a trainer. Imports no Keras.

``Dense(10, activation="softmax")``, ``CNN.MaxPooling(kernelSize=2)`` and ``RNN.LSTM(100)`` create them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfspark.ml.params import plain


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
        keras: name of the class in `keras.layers`.
        positional: positional arguments, in this order.
        options: further arguments.
        renamed: alternative name of an argument -> its name in Keras.
    """

    keras: str
    positional: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


_WEIGHED = ("activation", "use_bias", "kernel_regularizer", "kernel_initializer", "name")
_SIZE = {"kernelSize": "kernel_size"}
_POOL = {"kernelSize": "pool_size", "kernel_size": "pool_size", "poolSize": "pool_size"}
_RECURRENT = (
    "activation",
    "dropout",
    "recurrent_dropout",
    "kernel_regularizer",
    "name",
    "return_sequences",
    "bidirectional",
)

KINDS: dict[str, Kind] = {
    "Dense": Kind("Dense", ("units", "activation"), _WEIGHED),
    "Dropout": Kind("Dropout", ("rate",), ("name",)),
    "Flatten": Kind("Flatten", (), ("name",)),
    "BatchNormalization": Kind("BatchNormalization", (), ("momentum", "epsilon", "name")),
    "Activation": Kind("Activation", ("activation",), ("name",)),
    "Convolution": Kind(
        "Conv2D", ("filters", "kernel_size", "strides"), ("padding", "dilation_rate", *_WEIGHED), _SIZE
    ),
    "MaxPooling": Kind("MaxPooling2D", ("pool_size", "strides"), ("padding", "name"), _POOL),
    "AveragePooling": Kind("AveragePooling2D", ("pool_size", "strides"), ("padding", "name"), _POOL),
    "GlobalMaxPooling": Kind("GlobalMaxPooling2D", (), ("name",)),
    "GlobalAveragePooling": Kind("GlobalAveragePooling2D", (), ("name",)),
    "LSTM": Kind("LSTM", ("units", "activation"), _RECURRENT),
    "GRU": Kind("GRU", ("units", "activation"), _RECURRENT),
    "SimpleRNN": Kind("SimpleRNN", ("units", "activation"), _RECURRENT),
}
RECURRENT = ("LSTM", "GRU", "SimpleRNN")
OUTPUT_ACTIVATIONS = ("softmax", "sigmoid")
_NEEDED = {
    "Dense": "units",
    "Dropout": "rate",
    "Convolution": "filters",
    "LSTM": "units",
    "GRU": "units",
    "SimpleRNN": "units",
}


@dataclass(frozen=True)
class Layer:
    """A layer that is not built yet.

    Attributes:
        kind: a key of `KINDS`.
        arguments: the arguments of its Keras class, and ``bidirectional`` for recurrent layers.
    """

    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"layer": self.kind, **self.arguments}


def make_layer(kind: str, *positional: Any, **named: Any) -> Layer:
    """Return a layer.

    Raises:
        ValueError: the layer or an argument is unknown, or an argument is missing or given twice.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KINDS)}"
        raise ValueError(f"expected a layer, got {kind!r}; {hint}")
    found = KINDS[kind]
    if len(positional) > len(found.positional):
        raise ValueError(
            f"expected at most {len(found.positional)} values in {kind}(...), got {len(positional)}"
        )
    arguments = dict(zip(found.positional, positional, strict=False))
    for name, value in named.items():
        own = found.renamed.get(name, name)
        if own not in (*found.positional, *found.options):
            known = [*found.positional, *found.options]
            near = difflib.get_close_matches(name, [*known, *found.renamed], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"expected an argument of {kind}, got {name!r}; {hint}")
        if own in arguments:
            raise ValueError(f"expected {own} of {kind} once, got it twice")
        arguments[own] = value
    if kind == "Convolution":
        arguments.setdefault("kernel_size", 3)
    needed = _NEEDED.get(kind)
    if needed and needed not in arguments:
        raise ValueError(f"expected {needed} in {kind}(...), got none, as in {kind}({needed}=10)")
    return Layer(kind, {name: plain(value) for name, value in arguments.items()})


def as_layers(value: Any) -> list[dict[str, Any]]:
    """Check a list of layers for a Param: `Layer`s, or results of `Layer.to_json`.

    Raises:
        ValueError: it is not a list, or has an item that is not a layer.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError('expected a list of layers such as [Dense(64, "relu"), Dense(10, "softmax")]')
    return [_as_layer(item).to_json() for item in value]


def _as_layer(item: Any) -> Layer:
    if isinstance(item, Layer):
        return item
    if isinstance(item, Mapping) and isinstance(item.get("layer"), str):
        return make_layer(item["layer"], **{name: value for name, value in item.items() if name != "layer"})
    raise ValueError(
        f'expected a layer such as Dense(64, "relu") of tfspark.ml, got {type(item).__name__}; a Keras layer goes into '
        "the build_model of a KerasEstimator"
    )


def Dense(*positional: Any, **named: Any) -> Layer:
    """Return a dense layer: ``Dense(10, activation="softmax")``."""
    return make_layer("Dense", *positional, **named)


def Dropout(*positional: Any, **named: Any) -> Layer:
    """Return a layer that drops activations in training: ``Dropout(0.5)``."""
    return make_layer("Dropout", *positional, **named)


class LayerFactory:
    """Provides layers as static methods of a class: ``CNN.MaxPooling(kernelSize=2)``."""

    def __init__(self, kind: str):
        self._kind = kind

    def __get__(self, instance: Any, owner: type) -> Any:
        """Return the function that creates the layer."""
        del instance, owner

        def make(*positional: Any, **named: Any) -> Layer:
            return make_layer(self._kind, *positional, **named)

        make.__name__ = self._kind
        make.__doc__ = f"Return a layer {self._kind}."
        return make
