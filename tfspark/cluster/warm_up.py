"""Start warm parents on executors before the nodes start. Runs on the driver."""

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
    """Start warm parents on the current executors while the block prepares what the nodes need.

    Args:
        spark: the session.
        num_nodes: number of nodes that will start; 0: none of them is forked.
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
        job.cancel()  # It has ended by now, unless the block failed early.
