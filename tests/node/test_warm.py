"""Trainers that a warm parent forks behave like new processes, whichever process is killed at any moment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster.incarnations import Events
from cluster.programs import dense
from node.warm_programs import (
    exits,
    look,
    look_and_wait,
    prints,
    sets_a_variable,
    sets_a_variable_late,
    uses_onednn,
)
from pyspark.sql import SparkSession
from support.disks import small_disk
from support.driver import run_driver
from support.environment import OWN_WARM_PARENT
from support.errors import raises
from support.processes import is_alive, kill_all, last_json, poll_until, wait_until_ended
from support.rows import df_with_partitions
from support.trainers import node_task_of, trainers, warm_parents

from tfspark import InputMode, TFCluster
from tfspark.errors import NodeFailedError
from tfspark.node import launch, warm
from tfspark.node import warm_parent as cluster_warm_parent
from tfspark.node.environment import shared_environment, trainer_environment
from tfspark.node.launch import Orders, Trainer
from tfspark.node.warm import ColdError, own_parent
from tfspark.node.warm_parent import WarmParent

GONE_S = 20.0
"""Seconds until a killed process is gone, on a loaded machine."""
STARTS_COLD = "starts without a warm parent"


@pytest.fixture(scope="module", autouse=True)
def no_other_warm_parents() -> None:
    """End the warm parents that tests of other modules left in this process and on its session."""
    kill_all(warm_parents())


def run(
    spark: SparkSession, program: Any, args: Any = None, nodes: int = 2, **options: Any
) -> dict[str, Any]:
    """Run a `main_fun` to its end; return what the nodes returned."""
    with TFCluster.run(spark, program, args, nodes, input_mode=InputMode.TENSORFLOW, **options) as cluster:
        return cluster.shutdown()


def log_of(events: Events) -> str:
    return "\n".join(line for told in events.of("log") for line in told["lines"])


def warm_parent(spark: SparkSession) -> psutil.Process:
    """Return the one warm parent of the session, which has forked at least once."""
    run(spark, look, nodes=1)
    (found,) = warm_parents()
    return found


def test_trainers_of_all_clusters_are_independent_forks_of_one_warm_parent(
    spark: SparkSession,
) -> None:
    seen = [told for _ in range(2) for told in run(spark, look).values()]
    (parent,) = warm_parents()
    assert [told["parent"] for told in seen] == [parent.pid] * 4
    assert len({told["pid"] for told in seen}) == 4
    assert [told["command"] for told in seen][:2] == [
        ["-m", "tfspark.trainer", f"worker {i}"] for i in (0, 1)
    ]
    assert [told["name"] for told in seen] == ["worker 0", "worker 1"] * 2
    assert [json.loads(told["task"])["task"]["index"] for told in seen] == [0, 1] * 2
    assert len({tuple(told["scratch"]) for told in seen}) == 4
    assert [told["scratch"][0] == told["scratch"][1] for told in seen] == [True] * 4
    assert len({number for told in seen for number in told["drawn"]}) == 8
    assert [told["files"] for told in seen] == [[]] * 4
    assert [told["directory"] for told in seen] == [[os.getcwd()] * 2] * 4


def test_trainers_with_warm_off_are_children_of_their_node_tasks(spark: SparkSession, tmp_path: Path) -> None:
    events = Events()
    with ThreadPoolExecutor(1) as beside:
        go_on = tmp_path / "go on"
        running = beside.submit(run, spark, look_and_wait, str(go_on), warm=False, observer=events)
        events.wait_for("waiting", 2)
        parents = {name: (process.ppid(), node_task_of(process).pid) for name, process in trainers().items()}
        go_on.touch()
        running.result()
    assert [parents[f"worker {i}"][0] == parents[f"worker {i}"][1] for i in (0, 1)] == [True, True]
    assert STARTS_COLD not in log_of(events)


@pytest.mark.parametrize("is_warm", [True, False], ids=["forked", "cold"])
def test_trainer_that_can_run_no_code_ends_with_its_node_task(
    spark: SparkSession, tmp_path: Path, is_warm: bool
) -> None:
    """The trainer is stopped, like one that hangs in a C extension, and Spark's Python worker is killed."""
    events = Events()
    go_on = tmp_path / "go on"
    options = {"input_mode": InputMode.TENSORFLOW, "observer": events, "warm": is_warm}
    cluster = TFCluster.run(spark, look_and_wait, str(go_on), 2, **options)
    events.wait_for("waiting", 2)
    lost, other = trainers()["worker 1"], trainers()["worker 0"]
    lost.suspend()
    node_task_of(lost).kill()
    gone = wait_until_ended([lost], GONE_S) == []
    with pytest.raises(NodeFailedError) as caught:
        cluster.shutdown()
    assert gone
    assert caught.value.node == "worker 1"
    assert wait_until_ended([other], GONE_S) == []


def test_warm_parent_when_killed_leaves_its_trainers_training_and_is_replaced(spark: SparkSession) -> None:
    parent = warm_parent(spark)
    rows = df_with_partitions(spark, [2000, 0, 1000])
    events = Events()
    with TFCluster.run(spark, dense, {}, 2, observer=events) as cluster:
        cluster.train(rows, 1, features=["features"])
        forked = [process.ppid() for process in trainers().values()]
        parent.kill()
        history = cluster.train(rows, 2, features=["features"])
        nodes = cluster.shutdown()
    assert forked == [parent.pid] * 2
    assert len(history["loss"]) == 2
    assert events.of("restarting") == []
    assert sum(nodes["worker 0"]["rows"]) + sum(nodes["worker 1"]["rows"]) == 3 * 3000
    assert warm_parent(spark).pid != parent.pid


def test_trainer_when_killed_after_its_warm_parent_is_replaced_and_training_ends(spark: SparkSession) -> None:
    """No process knows how the trainer ended, only that it ended."""
    parent = warm_parent(spark)
    rows = df_with_partitions(spark, [2000, 1000])
    events = Events()
    struck = threading.Event()

    def strike(event: str, fields: Any) -> None:
        events(event, fields)
        if event == "step" and not struck.is_set():
            struck.set()
            lost = trainers()["worker 1"]
            parent.kill()
            wait_until_ended([parent], GONE_S)
            lost.kill()

    with TFCluster.run(spark, dense, {}, 2, observer=strike) as cluster:
        history = cluster.train(rows, 3, features=["features"])
    assert [told["cause"] for told in events.of("restarting")] == [
        "worker 1 on 127.0.0.1 failed: its trainer process ended, and the warm parent that knew how is gone"
    ]
    assert len(history["loss"]) == 3


def test_node_when_the_warm_parent_is_killed_before_it_forks_starts_its_trainer_cold(
    spark: SparkSession,
) -> None:
    parent = warm_parent(spark)
    parent.suspend()
    events = Events()
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(run, spark, look, observer=events)
        events.wait_for("reserved")
        # By then the nodes have asked the warm parent, or they will not find it. Both must work.
        time.sleep(1.0)
        parent.kill()
        seen = running.result(120)
    assert len(seen) == 2
    assert len({told["pid"] for told in seen.values()}) == 2


def test_trainer_is_forked_only_when_its_node_task_still_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stopped warm parent answers after the node task has given it up and started its trainer cold."""
    monkeypatch.setattr(launch, "FORK_TIMEOUT_S", 1.0)
    kill_all(warm_parents())
    # This process owns this warm parent, as a driver that runs parameter servers does.
    warm.prepare(own_parent())
    (parent,) = [p for p in warm_parents() if int(p.cmdline()[4]) == os.getpid()]
    parent.suspend()
    said: list[str] = []
    with socket.socket() as port:
        orders = Orders(
            "worker 7", trainer_environment(os.environ, "", str(tmp_path), sys.path), port, (b"{}", b"")
        )
        trainer = Trainer(orders, True, said.append)
        assert poll_until(lambda: trainer.wait(0.1), 120.0)
        printed = trainer.failure
        parent.resume()
        assert poll_until(lambda: parent.status() == psutil.STATUS_SLEEPING, 60.0)
        seen = [name for name in trainers() if name == "worker 7"]
        trainer.end()
        trainer.output.close()
    assert said == ["tfspark: worker 7 starts without a warm parent: it did not answer within 1 s"]
    # Its orders were empty.
    assert printed == "its trainer process exited with code 1 without reporting an error"
    assert seen == []
    kill_all([parent])


def test_trainer_that_is_told_to_end_before_it_is_forked_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The warm parent still imports TensorFlow; the fork finds its standard input closed."""
    monkeypatch.setattr(launch, "STOP_GRACE_S", 120.0)
    kill_all(warm_parents())
    with socket.socket() as port:
        environment = trainer_environment(os.environ, "", str(tmp_path), sys.path)
        trainer = Trainer(Orders("worker 7", environment, port, (b"{}", b"")), True, print)
        trainer.end()
        printed = trainer.output.read().decode()
        trainer.output.close()
    assert trainer.failure == "its trainer process exited with code 1 without reporting an error"
    assert "unpack requires a buffer of 8 bytes" in printed
    assert "worker 7" not in trainers()
    kill_all(warm_parents())


def test_program_that_sets_a_variable_before_it_uses_tensorflow_is_started_again_cold(
    spark: SparkSession,
) -> None:
    parent = warm_parent(spark)
    events = Events()
    ((of_this_cpu, _),) = run(spark, uses_onednn, nodes=1).values()
    seen = run(spark, sets_a_variable, "0" if of_this_cpu else "1", observer=events)
    assert [told[0] for told in seen.values()] == [not of_this_cpu] * 2
    assert parent.pid not in [told[1] for told in seen.values()]
    assert "the program sets TF_ENABLE_ONEDNN_OPTS, which is read when TensorFlow is imported" in log_of(
        events
    )
    assert list(run(spark, uses_onednn, nodes=1).values()) == [[of_this_cpu, parent.pid]]
    assert list(run(spark, sets_a_variable_late, nodes=1).values()) == [parent.pid]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (7, "its trainer process exited with code 7 without reporting an error"),
        (0, "its trainer process exited with code 0 before its function had returned"),
    ],
)
def test_trainer_that_exits_without_a_report_is_a_failure(spark: SparkSession, code: int, cause: str) -> None:
    with raises(NodeFailedError, "worker 0", cause):
        run(spark, exits, code, nodes=1)


def test_output_of_a_trainer_arrives_on_the_driver_line_by_line(spark: SparkSession) -> None:
    events = Events()
    assert list(run(spark, prints, nodes=1, observer=events).values()) == ["printed"]
    lines = log_of(events).splitlines()
    assert [line for line in lines if line.startswith("bad ")] == ["bad \ufffd\ufffd bytes"]
    assert [line for line in lines if "[==>" in line] == ["500/500 [==>  ]"]
    assert sum(line.count("é") for line in lines) == 1 << 20
    assert [line for line in lines if line.startswith("line ")] == [f"line {i}" for i in range(30_000)]
    assert "the last line" in lines


OF_TWO_APPLICATIONS = """
    import json, sys
    from pyspark.sql import SparkSession
    from node.warm_programs import look_and_wait, uses_onednn
    from support.trainers import warm_parents
    from tfspark import InputMode, TFCluster

    spark = SparkSession.builder.getOrCreate()
    told = []
    for program in (look_and_wait, uses_onednn):
        with TFCluster.run(spark, program, sys.argv[1], 2, input_mode=InputMode.TENSORFLOW) as cluster:
            told.append(list(cluster.shutdown().values()))
    print(json.dumps(told))
"""


def test_applications_of_one_user_have_separate_warm_parents_with_the_variables_of_their_executors(
    tmp_path: Path,
) -> None:
    (tmp_path / "go on").touch()
    confs = [
        {"spark.executorEnv.TF_OF_THE_TEST": name, "spark.executorEnv.TF_ENABLE_ONEDNN_OPTS": onednn}
        for name, onednn in (("one", "1"), ("two", "0"))
    ]
    with ThreadPoolExecutor(2) as beside:
        # Nothing is left five seconds after the end of an application.
        started = [
            beside.submit(
                run_driver,
                "local-cluster[1,2,1024]",
                OF_TWO_APPLICATIONS,
                str(tmp_path / "go on"),
                conf=conf,
                env=OWN_WARM_PARENT,
                timeout_s=400,
                grace_s=5.0,
            )
            for conf in confs
        ]
        told = [last_json(done.result().check().stdout) for done in started]
    parents = [{seen["parent"] for seen in first} for first, _ in told]
    assert [len(of_one) for of_one in parents] == [1, 1]
    assert parents[0].isdisjoint(parents[1])
    assert [[seen["variable"] for seen in first] for first, _ in told] == [["one"] * 2, ["two"] * 2]
    assert [[is_on for is_on, _ in second] for _, second in told] == [[True] * 2, [False] * 2]
    assert [{parent for _, parent in second} for _, second in told] == parents


THREADS_AT_THE_START = (
    "import threading, time; threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()"
)


def test_node_where_the_interpreter_starts_with_threads_says_so_and_starts_its_trainer_cold(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif sys.orig_argv[2:3] == ['tfspark.node.warm_parent']:\n    " + THREADS_AT_THE_START
    )
    program = """
        from pyspark.sql import SparkSession
        from cluster.incarnations import Events
        from node.warm_programs import look
        from tfspark import InputMode, TFCluster

        spark, events = SparkSession.builder.getOrCreate(), Events()
        with TFCluster.run(spark, look, None, 1, input_mode=InputMode.TENSORFLOW, observer=events) as cluster:
            print(cluster.shutdown()["worker 0"]["name"])
        print([line for told in events.of("log") for line in told["lines"] if "warm" in line])
    """
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    env = {**OWN_WARM_PARENT, "PYTHONPATH": path, "TF_CONFIG": "{}"}
    result = run_driver("local[1]", program, env=env, timeout_s=300).check()
    name, said = result.stdout.splitlines()[-2:]
    assert name == "worker 0"
    assert (
        "worker 0 starts without a warm parent: the interpreter starts with threads of its own (python)"
        in said
    )
    assert "TF_CONFIG of this program is not used" in result.stderr


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A temporary directory without room for a single file."""
    with small_disk(tmp_path / "tmp", "size=4k,nr_inodes=1") as place:
        yield place


def test_warm_parent_needs_no_room_on_a_disk(full_disk: Path, tmp_path: Path) -> None:
    program = """
        from pathlib import Path
        from tfspark.node import warm

        connection = warm.connect(warm.own_parent())
        warm.send(connection, "not a request")
        connection.settimeout(100)
        print(len(connection.recv(1)))  # The parent answers when it has imported TensorFlow.
    """
    (tmp_path / "program.py").write_text("\n".join(line.strip() for line in program.splitlines()))
    environment = {**os.environ, "TMPDIR": str(full_disk)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_socket_name_depends_on_everything_that_a_trainer_can_notice() -> None:
    environment = {"TF_X": "1", "PATH": "/bin"}
    first = warm.socket_name(os.getpid(), environment, ["/a"])
    others = [
        warm.socket_name(os.getppid(), environment, ["/a"]),
        warm.socket_name(os.getpid(), {**environment, "TF_X": "2"}, ["/a"]),
        warm.socket_name(os.getpid(), {"PATH": "/bin"}, ["/a"]),
        warm.socket_name(os.getpid(), environment, ["/a", "/b"]),
    ]
    assert len({first, *others}) == 5
    assert warm.socket_name(os.getpid(), dict(environment), ["/a"]) == first
    assert len(first) < 108  # The limit of sun_path, see unix(7). The name contains no path of the host.


def test_idle_warm_parent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_warm_parent, "IDLE_S", 0.2)
    owner = os.pidfd_open(os.getpid())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0tfspark-test-of-idleness-" + str(os.getpid()))
        listener.listen()
        began = time.monotonic()
        WarmParent(listener, owner, "").serve()
        assert time.monotonic() - began >= 0.2
    os.close(owner)


def test_connection_to_another_users_process_is_refused() -> None:
    if os.getuid():
        pytest.skip("needs root, to be another user for a moment")
    name = warm.socket_name(os.getpid(), shared_environment(os.environ, sys.path), sys.path)
    listens = "s = socket.socket(socket.AF_UNIX); s.bind('\\0' + sys.argv[1]); s.listen()"
    program = f"import socket, sys; {listens}; print(1, flush=True); sys.stdin.read()"
    stranger = subprocess.Popen(
        ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", program, name[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"1\n"
        with pytest.raises(ColdError, match="taken by another user's process"):
            warm.connect(own_parent())
        stranger.kill()


def test_driver_reports_the_signal_that_ended_a_forked_trainer(spark: SparkSession, tmp_path: Path) -> None:
    events = Events()
    cluster = TFCluster.run(
        spark, look_and_wait, str(tmp_path / "never"), 1, input_mode=InputMode.TENSORFLOW, observer=events
    )
    events.wait_for("waiting")
    lost = trainers()["worker 0"]
    lost.send_signal(signal.SIGSEGV)
    with raises(NodeFailedError, "its trainer process was killed by SIGSEGV"):
        cluster.shutdown()
    assert not is_alive(lost)
