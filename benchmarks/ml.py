"""Compare predictions with plain Keras, and cross-validation with fits on a running cluster.

    python benchmarks/ml.py transform [--rows 60000] [--times 3] [--files tfrecord]
    python benchmarks/ml.py tuning [--times 1]

Needs no data: rows are random, because the time does not depend on their values.

``transform``: a LeNet on images of 28 x 28 and a dense network on 40 columns. Plain Keras predicts the same rows from
NumPy arrays in memory, in one process with the same cores; Spark on ``local[2]`` reads Parquet or TFRecord files, and
adds up the predictions. Both have already loaded the model. They run in turn.

``tuning``: CrossValidator with 3 folds, 4 settings and 2 workers, on ``local[4]``. Prints the time of each fit, and of
the same training on a running cluster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"lenet": (784,), "dense": (40,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("transform", "tuning"))
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--files", choices=("parquet", "tfrecord"), default="parquet")
    options = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.what == "transform":
        transform(options.rows, options.times, options.files)
    else:
        tuning()


# --- transform ----------------------------------------------------------------------------------------


def transform(num_rows: int, times: int, form: str) -> None:
    from feed import local_session

    from tfspark.tfrecord import register

    with tempfile.TemporaryDirectory(prefix="tfspark-benchmark-") as folder:
        spark = local_session(2)
        register(spark)
        for kind, shape in KINDS.items():
            rows = num_rows if kind == "lenet" else 10 * num_rows
            model = network(kind)
            place = Path(folder, f"{kind}.keras")
            model.save(place)
            df = files(spark, folder, kind, rows, shape[0], form)
            values = np.random.default_rng(0).random((rows, *shape), np.float32)
            of_spark(df, place, shape)
            plain(model, values[: 10 * 1024], kind)
            found = [(plain(model, values, kind), of_spark(df, place, shape)) for _ in range(times)]
            own, ours = (statistics.median(side) for side in zip(*found, strict=True))
            each = ", ".join(f"{keras:.2f}/{ours:.2f}" for keras, ours in found)
            print(
                f"{kind}, {form}: {rows:,} rows, Keras {own:.2f} s, transform {ours:.2f} s, ratio {own / ours:.2f} "
                f"({each})"
            )
        spark.stop()


def network(kind: str) -> Any:
    import keras

    layers = keras.layers
    if kind == "dense":
        inputs = [
            keras.Input((40,), name="x"),
            layers.Dense(128, "relu"),
            layers.Dense(64, "relu"),
            layers.Dense(2, "softmax"),
        ]
        return keras.Sequential(inputs)
    from tfspark.experiment.modules import load_model_module

    return load_model_module("models/cnn.py").build_model({"architecture": "lenet"})


def files(spark: Any, folder: str, kind: str, rows: int, size: int, form: str) -> Any:
    place = str(Path(folder, f"{kind}-rows"))
    # Compute some values once and shift them from row to row: computing every value would take minutes.
    row = f"transform(sequence(1, {size}), i -> float(pmod(id * 7919 + i * 104729, 997)) / 997f) AS x"
    spark.range(0, rows, 1, 4).selectExpr("id", row).write.format(form).mode("append").save(place)
    return spark.read.format(form).load(place)


def plain(model: Any, values: Any, kind: str) -> float:
    began = time.monotonic()
    model.predict(values.reshape(-1, 28, 28, 1) if kind == "lenet" else values, batch_size=1024, verbose=0)
    return time.monotonic() - began


def of_spark(df: Any, place: Path, shape: tuple[int, ...]) -> float:
    from tfspark import Column, predict

    image = Column("x", shape=(28, 28, 1) if shape == (784,) else shape)
    began = time.monotonic()
    made = predict(df, place, features=image).selectExpr("sum(prediction[0])").first()[0]
    assert made is not None
    return time.monotonic() - began


# --- tuning -------------------------------------------------------------------------------------------


def tuning() -> None:
    from feed import local_session
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.functions import array_to_vector
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    from tfspark.ml import Dense, DenseClassifier
    from tfspark.ml.estimator import NetworkEstimator

    spark = local_session(4)
    rows = spark.range(0, 6000, 1, 4).selectExpr(
        "transform(sequence(1, 40), i -> double(rand(1))) AS x", "double(id % 2) AS label"
    )
    df = rows.select(array_to_vector("x").alias("features"), "label").persist()
    df.count()
    network = DenseClassifier(layers=[Dense(32, "relu")], maxIter=5, batchSize=64, numWorkers=2)
    grid = (
        ParamGridBuilder()
        .addGrid(network.stepSize, [0.001, 0.01])
        .addGrid(network.regParam, [0.0, 0.01])
        .build()
    )
    fits: list[float] = []
    fit = NetworkEstimator._fit

    def timed(*arguments: Any) -> Any:
        began = time.monotonic()
        model = fit(*arguments)
        fits.append(time.monotonic() - began)
        return model

    NetworkEstimator._fit = timed  # type: ignore[method-assign]
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    began = time.monotonic()
    CrossValidator(estimator=network, estimatorParamMaps=grid, evaluator=evaluator, numFolds=3, seed=1).fit(
        df
    )
    whole = time.monotonic() - began
    later = statistics.median(fits[1:])
    running = on_a_running_cluster(spark, network, df)
    print(
        f"CrossValidator, 3 folds x 4 settings and the best again: {whole:.1f} s; fits "
        + ", ".join(f"{s:.2f}" for s in fits)
    )
    print(
        f"median of later fits {later:.2f} s, on a running cluster {running:.2f} s, ratio {later / running:.2f}"
    )
    spark.stop()


def on_a_running_cluster(spark: Any, network: Any, df: Any) -> float:
    """Return the seconds of a training on two thirds of the rows, on a cluster that has trained before."""
    from tfspark import FeedOptions, TFCluster

    part = df.sample(2 / 3, seed=1).persist()
    part.count()
    plan = network._plan(part)
    feeding = FeedOptions(shuffle_rows=512, cache="node")
    with TFCluster.run(
        spark, plan.network.build_model, dict(plan.network.params), num_executors=2
    ) as cluster:
        found = []
        for _ in range(3):
            began = time.monotonic()
            cluster.train(plan.rows.train, 5, columns=plan.rows.columns, batch_size=64, feeding=feeding)
            found.append(time.monotonic() - began)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
