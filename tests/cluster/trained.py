"""Train without an interruption; tests compare the weights and history with those of an interrupted training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from cluster.incarnations import Events
from cluster.programs import with_state
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster

ROWS = [320, 160, 0, 160]


BATCH = 64


EPOCHS = 2


@dataclass(frozen=True)
class Trained:
    """The results of a training."""

    history: dict[str, list[float]]
    accuracy: float
    iterations: int
    weights: str
    rows: list[int]


def train(
    spark: SparkSession, observer: Events | None = None, epochs: int = EPOCHS, **options: Any
) -> Trained:
    """Train a model with state and random layers on ordered rows, evaluate it, shut down."""
    rows = df_with_partitions(spark, ROWS)
    feeding = Feeding(ordered=True, shuffle_rows=2 * BATCH)
    with TFCluster.run(spark, with_state, {"num_classes": 2}, 2, observer=observer, **options) as cluster:
        history = cluster.train(rows, epochs, features=["features"], batch_size=BATCH, feeding=feeding)
        metrics = cluster.evaluate(rows)
        nodes = cluster.shutdown()
    first, second = nodes["worker 0"], nodes["worker 1"]
    rows_of_epochs = [a + b for a, b in zip(first["rows"], second["rows"], strict=True)]
    return Trained(history, metrics["accuracy"], first["iterations"], first["weights_sha256"], rows_of_epochs)


@pytest.fixture(scope="module")
def uninterrupted(spark: SparkSession) -> Trained:
    return train(spark, checkpoint_every_steps=3)
