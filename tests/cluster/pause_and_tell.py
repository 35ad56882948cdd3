"""A driver program: train without a pause, train while a process pauses, print both results.

pause_and_tell.py WHAT SECONDS

WHAT: ``trainer``, ``node-task``, ``executor`` (the JVM above them) of worker 1, or ``driver``
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import psutil
from cluster.strikes import Strike
from cluster.trained import train
from pyspark.sql import SparkSession
from support.trainers import node_task_of, trainers

EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"


def main() -> None:
    what, seconds = sys.argv[1:]
    spark = SparkSession.builder.getOrCreate()
    # Less than the test's own timeout, so that a hanging wait is an error that says what it waited for.
    options = {"checkpoint_every_steps": 3, "reservation_timeout": 300.0}
    undisturbed = train(spark, **options)
    pauses: list[subprocess.Popen[bytes]] = []
    observer = Strike(lambda: pauses.append(pause(process_of(what), seconds)), "state", epoch=1, step=6)
    trained = train(spark, observer, **options)
    for pausing in pauses:
        pausing.wait()
    spark.stop()
    told = {
        "undisturbed": asdict(undisturbed),
        "trained": asdict(trained),
        "causes": [event["cause"] for event in observer.of("restarting")],
        "struck": len(pauses),
    }
    sys.stdout.write("\n" + json.dumps(told) + "\n")


def process_of(what: str) -> psutil.Process:
    """Return the process to pause."""
    if what == "driver":
        return psutil.Process()
    trainer = trainers()["worker 1"]
    if what == "trainer":
        return trainer
    node_task = node_task_of(trainer)
    if what == "node-task":
        return node_task
    return next(parent for parent in node_task.parents() if EXECUTOR in parent.cmdline())


def pause(process: psutil.Process, seconds: str) -> subprocess.Popen[bytes]:
    """Stop a process, perhaps this one, and start a process that resumes it later, unless it was killed meanwhile."""
    script = 'kill -STOP "$0"; sleep "$1"; kill -CONT "$0" 2> /dev/null || true'
    return subprocess.Popen(["bash", "-c", script, str(process.pid), seconds], env=dict(os.environ))


if __name__ == "__main__":
    main()
