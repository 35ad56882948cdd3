"""A program for spark-submit: train on the rows of a Parquet directory, with columns of different types.

    python examples/submit_parquet.py                          # on this machine, local[4]
    spark-submit --master spark://host:7077 examples/submit_parquet.py --data hdfs:///rides --executors 4

Without --data it writes a small directory of made-up rides first.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as sf

from tfspark import Column, TFCluster


def build_model(params: dict[str, Any]) -> Any:
    """Return a compiled model. Several feature columns arrive as a dict, so each input has the name of a column."""
    import keras

    distance = keras.Input((1,), name="distance")
    hour = keras.Input((1,), name="hour", dtype="int32")
    hour_vector = keras.layers.Flatten()(keras.layers.Embedding(24, 4)(hour))
    x = keras.layers.Concatenate()([distance, hour_vector])
    x = keras.layers.Dense(params["units"], activation="relu")(x)
    model = keras.Model({"distance": distance, "hour": hour}, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def write_rides(spark: SparkSession, path: str) -> None:
    """Write 6,000 rides: the minutes depend on the distance and, twice a day, on the hour."""
    rides = spark.range(6000).select(
        (sf.rand(1) * 20).cast("float").alias("distance"), (sf.rand(2) * 24).cast("int").alias("hour")
    )
    rush = sf.when(sf.col("hour").isin(8, 9, 17, 18), 2.0).otherwise(1.0)
    rides.withColumn("minutes", (sf.col("distance") * 2 * rush).cast("float")).write.parquet(path)


def main() -> None:
    """Read the rides, train, and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="parquet with columns distance, hour and minutes")
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()

    builder = SparkSession.builder.appName("submit_parquet")
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # spark-submit sets this variable, and the master, too
        builder = builder.master("local[4]")
    spark = builder.getOrCreate()
    with tempfile.TemporaryDirectory(prefix="rides-") as scratch:
        path = options.data or str(Path(scratch, "rides"))
        if options.data is None:
            write_rides(spark, path)
        rides = spark.read.parquet(path)
        with TFCluster.run(spark, build_model, {"units": 32}, options.executors, seed=7) as cluster:
            history = cluster.train(
                rides,
                options.epochs,
                features=[Column("distance", shape=(1,), scale=20), Column("hour", shape=(1,))],
                label="minutes",
                batch_size=32 * options.executors,
            )
            cluster.shutdown()
    print("loss per epoch:", [round(loss, 1) for loss in history["loss"]])
    spark.stop()


if __name__ == "__main__":
    main()
