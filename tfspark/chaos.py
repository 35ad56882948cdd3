"""Cause failures on purpose, to test what a cluster survives: ``tfspark chaos``.

For each fault a small model is trained with two workers. In the middle of the first epoch the second worker causes the
fault in itself, or in the processes above it. The result is compared with that of the same training without a fault. A
worker causes the faults, so no access to the executors' machines is needed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from tfspark.cluster.inputs import FeedOptions
from tfspark.cluster.tfcluster import TFCluster
from tfspark.errors import ConfigError, TfsparkError
from tfspark.node.warm import node_task_of_this_trainer
from tfspark.protocol.settings import Hooks

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ROWS, BATCH_SIZE, EPOCHS, PARTITIONS = 1280, 64, 2, 4
FAULT_STEP, FAULTY_WORKER = 10, 1
SLOW_S, SLOW_STEPS = 0.5, 10
CHAOS = "tfspark chaos"
"""Message of the deliberate exception."""


@dataclass(frozen=True)
class Fault:
    """One kind of failure.

    Attributes:
        what: description.
        strike: causes it, within the trainer.
        restarts: expected number of restarts.
        is_told: whether the run should end with an error that names it instead.
        needs_executor: whether it needs an executor that is not the driver's process.
    """

    what: str
    strike: Callable[[], None]
    restarts: int = 1
    is_told: bool = False
    needs_executor: bool = False


def _raise() -> None:
    raise RuntimeError(f"{CHAOS}: an exception in the model's code")


def _slow() -> None:
    time.sleep(SLOW_S)


def _kill_executor() -> None:
    """Kill the executor's JVM, the nearest one above the node task."""
    pid = node_task_of_this_trainer()
    while _stat(pid)[0] != "java":
        pid = _stat(pid)[1]
    os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[str, int]:
    """Return a process's name and its parent; see proc(5)."""
    head, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    return head.partition("(")[2], int(rest.split()[1])


FAULTS = {
    "exception": Fault("the model's code raises an exception", _raise, restarts=0, is_told=True),
    "exit": Fault("the trainer exits with code 1", lambda: os._exit(1)),
    "kill": Fault("the trainer is killed (SIGKILL)", lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "stop": Fault("the trainer is stopped (SIGSTOP)", lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "hang": Fault("a step does not end", lambda: time.sleep(3600)),
    "slow": Fault("one worker takes half a second more for some steps", _slow, restarts=0),
    "python-worker": Fault(
        "Spark's Python worker is killed (SIGKILL)",
        lambda: os.kill(node_task_of_this_trainer(), signal.SIGKILL),
    ),
    "terminate": Fault(
        "Spark's Python worker is ended (SIGTERM)",
        lambda: os.kill(node_task_of_this_trainer(), signal.SIGTERM),
    ),
    "executor": Fault("the executor's JVM is killed (SIGKILL)", _kill_executor, needs_executor=True),
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fault.

    Attributes:
        fault: its name.
        restarts: number of restarts.
        said: the first line of the cause, or of the error that ended the run.
        seconds: how much longer the run took than the undisturbed one.
        wrong: differences from the expected outcome; empty if there are none.
    """

    fault: str
    restarts: int
    said: str
    seconds: float
    wrong: str


@dataclass(frozen=True)
class Run:
    """The outcome of one training.

    Attributes:
        weights: their SHA-256.
        rows: of each epoch.
        restarts: the cause of each restart.
        error: first line of the error that ended it; empty if there was none.
        seconds: from start to end.
    """

    weights: str
    rows: list[int]
    restarts: list[str]
    error: str
    seconds: float


def build_model(params: Any) -> Any:
    """Return a model whose result differs if a single row or random number differs."""
    import keras

    del params
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(16),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(2, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def callbacks(params: Mapping[str, Any]) -> list[Any]:
    """Return a callback that causes the fault once: on the faulty worker, in the first incarnation of its cluster."""
    import keras

    task = json.loads(os.environ["TF_CONFIG"])["task"]
    if not params["fault"] or task["index"] != FAULTY_WORKER:
        return []
    fault = FAULTS[params["fault"]]
    steps = range(FAULT_STEP, FAULT_STEP + (SLOW_STEPS if fault.strike is _slow else 1))

    class Strike(keras.callbacks.Callback):  # type: ignore[misc]
        _is_first_life = False  # A private name, which is not saved with the callback's state.

        def on_train_begin(self, logs: Any = None) -> None:
            self._is_first_life = int(self.model.optimizer.iterations.numpy()) == 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self._is_first_life and int(self.model.optimizer.iterations.numpy()) in steps:
                fault.strike()

    return [Strike()]


def certify(
    spark: SparkSession, names: list[str], timeout_s: float, observe: Callable[[Outcome], None]
) -> list[Outcome]:
    """Test faults, one after another.

    Args:
        spark: the session, with at least three task slots.
        names: keys of `FAULTS`.
        timeout_s: the cluster's ``feed_timeout``; a stopped trainer, or a step that does not end, is detected after
            half of it.
        observe: called with each outcome.

    Raises:
        ConfigError: a fault is unknown, or none of the given faults can be tested on this master.
        TfsparkError: the undisturbed training failed.
    """
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise ConfigError(f"expected faults of {', '.join(FAULTS)}; got {', '.join(unknown)}")
    is_local = spark.conf.get("spark.master", "").partition("[")[0] == "local"
    names = [name for name in names if not (is_local and FAULTS[name].needs_executor)]
    if not names:
        raise ConfigError(
            "expected a master with separate executors for the fault 'executor', got a local one; pass "
            "--master local-cluster[2,2,1024], or use spark-submit on a real cluster"
        )
    rows = spark.range(0, ROWS, 1, PARTITIONS).selectExpr(
        "transform(sequence(1, 4), i -> float(pmod(hash(id, i), 1000) / 1000)) AS x", "id % 2 AS label"
    )
    reference = _train(spark, rows, "", timeout_s)
    if reference.error:
        raise TfsparkError(
            f"expected a small training without faults to succeed, but it failed: {reference.error}"
        )
    outcomes = []
    for name in names:
        outcomes.append(judged(name, _train(spark, rows, name, timeout_s), reference))
        observe(outcomes[-1])
    return outcomes


def judged(name: str, run: Run, reference: Run) -> Outcome:
    """Compare a disturbed run with the undisturbed one."""
    fault, wrong = FAULTS[name], []
    if fault.is_told:
        if CHAOS not in run.error:
            wrong.append(f"expected an error that names the exception, got {run.error or 'none'}")
    elif run.error:
        wrong.append(f"it ended with {run.error}")
    else:
        if run.rows != reference.rows:
            wrong.append(f"expected {reference.rows} rows per epoch, got {run.rows}")
        if run.weights != reference.weights:
            wrong.append("the weights differ from those without the fault")
    if len(run.restarts) != fault.restarts:
        wrong.append(f"expected {fault.restarts} restarts, got {len(run.restarts)}")
    said = run.error or (run.restarts[0] if run.restarts else "")
    return Outcome(name, len(run.restarts), said, run.seconds - reference.seconds, "; ".join(wrong))


def line_of(outcome: Outcome) -> str:
    """Return a line about the outcome of a fault."""
    mark = "[green]ok[/green]  " if not outcome.wrong else "[red]BAD[/red] "
    again = f"{outcome.restarts} restart{'s' * (outcome.restarts != 1)}, {outcome.seconds:+.0f} s"
    text = f"{mark} {outcome.fault:<14} {FAULTS[outcome.fault].what}: {again}"
    details = [f"\n       {escape(line)}" for line in (outcome.said, outcome.wrong) if line]
    return text + "".join(details)


def _train(spark: SparkSession, rows: DataFrame, fault: str, timeout_s: float) -> Run:
    restarts: list[str] = []

    def observe(event: str, fields: Mapping[str, Any]) -> None:
        if event == "restarting":
            restarts.append(str(fields["cause"]))

    began, weights, counts, error = time.monotonic(), "", list[int](), ""
    try:
        with TFCluster.run(
            spark,
            build_model,
            {"fault": fault},
            2,
            hooks=Hooks(callbacks=callbacks),
            checkpoint_every_steps=4,
            feed_timeout=timeout_s,
            observer=observe,
        ) as cluster:
            cluster.train(
                rows, EPOCHS, features=["x"], batch_size=BATCH_SIZE, feeding=FeedOptions(ordered=True)
            )
            nodes = cluster.shutdown()
        weights = nodes["worker 0"]["weights_sha256"]
        counts = [sum(of_epoch) for of_epoch in zip(*(node["rows"] for node in nodes.values()), strict=True)]
    except TfsparkError as failure:
        error = str(failure).splitlines()[0]
    return Run(weights, counts, restarts, error, time.monotonic() - began)
