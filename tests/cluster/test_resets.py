"""Connections to the driver are reset again and again, as by a firewall, during all kinds of calls."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
from cluster.incarnations import Events
from cluster.programs import dense
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import TFCluster

EVERY_S = 0.7
ROWS, EPOCHS = [320, 160, 0, 160], 3


@contextlib.contextmanager
def resetting_connections_to(port: int) -> Iterator[list[int]]:
    """Reset all TCP connections to a port of this machine at intervals; yield how many each time. Needs root."""
    counts: list[int] = []
    over = threading.Event()
    command = ["ss", "--kill", "--no-header", "dst", "127.0.0.1", "dport", "=", f":{port}"]

    def reset() -> None:
        while not over.wait(EVERY_S):
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            counts.append(len(told.stdout.splitlines()))

    thread = threading.Thread(target=reset)
    thread.start()
    try:
        yield counts
    finally:
        over.set()
        thread.join()


def wide(params: Any) -> Any:
    """Return a model of 16 MB: it takes some time to send its checkpoints and exports."""
    import keras

    del params
    layers = [keras.layers.Dense(2000), keras.layers.Dense(2000), keras.layers.Dense(2, "softmax")]
    model = keras.Sequential([keras.layers.Input((4,)), *layers])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("num_ps", [0, 1], ids=["synchronous", "parameter servers"])
def test_training_whose_connections_are_reset_again_and_again_goes_on_as_if_they_were_not(
    spark: SparkSession, tmp_path: Path, num_ps: int
) -> None:
    events, rows = Events(), df_with_partitions(spark, ROWS)
    model = dense if num_ps else wide
    every = {} if num_ps else {"checkpoint_every_steps": 2}
    options: dict[str, Any] = {"num_ps": num_ps, "log_dir": str(tmp_path), "observer": events, **every}
    with (
        TFCluster.run(spark, model, {}, 2 + num_ps, **options) as cluster,
        resetting_connections_to(cluster._supervisor.control.port) as counts,
    ):
        cluster.train(rows, EPOCHS, features=["features"], batch_size=64, validation=rows)
        metrics = cluster.evaluate(rows)
        nodes = cluster.shutdown(export=["keras"])
    if not sum(counts):
        pytest.skip("needs root, and a kernel that lets ss(8) reset connections")
    assert events.of("restarting") == [], json.dumps(events.of("restarting"))
    assert [event["rows_fed"] for event in events.of("epoch")] == [sum(ROWS)] * EPOCHS
    assert metrics["loss"] > 0
    assert len(nodes["worker 0"]["rows"]) == EPOCHS
    assert keras.models.load_model(tmp_path / "export" / "model.keras").count_params() > 0
