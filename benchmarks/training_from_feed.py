"""Train LeNet with two workers, on rows from the feed and on rows in their own memory. Part of `feed.py --training`."""

from __future__ import annotations

import statistics
from typing import Any

ROUNDS = 2
EPOCHS = 5
"""Epochs of each kind in each round; the first one, which includes start-up, does not count."""
BATCH = 128


def report(spark: Any, rows: int) -> None:
    """Train both ways in the same processes, in turn, and print the ratio of the epochs' times."""
    from tfspark import Column, Columns, FeedOptions, TFCluster

    images = spark.range(0, rows, 1, 8).selectExpr(
        "cast(repeat(chr(cast(id % 90 as int) + 33), 784) as binary) as image", "id % 10 as label"
    )
    columns = Columns((Column("image", (28, 28, 1), "uint8", 255.0),), Column("label"))
    for name, feeding in (("fed by Spark", FeedOptions()), ("node cache", FeedOptions(cache="node"))):
        with TFCluster.run(spark, both_ways, {"rows": rows}, num_executors=2) as cluster:
            cluster.train(
                images.persist(), ROUNDS * EPOCHS, columns=columns, batch_size=BATCH, feeding=feeding
            )
            seconds = cluster.shutdown()["worker 0"]
        for first in range(0, ROUNDS * EPOCHS, EPOCHS):
            fed, memory = (
                statistics.median(seconds[way][first + 1 : first + EPOCHS]) for way in ("fed", "memory")
            )
            print(f"{name}: {fed:.2f} s an epoch, from memory {memory:.2f} s, ratio {fed / memory:.2f}")


def both_ways(args: dict[str, int], ctx: Any) -> dict[str, list[float]]:
    """Fit on rows from the feed and on rows in memory, in turn; return the seconds of each epoch."""
    import time

    import keras
    import numpy as np
    import tensorflow as tf

    with ctx.strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.Conv2D(32, 3, activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Conv2D(64, 3, activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                keras.layers.Dense(128, activation="relu"),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(time.monotonic() - self.began)

    local = BATCH // ctx.num_workers
    mine = args["rows"] // ctx.num_workers
    rng = np.random.default_rng(0)

    def in_memory(_: Any) -> tf.data.Dataset:
        images = rng.integers(0, 256, (mine, 28, 28, 1), np.uint8)
        labels, weights = rng.integers(0, 10, mine), np.ones(mine, np.float32)
        rows = tf.data.Dataset.from_tensor_slices((images, labels, weights)).repeat().batch(local, True)
        return rows.map(lambda x, y, w: (tf.cast(x, tf.float32) / 255.0, y, w)).prefetch(2)

    clocks = {"fed": Clock(), "memory": Clock()}
    memory = ctx.strategy.distribute_datasets_from_function(in_memory)
    for _ in range(ROUNDS):
        model.fit(ctx.dataset(), epochs=EPOCHS, verbose=0, callbacks=[clocks["fed"]])
        model.fit(
            memory, epochs=EPOCHS, steps_per_epoch=mine // local, verbose=0, callbacks=[clocks["memory"]]
        )
    return {name: clock.seconds for name, clock in clocks.items()}
