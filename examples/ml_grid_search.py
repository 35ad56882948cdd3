"""Choose a network for tumours by cross-validation, with Spark's own tools.

    tfspark prepare-data breast_cancer
    python examples/ml_grid_search.py

All settings of a fold are trained on the same cluster, one after another.
"""

from __future__ import annotations

import argparse

from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession

from tfspark import tfrecord
from tfspark.ml import Dense, DenseClassifier


def tumours(spark: SparkSession, root: str) -> DataFrame:
    """Return ``features`` and ``label`` of all 569 tumours; the label is 1 for malignant."""
    tfrecord.register(spark)
    reader = spark.read.format("tfrecord").schema("measures ARRAY<FLOAT>, malignant LONG")
    rows = reader.load(f"{root}/fold_1/train").union(reader.load(f"{root}/fold_1/test"))
    features = array_to_vector(rows["measures"].cast("array<double>"))
    return rows.select(features.alias("features"), rows["malignant"].cast("double").alias("label"))


def main() -> None:
    """Search the grid, and print the score of each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/breast_cancer", help="directory of TFRecord files")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--folds", type=int, default=3)
    options = parser.parse_args()

    spark = SparkSession.builder.master("local[4]").appName("ml_grid_search").getOrCreate()
    train, test = (
        part.coalesce(2).cache() for part in tumours(spark, options.data).randomSplit([0.8, 0.2], seed=1)
    )

    network = DenseClassifier(maxIter=options.epochs, blockSize=32, numWorkers=2, stepSize=0.005)
    layers = [[Dense(8, "relu")], [Dense(32, "relu"), Dense(32, "relu")]]
    grid = ParamGridBuilder().addGrid(network.layers, layers).addGrid(network.regParam, [0.0, 0.01]).build()
    evaluator = BinaryClassificationEvaluator(metricName="areaUnderROC")
    validator = CrossValidator(
        estimator=network, estimatorParamMaps=grid, evaluator=evaluator, numFolds=options.folds, seed=1
    )
    model = validator.fit(train)

    for setting, score in zip(grid, model.avgMetrics, strict=True):
        units = [layer["units"] for layer in setting[network.layers]]
        print(f"units {units}, regParam {setting[network.regParam]}: area {score:.4f}")
    print(f"test area: {evaluator.evaluate(model.transform(test)):.4f} of {test.count()} rows")
    spark.stop()


if __name__ == "__main__":
    main()
