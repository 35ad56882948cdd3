"""Workers that read TFRecord files themselves, and rows that Spark feeds beside them to evaluate each epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cluster.incarnations import Events
from cluster.programs import COLUMNS, dense, fit_as_users_do
from cluster.strikes import Strike, kill
from pyspark.sql import DataFrame, SparkSession
from support.errors import raises
from support.rows import df_with_partitions

from tfspark import Column, InputMode, TFCluster, TFRecordFiles
from tfspark.errors import ConfigError, DataError, ReservationError
from tfspark.tfrecord import list_files, register


def saved(rows: DataFrame, path: Path, compression: str = "none") -> str:
    """Write rows as TFRecords; return the path."""
    register(rows.sparkSession)
    columns = rows.select("features", "label")
    columns.write.format("tfrecord").option("compression", compression).mode("append").save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("sizes", "compression"),
    [
        pytest.param([70], "none", id="one file for two workers"),
        pytest.param([5, 61, 3, 28, 40], "gzip", id="more files than workers, uneven, gzip"),
    ],
)
def test_train_on_files_when_counts_are_uneven_reads_each_record_once(
    spark: SparkSession, tmp_path: Path, sizes: list[int], compression: str
) -> None:
    rows = df_with_partitions(spark, sizes)
    path = saved(rows, tmp_path / "rows", compression)
    assert len(list_files(path)) == len(sizes)
    total = sum(sizes)

    events = Events()
    cluster = TFCluster.run(spark, dense, {}, 2, input_mode=InputMode.TENSORFLOW, observer=events)
    with cluster:
        history = cluster.train(TFRecordFiles(path, COLUMNS, shuffle_rows=64), 2, batch_size=32)
        metrics = cluster.evaluate(rows)
        nodes = cluster.shutdown()

    workers = [nodes["worker 0"], nodes["worker 1"]]
    assert [sum(pair) for pair in zip(*(worker["rows"] for worker in workers), strict=True)] == [total] * 2
    steps = -(-((total + 1) // 2) // 16)
    assert [worker["iterations"] for worker in workers] == [2 * steps] * 2
    assert workers[0]["weights_sha256"] == workers[1]["weights_sha256"]
    assert len(history["loss"]) == 2
    assert metrics["loss"] > 0
    assert [fields["rows_fed"] for fields in events.of("epoch")] == [total] * 2


def test_validation_beside_files_is_evaluated_after_each_epoch(spark: SparkSession, tmp_path: Path) -> None:
    files = TFRecordFiles(saved(df_with_partitions(spark, [50, 30]), tmp_path / "rows"), COLUMNS)
    other = df_with_partitions(spark, [17, 0, 5])
    events = Events()
    with TFCluster.run(spark, dense, {}, 2, observer=events) as cluster:
        first = cluster.train(files, 2, batch_size=16, validation=other)
        after_first = cluster.evaluate(other)
        with pytest.raises(DataError, match="expected rows to feed"):
            cluster.evaluate(other.where("label < 0"))
        without = cluster.train(files, 1, batch_size=16)
        second = cluster.train(files, 1, batch_size=16, validation=other)
        after_second = cluster.evaluate(other)
        scaled = TFRecordFiles(files.path, replace(COLUMNS, features=(Column("features", scale=2.0),)))
        with raises(ConfigError, "expected the same columns", "run a new one"):
            cluster.train(scaled, 1, validation=other)

    assert set(first) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [len(values) for values in first.values()] == [2] * 4
    assert first["val_loss"][-1] == pytest.approx(after_first["loss"], rel=1e-6)
    assert set(without) == {"loss", "accuracy"}
    assert second["val_loss"] == pytest.approx([after_second["loss"]], rel=1e-6)
    fed = [fields["rows"] for fields in events.of("fed") if fields["stream"] == "validation"]
    assert fed == [22] * 3


def test_validation_beside_files_stops_training_early(spark: SparkSession, tmp_path: Path) -> None:
    files = TFRecordFiles(saved(df_with_partitions(spark, [40]), tmp_path / "rows"), COLUMNS)
    never_better = {"monitor": "val_loss", "patience": 1, "min_delta": 1e9}
    with TFCluster.run(spark, dense, {}, 1, callbacks={"early_stopping": never_better}) as cluster:
        history = cluster.train(files, 9, validation=df_with_partitions(spark, [20]))

    assert len(history["val_loss"]) == 2


def test_validation_beside_files_goes_on_in_the_next_incarnation(spark: SparkSession, tmp_path: Path) -> None:
    files = TFRecordFiles(saved(df_with_partitions(spark, [50, 30]), tmp_path / "rows"), COLUMNS)
    other = df_with_partitions(spark, [17, 5])

    def trained(observer: Events) -> dict[str, list[float]]:
        with TFCluster.run(spark, dense, {}, 2, observer=observer) as cluster:
            return cluster.train(files, 3, batch_size=16, validation=other)

    strike = Strike(kill(), "epoch", epoch=2)
    after_a_loss, undisturbed = trained(strike), trained(Events())
    assert len(strike.of("restarting")) == 1
    assert after_a_loss.keys() == undisturbed.keys()
    # Chance decides which worker evaluates which row, and so the order of the sum.
    for name, values in undisturbed.items():
        assert after_a_loss[name] == pytest.approx(values, rel=1e-5), name


def test_evaluator_validates_each_epoch_beside_files(spark: SparkSession, tmp_path: Path) -> None:
    files = TFRecordFiles(saved(df_with_partitions(spark, [40]), tmp_path / "rows"), COLUMNS)
    other = df_with_partitions(spark, [20, 6])
    with TFCluster.run(spark, dense, {}, 2, eval_node=True, log_dir=str(tmp_path / "run")) as cluster:
        history = cluster.train(files, 2, validation=other)
        metrics = cluster.evaluate(other)
        nodes = cluster.shutdown()

    assert set(history) == {"loss", "accuracy"}
    assert nodes["evaluator 0"]["epochs"] == [1, 2]
    assert nodes["evaluator 0"]["history"]["val_loss"][-1] == pytest.approx(metrics["loss"], rel=1e-6)


def test_validation_beside_files_when_no_slot_is_left_to_feed_it_says_so(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = df_with_partitions(spark, [40])
    files = TFRecordFiles(saved(rows, tmp_path / "rows"), COLUMNS)
    with (
        TFCluster.run(spark, dense, {}, 4, input_mode=InputMode.TENSORFLOW) as cluster,
        raises(ReservationError, "expected 5 task slots", "1 more to feed", "Spark has 4"),
    ):
        cluster.train(files, validation=rows)


def test_validation_beside_files_for_a_main_fun_says_who_reads_it(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = df_with_partitions(spark, [40])
    files = TFRecordFiles(saved(rows, tmp_path / "rows"), COLUMNS)
    cluster = TFCluster.run(spark, fit_as_users_do, {"epochs": 1}, input_mode=InputMode.TENSORFLOW)
    try:
        with raises(ConfigError, "expected no validation for a main_fun", "read them in main_fun"):
            cluster.train(files, validation=rows)
    finally:
        cluster.stop()
