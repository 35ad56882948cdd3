"""A Spark job in the background, on real Spark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pyspark.sql import SparkSession
from support.processes import poll_until

from tfspark.cluster.sparkjob import SparkJob


@pytest.mark.parametrize("is_running", [False, True], ids=["while it is planned", "while it runs"])
def test_job_that_is_cancelled_by_another_thread_ends(spark: SparkSession, is_running: bool) -> None:
    def never_ending() -> Any:
        import time

        def sleep(batches: Iterator[Any]) -> Iterator[Any]:
            for batch in batches:
                time.sleep(600)
                yield batch

        return spark.range(0, 10, 1, 2).mapInArrow(sleep, "id bigint")

    ended = []
    job = SparkJob(spark, never_ending, "never ends", on_end=lambda: ended.append(True))
    if is_running:
        tracker = spark.sparkContext.statusTracker()
        assert poll_until(lambda: bool(tracker.getActiveStageIds()), 30.0)
    job.cancel()

    assert job.ended
    assert ended == [True]
    with pytest.raises(Exception, match="cancelled"):
        job.result()


def test_job_that_ends_by_itself_has_a_result(spark: SparkSession) -> None:
    errors: list[Exception] = []
    job = SparkJob(spark, lambda: spark.range(3), "ends", errors.append)
    job.join(60.0)

    assert [row.id for row in job.result()] == [0, 1, 2]
    assert errors == []
    job.cancel()
