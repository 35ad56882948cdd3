"""Choose which partitions of a pass Spark serves, and in which order. Runs on the driver.

Spark starts the tasks of a job in the order of the partitions, so mixing rows needs a different order in every epoch.
The DataFrame API cannot change this order, but the RDD API can: a union of copies of the RDD, each reduced to some of
its partitions (`PartitionPruningRDD`). No row moves, and every partition keeps its preferred hosts.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from tfspark.cluster.jvm import java_class

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MAX_BLOCKS = 64
"""Maximum number of blocks of neighbouring partitions that are mixed: each costs the driver some milliseconds."""


def mixed_blocks(num_partitions: int, seed: int, index: int) -> list[list[int]]:
    """Return all partitions as blocks of neighbours; the blocks are in the order of pass `index`."""
    blocks = np.array_split(np.arange(num_partitions), min(num_partitions, MAX_BLOCKS))
    order = np.random.default_rng([seed, index]).permutation(len(blocks))
    return [blocks[number].tolist() for number in order]


def mixed_order(num_partitions: int, seed: int, index: int) -> list[int]:
    """Return all partitions in the order of pass `index`; empty if there is nothing to mix."""
    blocks = mixed_blocks(num_partitions, seed, index)
    return _flat(blocks) if len(blocks) > 1 else []


def _flat(blocks: list[list[int]]) -> list[int]:
    return [partition for block in blocks for partition in block]


def with_mixed_partitions(df: DataFrame, seed: int, index: int) -> tuple[DataFrame, list[int]]:
    """Return the same rows with their partitions in the order of pass `index`, and that order.

    On Spark Connect, which has no RDD, the order does not change.
    """
    if not hasattr(df, "_jdf"):
        return df, []
    rows = df._jdf.queryExecution().toRdd()
    blocks = mixed_blocks(rows.getNumPartitions(), seed, index)
    if len(blocks) < 2:
        return df, []
    return _of_blocks(df, rows, blocks), _flat(blocks)


def without_partitions(df: DataFrame, left_out: Collection[int]) -> DataFrame:
    """Return a DataFrame without some of its partitions; these are not computed.

    It does not work on Spark Connect, which has no RDD.
    """
    rows = df._jdf.queryExecution().toRdd()
    return _of_blocks(df, rows, [[n for n in range(rows.getNumPartitions()) if n not in left_out]])


def _of_blocks(df: DataFrame, rows: object, blocks: list[list[int]]) -> DataFrame:
    from pyspark.sql import DataFrame

    spark = df.sparkSession
    java = functools.partial(java_class, spark.sparkContext)
    scala = java("scala.jdk.javaapi.CollectionConverters")
    pruned = java("org.apache.spark.rdd.PartitionPruningRDD")
    parts = java("java.util.ArrayList")()
    for block in blocks:
        # In Scala, a set of numbers is also a function that returns whether a number is in the set.
        chosen = scala.asScala(java("java.util.HashSet")(block)).toSet()
        parts.add(pruned.create(rows, chosen))
    union = spark.sparkContext._jsc.sc().union(scala.asScala(parts).toSeq(), rows.elementClassTag())  # type: ignore[attr-defined]
    return DataFrame(spark._jsparkSession.internalCreateDataFrame(union, df._jdf.schema(), False), spark)
