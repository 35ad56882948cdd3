"""Run a Spark driver program in a separate process.

A process can have only one SparkContext, and the test process has the one of the `spark` fixture. A test on another
master runs its driver program in a separate process::

    result = run_driver("local-cluster[2,2,2048]", '''
        from pyspark.sql import SparkSession
        spark = SparkSession.builder.getOrCreate()
        print(spark.range(10).count())
    ''', timeout_s=60).check()
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.environment import BASE_CONF, DRIVER_ID, make_spark_home, spark_environment, write_properties
from support.processes import Finished, run_to_end

DriverResult = Finished


def run_driver(
    master: str,
    code_or_script: str | Path,
    *args: str,
    timeout_s: float,
    conf: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    grace_s: float = 10.0,
) -> DriverResult:
    """Run a Python program as a Spark driver and return its outcome.

    The master and the confs are defaults that ``SparkSession.builder.getOrCreate()`` uses; the program may override
    them. The program and its executors can import ``tfspark``, ``models`` and ``support``.

    Args:
        master: for example ``local[2]``, ``local-cluster[2,2,2048]`` or a standalone cluster's URL.
        code_or_script: a `Path` of a script, or source code, which may be indented as a whole.
        args: the program's arguments.
        timeout_s: deadline of the program; after it, its whole process tree is killed.
        conf: Spark confs, added to `support.environment.BASE_CONF`.
        env: environment variables, added to the test's own.
        grace_s: seconds for its child processes to end after it. Processes that still run then are survivors.
    """
    driver_id = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="driver-") as directory:
        home = Path(directory)
        confs = {"spark.master": master, **driver_conf(home, driver_id), **(conf or {})}
        environment = spark_environment(make_spark_home(home / "spark"), home / "local")
        environment["PYSPARK_SUBMIT_ARGS"] = write_properties(home / "spark.conf", confs)
        return run_to_end(
            [sys.executable, str(_script(code_or_script, home)), *args],
            env={**environment, **(env or {})},
            mark=(DRIVER_ID, driver_id),
            cwd=home,
            timeout_s=timeout_s,
            grace_s=grace_s,
        )


def driver_conf(home: Path, driver_id: str) -> dict[str, str]:
    """Return the confs of a driver program with the directory ``home``."""
    return {
        **BASE_CONF,
        "spark.sql.warehouse.dir": str(home / "warehouse"),
        # A standalone worker starts executors from its own environment, not from the driver's.
        f"spark.executorEnv.{DRIVER_ID}": driver_id,
    }


def _script(code_or_script: str | Path, home: Path) -> Path:
    if isinstance(code_or_script, Path):
        return code_or_script.resolve()
    script = home / "driver.py"
    script.write_text(textwrap.dedent(code_or_script))
    return script


def submit_arguments(conf: Mapping[str, str], script: Path, args: Sequence[str]) -> list[str]:
    """Return the arguments of ``spark-submit``."""
    confs = [part for key, value in conf.items() for part in ("--conf", f"{key}={value}")]
    return [*confs, str(script), *args]
