"""Which columns are fed, and what each becomes.

Declared on the driver, sent to the trainers as JSON, used there by `tfspark.feed.arrays` (Arrow to NumPy, in the
reader) and `tfspark.training.input.elements` (NumPy to tensors, in tf.data). Pure.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfspark.errors import ConfigError

IMAGE_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Column:
    """One column of the DataFrame and the tensor it becomes.

    Attributes:
        name: the column's name.
        shape: shape of one row's value, without the batch axis; None: as the first row has it.
        dtype: NumPy dtype of the tensor as it is fed. For a binary column it says that the bytes are raw
            values of this type, little-endian. None: the column's own type; strings and binaries stay
            ``tf.string``.
        scale: divide by this in the trainer and feed float32; None: leave as it is.
        ragged: rows may have unequal lengths: ``pad`` fills them up to a dense tensor, ``ragged`` makes a
            `tf.RaggedTensor`; None: all rows must have one length.
        pad_to: length that ``pad`` fills up to; None: the longest row of each batch.
        pad_value: what ``pad`` fills up with, before `scale`; None: 0, or the empty string.
        decode: ``image``: the column holds JPEG, PNG, GIF or BMP files, which the trainer decodes to uint8 of
            `shape` (height, width, channels).
        resize: with `decode`: images of other sizes are resized to `shape`; False: they are an error.
    """

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    scale: float | None = None
    ragged: str | None = None
    pad_to: int | None = None
    pad_value: float | str | None = None
    decode: str | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        """Refuse what no tensor can have."""
        if self.shape is not None and any(size < 1 for size in self.shape):
            self._refuse(f"expected a shape of sizes >= 1, got {list(self.shape)}")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale != 0):
            self._refuse(f"expected a finite scale other than 0, got {self.scale}")
        if self.dtype is not None:
            _numpy_dtype(self.name, self.dtype)
        for problem in option_problems(vars(self)).values():
            self._refuse(problem)

    @property
    def wanted_dtype(self) -> np.dtype[Any] | None:
        """The declared dtype as NumPy's."""
        return None if self.dtype is None else _numpy_dtype(self.name, self.dtype)

    @property
    def is_variable(self) -> bool:
        """Whether rows keep lengths of their own until they are batched."""
        return self.ragged is not None and self.pad_to is None

    def _refuse(self, problem: str) -> None:
        raise ConfigError(f"column {self.name!r}: {problem}")


def option_problems(options: Mapping[str, Any]) -> dict[str, str]:
    """Say which options of a column contradict each other: option -> what was expected and came.

    Args:
        options: those of `Column` by name; one rule for Python and YAML.
    """
    problems: dict[str, str] = {}
    ragged, decode = options["ragged"], options["decode"]
    if ragged not in (None, "pad", "ragged"):
        problems["ragged"] = f"expected ragged to be pad or ragged, got {ragged!r}"
    elif ragged is not None and options["shape"] is not None:
        problems["shape"] = (
            "expected no shape beside ragged: the first axis varies, the others are the first row's"
        )
    for name in ("pad_to", "pad_value"):
        if options[name] is not None and ragged != "pad":
            problems[name] = f"expected {name} only beside ragged pad, got it beside ragged {ragged!r}"
    if options["pad_to"] is not None and options["pad_to"] < 1:
        problems["pad_to"] = f"expected pad_to >= 1, got {options['pad_to']}"
    if decode is None:
        if options["resize"]:
            problems["resize"] = "expected resize only beside decode image"
    elif decode != "image":
        problems["decode"] = f"expected decode to be image, got {decode!r}"
    elif options["shape"] is None or len(options["shape"]) != 3 or options["shape"][2] not in IMAGE_CHANNELS:
        problems["decode"] = (
            "expected the shape [height, width, channels] beside decode image, channels being 1, 3 or 4; got "
            f"{None if options['shape'] is None else list(options['shape'])}"
        )
    elif options["dtype"] is not None or ragged is not None:
        problems["decode"] = (
            "expected neither dtype nor ragged beside decode image, which gives uint8; use scale"
        )
    return problems


@dataclass(frozen=True)
class Columns:
    """What is fed: features, label and what rows weigh.

    Attributes:
        features: at least one; a single one is fed as a tensor, several as a dict by name.
        label: fed as a tensor; several, in a tuple, as a dict by name, for a model of several outputs. None
            for a model that is its own target, such as an autoencoder with a custom step.
        num_classes: labels must be integers in [0, num_classes); None: not checked. For a single label only.
        class_weights: class -> weight of its rows in the loss; empty: 1 for all. For a single label only.
        examples: the binary column that holds serialized ``tf.train.Example`` records, of which `features` and
            `label` are features; they are parsed in the trainer. None: they are columns themselves.
        weight: column of one number for each row, by which its loss and weighted metrics are multiplied, in
            evaluations, too; Keras's ``sample_weight``. A weight of its class multiplies it. None: all rows weigh 1.
    """

    features: tuple[Column, ...]
    label: Column | tuple[Column, ...] | None = None
    num_classes: int | None = None
    class_weights: tuple[tuple[int, float], ...] = ()
    examples: str | None = None
    weight: Column | None = None

    def __post_init__(self) -> None:
        """Refuse an empty or a doubled selection."""
        names = self.names
        if not self.features:
            raise ConfigError("expected at least one feature column, got none")
        if len(set(names)) != len(names):
            raise ConfigError(f"expected every column once, got {names}")
        if len(self.labels) > 1 and (self.num_classes is not None or self.class_weights):
            raise ConfigError(
                "expected num_classes and class_weights with a single label only, got labels "
                f"{[column.name for column in self.labels]}; leave them out; the model's own loss_weights weigh its "
                "outputs"
            )
        if self.class_weights and not self.labels:
            raise ConfigError(
                "expected a label beside class_weights, got none; name it, or leave class_weights out"
            )
        for column in self.labels if self.class_weights else ():
            if column.shape is not None and len(column.shape) > 1:
                raise ConfigError(
                    f"expected class_weights for a label that is one class or one-hot, {column.name!r} has the shape "
                    f"{list(column.shape)}; leave class_weights out, or weigh rows by a column (weight=, data.weight)"
                )
        if self.weight is not None and (self.weight.ragged is not None or self.weight.decode is not None):
            raise ConfigError(
                f"expected the weight column {self.weight.name!r} to hold one number for each row; declare it without "
                "ragged and decode"
            )

    @property
    def labels(self) -> tuple[Column, ...]:
        """The label columns: none, one or several."""
        if self.label is None:
            return ()
        return (self.label,) if isinstance(self.label, Column) else self.label

    @property
    def class_label(self) -> Column | None:
        """The label that classes and their weights are of: a single one."""
        return self.labels[0] if len(self.labels) == 1 else None

    @property
    def names(self) -> list[str]:
        """The names of all columns, features first."""
        return [column.name for column in self.all]

    @property
    def all(self) -> tuple[Column, ...]:
        """All columns, features first."""
        return (*self.features, *self.labels, *(() if self.weight is None else (self.weight,)))

    @property
    def weighs_rows(self) -> bool:
        """Whether rows have weights of their own."""
        return self.weight is not None or bool(self.class_weights)

    @property
    def sent(self) -> tuple[Column, ...]:
        """The columns of the DataFrame that travel to the trainers."""
        return self.all if self.examples is None else (Column(self.examples),)

    @property
    def needs_work(self) -> bool:
        """Whether batches are worth several threads of the trainer: images to decode, Examples to parse."""
        return self.examples is not None or any(column.decode for column in self.all)

    def to_json(self) -> dict[str, Any]:
        """Return a form that survives JSON."""
        return {
            "features": [vars(column) for column in self.features],
            "labels": [vars(column) for column in self.labels],
            "num_classes": self.num_classes,
            "class_weights": self.class_weights,
            "examples": self.examples,
            "weight": None if self.weight is None else vars(self.weight),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Columns:
        """Rebuild what `to_json` gave."""
        labels = tuple(_column_from_json(item) for item in data["labels"])
        return cls(
            features=tuple(_column_from_json(item) for item in data["features"]),
            label=labels[0] if len(labels) == 1 else labels or None,
            num_classes=data["num_classes"],
            class_weights=tuple((int(c), float(w)) for c, w in data["class_weights"]),
            examples=data["examples"],
            weight=None if data.get("weight") is None else _column_from_json(data["weight"]),
        )


def check_columns(columns: Columns, available: Sequence[str]) -> None:
    """Refuse columns that the data does not have.

    Raises:
        ConfigError: a column is missing; the message names the nearest.
    """
    for name in (column.name for column in columns.sent):
        if name not in available:
            near = difflib.get_close_matches(name, available, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"expected a column {name!r}, the data has {sorted(available)}; {hint}name the feature and label "
                "columns as the data does"
            )


def _column_from_json(data: Mapping[str, Any]) -> Column:
    shape = data["shape"]
    return Column(**{**data, "shape": None if shape is None else tuple(shape)})


def _numpy_dtype(name: str, dtype: str) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biuf":
        raise ConfigError(
            f"column {name!r}: expected a numeric dtype such as uint8, int64 or float32, got {dtype!r}"
        )
    return found
