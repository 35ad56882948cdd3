"""The complete feed: DataFrames on real Spark, a real cluster, trainers with TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cluster.incarnations import Events
from cluster.programs import dense
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from support.driver import run_driver
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.errors import TfsparkError
from tfspark.feed.source import MANY_OBJECTS, NOT_REACHED

LAYOUTS: list[tuple[list[int], int, str]] = [
    ([200], 2, "one partition, two epochs"),
    ([13, 0, 40, 1, 77, 0, 9], 1, "seven partitions, uneven and empty ones"),
    ([0, 0, 0, 150, 0], 1, "all rows in one of five partitions"),
    ([1], 1, "fewer rows than workers"),
    ([0, 1, 0, 1], 1, "fewer rows than a batch, in two partitions"),
    ([n % 5 for n in range(64)], 1, "64 tiny partitions"),
    ([64, 64], 1, "whole batches"),
]
NUM_PASSES = sum(epochs for _, epochs, _ in LAYOUTS)


def reading_ids() -> Callable[[Any, Any], Any]:
    """Return a ``main_fun`` that returns the ids it saw in each pass, batch by batch."""

    # A nested function is pickled by value: the trainers cannot import this module.
    def main_fun(args: Any, ctx: Any) -> list[list[list[int]]]:
        dataset = ctx.dataset()
        passes = []
        for _ in range(args["passes"]):
            steps = []
            for element in dataset:
                ids, _, weight = (ctx.strategy.experimental_local_results(part)[0] for part in element)
                assert ids.shape == weight.shape == (args["batch_size"],)
                steps.append(ids.numpy()[weight.numpy() > 0].tolist())
            passes.append(steps)
        return passes

    return main_fun


def ids_of(steps: list[list[int]]) -> list[int]:
    return [i for step in steps for i in step]


def test_spare_collections_leaves_few_objects_to_the_collector_after_large_imports(
    spark: SparkSession,
) -> None:
    """Run it in Spark's Python worker, as feed tasks do."""

    def spare(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import gc

        from tfspark.feed.source import spare_collections

        gc.unfreeze()  # Tasks of other tests may have frozen objects in the same process.
        counts = [len(gc.get_objects())]
        for _ in batches:
            pass
        for _ in range(2):
            spare_collections()
            counts.append(len(gc.get_objects()))
        gc.unfreeze()
        yield pa.RecordBatch.from_pydict({"objects": counts})

    rows = spark.range(0, 1, 1, 1).mapInArrow(spare, "objects long").collect()
    before, after, again = (row.objects for row in rows)
    assert before > MANY_OBJECTS > after
    assert again < MANY_OBJECTS


@pytest.mark.parametrize(("num_workers", "ordered"), [(2, False), (3, True)])
def test_every_row_of_every_layout_reaches_one_worker_once_per_epoch(
    spark: SparkSession, num_workers: int, ordered: bool
) -> None:
    args = {"passes": NUM_PASSES, "batch_size": 8}
    with TFCluster.run(spark, reading_ids(), args, num_executors=num_workers) as cluster:
        for sizes, epochs, _ in LAYOUTS:
            cluster.train(
                df_with_partitions(spark, sizes),
                epochs,
                features=["id"],
                batch_size=8 * num_workers,
                feeding=Feeding(ordered=ordered),
            )
        results = cluster.shutdown()
    workers = [results[f"worker {rank}"] for rank in range(num_workers)]
    expected = [(sizes, reason) for sizes, epochs, reason in LAYOUTS for _ in range(epochs)]
    for (sizes, reason), *passes in zip(expected, *workers, strict=True):
        assert sorted(i for steps in passes for i in ids_of(steps)) == list(range(sum(sizes))), reason
        assert len({len(steps) for steps in passes}) == 1, f"equally many batches: {reason}"
        if ordered:
            in_order = [i for parts in zip(*passes, strict=True) for part in parts for i in part]
            assert in_order == list(range(sum(sizes))), reason


RETRY = """
    import json, os, sys
    import keras
    from cluster.programs import counting
    from pyspark.sql import SparkSession, functions as sf
    from support.rows import df_with_partitions
    from tfspark import Feeding, TFCluster

    def main_fun(args, ctx):
        steps = []
        for element in ctx.dataset():
            ids, _, weight = (ctx.strategy.experimental_local_results(part)[0] for part in element)
            steps.append(ids.numpy()[weight.numpy() > 0].tolist())
        return steps

    def dying_once(marker, at=5, after=sys.argv[1]):
        def dies_once(batches):
            import time
            from pyspark import TaskContext

            for number, batch in enumerate(batches):
                if TaskContext.get().partitionId() == 1 and number == at and not os.path.exists(marker):
                    while not os.path.exists(after):
                        time.sleep(0.1)
                    open(marker, "w").close()
                    os._exit(9)
                yield batch

        return dies_once

    def trained(spark, ordered):
        df = df_with_partitions(spark, [700, 4000, 0, 900])
        feeding = Feeding(ordered=ordered, chunk_bytes=2048, buffer_bytes=16384)
        marker = os.path.join(sys.argv[1], "ordered" if ordered else "unordered")
        with TFCluster.run(spark, main_fun, None, num_executors=2) as cluster:
            dying = df.mapInArrow(dying_once(marker), df.schema)
            cluster.train(dying, features=["id"], batch_size=64, feeding=feeding)
            results = cluster.shutdown()
        assert os.path.exists(marker), "no task died"
        return [results["worker 0"], results["worker 1"]]

    def counts_of_model(spark):
        causes, run_dir = [], os.path.join(sys.argv[1], "run")
        stepped = os.path.join(sys.argv[1], "stepped")

        def observer(event, fields):
            if event == "step":
                open(stepped, "w").close()
            if event == "restarting":
                causes.append(fields["cause"])

        df = df_with_partitions(spark, [700, 4000, 0, 900])
        df = df.withColumn("pad", sf.repeat(sf.lit("x"), 500)).repartition(2)
        dying = df.mapInArrow(dying_once(os.path.join(sys.argv[1], "moved"), 10, stepped), df.schema)
        small = Feeding(chunk_bytes=2048, buffer_bytes=16384)
        with TFCluster.run(spark, counting, {"rows": 5600}, 2, observer=observer, log_dir=run_dir) as cluster:
            cluster.train(dying, features=["id"], label=None, batch_size=32, feeding=small)
            cluster.shutdown(export=["keras"])
        counts = keras.models.load_model(run_dir + "/export/model.keras", compile=False).get_weights()[0]
        return causes, sorted(set(counts[:, 0].round(2).tolist()))

    spark = SparkSession.builder.getOrCreate()
    print("RESULT", json.dumps([trained(spark, False), trained(spark, True)]))
    print("MOVED", json.dumps(counts_of_model(spark)))
"""


def test_rows_of_a_killed_feed_task_are_each_read_once_after_spark_has_retried_it(tmp_path: Path) -> None:
    """The third training has rows of a shuffle, which Spark recomputes in a different order: its epoch begins again."""
    # Small batches and a small buffer: the rows before the failure must reach the trainers before the task dies.
    small_batches = {"spark.sql.execution.arrow.maxRecordsPerBatch": "200", "spark.buffer.size": "1024"}
    finished = run_driver("local[4,4]", RETRY, str(tmp_path), timeout_s=300, conf=small_batches).check()
    (line,) = [line for line in finished.stdout.splitlines() if line.startswith("RESULT ")]
    unordered, ordered = json.loads(line.removeprefix("RESULT "))
    assert sorted(i for steps in unordered for i in ids_of(steps)) == list(range(5600))
    assert [i for parts in zip(*ordered, strict=True) for part in parts for i in part] == list(range(5600))
    (line,) = [line for line in finished.stdout.splitlines() if line.startswith("MOVED ")]
    (cause,), counts = json.loads(line.removeprefix("MOVED "))
    assert cause.startswith(
        "expected Spark to compute partition 1 of 'train' again with its rows in the same"
    )
    assert counts == [1.0]


@pytest.mark.timeout(90)
def test_error_in_the_dataframe_of_the_user_is_raised_as_an_error_of_spark(spark: SparkSession) -> None:
    def fails(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from batches
        raise ValueError("the user's own mistake")

    df = df_with_partitions(spark, [50, 50])
    with (
        pytest.raises(PySparkException, match="the user's own mistake") as caught,
        TFCluster.run(spark, reading_ids(), {"passes": 1, "batch_size": 8}, num_executors=1) as cluster,
    ):
        cluster.train(df.mapInArrow(fails, df.schema), features=["id"], batch_size=8)
    assert not isinstance(caught.value, TfsparkError)


def test_training_restarts_if_a_worker_cannot_reach_a_feed_task_that_spark_does_not_retry(
    spark: SparkSession, tmp_path: Path
) -> None:
    def fails_once(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise TfsparkError(f"partition 0: {NOT_REACHED}")
        yield from batches

    events = Events()
    df = df_with_partitions(spark, [64])
    with TFCluster.run(spark, dense, {}, observer=events) as cluster:
        history = cluster.train(df.mapInArrow(fails_once, df.schema), features=["features"], batch_size=16)
    assert len(history["loss"]) == 1
    (restart,) = events.of("restarting")
    assert f"partition 0: {NOT_REACHED}" in restart["cause"]
