"""TensorFlowOnSpark's ``dfutil``: TFRecord files as DataFrames. Called on the driver.

A thin layer over `tfspark.tfrecord`; ``spark.read.format("tfrecord")`` does more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from tfspark.cluster.inputs import session_of
from tfspark.errors import ConfigError
from tfspark.feed.spark_names import quoted
from tfspark.tfrecord import read_schema, register
from tfspark.tfrecord.encode import encode_batch
from tfspark.tfrecord.files import resolve
from tfspark.tfrecord.framing import scan
from tfspark.tfrecord.spark_types import arrow_schema
from tfspark.tfrecord.wire import Kind, parse_example

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import DataFrame, Row, SparkSession
    from pyspark.sql.types import DataType, StructType

ENCODE_ROWS = 1024
_LOADED_FROM = "_tfspark_loaded_from"


def loadTFRecords(
    sc: SparkContext | SparkSession, input_dir: str, binary_features: Sequence[str] = ()
) -> DataFrame:
    """Read TFRecord files of Examples; the schema is inferred from a sample of the records.

    Args:
        sc: the SparkContext or the session.
        input_dir: file, folder or glob.
        binary_features: features that hold bytes although they look like text.

    Returns:
        A DataFrame with a column for each feature, by name: bigint, double, string or binary; arrays of these if a
        record does not have exactly one value.
    """
    from pyspark.sql.types import BinaryType, StructField, StructType

    spark = session_of(sc)
    register(spark)
    fields = []
    for field in read_schema(input_dir):
        is_list = pa.types.is_list(field.type)
        element = field.type.value_type if is_list else field.type
        dtype = BinaryType() if field.name in binary_features else _spark_type(str(element))
        fields.append(StructField(field.name, _listed(dtype) if is_list else dtype))
    df = spark.read.format("tfrecord").schema(StructType(fields)).load(input_dir)
    vars(df)[_LOADED_FROM] = input_dir
    return df


def isLoadedDF(df: DataFrame) -> bool:
    """Return whether a DataFrame is the result of `loadTFRecords`, not one derived from it."""
    return _LOADED_FROM in vars(df)


def saveAsTFRecords(df: DataFrame, output_dir: str) -> None:
    """Write a DataFrame as TFRecord files of Examples, one per partition.

    Raises:
        ConfigError: the directory exists.
        DataError: a column has a type that an Example cannot hold.
    """
    system, path = resolve(output_dir)
    if system.get_file_info(path).type != fs.FileType.NotFound:
        raise ConfigError(
            f"expected a new output_dir, but {output_dir} exists; remove it, or write with "
            'df.write.format("tfrecord").mode("overwrite")'
        )
    register(df.sparkSession)
    df.write.format("tfrecord").mode("append").save(output_dir)


def toTFExample(
    dtypes: Sequence[tuple[str, str]],
) -> Callable[[Iterable[Any]], Iterator[tuple[bytearray, None]]]:
    """Return a function for ``rdd.mapPartitions`` that converts Rows to serialized Examples.

    Args:
        dtypes: ``df.dtypes``.

    Returns:
        A function that yields ``(example, None)`` for each Row.
    """
    from pyspark.sql.types import StructType

    ddl = ", ".join(f"{quoted(name)} {dtype}" for name, dtype in dtypes)
    schema = arrow_schema(StructType.fromDDL(ddl))

    def to_examples(rows: Iterable[Any]) -> Iterator[tuple[bytearray, None]]:
        left = iter(rows)
        while chunk := list(islice(left, ENCODE_ROWS)):
            columns = zip(*chunk, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            framed = encode_batch(pa.RecordBatch.from_arrays(arrays, schema=schema)).tobytes()
            found = scan(framed)
            for start, length in zip(found.starts, found.lengths, strict=True):
                yield bytearray(framed[start : start + length]), None

    return to_examples


def fromTFExample(iter: Iterable[Any], binary_features: Sequence[str] = ()) -> list[Row]:
    """Convert serialized Examples to Rows, for ``rdd.mapPartitions``.

    Args:
        iter: ``(example, anything)`` pairs.
        binary_features: features that hold bytes; all other bytes features are text.
    """
    from pyspark.sql import Row

    rows = []
    for record in iter:
        features = _features(bytes(record[0]))
        rows.append(Row(**{name: _value(values, name in binary_features) for name, values in features}))
    return rows


def infer_schema(example: Any, binary_features: Sequence[str] = ()) -> StructType:
    """Return the Spark schema of one Example.

    Args:
        example: a ``tf.train.Example``, perhaps serialized.
        binary_features: features that hold bytes; all other bytes features are text.
    """
    from pyspark.sql.types import StructField, StructType

    data = example if isinstance(example, bytes | bytearray) else example.SerializeToString()
    fields = []
    for name, (kind, values) in sorted(parse_example(bytes(data)).items()):
        key = name.decode()
        text = "binary" if key in binary_features else "string"
        dtype = _spark_type({Kind.INT64: "int64", Kind.FLOAT: "float", Kind.BYTES: text}[kind])
        fields.append(StructField(key, _listed(dtype) if len(_python(kind, values)) > 1 else dtype))
    return StructType(fields)


def _features(example: bytes) -> list[tuple[str, list[Any]]]:
    return [
        (name.decode(), _python(kind, values))
        for name, (kind, values) in sorted(parse_example(example).items())
    ]


def _python(kind: Kind, values: Any) -> list[Any]:
    listed: list[Any] = np.frombuffer(values, "<f4").tolist() if kind is Kind.FLOAT else list(values)
    return listed


def _value(values: list[Any], is_binary: bool) -> Any:
    """Return a single value, a list of several, or None."""
    if values and isinstance(values[0], bytes):
        values = [bytearray(value) if is_binary else value.decode() for value in values]
    return values if len(values) > 1 else next(iter(values), None)


def _spark_type(name: str) -> DataType:
    from pyspark.sql import types

    known = {
        "int64": types.LongType,
        "float": types.DoubleType,
        "string": types.StringType,
        "binary": types.BinaryType,
    }
    return known.get(name, types.StringType)()


def _listed(dtype: DataType) -> DataType:
    from pyspark.sql.types import ArrayType

    return ArrayType(dtype)
