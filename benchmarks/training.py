"""Measure training time against plain Keras on the same rows, in the same minutes.

    python benchmarks/training.py [--rows 20000] [--epochs 4] [--batch-size 128]

plain: `model.fit` in one process, on rows in memory. ours: synchronous training of the same model with the same global
batch by two workers on this machine, on rows streamed from a Spark DataFrame. The first epoch, which compiles the
model, is reported separately.

Needs data/mnist_full: ``scripts/prepare_data mnist_full``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
from prepared import prepared

DATA = "mnist_full/train"
PARAMS = {"architecture": "lenet", "input_shape": [28, 28, 1], "num_classes": 10}


def main() -> None:
    options = parse()
    prepared(DATA)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.plain:
        print(json.dumps(plain_seconds(options)))
        return
    before = plain_in_a_process()
    ours = our_seconds(options)
    after = plain_in_a_process()
    plain = [statistics.mean(pair) for pair in zip(before, after, strict=True)]
    print(f"{options.rows} rows of MNIST, {options.epochs} epochs, global batch {options.batch_size}, lenet")
    print(f"{'':<26}{'first epoch':>12}{'later, median':>15}")
    rows = (("plain Keras, 1 process", plain), ("tfspark, 2 workers", ours))
    for name, seconds in rows:
        print(f"{name:<26}{seconds[0]:>10.1f} s{statistics.median(seconds[1:]):>13.2f} s")
    ratio = statistics.median(ours[1:]) / statistics.median(plain[1:])
    print(f"{'ratio':<26}{ours[0] / plain[0]:>12.2f}{ratio:>15.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def plain_in_a_process() -> list[float]:
    done = subprocess.run(
        [sys.executable, __file__, "--plain", *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit("expected plain Keras to train, it failed: see above")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def plain_seconds(options: argparse.Namespace) -> list[float]:
    import time

    import keras
    import pyarrow as pa

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

    model = build()
    model.fit(x, y, batch_size=options.batch_size, epochs=options.epochs, verbose=0, callbacks=[Clock()])
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
