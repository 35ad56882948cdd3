"""Environment variables of the trainers, where they find modules, and which Python Spark starts.

A node task calls `trainer_environment` on its executor; the driver calls `module_paths` and `use_own_python`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FOREIGN_PYTHON = ("No module named 'tfspark'", "No module named 'pyarrow'", "Cannot run program")
OF_ONE_TRAINER = ("TF_CONFIG", "CUDA_VISIBLE_DEVICES", "TMPDIR", "no_grpc_proxy")
"""Variables that TensorFlow and Python read late: a warm parent can give each trainer its own."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def trainer_environment(
    inherited: Mapping[str, str],
    tf_config: str,
    scratch: str,
    import_paths: Sequence[str],
    module_paths: Sequence[str] = (),
) -> dict[str, str]:
    """Return the environment of a trainer.

    Args:
        inherited: the node task's own.
        tf_config: TensorFlow's description of the cluster, JSON; empty for a node that knows no others.
        scratch: directory for temporary files.
        import_paths: where the node task finds modules.
        module_paths: where the driver's program finds its own; see `module_paths`.
    """
    environment = {
        **shared_environment(inherited, [*import_paths, *module_paths]),
        **no_proxy_between_nodes(inherited, tf_config),
        "TMPDIR": scratch,  # TensorFlow leaves files there, since a trainer has no orderly exit.
    }
    if tf_config:  # One that is inherited is another cluster's.
        environment["TF_CONFIG"] = tf_config
    if "CUDA_VISIBLE_DEVICES" in inherited:
        environment["CUDA_VISIBLE_DEVICES"] = inherited["CUDA_VISIBLE_DEVICES"]
    return environment


def shared_environment(inherited: Mapping[str, str], import_paths: Sequence[str]) -> dict[str, str]:
    """Return the part of a trainer's environment that is one for all trainers of a node task's process.

    Args:
        inherited: the node task's own.
        import_paths: where to find modules.
    """
    environment = {
        **{name: value for name, value in inherited.items() if name not in OF_ONE_TRAINER},
        "TF_GRPC_REUSE_PORT": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in import_paths if path)),
        # Other work of the same user may need another one; `keras.json` gives way to the variable.
        "KERAS_BACKEND": "tensorflow",
    }
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    return environment


def no_proxy_between_nodes(inherited: Mapping[str, str], tf_config: str) -> dict[str, str]:
    """Return the variable by which TensorFlow's gRPC reaches the nodes directly, whatever proxies are set.

    Only the nodes' hosts are excepted: programs may need the proxy for downloads. gRPC reads ``no_grpc_proxy`` before
    ``no_proxy``, so what that says is kept.
    """
    known = inherited.get("no_grpc_proxy") or inherited.get("no_proxy") or inherited.get("NO_PROXY") or ""
    hosts = [entry.strip() for entry in known.split(",")]
    return {
        "no_grpc_proxy": ",".join(dict.fromkeys(filter(None, [*hosts, *LOCAL_HOSTS, *_hosts(tf_config)])))
    }


def _hosts(tf_config: str) -> list[str]:
    addresses = json.loads(tf_config or "{}").get("cluster", {}).values()
    return [urlsplit(f"//{address}").hostname or "" for of_role in addresses for address in of_role]


def module_paths(paths: Iterable[str] | None = None) -> list[str]:
    """Return the absolute directories and archives in which the driver's program finds modules of its own.

    Trainers look there last. So a package beside the script is found from any working directory, where the
    executors see the driver's files. What is installed is left out: each machine has its own.

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
    """Let Spark start its Python workers with the driver's interpreter, where it was told of none.

    Spark takes ``python3`` of PATH by default. That is another one if the program was started by the path of its
    interpreter, as from an IDE or by cron. On another machine the driver's path may mean nothing, so this is for
    masters within this machine.
    """
    context: Any = getattr(spark, "_sc", None)  # Spark Connect has none.
    if context is None or "PYSPARK_PYTHON" in os.environ:
        return
    if str(spark.conf.get("spark.master", "")).startswith("local"):
        context.pythonExec = spark.conf.get("spark.pyspark.python", None) or sys.executable


def stop_progress_bar(spark: SparkSession) -> None:
    """Stop Spark's progress bar on the console, which PySpark turns on by itself.

    Nodes are tasks that last as long as the cluster. The bar would show them as a stage that does not get on, over and
    between the program's own lines.
    """
    context: Any = getattr(spark, "_jsparkSession", None)
    with contextlib.suppress(
        Exception
    ):  # None on Spark Connect; the accessor is Spark's own, and may be gone.
        bar = context.sparkContext().progressBar()
        if bar.isDefined():
            bar.get().stop()


def python_advice(message: str) -> str:
    """Return what to do about a failure of Spark's Python workers to start; empty if it is something else."""
    if not any(sign in message for sign in FOREIGN_PYTHON):
        return ""
    return (
        "; the executors run another Python than the driver, or one without tfspark: set PYSPARK_PYTHON (or "
        "spark.pyspark.python) to an interpreter that every executor has, with the same packages as the driver's "
        f"({sys.executable})"
    )
