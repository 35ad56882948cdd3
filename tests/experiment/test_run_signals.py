"""``tfspark run`` interrupted by Ctrl-C, which goes to the whole process group, or by a signal to one process."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from experiment.runs import has_checkpoint, interrupt_run, logged, run_directory, spark_starts

from tfspark.cluster.state.checkpoint_store import Checkpoint
from tfspark.experiment.config import load_config

GONE_S = 10.0
"""Limit from the signal to the end of the last process, including Spark's. tfspark promises it for an idle machine."""

MODEL = """
def build_model(params):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def export(model, directory):
    import time

    with open(directory + "/half", "w") as file:
        file.write("half of an export")
    time.sleep(60)
"""


def experiment(epochs: int = 1, num_test_rows: int = 100, warm: bool = True) -> dict[str, Any]:
    """Return an experiment on rows that Spark generates. With the default arguments, training takes a second."""
    sql = "SELECT transform(sequence(1, 4), i -> float(hash(id, i) / 2e9)) AS x, id % 2 AS y FROM range({})"
    return {
        "name": "broken-off",
        "model": {"module": "model.py"},
        "data": {
            "sql": sql.format(2000),
            "features": {"x": {}},
            "label": {"column": "y", "classes": 2},
            "shuffle": False,
            "test": {"sql": sql.format(num_test_rows)},
        },
        "cluster": {"master": "local[4]", "executors": 2, "warm": warm},
        "train": {"epochs": epochs},
    }


IN_AN_EPOCH = logged("epoch 2/.* step")


@pytest.mark.parametrize(
    ("moment", "before", "config", "number", "times", "to_group"),
    [
        pytest.param(spark_starts, "Spark session", {}, signal.SIGINT, 1, True, id="Ctrl-C as Spark starts"),
        pytest.param(spark_starts, "Spark session", {}, signal.SIGTERM, 1, False, id="SIGTERM as Spark starts"),
        pytest.param(logged("data "), "reservation", {}, signal.SIGINT, 1, True, id="Ctrl-C with nodes missing"),
        pytest.param(
            # In a fork, TensorFlow would be up before the signal arrives.
            logged("reservation "), "TensorFlow up", {"warm": False}, signal.SIGTERM, 1, False,
            id="SIGTERM as TensorFlow comes up",
        ),
        pytest.param(
            IN_AN_EPOCH, "test ", {"epochs": 500}, signal.SIGINT, 3, True, id="Ctrl-C three times in an epoch"
        ),
        pytest.param(
            IN_AN_EPOCH, "test ", {"epochs": 500}, signal.SIGTERM, 1, True,
            id="SIGTERM to the group in an epoch", marks=pytest.mark.slow,
        ),
        pytest.param(
            has_checkpoint, "test ", {"num_test_rows": 10_000_000}, signal.SIGINT, 1, False,
            id="SIGINT in the evaluation",
        ),
        pytest.param(logged("test "), "export and stop", {}, signal.SIGINT, 1, True, id="Ctrl-C in the export"),
    ],
)  # fmt: skip
def test_run_when_interrupted_says_so_and_leaves_only_a_readable_directory(
    tmp_path: Path,
    moment: Callable[[Path], bool],
    before: str,
    config: dict[str, Any],
    number: int,
    times: int,
    to_group: bool,
) -> None:
    (tmp_path / "model.py").write_text(MODEL)

    ended = interrupt_run(tmp_path, experiment(**config), moment, number, times=times, to_group=to_group)

    assert before not in ended.stdout, "the signal came too late for this moment"
    assert ended.survivors == []
    assert ended.seconds < GONE_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert ended.returncode == 128 + number
    assert ended.stderr.splitlines()[-1] == "interrupted: all processes of the run were ended"
    assert "Traceback (most recent call last)" not in ended.stderr, ended.stderr
    assert list(ended.scratch.iterdir()) == []
    check_readable(run_directory(tmp_path))
    assert (run_directory(tmp_path) / "run.log").read_text().endswith(" interrupted\n")


def test_signal_that_comes_while_a_finalizer_runs_is_not_lost(tmp_path: Path) -> None:
    finalizer = """
import pathlib, time

class Slow:
    def __del__(self):
        pathlib.Path("in_finalizer").touch()
        time.sleep(5)

Slow()
"""
    (tmp_path / "model.py").write_text(MODEL + finalizer)

    ended = interrupt_run(
        tmp_path,
        experiment(),
        lambda directory: (directory / "in_finalizer").exists(),
        signal.SIGTERM,
        to_group=False,
    )

    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.splitlines()[-1] == "interrupted: all processes of the run were ended"
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.survivors == []


def check_readable(directory: Path) -> None:
    """Check that every file of an interrupted run is complete."""
    assert load_config(directory / "config.yaml").name == "broken-off"
    assert "pyspark" in json.loads((directory / "versions.json").read_text())
    for metrics in directory.glob("metrics.jsonl"):
        assert all("event" in json.loads(line) for line in metrics.read_text().splitlines())
    for checkpoint in directory.glob("checkpoints/*.keras"):
        assert zipfile.ZipFile(checkpoint).testzip() is None
    for state in directory.glob("checkpoints/state-*"):
        Checkpoint.load(state)
    assert not (directory / "export").exists()
    assert not list(directory.rglob("*.partial"))
    assert not list(directory.glob("checkpoints/.state-*"))
