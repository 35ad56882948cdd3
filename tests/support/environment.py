"""The environment a Spark process of the tests runs in: variables, a Spark home, quiet defaults.

Used by the fixtures in ``conftest.py`` and by the helpers that start driver programs and daemons.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pyspark

LOOPBACK = "127.0.0.1"
# Every process of one pytest run carries this variable: the leak guard finds re-parented orphans by it.
TEST_ID = "TFSPARK_TEST_ID"
# Every process of one driver program carries this one as well, executors below another daemon included. Only the warm
# parent that the programs share does not, nor its forks (`support.processes.marked_processes` knows them): it leaves
# out what begins as Spark's own variables do.
DRIVER_ID = "SPARK_TEST_DRIVER"
# Driver programs in which this variable says the same share a warm parent: those of one pytest process, unless a test
# is about warm parents or about what a start costs (`OWN_WARM_PARENT`).
SHARED_BY = "TFSPARK_SHARED_WARM_PARENT"
OWN_WARM_PARENT = {SHARED_BY: ""}

REPOSITORY = Path(__file__).resolve().parents[2]
TESTS = REPOSITORY / "tests"

# A JVM of a test lives for seconds: what the second compiler and several collector threads would cost it, it never
# gains back. Measured: half of the CPU of a session with a few small queries.
QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

# Confs that every session and driver of the tests starts from.
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
    """Return a PYTHONPATH on which ``tfspark``, ``models`` and ``support`` can be imported."""
    wanted = [str(REPOSITORY), str(TESTS)]
    return os.pathsep.join(wanted + [p for p in inherited.split(os.pathsep) if p and p not in wanted])


def spark_environment(spark_home: Path, conf_dir: Path, local_dir: Path) -> dict[str, str]:
    """Return the variables for a process that starts a JVM of Spark.

    Args:
        spark_home: a directory made by `make_spark_home`.
        conf_dir: holds ``spark-defaults.conf``; what the machine has in its own Spark home is not read.
        local_dir: where Spark puts its scratch files.
    """
    return {
        **os.environ,
        "SPARK_HOME": str(spark_home),
        "SPARK_CONF_DIR": str(conf_dir),
        "SPARK_LOCAL_DIRS": str(local_dir),
        # Without it, executors and daemons bind the machine's outward address, whatever the driver does.
        "SPARK_LOCAL_IP": LOOPBACK,
        "SPARK_NO_DAEMONIZE": "1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", "")),
        **shared_warm_parent(),
    }


def shared_warm_parent() -> dict[str, str]:
    """Return the variable by which programs of this pytest process share a warm parent."""
    return {SHARED_BY: os.environ.get(TEST_ID, "")}


def bare_environment(home: Path, **more: str) -> dict[str, str]:
    """Return what a shell has that knows nothing of this Python: few variables, a PATH without it.

    PYTHONPATH stands for an installed tfspark.

    Args:
        home: the user's home.
        more: further variables.
    """
    java = os.environ.get("JAVA_HOME") or Path(shutil.which("java") or "").parents[1]
    path = os.pathsep.join(dict.fromkeys((f"{java}/bin", "/usr/bin", "/bin")))
    return {"HOME": str(home), "PATH": path, "PYTHONPATH": str(REPOSITORY), **more}


def make_spark_home(directory: Path) -> Path:
    """Make a Spark home of links into the installed pyspark package.

    Daemons and ``local-cluster`` write their ``work`` directory into SPARK_HOME. With the package itself as
    the home, that is litter in site-packages, shared by everything that runs at the same time.
    """
    directory.mkdir(parents=True)
    package = Path(pyspark.__path__[0])
    for name in ("bin", "jars", "python", "sbin"):
        (directory / name).symlink_to(package / name)
    return directory


def write_defaults(conf_dir: Path, conf: Mapping[str, str]) -> Path:
    """Write ``spark-defaults.conf``, from which any Spark program started with this directory begins."""
    conf_dir.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} {value}\n" for key, value in conf.items()]
    (conf_dir / "spark-defaults.conf").write_text("".join(lines))
    return conf_dir
