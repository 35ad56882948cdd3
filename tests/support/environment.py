"""The environment of the tests' Spark processes: variables, a Spark home, quiet defaults.

Used by the fixtures in ``conftest.py`` and by the helpers that start driver programs and daemons.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pyspark

from support.class_archive import ARCHIVE

LOOPBACK = "127.0.0.1"
# Every process of one pytest run has this variable: the leak guard finds re-parented orphans by it.
TEST_ID = "TFSPARK_TEST_ID"
# Every process of one driver program also has this variable, including executors that a daemon has started. Only the
# warm parent that programs share and its forks do not have it, because a warm parent drops variables with Spark's
# prefix; `support.processes.marked_processes` finds the forks.
DRIVER_ID = "SPARK_TEST_DRIVER"
# Driver programs with the same value of this variable share a warm parent. All programs of one pytest process have the
# same value, except in tests of warm parents or of the cost of a start (`OWN_WARM_PARENT`).
SHARED_BY = "TFSPARK_SHARED_WARM_PARENT"
OWN_WARM_PARENT = {SHARED_BY: ""}

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = REPOSITORY / "tests"

# A test's JVM runs for seconds, so the second compiler and several collector threads would cost more than they save.
# Measured: half of the CPU of a session with a few small queries.
QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
if ARCHIVE.exists():
    # Log only errors: a JVM whose jars differ from those of the archive would print a warning to its standard output.
    QUICK_JVM += f" -XX:SharedArchiveFile={ARCHIVE} -Xlog:disable -Xlog:all=error:stderr"

# The base confs of every session and driver of the tests.
BASE_CONF: Mapping[str, str] = {
    "spark.driver.host": LOOPBACK,
    "spark.driver.bindAddress": LOOPBACK,
    "spark.driver.memory": "1g",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "4",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.executor.extraJavaOptions": QUICK_JVM,
}


def python_path(inherited: str = "") -> str:
    """Return a PYTHONPATH with ``tfspark``, ``models`` and ``support``."""
    wanted = [str(REPOSITORY), str(TESTS)]
    return os.pathsep.join(wanted + [p for p in inherited.split(os.pathsep) if p and p not in wanted])


def spark_environment(spark_home: Path, local_dir: Path) -> dict[str, str]:
    """Return the variables for a process that starts a JVM of Spark.

    Args:
        spark_home: a directory from `make_spark_home`; it replaces the machine's own Spark home.
        local_dir: for Spark's scratch files.
    """
    # SPARK_CONF_DIR would be on the JVM's class path, and a JVM with an archive of classes allows no directory there.
    inherited = {name: value for name, value in os.environ.items() if name != "SPARK_CONF_DIR"}
    return {
        **inherited,
        "SPARK_HOME": str(spark_home),
        "SPARK_LOCAL_DIRS": str(local_dir),
        # Without it, executors and daemons bind the machine's external address, whatever the driver binds.
        "SPARK_LOCAL_IP": LOOPBACK,
        "SPARK_NO_DAEMONIZE": "1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", "")),
        **shared_warm_parent(),
    }


def shared_warm_parent() -> dict[str, str]:
    """Return the variable that makes the programs of this pytest process share a warm parent."""
    return {SHARED_BY: os.environ.get(TEST_ID, "")}


def bare_environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a shell without this Python: few variables, and a PATH without it.

    PYTHONPATH takes the place of an installed tfspark.

    Args:
        home: the user's home.
        more: further variables.
    """
    java = os.environ.get("JAVA_HOME") or Path(shutil.which("java") or "").parents[1]
    path = os.pathsep.join(dict.fromkeys((f"{java}/bin", "/usr/bin", "/bin")))
    return {"HOME": str(home), "PATH": path, "PYTHONPATH": str(REPOSITORY), **more}


def make_spark_home(directory: Path) -> Path:
    """Create a Spark home with links to the installed pyspark package.

    Daemons and ``local-cluster`` write their ``work`` directory to SPARK_HOME. If the package itself were the home,
    all programs that run at the same time would write to site-packages.

    There is no link to ``python``: Spark would put its ``pyspark.zip`` first on the path of each Python process, which
    then compiles the modules anew. Measured: 1 s of CPU for each executor and driver program.
    """
    directory.mkdir(parents=True)
    package = Path(pyspark.__path__[0])
    for name in ("bin", "jars", "sbin"):
        (directory / name).symlink_to(package / name)
    return directory


def write_properties(path: Path, conf: Mapping[str, str]) -> str:
    """Write Spark settings to a file; return the value of PYSPARK_SUBMIT_ARGS that makes them a program's defaults."""
    path.write_text("".join(f"{key} {value}\n" for key, value in conf.items()))
    return f"--properties-file {path} pyspark-shell"
