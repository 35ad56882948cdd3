"""Rows per second of the feed against Spark's own limit, in the same minutes.

    python benchmarks/feed.py [--rows 60000] [--passes 6] [--partitions 8]

limit: `mapInArrow` whose function only counts the rows Spark hands to Python.
ours: the same DataFrame through feed tasks, leases and authenticated Arrow Flight into two trainers that take
batches and throw them away.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = 784


def main() -> None:
    options = parse()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        write_parquet(Path(directory), options.rows, options.partitions)
        spark = local_session()
        try:
            report(spark, directory, options)
        finally:
            spark.stop()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--ordered", action="store_true")
    return parser.parse_args()


def local_session() -> Any:
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[4]")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def write_parquet(directory: Path, rows: int, partitions: int) -> None:
    rng = np.random.default_rng(0)
    for part, count in enumerate(np.diff(np.linspace(0, rows, partitions + 1).astype(int))):
        values = rng.random((count, FEATURES), np.float32)
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(values.reshape(-1), FEATURES).cast(pa.list_(pa.float32())),
            "label": pa.array(rng.integers(0, 10, count)),
        }
        pq.write_table(pa.table(columns), directory / f"part-{part}.parquet")


def count_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    rows = sum(batch.num_rows for batch in batches)
    yield pa.RecordBatch.from_pydict({"rows": [rows]})


def drain(args: dict[str, int], ctx: Any) -> list[float]:
    """Take every batch of every pass; return the seconds of each pass."""
    from tfspark.feed.dataset import open_feed

    feed = open_feed(ctx, "train")
    seconds = []
    for _ in range(args["passes"]):
        began = time.monotonic()
        for _ in feed.batches():
            pass
        seconds.append(time.monotonic() - began)
    return seconds


def report(spark: Any, directory: str, options: argparse.Namespace) -> None:
    from tfspark import Feeding, TFCluster

    df = spark.read.parquet(directory)
    cluster = TFCluster.run(spark, drain, {"passes": options.passes + 1}, num_executors=2)
    ours, limit = [], []
    with cluster:
        for _ in range(options.passes + 1):
            began = time.monotonic()
            df.mapInArrow(count_rows, "rows bigint").collect()
            limit.append(options.rows / (time.monotonic() - began))
            began = time.monotonic()
            cluster.train(df, 1, batch_size=128, feeding=Feeding(ordered=options.ordered))
            ours.append(options.rows / (time.monotonic() - began))
    # The first pass starts Python workers and is not counted.
    ratios = [a / b for a, b in zip(ours[1:], limit[1:], strict=True)]
    print(f"rows of {FEATURES} float32 + int64, {options.rows} rows in {options.partitions} partitions")
    for name, values in (
        ("limit (mapInArrow, counting)", limit[1:]),
        ("tfspark, two trainers draining", ours[1:]),
    ):
        print(
            f"{name:<32} median {statistics.median(values):>9,.0f} rows/s  {min(values):,.0f}-{max(values):,.0f}"
        )
    print(
        f"{'ratio, pass by pass':<32} median {statistics.median(ratios):9.2f}  {min(ratios):.2f}-{max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
