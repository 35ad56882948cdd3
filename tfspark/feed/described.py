"""Descriptions stored with an exported model, so that its columns need not be named again.

A run writes ``prediction.json`` on the driver; the trainer that saves the model writes ``signature.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfspark.errors import ConfigError
from tfspark.feed.columns import Columns

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfspark.protocol.values import Json

PREDICTION, SIGNATURE, MODULE = "prediction.json", "signature.json", "module.py"
FORMAT = 1
"""Format of both files; a reader rejects a higher one."""


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a model.

    Attributes:
        name: its name in the model.
        shape: shape of one row; None: the size varies.
        dtype: TensorFlow's name of the type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model; empty if the model does not declare them.

    Attributes:
        inputs: the inputs.
        outputs: the outputs.
        loss: name of the loss it was compiled with; empty: it was not compiled, or the loss has no name.
    """

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    loss: str = ""

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes of a classifier with one output; None: the loss is not a classifier's."""
        if len(self.outputs) != 1 or not self.loss.endswith("crossentropy"):
            return None
        units = (self.outputs[0].shape or (1,))[-1]
        return 2 if units == 1 else None if self.loss.startswith("binary") else units

    def to_json(self) -> Json:
        """Return a form that can be written as JSON."""
        return {
            "format": FORMAT,
            "inputs": [vars(tensor) for tensor in self.inputs],
            "outputs": [vars(tensor) for tensor in self.outputs],
            "loss": self.loss,
        }

    @classmethod
    def from_json(cls, data: Json) -> Signature:
        """Create the signature from the result of `to_json`."""
        check_format(data, "signature")
        return cls(_tensors(data["inputs"]), _tensors(data["outputs"]), data["loss"])


@dataclass(frozen=True)
class Described:
    """A run's description of its model.

    Attributes:
        columns: the features; also label and weight, as in training.
        classes: original values of the label, in the order of the classes; empty if it is not a class.
        is_multi_label: whether a label has a yes or no for each class.
    """

    columns: Columns
    classes: tuple[object, ...] = ()
    is_multi_label: bool = False

    @property
    def features(self) -> Columns:
        """The columns with the features only."""
        return replace(self.columns, label=None, weight=None, num_classes=None, class_weights=())

    def write(self, folder: Path) -> None:
        """Write the description beside the exported model."""
        data = {
            "format": FORMAT,
            "columns": self.columns.to_json(),
            "classes": list(self.classes),
            "is_multi_label": self.is_multi_label,
        }
        (folder / PREDICTION).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Described | None:
        """Read the description; None if there is none."""
        if not (folder / PREDICTION).is_file():
            return None
        data = json.loads((folder / PREDICTION).read_text(encoding="utf-8"))
        check_format(data, folder / PREDICTION)
        return cls(Columns.from_json(data["columns"]), tuple(data["classes"]), data["is_multi_label"])


def check_format(data: Mapping[str, object], what: object, key: str = "format") -> None:
    """Reject a file that a newer tfspark has written.

    Raises:
        ConfigError: the message names both formats.
    """
    found = data.get(key)
    if not isinstance(found, int) or found > FORMAT:
        raise ConfigError(
            f"expected a model of format {FORMAT} or older, {what} has format {found}: a newer tfspark has saved it; "
            "install that version, or save the model again with this one"
        )


def read_signature(folder: Path) -> Signature | None:
    """Read the signature beside an exported model; None if there is none."""
    place = folder / SIGNATURE
    return Signature.from_json(json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else None


def write_signature(model: keras.Model, folder: Path) -> None:
    """Write the signature of a Keras model beside it; runs in the trainer."""
    (folder / SIGNATURE).write_text(
        json.dumps(signature_of_keras(model).to_json(), indent=2) + "\n", encoding="utf-8"
    )


def signature_of_keras(model: keras.Model) -> Signature:
    """Return the inputs and outputs of a Keras model; empty for a subclassed model, which does not declare them."""
    try:
        inputs, outputs = list(model.inputs), list(model.outputs)
    except (AttributeError, TypeError, ValueError):
        return Signature()
    names = getattr(model, "output_names", None) or [tensor.name for tensor in outputs]
    struct = getattr(model, "_outputs_struct", None)
    if isinstance(struct, Mapping):  # The model returns these names, not those of its layers.
        names, outputs = list(struct), list(struct.values())
    return Signature(
        tuple(_tensor(tensor.name, tensor) for tensor in inputs),
        tuple(_tensor(name, tensor) for name, tensor in zip(names, outputs, strict=True)),
        _loss_name(getattr(model, "loss", None)),
    )


def signature_of_function(function: tf.types.experimental.ConcreteFunction) -> Signature:
    """Return the inputs and outputs of a SavedModel's signature."""
    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    return Signature(
        tuple(Tensor(name, _row_shape(spec.shape), spec.dtype.name) for name, spec in inputs.items()),
        tuple(Tensor(name, _row_shape(spec.shape), spec.dtype.name) for name, spec in outputs.items()),
    )


def _loss_name(loss: object) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    return str(name or "")


def _tensors(items: Sequence[Json]) -> tuple[Tensor, ...]:
    return tuple(Tensor(item["name"], tuple(item["shape"]), item["dtype"]) for item in items)


def _tensor(name: str, tensor: keras.KerasTensor) -> Tensor:
    return Tensor(name, _row_shape(tensor.shape), str(tensor.dtype))


def _row_shape(shape: Iterable[int | None]) -> tuple[int | None, ...]:
    return tuple(None if size is None else int(size) for size in list(shape)[1:])
