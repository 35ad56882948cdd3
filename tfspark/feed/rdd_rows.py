"""Convert items of an RDD to Arrow rows and back, for programs that take rows apart themselves.

Items are encoded in Spark's Python workers (`ElementsTask`, `tfspark.feed.exchange`), and results of an inference in
trainers; the receiver decodes them. Nothing is pickled: an item consists of values that Arrow can hold. Its kind
(tuple, list, dict, Row, single value) and the shape of NumPy arrays are sent as metadata of the fields, so the decoded
item equals the original. Two exceptions: ``bytearray`` becomes ``bytes``, and NumPy scalars become Python values.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tfspark.errors import DataError
from tfspark.feed.source import FeedTask

if TYPE_CHECKING:
    from pyspark.sql import Row

KIND = b"tfspark.kind"
"""Metadata key of the first field: ``row``, ``tuple``, ``list``, ``dict``, ``value`` or ``long tuple``."""
SHAPE = b"tfspark.shape"
"""Metadata key of a field whose values were NumPy arrays: their common shape without the first axis."""

FIRST_ROWS = 32
MAX_ROWS = 4096
BATCH_BYTES = 1 << 20
LONG = 32
"""A tuple of more numbers than this is stored in one column instead of one column per number."""


@dataclass(frozen=True)
class ElementsTask:
    """A feed task for the items of an RDD partition.

    Attributes:
        task: serves the rows; see `FeedTask`.
    """

    task: FeedTask

    def __call__(self, partition: int, elements: Iterable[object]) -> Iterator[object]:
        """Serve a partition; yield nothing."""
        self.task.serve(partition, arrow_batches(elements, f"partition {partition}"))
        yield from ()


def arrow_batches(elements: Iterable[object], where: str) -> Iterator[pa.RecordBatch]:
    """Encode items: a few in the first batch, then about `BATCH_BYTES` per batch; all batches have one schema.

    Args:
        elements: items of the same kind and types, as the rows of one data set are.
        where: where they come from, for messages.

    Raises:
        DataError: an item has a type that Arrow cannot hold, or differs from the items before it.
    """
    left = iter(elements)
    schema: pa.Schema | None = None
    row, count = 0, FIRST_ROWS
    while rows := list(islice(left, count)):
        batch = _encode(rows, schema, f"{where}, row {row} or after")
        schema, row = batch.schema, row + len(rows)
        count = max(1, min(MAX_ROWS, BATCH_BYTES * len(rows) // max(batch.nbytes, 1)))
        yield batch


def elements_of(batch: pa.RecordBatch, names: Sequence[str] | None = None) -> list[Any]:
    """Decode the rows of a batch.

    Args:
        batch: the result of `arrow_batches`, or rows of a DataFrame, which are decoded to Spark Rows.
        names: columns in the wanted order; None: all columns in their order.
    """
    kind = (batch.schema.field(0).metadata or {}).get(KIND, b"row").decode()
    chosen = batch.schema.names if names is None else names
    columns = [_values(batch.column(name), batch.schema.field(name)) for name in chosen]
    if kind == "value":
        return columns[0]
    if kind == "long tuple":
        return [tuple(value) for value in columns[0]]
    rows = zip(*columns, strict=True)
    if kind == "row":
        return _as_rows(chosen, rows)
    if kind == "dict":
        return [dict(zip(chosen, row, strict=True)) for row in rows]
    return [list(row) for row in rows] if kind == "list" else list(rows)


def _as_rows(names: Sequence[str], rows: Iterable[tuple[object, ...]]) -> list[Row]:
    from pyspark.sql import Row

    make = Row(*names)
    return [make(*row) for row in rows]


def _encode(rows: list[object], schema: pa.Schema | None, where: str) -> pa.RecordBatch:
    kind = kind_of(rows[0]) if schema is None else schema.field(0).metadata[KIND].decode()
    names = _names(rows[0], kind) if schema is None else schema.names
    columns = _take_apart(rows, kind, names, where)
    arrays, fields = [], []
    for name, values in zip(names, columns, strict=True):
        known = None if schema is None else schema.field(name)
        array, shape = _array(values, known, f"{where}: {name!r}")
        metadata = {KIND: kind, **({} if shape is None else {SHAPE: json.dumps(shape)})}
        fields.append(known or pa.field(name, array.type, metadata=metadata))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema or pa.schema(fields))


def kind_of(element: object) -> str:
    """Return how an item is divided into columns; see `KIND`."""
    if isinstance(element, tuple) and hasattr(element, "__fields__"):
        return "row"
    if isinstance(element, dict) and element:
        return "dict"
    if not isinstance(element, tuple | list) or not element:
        return "value"
    numbers = all(isinstance(item, int | float | np.number) for item in element)
    if isinstance(element, tuple):
        return "long tuple" if numbers and len(element) > LONG else "tuple"
    return "value" if numbers else "list"


def _names(element: Any, kind: str) -> list[str]:
    if kind == "row":
        return list(element.__fields__)
    if kind == "dict":
        return [str(key) for key in element]
    return [f"_{i + 1}" for i in range(len(element))] if kind in ("tuple", "list") else ["value"]


def _take_apart(rows: list[Any], kind: str, names: list[str], where: str) -> list[list[object]]:
    """Return the values of each column."""
    if kind in ("value", "long tuple"):
        return [rows]
    wrong = next((row for row in rows if not _fits(row, kind, names)), None)
    if wrong is not None:
        raise DataError(
            f"{where}: expected rows like the first, {kind}s of {names}, got {str(wrong)[:200]!r}; make all rows "
            "alike with rdd.map(...) before feeding"
        )
    if kind == "dict":
        return [[row.get(name) for row in rows] for name in names]
    return [list(column) for column in zip(*rows, strict=True)]


def _fits(row: object, kind: str, names: list[str]) -> bool:
    if kind == "dict":
        return isinstance(row, dict) and row.keys() <= set(names)
    return isinstance(row, tuple | list) and len(row) == len(names)


def _array(values: list[object], known: pa.Field | None, where: str) -> tuple[pa.Array, list[int] | None]:
    """Return the values as an Arrow array, and for NumPy arrays also their common shape."""
    values = [value.toArray() if hasattr(value, "toArray") else value for value in values]  # MLlib's vectors
    try:
        if (
            isinstance(values[0], np.ndarray)
            and values[0].ndim
            and (known is None or SHAPE in known.metadata)
        ):
            return _joined(values, known)
        if any(isinstance(value, np.ndarray) for value in values):
            values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
        array = pa.array(values)
        return (array if known is None else _as(known.type, array)), None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: expected numbers, text, bytes, lists, dicts or NumPy arrays, of one type and shape in all rows; "
            f"got {error}; convert the elements with rdd.map(...) before feeding"
        ) from None


def _joined(values: list[Any], known: pa.Field | None) -> tuple[pa.Array, list[int]]:
    """Return the arrays as a list column, each one flattened, and their common shape without the first axis."""
    shape = list(values[0].shape[1:]) if known is None else json.loads(known.metadata[SHAPE])
    other = next((value.shape for value in values if list(value.shape[1:]) != shape or not value.ndim), None)
    if other is not None:
        raise ValueError(f"an array of shape {list(other)} after one of (n, {', '.join(map(str, shape))})")
    offsets = np.cumsum([0, *(value.size for value in values)], dtype=np.int32)
    flat = pa.array(np.concatenate([value.reshape(-1) for value in values]))
    return pa.ListArray.from_arrays(
        offsets, flat if known is None else _as(known.type.value_type, flat)
    ), shape


def _as(dtype: pa.DataType, array: pa.Array) -> pa.Array:
    """Cast between number types if no value changes; ``pa.array(values, type)`` would cut off fractions."""
    came = _family(array.type)
    if came != _family(dtype) and "null" not in came:
        raise ValueError(f"{array.type} after {dtype}")
    return array.cast(dtype)


def _family(dtype: pa.DataType) -> str:
    if pa.types.is_list(dtype):
        return f"list of {_family(dtype.value_type)}"
    return "number" if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) else str(dtype)


def _values(column: pa.Array, field: pa.Field) -> list[Any]:
    shape = (field.metadata or {}).get(SHAPE)
    if shape is None:
        values: list[Any] = column.to_pylist()
        return values
    ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
    flat = np.array(column.flatten().to_numpy(zero_copy_only=False))
    return [part.reshape(-1, *json.loads(shape)) for part in np.split(flat, ends[:-1])]
