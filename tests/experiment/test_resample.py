"""``data.resample`` repeats rows of small classes or leaves out rows of large ones.

It changes only the training rows, in the same way in every epoch.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from tfspark.experiment.config import Experiment
from tfspark.experiment.rows import Rows, load_rows

COUNTS = {"common": 300, "rare": 30, "rarest": 12}


@pytest.fixture(scope="module")
def table(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resample") / "rows"
    kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
    rows = [(number, kind) for number, kind in enumerate(kinds)]
    spark.createDataFrame(rows, "number bigint, kind string").repartition(3).write.parquet(str(path))
    return path


def load(spark: SparkSession, path: Path, resample: str) -> Rows:
    return load_rows(
        spark,
        Experiment.model_validate(
            {
                "name": "kinds",
                "model": {"module": "models/cnn.py"},
                "data": {
                    "path": str(path),
                    "format": "parquet",
                    "features": {"number": {}},
                    "label": {"column": "kind", "classes": list(COUNTS)},
                    "batch_size": 8,
                    "test": 0.25,
                    "resample": resample,
                },
                "train": {"class_weights": "balanced"},
            }
        ),
    )


def count_classes(df: DataFrame) -> dict[int, int]:
    return {row[0]: row[1] for row in df.groupBy("kind").count().collect()}


def test_over_sampling_feeds_every_row_and_rows_of_small_classes_several_times(
    spark: SparkSession, table: Path
) -> None:
    plain, over = load(spark, table, "none"), load(spark, table, "over")
    before, after = count_classes(plain.train), count_classes(over.train)
    assert after[0] == before[0]
    assert all(0.75 * before[0] < after[kind] < 1.25 * before[0] for kind in (1, 2))
    assert {row[0] for row in over.train.collect()} == {row[0] for row in plain.train.collect()}
    assert sorted(over.train.collect()) == sorted(over.train.collect())
    # The class weights, too, are computed from the rows that are fed.
    assert all(0.75 < weight < 1.25 for _, weight in over.columns.class_weights)


def test_under_sampling_leaves_rows_of_large_classes_out(spark: SparkSession, table: Path) -> None:
    plain, under = load(spark, table, "none"), load(spark, table, "under")
    before, after = count_classes(plain.train), count_classes(under.train)
    least = min(before.values())
    assert after[2] == before[2] == least
    assert all(0.3 * least < after[kind] < 2.5 * least for kind in (0, 1))
    numbers = [row[0] for row in under.train.collect()]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("resample", ["over", "under"])
def test_test_rows_are_not_resampled(spark: SparkSession, table: Path, resample: str) -> None:
    plain, changed = load(spark, table, "none"), load(spark, table, resample)
    assert plain.test is not None
    assert changed.test is not None
    assert sorted(changed.test.collect()) == sorted(plain.test.collect())
