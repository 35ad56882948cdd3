"""A call ends with an exception that the program catches: the cluster still shuts down in order, and can export."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
from cluster.programs import dense, fit_as_users_do, with_state
from cluster.strikes import Strike, Strikes, kill
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from support.errors import raises
from support.processes import poll_until
from support.rows import df_with_partitions

from tfspark import TFCluster
from tfspark.errors import DataError, TfsparkError
from tfspark.training.build import weights_digest

FEATURES = ["features"]
CLASSES = {"num_classes": 3}


def rows_of(spark: SparkSession) -> DataFrame:
    return df_with_partitions(spark, [100, 100, 100])


def bad_at(rows: DataFrame, number: int) -> DataFrame:
    """Return rows; Spark cannot compute the row of this number."""
    return rows.withColumn("label", sf.expr(f"if(id = {number}, raise_error('no such label'), label)"))


def interrupt() -> None:
    """Send the program the signal of Ctrl-C."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def interrupt_here() -> None:
    """Interrupt at once, in an observer that the program's main thread calls: a signal may be delayed."""
    raise KeyboardInterrupt


def digest_of_export(log_dir: Path) -> str:
    """Return the digest of the exported model's weights."""
    return weights_digest(keras.models.load_model(next((log_dir / "export").rglob("*.keras"))))


@pytest.mark.parametrize("where", ["mid-epoch", "between epochs", "validation", "first epoch"])
def test_shutdown_after_an_interrupt_exports_the_weights_as_they_are(
    spark: SparkSession, tmp_path: Path, where: str
) -> None:
    rows, validation = rows_of(spark), rows_of(spark) if where == "validation" else None
    at = {
        "mid-epoch": Strike(interrupt, "state", epoch=2),
        "first epoch": Strike(interrupt, "state", epoch=1),
        "between epochs": Strike(interrupt, "epoch", epoch=1),
        "validation": Strike(interrupt, "fed", stream="train"),
    }[where]
    with TFCluster.run(
        spark, with_state, CLASSES, 2, log_dir=str(tmp_path), observer=at, checkpoint_every_steps=2
    ) as cluster:
        with pytest.raises(KeyboardInterrupt):
            cluster.train(rows, 200, features=FEATURES, validation=validation, batch_size=20)
        nodes = cluster.shutdown(export=["keras"])
    first, second = (nodes[f"worker {index}"] for index in range(2))
    assert first["weights_sha256"] == second["weights_sha256"] == digest_of_export(tmp_path)
    assert 0 < first["iterations"] < 200 * 15
    assert first["history"] == second["history"]


@pytest.mark.parametrize(
    ("event", "how"),
    [
        pytest.param("restarting", interrupt_here, id="before the restart"),
        *((event, interrupt) for event in ("restarting", "registered", "resumed")),
    ],
)
def test_shutdown_after_an_interrupt_of_a_restart_exports_the_weights_of_the_checkpoint(
    spark: SparkSession, tmp_path: Path, event: str, how: Callable[[], None]
) -> None:
    """Nothing is trained after the checkpoint, and each worker has restored its own state of BatchNormalization."""
    observer = Strikes(Strike(kill(), "state", epoch=2, step=2), Strike(how, event))
    with TFCluster.run(
        spark, with_state, CLASSES, 2, log_dir=str(tmp_path), observer=observer, checkpoint_every_steps=2
    ) as cluster:
        with pytest.raises(KeyboardInterrupt):
            cluster.train(rows_of(spark), 200, features=FEATURES, batch_size=20)
        nodes = cluster.shutdown(export=["keras"])
    first, second = (nodes[f"worker {index}"] for index in range(2))
    assert first["weights_sha256"] == second["weights_sha256"] == digest_of_export(tmp_path)
    assert 15 <= first["iterations"] < 200 * 15


@pytest.mark.parametrize("what", ["training", "evaluation", "no rows"])
def test_shutdown_after_an_error_in_the_data_exports_the_weights_as_they_are(
    spark: SparkSession, tmp_path: Path, what: str
) -> None:
    rows = rows_of(spark)
    bad = bad_at(rows, 299)
    with TFCluster.run(spark, with_state, CLASSES, 2, log_dir=str(tmp_path)) as cluster:
        cluster.train(rows, features=FEATURES)
        calls: dict[str, Callable[[], Any]] = {
            "training": lambda: cluster.train(bad, 3, features=FEATURES),
            "evaluation": lambda: cluster.evaluate(bad),
            "no rows": lambda: cluster.train(rows.where("id < 0"), 3, features=FEATURES),
        }
        with pytest.raises((PySparkException, DataError)):
            calls[what]()
        nodes = cluster.shutdown(export=["keras"])
    assert nodes["worker 0"]["weights_sha256"] == nodes["worker 1"]["weights_sha256"]
    assert nodes["worker 0"]["weights_sha256"] == digest_of_export(tmp_path)
    assert len(nodes["worker 0"]["history"]["loss"]) == 1


def test_cluster_can_begin_anew_after_its_training_was_broken_off(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows, at = rows_of(spark), Strike(interrupt, "epoch", epoch=1)
    with TFCluster.run(spark, dense, CLASSES, 2, observer=at, log_dir=str(tmp_path)) as cluster:
        with pytest.raises(KeyboardInterrupt):
            cluster.train(rows, 200, features=FEATURES)
        cluster.begin_anew(CLASSES, seed=1)
        history = cluster.train(rows, 2, features=FEATURES, validation=rows)
        assert len(history["val_loss"]) == 2
        nodes = cluster.shutdown(export=["keras"])
    assert nodes["worker 0"]["weights_sha256"] == digest_of_export(tmp_path)


def test_training_that_was_broken_off_before_its_first_row_is_not_exported(
    spark: SparkSession, tmp_path: Path
) -> None:
    bad = rows_of(spark).withColumn("label", sf.expr("raise_error('no such label')"))
    for export in ([], ["keras"]):
        with TFCluster.run(spark, dense, CLASSES, 2, log_dir=str(tmp_path)) as cluster:
            with pytest.raises(PySparkException):
                cluster.train(bad, 3, features=FEATURES)
            if export:
                with raises(
                    TfsparkError, "expected a model that was trained", "before its first row", "no such label"
                ):
                    cluster.shutdown(export=export)
            else:
                assert cluster.shutdown()["worker 1"]["history"] == {}


@pytest.mark.slow
def test_workers_that_wait_after_an_interrupt_do_not_reach_the_timeout_of_the_feed(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = rows_of(spark)
    at = Strike(interrupt, "epoch", epoch=1)
    with TFCluster.run(
        spark, dense, CLASSES, 2, feed_timeout=10, observer=at, log_dir=str(tmp_path)
    ) as cluster:
        with pytest.raises(KeyboardInterrupt):
            cluster.train(rows, 200, features=FEATURES)
        time.sleep(25)  # The user looks at the results so far.
        nodes = cluster.shutdown(export=["keras"])
    assert nodes["worker 0"]["weights_sha256"] == digest_of_export(tmp_path)


def test_interrupt_with_parameter_servers_exports_the_weights_as_they_are(
    spark: SparkSession, tmp_path: Path
) -> None:
    at = Strike(interrupt, "epoch", epoch=1)
    with TFCluster.run(spark, dense, CLASSES, 3, 1, log_dir=str(tmp_path), observer=at) as cluster:
        with pytest.raises(KeyboardInterrupt):
            cluster.train(rows_of(spark), 200, features=FEATURES)
        nodes = cluster.shutdown(export=["keras"])
    chief = next(result for result in nodes.values() if "weights_sha256" in (result or {}))
    assert chief["weights_sha256"] == digest_of_export(tmp_path)
    assert 1 <= len(chief["history"]["loss"]) < 200


def test_interrupt_of_a_training_with_an_evaluator_ends_the_evaluator_in_order(
    spark: SparkSession, tmp_path: Path
) -> None:
    at = Strike(interrupt, "epoch", epoch=2)
    with TFCluster.run(
        spark, dense, CLASSES, 3, log_dir=str(tmp_path), observer=at, eval_node=True
    ) as cluster:
        with pytest.raises(KeyboardInterrupt):
            cluster.train(rows_of(spark), 200, features=FEATURES, validation=rows_of(spark))
        nodes = cluster.shutdown(export=["keras"])
    assert nodes["worker 0"]["weights_sha256"] == digest_of_export(tmp_path)
    assert not list(tmp_path.glob("side-car/*"))
    assert len(nodes["evaluator 0"]["epochs"]) < 200


def test_main_fun_whose_training_is_broken_off_ends(spark: SparkSession) -> None:
    rows = bad_at(rows_of(spark), 299)
    with TFCluster.run(spark, fit_as_users_do, {"epochs": 3}, 2) as cluster:
        with pytest.raises(PySparkException):
            cluster.train(rows, 3, features=FEATURES)
        nodes = cluster.shutdown()
    assert nodes == {"worker 0": None, "worker 1": None}


@pytest.fixture(params=["PySpark's handler", "a notebook's handler"])
def handler_of_interrupts(spark: SparkSession, request: pytest.FixtureRequest) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if "notebook" in request.param:  # As IPython's kernel does for each cell.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handler_of_interrupts")
def test_interrupt_at_any_moment_ends_the_job_of_the_program_itself_and_no_node(
    spark: SparkSession,
) -> None:
    tracker = spark.sparkContext.statusTracker()

    def sleep(batches: Iterator[Any]) -> Iterator[Any]:
        time.sleep(120)
        yield from batches

    def interrupted_collect(after_s: float) -> None:
        threading.Timer(after_s, interrupt).start()
        spark.range(0, 1, 1, 1).mapInArrow(sleep, "id bigint").collect()

    rows = rows_of(spark)
    with TFCluster.run(spark, dense, CLASSES, 2) as cluster:
        cluster.train(rows, features=FEATURES)
        nodes = tracker.getActiveJobsIds()
        # Before the job has started, while it is planned, and while it runs.
        for after_s in (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 1.0):
            with pytest.raises(KeyboardInterrupt):
                interrupted_collect(after_s)
            poll_until(lambda: tracker.getActiveJobsIds() == nodes, 60)
            assert tracker.getActiveJobsIds() == nodes, f"interrupted after {after_s} s"
        cluster.train(rows, features=FEATURES)
        assert len(cluster.shutdown()["worker 0"]["history"]["loss"]) == 2


@pytest.mark.parametrize("times", [1, 2])
def test_interrupt_of_a_call_that_does_not_answer_closes_only_the_connection_of_this_call(
    spark: SparkSession, times: int
) -> None:
    """The first interrupt is delayed for some seconds, the second is not. Nodes wait in calls of different threads."""
    tracker, rows = spark.sparkContext.statusTracker(), rows_of(spark)
    with TFCluster.run(spark, dense, CLASSES, 2) as cluster:
        cluster.train(rows, features=FEATURES)
        nodes = tracker.getActiveJobsIds()
        for number in range(times):
            threading.Timer(0.5 + number, interrupt).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            spark._jvm.java.lang.Thread.sleep(300_000)
        assert time.monotonic() - began < 120
        cluster.train(rows, features=FEATURES)
        assert tracker.getActiveJobsIds() == nodes
        assert len(cluster.shutdown()["worker 0"]["history"]["loss"]) == 2
