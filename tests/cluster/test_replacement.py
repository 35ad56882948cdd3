"""A worker beside parameter servers is lost, and replaced while the remaining nodes continue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import pyarrow as pa
import pytest
from cluster.incarnations import Events
from cluster.programs import dense
from cluster.strikes import Strike, kill
from pyspark.sql import DataFrame, SparkSession
from support.driver import run_driver
from support.processes import last_json
from support.rows import df_with_partitions

from tfspark import TFCluster
from tfspark.errors import NodeFailedError

ROWS = [320, 160, 0, 160]
TOTAL = sum(ROWS)
BATCH = 64
NUM_SMALL = 20
COLUMNS = {"features": ["features"], "batch_size": BATCH}

LOSE_A_WORKER = """
    import json, sys, time
    from pyspark.sql import SparkSession
    from cluster.programs import counting
    from cluster.strikes import Strike
    from support.rows import df_with_partitions
    from support.trainers import node_task_of, trainers
    from tfspark import TFCluster

    TOTAL, EPOCHS = 2000, 2
    what, log_dir = sys.argv[1:]
    first = {}

    def strike():
        first.update(trainers())
        lost = first["worker 1"]
        java = [process for process in node_task_of(lost).parents() if process.name() == "java"][0]
        {"trainer": lost, "python": node_task_of(lost), "executor": java}[what].kill()

    def slowly(batches):
        import time
        for batch in batches:
            with open(f"{log_dir}/computed", "a") as file:
                file.write("x")
            time.sleep(0.25)
            yield batch

    spark = SparkSession.builder.getOrCreate()
    rows = df_with_partitions(spark, [50] * 40).select("id").mapInArrow(slowly, "id bigint")
    observer = Strike(strike, "step", epoch=1)
    # A forked trainer would replace it before the remaining worker has made a step that the test could count.
    options = {"observer": observer, "log_dir": log_dir, "warm": what != "trainer"}
    with TFCluster.run(spark, counting, {"rows": TOTAL}, 3, 1, **options) as cluster:
        history = cluster.train(rows, EPOCHS, features=["id"], label=None, batch_size=64)
        last = trainers()
        nodes = cluster.shutdown(export=["keras"])
    spark.stop()
    events = [(event, told) for event, told in observer.all if event not in ("log", "registered", "state")]
    print(json.dumps({
        "events": events,
        "same": [role for role, process in first.items() if last[role].pid == process.pid],
        "all": list(last),
        "rows": [nodes[name]["rows"] for name in ("chief 0", "worker 0", "worker 1")],
        "history": history,
        "iterations": nodes["chief 0"]["iterations"],
        "computed": len(open(f"{log_dir}/computed").read()),
    }))
"""


@pytest.mark.parametrize(
    ("what", "master"),
    [
        ("trainer", "local-cluster[2,2,1024]"),
        pytest.param("python", "local-cluster[2,2,1024]", marks=pytest.mark.slow),
        # Three nodes, and two slots for feed tasks: Spark gives the first free slot to the node.
        pytest.param(
            "executor",
            "local-cluster[5,1,1024]",
            id="executor, with no other node in it",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_worker_that_is_lost_in_mid_epoch_is_replaced_and_the_remaining_nodes_go_on(
    tmp_path: Path, what: str, master: str
) -> None:
    result = run_driver(master, LOSE_A_WORKER, what, str(tmp_path), timeout_s=480).check()
    told = last_json(result.stdout)
    names = [event for event, _ in told["events"]]
    assert [names.count(name) for name in ("reserved", "replacing", "replaced", "restarting")] == [1, 1, 1, 0]
    lost, back = names.index("replacing"), names.index("replaced")
    assert told["events"][lost][1]["node"] == "worker 1"
    # Counted from the first step, at which the worker is lost: Spark may take seconds to start its task again.
    steps = [fields["steps"] for event, fields in told["events"][:back] if event == "step"]
    assert len(steps) > 3, told["events"]
    assert steps == sorted(set(steps)), "worker 0 goes on meanwhile"
    assert sorted(told["same"]) == ["chief 0", "ps 0", "worker 0"]
    assert len(told["all"]) == 4
    of_chief, of_first, of_second = told["rows"]
    assert of_chief == [2000, 2000]
    assert [a + b for a, b in zip(of_first, of_second, strict=True)] == [2000, 2000]
    # Only partitions from which the lost worker had received rows, if any, are computed again for the first epoch.
    assert 2 * 40 <= told["computed"] <= 2 * 40 + 20
    assert len(told["history"]["loss"]) == 2
    (counts,) = keras.models.load_model(tmp_path / "export" / "model.keras", compile=False).get_weights()
    assert counts.min() >= 2 - 1e-4, "each row in each epoch"


def slowly(spark: SparkSession, seconds: float) -> DataFrame:
    """Return rows that take `seconds` to compute. Partitions are small, because each arrives as a whole."""
    pause_s = seconds / NUM_SMALL

    def slow(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            time.sleep(pause_s)
            yield batch

    rows = df_with_partitions(spark, [TOTAL // NUM_SMALL] * NUM_SMALL)
    return rows.mapInArrow(slow, rows.schema)


def test_worker_that_is_lost_between_epochs_is_replaced_without_spark(spark: SparkSession) -> None:
    observer = Strike(kill("worker", 1), "state", epoch=2, step=0)
    rows = df_with_partitions(spark, ROWS)
    with TFCluster.run(spark, dense, {"optimizer": "adam"}, 3, 1, observer=observer) as cluster:
        history = cluster.train(rows, 8, **COLUMNS, validation=rows)
        nodes = cluster.shutdown()
    assert [event["node"] for event in observer.of("replaced")] == ["worker 1"]
    assert observer.of("restarting") == []
    assert nodes["chief 0"]["rows"] == [TOTAL] * 8
    assert [event["rows_fed"] for event in observer.of("epoch")] == [TOTAL] * 8
    assert len(history["val_loss"]) == 8
    steps = sum(event["steps"] for event in observer.of("epoch"))
    assert nodes["chief 0"]["iterations"] >= steps


@pytest.mark.slow
def test_evaluation_in_which_a_worker_is_lost_counts_each_row_once(spark: SparkSession) -> None:
    events = Events()
    with TFCluster.run(spark, dense, {}, 3, 1, observer=events) as cluster:
        cluster.train(df_with_partitions(spark, ROWS), 1, **COLUMNS)
        undisturbed = cluster.evaluate(df_with_partitions(spark, ROWS), num_classes=2)
        strike = threading.Timer(2.0, kill("worker", 1))
        strike.start()
        metrics = cluster.evaluate(slowly(spark, 6.0), num_classes=2)
        strike.join()
    assert len(events.of("replaced")) == 1
    assert metrics["confusion_matrix"] == undisturbed["confusion_matrix"]
    assert metrics["loss"] == pytest.approx(undisturbed["loss"], rel=1e-5)
    assert events.of("restarting") == []


def test_worker_that_is_lost_more_often_than_restarts_are_allowed_ends_the_run(spark: SparkSession) -> None:
    class StrikeAgain(Strike):
        def __call__(self, event: str, fields: object) -> None:
            super().__call__(event, fields)  # type: ignore[arg-type]
            if event == "replaced":
                kill("worker", 1)()

    observer = StrikeAgain(kill("worker", 1), "step", epoch=1)
    with (
        pytest.raises(NodeFailedError) as caught,
        TFCluster.run(spark, dense, {}, 3, 1, observer=observer, max_restarts=1) as cluster,
    ):
        cluster.train(slowly(spark, 6.0), 5, **COLUMNS)
    assert caught.value.node == "worker 1"
    assert (
        "restart budget exhausted: max_restarts=1 within restart_window=3600 s" in caught.value.__notes__[0]
    )
    assert len(observer.of("replacing")) == 1
