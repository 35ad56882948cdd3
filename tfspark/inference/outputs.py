"""The columns that a model's outputs become. Declared on the driver, computed in Spark's Python workers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tfspark.errors import DataError
from tfspark.inference.values import VECTOR, to_arrow, vectors_to_arrow

Array = npt.NDArray[Any]
Kind = Literal["value", "number", "vector", "class", "probability", "chances", "raw", "name", "text"]

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Smallest probability whose logarithm is taken; it replaces 0."""


@dataclass(frozen=True)
class Output:
    """A computed column.

    Attributes:
        column: its name.
        kind: ``value``: the output unchanged, a number or nested arrays; ``number``: one double per row; ``vector``: a
            Spark ML vector; ``class``: the most probable class; ``probability``: the vector of class probabilities;
            ``chances``: the same as an array; ``raw``: the vector of their logarithms, whose softmax gives the
            probabilities; ``name``: the label of the class whose number is the output; ``text``: strings.
        type: Spark type of the column, as DDL; for vectors ``vector``.
        tensor: name of the model's output; None: its only or first output.
        classes: original labels in the order of the classes; empty: numbers from 0.
    """

    column: str
    kind: Kind
    type: str
    tensor: str | None = None
    classes: tuple[Any, ...] = ()

    def compute(self, values: Array) -> pa.Array:
        """Compute the column from the output's values.

        Shapes:
            values: ``(rows, ...)``.
        """
        if self.kind in ("class", "name"):
            return self._labels(values if self.kind == "name" else probabilities(values).argmax(axis=-1))
        if self.kind == "chances":
            return to_arrow(probabilities(values).astype(np.float64))
        if self.kind in ("probability", "raw"):
            chances = probabilities(values).astype(np.float64)
            if self.kind == "raw":
                chances = np.log(np.maximum(chances, LEAST_PROBABILITY))
            return vectors_to_arrow(chances.reshape(len(values), -1))
        if self.kind == "vector":
            return vectors_to_arrow(values.reshape(len(values), -1))
        if self.kind == "number":
            return pa.array(_one_each(values, self.column).astype(np.float64))
        if self.kind == "text":
            texts = [value.decode("utf-8", "replace") for value in values.reshape(-1)]
            return _nested(pa.array(texts, pa.string()), values.shape)
        return to_arrow(values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values)

    def empty(self, count: int) -> pa.Array:
        """Return nulls for rows without a prediction, if no row has one from which to take the type."""
        return pa.nulls(count, arrow_type(self.type))

    def _labels(self, chosen: Array) -> pa.Array:
        if not self.classes:
            return _nested(pa.array(chosen.reshape(-1).astype(np.float64)), chosen.shape)
        plain = self.type.replace("array<", "").replace(">", "")
        names = pa.array(self.classes).cast(arrow_type(plain))
        return _nested(names.take(pa.array(chosen.reshape(-1))), chosen.shape)


def arrow_type(name: str) -> pa.DataType:
    """Return the Arrow type of a Spark DDL type; ``vector`` is that of Spark ML."""
    if name.startswith("array<"):
        return pa.list_(arrow_type(name[len("array<") : -1]))
    return _ARROW_TYPES[name]


_ARROW_TYPES = {
    "boolean": pa.bool_(),
    "tinyint": pa.int8(),
    "smallint": pa.int16(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "vector": VECTOR,
}


def probabilities(values: Array) -> Array:
    """Return each class's probability, also if a model returns only that of class 1: ``(..., classes)``."""
    if values.ndim == 1:
        values = values[:, None]
    return np.concatenate([1 - values, values], axis=-1) if values.shape[-1] == 1 else values


def _one_each(values: Array, name: str) -> Array:
    flat = values.reshape(len(values), -1)
    if flat.shape[1] != 1:
        raise DataError(
            f"expected one number for each row in column {name!r}, the model gives {list(values.shape[1:])}; end the "
            "model with Dense(1), or take the output as a vector"
        )
    return flat[:, 0]


def _nested(flat: pa.Array, shape: tuple[int, ...]) -> pa.Array:
    for size in reversed(shape[1:]):
        offsets = np.arange(len(flat) // size + 1, dtype=np.int32) * size
        flat = pa.ListArray.from_arrays(offsets, flat)
    return flat
