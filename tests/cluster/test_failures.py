"""Processes are killed: the driver learns which node it was and why within seconds, and nothing survives."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import psutil
import pytest
from cluster.lives import Events
from cluster.programs import dense, say
from pyspark.sql import SparkSession
from support.driver import run_driver
from support.rows import df_with_partitions

from tfspark import TFCluster
from tfspark.errors import NodeFailedError

TOLD_S = 8.0
"""From a kill to the error on the driver, on a loaded machine."""


def test_trainer_when_killed_is_named_with_signal_and_log(spark: SparkSession) -> None:
    events = Events()
    cluster = TFCluster.run(spark, say, "die on worker 1", 2, observer=events)
    with pytest.raises(NodeFailedError) as caught:
        cluster.shutdown()
    told_after_s = time.time() - events.of("killed")[0]["at"]

    error = caught.value
    assert (error.node, error.host) == ("worker 1", "127.0.0.1")
    assert "its trainer process was killed by SIGKILL" in error.cause
    assert "memory" in error.cause
    assert "the last words of worker 1" in error.log_tail
    assert told_after_s < TOLD_S, f"{told_after_s:.1f} s"


def test_trainer_when_killed_while_training_is_named_and_not_its_peer(spark: SparkSession) -> None:
    events = Events()
    rows = df_with_partitions(spark, [20_000])
    killed_at = 0.0

    def kill_worker_1(event: str, fields: dict[str, object]) -> None:
        nonlocal killed_at
        events(event, fields)
        if event == "step" and not killed_at:
            killed_at = time.monotonic()
            os.kill(trainer_of("worker", 1).pid, signal.SIGKILL)

    with (
        pytest.raises(NodeFailedError) as caught,
        TFCluster.run(spark, dense, {}, 2, max_restarts=0, observer=kill_worker_1) as cluster,
    ):
        cluster.train(rows, 50, features=["features"])
    told_after_s = time.monotonic() - killed_at

    assert caught.value.node == "worker 1"
    assert "killed by SIGKILL" in caught.value.cause
    assert told_after_s < TOLD_S, f"{told_after_s:.1f} s"


def trainer_of(role: str, index: int) -> psutil.Process:
    """Find a trainer below this process by its TF_CONFIG."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # A process of Spark's that has just ended.
            if "tfspark.cluster.trainer" in process.cmdline():
                task = json.loads(process.environ()["TF_CONFIG"])["task"]
                if task == {"type": role, "index": index}:
                    return process
    raise AssertionError(f"no trainer of {role} {index}")


def test_python_worker_of_a_node_when_killed_is_named(spark: SparkSession) -> None:
    events = Events()
    cluster = TFCluster.run(spark, say, "wait", 2, observer=events)
    waiting = {fields["node"]: fields for fields in events.wait_for("waiting", 2)}
    killed_at = time.monotonic()
    os.kill(waiting["worker 1"]["parent"], signal.SIGKILL)
    with pytest.raises(NodeFailedError) as caught:
        cluster.shutdown()
    told_after_s = time.monotonic() - killed_at

    assert caught.value.node == "worker 1"
    assert "killed" in caught.value.cause
    assert told_after_s < TOLD_S, f"{told_after_s:.1f} s"


KILL_PYTHON_WORKER = """
    import os, signal, time
    from pyspark.sql import SparkSession
    from cluster.lives import Events
    from cluster.programs import say
    from tfspark import TFCluster

    spark = SparkSession.builder.getOrCreate()
    events = Events()
    cluster = TFCluster.run(spark, say, "wait", 2, observer=events)
    waiting = {fields["node"]: fields for fields in events.wait_for("waiting", 2)}
    killed_at = time.monotonic()
    os.kill(waiting["worker 1"]["parent"], signal.SIGKILL)
    try:
        cluster.shutdown()
    except Exception as error:
        print(type(error).__name__, f"{time.monotonic() - killed_at:.1f}", str(error).splitlines()[0])
    spark.stop()
"""


def test_python_worker_when_spark_starts_its_task_again_is_named() -> None:
    result = run_driver("local-cluster[2,2,1024]", KILL_PYTHON_WORKER, timeout_s=90).check()

    kind, told_after_s, message = result.stdout.splitlines()[-1].split(" ", 2)
    assert kind == "NodeFailedError"
    assert message.startswith("worker 1 on 127.0.0.1 failed: ")
    assert "killed" in message
    assert float(told_after_s) < TOLD_S


KILL_DRIVER = """
    import os, signal
    from pyspark.sql import SparkSession
    from cluster.lives import Events
    from cluster.programs import say
    from tfspark import TFCluster

    spark = SparkSession.builder.getOrCreate()
    events = Events()
    TFCluster.run(spark, say, "wait", 2, observer=events)
    events.wait_for("waiting", 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("master", ["local[4]", "local-cluster[2,2,1024]"])
def test_driver_when_killed_leaves_no_process(master: str) -> None:
    result = run_driver(master, KILL_DRIVER, timeout_s=90, grace_s=20.0)

    assert result.returncode == -signal.SIGKILL, result.stderr
    assert result.survivors == ()
