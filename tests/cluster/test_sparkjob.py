"""A Spark job in the background, on real Spark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession
from support.processes import kill_all, poll_until

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


def num_running_tasks(spark: SparkSession) -> int:
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    return sum(stage.numActiveTasks for stage in stages if stage is not None)


def test_job_cancelled_while_its_workers_start_leaves_workers_of_other_jobs_alone(
    spark: SparkSession, tmp_path: Path
) -> None:
    def tell_and_wait(batches: Iterator[Any]) -> Iterator[Any]:
        import os
        import time

        (tmp_path / f"{os.getpid()}").touch()
        while not (tmp_path / "end").exists():
            time.sleep(0.1)
        yield from batches

    def pass_on(batches: Iterator[Any]) -> Iterator[Any]:
        yield from batches

    one_row = spark.range(0, 1, 1, 1)
    long = SparkJob(spark, lambda: one_row.mapInArrow(tell_and_wait, "id long"), "long")
    try:
        assert poll_until(lambda: len(list(tmp_path.iterdir())) == 1, 60.0)
        worker = psutil.Process(int(next(tmp_path.iterdir()).name))
        daemon = worker.parent()
        assert daemon is not None
        # Otherwise Spark takes an idle worker.
        kill_all([process for process in daemon.children() if process != worker])
        daemon.suspend()
        try:
            short = SparkJob(spark, lambda: one_row.mapInArrow(pass_on, "id long"), "short")
            assert poll_until(lambda: num_running_tasks(spark) == 2, 30.0)
            time.sleep(1.0)  # By now its task waits for a worker.
            short.cancel()
            time.sleep(1.0)  # By now Spark would have given the daemon up.
        finally:
            daemon.resume()
    finally:
        (tmp_path / "end").touch()
        long.join(60.0)
    assert short.ended
    assert [row.id for row in long.result()] == [0]
    # Spark did not try it again.
    assert {path.name for path in tmp_path.iterdir()} == {str(worker.pid), "end"}


def test_job_that_ends_by_itself_has_a_result(spark: SparkSession) -> None:
    errors: list[Exception] = []
    job = SparkJob(spark, lambda: spark.range(3), "ends", errors.append)
    job.join(60.0)

    assert [row.id for row in job.result()] == [0, 1, 2]
    assert errors == []
    job.cancel()
