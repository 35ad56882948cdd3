"""Processes are killed: the driver reports which node it was and why within seconds, and no process survives."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from cluster.incarnations import Events
from cluster.programs import TOLD_S, dense, say
from pyspark.sql import SparkSession
from support.driver import run_driver
from support.environment import OWN_WARM_PARENT
from support.processes import last_json
from support.rows import df_with_partitions
from support.trainers import trainers

from tfspark import TFCluster
from tfspark.errors import NodeFailedError


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
            os.kill(trainers()["worker 1"].pid, signal.SIGKILL)

    with (
        pytest.raises(NodeFailedError) as caught,
        TFCluster.run(spark, dense, {}, 2, max_restarts=0, observer=kill_worker_1) as cluster,
    ):
        cluster.train(rows, 50, features=["features"])
    told_after_s = time.monotonic() - killed_at

    assert caught.value.node == "worker 1"
    assert "killed by SIGKILL" in caught.value.cause
    assert told_after_s < TOLD_S, f"{told_after_s:.1f} s"


def test_python_worker_of_a_node_when_killed_is_named(spark: SparkSession) -> None:
    events = Events()
    cluster = TFCluster.run(spark, say, "wait", 2, observer=events)
    waiting = {fields["node"]: fields for fields in events.wait_for("waiting", 2)}
    killed_at = time.monotonic()
    os.kill(waiting["worker 1"]["node_task"], signal.SIGKILL)
    with pytest.raises(NodeFailedError) as caught:
        cluster.shutdown()
    told_after_s = time.monotonic() - killed_at

    assert caught.value.node == "worker 1"
    assert "killed" in caught.value.cause
    assert told_after_s < TOLD_S, f"{told_after_s:.1f} s"


KILL_PYTHON_WORKER = """
    import os, signal, time
    from pyspark.sql import SparkSession
    from cluster.incarnations import Events
    from cluster.programs import say
    from tfspark import TFCluster

    spark = SparkSession.builder.getOrCreate()
    events = Events()
    cluster = TFCluster.run(spark, say, "wait", 2, observer=events)
    waiting = {fields["node"]: fields for fields in events.wait_for("waiting", 2)}
    killed_at = time.monotonic()
    os.kill(waiting["worker 1"]["node_task"], signal.SIGKILL)
    try:
        cluster.shutdown()
    except Exception as error:
        print(type(error).__name__, f"{time.monotonic() - killed_at:.1f}", str(error).splitlines()[0])
    spark.stop()
"""


def test_python_worker_when_spark_starts_its_task_again_is_named() -> None:
    result = run_driver("local-cluster[2,2,1024]", KILL_PYTHON_WORKER, timeout_s=360).check()

    kind, told_after_s, message = result.stdout.splitlines()[-1].split(" ", 2)
    assert kind == "NodeFailedError"
    assert message.startswith("worker 1 on 127.0.0.1 failed: ")
    assert "killed" in message
    assert float(told_after_s) < TOLD_S


KILL_DRIVER = """
    import os, signal
    from pyspark.sql import SparkSession
    from cluster.incarnations import Events
    from cluster.programs import say
    from tfspark import TFCluster

    spark = SparkSession.builder.getOrCreate()
    events = Events()
    TFCluster.run(spark, say, "wait", 2, observer=events)
    events.wait_for("waiting", 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "master", ["local[4]", pytest.param("local-cluster[2,2,1024]", marks=pytest.mark.slow)]
)
def test_driver_when_killed_leaves_no_process(master: str) -> None:
    result = run_driver(master, KILL_DRIVER, env=OWN_WARM_PARENT, timeout_s=180, grace_s=20.0)

    assert result.returncode == -signal.SIGKILL, result.stderr
    assert result.survivors == ()


WITHOUT_SHUTDOWN = """
    import sys
    from cluster.programs import dense
    from pyspark.sql import SparkSession
    from support.rows import df_with_partitions
    from tfspark import TFCluster

    spark = SparkSession.builder.getOrCreate()
    cluster = TFCluster.run(spark, dense, {})
    cluster.train(df_with_partitions(spark, [64]), features=["features"], batch_size=16)
    if sys.argv[1] == "stop":
        spark.stop()
    else:
        raise KeyError("a mistake after the training")
"""


@pytest.mark.parametrize("how", ["raise", pytest.param("stop", marks=pytest.mark.slow)])
def test_driver_that_ends_without_shutdown_leaves_no_process_and_no_file(tmp_path: Path, how: str) -> None:
    env = {**OWN_WARM_PARENT, "TMPDIR": str(tmp_path)}
    result = run_driver("local[2]", WITHOUT_SHUTDOWN, how, timeout_s=180, env=env)

    assert result.returncode == (how == "raise"), result.stderr
    assert result.survivors == ()
    assert list(tmp_path.glob("tfspark*")) == []


KILL_BEFORE_IT_REGISTERS = """
    import json
    import psutil
    from pyspark.sql import SparkSession
    from cluster.incarnations import Events
    from cluster.programs import say
    from tfspark import TFCluster
    from tfspark.cluster.control import ControlPlane

    answer, killed = ControlPlane.do_action, []
    is_first = iter([True])  # Several threads ask: exactly one gets True.

    def kill_the_first_that_registers(control, context, action):
        if action.type == "register" and next(is_first, False):
            port = int(context.peer().rpartition(":")[2])
            for process in psutil.Process().children(recursive=True):
                if any(c.laddr and c.laddr.port == port for c in process.net_connections("tcp")):
                    killed.append(process.pid)
                    process.kill()
            raise ConnectionError("its task is killed")
        return answer(control, context, action)

    ControlPlane.do_action = kill_the_first_that_registers
    spark = SparkSession.builder.getOrCreate()
    events = Events()
    try:
        told = TFCluster.run(spark, say, "hello", 2, observer=events).shutdown()
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    spark.stop()
    print(json.dumps({"killed": len(killed), "told": told, "registered": len(events.of("registered"))}))
"""


@pytest.mark.slow
def test_node_task_when_killed_before_it_registers_is_started_again_by_spark() -> None:
    result = run_driver("local-cluster[2,2,1024]", KILL_BEFORE_IT_REGISTERS, timeout_s=360).check()

    hello = {"said": "hello", "workers": 2}
    assert last_json(result.stdout) == {
        "killed": 1,
        "registered": 2,
        "told": {"worker 0": hello, "worker 1": hello},
    }


def test_node_task_when_killed_before_it_registers_is_an_error_where_spark_retries_nothing() -> None:
    result = run_driver("local[4]", KILL_BEFORE_IT_REGISTERS, timeout_s=360).check()

    told = last_json(result.stdout)
    assert told["killed"] == 1
    assert told["told"].startswith("ReservationError: the Spark job of the worker nodes failed: ")


def test_port_of_a_node_cannot_be_bound_by_another_program(spark: SparkSession) -> None:
    """The node holds its port from the reservation until TensorFlow listens on it, which takes seconds."""
    refused: list[int] = []
    ports: dict[int, int] = {}

    def want_the_ports(event: str, fields: dict[str, object]) -> None:
        if event == "registered":
            ports[int(fields["node"][-1])] = fields["port"]
        if event == "reserved":
            for index in (0, 1):
                refused.append(error_of_binding(ports[index]))

    with TFCluster.run(spark, dense, {}, 2, max_restarts=0, observer=want_the_ports) as cluster:
        history = cluster.train(df_with_partitions(spark, [128]), 1, features=["features"])

    assert refused == [errno.EADDRINUSE] * 2
    assert len(history["loss"]) == 1


def error_of_binding(port: int) -> int | None:
    """Try to bind a port; return the error's number."""
    with socket.socket() as stranger:
        try:
            stranger.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno
    return None


KILL_WHILE_IT_INFERS = """
    import json, sys
    from pathlib import Path
    from pyspark.sql import SparkSession
    from cluster.programs import squares_and_kill_once
    from tfspark import TFCluster

    def with_pid(rows):
        import os
        return [(row, os.getpid()) for row in rows]

    spark = SparkSession.builder.getOrCreate()
    rows = spark.sparkContext.parallelize(range(400), 4).mapPartitions(with_pid)
    killed = Path(sys.argv[1])
    with TFCluster.run(
        spark, squares_and_kill_once, str(killed), 2, input_mode=TFCluster.InputMode.SPARK
    ) as cluster:
        results = cluster.inference(rows).collect()
        cluster.shutdown()
    spark.stop()
    print(json.dumps({"right": results == [i * i for i in range(400)], "killed": killed.exists()}))
"""


def test_inference_when_the_python_worker_that_asks_is_killed_gives_every_result(tmp_path: Path) -> None:
    result = run_driver(
        "local-cluster[2,2,1024]", KILL_WHILE_IT_INFERS, str(tmp_path / "killed"), timeout_s=240
    ).check()

    assert last_json(result.stdout) == {"right": True, "killed": True}


KILL_WHILE_A_MODEL_IS_APPLIED = """
    import json, os, sys
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    import tensorflow as tf
    from pyspark.sql import SparkSession
    from support.environment import DRIVER_ID
    from support.processes import marked_processes, poll_until
    from tfspark.pipeline import TFModel

    class Doubles(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def double(self, x):
            return {"y": 2 * x}

    directory = Path(sys.argv[1])
    module = Doubles()
    tf.saved_model.save(module, str(directory / "model"), signatures={"serving_default": module.double})

    def wait_once(batches):
        import os, time
        for batch in batches:
            if not (directory / "killed").exists():
                (directory / "waits").touch()
                time.sleep(60)
            yield batch

    def kill_python_workers():
        poll_until((directory / "waits").exists, 60)
        (directory / "killed").touch()
        workers = [
            process
            for process in marked_processes(DRIVER_ID, os.environ[DRIVER_ID])
            if "pyspark.daemon" in process.cmdline() and "pyspark.daemon" in process.parent().cmdline()
        ]
        for worker in workers:
            worker.kill()
        return len(workers)

    spark = SparkSession.builder.getOrCreate()
    model = TFModel({}).setExportDir(str(directory / "model")).setBatchSize(10)
    model = model.setInputMapping({"x": "x"}).setOutputMapping({"y": "twice"})
    rows = spark.range(0, 100, 1, 2).selectExpr("float(id) AS x").mapInArrow(wait_once, "x float")
    with ThreadPoolExecutor(1) as beside:
        killing = beside.submit(kill_python_workers)
        twice = sorted(row.twice for row in model.transform(rows).collect())
        killed = killing.result()
    spark.stop()
    print(json.dumps({"right": twice == [2.0 * i for i in range(100)], "killed": killed}))
"""


@pytest.mark.slow
def test_applying_a_model_when_python_workers_are_killed_gives_every_result(tmp_path: Path) -> None:
    result = run_driver(
        "local-cluster[2,2,1024]", KILL_WHILE_A_MODEL_IS_APPLIED, str(tmp_path), timeout_s=300
    ).check()

    told = last_json(result.stdout)
    assert told["right"]
    assert told["killed"] >= 2
