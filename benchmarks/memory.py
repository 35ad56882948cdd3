"""Measure the memory of every process during the feed of a DataFrame that is much larger than all buffers.

    python benchmarks/memory.py [--gigabytes 4]

Spark computes rows of 3,072 bytes; two trainers read batches of 128 rows and discard them. Prints the peak memory of
each kind of process, sampled ten times a second, beside its memory before the feed. Pages that processes share, such as
those of a warm parent and its trainers, are divided among them (proportional set size).

Needs no data.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from typing import Any

import psutil
from trainers import TRAINER, WARM_PARENT, all_processes, node_tasks, pss

ROW_BYTES = 3072
PARTITIONS = 16
MB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    options = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = local_session()
    try:
        report(spark, int(options.gigabytes * (1 << 30)) // ROW_BYTES)
    finally:
        spark.stop()


def local_session() -> Any:
    from pyspark.sql import SparkSession

    return (
        SparkSession.builder.master("local[4]")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.memory", "1g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )


def drain(args: Any, ctx: Any) -> int:
    """Read and discard every batch of one pass."""
    from tfspark.training.input.dataset import open_feed

    ctx.report("ready")
    return sum(1 for _ in open_feed(ctx, "train").batches())


class Sampler:
    """The peak memory of each process, by kind."""

    def __init__(self) -> None:
        self.most: dict[str, dict[int, int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            for kind, pid, rss in resident():
                known = self.most.setdefault(kind, {})
                known[pid] = max(rss, known.get(pid, 0))


def resident() -> list[tuple[str, int, int]]:
    """Return (kind, pid, bytes) of all processes of the benchmark."""
    me = psutil.Process()
    tasks = node_tasks()
    found = []
    for process in all_processes():
        try:
            found.append((kind_of(process, me, tasks), process.pid, pss(process)))
        except psutil.NoSuchProcess:
            continue
    return found


def kind_of(process: psutil.Process, me: psutil.Process, tasks: set[int]) -> str:
    """Return the role of a process in the feed."""
    line = process.cmdline()
    if process == me:
        return "driver (Python)"
    if line and "java" in line[0]:
        return "Spark's JVM"
    if TRAINER in line:
        return "trainer"
    if WARM_PARENT in line:
        return "warm parent"
    return "node task" if process.pid in tasks else "feed task (Python)"


def report(spark: Any, rows: int) -> None:
    """Feed the rows and print the figures."""
    from tfspark import TFCluster

    df = spark.range(0, rows, 1, PARTITIONS).selectExpr(
        f"cast(repeat('x', {ROW_BYTES}) as binary) as x", "id as label"
    )
    ready = threading.Semaphore(0)
    with TFCluster.run(
        spark, drain, None, 2, observer=lambda event, _: ready.release() if event == "ready" else None
    ) as cluster:
        for _ in range(2):
            ready.acquire(timeout=120)
        before: dict[str, int] = {}
        for kind, _, rss in resident():
            before[kind] = max(rss, before.get(kind, 0))
        began = time.monotonic()
        with Sampler() as sampler:
            cluster.train(df, batch_size=256)
        seconds = time.monotonic() - began
    total = rows * ROW_BYTES / (1 << 30)
    print(f"{rows:,} rows, {total:.1f} GB in {seconds:.0f} s, {rows / seconds:,.0f} rows/s")
    print("| process | before, MB | most, MB |\n|---|---|---|")
    for kind, most in sorted(sampler.most.items()):
        print(f"| {kind} | {before.get(kind, 0) / MB:.0f} | {max(most.values()) / MB:.0f} |")


if __name__ == "__main__":
    main()
