"""Convert feature values of many records, as flat arrays, to an Arrow column of the declared type.

Called by `decode`. All checks work on whole columns; a failed check raises `BadRecords` with the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.tfrecord.damage import BadRecords
from tfspark.tfrecord.framing import Ints
from tfspark.tfrecord.schema import VECTOR, element_type, is_list, is_vector


@dataclass(frozen=True)
class Ragged:
    """One feature of many records.

    Attributes:
        values: all values, record by record: float32 or int64 as NumPy array, bytes as Arrow binary array.
        counts: number of values of each record; -1 if the record does not have the feature.
    """

    values: Any
    counts: Ints

    @property
    def bounds(self) -> Ints:
        """The offset of each record's first value, and finally the end of all values."""
        return np.concatenate([[0], np.cumsum(np.maximum(self.counts, 0))])


def to_column(feature: Ragged, field: pa.Field) -> pa.Array:
    """Convert a feature to a column.

    Raises:
        BadRecords: a scalar has several values, a value is out of range, bytes are not UTF-8, or there is a
            null although the schema forbids it.
    """
    _check_nulls(feature, field)
    if not is_list(field.type):
        return _scalars(feature, field)
    elements = _convert(feature, field)
    absent = pa.array(feature.counts < 0)
    offsets = pa.array(feature.bounds.astype(np.int32))
    if is_vector(field.type):
        return _vectors(pa.ListArray.from_arrays(offsets, elements, type=VECTOR.field("values").type), absent)
    return pa.ListArray.from_arrays(offsets, elements, type=field.type, mask=absent)


def _check_nulls(feature: Ragged, field: pa.Field) -> None:
    missing = feature.counts < 0 if is_list(field.type) else feature.counts <= 0
    if not field.nullable and bool(missing.any()):
        reason = (
            f"feature {field.name!r}: expected a value in every record (declared not null); it is missing"
        )
        raise BadRecords(np.flatnonzero(missing), f"{reason}; declare it nullable")


def _scalars(feature: Ragged, field: pa.Field) -> pa.Array:
    counts = feature.counts
    many = np.flatnonzero(counts > 1)
    if len(many):
        expected = f"feature {field.name!r}: expected one value ({field.type}), got {counts[many[0]]} values"
        raise BadRecords(many, f"{expected}; declare the column as array<{_spark_name(field.type)}>")
    values = _convert(feature, field)
    if len(values) == len(counts):
        return values
    absent = counts <= 0
    return values.take(pa.array(np.where(absent, 0, feature.bounds[:-1]), mask=absent))


def _vectors(values: pa.Array, absent: pa.Array) -> pa.Array:
    """Return dense Spark ML vectors, in the layout of pyspark.ml.linalg.VectorUDT."""
    size = len(values)
    columns = [
        pa.array(np.ones(size, np.int8)),
        pa.nulls(size, VECTOR.field("size").type),
        pa.nulls(size, VECTOR.field("indices").type),
        values,
    ]
    return pa.StructArray.from_arrays(columns, fields=list(VECTOR), mask=absent)


def _convert(feature: Ragged, field: pa.Field) -> pa.Array:
    """Convert the values to the declared element type, and check that each one fits."""
    element, values = element_type(field.type), feature.values
    if isinstance(values, pa.Array):
        return _text(feature, field) if pa.types.is_string(element) else values.cast(element)
    if pa.types.is_decimal(element):
        return _decimals(feature, field)
    if values.dtype == np.float32:
        return pa.array(values).cast(element)
    return _INTEGERS.get(element.id, _integers)(feature, field)


def _integers(feature: Ragged, field: pa.Field) -> pa.Array:
    element = element_type(field.type)
    if pa.types.is_int64(element):
        return pa.array(feature.values)
    info = np.iinfo(element.to_pandas_dtype())
    _check_range(feature, field, info.min, info.max)
    return pa.array(feature.values.astype(info.dtype))


def _booleans(feature: Ragged, field: pa.Field) -> pa.Array:
    _check_range(feature, field, 0, 1)
    return pa.array(feature.values.astype(np.bool_))


def _dates(feature: Ragged, field: pa.Field) -> pa.Array:
    info = np.iinfo(np.int32)
    _check_range(feature, field, info.min, info.max)
    return pa.array(feature.values.astype(np.int32)).view(pa.date32())


def _timestamps(feature: Ragged, field: pa.Field) -> pa.Array:
    return pa.array(feature.values).view(element_type(field.type))


_INTEGERS: dict[int, Callable[[Ragged, pa.Field], pa.Array]] = {
    pa.bool_().id: _booleans,
    pa.date32().id: _dates,
    pa.timestamp("us").id: _timestamps,
}


def _check_range(feature: Ragged, field: pa.Field, low: int, high: int) -> None:
    outside = np.flatnonzero((feature.values < low) | (feature.values > high))
    if len(outside):
        element = _spark_name(element_type(field.type))
        reason = (
            f"feature {field.name!r}: expected {low} to {high} ({element}), got {feature.values[outside[0]]}"
        )
        raise BadRecords(_rows(feature, outside), f"{reason}; declare it as bigint")


def _decimals(feature: Ragged, field: pa.Field) -> pa.Array:
    """Round the float32 to the declared scale."""
    element = element_type(field.type)
    wide = feature.values.astype(np.float64)
    limit = 10.0 ** (element.precision - element.scale)
    # Near the limit rounding decides: 99.999 is 100.00 as decimal(4,2). For these values, try Arrow's own cast.
    unsure = np.flatnonzero(~(np.abs(wide) < limit - 10.0**-element.scale))
    outside = np.array([place for place in unsure.tolist() if not _fits(wide[place], element)], np.int64)
    if len(outside):
        reason = f"feature {field.name!r}: expected a number that fits {element}, got {wide[outside[0]]}"
        raise BadRecords(_rows(feature, outside), f"{reason}; declare it as double")
    return pa.array(wide).cast(element)


def _fits(value: float, decimal: pa.DataType) -> bool:
    try:
        pa.array([value], pa.float64()).cast(decimal)
    except pa.ArrowInvalid:
        return False
    return True


def _text(feature: Ragged, field: pa.Field) -> pa.Array:
    try:
        return feature.values.cast(element_type(field.type))
    except pa.ArrowInvalid:
        bad = [place for place, value in enumerate(feature.values) if not _is_utf8(value.as_py())]
        reason = f"feature {field.name!r}: expected UTF-8 text, got other bytes"
        raise BadRecords(_rows(feature, np.array(bad)), f"{reason}; declare the column as binary") from None


def _is_utf8(value: bytes) -> bool:
    return value.decode("utf-8", "ignore").encode() == value


def _rows(feature: Ragged, places: Ints) -> Ints:
    """Return the records that contain the values at these places, each once."""
    return np.unique(np.searchsorted(feature.bounds, places, side="right") - 1)


def _spark_name(dtype: pa.DataType) -> str:
    """Return the name of the type in a Spark schema."""
    names = {"int8": "tinyint", "int16": "smallint", "int32": "int", "int64": "bigint", "bool": "boolean"}
    return names.get(str(dtype), str(dtype))
