"""Measure training time against plain Keras on the same rows, in the same minutes.

    python benchmarks/training.py [--rows 20000] [--epochs 4] [--batch-size 128]

plain: one process, rows in memory, `model.fit`. by hand: the same under MultiWorkerMirroredStrategy in two processes on
this machine, each with half of the rows in memory. ours: two workers on this machine, rows streamed from a Spark
DataFrame. All train the same model with the same global batch. The first epoch, which compiles, is reported separately.
The ratio of "by hand" to plain is what TensorFlow's own strategy costs; that of ours to "by hand" is what we add.

Needs data/mnist_full: ``scripts/prepare_data mnist_full``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from prepared import prepared

DATA = "mnist_full/train"
LOOPBACK = "127.0.0.1"
DEADLINE_S = 3600.0
PARAMS = {"architecture": "lenet", "input_shape": [28, 28, 1], "num_classes": 10}


def main() -> None:
    options = parse()
    prepared(DATA)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.plain or options.by_hand:
        print(json.dumps(fit_seconds(options)))
        return
    plain_before, hand_before = in_processes(["--plain"]), by_hand()
    ours = our_seconds(options)
    plain = [statistics.mean(pair) for pair in zip(plain_before, in_processes(["--plain"]), strict=True)]
    hand = [statistics.mean(pair) for pair in zip(hand_before, by_hand(), strict=True)]
    print(f"{options.rows} rows of MNIST, {options.epochs} epochs, global batch {options.batch_size}, lenet")
    print(f"{'':<26}{'first epoch':>12}{'later, median':>15}")
    rows = (("plain Keras, 1 process", plain), ("by hand, 2 processes", hand), ("tfspark, 2 workers", ours))
    for name, seconds in rows:
        print(f"{name:<26}{seconds[0]:>10.1f} s{statistics.median(seconds[1:]):>13.2f} s")
    ratios = (
        ("by hand / plain", hand, plain),
        ("tfspark / by hand", ours, hand),
        ("tfspark / plain", ours, plain),
    )
    for name, over, under in ratios:
        ratio = statistics.median(over[1:]) / statistics.median(under[1:])
        print(f"{name:<26}{over[0] / under[0]:>12.2f}{ratio:>15.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--by-hand", type=int, nargs=3, help=argparse.SUPPRESS)  # Rank and two ports.
    return parser.parse_args()


def by_hand() -> list[float]:
    """Return the seconds of each epoch of two processes that train together."""
    with socket.create_server((LOOPBACK, 0)) as one, socket.create_server((LOOPBACK, 0)) as two:
        ports = [str(end.getsockname()[1]) for end in (one, two)]
    return in_processes(["--by-hand", "0", *ports], ["--by-hand", "1", *ports])


def in_processes(*orders: list[str]) -> list[float]:
    """Run this program in a process for each order, all at the same time; return what the first one printed."""
    processes = [
        subprocess.Popen([sys.executable, __file__, *sys.argv[1:], *order], stdout=subprocess.PIPE, text=True)
        for order in orders
    ]
    until = time.monotonic() + DEADLINE_S
    try:
        said = [process.communicate(timeout=max(until - time.monotonic(), 0))[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(process.returncode for process in processes):
        sys.exit(f"expected Keras to train with {orders}, it failed: see above")
    seconds: list[float] = json.loads(said[0].splitlines()[-1])
    return seconds


def fit_seconds(options: argparse.Namespace) -> list[float]:
    rank, *ports = options.by_hand or [0]
    if ports:
        cluster = {"worker": [f"{LOOPBACK}:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})

    import keras
    import pyarrow as pa
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy() if ports else None

    from tfspark.feed.arrays import column_to_numpy
    from tfspark.feed.columns import Column
    from tfspark.tfrecord import list_files, read_batches

    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    batches = [batch for file in list_files(str(prepared(DATA))) for batch in read_batches(file, schema)]
    table = pa.Table.from_batches(batches).slice(0, options.rows).combine_chunks().to_batches()[0]
    x = column_to_numpy(table["image"], Column("image", (28, 28, 1), "uint8")).astype("float32") / 255
    y = np.asarray(table["label"])
    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.monotonic() - self.began)

    with contextlib.nullcontext() if strategy is None else strategy.scope():
        model = build()
    rows: Any = {"x": x, "y": y, "batch_size": options.batch_size}
    if strategy is not None:
        own = tf.data.Dataset.from_tensor_slices((x[rank::2], y[rank::2]))
        own = own.shuffle(1024).batch(options.batch_size // 2, drop_remainder=True).prefetch(2)
        rows = {
            "x": strategy.distribute_datasets_from_function(lambda context: own.repeat()),
            "steps_per_epoch": options.rows // options.batch_size,
        }
    model.fit(**rows, epochs=options.epochs, verbose=0, callbacks=[Clock()])
    return seconds


def build(params: Any = None) -> Any:
    from tfspark.experiment.modules import load_model_module

    del params
    return load_model_module("models/cnn.py").build_model(PARAMS)


def our_seconds(options: argparse.Namespace) -> list[float]:
    from feed import local_session

    from tfspark import Column, FeedOptions, TFCluster
    from tfspark.experiment.modules import load_model_module
    from tfspark.tfrecord import register

    spark = local_session(4)
    register(spark)
    seconds = []

    def observe(event: str, fields: Any) -> None:
        if event == "epoch":
            seconds.append(fields["seconds"])

    module = load_model_module("models/cnn.py")
    df = (
        spark.read.format("tfrecord")
        .schema("image BINARY, label LONG")
        .load(str(prepared(DATA)))
        .limit(options.rows)
    )
    df = df.repartition(4).persist()
    df.count()
    with TFCluster.run(spark, module.build_model, PARAMS, num_executors=2, observer=observe) as cluster:
        cluster.train(
            df,
            options.epochs,
            features=[Column("image", (28, 28, 1), "uint8", 255.0)],
            num_classes=10,
            batch_size=options.batch_size,
            feeding=FeedOptions(shuffle_rows=1024),
        )
    spark.stop()
    return seconds


if __name__ == "__main__":
    main()
