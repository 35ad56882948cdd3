"""Schedules of the learning rate and mixed precision, set from outside of `build_model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster.incarnations import plain_keras
from cluster.programs import dense
from pyspark.sql import SparkSession
from support.errors import raises
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.errors import NodeFailedError

ROWS = [96, 32]
LOAD = """
import json, sys, keras
keras.mixed_precision.set_global_policy("mixed_" + sys.argv[1])
model = keras.models.load_model(sys.argv[2])
optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
print(json.dumps({
    "compute": [layer.compute_dtype for layer in model.layers],
    "weights": [str(weight.dtype) for weight in model.weights],
    "iterations": int(optimizer.iterations),
}))
"""


def test_schedule_when_it_starts_at_zero_leaves_the_weights_until_it_rises(
    spark: SparkSession, tmp_path: Path
) -> None:
    schedule = {"name": "piecewise_constant_decay", "boundaries": [8], "values": [0.0, 0.5]}
    with TFCluster.run(spark, dense, {}, 2, schedule=schedule, log_dir=str(tmp_path)) as cluster:
        # 4 steps per epoch: the rate is above zero from the third epoch on.
        history = cluster.train(
            df_with_partitions(spark, ROWS),
            4,
            features=["features"],
            batch_size=32,
            feeding=Feeding(ordered=True),
        )
        cluster.shutdown(export=["keras", "saved_model"])
    assert (tmp_path / "export/saved_model/saved_model.pb").is_file()
    assert history["loss"][0] == pytest.approx(history["loss"][1])
    assert history["loss"][2] != pytest.approx(history["loss"][1], abs=1e-6)


def test_schedule_that_keras_does_not_know_is_refused_with_the_error_of_keras(spark: SparkSession) -> None:
    with (
        raises(NodeFailedError, "expected a schedule of keras.optimizers.schedules", "decay_stairs"),
        TFCluster.run(spark, dense, {}, 1, schedule={"name": "cosine_decay", "decay_stairs": 4}) as cluster,
    ):
        cluster.train(df_with_partitions(spark, ROWS), 1, features=["features"])


def test_schedule_for_a_model_that_compiles_itself_is_refused(spark: SparkSession) -> None:
    def build(params: Any) -> Any:
        import keras

        class Own(keras.Sequential):
            def compile(self, optimizer: Any) -> None:
                super().compile(optimizer, "sparse_categorical_crossentropy")

        model = Own([keras.layers.Input((4,)), keras.layers.Dense(2, "softmax")])
        model.compile("sgd")
        return model

    schedule = {"name": "cosine_decay", "initial_learning_rate": 0.1, "decay_steps": 4}
    with (
        raises(NodeFailedError, "Own has a compile() of its own", "compile_from_config()"),
        TFCluster.run(spark, build, {}, 1, schedule=schedule) as cluster,
    ):
        cluster.train(df_with_partitions(spark, ROWS), 1, features=["features"])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_lower_precision_and_keeps_weights_in_float32(
    spark: SparkSession, tmp_path: Path, precision: str
) -> None:
    with TFCluster.run(
        spark, dense, {"rate": 0.5}, 2, mixed_precision=precision, log_dir=str(tmp_path)
    ) as cluster:
        history = cluster.train(
            df_with_partitions(spark, ROWS),
            2,
            features=["features"],
            batch_size=32,
            feeding=Feeding(ordered=True),
        )
        nodes = cluster.shutdown(export=["keras"])
    told = plain_keras(LOAD, precision, tmp_path / "export/model.keras")
    assert told == {"compute": [precision] * 2, "weights": ["float32"] * 4, "iterations": 8}
    assert nodes["worker 0"]["weights_sha256"] == nodes["worker 1"]["weights_sha256"]
    assert all(loss < 2 for loss in history["loss"])
