"""Start warm parents before the nodes need them. Runs in the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tfspark.cluster.preflight import is_local, is_local_master
from tfspark.cluster.python_tasks import python_tasks
from tfspark.cluster.sparkjob import SparkJob
from tfspark.node.lending import Process, parent_before_spark, parent_of_local_executor
from tfspark.node.task import WarmUp
from tfspark.node.warm import ColdError, WantedParent, prepare

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def warming_up(spark: SparkSession, num_nodes: int) -> Iterator[None]:
    """Start warm parents on the current executors while the block prepares what the nodes need.

    On a local master the driver starts the warm parent itself. The nodes start at once there, and a Spark job would
    delay them.

    Args:
        spark: the session.
        num_nodes: number of nodes that will start; 0: none of them is forked.
    """
    if not num_nodes:
        yield
        return
    if is_local(spark):
        if hasattr(spark, "_jsparkSession"):  # A classic session.
            _start_ahead(lambda: parent_of_local_executor(spark))
        yield
        return
    job = SparkJob(spark, lambda: python_tasks(spark, WarmUp(), num_nodes), "tfspark warm-up")
    try:
        yield
    finally:
        job.cancel()  # It has ended by now, unless the block failed early.


def warm_up_before_spark(master: str, settings: Mapping[str, str]) -> None:
    """Start the warm parent of a local master's executor before there is a session.

    Args:
        master: the master URL of the future session.
        settings: the Spark settings of the future session.
    """
    if is_local_master(master):
        _start_ahead(lambda: parent_before_spark(settings))


def driver_of_local_executor(spark: SparkSession) -> Process | None:
    """Return this process if it may have started a warm parent for Spark's tasks; see `warming_up`."""
    if not is_local(spark) or not hasattr(spark, "_jsparkSession"):
        return None
    with suppress(OSError):  # Not Linux.
        return Process.this()
    return None


def _start_ahead(wanted: Callable[[], WantedParent | None]) -> None:
    with suppress(ColdError, OSError):  # The node will say why.
        if (parent := wanted()) is not None:
            prepare(parent)
