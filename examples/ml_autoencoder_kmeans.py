"""Cluster handwritten digits by the codes of an autoencoder that reads their principal components.

    tfspark prepare-data mnist_5k
    python examples/ml_autoencoder_kmeans.py

Purity is the share of images whose digit is the most frequent digit of their cluster. Training does not use the labels.
"""

from __future__ import annotations

import argparse

from pyspark.ml import Pipeline
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import ClusteringEvaluator
from pyspark.ml.feature import PCA
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from tfspark import tfrecord
from tfspark.ml import Autoencoder, Dense


def purity(clusters: DataFrame) -> float:
    """Return the share of rows whose label is the most frequent one of their cluster."""
    counts = (
        clusters.groupBy("cluster", "label").count().groupBy("cluster").agg(sf.max("count").alias("most"))
    )
    return float(counts.agg(sf.sum("most")).first()[0] / clusters.count())


def main() -> None:
    """Cluster the digits by their codes, and by their principal components."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/mnist_5k/images", help="directory of TFRecord files")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()

    spark = SparkSession.builder.master("local[4]").appName("ml_autoencoder_kmeans").getOrCreate()
    tfrecord.register(spark)
    rows = spark.read.format("tfrecord").schema("image BINARY, label LONG").load(options.data)
    to_vector = sf.udf(lambda image: Vectors.dense([pixel / 255 for pixel in image]), VectorUDT())
    digits = rows.select("label", to_vector("image").alias("pixels"))
    components = PCA(k=50, inputCol="pixels", outputCol="features").fit(digits).transform(digits).cache()

    encoder = Autoencoder(
        layers=[Dense(128, "relu"), Dense(32, "relu"), Dense(8)],
        maxIter=options.epochs,
        blockSize=64,
        numWorkers=2,
    )
    coded = Pipeline(stages=[encoder]).fit(components).transform(components).cache()
    print(f"mean squared error of a component: {coded.agg(sf.avg('error')).first()[0]:.4f}")
    for name, column in [("codes", "code"), ("principal components", "features")]:
        found = KMeans(k=10, featuresCol=column, predictionCol="cluster", seed=1).fit(coded).transform(coded)
        silhouette = ClusteringEvaluator(featuresCol=column, predictionCol="cluster").evaluate(found)
        print(f"k-means on {name}: purity {purity(found):.3f}, silhouette {silhouette:.3f}")
    spark.stop()


if __name__ == "__main__":
    main()
