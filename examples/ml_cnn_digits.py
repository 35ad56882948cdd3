"""Classify handwritten digits from libsvm files with a convolutional network in a Spark ML pipeline.

    tfspark prepare-data mnist_5k
    python examples/ml_cnn_digits.py

The program first writes the images as libsvm files, the format of the digits in many Spark tutorials.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyspark.ml import Pipeline
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from tfspark import tfrecord
from tfspark.ml import CNN, ImageFeature


def digits(spark: SparkSession, images: str, folder: Path) -> DataFrame:
    """Return ``label`` and ``features`` of the digits in libsvm files. Write the files if they do not exist."""
    if not folder.exists():
        tfrecord.register(spark)
        rows = spark.read.format("tfrecord").schema("image BINARY, label LONG").load(images)
        to_vector = sf.udf(lambda image: Vectors.dense(list(image)), VectorUDT())
        vectors = rows.select(
            rows["label"].cast("double").alias("label"), to_vector("image").alias("features")
        )
        vectors.write.format("libsvm").save(str(folder))
    return spark.read.format("libsvm").option("numFeatures", "784").load(str(folder))


def main() -> None:
    """Train on four fifths of the images, and print the accuracy on the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/mnist_5k/images", help="directory of TFRecord files")
    parser.add_argument(
        "--libsvm", type=Path, default=Path("data/mnist_5k/libsvm"), help="directory of libsvm files"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--save", help="directory for the fitted pipeline")
    options = parser.parse_args()

    spark = SparkSession.builder.master("local[4]").appName("ml_cnn_digits").getOrCreate()
    rows = digits(spark, options.data, options.libsvm)
    train, test = rows.randomSplit([0.8, 0.2], seed=1)

    network = CNN(
        layers=[
            CNN.Convolution(16, kernelSize=3, activation="relu"),
            CNN.MaxPooling(kernelSize=2, strides=2),
            CNN.Convolution(32, kernelSize=3, activation="relu"),
            CNN.MaxPooling(kernelSize=2, strides=2),
            CNN.Dense(64, activation="relu"),
            CNN.Dropout(0.4),
            CNN.Dense(10, activation="softmax"),
        ],
        inputCol="raw_image",
        outputCol="prediction",
        maxIter=options.epochs,
        blockSize=64,
        numWorkers=2,
    )
    images = ImageFeature(inputCol="features", outputCol="raw_image", numPixels=784)
    model = Pipeline(stages=[images, network]).fit(train)

    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(model.transform(test))
    summary = model.stages[-1].summary
    print("loss per epoch:", [round(loss, 3) for loss in summary.objectiveHistory])
    print(f"seconds of the fit: {summary.seconds:.1f}")
    print(f"test accuracy: {accuracy:.3f}")
    if options.save:
        model.write().overwrite().save(options.save)
    spark.stop()


if __name__ == "__main__":
    main()
