"""Warm parents that start before the executor's Python daemon, or that several applications share.

- On a local master the driver starts one for its executor, which is on the same host, before Spark runs anything. It
  ends with the driver. After a node task has taken a trainer from it, it also ends with the Python daemon.
- With `SHARED_BY` all applications of one user on one host share one. It ends after a while without requests.

Runs in node tasks and in the driver. Such a warm parent is not started where its trainers are. So its identity leaves
out variables that a fork sets or that only Spark reads (`reads_late`). And before a fork becomes a trainer, it compares
the imported modules with those that the trainer would import (`other_modules`).
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfspark.node.environment import shared_environment
from tfspark.node.warm import (
    PACKAGES,
    WantedParent,
    check_platform,
    installed_versions,
    named,
    started_at,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SHARED_BY = "TFSPARK_SHARED_WARM_PARENT"
"""Environment variable. Applications of one user on one host share warm parents if their values are equal."""
_READ_LATE = (
    # Variables of Spark, for its JVM and its Python workers.
    *("SPARK_", "PYSPARK_", "_PYSPARK_", "PYTHON_WORKER_", "PYTHON_DAEMON_", "PYTHON_UDF_"),
    *("PYTHON_FAULTHANDLER_DIR", "PYTHON_TRACEBACK_DUMP_INTERVAL_SECONDS", "HADOOP_", "YARN_", "NM_"),
    # Variables of the shell, the terminal and the connection from which a program was started.
    *("PWD", "OLDPWD", "SHLVL", "TERM", "COLUMNS", "LINES", "SSH_", "XDG_SESSION_", "WINDOWID", "PYTEST_"),
)
"""Prefixes of variables that neither TensorFlow nor the modules it imports read during the import."""
_READ_AT_IMPORT = ("PYSPARK_ENABLE_NAMEDTUPLE_PATCH",)
_SET_BY_IMPORT = {"TF2_BEHAVIOR": "1", "TPU_ML_PLATFORM": "Tensorflow"}
"""Variables that TensorFlow sets during its import, so that their earlier values do not matter."""
_LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))


@dataclass(frozen=True)
class Process:
    """A process, identified by its number and start time: numbers alone are reused."""

    pid: int
    started: str

    @classmethod
    def this(cls) -> Process:
        """Return the current process."""
        return cls(os.getpid(), started_at(os.getpid()))

    def is_here(self) -> bool:
        """Whether it runs on this host, and in this container."""
        try:
            return started_at(self.pid) == self.started
        except OSError:
            return False


def lent_parent(driver: Process | None) -> WantedParent | None:
    """Return the warm parent that is lent to this node task; None if it should use its own.

    Args:
        driver: the driver of a local master's application.

    Raises:
        ColdError: a warm parent is not possible here.
    """
    return lent_to(os.environ, sys.path, driver if driver and driver.is_here() else None)


def parent_of_local_executor(spark: SparkSession) -> WantedParent | None:
    """Predict which warm parent the node tasks on a local master will want; None if the driver cannot.

    Raises:
        ColdError: a warm parent is not possible here.
        OSError: the processes here cannot be inspected.
    """
    context = spark.sparkContext
    jvm: Any = context._jvm
    raw = Path(f"/proc/{jvm.java.lang.ProcessHandle.current().pid()}/environ").read_bytes()
    pairs = (os.fsdecode(entry).partition("=") for entry in raw.split(b"\0") if entry)
    environment = {name: value for name, _, value in pairs}
    given = {str(name): str(value) for name, value in context.environment.items()}
    python = context.pythonExec or ""
    return _of_workers(environment, given, python, context.getConf().get("spark.task.cpus", "1") or "1")


def parent_before_spark(settings: Mapping[str, str]) -> WantedParent | None:
    """Predict, before there is a session, which warm parent the node tasks on a local master will want.

    Args:
        settings: the Spark settings of the future session.

    Raises:
        ColdError: a warm parent is not possible here.
        OSError: the processes here cannot be inspected.
    """
    prefix = "spark.executorEnv."
    given = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    given["PYTHONHASHSEED"] = os.environ.get("PYTHONHASHSEED", "0")
    python = settings.get("spark.pyspark.python") or os.environ.get("PYSPARK_PYTHON") or sys.executable
    return _of_workers(dict(os.environ), given, python, settings.get("spark.task.cpus", "1"))


def _of_workers(
    inherited: Mapping[str, str], given: Mapping[str, str], python: str, cpus: str
) -> WantedParent | None:
    """Predict the environment that Spark will give its Python workers (PythonRunner, PythonWorkerFactory)."""
    found = shutil.which(python)
    if found is None or _interpreter(found) != _interpreter(sys.executable):
        return None
    # Only the workers' setting counts, not the driver's value.
    environment = {**inherited, "OMP_NUM_THREADS": cpus, **given}
    libraries, added = _libraries_of_spark(environment), environment.get("PYTHONPATH", "").split(os.pathsep)
    return lent_to(environment, [*libraries, *filter(None, added), *sys.path], Process.this())


def _interpreter(path: str) -> tuple[str, str]:
    return os.path.dirname(os.path.abspath(path)), os.path.realpath(path)


def _libraries_of_spark(environment: Mapping[str, str]) -> list[str]:
    """Return the entries that Spark puts first on its workers' module path."""
    from pyspark.find_spark_home import _find_spark_home

    home = Path(environment.get("SPARK_HOME") or _find_spark_home())
    patterns = ("python/lib/pyspark.zip", "python/lib/py4j-*-src.zip", "jars/spark-core_*.jar")
    return [str(path) for pattern in patterns for path in sorted(home.glob(pattern))]


def _is_library_of_spark(entry: str) -> bool:
    """Return whether an entry is a file of Spark's. Spark also names files that its home does not have."""
    name = os.path.basename(entry)
    is_named = name == "pyspark.zip" or (
        name.startswith(("py4j-", "spark-core_")) and name.endswith((".zip", ".jar"))
    )
    return is_named and os.path.exists(entry)


def lent_to(
    environment: Mapping[str, str], path: Sequence[str], driver: Process | None
) -> WantedParent | None:
    """Return the warm parent that is lent to node tasks; None if they should use their own.

    Args:
        environment: environment of the node tasks.
        path: module path of the node tasks.
        driver: process with which the warm parent ends, unless it is shared.

    Raises:
        ColdError: a warm parent is not possible here.
    """
    is_shared = bool(environment.get(SHARED_BY))
    if not is_shared and driver is None:
        return None
    check_platform()
    owner = None if is_shared else driver
    places = _places(PACKAGES, path)
    libraries = list(dict.fromkeys(os.path.realpath(entry) for entry in path if _is_library_of_spark(entry)))
    variables = _read_early(environment)
    identity = {
        "owner": vars(owner) if owner else None,
        "python": [sys.prefix, os.path.realpath(sys.executable)],
        "versions": installed_versions(),
        "places": places,
        "states": _states([place for place in places.values() if place]),
        "libraries": libraries,
        "environment": sorted(variables.items()),
        "process": _inherited_by_forks(),
    }
    outside = [entry for place in places.values() if (entry := _outside(place))]
    started_with = variables if owner is None else shared_environment(environment, [])
    python_path = os.pathsep.join(dict.fromkeys([*libraries, *outside]))
    return WantedParent(
        named(identity), owner.pid if owner else 0, {**started_with, "PYTHONPATH": python_path}, True
    )


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables, except the module path, that must be the same for a warm parent and its trainers."""
    return {
        name: value
        for name, value in shared_environment(environment, []).items()
        if name != "PYTHONPATH" and not reads_late(name) and _SET_BY_IMPORT.get(name) != value
    }


def reads_late(name: str) -> bool:
    """Return whether a trainer's value of a variable may differ from its warm parent's: the fork sets it."""
    return name == "_" or (name.startswith(_READ_LATE) and name not in _READ_AT_IMPORT)


def _places(packages: Iterable[str], path: Sequence[str]) -> dict[str, str | None]:
    found = {name: PathFinder.find_spec(name, path) for name in packages}
    return {
        name: os.path.realpath(spec.origin) if spec and spec.origin else None for name, spec in found.items()
    }


def _outside(place: str | None) -> str | None:
    """Return the entry of the module path in which a package was found, unless it belongs to the interpreter."""
    entry = str(Path(place).parents[1]) if place else None
    own = (os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    return None if entry is None or entry.startswith(tuple(prefix + os.sep for prefix in own)) else entry


def _states(places: Iterable[str]) -> list[list[object]]:
    """Return times and sizes of packages: they may be replaced or edited while a warm parent runs."""
    seen: dict[str, list[object]] = {}
    for place in places:
        package = Path(place).parent
        for path in (package.parent, *(sorted(package.rglob("*.py")) if package.name == "tfspark" else ())):
            # Other directories belong to programs, and change whenever a file is written there.
            if path.name in ("site-packages", "dist-packages") or path.is_file():
                status = path.stat()
                seen[str(path)] = [str(path), status.st_mtime_ns, status.st_size]
    return list(seen.values())


def _inherited_by_forks() -> list[object]:
    """Return what a fork inherits and cannot change, or where a difference would be noticed late."""
    umask = next(
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("Umask:")
    )
    return [
        os.getuid(),
        sorted(os.getgroups()),
        [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "mnt")],
        Path("/proc/self/cgroup").read_text(encoding="utf-8"),
        os.getpriority(os.PRIO_PROCESS, 0),
        sorted(os.sched_getaffinity(0)),
        umask,
        [resource.getrlimit(getattr(resource, name))[1] for name in _LIMITS],
    ]


def soft_limits() -> dict[str, int]:
    """Return this process's soft limits, for its trainers. They may differ from the driver's: a JVM raises its own."""
    return {name: resource.getrlimit(getattr(resource, name))[0] for name in _LIMITS}


def set_soft_limits(limits: Mapping[str, int]) -> None:
    """Set the soft limits of this process."""
    for name, soft in limits.items():
        number = getattr(resource, name)
        resource.setrlimit(number, (soft, resource.getrlimit(number)[1]))


class MissedModules:
    """A finder that finds nothing. As the last finder, it records the names of modules that were not found."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Record the name."""
        if path is None:
            self.names.add(name)


def modules_found(names: Iterable[str], path: Sequence[str]) -> dict[str, list[str]]:
    """Return where modules are found on a module path: nowhere, in one file, or in folders (a namespace package)."""
    return {name: _where(name, path) for name in names}


def _where(name: str, path: Sequence[str]) -> list[str]:
    spec = PathFinder.find_spec(name, path)
    if spec is None:
        return []
    return [
        os.path.realpath(place)
        for place in ([spec.origin] if spec.origin else spec.submodule_search_locations or [])
    ]


def other_modules(found: Mapping[str, list[str]], path: Sequence[str]) -> str:
    """Return the names of modules that this module path resolves differently from `found`; empty if none."""
    others = [name for name, places in modules_found(found, path).items() if places != found[name]]
    return ", ".join(sorted(others)[:5])


def known_entries(path: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return a module path in which known directories have their known names.

    So Python finds what it has read of them before. Also, links to them may disappear with their application.
    """
    names = {os.path.realpath(entry): entry for entry in known}
    return [names.get(os.path.realpath(entry), entry) for entry in path]
