"""`main_fun(args, ctx)` as users write it, and workers that read TFRecord files themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.incarnations import Events
from cluster.programs import COLUMNS, dense, fit_as_users_do
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import InputMode, TFCluster
from tfspark.feed.files import TFRecordFiles
from tfspark.tfrecord import register


def test_main_fun_when_it_fits_on_the_context_trains_all_epochs(spark: SparkSession, tmp_path: Path) -> None:
    events = Events()
    rows = df_with_partitions(spark, [60, 36]).select("features", "label")
    cluster = TFCluster.run(spark, fit_as_users_do, {"epochs": 3}, 2, log_dir=str(tmp_path), observer=events)
    with cluster:
        assert cluster.train(rows, 3) == {}, "shutdown returns the results of main_fun"
        nodes = cluster.shutdown()

    assert [nodes[f"worker {i}"]["who"] for i in range(2)] == [
        ["worker", 0, True, 2],
        ["worker", 1, False, 2],
    ]
    histories = [nodes[f"worker {i}"]["history"] for i in range(2)]
    assert histories[0] == histories[1]
    assert len(histories[0]["loss"]) == 3
    assert [fields["rows"] for fields in events.of("fed")] == [96] * 3
    trained = events.of("trained")
    assert {fields["node"] for fields in trained} == {"worker 0", "worker 1"}
    assert trained[0]["loss"] == histories[0]["loss"][-1]
    mine = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert mine == ["model.keras", "saved_model", "signature.json"]


def test_main_fun_when_it_fits_twice_goes_on_with_the_next_epoch(spark: SparkSession) -> None:
    def fit_twice(args: Any, ctx: Any) -> dict[str, Any]:
        with ctx.strategy.scope():
            model = dense(args)
        epochs = [len(model.fit(ctx.dataset(), epochs=n, verbose=0).history["loss"]) for n in (2, 1)]
        return {"epochs": epochs, "iterations": int(model.optimizer.iterations.numpy())}

    events, rows = Events(), df_with_partitions(spark, [64, 32]).select("features", "label")
    with TFCluster.run(spark, fit_twice, {}, 2, observer=events) as cluster:
        cluster.train(rows, 3, batch_size=32)
        nodes = cluster.shutdown()

    assert nodes["worker 0"]["epochs"] == [2, 1]
    assert nodes["worker 0"]["iterations"] == nodes["worker 1"]["iterations"] >= 3 * 3
    assert [fields["rows"] for fields in events.of("fed")] == [96] * 3


def test_main_fun_when_it_reads_files_trains_without_the_feed(spark: SparkSession, tmp_path: Path) -> None:
    register(spark)
    path = str(tmp_path / "rows")
    df_with_partitions(spark, [20, 30]).select("features", "label").write.format("tfrecord").mode(
        "append"
    ).save(path)

    cluster = TFCluster.run(
        spark,
        fit_as_users_do,
        {"epochs": 2},
        2,
        input_mode=InputMode.TENSORFLOW,
        log_dir=str(tmp_path / "log"),
    )
    with cluster:
        cluster.train(TFRecordFiles(path, COLUMNS), 2, batch_size=10)
        nodes = cluster.shutdown()

    assert [nodes[f"worker {i}"]["iterations"] for i in range(2)] == [2 * 5] * 2
