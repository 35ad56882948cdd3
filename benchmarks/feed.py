"""Measure rows per second of the feed against Spark's own limit and tf.data, in the same minutes.

    python benchmarks/feed.py                  four kinds of rows: limits, feed, node cache, CPU per row
    python benchmarks/feed.py --files tfrecord --kinds float,digit      the same from TFRecord files
    python benchmarks/feed.py --ordered        rows in order of arrival, by position, and shuffled by position
    python benchmarks/feed.py --again          rows of a later training: read again, and from the first one's cache
    python benchmarks/feed.py --growth         time per row by partitions, rows and workers; draws feed_growth.png
    python benchmarks/feed.py --training       two workers that train, on rows from the feed and from memory

limit A: `mapInArrow` whose function only counts the rows that Spark sends to Python.
limit B: tf.data over the same rows in the memory of one process; with --files tfrecord, tf.data over the files
(`TFRecordDataset`, two readers, batched `parse_example`).
through Spark: the same DataFrame through feed tasks, leases and authenticated Arrow Flight to two trainers that
read batches and discard them; Spark reads the files. direct: the feed tasks read them. cache: the same from the
second epoch on, with `FeedOptions(cache="node")`.

Needs no data.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import growth
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import training_from_feed
from pyspark import cloudpickle
from trainers import TRAINER, all_processes

BATCH_ROWS = 128
SIZES_OF_BYTES = {"digit": 784, "image": 3072}
PASSES = 8


def main() -> None:
    options = parse()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        spark = local_session(options.slots)
        try:
            # Trainers cannot import these modules, so their functions are pickled by value.
            for module in (growth, training_from_feed):
                cloudpickle.register_pickle_by_value(module)
            if options.growth:
                growth.report(spark, Path(__file__).with_name("feed_growth.png"))
            elif options.training:
                training_from_feed.report(spark, options.rows)
            else:
                print(
                    f"{options.rows} rows in {options.partitions} partitions, two trainers, batches of {BATCH_ROWS}; "
                    "rows/s"
                )
                report = (
                    report_ordered if options.ordered else report_again if options.again else report_kinds
                )
                report(spark, Path(directory), options)
        finally:
            spark.stop()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument(
        "--kinds", default="float,image,mixed,text", help="of float, digit, image, mixed, text"
    )
    parser.add_argument("--files", default="parquet", choices=("parquet", "tfrecord"))
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--tls", action="store_true", help="encrypt the feed")
    parser.add_argument("--ordered", action="store_true")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--training", action="store_true")
    return parser.parse_args()


def local_session(slots: int) -> Any:
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master(f"local[{slots}]")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.memory", "3g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


# --- kinds of rows ---------------------------------------------------------------------------------


def rows_of(kind: str, count: int, rng: np.random.Generator) -> pa.Table:
    """Return rows of a kind, with the label as the last column."""
    label = pa.array(rng.integers(0, 10, count))
    if kind == "float":
        values = pa.array(rng.random(count * 784, np.float32))
        return pa.table({"x": _lists(values, 784), "label": label})
    if kind in SIZES_OF_BYTES:
        values = rng.integers(0, 256, (count, SIZES_OF_BYTES[kind]), np.uint8)
        return pa.table({"x": _texts(values, pa.binary()), "label": label})
    if kind == "text":
        return pa.table(
            {"x": _texts(rng.integers(97, 123, (count, 200), np.uint8), pa.string()), "label": label}
        )
    scalars: dict[str, Any] = {f"f{i}": pa.array(rng.random(count, np.float32)) for i in range(15)}
    scalars |= {f"d{i}": pa.array(rng.random(count)) for i in range(10)}
    scalars |= {f"i{i}": pa.array(rng.integers(0, 1000, count).astype(np.int32)) for i in range(10)}
    scalars |= {f"b{i}": pa.array(rng.random(count) < 0.5) for i in range(4)}
    return pa.table({**scalars, "label": label})


def _lists(values: pa.Array, size: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values, size).cast(pa.list_(pa.float32()))


def _texts(values: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    count, width = values.shape
    offsets = pa.py_buffer(np.arange(count + 1, dtype=np.int32) * width)
    return pa.Array.from_buffers(kind, count, [None, offsets, pa.py_buffer(np.ascontiguousarray(values))])


def columns_of(kind: str, table: pa.Table) -> Any:
    from tfspark import Column, Columns

    names = [name for name in table.column_names if name != "label"]
    dtype = "uint8" if kind in SIZES_OF_BYTES else None
    return Columns(tuple(Column(name, dtype=dtype) for name in names), Column("label"))


def write_parquet(directory: Path, table: pa.Table, partitions: int) -> None:
    directory.mkdir()
    bounds = np.linspace(0, table.num_rows, partitions + 1).astype(int)
    for part, (first, end) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(first, end - first), directory / f"part-{part}.parquet")


def write_tfrecords(spark: Any, directory: Path, table: pa.Table, partitions: int) -> None:
    from tfspark.tfrecord import register

    register(spark)
    write_parquet(directory.with_name("rows"), table, partitions)
    rows = spark.read.option("mergeSchema", "false").parquet(str(directory.with_name("rows")))
    rows.write.format("tfrecord").mode("append").save(str(directory))


# --- timed functions -------------------------------------------------------------------------------


def limit_a(df: Any) -> float:
    began = time.monotonic()
    df.mapInArrow(growth.count_rows, "rows bigint").collect()
    return time.monotonic() - began


def rows_in_memory(table: pa.Table, columns: Any) -> Any:
    import tensorflow as tf

    from tfspark.feed.arrays import to_numpy

    arrays = to_numpy(table.combine_chunks().to_batches()[0], columns)
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH_ROWS).prefetch(2)


def rows_of_tfrecords(directory: Path, kind: str) -> Any:
    import tensorflow as tf

    x = tf.io.FixedLenFeature([784], tf.float32) if kind == "float" else tf.io.FixedLenFeature([], tf.string)
    wanted = {"x": x, "label": tf.io.FixedLenFeature([], tf.int64)}

    def parsed(records: Any) -> Any:
        found = tf.io.parse_example(records, wanted)
        # One tensor of numbers for each batch, as in the feed.
        return found if kind == "float" else {**found, "x": tf.io.decode_raw(found["x"], tf.uint8)}

    names = tf.data.Dataset.list_files(str(directory / "*.tfrecord"), shuffle=False)
    records = names.interleave(tf.data.TFRecordDataset, cycle_length=2, num_parallel_calls=2)
    return records.batch(BATCH_ROWS).map(parsed, num_parallel_calls=2).prefetch(2)


def limit_b(dataset: Any) -> float:
    """Return the shortest time of three runs over a dataset."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        for _ in dataset:
            pass
        seconds.append(time.monotonic() - began)
    return min(seconds)


def drain(args: dict[str, int], ctx: Any) -> int:
    """Read and discard every batch of every pass."""
    from tfspark.training.input.dataset import open_feed

    feed = open_feed(ctx, "train")
    return sum(1 for _ in range(args["passes"]) for _ in feed.batches())


def fed(
    spark: Any, df: Any, columns: Any, cache: bool, tls: bool, **feeding: Any
) -> tuple[list[float], list[float], dict[str, float]]:
    """Return seconds of each pass of the feed, seconds of limit A between them, and CPU seconds by process."""
    from tfspark import FeedOptions, TFCluster

    ours, limit, ends = [], [], []
    cluster = TFCluster.run(
        spark,
        drain,
        {"passes": PASSES},
        num_executors=2,
        tls=tls,
        observer=lambda event, _: ends.append(time.monotonic()) if event == "fed" else None,
    )
    with cluster:
        cpu: dict[str, float] = {}
        if cache:
            # Draining trainers may get unequal parts of the first pass, which the cache keeps; trainers that train
            # keep step. In order, the parts are equal.
            options = FeedOptions(cache="node", ordered=True)
            cluster.train(df, PASSES, columns=columns, batch_size=2 * BATCH_ROWS, feeding=options)
            return list(np.diff(ends)), [], cpu
        for number in range(PASSES):
            limit.append(limit_a(df))
            before = cpu_by_process()
            began = time.monotonic()
            options = FeedOptions(**feeding)
            cluster.train(df, 1, columns=columns, batch_size=2 * BATCH_ROWS, feeding=options)
            ours.append(time.monotonic() - began)
            after = cpu_by_process()
            if number == PASSES // 2:  # Not after the last pass: the trainers end then.
                cpu = {name: after[name] - before[name] for name in after}
    return ours[1:], limit[1:], cpu


def cpu_by_process() -> dict[str, float]:
    """Return the CPU seconds so far of the driver, Spark's JVM, its Python workers and the trainers."""
    used = {"driver": 0.0, "JVM": 0.0, "feed tasks": 0.0, "trainers": 0.0}
    me = psutil.Process()
    for process in all_processes():
        try:
            line, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        name = "driver" if process == me else "feed tasks"
        name = "JVM" if "java" in line.split(" ")[0] else name
        name = "trainers" if TRAINER in line else name
        used[name] += times.user + times.system
    return used


def kinds(
    spark: Any, directory: Path, options: argparse.Namespace
) -> Iterator[tuple[str, Any, int, Any, Any]]:
    """Write the rows of each kind; yield kind, DataFrame, number of rows, columns, and the rows of limit B."""
    for kind in options.kinds.split(","):
        table = rows_of(kind, options.rows, np.random.default_rng(0))
        place, columns = directory / kind / options.files, columns_of(kind, table)
        place.parent.mkdir()
        if options.files == "parquet":
            write_parquet(place, table, options.partitions)
            df, dataset = spark.read.parquet(str(place)), rows_in_memory(table, columns)
        else:
            write_tfrecords(spark, place, table, options.partitions)
            # One file for each partition, as with Parquet.
            df = spark.read.format("tfrecord").option("splitBytes", "0").load(str(place))
            dataset = rows_of_tfrecords(place, kind)
        yield kind, df, table.num_rows, columns, dataset


def report_kinds(spark: Any, directory: Path, options: argparse.Namespace) -> None:
    print(
        "| rows | limit A | limit B | through Spark | / A | CPU us per row: JVM, feed tasks, trainers "
        "| direct | / A | / B | CPU us per row | cache | / A |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for kind, df, rows, columns, dataset in kinds(spark, directory, options):
        print(line_of(spark, kind, df, rows, columns, options.tls, dataset), flush=True)


def report_ordered(spark: Any, directory: Path, options: argparse.Namespace) -> None:
    print("| rows | scan | as they come | shuffled | in order | ratio | in order, shuffled | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, df, rows, columns, _ in kinds(spark, directory, options):
        for scan in ("direct", "spark"):
            print(f"| {kind} | {scan} | {in_order(spark, df, rows, columns, scan)} |", flush=True)


def line_of(spark: Any, kind: str, df: Any, rows: int, columns: Any, tls: bool, dataset: Any) -> str:
    ours, limit, cpu = fed(spark, df, columns, cache=False, tls=tls, scan="spark")
    direct, limit_again, direct_cpu = fed(spark, df, columns, cache=False, tls=tls, scan="direct")
    bound = limit_b(dataset)
    cached, _, _ = fed(spark, df, columns, cache=True, tls=tls, scan="auto")
    median = statistics.median
    return (
        f"| {kind} | {rows / median([*limit, *limit_again]):,.0f} | {rows / bound:,.0f} "
        f"| {rows / median(ours):,.0f} | {_ratio(limit, ours)} | {_per_row(cpu, rows)} "
        f"| {rows / median(direct):,.0f} | {_ratio(limit_again, direct)} | {bound / median(direct):.2f} "
        f"| {_per_row(direct_cpu, rows)} | {rows / median(cached):,.0f} | {median(limit) / median(cached):.2f} |"
    )


def in_order(spark: Any, df: Any, rows: int, columns: Any, scan: str) -> str:
    """Measure four ways to feed the same rows; a ratio is to the rows in order of arrival."""

    def rate(ordered: bool, window: int) -> float:
        options = {"scan": scan, "ordered": ordered, "shuffle_rows": window}
        return rows / statistics.median(fed(spark, df, columns, cache=False, tls=False, **options)[0])

    # The rows of one worker's window. The window of an ordered stream has those of both workers.
    window = 16 * BATCH_ROWS
    free, mixed, ordered, both = rate(False, 0), rate(False, window), rate(True, 0), rate(True, 2 * window)
    return f"{free:,.0f} | {mixed:,.0f} | {ordered:,.0f} | {free / ordered:.2f} | {both:,.0f} | {mixed / both:.2f}"


def report_again(spark: Any, directory: Path, options: argparse.Namespace) -> None:
    """Measure trainings of one epoch in a second cluster, after the first one has stored the rows."""
    from tfspark import FeedOptions

    print("| rows | computed by | read anew | from stored rows | ratio |")
    print("|---|---|---|---|---|")
    stored = FeedOptions(cache="node")
    for kind, df, rows, columns, _ in kinds(spark, directory, options):
        name = columns.features[0].name
        computed = df.withColumn(name, (df[name] + 1) if kind == "mixed" else df[name]).filter("rand(1) >= 0")
        for by, what in (("feed tasks", df), ("Spark", computed)):
            trainings(spark, what, columns, stored)
            later = trainings(spark, what, columns, stored)
            anew = trainings(spark, what, columns, FeedOptions())
            rates = f"{rows / statistics.median(anew):,.0f} | {rows / statistics.median(later):,.0f}"
            print(f"| {kind} | {by} | {rates} | {_ratio(anew, later)} |", flush=True)


def trainings(spark: Any, df: Any, columns: Any, feeding: Any) -> list[float]:
    """Run several trainings of one epoch in one cluster; return their seconds, without the first one's."""
    from tfspark import TFCluster

    seconds = []
    with TFCluster.run(spark, drain, {"passes": PASSES}, num_executors=2) as cluster:
        for _ in range(PASSES):
            began = time.monotonic()
            cluster.train(df, 1, columns=columns, batch_size=2 * BATCH_ROWS, feeding=feeding)
            seconds.append(time.monotonic() - began)
    return seconds[1:]


def _ratio(limit: list[float], ours: list[float]) -> str:
    ratios = [a / b for a, b in zip(limit, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _per_row(cpu: dict[str, float], rows: int) -> str:
    return ", ".join(f"{cpu[name] / rows * 1e6:.0f}" for name in ("JVM", "feed tasks", "trainers"))


if __name__ == "__main__":
    main()
