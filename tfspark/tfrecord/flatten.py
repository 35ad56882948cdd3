"""Flatten an Arrow column to the values of a feature: from a DataFrame's types to int64, float and bytes.

Called by `encode`. docs/tfrecord.md has the rules, and the precision that they lose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import DataError
from tfspark.tfrecord.framing import Ints
from tfspark.tfrecord.schema import is_list, is_vector, kind_of
from tfspark.tfrecord.wire import Kind

Flat = tuple[Kind, Any, Ints, Ints]


def flatten(name: str, column: pa.Array) -> Flat:
    """Flatten a column.

    Returns:
        The kind of feature; all values of the rows that are not null (float32 or int64 array, or an Arrow
        binary array); the number of values of each of these rows; the indices of these rows.

    Raises:
        DataError: an Example cannot hold the type or a value.
    """
    kind = kind_of(name, column.type)
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    present = column.drop_null() if column.null_count else column
    if is_vector(column.type):
        present = _dense(name, present)
    if not is_list(present.type):
        return kind, _values(kind, present), np.ones(len(rows), np.int64), rows
    counts = pc.list_value_length(present).to_numpy(zero_copy_only=False).astype(np.int64)
    elements = present.flatten()
    if elements.null_count:
        raise DataError(
            f"column {name!r}: expected arrays without null elements, got {elements.null_count} of them, "
            "which an Example cannot hold; fill or remove them (pyspark.sql.functions.array_compact)"
        )
    return kind, _values(kind, elements), counts, rows


def _values(kind: Kind, values: pa.Array) -> Any:
    """Convert values without nulls to the type of a feature of this kind."""
    if kind is Kind.BYTES:
        large = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
        return values.cast(pa.large_binary() if large else pa.binary())
    if kind is Kind.FLOAT:
        wide = values.cast(pa.float64()) if pa.types.is_decimal(values.type) else values
        with np.errstate(over="ignore"):
            return wide.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return _integers(values)


def _integers(values: pa.Array) -> Any:
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", values.type.tz)).view(pa.int64())
    elif pa.types.is_date32(values.type):
        values = values.view(pa.int32())
    return values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)


def _dense(name: str, vectors: pa.Array) -> pa.Array:
    """Convert Spark ML vectors to lists; a sparse vector is filled up with zeros."""
    is_sparse = pc.equal(vectors.field("type"), 0).to_numpy(zero_copy_only=False)
    values = vectors.field("values")
    if not is_sparse.any():
        return values
    lists = [_fill(row) if row["type"] == 0 else row["values"] for row in vectors.to_pylist()]
    return pa.array(lists, values.type)


def _fill(row: dict[str, Any]) -> list[float]:
    filled = np.zeros(row["size"])
    filled[row["indices"]] = row["values"]
    return list(filled.tolist())
