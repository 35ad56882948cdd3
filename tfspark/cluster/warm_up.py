"""Starts warm parents on executors before the nodes come. Runs on the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tfspark.cluster.sparkjob import SparkJob
from tfspark.node.task import NODE_RESULT_DDL, WarmUp

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def warming_up(spark: SparkSession, num_nodes: int) -> Iterator[None]:
    """Start warm parents on the executors that are there, while the driver prepares what the nodes need in the block.

    Args:
        spark: the session.
        num_nodes: how many nodes will come; 0: none that is forked.
    """
    if not num_nodes:
        yield
        return
    job = SparkJob(
        spark,
        lambda: spark.range(0, num_nodes, 1, num_nodes).mapInArrow(WarmUp(), NODE_RESULT_DDL),
        "tfspark warm-up",
    )
    try:
        yield
    finally:
        job.cancel()  # Ended by now, unless something failed at once.
