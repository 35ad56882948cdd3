"""``steps_per_execution``: several steps in one call, with the same batches, weights and numbers as one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cluster.incarnations import Events
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster

ROWS = [70, 0, 90, 40]
BATCH, EPOCHS = 16, 3
STEPS = -(-sum(ROWS) // BATCH)


def dense(params: dict[str, Any]) -> Any:
    import keras

    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(0.05, clipnorm=1.0),
        loss,
        metrics=["accuracy"],
        steps_per_execution=params["at_once"],
    )
    return model


def trained(spark: SparkSession, at_once: int, ordered: bool = True, **options: Any) -> tuple[Any, Any]:
    """Train a model; return the history and the results of the nodes."""
    with TFCluster.run(spark, dense, {"at_once": at_once}, 2, **options) as cluster:
        history = cluster.train(
            df_with_partitions(spark, ROWS),
            EPOCHS,
            features=["features"],
            batch_size=BATCH,
            feeding=Feeding(ordered=ordered),
        )
        return history, cluster.shutdown()


@pytest.fixture(scope="module")
def one_at_a_time(spark: SparkSession) -> tuple[Any, Any]:
    return trained(spark, 1)


@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(4, id="blocks of 4, the last shorter"),
        pytest.param(100, id="more than an epoch has, and more than the queue holds"),
    ],
)
def test_training_with_several_steps_per_call_equals_one_with_single_steps(
    spark: SparkSession, one_at_a_time: tuple[Any, Any], at_once: int
) -> None:
    history, nodes = trained(spark, at_once)
    expected_history, expected = one_at_a_time
    for name, values in expected_history.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    for name, node in nodes.items():
        assert node["iterations"] == expected[name]["iterations"] == EPOCHS * STEPS
        assert node["rows"] == expected[name]["rows"]


def test_unordered_rows_are_trained_on_once(spark: SparkSession) -> None:
    _, nodes = trained(spark, 7, ordered=False)
    per_epoch = [sum(rows) for rows in zip(*(node["rows"] for node in nodes.values()), strict=True)]
    assert per_epoch == [sum(ROWS)] * EPOCHS
    assert len({node["iterations"] for node in nodes.values()}) == 1


def test_checkpoints_within_an_epoch_are_saved_at_the_end_of_a_block(spark: SparkSession) -> None:
    events = Events()
    trained(spark, 4, observer=events, checkpoint_every_steps=5)
    within = [event["step"] for event in events.of("state") if event["epoch"] == 1 and event["step"]]
    # Steps 5 and 10 lie in the blocks that end with 8 and 12.
    assert within == [step for step in (8, 12) if step < STEPS]
