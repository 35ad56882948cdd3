"""Map a column's type to a feature: its kind, scalar or list, and the type to which a trainer parses it.

Types are Arrow types here, so that neither the codec nor the trainer needs Spark; `spark_types` translates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from tfspark.errors import DataError
from tfspark.tfrecord.wire import Kind

VECTOR = pa.struct(
    [
        pa.field("type", pa.int8(), nullable=False),
        pa.field("size", pa.int32()),
        pa.field("indices", pa.list_(pa.field("element", pa.int32(), nullable=False))),
        pa.field("values", pa.list_(pa.field("element", pa.float64(), nullable=False))),
    ]
)  # pyspark.ml.linalg.VectorUDT.sqlType()


@dataclass(frozen=True)
class FeatureSpec:
    """One feature as plain data, enough to build a ``tf.io.parse_example`` spec.

    Attributes:
        name: key of the feature and name of the column.
        kind: ``"int64"``, ``"float"`` or ``"bytes"``: the type in the Example.
        is_list: whether a record may have any number of values; else exactly one, or none for null.
        dtype: type of the column's values: a NumPy dtype name, ``"string"`` or ``"bytes"``.
    """

    name: str
    kind: str
    is_list: bool
    dtype: str


def is_vector(dtype: pa.DataType) -> bool:
    """Whether a type is that of a Spark ML vector in Arrow."""
    return pa.types.is_struct(dtype) and [field.name for field in dtype] == [field.name for field in VECTOR]


def is_list(dtype: pa.DataType) -> bool:
    """Whether a row of a column of this type has any number of values."""
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or is_vector(dtype)


def element_type(dtype: pa.DataType) -> pa.DataType:
    """Return the type of a single value."""
    if is_vector(dtype):
        return pa.float64()
    return dtype.value_type if is_list(dtype) else dtype


def kind_of(name: str, dtype: pa.DataType) -> Kind:
    """Return the kind of feature for a column of this type.

    Raises:
        DataError: an Example cannot hold the type.
    """
    element = element_type(dtype)
    if is_list(element):
        raise DataError(
            f"column {name!r}: expected values or arrays of values, got an array of arrays ({dtype}), whose "
            "inner lengths an Example cannot hold; flatten it (pyspark.sql.functions.flatten) and store the "
            "lengths in a separate column"
        )
    for kind, tests in _KIND_TESTS.items():
        if any(test(element) for test in tests):
            return kind
    raise unsupported(name, str(dtype))


def unsupported(name: str, dtype: str) -> DataError:
    """Return the error for a column whose type no feature can hold."""
    return DataError(
        f"column {name!r}: expected a boolean, a number, a decimal, a string, binary, a date, a timestamp, "
        f"an ML vector or an array of these, got {dtype}; cast it, or select its fields as columns"
    )


_KIND_TESTS = {
    Kind.INT64: (
        pa.types.is_boolean,
        pa.types.is_signed_integer,
        pa.types.is_date32,
        pa.types.is_timestamp,
    ),
    Kind.FLOAT: (pa.types.is_float32, pa.types.is_float64, pa.types.is_decimal),
    Kind.BYTES: (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
    ),
}


def arrow_feature_specs(schema: pa.Schema) -> tuple[FeatureSpec, ...]:
    """Describe the columns of an Arrow schema as features."""
    return tuple(
        FeatureSpec(
            field.name, kind_of(field.name, field.type).label, is_list(field.type), _dtype_name(field.type)
        )
        for field in schema
    )


def _dtype_name(dtype: pa.DataType) -> str:
    element = element_type(dtype)
    if pa.types.is_string(element) or pa.types.is_large_string(element):
        return "string"
    if pa.types.is_binary(element) or pa.types.is_large_binary(element):
        return "bytes"
    if pa.types.is_decimal(element) or is_vector(dtype):
        return "float32"
    if pa.types.is_date32(element) or pa.types.is_timestamp(element):
        return "int64"
    return str(element.to_pandas_dtype().__name__) if not pa.types.is_boolean(element) else "bool"


@dataclass
class Observed:
    """The facts about one feature in the sampled records."""

    kind: Kind
    always_one: bool = True
    always_text: bool = True

    def see(self, values: Sequence[object]) -> None:
        """Take the values of one record into account."""
        count = len(values) // 4 if self.kind is Kind.FLOAT else len(values)
        self.always_one &= count == 1
        if self.kind is Kind.BYTES and self.always_text:
            self.always_text = all(_is_text(value) for value in values)

    def arrow_type(self) -> pa.DataType:
        """Return the narrowest column type that can hold all sampled values."""
        text = pa.string() if self.always_text else pa.binary()
        element = {Kind.INT64: pa.int64(), Kind.FLOAT: pa.float32(), Kind.BYTES: text}[self.kind]
        return element if self.always_one else pa.list_(element)


_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that no text has, but many an array of small numbers, whose bytes are UTF-8 as well."""


def _is_text(value: object) -> bool:
    assert isinstance(value, bytes)
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return _NO_TEXT.search(value) is None
