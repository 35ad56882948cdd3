"""Partitions are served in a different order in every epoch; the orders are the same for the same seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as sf
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.cluster.partition_order import (
    MAX_BLOCKS,
    mixed_blocks,
    with_mixed_partitions,
    without_partitions,
)
from tfspark.errors import DataError


@given(num_partitions=st.integers(1, 2000), seed=st.integers(0, 99), index=st.integers(0, 9))
def test_blocks_hold_each_partition_once_for_any_number_of_partitions(
    num_partitions: int, seed: int, index: int
) -> None:
    blocks = mixed_blocks(num_partitions, seed, index)
    assert len(blocks) == min(num_partitions, MAX_BLOCKS)
    assert sorted(p for block in blocks for p in block) == list(range(num_partitions))
    assert blocks == mixed_blocks(num_partitions, seed, index)


def test_blocks_of_a_different_pass_or_seed_have_a_different_order() -> None:
    orders = [mixed_blocks(50, seed, index) for seed, index in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("shuffled", [False, True], ids=["without a shuffle", "after a shuffle"])
def test_rows_with_mixed_partitions_are_the_same_rows_in_the_returned_order(
    spark: SparkSession, shuffled: bool
) -> None:
    df = df_with_partitions(spark, [3, 0, 5, 1, 4, 2])
    df = df.repartition(5, "id") if shuffled else df
    placed = df.select("id", sf.spark_partition_id().alias("partition"))
    mixed, order = with_mixed_partitions(placed, seed=3, index=1)
    assert mixed.schema == placed.schema
    expected = placed.collect()
    assert mixed.collect() == [row for p in order for row in expected if row["partition"] == p]
    assert order != sorted(order)


@pytest.mark.parametrize("mixed", [False, True])
def test_partitions_that_are_left_out_are_not_computed(spark: SparkSession, mixed: bool) -> None:
    placed = df_with_partitions(spark, [3, 0, 5, 1, 4, 2]).select(
        "id", sf.spark_partition_id().alias("place")
    )
    rows, order = with_mixed_partitions(placed, seed=3, index=1) if mixed else (placed, list(range(6)))
    wanted = [2, 4]
    names = [order[partition] for partition in wanted]
    others_fail = rows.withColumn("wanted", sf.assert_true(sf.col("place").isin(names)))

    some = without_partitions(others_fail, [0, 1, 3, 5]).collect()

    assert [row["id"] for row in some] == [
        row["id"] for name in names for row in placed.collect() if row["place"] == name
    ]
    assert without_partitions(others_fail, range(6)).collect() == []
    with pytest.raises(Exception, match="is not true"):
        others_fail.collect()


def test_error_in_a_mixed_pass_names_the_partition_by_its_number_in_the_dataframe(
    spark: SparkSession,
) -> None:
    rows = df_with_partitions(spark, [5, 5, 5, 5, 5, 5], num_classes=30).where("label <= 22")

    def main_fun(args: object, ctx: object) -> None:
        from tfspark.training.input.dataset import open_feed

        for _ in open_feed(ctx, "train").batches():  # type: ignore[arg-type]
            pass

    with (
        pytest.raises(DataError, match="partition 4, row 2: label 'label' is 22"),
        TFCluster.run(spark, main_fun, None, 1) as cluster,
    ):
        cluster.train(rows, features=["id"], num_classes=22, feeding=Feeding(shuffle_rows=64))
