"""Training on a streaming DataFrame: every micro-batch is trained on once, and a stop loses no row."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster.programs import dense
from pyspark.sql import DataFrame, SparkSession
from support.rows import df_with_partitions

from tfspark import TFCluster

NOW = {"availableNow": True}
SCHEMA = "id bigint, features array<float>, label bigint"


def write_files(spark: SparkSession, directory: Path, sizes: list[int], first_id: int = 0) -> None:
    """Add one file for each size; ids continue from file to file."""
    for size in sizes:
        rows = df_with_partitions(spark, [first_id + size]).where(f"id >= {first_id}")
        rows.coalesce(1).write.mode("append").parquet(str(directory))
        first_id += size


def stream_of(spark: SparkSession, directory: Path) -> DataFrame:
    """Read the files as they come, one in each micro-batch."""
    directory.mkdir(exist_ok=True)
    return spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).parquet(str(directory))


def collecting_ids() -> Callable[[Any, Any], Any]:
    """Return a ``main_fun`` that reads micro-batches until the stream ends and returns the ids of each."""

    def main_fun(args: Any, ctx: Any) -> list[list[int]]:
        from tfspark.training.input.dataset import open_feed

        ctx.report("ready")
        feed = open_feed(ctx, "train")
        passes = []
        while feed.open_pass().has_step(0):
            batches = [batch["id"][batch["__weight__"] > 0].tolist() for batch in feed.batches()]
            passes.append([i for batch in batches for i in batch])
        return passes

    return main_fun


def test_stream_that_ends_by_itself_trains_each_micro_batch_once(spark: SparkSession, tmp_path: Path) -> None:
    write_files(spark, tmp_path / "rows", [70, 3, 41])
    events: list[tuple[str, Any]] = []
    with TFCluster.run(
        spark, dense, {"units": 2}, 2, observer=lambda event, fields: events.append((event, fields))
    ) as cluster:
        stream = stream_of(spark, tmp_path / "rows").select("features", "label")
        history = cluster.train(stream, batch_size=16, trigger=NOW)
        assert len(history["loss"]) == 3
        again = cluster.train(stream, num_epochs=2, batch_size=16, trigger=NOW)
        assert len(again["loss"]) == 6
        results = cluster.shutdown()
    rows = [results[f"worker {rank}"]["rows"] for rank in range(2)]
    sizes = sorted(a + b for a, b in zip(*rows, strict=True))
    assert sizes == sorted([70, 3, 41] * 3)
    steps = sum(-(-size // 16) for size in sizes)
    assert results["worker 0"]["iterations"] >= steps, "every row was in a step"


def micro_batches(spark: SparkSession, directory: Path, checkpoint: Path, stops: bool) -> list[list[int]]:
    """Train until the stream ends or, with `stops`, until one micro-batch is fed; return the ids of each."""
    cluster = TFCluster.run(
        spark,
        collecting_ids(),
        None,
        2,
        observer=lambda event, _: cluster.stop_stream() if event == "fed" and stops else None,
    )
    with cluster:
        cluster.train(
            stream_of(spark, directory),
            features=["id"],
            batch_size=8,
            trigger={"processingTime": "0 seconds"} if stops else NOW,
            checkpoint_location=str(checkpoint),
        )
        results = cluster.shutdown()
    passes = zip(results["worker 0"], results["worker 1"], strict=True)
    return [sorted(mine + other) for mine, other in passes]


def fitting() -> Callable[[Any, Any], Any]:
    """Return a ``main_fun`` that fits until the stream ends."""

    def main_fun(args: Any, ctx: Any) -> dict[str, list[float]]:
        import keras

        with ctx.strategy.scope():
            model = keras.Sequential([keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        history: dict[str, list[float]] = model.fit(ctx.dataset(), epochs=1000, verbose=0).history
        return history

    return main_fun


def test_fit_of_a_main_fun_ends_with_the_stream(spark: SparkSession, tmp_path: Path) -> None:
    write_files(spark, tmp_path / "rows", [30, 5])
    with TFCluster.run(spark, fitting(), None, 2) as cluster:
        stream = stream_of(spark, tmp_path / "rows").select("features", "label")
        cluster.train(stream, batch_size=8, trigger=NOW)
        results = cluster.shutdown()
    assert len(results["worker 0"]["loss"]) == 2
    assert results["worker 0"] == results["worker 1"]


def test_stream_that_was_stopped_goes_on_after_the_rows_that_were_trained_on(
    spark: SparkSession, tmp_path: Path
) -> None:
    sizes = [50, 20, 30, 10, 40]
    write_files(spark, tmp_path / "rows", sizes)
    before = micro_batches(spark, tmp_path / "rows", tmp_path / "checkpoint", stops=True)
    assert 1 <= len(before) < len(sizes), "the stop came after the first micro-batch"
    after = micro_batches(spark, tmp_path / "rows", tmp_path / "checkpoint", stops=False)
    ids = [i for ids in [*before, *after] for i in ids]
    assert sorted(ids) == list(range(sum(sizes))), "each row once over both runs"


QUIET_TIMEOUT_S = 10.0


def test_stream_that_is_quiet_waits_without_a_deadline_and_stops_when_told(
    spark: SparkSession, tmp_path: Path
) -> None:
    happened = {event: threading.Semaphore(0) for event in ("ready", "fed")}

    def observe(event: str, fields: Any) -> None:
        if event in happened:
            happened[event].release()

    def write_late() -> None:
        for _ in range(2):
            assert happened["ready"].acquire(timeout=60)
        threading.Event().wait(2 * QUIET_TIMEOUT_S)
        write_files(spark, tmp_path / "rows", [33])
        assert happened["fed"].acquire(timeout=60)
        cluster.stop_stream()

    cluster = TFCluster.run(spark, collecting_ids(), None, 2, feed_timeout=QUIET_TIMEOUT_S, observer=observe)
    writer = threading.Thread(target=write_late)
    with cluster:
        writer.start()
        cluster.train(stream_of(spark, tmp_path / "rows"), features=["id"], batch_size=8)
        writer.join()
        results = cluster.shutdown()
    assert sorted(results["worker 0"][0] + results["worker 1"][0]) == list(range(33))


def test_stream_whose_rows_change_their_shape_is_refused_with_the_shapes(
    spark: SparkSession, tmp_path: Path
) -> None:
    write_files(spark, tmp_path / "rows", [20])
    wider = df_with_partitions(spark, [20], num_features=5)
    wider.coalesce(1).write.mode("append").parquet(str(tmp_path / "rows"))
    with (
        pytest.raises(
            Exception, match=r"shape \[5\], those before it \[4\]|shape \[4\], those before it \[5\]"
        ),
        TFCluster.run(spark, dense, {"units": 2}, 1) as cluster,
    ):
        cluster.train(
            stream_of(spark, tmp_path / "rows").select("features", "label"), batch_size=4, trigger=NOW
        )
