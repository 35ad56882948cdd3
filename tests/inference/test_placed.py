"""Features that Python workers read from Parquet files themselves, by place: file and row number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.errors import PythonException
from pyspark.sql import DataFrame
from support.rows import assert_same_predictions

from tfspark import predict
from tfspark.errors import DataError
from tfspark.feed.scan import FileVersion, Selection
from tfspark.inference.placed import RowReader

ROWS = 2500
FEATURES = pa.list_(pa.field("element", pa.float32()))


def table(first: int, count: int, nulls: bool = False) -> pa.Table:
    numbers = np.arange(first, first + count)
    values = np.stack([numbers / 7, numbers / 3, numbers % 5, -numbers / 11], axis=1).astype(np.float32)
    features = [
        None if nulls and number % 10 == 3 else row.tolist()
        for number, row in zip(numbers, values, strict=True)
    ]
    return pa.table(
        {
            "id": pa.array(numbers),
            "marks `é`": pa.array(features, FEATURES),
            "text": [f"row {n}" for n in numbers],
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and rows in files of several row groups. A URI must quote the names of their folders."""
    folder = tmp_path_factory.mktemp("placed")
    for number, name in enumerate(("day=1 %", "day=2")):
        place = folder / "rows 100%" / name
        place.mkdir(parents=True)
        pq.write_table(table(number * ROWS, ROWS, nulls=True), place / "part é.parquet", row_group_size=700)
    keras.utils.set_random_seed(0)
    keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, "tanh")]).save(
        folder / "model.keras"
    )
    return folder


def read(spark: Any, folder: Path, **options: str) -> DataFrame:
    return spark.read.options(**options).parquet(str(folder / "rows 100%"))  # type: ignore[no-any-return]


def predicted(df: DataFrame, folder: Path, **options: Any) -> DataFrame:
    return predict(df, folder / "model.keras", features="marks `é`", **options)


def plan_of(df: DataFrame) -> str:
    return df._jdf.queryExecution().executedPlan().toString()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(lambda df: df, id="all rows"),
        pytest.param(
            lambda df: df.where("pmod(id, 3) = 1 AND day <> '2'"), id="a filter that only Spark evaluates"
        ),
        pytest.param(
            lambda df: df.selectExpr("upper(text) AS Text", "`marks ``é```", "id + 1 AS more").where(
                "more > 2300"
            ),
            id="computed columns",
        ),
    ],
)
def test_predictions_of_features_read_by_place_equal_predictions_of_features_from_spark(
    spark: Any, folder: Path, chosen: Any
) -> None:
    made = predicted(chosen(read(spark, folder)), folder, handle_invalid="keep")
    through_spark = predicted(
        chosen(read(spark, folder, ignoreCorruptFiles="true")), folder, handle_invalid="keep"
    )

    assert "row_index" in plan_of(made)
    assert "row_index" not in plan_of(through_spark)
    assert made.schema == through_spark.schema
    rows, expected = made.collect(), through_spark.collect()
    assert len(rows) > 500
    assert_same_predictions(rows, expected)
    alone = made.select("prediction")
    assert "marks `é`" not in plan_of(alone).partition("ReadSchema")[2]
    assert [row[0] is None for row in alone.collect()] == [row["prediction"] is None for row in rows]


def test_null_feature_read_by_place_is_an_error_and_with_skip_spark_reads_the_features(
    spark: Any, folder: Path
) -> None:
    with pytest.raises(PythonException, match=r"column 'marks `é`' is null"):
        predicted(read(spark, folder), folder).collect()
    skipped = predicted(read(spark, folder), folder, handle_invalid="skip")
    assert "row_index" not in plan_of(skipped)
    assert skipped.count() == 2 * ROWS * 9 // 10


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda df: df.repartition(2), id="shuffled"),
        pytest.param(lambda df: df.orderBy("id"), id="sorted"),
        pytest.param(lambda df: df.limit(50), id="limited"),
        pytest.param(lambda df: df.union(df), id="two scans"),
        pytest.param(lambda df: df.withColumn("marks `é`", df["`marks ``é```"]).persist(), id="persisted"),
        pytest.param(
            lambda df: df.selectExpr("transform(`marks ``é```, v -> v + 1) AS `marks ``é```", "id"),
            id="computed features",
        ),
        pytest.param(
            lambda df: df.selectExpr("1 AS _metadata", "`marks ``é```", "id"), id="a column named _metadata"
        ),
    ],
)
def test_features_that_are_not_plain_columns_of_a_scan_are_read_by_spark(
    spark: Any, folder: Path, change: Any
) -> None:
    df = change(read(spark, folder).where("id % 10 <> 3"))
    assert "row_index" not in plan_of(predicted(df, folder))
    df.unpersist()


def test_file_that_was_changed_after_spark_listed_it_is_named_in_the_error(
    spark: Any, folder: Path, tmp_path: Path
) -> None:
    pq.write_table(table(0, 20), tmp_path / "rows.parquet")
    made = predicted(spark.read.parquet(str(tmp_path / "rows.parquet")), folder)
    pq.write_table(table(5, 21), tmp_path / "rows.parquet")
    with pytest.raises(PythonException, match=r"expected .*rows.parquet as Spark listed it"):
        made.collect()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> FileVersion:
    path = tmp_path_factory.mktemp("large") / "rows.parquet"
    pq.write_table(table(0, 1000), path, row_group_size=130)
    return FileVersion(str(path), path.stat().st_size, path.stat().st_mtime_ns // 1_000_000)


@given(
    numbers=st.lists(st.integers(0, 999), max_size=60)
    | st.lists(st.integers(0, 999), unique=True).map(sorted),
    batch_rows=st.sampled_from([1, 7, 64, 5000]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_reader_returns_rows_in_the_order_of_the_given_numbers(
    large: FileVersion, monkeypatch: pytest.MonkeyPatch, numbers: list[int], batch_rows: int
) -> None:
    monkeypatch.setattr("tfspark.inference.placed.BATCH_BYTES", batch_rows * 24)
    selection = Selection(
        pa.schema([("id", pa.int64()), ("marks `é`", FEATURES)]), (("x", "marks `é`"), ("number", "id"))
    )
    reader = RowReader("rows", large, selection, batch_rows)
    try:
        found = list(reader.rows(np.array(numbers, np.int64)))
    finally:
        reader.close()
    assert [number for batch in found for number in batch.column("number").to_pylist()] == numbers
    assert all(batch.schema.names == ["x", "number"] for batch in found)


def test_reader_of_a_row_that_the_file_does_not_have_says_so(large: FileVersion) -> None:
    reader = RowReader("rows", large, Selection(pa.schema([("id", pa.int64())]), (("id", "id"),)), 10)
    with pytest.raises(
        DataError, match=r"expected row 1000 of .*rows.parquet, pyarrow says: there are fewer rows"
    ):
        list(reader.rows(np.array([998, 999, 1000])))
    reader.close()
