"""Rows in files of each format that Spark cuts by the number of its cores."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as sf

from tfspark.tfrecord import register

NUM_ROWS = 3000


FORMATS = ("parquet", "csv", "json", "tfrecord", "orc")


@pytest.fixture(scope="module")
def files(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same rows in each format, in two files of different sizes."""
    register(spark)
    place = tmp_path_factory.mktemp("cuts")
    spark.sparkContext.setCheckpointDir(str(place / "checkpoints"))
    first = spark.range(0, 2 * NUM_ROWS // 3, 1, 1)
    for number, ids in enumerate((first, spark.range(2 * NUM_ROWS // 3, NUM_ROWS, 1, 1))):
        rows = ids.withColumn("pad", sf.sha2(sf.col("id").cast("string"), 512))
        for kind in FORMATS[1:]:
            rows.write.format(kind).mode("append").save(str(place / kind))
        (place / "parquet").mkdir(exist_ok=True)
        # Small groups of rows, so that a small file can be cut.
        pq.write_table(rows.toArrow(), place / f"parquet/part-0{number}.parquet", row_group_size=100)
    return place
