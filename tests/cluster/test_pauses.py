"""A host that pauses, as one does that swaps or whose virtual machine is moved: borne, or its node is started again."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from cluster.strikes import Strike
from cluster.test_recovery import Trained, train, uninterrupted
from pyspark.sql import SparkSession
from support.trainers import node_task_of, trainers

__all__ = ["uninterrupted"]


@contextlib.contextmanager
def pausing(find: Callable[[psutil.Process], psutil.Process], pause_s: float) -> Iterator[Strike]:
    """Stop a process in the middle of an epoch, and let it go on after a while; it may have been killed by then."""
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
