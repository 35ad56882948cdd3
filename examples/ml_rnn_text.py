"""Classify film reviews as good or bad with recurrent networks: on terms of HashingTF and IDF, and on the raw text.

    tfspark prepare-data rotten_tomatoes
    python examples/ml_rnn_text.py

The term vectors have 262,144 dimensions and stay sparse. The network reads the terms of a row one after another, in
the order of their numbers. Each term is an embedding times its weight. The raw text keeps the order of the words.
"""

from __future__ import annotations

import argparse

from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import IDF, HashingTF, Tokenizer
from pyspark.sql import SparkSession

from tfspark import tfrecord
from tfspark.ml import RNN, RNNClassifier


def main() -> None:
    """Train three classifiers on four fifths of the reviews, and print their accuracy on the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/rotten_tomatoes/texts", help="directory of TFRecord files")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()

    spark = SparkSession.builder.master("local[4]").appName("ml_rnn_text").getOrCreate()
    tfrecord.register(spark)
    rows = spark.read.format("tfrecord").schema("text STRING, label LONG").load(options.data)
    train, test = (part.cache() for part in rows.randomSplit([0.8, 0.2], seed=1))

    terms = [
        Tokenizer(inputCol="text", outputCol="words"),
        HashingTF(inputCol="words", outputCol="counts"),
        IDF(inputCol="counts", outputCol="features"),
    ]
    training = {"maxIter": options.epochs, "blockSize": 32, "numWorkers": 2, "stepSize": 0.002}
    of_terms = RNN(
        layers=[RNN.LSTM(16), RNN.Dropout(0.5), RNN.Dense(1, activation="sigmoid")],
        inputCol="features",
        outputCol="prediction",
        embeddingSize=16,
        **training,
    )
    of_text = RNNClassifier(
        inputCol="text", outputCol="prediction", textLength=48, modelParams={"units": 16}, **training
    )
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    for name, stages in [
        ("recurrent network on terms", [*terms, of_terms]),
        ("recurrent network on text", [of_text]),
        ("logistic regression on terms", [*terms, LogisticRegression(regParam=0.05)]),
    ]:
        model = Pipeline(stages=stages).fit(train)
        print(f"{name}: accuracy {evaluator.evaluate(model.transform(test)):.3f}")
    spark.stop()


if __name__ == "__main__":
    main()
