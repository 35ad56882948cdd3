"""A driver program: an executor is lost in mid-epoch and does not come back, so Spark would cut files by fewer cores.

lose_for_good.py DIRECTORY FORMAT PLAN ORDERED WORKERS LEAST    prints how often each row was trained on, as counts
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import keras
from cluster.programs import counting
from cluster.strikes import Strike
from pyspark.sql import DataFrame, SparkSession

from tfspark import Feeding, TFCluster
from tfspark.tfrecord import register

BATCH = 30  # Divides among two workers and three.


def main() -> None:
    place, kind, plan, ordered, workers, least = sys.argv[1:]
    spark = SparkSession.builder.getOrCreate()
    register(spark)
    rows = spark.read.format(kind).schema("id bigint, pad string").load(f"{place}/{kind}").select("id")
    whole, total, before = rows, rows.count(), cuts(rows)
    if plan == "ranges":
        rows = rows.repartitionByRange(5, "id").sortWithinPartitions("id")
    observer = Strike(lambda: lose(spark, clusters[0]), "state", epoch=1, step=15)
    clusters: list[TFCluster] = []
    with TFCluster.run(
        spark,
        counting,
        {"rows": total},
        int(workers),
        min_executors=int(least),
        replacement_timeout=5.0,
        observer=observer,
        checkpoint_every_steps=3,
        log_dir=f"{place}/run",
    ) as cluster:
        clusters.append(cluster)
        feeding = Feeding(ordered=ordered == "ordered")
        cluster.train(rows, 2, features=["id"], label=None, batch_size=BATCH, feeding=feeding)
        cluster.shutdown(export=["keras"])
    (weights,) = keras.models.load_model(Path(place, "run/export/model.keras"), compile=False).get_weights()
    told = {
        "cuts": [before, cuts(whole)],
        "resumed": observer.of("resumed"),
        "differ": observer.of("rows_differ"),
        "epochs": observer.of("epoch"),
        "weights": Counter(round(float(weight), 4) for weight in weights[:, 0]).most_common(),
    }
    spark.stop()
    sys.stdout.write("\n" + json.dumps(told) + "\n")


def cuts(rows: DataFrame) -> int:
    return rows.select("*").rdd.getNumPartitions()


def lose(spark: SparkSession, cluster: TFCluster) -> None:
    """Take away the executor of the last worker; Spark starts no other."""
    nodes: Any = cluster._lives.registry.nodes
    context = spark.sparkContext._jsc.sc()
    threading.Thread(target=lambda: context.killExecutor(nodes[max(nodes)].executor)).start()


if __name__ == "__main__":
    main()
