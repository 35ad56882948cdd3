"""A host that pauses, as one does that swaps or whose virtual machine is moved: borne, or its node is started again."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from cluster.strikes import Strike
from cluster.test_recovery import Trained, train, uninterrupted
from pyspark.sql import SparkSession
from support.driver import run_driver
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


def java_above(trainer: psutil.Process) -> psutil.Process:
    """Return the executor of a trainer."""
    return next(process for process in node_task_of(trainer).parents() if process.name() == "java")


TRAINER: Callable[[psutil.Process], psutil.Process] = lambda trainer: trainer  # noqa: E731


@pytest.mark.slow
@pytest.mark.parametrize(
    ("find", "pause_s", "cause"),
    [
        pytest.param(TRAINER, 10, "", id="trainer, 10 s"),
        pytest.param(TRAINER, 20, "", id="trainer, 20 s"),
        pytest.param(TRAINER, 40, "its trainer process was not heard of for ", id="trainer, too long"),
        pytest.param(node_task_of, 10, "", id="node task, 10 s"),
        pytest.param(node_task_of, 40, "no heartbeat for 30 s", id="node task, too long"),
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


EXECUTOR_PAUSES = """
    import json, sys
    from dataclasses import asdict
    from pyspark.sql import SparkSession
    from cluster.test_pauses import java_above, pausing
    from cluster.test_recovery import train

    spark = SparkSession.builder.getOrCreate()
    undisturbed, told = train(spark, checkpoint_every_steps=3), []
    for pause_s in map(float, sys.argv[1:]):
        with pausing(java_above, pause_s) as observer:
            trained = train(spark, observer, checkpoint_every_steps=3)
        told.append([trained == undisturbed, bool(observer.struck_at), observer.of("restarting")])
    spark.stop()
    print(json.dumps(told))
"""
SPARK_NOTICES = {
    "spark.network.timeout": "20s",
    "spark.network.timeoutInterval": "5s",
    "spark.executor.heartbeatInterval": "4s",
}
"""After 20 s Spark itself takes a silent executor for lost; after 120 s by default."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_whose_executor_pauses_ends_as_if_it_had_not() -> None:
    """Spark takes the second for lost, and its node task, which was not paused, is told to end."""
    result = run_driver(
        "local-cluster[4,1,1024]", EXECUTOR_PAUSES, "10", "60", conf=SPARK_NOTICES, timeout_s=600
    )
    (short, long) = json.loads(result.check().stdout.splitlines()[-1])
    assert short == [True, True, []]
    assert long[:2] == [True, True]
    assert len(long[2]) == 1
