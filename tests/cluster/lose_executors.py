"""A driver program: executors are lost in mid-epoch and do not come back, so Spark would cut files by fewer cores.

lose_executors.py DIRECTORY FORMAT LOSS CELL...    prints the result of each cell, and how often rows were trained on

LOSS: ``executor``: Spark itself removes the executor, or ``daemon``: the executor's worker daemon ends (standalone).
CELL: a separate training that loses one executor, ``PLAN:ORDER:WORKERS:LEAST``, such as ``files:ordered:3:2``.
    PLAN: the rows of the files (``files``), the same after ``repartitionByRange`` (``ranges``), or the rows of
        ``range`` in SQL (``numbers``).
    LEAST: the smallest number of workers with which the training continues.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import psutil
from cluster.lose_and_tell import daemon_above
from cluster.programs import counting
from cluster.strikes import Strike
from pyspark.sql import DataFrame, SparkSession
from support.processes import poll_until
from support.trainers import all_trainers

from tfspark import Feeding, TFCluster
from tfspark.tfrecord import register

NOTICED_S = 120.0
BATCH = 30  # Divisible by one, two and three workers.


def main() -> None:
    place, kind, loss, *cells = sys.argv[1:]
    spark = SparkSession.builder.getOrCreate()
    register(spark)
    rows = spark.read.format(kind).schema("id bigint, pad string").load(f"{place}/{kind}").select("id")
    told = [train_and_lose(spark, rows, loss, f"{place}/{number}", cell) for number, cell in enumerate(cells)]
    spark.stop()
    sys.stdout.write("\n" + json.dumps(told) + "\n")


def train_and_lose(
    spark: SparkSession, rows: DataFrame, loss: str, log_dir: str, cell: str
) -> dict[str, Any]:
    """Train two epochs; lose the last worker's executor in the first epoch."""
    plan, order, workers, least = cell.split(":")
    total = rows.count()
    # PySpark's own `range` has as many partitions as there were cores when it was called.
    rows = spark.sql(f"SELECT id FROM range({total})") if plan == "numbers" else rows
    cores = [spark.sparkContext.defaultParallelism]
    fed = rows.repartitionByRange(5, "id").sortWithinPartitions("id") if plan == "ranges" else rows
    lose = {"executor": lose_executor, "daemon": lose_daemon}[loss]
    observer = Strike(lambda: lose(spark, clusters[0]), "state", epoch=1, step=15)

    def note(event: str, fields: Mapping[str, Any]) -> None:
        cores.append(spark.sparkContext.defaultParallelism)
        observer(event, fields)

    clusters: list[TFCluster] = []
    with TFCluster.run(
        spark,
        counting,
        {"rows": total},
        int(workers),
        min_executors=int(least),
        replacement_timeout=5.0,
        observer=note,
        checkpoint_every_steps=3,
        log_dir=log_dir,
    ) as cluster:
        clusters.append(cluster)
        feeding = Feeding(ordered=order == "ordered")
        cluster.train(fed, 2, features=["id"], label=None, batch_size=BATCH, feeding=feeding)
        cluster.shutdown(export=["keras"])
    # A standalone master may start another executor on a daemon whose executor died, so the fewest cores count.
    poll_until(lambda: min(*cores, spark.sparkContext.defaultParallelism) < cores[0], NOTICED_S)
    (weights,) = keras.models.load_model(Path(log_dir, "export/model.keras"), compile=False).get_weights()
    return {
        "cell": cell,
        "cuts": [cuts(spark, rows, cores[0]), cuts(spark, rows, cores[0] - 1)],
        "came_back": max(cores[cores.index(min(cores)) :]) > min(cores),
        "workers": [event["workers"] for event in observer.of("sized")],
        "resumed": observer.of("resumed"),
        "differ": observer.of("rows_differ"),
        "weights": Counter(round(float(weight), 4) for weight in weights[:, 0]).most_common(),
    }


def cuts(spark: SparkSession, rows: DataFrame, cores: int) -> list[int]:
    """Return the number of rows in each partition, as Spark cuts them with this number of cores."""
    spark.conf.set("spark.sql.leafNodeDefaultParallelism", cores)
    try:
        return rows.select("*").rdd.mapPartitions(lambda part: [sum(1 for _ in part)]).collect()
    finally:
        spark.conf.unset("spark.sql.leafNodeDefaultParallelism")


def lose_executor(spark: SparkSession, cluster: TFCluster) -> None:
    """Remove the executor of the last worker; Spark does not start another."""
    executors = cluster._supervisor.control.read(lambda state: state.registry.executors())
    context = spark.sparkContext._jsc.sc()
    threading.Thread(target=lambda: context.killExecutor(executors[max(executors)])).start()


def lose_daemon(spark: SparkSession, cluster: TFCluster) -> None:
    """End the worker daemon of the last worker's executor.

    An executor whose daemon ended earlier may still run for a while, with its trainers.
    """
    del spark
    daemons: dict[int, psutil.Process] = {}
    for name, trainer in all_trainers():
        with contextlib.suppress(psutil.Error, StopIteration):
            daemons[int(name.removeprefix("worker "))] = daemon_above(trainer)
    daemons[max(daemons)].terminate()


if __name__ == "__main__":
    main()
