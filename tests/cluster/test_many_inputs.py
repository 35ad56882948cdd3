"""Two workers train a model of several inputs and outputs on strings, ragged arrays, images and vectors."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
from cluster.many_inputs import TOKENS, constant_in_the_first_epoch, features, two_outputs
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from support.pictures import png

from tfspark import TFCluster
from tfspark.errors import ConfigError
from tfspark.feed.columns import Column, Columns
from tfspark.protocol.settings import Hooks

NUM_ROWS = 43
COLUMNS = Columns(
    (
        Column("picture", shape=(4, 6, 3), decode="image", scale=255),
        Column("vector", dtype="float32"),
        Column("words", ragged="ragged"),
        Column("tokens", ragged="ragged"),
        Column("day"),
    ),
    (Column("kind"), Column("size", dtype="float32")),
)
SCHEMA = "picture binary, words array<string>, tokens array<int>, day date, kind int, size double, number int"


def rows(spark: SparkSession) -> DataFrame:
    """Return rows: a bright picture is of kind 1; the vector, dense or sparse, holds the size."""
    values = []
    for i in range(NUM_ROWS):
        pixels = np.full((4, 6, 3), 200 if i % 2 else 20, np.uint8)
        day = datetime.date(2020, 1, 1) + datetime.timedelta(i)
        tokens = [token % TOKENS for token in range(i % 5)]
        values.append((png(pixels), [f"w{i % 7}"] * (1 + i % 3), tokens, day, i % 2, i / NUM_ROWS, i))
    df = spark.createDataFrame(values, SCHEMA)
    vectors = [
        (
            i,
            Vectors.dense([i / NUM_ROWS, 1.0, 0.0])
            if i % 3
            else Vectors.sparse(3, {0: i / NUM_ROWS, 1: 1.0}),
        )
        for i in range(NUM_ROWS)
    ]
    return df.join(spark.createDataFrame(vectors, ["number", "vector"]), "number").repartition(3)


@pytest.mark.parametrize("outputs", ["dict", pytest.param("list", marks=pytest.mark.slow)])
def test_two_workers_train_several_inputs_and_outputs_and_count_each_row_once(
    spark: SparkSession, outputs: str
) -> None:
    df = rows(spark).persist()
    hooks = Hooks(features=features, callbacks=constant_in_the_first_epoch)
    with TFCluster.run(spark, two_outputs, {"outputs": outputs}, 2, hooks=hooks, seed=5) as cluster:
        history = cluster.train(df, 6, columns=COLUMNS, batch_size=16, validation=df)
        metrics = cluster.evaluate(df)
        with pytest.raises(ConfigError, match="there are 2 labels, not one"):
            cluster.evaluate(df, num_classes=2)
        nodes = cluster.shutdown()
    df.unpersist()

    assert set(metrics) == {"loss", "kind_loss", "size_loss", "kind_accuracy", "size_mae"}
    for name, value in metrics.items():
        assert history[name][0] == pytest.approx(history[f"val_{name}"][0], rel=1e-5), (
            f"{name}: real rows only"
        )
        assert history[f"val_{name}"][-1] == pytest.approx(value, rel=1e-5)
    assert metrics["loss"] == pytest.approx(metrics["kind_loss"] + 0.5 * metrics["size_loss"], rel=1e-5)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert metrics["kind_accuracy"] > 0.7
    assert nodes["worker 0"]["weights_sha256"] == nodes["worker 1"]["weights_sha256"]
    assert nodes["worker 0"]["rows"][0] + nodes["worker 1"]["rows"][0] == NUM_ROWS
