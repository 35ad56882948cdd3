"""The leak guard finds each kind of leftover, and ignores what session-wide fixtures own."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from socketserver import TCPServer

import psutil
import pytest
from support.leaks import Owned, Snapshot, find_leaks, kill_leaked_processes, leaked_processes, origin_of
from support.processes import poll_until
from support.rows import df_with_partitions

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT_OF_SLEEPER = (
    "import subprocess\nDEVNULLS = dict.fromkeys(['stdin', 'stdout', 'stderr'], subprocess.DEVNULL)\n"
    f"print(subprocess.Popen({SLEEPER!r}, start_new_session=True, **DEVNULLS).pid)"
)


def leaks_since(before, owned=None):
    return find_leaks(before, owned or Owned(), grace_s=0.2)


def start_orphan():
    """Start a process whose parent has ended; return its pid."""
    parent = subprocess.run(
        [sys.executable, "-c", PARENT_OF_SLEEPER], capture_output=True, check=True, timeout=30
    )
    return int(parent.stdout)


@pytest.fixture
def before():
    return Snapshot.take()


@pytest.fixture
def child(before):
    process = subprocess.Popen(SLEEPER)
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture
def waiting_thread(before):
    release = threading.Event()

    def start(thread_class=threading.Thread, **kwargs):
        thread = thread_class(target=release.wait, **kwargs)
        thread.start()
        started.append(thread)
        return thread

    started = []
    yield start
    release.set()
    for thread in started:
        thread.join(10)


def test_find_leaks_when_nothing_happened_is_empty(before):
    assert leaks_since(before) == []


def test_find_leaks_when_a_child_runs_names_its_pid_and_command(before, child):
    (leak,) = leaks_since(before)

    assert leak.startswith(f"process pid {child.pid} (parent {os.getpid()})")
    assert "time.sleep(600)" in leak


def test_find_leaks_when_a_child_was_never_waited_for_names_it(before, child):
    child.kill()
    poll_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, 10)

    (leak,) = leaks_since(before)

    assert "ended, never waited for" in leak


@pytest.mark.parametrize("question", ["cmdline", "ppid"])
def test_leaked_processes_when_a_process_ends_during_the_check_is_empty(before, child, monkeypatch, question):
    ask = getattr(psutil.Process, question)

    def ask_too_late(process):
        child.kill()
        child.wait(10)
        return ask(process)

    if question == "ppid":  # The guard asks for it only if the process has ended.
        child.kill()
        poll_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, 10)
    monkeypatch.setattr(psutil.Process, question, ask_too_late)

    assert leaked_processes(before, Owned()) == []


def test_find_leaks_when_an_orphan_was_adopted_finds_it_by_its_mark(before):
    pid = start_orphan()
    try:
        assert os.getpid() not in [p.pid for p in psutil.Process(pid).parents()]
        (leak,) = leaks_since(before)
        assert f"pid {pid}" in leak
    finally:
        kill_leaked_processes(before, Owned())
    assert leaks_since(before) == []


def test_find_leaks_when_a_process_ends_within_the_grace_is_empty(before):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    threading.Thread(target=process.wait).start()

    assert find_leaks(before, Owned(), grace_s=5.0) == []


def test_find_leaks_when_something_starts_after_a_check_without_leaks_is_empty(before):
    # Spark's JVM starts an `rm` whenever it garbage-collects a session. A second check would find this process.
    looks = iter([["of the test"], [], ["of the next moment"]])

    assert find_leaks(before, Owned(), running_jobs=lambda: next(looks)) == []


@pytest.mark.parametrize("daemon", [False, True])
def test_find_leaks_when_a_thread_runs_names_it(before, waiting_thread, daemon):
    waiting_thread(name="tfspark-feed", daemon=daemon)

    assert leaks_since(before) == [f"thread 'tfspark-feed' (daemon={daemon})"]


def test_find_leaks_when_a_thread_belongs_to_py4j_is_empty(before, waiting_thread):
    py4j_thread = type("CallbackConnection", (threading.Thread,), {"__module__": "py4j.clientserver"})
    py4j_thread.run = threading.Thread.run
    waiting_thread(py4j_thread)

    assert leaks_since(before) == []


def test_origin_of_is_unknown_when_pyspark_runs_code_of_its_caller(spark):
    from pyspark import InheritableThread

    assert origin_of(InheritableThread(target=lambda: None)) == ""


def test_find_leaks_when_a_port_is_open_names_it(before):
    with TCPServer(("127.0.0.1", 0), None) as server:
        assert leaks_since(before) == [f"listening port 127.0.0.1:{server.server_address[1]}"]
    assert leaks_since(before) == []


def test_find_leaks_when_a_temporary_directory_stays_names_it(before):
    with tempfile.TemporaryDirectory(prefix="tfspark-") as directory:
        assert leaks_since(before) == [f"temporary directory {directory}"]
    assert leaks_since(before) == []


def test_find_leaks_when_everything_new_is_owned_is_empty(before, waiting_thread):
    owned = Owned()
    waiting_thread(name="tfspark-of-the-session")
    with TCPServer(("127.0.0.1", 0), None):
        owned.add_since(before)
        assert leaks_since(before, owned) == []


def pid_of_worker(batches):
    import pyarrow as pa

    for _ in batches:
        yield pa.RecordBatch.from_pydict({"pid": [os.getpid()]})


def pid_of_forked_child(batches):
    """Fork in the worker: the child looks like another pyspark worker."""
    import signal

    import pyarrow as pa

    for _ in batches:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        yield pa.RecordBatch.from_pydict({"pid": [pid]})


def pid_of_named_process(batches):
    """Start a process that names tfspark in its command line, and otherwise looks like pyspark's daemon."""
    import pyarrow as pa

    command = [*SLEEPER, "-m", "pyspark.daemon", "tfspark.trainer"]
    for _ in batches:
        yield pa.RecordBatch.from_pydict({"pid": [subprocess.Popen(command).pid]})


def run_one_task(spark, function):
    return df_with_partitions(spark, [1]).select("id").mapInArrow(function, "pid bigint").collect()[0].pid


def test_leaked_processes_when_pyspark_workers_idle_is_empty(spark, owned):
    nobody_known = Snapshot(frozenset({os.getpid()}), frozenset(), frozenset(), frozenset())
    worker = run_one_task(spark, pid_of_worker)

    leaked = leaked_processes(nobody_known, owned)

    assert psutil.pid_exists(worker)
    assert worker not in [p.pid for p in leaked]


@pytest.mark.parametrize("function", [pid_of_forked_child, pid_of_named_process])
def test_leaked_processes_when_a_pyspark_worker_starts_one_finds_it(spark, owned, before, function):
    pid = run_one_task(spark, function)
    try:
        assert pid in [p.pid for p in leaked_processes(before, owned)]
    finally:
        kill_leaked_processes(before, owned)


def test_no_leaks_fails_the_test_that_leaks_and_no_other(pytester):
    conftest = Path(__file__).with_name("conftest.py").read_text()
    pytester.makeconftest(
        conftest.replace("Path(__file__).resolve().parent", repr(Path(__file__).parent.as_posix()))
    )
    pytester.makepyfile(
        """
        import threading

        def test_which_leaks():
            threading.Thread(target=threading.Event().wait, name="tfspark-left", daemon=True).start()

        def test_after_it():
            pass
        """
    )

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["left behind by this test:", "*thread 'tfspark-left' (daemon=True)"])
    result.stdout.fnmatch_lines(["ERROR test_*::test_which_leaks*"])
