"""DataFrames of RDDs whose elements hold NumPy arrays and numbers. Runs on the driver and in Spark's Python workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType


def rdd_to_dataframe(spark: SparkSession, rdd: RDD[Any]) -> DataFrame:
    """Return an RDD as a DataFrame.

    Types are those of the first element, as Spark infers them; where it holds NumPy values, or is one, they are those
    of NumPy: an array of shape ``(4, 3)`` becomes an array of arrays.

    Raises:
        TypeError, ValueError, PySparkException: Spark cannot tell the columns.
    """
    for first in rdd.take(1):
        if _holds_numpy(first):
            return spark.createDataFrame(rdd.map(plain_row), _schema_of(first))
    return spark.createDataFrame(rdd)


def _holds_numpy(element: Any) -> bool:
    if isinstance(element, dict):
        return any(map(_holds_numpy, element.values()))
    if isinstance(element, tuple | list):
        return any(map(_holds_numpy, element))
    return isinstance(element, np.ndarray | np.generic)


def plain_row(element: Any) -> Any:
    """Return an element as a tuple, or dict, of plain Python values; one that is no tuple is its only column."""
    if isinstance(element, dict):
        return {str(name): _plain(value) for name, value in element.items()}
    if isinstance(element, tuple | list):
        return tuple(_plain(value) for value in element)
    return (_plain(element),)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "__fields__"):
        return type(value)(*map(_plain, value))
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _schema_of(element: Any) -> StructType:
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


def _type_of(value: Any) -> DataType:
    from pyspark.sql.types import ArrayType, _infer_type

    if isinstance(value, np.ndarray | np.generic):
        dtype = _element_type(value)
        for _ in range(np.ndim(value)):
            dtype = ArrayType(dtype)
        return dtype
    if isinstance(value, list | tuple) and value and _holds_numpy(value[0]):
        return ArrayType(_type_of(value[0]))
    inferred: DataType = _infer_type(value)
    return inferred


def _element_type(value: Any) -> DataType:
    """Return Spark's type for the elements; it has no unsigned numbers and no halves, so the next larger one."""
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
