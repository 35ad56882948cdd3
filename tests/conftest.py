"""Fixtures on real Spark, and the guard that looks for leaks after every test."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.environment import BASE_CONF, LOOPBACK, QUICK_JVM, TEST_ID, make_spark_home, python_path
from support.leaks import Owned, Snapshot, find_leaks, kill_leaked_processes, running_jobs
from support.processes import kill_all
from support.standalone import StandaloneCluster
from support.trainers import shared_warm_parents

pytest_plugins = ["pytester"]
# No deadline for an example: how long it takes depends on the other tests that run at the same time.
settings.register_profile("tfspark", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tfspark")
_TEMPORARY = pytest.StashKey[str]()
# Warnings are errors. These are raised inside other packages and cannot be avoided by their callers.
_THIRD_PARTY_WARNINGS = [
    # TensorFlow 2.21's EagerTensor.__array__ lacks NumPy 2's `copy`. Keras causes it when it loads or exports.
    r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:keras\.",
]


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment that every process of this run inherits."""
    for line in _THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    # pytest's own tmp_path keeps its usual location, and is kept after a failure.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    # A separate temporary directory: the guard finds only the leftovers of this run, not those of another one.
    config.stash[_TEMPORARY] = tempfile.mkdtemp(prefix="pytest-")
    tempfile.tempdir = os.environ["TMPDIR"] = config.stash[_TEMPORARY]
    os.environ[TEST_ID] = uuid.uuid4().hex
    os.environ["PYTHONPATH"] = python_path(os.environ.get("PYTHONPATH", ""))
    os.environ["SPARK_LOCAL_IP"] = LOOPBACK
    for variable in ("SPARK_SUBMIT_OPTS", "SPARK_DAEMON_JAVA_OPTS", "SPARK_LAUNCHER_OPTS"):
        os.environ[variable] = QUICK_JVM
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the warm parents that driver programs shared, and remove this run's temporary directory."""
    kill_all(shared_warm_parents())
    shutil.rmtree(config.stash[_TEMPORARY], ignore_errors=True)


@pytest.fixture(scope="session")
def owned() -> Owned:
    """The things that session-wide fixtures have started; the guard ignores them."""
    return Owned()


@pytest.fixture(autouse=True)
def no_leaks(owned: Owned) -> Iterator[None]:
    """Fail a test that leaves processes, threads, ports, temporary directories or Spark jobs behind."""
    before = Snapshot.take()
    yield
    leaks = find_leaks(before, owned, running_jobs=_jobs_of_session)
    if leaks:
        kill_leaked_processes(before, owned)
        pytest.fail("left behind by this test:\n  " + "\n  ".join(leaks), pytrace=False)


def _jobs_of_session() -> list[str]:
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    return running_jobs(context) if context is not None and context._jsc is not None else []


@pytest.fixture(scope="session")
def spark(owned: Owned, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A classic session on ``local[4]``, bound to loopback. One for the whole run; do not stop it."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    before = Snapshot.take()
    scratch = tmp_path_factory.mktemp("spark")
    builder = SparkSession.builder.master("local[4]").appName("tests")
    for key, value in BASE_CONF.items():
        builder = builder.config(key, value)
    builder = builder.config("spark.local.dir", str(scratch / "local"))
    builder = builder.config("spark.sql.warehouse.dir", str(scratch / "warehouse"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_HOME", str(make_spark_home(scratch / "spark")))
        session = builder.getOrCreate()
    owned.jvm_pids.add(SparkContext._gateway.proc.pid)
    owned.add_since(before)
    yield session
    session.stop()
    _stop_gateway()


def _stop_gateway() -> None:
    """End the JVM now, instead of when the interpreter exits."""
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(30)
    SparkContext._gateway = SparkContext._jvm = None


@pytest.fixture(scope="session")
def standalone(owned: Owned, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    """A standalone master and two workers (2 cores, 2 GB each) as daemons; see `StandaloneCluster`."""
    with StandaloneCluster(tmp_path_factory.mktemp("standalone")) as cluster:
        pids = {cluster.master_pid, *cluster.worker_pids}
        owned.pids |= pids
        yield cluster
    owned.pids -= pids
