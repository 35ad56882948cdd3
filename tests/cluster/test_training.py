"""`TFCluster` with a `build_model` function, on ``local[4]``: what is trained, reported and exported."""

from __future__ import annotations

from pathlib import Path

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
from cluster.programs import dense, with_state
from pyspark.sql import SparkSession
from support.errors import raises
from support.leaks import Owned
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def results(spark: SparkSession, owned: Owned, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Let two workers train a model with BatchNormalization and Dropout; refused evaluations leave no trace."""
    log_dir, events = tmp_path_factory.mktemp("run"), Events()
    rows = df_with_partitions(spark, TRAIN_ROWS, num_classes=CLASSES)
    other = df_with_partitions(spark, EVALUATION_ROWS, num_classes=CLASSES)
    params = {"num_classes": CLASSES}
    columns = {"features": ["features"], "num_classes": CLASSES, "batch_size": 32}
    with leaving_nothing(spark, owned):
        cluster = TFCluster.run(
            spark,
            with_state,
            params,
            2,
            log_dir=str(log_dir),
            checkpoint_every_epochs=2,
            seed=3,
            observer=events,
        )
        with cluster:
            first = cluster.train(rows, 2, **columns, validation=other)
            second = cluster.train(rows, 1, **columns, validation=other)
            with raises(DataError, "expected rows to feed", "has none"):
                cluster.evaluate(other.where("label < 0"), num_classes=CLASSES)
            with raises(ConfigError, "num_classes <= 2000", "got 2001", "leave it out"):
                cluster.evaluate(other, num_classes=2001)
            metrics = cluster.evaluate(other, num_classes=CLASSES)
            summaries = cluster.shutdown(export=["keras", "saved_model"])
    return Results(first, second, metrics, summaries, events, log_dir)


def test_shutdown_after_training_finds_identical_weights_on_all_workers(results: Results) -> None:
    digests = [worker["weights_sha256"] for worker in results.workers]
    assert len(digests[0]) == 64
    assert digests[0] == digests[1]


def test_iterations_after_three_epochs_equal_the_steps_taken(results: Results) -> None:
    steps = [epoch["steps"] for epoch in results.events.of("epoch")]
    # A worker that pulled more rows than the other takes more steps than an even division would.
    assert all(step >= -(-sum(TRAIN_ROWS) // 32) for step in steps)
    assert [worker["iterations"] for worker in results.workers] == [sum(steps)] * 2


def test_rows_of_every_epoch_are_all_rows(results: Results) -> None:
    assert [epoch["rows_fed"] for epoch in results.events.of("epoch")] == [sum(TRAIN_ROWS)] * 3
    per_epoch = zip(*(worker["rows"] for worker in results.workers), strict=True)
    assert [sum(rows) for rows in per_epoch] == [sum(TRAIN_ROWS)] * 3


def test_history_of_two_trainings_continues(results: Results) -> None:
    names = {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert set(results.first) == set(results.second) == names
    assert len(results.first["loss"]) == 2
    assert len(results.second["loss"]) == 1
    for worker in results.workers:
        assert worker["history"] == {name: results.first[name] + results.second[name] for name in names}
    assert [epoch["epoch"] for epoch in results.events.of("epoch")] == [1, 2, 3]


def test_validation_of_the_last_epoch_equals_an_evaluation_of_the_same_rows(results: Results) -> None:
    assert results.second["val_loss"][-1] == pytest.approx(results.metrics["loss"], rel=1e-6)
    assert results.second["val_accuracy"][-1] == pytest.approx(results.metrics["accuracy"], rel=1e-6)


def test_confusion_matrix_counts_every_row_under_its_true_class(results: Results) -> None:
    matrix = results.metrics["confusion_matrix"]
    assert [sum(row) for row in matrix] == [21, 21, 21]
    right = sum(matrix[i][i] for i in range(CLASSES))
    assert right / sum(EVALUATION_ROWS) == pytest.approx(results.metrics["accuracy"], rel=1e-6)


def test_roc_of_each_class_goes_from_none_to_all(results: Results) -> None:
    assert [(curve[0], curve[-1]) for curve in results.metrics["roc"]] == [([0, 0], [1, 1])] * CLASSES


def test_log_dir_after_a_run_holds_logs_checkpoints_and_the_export(results: Results) -> None:
    assert (results.log_dir / "logs/worker-0.log").is_file()
    assert [path.name for path in (results.log_dir / "checkpoints").glob("*.keras")] == ["epoch-0002.keras"]
    exported = sorted(path.name for path in (results.log_dir / "export").iterdir())
    assert exported == ["model.keras", "saved_model", "signature.json"]


def test_observer_is_called_for_the_phases(results: Results) -> None:
    assert results.events.of("reserved")[0]["nodes"] == 2
    assert {fields["node"] for fields in results.events.of("tensorflow")} == {"worker 0", "worker 1"}
    assert results.events.of("checkpoint") == [{"node": "worker 0", "epoch": 2, "name": "epoch-0002.keras"}]


def test_export_loads_in_plain_keras_and_gives_the_same_metrics(results: Results, tmp_path: Path) -> None:
    rows = save_rows(tmp_path / "rows.npz", sum(EVALUATION_ROWS), CLASSES)

    plain = plain_keras(EVALUATE, results.log_dir / "export", rows)

    assert plain["loss"] == pytest.approx(results.metrics["loss"], abs=1e-5)
    assert plain["accuracy"] == pytest.approx(results.metrics["accuracy"], abs=1e-5)
    assert plain["apart"] < 1e-5
    assert plain["iterations"] == results.workers[0]["iterations"], "it can be trained further"


SINGLE_PROCESS = """
import json, sys
import keras, numpy as np
from cluster.programs import dense
rows = np.load(sys.argv[2])
keras.utils.set_random_seed(7)
model = dense({"optimizer": sys.argv[3]})
start = [value.copy() for value in model.get_weights()]
history = model.fit(rows["x"], rows["y"], batch_size=32, epochs=3, shuffle=False, verbose=0).history
cluster = keras.saving.load_model(sys.argv[1] + "/model.keras")
pairs = list(zip(model.get_weights(), cluster.get_weights(), start))
apart = max(float(np.max(np.abs(a - b) / (np.abs(a) + 1e-3))) for a, b, _ in pairs)
moved = min(float(np.max(np.abs(a - c))) for a, _, c in pairs)
print(json.dumps({"apart": apart, "moved": moved, "history": history}))
"""


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_workers_reach_the_weights_of_a_single_process(
    spark: SparkSession, tmp_path: Path, optimizer: str
) -> None:
    rows = df_with_partitions(spark, [320])
    cluster = TFCluster.run(spark, dense, {"optimizer": optimizer}, 2, log_dir=str(tmp_path), seed=7)
    with cluster:
        history = cluster.train(rows, 3, features=["features"], batch_size=32, feeding=Feeding(ordered=True))
        cluster.shutdown(export=["keras"])

    plain = plain_keras(SINGLE_PROCESS, tmp_path / "export", save_rows(tmp_path / "r.npz", 320), optimizer)

    assert plain["moved"] > 1e-3, "a model that did not learn proves nothing"
    assert plain["apart"] < 1e-4
    assert history["loss"] == pytest.approx(plain["history"]["loss"], rel=1e-4)


def test_history_when_workers_fill_up_batches_counts_real_rows_only(spark: SparkSession) -> None:
    rows = df_with_partitions(spark, [37, 3])
    with TFCluster.run(spark, dense, {"rate": 1e-30}, 2) as cluster:
        history = cluster.train(rows, 1, features=["features"])
        metrics = cluster.evaluate(rows)

    # A model that learns nothing has the same loss while it is trained as when it is evaluated.
    assert history["loss"][0] == pytest.approx(metrics["loss"], rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(metrics["accuracy"], rel=1e-5)


def test_train_when_early_stopping_is_due_returns_early(spark: SparkSession) -> None:
    events = Events()
    rows = df_with_partitions(spark, [40, 40]).select("features", "label")
    stopping = {"early_stopping": {"monitor": "loss", "patience": 1, "min_delta": 1e9}}
    with TFCluster.run(spark.sparkContext, dense, {}, 2, callbacks=stopping, observer=events) as cluster:
        history = cluster.train(rows.rdd, 6)
        metrics = cluster.evaluate(rows)
        with pytest.raises(ConfigError, match="expected the same columns, batch_size and feeding"):
            cluster.train(rows, 1, batch_size=16)

    assert len(history["loss"]) == 2
    assert 2 <= len([fields for fields in events.of("fed") if fields["stream"] == "train"]) < 6
    assert metrics["loss"] > 0


def test_train_on_a_single_worker_weighs_classes(spark: SparkSession) -> None:
    rows = df_with_partitions(spark, [64, 33])
    with TFCluster.run(spark, dense, {"rate": 1.0}) as cluster:
        cluster.train(rows, 8, features=["features"], num_classes=2, class_weights={0: 0.0, 1: 1.0})
        matrix = cluster.evaluate(rows, num_classes=2)["confusion_matrix"]
        nodes = cluster.shutdown()

    # The model does not learn a class of weight 0, although half of the rows have it.
    assert matrix == [[0, 49], [0, 48]]
    assert nodes["worker 0"]["rows"] == [97] * 8
    assert nodes["worker 0"]["iterations"] == 8 * 4


def test_evaluator_validates_each_epoch_while_the_worker_trains(spark: SparkSession, tmp_path: Path) -> None:
    events = Events()
    rows, other = df_with_partitions(spark, [64]), df_with_partitions(spark, [30, 5])
    cluster = TFCluster.run(spark, dense, {}, 2, eval_node=True, log_dir=str(tmp_path), observer=events)
    with cluster:
        history = cluster.train(rows, 3, features=["features"], validation=other)
        metrics = cluster.evaluate(other)
        nodes = cluster.shutdown()

    assert set(history) == {"loss", "accuracy"}, "the worker itself does not validate"
    assert nodes["evaluator 0"]["epochs"] == [1, 2, 3]
    validated = nodes["evaluator 0"]["history"]
    assert set(validated) == {"val_loss", "val_accuracy"}
    assert [len(values) for values in validated.values()] == [3, 3]
    assert validated["val_loss"][-1] == pytest.approx(metrics["loss"], rel=1e-6)
    assert [fields["epoch"] for fields in events.of("validation")] == [1, 2, 3]
    assert not (tmp_path / "side-car").exists(), "weights that were evaluated are removed"
