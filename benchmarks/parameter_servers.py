"""Measure parameter servers: speed against synchronous training, and accuracy against plain Keras.

    python benchmarks/parameter_servers.py speed [--epochs 4]
    python benchmarks/parameter_servers.py digits
    python benchmarks/parameter_servers.py text

speed: two workers on this machine train the same LeNet on the same digits: synchronously, then with one and with two
parameter servers, then synchronously again. A synchronous step uses a batch of both workers; a step of parameter
servers uses half of it, on one worker. So rows per second are compared, too. Figures are medians over the epochs after
the first.

digits, text: the test accuracy of a LeNet on 1,000 digits, and of an LSTM on 1,706 sentences. Two workers train them
with one and with two parameter servers; plain Keras trains the same model on the same rows with the batch of one
worker. There are several seeds, because the results of runs vary.

Needs data/mnist_5k and, for text, data/rotten_tomatoes: ``scripts/prepare_data mnist_5k rotten_tomatoes``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from prepared import ROOT, prepared

BATCH = 64
WORKERS = 2
LENET = {"architecture": "lenet", "input_shape": [28, 28, 1], "num_classes": 10, "shift": 0.07}
EPOCHS = {"digits": 10, "text": 4}
FIELDS = {"digits": [("image", pa.binary()), ("label", pa.int64())],
          "text": [("text", pa.string()), ("label", pa.int64())]}  # fmt: skip
PLACES = {"digits": "mnist_5k/images", "text": "rotten_tomatoes/texts"}


def main() -> None:
    options = parse()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.plain:
        print(json.dumps(plain(options.task, options.seed)))
    elif options.task == "speed":
        compare_speed(options.epochs)
    else:
        compare_accuracy(options.task, range(options.seeds))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["speed", "digits", "text"])
    parser.add_argument("--epochs", type=int, default=4, help="of the comparison of speed")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- rows and models -------------------------------------------------------------------------------


def read(task: str) -> tuple[pa.Table, pa.Table]:
    """Return training rows, and every fifth row as test rows, in random but fixed order."""
    from tfspark.tfrecord import list_files, read_batches

    schema = pa.schema(FIELDS[task])
    files = list_files(str(prepared(PLACES[task])))
    table = pa.Table.from_batches([batch for file in files for batch in read_batches(file, schema)])
    order = np.random.default_rng(0).permutation(len(table))
    is_test = np.arange(len(table)) % 5 == 0
    return table.take(order[~is_test]), table.take(order[is_test])


def lenet(params: Any = None) -> Any:
    from tfspark.experiment.modules import load_model_module

    del params
    return load_model_module(str(ROOT / "models/cnn.py")).build_model(LENET)


def lstm(vocabulary: list[str]) -> Any:
    """Build a network for words, with an LSTM and an embedding of 2 MB, which two servers divide."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            keras.layers.TextVectorization(output_sequence_length=40, vocabulary=vocabulary),
            keras.layers.Embedding(len(vocabulary) + 2, 64, mask_zero=True),
            keras.layers.SpatialDropout1D(0.4),
            keras.layers.LSTM(32),
            keras.layers.Dropout(0.4),
            keras.layers.Dense(1, "sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy", metrics=["accuracy"])
    return model


def vocabulary(texts: pa.Table) -> list[str]:
    counts = Counter(word for text in texts["text"].to_pylist() for word in text.lower().split())
    # The layer splits texts in the same way. Skip tokens that are not words, such as TensorFlow's own.
    return [word for word, _ in counts.most_common(8000) if word.isalnum()]


def session() -> Any:
    """Return a session with slots for two workers, two parameter servers and two feed tasks."""
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[6]")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    return spark


# --- accuracy --------------------------------------------------------------------------------------


def compare_accuracy(task: str, seeds: range) -> None:
    train, test = read(task)
    print(f"{task}: {len(train)} rows to train on, {len(test)} to test on, {EPOCHS[task]} epochs")
    by_kind: dict[str, list[float]] = {}
    for seed in seeds:
        by_kind.setdefault("plain Keras", []).append(plain_in_a_process(task, seed))
        for num_ps in (1, 2):
            kind = f"{WORKERS} workers, {num_ps} ps"
            by_kind.setdefault(kind, []).append(with_servers(task, num_ps, seed, train, test))
    for kind, values in by_kind.items():
        runs = ", ".join(f"{value:.4f}" for value in values)
        print(f"{kind:<18} accuracy {statistics.mean(values):.4f} ({runs})")


def plain_in_a_process(task: str, seed: int) -> float:
    command = [sys.executable, __file__, task, "--plain", "--seed", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("expected one of the trainings to succeed, it failed: see above")
    return float(json.loads(done.stdout.splitlines()[-1]))


def plain(task: str, seed: int) -> float:
    import keras

    keras.utils.set_random_seed(seed)
    train, test = read(task)
    model = lenet() if task == "digits" else lstm(vocabulary(train))
    model.fit(*arrays(task, train), batch_size=BATCH // WORKERS, epochs=EPOCHS[task], verbose=0)
    return float(model.evaluate(*arrays(task, test), verbose=0, return_dict=True)["accuracy"])


def arrays(task: str, table: pa.Table) -> tuple[Any, Any]:
    import tensorflow as tf

    labels = table["label"].to_numpy()
    if task == "text":
        return tf.constant(table["text"].to_pylist()), labels
    images = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8)
    return images.reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels


def with_servers(task: str, num_ps: int, seed: int, train: pa.Table, test: pa.Table) -> float:
    from tfspark import FeedOptions, TFCluster

    spark = session()
    build, params = (lenet, {}) if task == "digits" else (lstm, vocabulary(train))
    rows = spark.createDataFrame(train).repartition(4).persist()
    nodes = WORKERS + num_ps
    with TFCluster.run(spark, build, params, nodes, num_ps, seed=seed) as cluster:
        settings = {"features": columns(task), "batch_size": BATCH, "feeding": FeedOptions(shuffle_rows=1024)}
        cluster.train(rows, EPOCHS[task], num_classes=10 if task == "digits" else 2, **settings)
        accuracy = cluster.evaluate(spark.createDataFrame(test))["accuracy"]
        told = cluster.shutdown()["chief 0"]
    spark.stop()
    assert told["rows"] == [len(train)] * EPOCHS[task], "every row in every epoch"
    return float(accuracy)


def columns(task: str) -> list[Any]:
    from tfspark import Column

    return [Column("image", (28, 28, 1), "uint8", 255.0)] if task == "digits" else [Column("text")]


# --- speed -----------------------------------------------------------------------------------------


def compare_speed(epochs: int) -> None:
    train, _ = read("digits")
    runs = [(kind, rates(train, num_ps, epochs)) for kind, num_ps in KINDS]
    print(f"{len(train)} digits, lenet, {BATCH * WORKERS} rows over {WORKERS} workers, {epochs} epochs")
    print(f"{'':<18}{'steps/s':>9}{'rows/s':>9}")
    for kind, (steps, rows) in runs:
        print(f"{kind:<18}{steps:>9.1f}{rows:>9.0f}")
    synchronous = [statistics.mean(pair) for pair in zip(runs[0][1], runs[-1][1], strict=True)]
    for kind, (steps, rows) in runs[1:-1]:
        print(f"{kind}: ratio {steps / synchronous[0]:.2f} in steps/s, {rows / synchronous[1]:.2f} in rows/s")


KINDS = (("synchronous", 0), ("1 ps", 1), ("2 ps", 2), ("synchronous again", 0))


def rates(train: pa.Table, num_ps: int, epochs: int) -> tuple[float, float]:
    """Return steps and rows per second, medians over the epochs after the first."""
    from tfspark import TFCluster

    told: list[tuple[float, float]] = []

    def observe(event: str, fields: Any) -> None:
        if event == "epoch":
            told.append((fields["steps"] / fields["seconds"], fields["rows_fed"] / fields["seconds"]))

    spark = session()
    rows = spark.createDataFrame(train).repartition(4).persist()
    rows.count()
    with TFCluster.run(spark, lenet, {}, WORKERS + num_ps, num_ps, observer=observe) as cluster:
        cluster.train(rows, epochs, features=columns("digits"), num_classes=10, batch_size=BATCH * WORKERS)
    spark.stop()
    later = told[1:]
    return statistics.median(t[0] for t in later), statistics.median(t[1] for t in later)


if __name__ == "__main__":
    main()
