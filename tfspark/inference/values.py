"""Convert a model's tensors to Spark columns: their types, and Arrow arrays of them. Pure: only NumPy and Arrow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]

SPARK_TYPES = {
    "bool": "boolean",
    "int8": "tinyint",
    "int16": "smallint",
    "int32": "int",
    "int64": "bigint",
    "uint8": "smallint",
    "uint16": "int",
    "uint32": "bigint",
    "float16": "float",
    "bfloat16": "float",
    "float32": "float",
    "float64": "double",
    "string": "binary",
}
"""TensorFlow type of an output -> Spark type of its column, or of the elements of its arrays."""

_WIDENED = {
    "uint8": "int16",
    "uint16": "int32",
    "uint32": "int64",
    "float16": "float32",
    "bfloat16": "float32",
}
"""Types that Spark lacks -> the next type that can hold their values."""

VECTOR = pa.struct(
    [
        pa.field("type", pa.int8(), nullable=False),
        pa.field("size", pa.int32()),
        pa.field("indices", pa.list_(pa.int32())),
        pa.field("values", pa.list_(pa.float64())),
    ]
)
"""How Spark sends a `pyspark.ml.linalg.Vector`; type 1 is dense, and has values only."""
DENSE = 1


def spark_type(dtype: str, depth: int) -> str:
    """Return the Spark type of an output's column.

    Args:
        dtype: TensorFlow's name of the type.
        depth: number of axes after the batch axis, each an array.
    """
    return "array<" * depth + SPARK_TYPES[dtype] + ">" * depth


def to_arrow(values: Array) -> pa.Array:
    """Return ``(n, ...)`` values as a column of ``n`` values or nested arrays, with a type that Spark has."""
    flat = values.reshape(-1)
    if flat.dtype.name in _WIDENED:
        flat = flat.astype(_WIDENED[flat.dtype.name])
    array = pa.array(flat.tolist(), pa.binary()) if flat.dtype == object else pa.array(flat)
    for size in reversed(values.shape[1:]):
        offsets = np.arange(len(array) // size + 1, dtype=np.int32) * size
        array = pa.ListArray.from_arrays(offsets, array)
    return array


def vectors_to_arrow(values: Array) -> pa.Array:
    """Return ``(n, size)`` numbers as a column of dense Spark ML vectors."""
    count = len(values)
    numbers = to_arrow(np.ascontiguousarray(values, np.float64))
    return pa.StructArray.from_arrays(
        [
            pa.array(np.full(count, DENSE, np.int8)),
            pa.nulls(count, pa.int32()),
            pa.nulls(count, pa.list_(pa.int32())),
            numbers,
        ],
        fields=list(VECTOR),
    )


def with_nulls(array: pa.Array, is_there: Array) -> pa.Array:
    """Assign values to the rows that have one; the other rows become null.

    Args:
        array: one value for each row that has one.
        is_there: ``(rows,)`` booleans; the number of True entries is the number of values.
    """
    places = np.cumsum(is_there) - 1
    return array.take(pa.array(places, pa.int64(), mask=~is_there))
