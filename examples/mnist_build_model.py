"""Train a small network on 5,000 handwritten digits: the model is yours, the training loop is tfspark's.

    tfspark prepare-data mnist_5k
    python examples/mnist_build_model.py

The first command fetches the images once and writes them as TFRecord files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from tfspark import Column, FeedOptions, TFCluster, tfrecord


def build_model(params: dict[str, Any]) -> Any:
    """Return a compiled model. It runs once in every worker process, under the strategy of the cluster."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 5, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(params["units"], activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Train on four fifths of the digits, test on the rest, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/mnist_5k/images", help="directory of TFRecord files")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--log-dir", default="runs/mnist_build_model", help="logs and the model go there")
    options = parser.parse_args()

    spark = SparkSession.builder.master("local[4]").appName("mnist_build_model").getOrCreate()
    tfrecord.register(spark)
    digits = spark.read.format("tfrecord").schema("image BINARY, label LONG").load(options.data)
    train, test = digits.randomSplit([0.8, 0.2], seed=1)

    # Two of the four slots are for the workers, two for the tasks that read the files and feed the rows.
    image = Column("image", shape=(28, 28, 1), dtype="uint8", scale=255)
    with TFCluster.run(
        spark, build_model, {"units": 64}, num_executors=2, log_dir=options.log_dir
    ) as cluster:
        history = cluster.train(
            train,
            options.epochs,
            features=[image],
            label="label",
            num_classes=10,
            batch_size=64,
            feeding=FeedOptions(shuffle_rows=512),
        )
        metrics = cluster.evaluate(test)
        nodes = cluster.shutdown(export=["keras"])

    print("loss per epoch:", [round(loss, 3) for loss in history["loss"]])
    print(f"test accuracy: {metrics['accuracy']:.3f}")
    print("steps taken by worker 0:", nodes["worker 0"]["iterations"])
    print("model:", Path(options.log_dir, "export", "model.keras"))
    spark.stop()


if __name__ == "__main__":
    main()
