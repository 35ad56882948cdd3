"""Translate between Spark's types and Arrow's, in the layout between Spark and its Python workers."""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql.types import ArrayType, DataType, DecimalType, StringType, StructType, UserDefinedType

from tfspark.tfrecord.schema import VECTOR, unsupported

_ARROW = {
    "boolean": pa.bool_(),
    "byte": pa.int8(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "timestamp_ntz": pa.timestamp("us"),
}
_DDL = {"int64": "bigint", "int32": "int", "float": "float", "string": "string", "binary": "binary"}


def arrow_schema(schema: StructType) -> pa.Schema:
    """Translate a Spark schema.

    Raises:
        DataError: a column has a type that an Example cannot hold.
    """
    fields = [
        pa.field(field.name, _arrow(field.name, field.dataType), field.nullable) for field in schema.fields
    ]
    return pa.schema(fields)


def _arrow(name: str, dtype: DataType) -> pa.DataType:
    if isinstance(dtype, ArrayType):
        return pa.list_(pa.field("element", _arrow(name, dtype.elementType), dtype.containsNull))
    if isinstance(dtype, DecimalType):
        return pa.decimal128(dtype.precision, dtype.scale)
    if isinstance(dtype, UserDefinedType) and type(dtype).__name__ == "VectorUDT":
        return VECTOR
    if isinstance(dtype, StringType):  # CHAR, VARCHAR and collations too
        return pa.string()
    if dtype.typeName() in _ARROW:
        return _ARROW[dtype.typeName()]
    raise unsupported(name, dtype.simpleString())


def ddl(schema: pa.Schema) -> str:
    """Return an inferred schema as Spark DDL."""
    columns = []
    for field in schema:
        is_list = pa.types.is_list(field.type)
        element = _DDL[str(field.type.value_type if is_list else field.type)]
        name = field.name.replace("`", "``")
        columns.append(f"`{name}` {f'array<{element}>' if is_list else element}")
    return ", ".join(columns)
