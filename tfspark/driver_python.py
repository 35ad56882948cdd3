"""Choose the Python that Spark starts, and the module path of trainers. Runs on the driver."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOREIGN_PYTHON = ("No module named 'tfspark'", "No module named 'pyarrow'", "Cannot run program")


def module_paths(paths: Iterable[str] | None = None) -> list[str]:
    """Return the absolute directories and archives in which the driver's program finds its own modules.

    Trainers look there last. So a package beside the script is found from any working directory, if the executors see
    the driver's files. Installed packages are not included: each machine has its own.

    Args:
        paths: by default ``sys.path``.
    """
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found = (os.path.abspath(path) for path in (sys.path if paths is None else paths))
    return [
        path for path in dict.fromkeys(found) if os.path.exists(path) and not _is_installed(path, installed)
    ]


def _is_installed(path: str, installed: set[str]) -> bool:
    parts = path.split(os.sep)
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or any(path.startswith(root) for root in installed)
    )


def use_own_python(spark: SparkSession) -> None:
    """Make Spark start its Python workers with the driver's interpreter, if no interpreter is set.

    By default Spark uses the ``python3`` of PATH. That is a different one if the program was started by the path of its
    interpreter, for example by an IDE or by cron. On another machine the driver's path may not exist, so this is only
    for masters within this machine.
    """
    context: Any = getattr(spark, "_sc", None)  # Spark Connect has none.
    if context is None or "PYSPARK_PYTHON" in os.environ:
        return
    if str(spark.conf.get("spark.master", "")).startswith("local"):
        context.pythonExec = spark.conf.get("spark.pyspark.python", None) or sys.executable


def stop_progress_bar(spark: SparkSession) -> None:
    """Stop Spark's progress bar on the console, which PySpark turns on by default.

    Nodes are tasks that run as long as the cluster. The bar would show them as a stage without progress, over and
    between the program's own lines.
    """
    context: Any = getattr(spark, "_jsparkSession", None)
    with contextlib.suppress(
        Exception
    ):  # None on Spark Connect; the accessor is internal to Spark, and may be removed.
        bar = context.sparkContext().progressBar()
        if bar.isDefined():
            bar.get().stop()


def python_advice(message: str) -> str:
    """Return advice if Spark's Python workers could not start; empty for other failures."""
    if not any(sign in message for sign in FOREIGN_PYTHON):
        return ""
    return (
        "; the executors run a different Python than the driver, or one without tfspark: set PYSPARK_PYTHON (or "
        "spark.pyspark.python) to an interpreter that every executor has, with the same packages as the driver's "
        f"({sys.executable})"
    )
