"""Processes are lost at any moment, and training ends as if they had not been lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cluster.incarnations import Events
from cluster.programs import COLUMNS, counting, dense, with_state
from cluster.strikes import Strike, Strikes, kill
from cluster.trained import BATCH, EPOCHS, ROWS, Trained, train, uninterrupted
from pyspark.sql import SparkSession
from support.disks import small_disk
from support.driver import run_driver
from support.errors import raises
from support.processes import last_json
from support.rows import df_with_partitions, noting_partitions
from support.trainers import node_task_of, trainers

from tfspark import Feeding, InputMode, TFCluster, TFRecordFiles
from tfspark.cluster.state.checkpoint_store import CheckpointStore, newest_in
from tfspark.errors import ConfigError, NodeFailedError
from tfspark.feed.cache import FOLDER
from tfspark.tfrecord import register

__all__ = ["uninterrupted"]

STEPS = sum(ROWS) // BATCH
LAST_STEPS = (6, 9)
"""A process that is killed at the checkpoint of step 6 may already have sent its part of the checkpoint of step 9."""


def test_training_without_a_failure_is_the_same_with_and_without_checkpoints(
    spark: SparkSession, uninterrupted: Trained
) -> None:
    assert uninterrupted.iterations == EPOCHS * STEPS
    assert uninterrupted.rows == [sum(ROWS)] * EPOCHS
    assert train(spark, max_restarts=0) == uninterrupted


@pytest.mark.parametrize(
    ("strike", "event", "fields", "incarnations"),
    [
        pytest.param(
            kill(), "tensorflow", {"node": "worker 1"}, 2, id="before the first step", marks=pytest.mark.slow
        ),
        pytest.param(kill(), "state", {"epoch": 2, "step": 3}, 2, id="mid-epoch"),
        pytest.param(
            kill(index=0),
            "state",
            {"epoch": 1, "step": 9},
            2,
            id="mid-epoch, the chief",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            kill(), "state", {"epoch": 2, "step": 0}, 2, id="at the end of an epoch", marks=pytest.mark.slow
        ),
        pytest.param(
            kill(), "fed", {"stream": "evaluate-1"}, 2, id="during evaluation", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: node_task_of(trainers()["worker 1"]).kill(),
            "state",
            {"epoch": 1, "step": 6},
            2,
            id="Spark's Python worker, mid-epoch",
        ),
    ],
)
def test_training_when_a_process_is_lost_ends_as_if_it_had_not_been(
    spark: SparkSession,
    uninterrupted: Trained,
    strike: Callable[[], None],
    event: str,
    fields: dict[str, Any],
    incarnations: int,
) -> None:
    observer = Strike(strike, event, **fields)
    trained = train(spark, observer, checkpoint_every_steps=3)
    assert observer.struck_at
    assert len(observer.of("reserved")) == incarnations
    assert "worker" in observer.of("restarting")[0]["cause"]
    assert trained == uninterrupted


@pytest.mark.slow
def test_training_saves_its_state_at_intervals_and_before_a_preempted_worker_ends(
    spark: SparkSession,
) -> None:
    epochs = 16  # Training takes longer than the signal needs to arrive.
    events = Events()
    undisturbed = train(spark, events, epochs, checkpoint_every_seconds=0.5)
    assert {event["step"] for event in events.of("state")} > {0}

    def terminate() -> None:
        node_task_of(trainers()["worker 1"]).terminate()

    observer = Strike(terminate, "state", epoch=2, step=0)
    assert train(spark, observer, epochs, checkpoint_every_seconds=3600) == undisturbed
    (told,) = observer.of("restarting")
    assert told["cause"] == ("worker 1 on 127.0.0.1 failed: its Spark worker process received SIGTERM")
    names = [event for event, _ in observer.all if event in ("restarting", "state", "resumed")]
    assert names[names.index("restarting") - 1] == "state"
    assert names[names.index("restarting") + 1] == "resumed"


def test_training_when_a_trainer_is_stopped_and_not_resumed_restarts(
    spark: SparkSession, uninterrupted: Trained
) -> None:
    observer = Strike(lambda: trainers()["worker 1"].suspend(), "state", epoch=1, step=6)
    trained = train(spark, observer, checkpoint_every_steps=3, feed_timeout=40.0)
    (told,) = observer.of("restarting")
    assert told["cause"].startswith("worker 1 on 127.0.0.1 failed: its trainer process was not heard of for ")
    assert trained == uninterrupted


def test_training_when_a_process_is_lost_while_a_checkpoint_is_written_goes_on_from_a_complete_one(
    spark: SparkSession, uninterrupted: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, struck = CheckpointStore.place, []

    def place_and_strike(store: CheckpointStore, header: dict[str, Any]) -> Path:
        """Kill the worker that did not send the first part of the second checkpoint."""
        if header["steps"] == 6 and not struck:
            struck.append(header["rank"])
            kill(index=1 - header["rank"])()
        return place(store, header)

    monkeypatch.setattr(CheckpointStore, "place", place_and_strike)
    events = Events()
    trained = train(spark, events, checkpoint_every_steps=3)
    assert struck
    assert len(events.of("restarting")) == 1
    assert [event["step"] in (3, 6) for event in events.of("resumed")] == [True]
    assert trained == uninterrupted


def test_epoch_whose_last_step_was_saved_but_not_its_end_has_its_metrics_after_a_loss(
    spark: SparkSession, uninterrupted: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, events = CheckpointStore.add, Events()
    struck: list[int] = []

    def lose_the_end(store: CheckpointStore, header: dict[str, Any], *rest: Any) -> Any:
        """Store no part of the checkpoint after an epoch until nodes have been started again."""
        if header["steps"] or events.of("restarting"):
            return add(store, header, *rest)
        if not struck:
            struck.append(header["rank"])
            kill()()
        return None

    monkeypatch.setattr(CheckpointStore, "add", lose_the_end)
    assert STEPS % 5 == 0
    trained = train(spark, events, checkpoint_every_steps=5)
    assert struck
    assert [(event["epoch"], event["step"]) for event in events.of("resumed")] == [(1, STEPS)]
    assert trained == uninterrupted


@pytest.mark.slow
def test_shutdown_returns_the_same_when_a_process_is_lost_before_it(
    spark: SparkSession, uninterrupted: Trained, tmp_path: Path
) -> None:
    rows, events = df_with_partitions(spark, ROWS), Events()
    feeding = Feeding(ordered=True, shuffle_rows=2 * BATCH)
    with TFCluster.run(
        spark, with_state, {"num_classes": 2}, 2, observer=events, log_dir=str(tmp_path)
    ) as cluster:
        history = cluster.train(rows, EPOCHS, features=["features"], batch_size=BATCH, feeding=feeding)
        kill()()
        nodes = cluster.shutdown(export=["keras"])
    assert len(events.of("restarting")) == 1
    assert history == uninterrupted.history
    assert nodes["worker 0"]["weights_sha256"] == uninterrupted.weights
    assert nodes["worker 0"]["history"] == uninterrupted.history
    assert keras.models.load_model(tmp_path / "export" / "model.keras").count_params() > 0


def test_training_when_its_evaluator_is_lost_goes_on_with_another(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = df_with_partitions(spark, ROWS)
    observer = Strike(kill("evaluator", 0), "state", epoch=2, step=0)
    with TFCluster.run(
        spark, dense, {}, 3, eval_node=True, observer=observer, log_dir=str(tmp_path)
    ) as cluster:
        history = cluster.train(rows, 3, features=["features"], batch_size=BATCH, validation=rows)
        nodes = cluster.shutdown()
    (told,) = observer.of("restarting")
    assert told["cause"].startswith("evaluator 0")
    assert len(history["loss"]) == 3
    rows_of = [nodes[name]["rows"] for name in ("worker 0", "worker 1")]
    assert [sum(of_epoch) for of_epoch in zip(*rows_of, strict=True)] == [sum(ROWS)] * 3
    assert nodes["evaluator 0"]["history"]["val_loss"]


def test_step_that_does_not_end_is_reported_with_the_stacks_of_the_threads_and_repeated(
    spark: SparkSession, tmp_path: Path
) -> None:
    hangs_once = tmp_path / "hangs"
    hangs_once.touch()

    def build(params: Any) -> Any:
        import keras
        import tensorflow as tf

        def waits_for_ever(x: Any) -> Any:
            if os.environ["TF_CONFIG"].endswith('"index": 1}}') and hangs_once.exists():
                hangs_once.unlink()
                time.sleep(3600)
            return x

        inputs = keras.Input((4,))
        through = keras.layers.Lambda(
            lambda x: tf.ensure_shape(tf.py_function(waits_for_ever, [x], tf.float32), x.shape)
        )
        model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(through(inputs)))
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    events = Events()
    with TFCluster.run(spark, build, {}, 2, observer=events, feed_timeout=32.0) as cluster:
        history = cluster.train(
            df_with_partitions(spark, ROWS), EPOCHS, features=["features"], batch_size=BATCH
        )
    (told,) = events.of("restarting")
    assert "no trainer ended a step for " in told["cause"]
    lines = [line for event in events.of("log") if event["node"] == "worker 1" for line in event["lines"]]
    assert any("in waits_for_ever" in line for line in lines), lines
    assert len(history["loss"]) == EPOCHS


def test_rows_fed_as_they_come_are_each_trained_on_once_per_epoch(
    spark: SparkSession, tmp_path: Path
) -> None:
    """The weights count the rows; the killed worker had received more rows than it had trained on."""
    total = sum(ROWS)
    rows = df_with_partitions(spark, ROWS).select("id")
    observer = Strike(kill(), "state", epoch=1, step=6)
    feeding = Feeding(shuffle_rows=3 * BATCH)
    with TFCluster.run(
        spark,
        counting,
        {"rows": total},
        2,
        observer=observer,
        log_dir=str(tmp_path),
        checkpoint_every_steps=3,
        checkpoint_every_epochs=1,
        tls=True,
    ) as cluster:
        cluster.train(rows, 2, features=["id"], label=None, batch_size=BATCH, feeding=feeding)
        nodes = cluster.shutdown(export=["keras"])
    assert [event["step"] in LAST_STEPS for event in observer.of("resumed")] == [True]
    for epochs, path in ((1, "checkpoints/epoch-0001.keras"), (2, "export/model.keras")):
        (counts,) = keras.models.load_model(tmp_path / path, compile=False).get_weights()
        assert np.round(counts[:, 0], 3).tolist() == [epochs] * total
    assert [sum(node["rows"][epoch] for node in nodes.values()) for epoch in (0, 1)] == [total] * 2


@pytest.mark.parametrize("resumed", [False, True], ids=["in the same cluster", "in a new one"])
def test_fully_trained_partitions_are_not_computed_again(
    spark: SparkSession, tmp_path: Path, resumed: bool
) -> None:
    size, total = 2 * BATCH, 16 * BATCH
    computed, log_dir = tmp_path / "computed", tmp_path / "run"
    computed.mkdir()

    def note(batches: Iterator[Any]) -> Iterator[Any]:
        import uuid

        for batch in batches:
            partition = batch.column(0)[0].as_py() // size
            (computed / f"{partition} {uuid.uuid4()}").touch()
            yield batch

    before, whole = list[str](), list[int]()

    def look() -> None:
        before[:] = [path.name for path in computed.iterdir()]
        whole[:] = newest_in(log_dir / "checkpoints").fully_trained

    def look_and_kill() -> None:
        look()
        kill()()

    rows = df_with_partitions(spark, [size] * 8).select("id").mapInArrow(note, "id bigint")
    options: dict[str, Any] = {"checkpoint_every_steps": 3, "log_dir": str(log_dir)}
    if resumed:
        options["max_restarts"] = 0

    def run(**more: Any) -> None:
        with TFCluster.run(spark, counting, {"rows": total}, 2, **{**options, **more}) as cluster:
            cluster.train(rows, 1, features=["id"], label=None, batch_size=BATCH)
            cluster.shutdown(export=["keras"])

    strike = Strike(look_and_kill, "state", epoch=1, step=9)
    with contextlib.suppress(NodeFailedError):
        run(observer=strike)
    if resumed:
        look()  # The next checkpoint may have been saved before the process was gone.
        run(resume=str(log_dir))

    assert len(whole) > 1
    later = [path.name for path in computed.iterdir() if path.name not in before]
    assert later
    again = {int(name.split()[0]) for name in later}.intersection(whole)
    assert len(again) == resumed, "one shows the trainers of a new cluster what a row looks like"
    if resumed:
        so_far = set(computed.iterdir())
        run(resume=str(log_dir))  # Nothing is left to train.
        assert [path.name.split()[0] for path in set(computed.iterdir()) - so_far] == ["0"]
    (counts,) = keras.models.load_model(log_dir / "export/model.keras", compile=False).get_weights()
    assert np.round(counts[:, 0], 3).tolist() == [1] * total


def test_failure_of_the_users_code_is_raised_at_once_and_not_retried(spark: SparkSession) -> None:
    def build_wrongly(params: Any) -> Any:
        raise ValueError("the dog ate the layers")

    events = Events()
    with (
        raises(NodeFailedError, "the dog ate the layers"),
        TFCluster.run(spark, build_wrongly, {}, 2, observer=events) as cluster,
    ):
        cluster.train(df_with_partitions(spark, ROWS), 1, features=["features"])
    assert len(events.of("reserved")) == 1
    assert events.of("restarting") == []


def test_cluster_that_is_lost_again_and_again_gives_up_with_the_cause(spark: SparkSession) -> None:
    def build_and_die(params: Any) -> Any:
        os._exit(1)

    events = Events()
    with (
        pytest.raises(NodeFailedError) as caught,
        TFCluster.run(spark, build_and_die, {}, 2, max_restarts=1, observer=events) as cluster,
    ):
        cluster.train(df_with_partitions(spark, ROWS), 1, features=["features"])
    assert "exited with code 1 without reporting an error" in caught.value.cause
    assert (
        "restart budget exhausted: max_restarts=1 within restart_window=3600 s" in caught.value.__notes__[0]
    )
    assert len(events.of("reserved")) == 2


class Interrupted(Exception):
    """Ends the driver's program."""


@pytest.fixture(scope="module")
def interrupted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lose a run in its second epoch; return its directory."""
    log_dir = tmp_path_factory.mktemp("interrupted")
    with contextlib.suppress(NodeFailedError):
        train(
            spark,
            Strike(kill(), "state", epoch=2, step=6),
            log_dir=str(log_dir),
            checkpoint_every_steps=3,
            max_restarts=0,
        )
    return log_dir


def test_resumed_run_ends_as_if_the_first_run_had_not_been_interrupted(
    spark: SparkSession, uninterrupted: Trained, interrupted: Path, tmp_path: Path
) -> None:
    events = Events()
    trained = train(spark, events, resume=str(interrupted), log_dir=str(tmp_path), checkpoint_every_steps=3)
    assert [(event["epoch"], event["step"] in LAST_STEPS) for event in events.of("resumed")] == [(2, True)]
    assert [event["epoch"] for event in events.of("epoch")] == [2]
    assert trained == uninterrupted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"seed": 7}, ["seed 7, it has 0"], id="another seed"),
        pytest.param({"resume": "/nowhere"}, ["/nowhere/checkpoints", "found none"], id="no run directory"),
        pytest.param({"max_restarts": -1}, ["max_restarts >= 0", "-1"], id="negative restarts"),
        pytest.param(
            {"checkpoint_every_steps": -2}, ["checkpoint_every_steps >= 0", "-2"], id="negative steps"
        ),
        pytest.param(
            {"checkpoint_every_seconds": -0.5},
            ["checkpoint_every_seconds >= 0", "-0.5"],
            id="negative seconds",
        ),
    ],
)
def test_resuming_with_wrong_options_is_refused_with_what_is_wrong(
    spark: SparkSession, interrupted: Path, options: dict[str, Any], words: list[str]
) -> None:
    with raises(ConfigError, *words):
        train(spark, **{"resume": str(interrupted), **options})


def test_resuming_with_a_different_model_is_refused(spark: SparkSession, interrupted: Path) -> None:
    rows, feeding = df_with_partitions(spark, ROWS), Feeding(ordered=True, shuffle_rows=2 * BATCH)
    with (
        raises(NodeFailedError, "expected a checkpoint of this model", "shapes"),
        TFCluster.run(spark, dense, {}, 2, resume=str(interrupted)) as cluster,
    ):
        cluster.train(rows, EPOCHS, features=["features"], batch_size=BATCH, feeding=feeding)


def test_main_fun_with_fed_rows_is_refused_with_restarts_or_checkpoints(spark: SparkSession) -> None:
    def main_fun(args: Any, ctx: Any) -> None:
        del args, ctx

    with raises(
        ConfigError,
        "expected input_mode=InputMode.TENSORFLOW with max_restarts=1",
        "cannot tell which fed rows",
    ):
        TFCluster.run(spark, main_fun, {}, 1, max_restarts=1)
    with raises(ConfigError, "expected no checkpoint_every_steps", "ctx.checkpoint_dir"):
        TFCluster.run(spark, main_fun, {}, 1, input_mode=InputMode.TENSORFLOW, checkpoint_every_seconds=60)


def test_main_fun_that_reads_files_is_run_again_and_goes_on_from_its_own_checkpoints(
    spark: SparkSession, tmp_path: Path
) -> None:
    register(spark)
    rows = df_with_partitions(spark, ROWS).select("features", "label")
    rows.write.format("tfrecord").mode("append").save(str(tmp_path / "rows"))

    def main_fun(args: Any, ctx: Any) -> dict[str, Any]:
        import keras

        begun = []

        class SlowFourthEpoch(keras.callbacks.Callback):  # type: ignore[misc]
            """Slow down the fourth epoch: no process is killed while it writes its own checkpoint."""

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                begun.append(epoch)

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if begun[-1] == 3:
                    ctx.report("in_the_fourth", step=batch)
                    time.sleep(0.2)

        with ctx.strategy.scope():
            model = dense(args)
        if ctx.is_chief:
            ctx.report("begun", times=1)
        backup = keras.callbacks.BackupAndRestore(f"{ctx.checkpoint_dir}/worker-{ctx.task_index}")
        history = model.fit(ctx.dataset(), epochs=6, verbose=0, callbacks=[backup, SlowFourthEpoch()])
        return {"begun": begun, "loss": history.history["loss"]}

    observer = Strike(kill(), "in_the_fourth")
    with TFCluster.run(
        spark,
        main_fun,
        {},
        2,
        input_mode=InputMode.TENSORFLOW,
        checkpoint_dir=str(tmp_path / "own"),
        max_restarts=1,
        observer=observer,
    ) as cluster:
        cluster.train(TFRecordFiles(str(tmp_path / "rows"), COLUMNS), 6, batch_size=BATCH)
        nodes = cluster.shutdown()
    assert len(observer.of("restarting")) == 1
    assert len(observer.of("begun")) == 2
    # Without its own checkpoints it would have begun with epoch 0 again.
    assert nodes["worker 0"]["begun"] == nodes["worker 1"]["begun"] == [3, 4, 5]


def test_file_in_the_way_of_checkpoints_is_reported_and_training_goes_on(
    spark: SparkSession, uninterrupted: Trained, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    events = Events()
    trained = train(spark, events, log_dir=str(tmp_path), checkpoint_every_steps=3)
    assert str(tmp_path / "checkpoints") in events.of("state_not_kept")[0]["why"]
    assert events.of("state") == []
    assert trained == uninterrupted


@pytest.fixture
def disk_of_checkpoints(tmp_path: Path) -> Iterator[Path]:
    """A directory for checkpoints, on a disk with room for two pages of memory."""
    with small_disk(tmp_path / "checkpoints", "size=8k") as place:
        yield place


@pytest.mark.slow
def test_full_disk_is_reported_and_training_goes_on_and_starts_from_the_beginning_after_a_loss(
    spark: SparkSession, uninterrupted: Trained, disk_of_checkpoints: Path
) -> None:
    observer = Strike(kill(), "state_not_kept")
    trained = train(spark, observer, log_dir=str(disk_of_checkpoints.parent), checkpoint_every_steps=3)
    assert observer.of("state_not_kept")[0]["why"] == f"No space left on device: {disk_of_checkpoints}"
    assert list(disk_of_checkpoints.glob("state-*/manifest.json")) == []
    assert [told["cause"].split(" on ")[0] for told in observer.of("restarting")] == ["worker 1"]
    assert observer.of("resumed") == []  # There is no checkpoint: training starts from the beginning.
    assert trained == uninterrupted


@pytest.mark.parametrize(
    ("role", "index"),
    [
        pytest.param("worker", 0, marks=pytest.mark.slow),
        ("ps", 0),
        pytest.param("chief", 0, marks=pytest.mark.slow),
    ],
)
def test_training_on_parameter_servers_when_a_process_is_lost_goes_on_from_the_last_epoch(
    spark: SparkSession, role: str, index: int
) -> None:
    observer = Strike(kill(role, index), "state", epoch=2, step=0)
    rows = df_with_partitions(spark, ROWS)
    with TFCluster.run(spark, dense, {"optimizer": "adam"}, 3, 1, observer=observer) as cluster:
        history = cluster.train(rows, 3, features=["features"], batch_size=BATCH)
        nodes = cluster.shutdown()
    # The remaining processes may have ended the second epoch before the killed one was gone.
    assert [event["epoch"] in (2, 3) for event in observer.of("resumed")] == [True]
    assert len(history["loss"]) == 3
    assert nodes["chief 0"]["rows"] == [sum(ROWS)] * 3
    # If an epoch ended twice, its last event counts.
    steps = {event["epoch"]: event["steps"] for event in observer.of("epoch")}
    assert nodes["chief 0"]["iterations"] == sum(steps.values())


def test_training_when_the_nodes_are_lost_again_before_they_are_up_goes_on_from_the_last_epoch(
    spark: SparkSession,
) -> None:
    # The chief is up, and has not built the model.
    again = Strike(kill("chief", 0), "tensorflow", node="chief 0")
    observer = Strikes(Strike(kill("ps", 0), "state", epoch=2, step=0), again)
    rows = df_with_partitions(spark, ROWS)
    with TFCluster.run(spark, dense, {"optimizer": "adam"}, 3, 1, observer=observer) as cluster:
        history = cluster.train(rows, 3, features=["features"], batch_size=BATCH)
        nodes = cluster.shutdown()
    assert again.struck_at
    assert [told["cause"].split(" on ")[0] for told in observer.of("restarting")] == ["ps 0", "chief 0"]
    assert [event["epoch"] in (2, 3) for event in observer.of("resumed")] == [True]
    assert len(history["loss"]) == 3
    assert nodes["chief 0"]["rows"] == [sum(ROWS)] * 3


LOSE_AN_EXECUTOR = """
    import json, os, sys
    import psutil
    from pyspark.sql import SparkSession
    from cluster.programs import dense
    from cluster.strikes import Strike
    from support.trainers import node_task_of, trainers
    from support.rows import df_with_partitions, noting_partitions
    from tfspark import TFCluster
    from tfspark import Feeding

    def kill_executor():
        java = [p for p in node_task_of(trainers()["worker 1"]).parents() if p.name() == "java"]
        java[0].kill()

    spark = SparkSession.builder.getOrCreate()
    rows = df_with_partitions(spark, [320, 160, 0, 160])
    observer = Strike(kill_executor, "state", epoch=1, step=6)
    with TFCluster.run(spark, dense, {}, 2, observer=observer, checkpoint_every_steps=3) as cluster:
        cluster.train(rows, 2, features=["features"], batch_size=64, feeding=Feeding(ordered=True))
        nodes = cluster.shutdown()
    spark.stop()
    print(json.dumps({
        "causes": [told["cause"] for told in observer.of("restarting")],
        "resumed": observer.of("resumed"),
        "rows": [a + b for a, b in zip(nodes["worker 0"]["rows"], nodes["worker 1"]["rows"])],
        "iterations": nodes["worker 0"]["iterations"],
    }))
"""


DECOMMISSION_AN_EXECUTOR = LOSE_AN_EXECUTOR.replace(
    "java[0].kill()", "java[0].send_signal(signal.SIGPWR)"
).replace("import json", "import signal, json")


@pytest.mark.slow
def test_training_when_spark_decommissions_an_executor_saves_its_state_and_goes_on_with_another(
    tmp_path: Path,
) -> None:
    conf = {"spark.decommission.enabled": "true"}
    program = DECOMMISSION_AN_EXECUTOR.replace("rows, 2,", "rows, 24,")
    result = run_driver("local-cluster[2,2,1024]", program, conf=conf, timeout_s=360).check()
    told = last_json(result.stdout)
    (cause,) = told["causes"]
    assert "Spark decommissions its executor" in cause
    assert told["rows"] == [640] * 24
    assert told["iterations"] == 240


def test_training_when_an_executor_is_killed_goes_on_with_another(tmp_path: Path) -> None:
    result = run_driver("local-cluster[2,2,1024]", LOSE_AN_EXECUTOR, timeout_s=360).check()
    told = last_json(result.stdout)
    assert len(told["causes"]) == 1
    assert "worker 1" in told["causes"][0]
    # The trainer learns from its pipe that the executor is gone, and may have made some steps until then.
    assert [event["epoch"] for event in told["resumed"]] in ([1], [2])
    assert told["rows"] == [640, 640]
    assert told["iterations"] == 20


@pytest.mark.parametrize("is_lost", [False, True], ids=["files are there", "files are gone"])
def test_stored_rows_are_read_again_after_a_restart(
    spark: SparkSession, tmp_path: Path, is_lost: bool
) -> None:
    """A trainer is killed in an epoch that is read from stored rows; each row is used once in each epoch."""
    total, log = sum(ROWS), tmp_path / "computed"

    def strike() -> None:
        if is_lost:
            max(Path(directory, FOLDER).glob("*-1.arrow"), key=lambda path: path.stat().st_mtime_ns).unlink()
        trainers()["worker 1"].kill()

    directory = spark.sparkContext.range(1).map(lambda _: os.environ["SPARK_LOCAL_DIRS"]).first()
    rows = df_with_partitions(spark, ROWS)
    rows = rows.mapInArrow(noting_partitions(log), rows.schema).select("id")
    observer = Strike(strike, "state", epoch=2, step=3)
    with TFCluster.run(
        spark,
        counting,
        {"rows": total},
        2,
        observer=observer,
        log_dir=str(tmp_path),
        checkpoint_every_steps=3,
    ) as cluster:
        cluster.train(rows, 4, features=["id"], label=None, batch_size=BATCH, feeding=Feeding(cache="node"))
        cluster.shutdown(export=["keras"])
    assert observer.struck_at
    (resumed,) = observer.of("resumed")
    assert (resumed["epoch"], resumed["step"] > 0) == (2, True), (
        "stored rows have the same places as rows from Spark"
    )
    (counts,) = keras.models.load_model(tmp_path / "export/model.keras", compile=False).get_weights()
    assert np.round(counts[:, 0], 3).tolist() == [4] * total
    assert [event["found"] for event in observer.of("cache")] == [False, not is_lost]
    computed = log.read_text().split().count("0")
    # In the first epoch, the rest of the second, and the third if the nodes cannot read their stored rows.
    assert computed <= 2 + is_lost
