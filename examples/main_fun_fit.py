"""Train with your own loop: main_fun(args, ctx) runs on every node and calls model.fit itself.

    python examples/main_fun_fit.py

Spark generates the data: points in a square. The label says whether a point lies in a circle.
"""

from __future__ import annotations

import argparse
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from tfspark import TFCluster


def main_fun(args: argparse.Namespace, ctx: Any) -> dict[str, Any]:
    """Build, compile and fit. The returned value must be JSON; shutdown() returns it to the driver."""
    import keras

    keras.utils.set_random_seed(ctx.seed)
    with ctx.strategy.scope():  # must come before any other use of TensorFlow, on every worker
        model = keras.Sequential(
            [
                keras.Input((2,)),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy", weighted_metrics=["accuracy"])
    fitted = model.fit(ctx.dataset(), epochs=args.epochs, verbose=2 if ctx.is_chief else 0)
    return {"node": f"{ctx.role} {ctx.task_index}", "accuracy": fitted.history["accuracy"]}


def circle(spark: SparkSession, num_rows: int) -> DataFrame:
    """Return rows with a feature `point` of two floats and a `label` of 0 or 1."""
    points = spark.range(num_rows).select(
        (sf.rand(1) * 2 - 1).alias("x"),
        (sf.rand(2) * 2 - 1).alias("y"),
    )
    inside = (sf.col("x") ** 2 + sf.col("y") ** 2 < 0.5).cast("int")
    point = sf.array(sf.col("x").cast("float"), sf.col("y").cast("float"))
    return points.select(point.alias("point"), inside.alias("label"))


def main() -> None:
    """Feed as many epochs as main_fun trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8000)
    args = parser.parse_args()

    spark = SparkSession.builder.master("local[4]").appName("main_fun_fit").getOrCreate()
    cluster = TFCluster.run(spark, main_fun, args, 2, 0)
    try:
        cluster.train(circle(spark, args.rows), args.epochs, batch_size=64)
        results = cluster.shutdown()
    finally:
        cluster.stop()  # after a failure, this ends what still runs; it is harmless after shutdown()
    for name, result in results.items():
        print(name, [round(accuracy, 3) for accuracy in result["accuracy"]])
    spark.stop()


if __name__ == "__main__":
    main()
