"""`df_with_partitions` makes exactly the rows and the partitions that a test asks for."""

import numpy as np
import pytest
from support.rows import df_with_partitions, features_of, label_of, partition_sizes


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ([5, 0, 100], "an empty partition in the middle"),
        ([0, 0, 2500, 0], "one partition holds everything, in several batches"),
        ([0, 0], "no rows at all"),
        ([1] * 9, "more partitions than slots"),
    ],
)
def test_df_with_partitions_keeps_the_layout(spark, sizes, why):
    df = df_with_partitions(spark, sizes)

    assert df.rdd.getNumPartitions() == len(sizes)
    assert partition_sizes(df) == sizes, why
    assert partition_sizes(df) == sizes, "computed a second time"


def test_df_with_partitions_when_transformed_keeps_the_layout(spark):
    df = (
        df_with_partitions(spark, [3, 0, 4])
        .selectExpr("id", "features[0] AS first", "label")
        .where("id >= 0")
    )

    assert partition_sizes(df) == [3, 0, 4]


def test_df_with_partitions_has_rows_that_follow_from_their_ids(spark):
    rows = df_with_partitions(spark, [5, 0, 2], num_features=3, num_classes=4).collect()

    ids = np.array([row.id for row in rows])
    assert ids.tolist() == list(range(7))
    np.testing.assert_array_equal(np.float32([row.features for row in rows]), features_of(ids, 3))
    assert [row.label for row in rows] == label_of(ids, 4).tolist()


@pytest.mark.parametrize("sizes", [[], [3, -1]])
def test_df_with_partitions_refuses_sizes_that_are_no_layout(spark, sizes):
    with pytest.raises(ValueError, match="row counts >= 0"):
        df_with_partitions(spark, sizes)
