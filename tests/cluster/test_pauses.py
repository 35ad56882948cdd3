"""A host pauses, because it swaps or its virtual machine is moved: training waits, or starts the nodes again."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cluster.strikes import Strike
from cluster.trained import Trained, train, uninterrupted
from pyspark.sql import SparkSession
from support.driver import run_driver
from support.processes import last_json
from support.trainers import node_task_of, trainers

__all__ = ["uninterrupted"]

PROGRAM = Path(__file__).with_name("pause_and_tell.py")


@contextlib.contextmanager
def pausing(find: Callable[[psutil.Process], psutil.Process], pause_s: float) -> Iterator[Strike]:
    """Stop a process in the middle of an epoch, and resume it after `pause_s`, unless it was killed meanwhile."""
    stopped: queue.Queue[psutil.Process | None] = queue.Queue()

    def go_on() -> None:
        process = stopped.get()
        if process is not None:
            time.sleep(pause_s)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def pause() -> None:
        process = find(trainers()["worker 1"])
        process.suspend()
        stopped.put(process)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield Strike(pause, "state", epoch=1, step=6)
    finally:
        stopped.put(None)
        thread.join()


TRAINER: Callable[[psutil.Process], psutil.Process] = lambda trainer: trainer  # noqa: E731


@pytest.mark.slow
@pytest.mark.parametrize(
    ("find", "pause_s", "cause"),
    [
        pytest.param(TRAINER, 10, "", id="trainer, 10 s"),
        pytest.param(TRAINER, 20, "", id="trainer, 20 s"),
        pytest.param(TRAINER, 40, "its trainer process was not heard of for ", id="trainer, too long"),
        pytest.param(node_task_of, 10, "", id="node task, 10 s"),
        pytest.param(node_task_of, 40, "", id="node task, at the end of the run"),
    ],
)
def test_training_whose_processes_pause_ends_as_if_they_had_not(
    spark: SparkSession,
    uninterrupted: Trained,
    find: Callable[[psutil.Process], psutil.Process],
    pause_s: float,
    cause: str,
) -> None:
    with pausing(find, pause_s) as observer:
        trained = train(spark, observer, checkpoint_every_steps=3)
    told = observer.of("restarting")
    assert len(told) == bool(cause), told
    assert all(cause in event["cause"] for event in told), told
    assert trained == uninterrupted


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("what", "pause_s", "cause"),
    [
        pytest.param("executor", 10, "", id="executor's JVM, 10 s"),
        pytest.param("executor", 40, "", id="executor's JVM, 40 s"),
        pytest.param("driver", 40, "", id="driver, 40 s"),
        pytest.param("trainer", 400, "its trainer process was not heard of for ", id="trainer, 400 s"),
        pytest.param("node-task", 400, "no heartbeat for 30 s", id="node task, 400 s"),
        pytest.param("executor", 400, "", id="executor's JVM, 400 s"),
        pytest.param("driver", 400, "", id="driver, 400 s"),
    ],
)
def test_training_on_separate_executors_ends_as_if_nothing_had_paused(
    what: str, pause_s: int, cause: str
) -> None:
    """The weights are the same for each process and each length of the pause, with a restart or without."""
    result = run_driver("local-cluster[4,1,1024]", PROGRAM, what, str(pause_s), timeout_s=1200).check()
    told = last_json(result.stdout)
    assert told["struck"] == 1
    assert len(told["causes"]) <= 1 if pause_s == 400 else told["causes"] == [], told["causes"]
    assert all(cause in found for found in told["causes"]), told["causes"]
    assert told["trained"] == told["undisturbed"]
