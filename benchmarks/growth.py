"""Measure how the feed scales: time per row by partitions, rows and workers. Part of `feed.py --growth`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS = 1_000_000
REPEATS = 3
SERIES = {
    "partitions": [1, 10, 100, 1000],
    "rows": [10_000, 100_000, 1_000_000, 10_000_000],
    "workers": [1, 2, 4, 8],
}


def report(spark: Any, picture: Path) -> None:
    """Measure the three series, print them and draw them."""
    measured: dict[str, list[tuple[int, float, float]]] = {}
    for name, values in SERIES.items():
        print(f"| {name} | feed, us per row | limit A, us per row |\n|---|---|---|")
        for value in values:
            setting = {"partitions": 8, "rows": ROWS, "workers": 2, name: value}
            df = small_rows(spark, setting["rows"], setting["partitions"])
            limit = counting_seconds(df) / setting["rows"] * 1e6
            ours = feed_seconds(spark, df, setting["workers"]) / setting["rows"] * 1e6
            measured.setdefault(name, []).append((value, ours, limit))
            print(f"| {value:,} | {ours:.2f} | {limit:.2f} |", flush=True)
        print()
    draw(measured, picture)


def small_rows(spark: Any, rows: int, partitions: int) -> Any:
    """Return rows of two floats and a label."""
    return spark.range(0, rows, 1, partitions).selectExpr(
        "cast(id as float) as a", "cast(id % 7 as float) as b", "id % 10 as label"
    )


def feed_seconds(spark: Any, df: Any, workers: int) -> float:
    """Return the median seconds of a pass."""
    from tfspark import TFCluster

    seconds = []
    with TFCluster.run(spark, drain, {"passes": REPEATS + 1}, num_executors=workers) as cluster:
        for _ in range(REPEATS + 1):
            began = time.monotonic()
            cluster.train(df, 1, batch_size=256 * workers)
            seconds.append(time.monotonic() - began)
    return statistics.median(seconds[1:])


def counting_seconds(df: Any) -> float:
    """Return the median seconds of `mapInArrow` counting the rows."""
    seconds = []
    for _ in range(REPEATS):
        began = time.monotonic()
        df.mapInArrow(count_rows, "rows bigint").collect()
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def count_rows(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the number of rows of a partition, in an unchanged Python worker of Spark (see `spare_collections`)."""
    import gc

    import pyarrow as pa

    gc.unfreeze()

    rows = sum(batch.num_rows for batch in batches)
    yield pa.RecordBatch.from_pydict({"rows": [rows]})


def drain(args: dict[str, int], ctx: Any) -> int:
    """Read and discard every batch of every pass."""
    from tfspark.training.input.dataset import open_feed

    feed = open_feed(ctx, "train")
    return sum(1 for _ in range(args["passes"]) for _ in feed.batches())


def draw(measured: dict[str, list[tuple[int, float, float]]], picture: Path) -> None:
    """Draw time per row, with one panel per series."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(measured), figsize=(11, 3.4), sharey=True, layout="constrained")
    for panel, (name, points) in zip(panels, measured.items(), strict=True):
        values = [value for value, _, _ in points]
        panel.plot(values, [ours for _, ours, _ in points], "o-", label="feed")
        panel.plot(values, [limit for _, _, limit in points], "s--", label="mapInArrow")
        panel.set(xscale="log", yscale="log", xlabel=name)
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.set_xticks([], minor=True)
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("us per row")
    panels[0].legend()
    figure.savefig(picture, dpi=90)
