"""A driver program for ``spark-submit``: train without a loss, train while a host is lost, print both results.

lose_and_tell.py daemon           the worker daemon above worker 1 is stopped (SIGTERM)
lose_and_tell.py shrink FILE      the same, and it is not replaced until FILE exists; the program creates FILE
                                  when training continues with one worker
lose_and_tell.py link SWITCH      the link to worker 1's host is cut (see `support.network`), and restored later
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from cluster.strikes import Strike
from cluster.trained import train
from pyspark.sql import SparkSession
from support.network import set_link
from support.processes import describe, wait_until_ended
from support.trainers import node_task_of, trainers

HEARTBEAT_TIMEOUT_S = 8.0
ENDED_S = 90.0
"""A node that cannot reach its driver ends after 60 s."""
WORKER_DAEMON = "org.apache.spark.deploy.worker.Worker"


def main() -> None:
    what, *more = sys.argv[1:]
    spark = SparkSession.builder.getOrCreate()
    if what == "shrink":
        shrink(spark, Path(*more))
        return
    options = {"checkpoint_every_steps": 3, "heartbeat_timeout": HEARTBEAT_TIMEOUT_S}
    undisturbed = train(spark, **options)
    loss = {"daemon": stop_daemon, "link": cut_link}[what]
    with loss(*more) as observer:
        trained = train(spark, observer, **options)
        left = wait_until_ended(observer.lost, ENDED_S)
    spark.stop()
    told = {
        "undisturbed": asdict(undisturbed),
        "trained": asdict(trained),
        "causes": [event["cause"] for event in observer.of("restarting")],
        "resumed": observer.of("resumed"),
        "left": [describe(process) for process in left],
    }
    sys.stdout.write("\n" + json.dumps(told) + "\n")


def shrink(spark: SparkSession, shrunk: Path) -> None:
    """Train with two workers, with one, and with two again."""
    epochs = 60  # Longer than a worker daemon takes to start.
    with stop_daemon() as observer:
        observer.then = lambda event, fields: (
            shrunk.touch() if (event, fields.get("workers")) == ("sized", 1) else None
        )
        trained = train(
            spark, observer, epochs, checkpoint_every_steps=3, min_executors=1, replacement_timeout=5.0
        )
    spark.stop()
    told = {
        "trained": asdict(trained),
        "sized": [event["workers"] for event in observer.of("sized")],
        "restarts": len(observer.of("restarting")),
        "epochs": epochs,
    }
    sys.stdout.write("\n" + json.dumps(told) + "\n")


class HostLoss(Strike):
    """Cause the loss of a host in the middle of the first epoch; record which processes are lost."""

    def __init__(self, lose: Any):
        super().__init__(lambda: self._lose(lose), "state", epoch=1, step=6)
        self.lost: list[psutil.Process] = []
        self.then: Callable[[str, Mapping[str, Any]], None] = lambda event, fields: None

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        super().__call__(event, fields)
        self.then(event, fields)

    def _lose(self, lose: Any) -> None:
        trainer = trainers()["worker 1"]
        self.lost = [trainer]
        lose(trainer)


@contextlib.contextmanager
def stop_daemon() -> Iterator[HostLoss]:
    yield HostLoss(lambda trainer: daemon_above(trainer).terminate())


@contextlib.contextmanager
def cut_link(switch: str, restored_after_s: str) -> Iterator[HostLoss]:
    def cut(trainer: psutil.Process) -> None:
        link = (switch, next(told["host"] for told in loss.of("registered") if told["node"] == "worker 1"))
        set_link(*link, "down")
        ends.callback(set_link, *link, "up")
        restore = threading.Timer(float(restored_after_s), set_link, (*link, "up"))
        restore.start()
        ends.callback(restore.cancel)

    with contextlib.ExitStack() as ends:
        loss = HostLoss(cut)
        yield loss


def daemon_above(trainer: psutil.Process) -> psutil.Process:
    return next(parent for parent in node_task_of(trainer).parents() if WORKER_DAEMON in parent.cmdline())


if __name__ == "__main__":
    main()
