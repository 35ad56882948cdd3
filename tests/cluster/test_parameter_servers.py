"""`TFCluster` with parameter servers: what is trained, reported and exported, and the loss of a process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.incarnations import (
    CLASSES,
    EVALUATE,
    EVALUATION_ROWS,
    TRAIN_ROWS,
    Events,
    Results,
    leaving_nothing,
    plain_keras,
    save_rows,
)
from cluster.programs import TOLD_S, accumulating, dense, save_drawn_rows, saving_callbacks, say, with_state
from pyspark.sql import SparkSession
from support.driver import run_driver
from support.leaks import Owned
from support.processes import last_json
from support.rows import df_with_partitions
from support.trainers import node_task_of, trainers

from tfspark import Column, Columns, Feeding, InputMode, TFCluster, TFRecordFiles, tfrecord
from tfspark.errors import ConfigError, DataError, NodeFailedError
from tfspark.protocol.settings import Hooks


@pytest.fixture(scope="module")
def results(spark: SparkSession, owned: Owned, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Let two workers and a parameter server train a model with BatchNormalization and Dropout."""
    log_dir, events = tmp_path_factory.mktemp("ps"), Events()
    rows = df_with_partitions(spark, TRAIN_ROWS, num_classes=CLASSES)
    other = df_with_partitions(spark, EVALUATION_ROWS, num_classes=CLASSES)
    columns = {"features": ["features"], "num_classes": CLASSES, "batch_size": 32}
    hooks = Hooks(draw=save_drawn_rows)
    settings = {
        "log_dir": str(log_dir),
        "checkpoint_every_epochs": 2,
        "seed": 3,
        "observer": events,
        "hooks": hooks,
    }
    with leaving_nothing(spark, owned):
        cluster = TFCluster.run(
            spark, with_state, {"num_classes": CLASSES}, num_executors=3, num_ps=1, **settings
        )
        with cluster:
            first = cluster.train(rows, 2, **columns, validation=other)
            second = cluster.train(rows, 1, **columns, validation=other)
            metrics = cluster.evaluate(other, num_classes=CLASSES)
            summaries = cluster.shutdown(export=["keras", "saved_model"])
    return Results(first, second, metrics, summaries, events, log_dir)


def test_rows_to_draw_are_those_of_the_evaluation_and_the_model_is_the_trained_one(
    results: Results, spark: SparkSession
) -> None:
    shown = np.load(results.log_dir / "pictures" / "shown.npz")
    rows = (
        df_with_partitions(spark, EVALUATION_ROWS, num_classes=CLASSES).select("features", "label").collect()
    )
    assert sorted(zip(shown["x"].tolist(), shown["y"].tolist(), strict=True)) == sorted(
        (row.features, row.label) for row in rows
    )
    right = np.mean(shown["scores"].argmax(-1) == shown["y"])
    assert right == pytest.approx(results.metrics["accuracy"], rel=1e-6)


def test_iterations_after_three_epochs_equal_the_steps_done(results: Results) -> None:
    steps = [epoch["steps"] for epoch in results.events.of("epoch")]
    assert all(step >= -(-sum(TRAIN_ROWS) // 16) for step in steps), "each worker takes 16 rows in a step"
    assert results.summaries["chief 0"]["iterations"] == sum(steps)


def test_rows_of_every_epoch_are_all_rows(results: Results) -> None:
    assert [epoch["rows_fed"] for epoch in results.events.of("epoch")] == [sum(TRAIN_ROWS)] * 3
    assert results.summaries["chief 0"]["rows"] == [sum(TRAIN_ROWS)] * 3
    per_epoch = zip(*(worker["rows"] for worker in results.workers), strict=True)
    assert [sum(rows) for rows in per_epoch] == [sum(TRAIN_ROWS)] * 3


def test_history_of_two_trainings_continues(results: Results) -> None:
    names = {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert set(results.first) == set(results.second) == names
    assert len(results.first["loss"]) == 2
    assert len(results.second["loss"]) == 1
    chief = results.summaries["chief 0"]
    assert chief["history"] == {name: results.first[name] + results.second[name] for name in names}


def test_validation_of_the_last_epoch_equals_an_evaluation_of_the_same_rows(results: Results) -> None:
    assert results.second["val_loss"][-1] == pytest.approx(results.metrics["loss"], rel=1e-5)
    matrix = results.metrics["confusion_matrix"]
    assert [sum(row) for row in matrix] == [21, 21, 21]
    right = sum(matrix[i][i] for i in range(CLASSES))
    assert right / sum(EVALUATION_ROWS) == pytest.approx(results.metrics["accuracy"], rel=1e-6)
    assert [(curve[0], curve[-1]) for curve in results.metrics["roc"]] == [([0, 0], [1, 1])] * CLASSES


def test_export_loads_in_plain_keras_and_gives_the_same_metrics(results: Results, tmp_path: Path) -> None:
    rows = save_rows(tmp_path / "rows.npz", sum(EVALUATION_ROWS), CLASSES)

    plain = plain_keras(EVALUATE, results.log_dir / "export", rows)

    assert plain["loss"] == pytest.approx(results.metrics["loss"], abs=1e-5)
    assert plain["apart"] < 1e-5
    assert plain["iterations"] == results.summaries["chief 0"]["iterations"], "it can be trained further"
    assert [path.name for path in (results.log_dir / "checkpoints").glob("*.keras")] == ["epoch-0002.keras"]


def test_train_with_callbacks_and_files_stops_early(spark: SparkSession, tmp_path: Path) -> None:
    tfrecord.register(spark)
    df_with_partitions(spark, [40, 30]).write.format("tfrecord").mode("append").save(str(tmp_path / "rows"))
    files = TFRecordFiles(str(tmp_path / "rows"), Columns((Column("features"),), Column("label")))
    callbacks = {
        "early_stopping": {
            "monitor": "val_loss",
            "patience": 2,
            "min_delta": 1e9,
            "restore_best_weights": True,
        },
        "reduce_lr_on_plateau": {"monitor": "loss", "patience": 0, "min_delta": 1e9},
    }
    cluster = TFCluster.run(
        spark, dense, {}, 3, 1, input_mode=InputMode.TENSORFLOW, callbacks=callbacks, learning_rate=0.1
    )
    with cluster:
        history = cluster.train(files, 6, batch_size=16, validation=df_with_partitions(spark, [9, 4]))
        nodes = cluster.shutdown()

    assert len(history["loss"]) == len(history["val_loss"]) == 3
    assert history["learning_rate"] == pytest.approx([0.1, 0.1, 0.01])
    assert nodes["chief 0"]["rows"] == [70] * 3
    assert [nodes[f"worker {i}"]["rows"] for i in range(2)] == [[35] * 3] * 2
    assert nodes["chief 0"]["iterations"] == 3 * 2 * 5, "two workers of 35 rows, 8 at a time"


def test_evaluator_and_callbacks_of_the_user_see_each_epoch(spark: SparkSession, tmp_path: Path) -> None:
    log_dir, mine = tmp_path / "run", tmp_path / "mine"
    rows = df_with_partitions(spark, [64])
    hooks = Hooks(callbacks=saving_callbacks)
    cluster = TFCluster.run(
        spark, dense, {"directory": str(mine)}, 3, 1, eval_node=True, log_dir=str(log_dir), hooks=hooks
    )
    with cluster:
        cluster.train(rows, 2, features=["features"], validation=rows)
        metrics = cluster.evaluate(rows)
        nodes = cluster.shutdown()

    validated = nodes["evaluator 0"]["history"]
    assert validated["val_loss"][-1] == pytest.approx(metrics["loss"], rel=1e-5)
    assert sorted(path.name for path in mine.glob("*.keras")) == ["1.keras", "2.keras"]
    assert list(mine.glob("board/train/events.*"))


def test_parameter_server_when_killed_while_training_is_named(spark: SparkSession, owned: Owned) -> None:
    with leaving_nothing(spark, owned):
        error, told_after_s = killed_while_training(spark, "ps", 0)

    assert error.node == "ps 0"
    assert "killed by SIGKILL" in error.cause
    assert told_after_s < TOLD_S, f"{told_after_s:.1f} s"


def test_worker_when_killed_while_training_is_named(spark: SparkSession, owned: Owned) -> None:
    with leaving_nothing(spark, owned):
        error, told_after_s = killed_while_training(spark, "worker", 1)

    assert error.node == "worker 1"
    assert "killed by SIGKILL" in error.cause
    assert told_after_s < TOLD_S, f"{told_after_s:.1f} s"


def killed_while_training(spark: SparkSession, role: str, index: int) -> tuple[NodeFailedError, float]:
    """Kill one trainer at the first step; return the driver's error, and the seconds from the kill to it."""
    killed_at = 0.0

    def kill(event: str, fields: dict[str, Any]) -> None:
        nonlocal killed_at
        if event == "step" and not killed_at:
            killed_at = time.monotonic()
            os.kill(trainers()[f"{role} {index}"].pid, signal.SIGKILL)

    rows = df_with_partitions(spark, [20_000])
    with (
        pytest.raises(NodeFailedError) as caught,
        TFCluster.run(spark, dense, {}, 3, 1, max_restarts=0, observer=kill) as cluster,
    ):
        cluster.train(rows, 50, features=["features"])
    return caught.value, time.monotonic() - killed_at


def test_row_that_is_not_as_declared_is_a_data_error(spark: SparkSession) -> None:
    rows = df_with_partitions(spark, [10]).selectExpr("features", "if(id = 7, 5, label) AS label")
    with (
        pytest.raises(DataError, match=r"row 7: .*5"),
        TFCluster.run(spark, dense, {}, 2, 1) as cluster,
    ):
        cluster.train(rows, features=["features"], num_classes=2)


def test_run_when_the_model_cannot_be_trained_says_why_before_training(spark: SparkSession) -> None:
    with pytest.raises(NodeFailedError, match="without gradient_accumulation_steps") as caught:
        TFCluster.run(spark, accumulating, {}, 2, 1)
    assert caught.value.node == "chief 0"


def test_parameter_servers_on_the_drivers_machine_need_no_slots(spark: SparkSession, owned: Owned) -> None:
    rows = df_with_partitions(spark, [64, 32])
    node_tasks: dict[str, int] = {}
    # Four slots: five nodes and the feed would not fit.
    with TFCluster.run(spark, dense, {}, 5, 2, driver_ps_nodes=True) as cluster:
        cluster.train(rows, 1, features=["features"], batch_size=48)
        node_tasks = {node: node_task_of(process).pid for node, process in trainers().items()}
        history = cluster.train(rows, 2, features=["features"], batch_size=48)
        nodes = cluster.shutdown()
    assert [node_tasks["ps 0"], node_tasks["ps 1"]] == [os.getpid()] * 2
    assert node_tasks["worker 0"] != os.getpid()
    assert len(history["loss"]) == 2
    assert nodes["chief 0"]["rows"] == [96] * 3


def test_run_with_a_main_fun_and_parameter_servers_is_refused(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"expected build_model\(params\) with num_ps=1, got a main_fun"):
        TFCluster.run(spark, say, "wait", 2, 1)


def test_train_with_ordered_feeding_and_parameter_servers_is_refused(spark: SparkSession) -> None:
    with (
        pytest.raises(ConfigError, match=r"expected FeedOptions\(ordered=False\) with num_ps > 0"),
        TFCluster.run(spark, dense, {}, 2, 1) as cluster,
    ):
        cluster.train(df_with_partitions(spark, [8]), feeding=Feeding(ordered=True))


WITH_A_PARAMETER_SERVER = """
    import json
    from pyspark.sql import SparkSession
    from support.rows import df_with_partitions
    from cluster.programs import dense
    from tfspark import TFCluster, tfrecord

    spark = SparkSession.builder.getOrCreate()
    tfrecord.register(spark)
    rows = df_with_partitions(spark, [150, 50]).select("features", "label")
    rows.write.format("tfrecords").mode("append").save("train.tfrecords")

    def build_model():
        return dense({})

    train_df = spark.read.format("tfrecords").load("train.tfrecords")
    cluster = TFCluster.run(spark, build_model, num_executors=2, num_ps=1)
    history = cluster.train(train_df, num_epochs=10)
    nodes = cluster.shutdown()
    print(json.dumps({"loss": history["loss"], "nodes": nodes}))
    spark.stop()
"""


@pytest.mark.parametrize(
    "master", ["local[3]", pytest.param("local-cluster[2,2,1024]", marks=pytest.mark.slow)]
)
def test_program_with_a_parameter_server_trains_on_tfrecords_in_a_separate_driver(master: str) -> None:
    result = run_driver(master, WITH_A_PARAMETER_SERVER, timeout_s=480).check()

    told = last_json(result.stdout)
    assert len(told["loss"]) == 10
    assert told["nodes"]["worker 0"]["rows"] == [200] * 10
    assert told["nodes"]["chief 0"]["iterations"] == 10 * 7
