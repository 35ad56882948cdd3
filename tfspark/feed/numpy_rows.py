"""Make DataFrames from RDDs of numbers and NumPy arrays. Runs on the driver and in Spark's Python workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfspark.errors import DataError

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType


SAMPLED_ROWS, FIRST_ITEMS = 100, 10


def rdd_to_dataframe(spark: SparkSession, rdd: RDD[object]) -> DataFrame:
    """Return an RDD as a DataFrame.

    Types are those of the first items, as Spark infers them. But a number may be an integer in some items and a float
    in others; Spark would make those null, so the wider type is used. NumPy values keep NumPy's types: an array of
    shape ``(4, 3)`` becomes an array of arrays.

    Raises:
        TypeError, ValueError, PySparkException: Spark cannot infer the columns.
    """
    for schema in rdd.mapPartitions(schema_of_first).take(1):
        if isinstance(schema, str):
            raise TypeError(schema)
        if schema is not None:
            return spark.createDataFrame(rdd.map(Fitted(schema)), schema)
    return spark.createDataFrame(rdd)


def schema_of_first(elements: Iterable[object]) -> Iterator[StructType | str | None]:
    """Yield a schema for the first items of a partition; nothing if the partition is empty.

    None means that Spark infers the schema; a string is the reason why there is no schema.
    """
    try:
        yield from _schema_of_first(elements)
    except (TypeError, ValueError) as error:
        yield str(error)


def _schema_of_first(elements: Iterable[object]) -> Iterator[StructType | None]:
    schema: StructType | None = None
    for element in islice(elements, SAMPLED_ROWS):
        if not isinstance(element, dict | tuple | list | np.ndarray | np.generic):
            yield None
            return
        found = _schema_of(element)
        schema = found if schema is None else _joined(schema, found)
    if schema is not None:
        yield schema


@dataclass(frozen=True)
class Fitted:
    """Converts an item to plain Python values of the columns' types."""

    schema: StructType

    def __call__(self, element: object) -> tuple[object, ...]:
        """Return an item as a tuple; an item that is not a tuple becomes its only column.

        Raises:
            DataError: a value is not an integer in a column of integers, or the number of values is wrong.
        """
        fields = self.schema.fields
        if isinstance(element, dict):
            named = {str(name): value for name, value in element.items()}
            values = [named.get(field.name) for field in fields]
        else:
            values = list(element) if isinstance(element, tuple | list) else [element]
        if len(values) != len(fields):
            raise DataError(
                f"expected an element of {len(fields)} values, as the first ones of the RDD, got {len(values)}: "
                f"{str(element)[:200]}; make all elements alike with rdd.map(...) before feeding"
            )
        return tuple(
            _fit(value, field.dataType, field.name) for value, field in zip(values, fields, strict=True)
        )


def _fit(value: object, dtype: DataType, name: str) -> object:
    from pyspark.sql import types

    is_float = isinstance(dtype, types.DoubleType | types.FloatType)
    if isinstance(value, np.ndarray | np.generic):
        inner = _innermost(dtype)
        if value.dtype.kind in "iu" and isinstance(inner, types.DoubleType | types.FloatType):
            value = value.astype(np.float64)
        if not (value.dtype.kind == "f" and isinstance(inner, types.IntegralType)):
            return value.tolist()
        value = value.tolist()
    if isinstance(dtype, types.ArrayType) and isinstance(value, list | tuple):
        kinds = set(map(type, value))
        is_float_too, is_long_too = (
            isinstance(dtype.elementType, kind) for kind in (types.DoubleType, types.LongType)
        )
        if (kinds == {float} and is_float_too) or (kinds == {int} and is_long_too):
            return list(value)
        return [_fit(item, dtype.elementType, name) for item in value]
    if is_float and isinstance(value, int):
        return float(value)
    if isinstance(dtype, types.IntegralType) and isinstance(value, float):
        if not value.is_integer():
            raise DataError(
                f"column {name!r}: expected whole numbers, as in the first elements of the RDD, got {value}; make them "
                "floats in all elements with rdd.map(...) before feeding"
            )
        return int(value)
    return _plain(value)


def _innermost(dtype: DataType) -> DataType:
    from pyspark.sql.types import ArrayType

    while isinstance(dtype, ArrayType):
        dtype = dtype.elementType
    return dtype


def _joined(one: StructType, other: StructType) -> StructType:
    """Return a schema for items of both; a key that only one of two dicts has is null in the other."""
    from pyspark.sql.types import StructField, StructType

    types = {field.name: field.dataType for field in one.fields}
    for field in other.fields:
        types[field.name] = (
            _wider(types[field.name], field.dataType) if field.name in types else field.dataType
        )
    return StructType([StructField(name, dtype) for name, dtype in types.items()])


def _wider(one: DataType, other: DataType) -> DataType:
    """Return a number type for both; the first type if they are not numbers."""
    from pyspark.sql import types

    if isinstance(one, types.NullType):
        return other
    if isinstance(one, types.ArrayType) and isinstance(other, types.ArrayType):
        return types.ArrayType(_wider(one.elementType, other.elementType))
    order = (
        types.ByteType,
        types.ShortType,
        types.IntegerType,
        types.LongType,
        types.FloatType,
        types.DoubleType,
    )
    if one == other or type(one) not in order or type(other) not in order:
        return one
    if isinstance(one, types.FractionalType) != isinstance(other, types.FractionalType):
        return types.DoubleType()
    return max(one, other, key=lambda dtype: order.index(type(dtype)))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "__fields__"):
        return type(value)(*map(_plain, value))
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _schema_of(element: object) -> StructType:
    from pyspark.sql.types import StructField, StructType

    if isinstance(element, dict):
        named = {str(name): value for name, value in element.items()}
    elif isinstance(element, tuple | list):
        of_row, of_namedtuple = getattr(element, "__fields__", None), getattr(element, "_fields", None)
        names = of_row or of_namedtuple or [f"_{place + 1}" for place in range(len(element))]
        named = dict(zip(names, element, strict=True))
    else:
        named = {"value": element}
    return StructType([StructField(name, _type_of(value)) for name, value in named.items()])


def _type_of(value: object) -> DataType:
    from pyspark.sql.types import ArrayType, _infer_type

    if isinstance(value, np.ndarray | np.generic):
        dtype = _element_type(value)
        for _ in range(np.ndim(value)):
            dtype = ArrayType(dtype)
        return dtype
    if isinstance(value, list | tuple) and value and not hasattr(value, "__fields__"):
        # One value of each kind is enough, plus some more of nested values.
        some = [*{type(item): item for item in value}.values(), *value[:FIRST_ITEMS]]
        return ArrayType(reduce(_wider, map(_type_of, some)))
    inferred: DataType = _infer_type(value)
    return inferred


def _element_type(value: npt.NDArray[np.generic] | np.generic) -> DataType:
    """Return Spark's type for the items; unsigned and half-precision numbers, which Spark lacks, get a larger type."""
    from pyspark.sql import types

    kinds: dict[str, Callable[[], DataType]] = {
        "bool": types.BooleanType,
        "int8": types.ByteType,
        "uint8": types.ShortType,
        "int16": types.ShortType,
        "uint16": types.IntegerType,
        "int32": types.IntegerType,
        "uint32": types.LongType,
        "int64": types.LongType,
        "uint64": types.LongType,
        "float16": types.FloatType,
        "float32": types.FloatType,
        "float64": types.DoubleType,
    }
    if value.dtype.kind in "US":
        return types.StringType() if value.dtype.kind == "U" else types.BinaryType()
    if value.dtype.name not in kinds:
        raise TypeError(f"a NumPy value of dtype {value.dtype}, for which Spark has no type")
    return kinds[value.dtype.name]()
