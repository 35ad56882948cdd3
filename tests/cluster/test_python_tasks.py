"""Spark tasks that get no rows, on real Spark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.errors import PythonException
from pyspark.sql import SparkSession

from tfspark.cluster.python_tasks import SIMPLIFIED_TRACEBACK, python_tasks
from tfspark.cluster.sparkjob import SparkJob


def parents_of_tasks(spark: SparkSession, folder: Path, count: int) -> set[str]:
    """Run tasks that note their numbers; return the process ids of the daemons that forked their processes."""

    def note(number: int) -> None:
        (folder / f"{number}").write_text(f"{os.getppid()}")

    assert python_tasks(spark, note, count).collect() == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(map(str, range(count)))
    return {path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [0, 1, 5])
def test_each_task_gets_its_number(spark: SparkSession, tmp_path: Path, count: int) -> None:
    parents_of_tasks(spark, tmp_path, count)


@pytest.mark.parametrize("simplified", ["true", "false"])
def test_tasks_run_in_the_python_workers_of_queries(
    spark: SparkSession, tmp_path: Path, simplified: str
) -> None:
    def parent(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"pid": [os.getppid()]})

    spark.conf.set(SIMPLIFIED_TRACEBACK, simplified)
    try:
        (row,) = spark.range(0, 1, 1, 1).mapInArrow(parent, "pid long").collect()
        assert parents_of_tasks(spark, tmp_path, 3) == {str(row.pid)}
    finally:
        spark.conf.unset(SIMPLIFIED_TRACEBACK)
    assert "SPARK_SIMPLIFIED_TRACEBACK" not in spark.sparkContext.environment


def test_function_of_more_than_a_megabyte_is_called(spark: SparkSession, tmp_path: Path) -> None:
    large = os.urandom(3 << 20)  # Spark sends it as a broadcast.

    def note(number: int) -> None:
        (tmp_path / f"{number}").write_bytes(large[:10])

    assert python_tasks(spark, note, 2).collect() == []
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [large[:10]] * 2


def test_error_of_a_task_is_raised_with_its_own_words(spark: SparkSession) -> None:
    def fail(number: int) -> None:
        raise ValueError(f"task {number} has no luck")

    job = SparkJob(spark, lambda: python_tasks(spark, fail, 1), "fails")
    job.join(60.0)
    with pytest.raises(PythonException, match="ValueError: task 0 has no luck"):
        job.result()
