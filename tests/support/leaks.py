"""Find the leftovers of a test: processes, threads, listening ports, temporary directories, Spark jobs.

Call `Snapshot.take` before the test and `find_leaks` after it; the autouse fixture ``no_leaks`` in ``conftest.py``
does both for every test. `Owned` lists the processes, threads and ports of session-wide fixtures.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from support.environment import TEST_ID
from support.processes import carries, describe, kill_all, what_stays
from support.trainers import SHARED, WARM_PARENT

GRACE_S = 5.0
PREFIX = "tfspark-"
# A word of a command line that names tfspark as a module, a program or a process title. A path through a checkout
# called "tfspark" does not count.
_NAMES_TFSPARK = re.compile(r"^tfspark($|[-.: ])|\b(import|from) tfspark\b|/bin/tfspark$")
_THIRD_PARTY_THREADS = ("py4j.", "pyspark.")


@dataclass(frozen=True)
class Snapshot:
    """Everything that exists at one moment.

    Attributes:
        pids: every process on the machine.
        threads: this process's threads.
        ports: TCP addresses on which this process listens.
        directories: ``tfspark-*`` in the temporary directory.
    """

    pids: frozenset[int]
    threads: frozenset[threading.Thread]
    ports: frozenset[tuple[str, int]]
    directories: frozenset[Path]

    @classmethod
    def take(cls) -> Snapshot:
        """Return the current state."""
        return cls(
            frozenset(psutil.pids()),
            frozenset(threading.enumerate()),
            frozenset(listening_ports()),
            frozenset(temporary_directories()),
        )


@dataclass
class Owned:
    """The processes, threads and ports that session-wide fixtures have started and will stop themselves.

    Attributes:
        jvm_pids: Spark JVMs; their ``pyspark.daemon`` and its idle workers belong to them.
        pids: other processes.
        threads: threads of this process.
        ports: addresses on which this process listens.
    """

    jvm_pids: set[int] = field(default_factory=set)
    pids: set[int] = field(default_factory=set)
    threads: set[threading.Thread] = field(default_factory=set)
    ports: set[tuple[str, int]] = field(default_factory=set)

    def add_since(self, before: Snapshot) -> None:
        """Add the threads and ports that did not exist at ``before``."""
        now = Snapshot.take()
        self.threads |= now.threads - before.threads
        self.ports |= now.ports - before.ports


def find_leaks(
    before: Snapshot,
    owned: Owned,
    *,
    grace_s: float = GRACE_S,
    running_jobs: Callable[[], list[str]] = list,
) -> list[str]:
    """Return one line for each leftover: it exists now, did not exist before, and does not belong to a fixture.

    Args:
        before: taken when the test began.
        owned: the processes, threads and ports of session-wide fixtures.
        grace_s: seconds for leftovers to disappear.
        running_jobs: returns one line for each running job of Spark.
    """

    def look() -> list[str]:
        return [
            # A process that ends during the check is not a leftover.
            *(
                f"process {line}"
                for p in leaked_processes(before, owned)
                if not (line := describe(p)).endswith("(gone)")
            ),
            *(f"thread {t.name!r} (daemon={t.daemon})" for t in leaked_threads(before, owned)),
            *(f"listening port {host}:{port}" for host, port in leaked_ports(before, owned)),
            *(f"temporary directory {path}" for path in sorted(temporary_directories() - before.directories)),
            *running_jobs(),
        ]

    return what_stays(look, grace_s)


def kill_leaked_processes(before: Snapshot, owned: Owned) -> None:
    """Kill the processes that `find_leaks` reported, so that they do not disturb later tests."""
    kill_all(leaked_processes(before, owned))


def leaked_processes(before: Snapshot, owned: Owned) -> list[psutil.Process]:
    """Return the new descendants of this process, and all new processes with this run's mark."""
    mine = psutil.Process()
    children = {p.pid: p for p in mine.children(recursive=True)}
    mark = os.environ.get(TEST_ID, "")
    known = before.pids | {mine.pid, *children}
    orphans = [
        p for p in psutil.process_iter() if p.pid not in known
    ]  # Skip those that have ended meanwhile.
    marked = [p for p in orphans if mark and carries(p, TEST_ID, mark)]
    new = [p for p in children.values() if p.pid not in before.pids] + marked
    return [p for p in new if not _belongs(p, owned)]


def _belongs(process: psutil.Process, owned: Owned) -> bool:
    """Return whether a process belongs to a fixture, is an idle Python worker of Spark, or has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            # A zombie child of this process is a leak; for a zombie of another process, its parent is responsible.
            return process.ppid() != os.getpid()
        line = process.cmdline()
        if process.pid in owned.jvm_pids | owned.pids or "multiprocessing.resource_tracker" in " ".join(line):
            return True
        if line[1:3] == ["-m", WARM_PARENT]:
            # The warm parent that driver programs share belongs to the test run, which ends it.
            return line[4] == SHARED or _is_of_a_fixture(int(line[4]), owned)
        if any(_NAMES_TFSPARK.search(word) for word in line[1:]):
            return False
        return _is_pyspark_daemon(line) and _within_two_of(process, owned.jvm_pids)
    except psutil.NoSuchProcess:
        return True


def _is_of_a_fixture(owner: int, owned: Owned) -> bool:
    """Return whether a warm parent's owner is a fixture's Python daemon, or this process, which runs nodes itself."""
    try:
        return owner == os.getpid() or _within_two_of(psutil.Process(owner), owned.jvm_pids)
    except psutil.NoSuchProcess:
        return False


def _is_pyspark_daemon(command_line: list[str]) -> bool:
    return "-m" in command_line and "pyspark.daemon" in command_line


def _within_two_of(process: psutil.Process, jvm_pids: set[int]) -> bool:
    """Return whether the JVM is the parent (for the daemon) or the grandparent (for its worker).

    A process that a worker has forked also has the daemon's command line, but the JVM is a more distant ancestor, or,
    after the worker's end, no ancestor.
    """
    return not jvm_pids.isdisjoint(p.pid for p in process.parents()[:2])


def leaked_threads(before: Snapshot, owned: Owned) -> list[threading.Thread]:
    """Return new threads of this process; py4j's and pyspark's own do not count.

    Dummy threads do not count either: Python creates one when a thread that it did not start (gRPC's) logs a line.
    """
    new = [t for t in threading.enumerate() if t not in before.threads and t not in owned.threads]
    own = [t for t in new if not isinstance(t, threading._DummyThread)]
    return [t for t in own if not origin_of(t).startswith(_THIRD_PARTY_THREADS)]


def origin_of(thread: threading.Thread) -> str:
    """Return the module whose code the thread runs, followed by a dot.

    For a subclass that overrides ``run`` it is the module of the class, for other threads that of the target. pyspark's
    `InheritableThread` runs its caller's code, so its module is not known.
    """
    if "run" in vars(type(thread)) and type(thread) is not threading.Thread:
        return type(thread).__module__ + "."
    target: Any = getattr(thread, "_target", None)
    if "copy_local_properties" in getattr(target, "__qualname__", ""):
        return ""
    owner = getattr(target, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return type(owner).__module__ + "."
    return getattr(target, "__module__", None) or ""


def leaked_ports(before: Snapshot, owned: Owned) -> list[tuple[str, int]]:
    """Return addresses on which this process listens since ``before``."""
    return sorted(listening_ports() - before.ports - owned.ports - _py4j_callback_port())


def listening_ports() -> set[tuple[str, int]]:
    """Return the TCP addresses on which this process listens."""
    connections = psutil.Process().net_connections(kind="tcp")
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def _py4j_callback_port() -> set[tuple[str, int]]:
    """Return the address at which pyspark receives calls from the JVM; it is opened at the first ``foreachBatch``."""
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    server = gateway.get_callback_server() if gateway is not None else None
    if server is None:
        return set()
    return {(server.get_listening_address(), server.get_listening_port())}


def temporary_directories() -> set[Path]:
    """Return ``tfspark-*`` in the temporary directory."""
    return set(Path(tempfile.gettempdir()).glob(PREFIX + "*"))


def running_jobs(spark_context: Any) -> list[str]:
    """Return one line for each running Spark job and task of a classic session.

    A task can outlive its cancelled job: Spark interrupts it and does not wait.
    """
    tracker = spark_context._jsc.sc().statusTracker()
    jobs = [f"Spark job {job}" for job in tracker.getActiveJobIds()]
    tasks = sum(info.numRunningTasks() for info in tracker.getExecutorInfos())
    return jobs + ([f"{tasks} running Spark tasks"] if tasks else [])
