"""Columns of any name reach tasks under their names, and RDDs of NumPy values become DataFrames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import PySparkException
from pyspark.ml.linalg import Vectors
from pyspark.sql import Row, SparkSession

from tfspark.cluster.inputs import as_dataframe, select_columns
from tfspark.errors import ConfigError, DataError
from tfspark.feed.columns import Column, Columns
from tfspark.feed.spark_names import map_in_arrow, quoted, select_by_name

NAMES = [
    "petal width (cm)",
    "größe",
    "a.b",
    "x`y",
    "``",
    ".",
    "/slash",
    "lower",
    "LOWER",
    "[0]",
    "count(1)",
    "ab ",
    "*",
    "a.*",
    "",
    'it\'s "x"\n\t',
    "日本",
    "1",
    "\\",
]


def test_columns_of_any_name_reach_a_task_under_their_names(spark: SparkSession) -> None:
    def names_and_sums(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            told = [f"{name}={sum(batch.column(name).to_pylist())}" for name in batch.schema.names]
            yield pa.RecordBatch.from_pydict({"told": told})

    df = spark.range(0, 10, 1, 1).selectExpr(*[f"id * {n} AS c{n}" for n in range(len(NAMES))]).toDF(*NAMES)
    chosen = select_columns(df, Columns((Column("LOWER"), Column("x`y")), Column("a.b")))
    for frame, names in ((select_by_name(df, NAMES[::-1]), NAMES[::-1]), (chosen, ["LOWER", "x`y", "a.b"])):
        told = [row["told"] for row in map_in_arrow(frame, names_and_sums, "told string").collect()]
        assert told == [f"{name}={45 * NAMES.index(name)}" for name in names]
    assert df.select(df[quoted("x`y")], df[quoted("a.b")], df[quoted("``")]).columns == ["x`y", "a.b", "``"]


def test_error_of_a_column_that_exists_twice_has_its_name(spark: SparkSession) -> None:
    left, right = spark.range(3).selectExpr("id", "id AS x"), spark.range(3).selectExpr("id", "id AS x")
    joined = left.join(right, left["id"] == right["id"])
    with pytest.raises(ConfigError, match=r"expected one column 'x', the data has 2"):
        select_columns(joined, Columns((Column("x"),)))


@pytest.mark.parametrize(
    ("dtype", "column", "says"),
    [
        ("string", Column("x", dtype="float32"), "fed as float32"),
        ("string", Column("x", scale=2.0), "fed as float32"),
        ("array<string>", Column("x", dtype="int64"), "fed as int64"),
    ],
)
def test_text_in_a_column_declared_as_numbers_is_refused_before_the_feed_starts(
    spark: SparkSession, dtype: str, column: Column, says: str
) -> None:
    df = spark.createDataFrame([], f"x {dtype}, label int")
    with pytest.raises(DataError, match=rf"column 'x' is text \(string\).*{says}"):
        select_columns(df, Columns((column,), Column("label")))


def test_text_as_a_class_is_refused_but_text_and_bytes_as_features_are_accepted(spark: SparkSession) -> None:
    df = spark.createDataFrame([], "x binary, t string, label string")
    select_columns(df, Columns((Column("x", dtype="float32"), Column("t")), Column("label")))
    with pytest.raises(DataError, match=r"label 'label' is text \(string\), expected integer classes 0 to 1"):
        select_columns(df, Columns((Column("t"),), Column("label"), num_classes=2))


ARRAY = np.arange(12, dtype=np.float32).reshape(4, 3)
ITEMS: list[tuple[Any, str]] = [
    ((ARRAY, np.float32(1.5)), "struct<_1:array<array<float>>,_2:float>"),
    ((np.uint8([1, 2]), np.int64(3)), "struct<_1:array<smallint>,_2:bigint>"),
    ([np.float64(1.0), 2], "struct<_1:double,_2:bigint>"),
    ({"x": np.float16([1, 2]), "y": True}, "struct<x:array<float>,y:boolean>"),
    (Row(x=np.bool_(True), y="text"), "struct<x:boolean,y:string>"),
    (([np.float32(1), np.float32(2)], np.str_("a")), "struct<_1:array<float>,_2:string>"),
    (ARRAY, "struct<value:array<array<float>>>"),
    ((1, 2.0), "struct<_1:bigint,_2:double>"),
]


def test_rdds_of_numpy_values_become_dataframes_with_their_types(spark: SparkSession) -> None:
    for item, expected in ITEMS:
        df = as_dataframe(spark, spark.sparkContext.parallelize([item] * 3, 2))
        assert df.schema.simpleString() == expected
        values = item.values() if isinstance(item, dict) else item
        values = [item] if isinstance(item, np.ndarray) else values
        for found, value in zip(df.collect()[2], values, strict=True):
            assert np.array_equal(np.array(found), np.array(value))


MIXED: list[tuple[list[Any], str, list[Any]]] = [
    (
        [(1, [0, 1]), (0.5, [0, 0.5])],
        "struct<_1:double,_2:array<double>>",
        [(1.0, [0.0, 1.0]), (0.5, [0.0, 0.5])],
    ),
    ([(np.int64(1),), (np.float32(0.5),), (2,)], "struct<_1:double>", [(1.0,), (0.5,), (2.0,)]),
    ([(np.int8([1]),), (np.int32([70000]),)], "struct<_1:array<int>>", [([1],), ([70000],)]),
    ([{"x": None, "y": 1}, {"x": 2.5}], "struct<x:double,y:bigint>", [(None, 1), (2.5, None)]),
    ([(7,)] * 100 + [(3.0,)], "struct<_1:bigint>", [(7,)] * 100 + [(3,)]),
    ([(Vectors.dense([1.0, 2.0]), 1), (Vectors.sparse(2, {0: 3.0}), 0.5)], "struct<_1:vector,_2:double>", []),
]


@pytest.mark.parametrize(("items", "schema", "rows"), MIXED)
def test_column_of_an_rdd_with_whole_and_fractional_numbers_becomes_double(
    spark: SparkSession, items: list[Any], schema: str, rows: list[Any]
) -> None:
    df = as_dataframe(spark, spark.sparkContext.parallelize(items, 1))
    assert df.schema.simpleString() == schema
    found = [tuple(row) for row in df.collect()]
    assert found == rows if rows else len(found) == len(items)


def test_error_of_a_fraction_in_an_rdd_after_whole_numbers_names_its_column(spark: SparkSession) -> None:
    rdd = spark.sparkContext.parallelize([(7, 1)] * 100 + [(7, 0.5)], 1)
    with pytest.raises(PySparkException, match=r"column '_2': expected whole numbers, .* got 0.5"):
        as_dataframe(spark, rdd).collect()


def test_rdd_of_values_without_a_spark_type_is_refused_with_the_supported_types(spark: SparkSession) -> None:
    rdd = spark.sparkContext.parallelize([(np.array([1j]), 1)])
    with pytest.raises(
        ConfigError, match=r"expected an RDD of Rows, tuples or dicts of Python or NumPy .* complex128"
    ):
        as_dataframe(spark, rdd)
