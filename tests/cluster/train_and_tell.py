"""A driver program for ``spark-submit``: train, evaluate, shut down, print the results as JSON."""

from __future__ import annotations

import json
import sys

from cluster.programs import with_state
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import TFCluster


def main() -> None:
    spark = SparkSession.builder.getOrCreate()
    rows = df_with_partitions(spark, [200, 56], num_classes=3)
    cluster = TFCluster.run(spark, with_state, {"num_classes": 3}, 2, log_dir=sys.argv[1])
    with cluster:
        history = cluster.train(rows, 2, features=["features"], num_classes=3)
        metrics = cluster.evaluate(rows)
        nodes = cluster.shutdown(export=["keras"])
    spark.stop()
    sys.stdout.write("\n" + json.dumps({"history": history, "metrics": metrics, "nodes": nodes}) + "\n")


if __name__ == "__main__":
    main()
