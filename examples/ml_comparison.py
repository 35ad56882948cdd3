"""Compare networks with Spark MLlib's own classifiers on the same rows.

    tfspark prepare-data mnist_5k breast_cancer
    python examples/ml_comparison.py

Prints a Markdown table with the accuracy on rows that are not for training, and the seconds of the fit.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from pyspark.ml.classification import (
    DecisionTreeClassifier,
    LinearSVC,
    LogisticRegression,
    OneVsRest,
    RandomForestClassifier,
)
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from tfspark import tfrecord
from tfspark.ml import CNNClassifier, Dense, DenseClassifier


def digits(spark: SparkSession, path: str) -> DataFrame:
    """Return the images as vectors of 784 values in [0, 1]."""
    rows = spark.read.format("tfrecord").schema("image BINARY, label LONG").load(path)
    to_vector = sf.udf(lambda image: Vectors.dense([pixel / 255 for pixel in image]), VectorUDT())
    return rows.select(to_vector("image").alias("features"), rows["label"].cast("double").alias("label"))


def tumours(spark: SparkSession, root: str) -> DataFrame:
    """Return the 30 measures of 569 tumours, and a label: 1 for malignant."""
    reader = spark.read.format("tfrecord").schema("measures ARRAY<FLOAT>, malignant LONG")
    rows = reader.load(f"{root}/fold_1/train").union(reader.load(f"{root}/fold_1/test"))
    features = array_to_vector(rows["measures"].cast("array<double>"))
    return rows.select(features.alias("features"), rows["malignant"].cast("double").alias("label"))


def classifiers(is_image: bool, epochs: int) -> list[tuple[str, Any]]:
    """Return the names and the classifiers to compare."""
    training = {"maxIter": epochs, "blockSize": 64, "numWorkers": 2}
    svm = LinearSVC(maxIter=20, regParam=0.01)
    dense = DenseClassifier(
        layers=[Dense(128 if is_image else 32, "relu")],
        standardization=not is_image,
        stepSize=0.003,
        **training,
    )
    own = [
        ("LogisticRegression", LogisticRegression(maxIter=50, regParam=0.01)),
        ("LinearSVC", OneVsRest(classifier=svm) if is_image else svm),
        ("DecisionTreeClassifier", DecisionTreeClassifier(maxDepth=10)),
        ("RandomForestClassifier", RandomForestClassifier(numTrees=50, maxDepth=10, seed=1)),
    ]
    networks: list[tuple[str, Any]] = [("DenseClassifier", dense)]
    if is_image:
        cnn = CNNClassifier(scale=1.0, modelParams={"shift": 0.07}, **training)
        networks.append(("CNNClassifier, LeNet", cnn))
    return [*networks, *own]


def main() -> None:
    """Fit every classifier on four fifths of the rows, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", default="data/mnist_5k/images", help="directory of TFRecord files")
    parser.add_argument("--tumours", default="data/breast_cancer", help="directory of TFRecord files")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    spark = SparkSession.builder.master("local[4]").appName("ml_comparison").getOrCreate()
    tfrecord.register(spark)
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    print("| rows | classifier | accuracy | seconds |\n|---|---|---|---|")
    for name, rows, is_image in [
        ("digits", digits(spark, options.digits), True),
        ("tumours", tumours(spark, options.tumours), False),
    ]:
        train, test = (part.cache() for part in rows.randomSplit([0.8, 0.2], seed=1))
        train.count()
        for own, classifier in classifiers(is_image, options.epochs):
            began = time.monotonic()
            model = classifier.fit(train)
            seconds = time.monotonic() - began
            print(
                f"| {name} | {own} | {evaluator.evaluate(model.transform(test)):.3f} | {seconds:.0f} |",
                flush=True,
            )
    spark.stop()


if __name__ == "__main__":
    main()
