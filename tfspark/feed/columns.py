"""Declare which columns are fed, and which tensor each becomes.

Declared on the driver and sent to the trainers as JSON. There, `tfspark.feed.arrays` (Arrow to NumPy, in the reader)
and `tfspark.training.input.elements` (NumPy to tensors, in tf.data) use the declarations. Pure.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfspark.errors import ConfigError

if TYPE_CHECKING:
    from tfspark.protocol.values import Json

IMAGE_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Column:
    """One column of the DataFrame and the tensor it becomes.

    Attributes:
        name: the column's name.
        shape: shape of one row's value, without the batch axis; None: taken from the first row.
        dtype: NumPy dtype of the tensor that is fed. For a binary column, it says that the bytes are raw little-endian
            values of this type. None: the column's own type; strings and binaries stay ``tf.string``.
        scale: divide by this in the trainer and feed float32; None: do not scale.
        ragged: rows may have unequal lengths: ``pad`` makes a dense tensor, ``ragged`` a `tf.RaggedTensor`; None: all
            rows must have the same length.
        pad_to: length to which ``pad`` fills up; None: the longest row of each batch.
        pad_value: value with which ``pad`` fills up, before `scale`; None: 0, or the empty string.
        decode: ``image``: the column holds JPEG, PNG, GIF or BMP files, which the trainer decodes to uint8 of `shape`
            (height, width, channels).
        resize: with `decode`: resize images of other sizes to `shape`; False: they are an error.
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
        """Reject values that no tensor can have."""
        if self.shape is not None and any(size < 1 for size in self.shape):
            self._refuse(f"expected a shape of sizes >= 1, got {list(self.shape)}")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale != 0):
            self._refuse(f"expected a finite scale other than 0, got {self.scale}")
        if self.dtype is not None:
            _numpy_dtype(self.name, self.dtype)
        for problem in option_problems(vars(self)).values():
            self._refuse(problem)

    @property
    def wanted_dtype(self) -> np.dtype[np.generic] | None:
        """The declared dtype as a NumPy dtype."""
        return None if self.dtype is None else _numpy_dtype(self.name, self.dtype)

    @property
    def is_variable(self) -> bool:
        """Whether rows keep different lengths until they are batched."""
        return self.ragged is not None and self.pad_to is None

    def _refuse(self, problem: str) -> None:
        raise ConfigError(f"column {self.name!r}: {problem}")


def option_problems(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a column that contradict each other: option -> what was expected, and what was found.

    Args:
        options: the options of `Column` by name, from Python or YAML.
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
    """The columns that are fed: features, label and row weights.

    Attributes:
        features: at least one; one is fed as a tensor, several as a dict by name.
        label: fed as a tensor. Several labels, in a tuple, are fed as a dict by name, for a model with several outputs.
            None for a model whose input is also its target, such as an autoencoder with its own training step.
        num_classes: labels must be integers in [0, num_classes); None: not checked. Only for a single label.
        class_weights: class -> weight of its rows in the loss; empty: 1 for all. Only for a single label.
        examples: the binary column that holds serialized ``tf.train.Example`` records. `features` and `label` are then
            features of these records, which the trainer parses. None: they are columns of the DataFrame.
        weight: a numeric column. The row's loss and weighted metrics are multiplied by its value, also in evaluations,
            as by Keras's ``sample_weight``, and by the weight of the row's class. None: all rows weigh 1.
    """

    features: tuple[Column, ...]
    label: Column | tuple[Column, ...] | None = None
    num_classes: int | None = None
    class_weights: tuple[tuple[int, float], ...] = ()
    examples: str | None = None
    weight: Column | None = None

    def __post_init__(self) -> None:
        """Reject an empty selection, or a column that is selected twice."""
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
        """The single label to which classes and their weights apply."""
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
        """Whether rows have their own weights."""
        return self.weight is not None or bool(self.class_weights)

    @property
    def sent(self) -> tuple[Column, ...]:
        """The columns of the DataFrame that are sent to the trainers."""
        return self.all if self.examples is None else (Column(self.examples),)

    @property
    def needs_work(self) -> bool:
        """Whether batches need several threads of the trainer, to decode images or parse Examples."""
        return self.examples is not None or any(column.decode for column in self.all)

    def to_json(self) -> Json:
        """Return a form that can be written as JSON."""
        return {
            "features": [vars(column) for column in self.features],
            "labels": [vars(column) for column in self.labels],
            "num_classes": self.num_classes,
            "class_weights": self.class_weights,
            "examples": self.examples,
            "weight": None if self.weight is None else vars(self.weight),
        }

    @classmethod
    def from_json(cls, data: Json) -> Columns:
        """Create the columns from the result of `to_json`."""
        labels = tuple(_column_from_json(item) for item in data["labels"])
        return cls(
            features=tuple(_column_from_json(item) for item in data["features"]),
            label=labels[0] if len(labels) == 1 else labels or None,
            num_classes=data["num_classes"],
            class_weights=tuple((int(c), float(w)) for c, w in data["class_weights"]),
            examples=data["examples"],
            weight=None if data.get("weight") is None else _column_from_json(data["weight"]),
        )


_OF_NO_HEADER = re.compile(r"_c\d+")
"""Names that Spark gives to the columns of CSV files without a header."""


def check_columns(columns: Columns, available: Sequence[str]) -> None:
    """Reject columns that the data does not have.

    Raises:
        ConfigError: a column is missing; the message names the most similar one.
    """
    for name in (column.name for column in columns.sent):
        if name not in available:
            hint = _hint(name, available)
            raise ConfigError(
                f"expected a column {name!r}, the data has {sorted(available)}; {hint}name the feature and label "
                "columns as the data does"
            )


def _hint(name: str, available: Sequence[str]) -> str:
    """Return what a missing column's name may mean; empty if nothing is known."""
    if all(_OF_NO_HEADER.fullmatch(column) for column in available):
        return (
            "if the first line of the CSV files holds the names, read them with the option header=True "
            "(data.options: {header: true}); else "
        )
    struct = name.partition(".")[0]
    if struct in available:
        return (
            f"if it is a field of {struct!r}, select it as a column, for example "
            f"df.withColumn({name!r}, df[{name!r}]); else "
        )
    same = [other for other in available if other.lower() == name.lower()]
    near = same or difflib.get_close_matches(name, available, 1)
    return f"did you mean {near[0]!r}? " if near else ""


def _column_from_json(data: Json) -> Column:
    shape = data["shape"]
    return Column(**{**data, "shape": None if shape is None else tuple(shape)})


def _numpy_dtype(name: str, dtype: str) -> np.dtype[np.generic]:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biuf":
        raise ConfigError(
            f"column {name!r}: expected a numeric dtype such as uint8, int64 or float32, got {dtype!r}"
        )
    return found
