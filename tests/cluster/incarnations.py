"""Observe one incarnation of a cluster from outside: record its events, check that it leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from support.leaks import Owned, Snapshot, find_leaks, running_jobs
from support.processes import json_of_python
from support.rows import features_of, label_of

PLAIN_KERAS_S = 120.0


class Events:
    """An observer that records its events."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        with self._changed:
            self.all.append((event, dict(fields)))
            self._changed.notify_all()

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the fields of all events with a name."""
        return [fields for event, fields in self.all if event == name]

    def wait_for(self, name: str, count: int = 1, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Wait until an event has occurred `count` times."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.of(name)) >= count, timeout_s):
                raise AssertionError(f"waited {timeout_s:g} s for {count} x {name!r}, got {self.all}")
        return self.of(name)


@contextmanager
def leaving_nothing(spark: SparkSession, owned: Owned) -> Iterator[None]:
    """Check that a fixture of several tests leaves nothing behind, as ``conftest.py`` does for each test."""
    before = Snapshot.take()
    yield
    assert find_leaks(before, owned, running_jobs=lambda: running_jobs(spark.sparkContext)) == []


def save_rows(path: Path, num_rows: int, num_classes: int = 2) -> Path:
    """Write the rows of `df_with_partitions` as NumPy arrays."""
    ids = np.arange(num_rows)
    np.savez(path, x=features_of(ids), y=label_of(ids, num_classes))
    return path


def plain_keras(code: str, *args: object) -> dict[str, Any]:
    """Run code in a separate process, without tfspark's corrections; return the JSON that it prints last."""
    result: dict[str, Any] = json_of_python("-c", code, *map(str, args), timeout_s=PLAIN_KERAS_S)
    return result


TRAIN_ROWS = [300, 41, 0, 7]


EVALUATION_ROWS = [50, 13]


CLASSES = 3


@dataclass(frozen=True)
class Results:
    """The results of one cluster: two trainings with validation, an evaluation, an export."""

    first: dict[str, list[float]]
    second: dict[str, list[float]]
    metrics: dict[str, Any]
    summaries: dict[str, Any]
    events: Events
    log_dir: Path

    @property
    def workers(self) -> list[dict[str, Any]]:
        return [self.summaries["worker 0"], self.summaries["worker 1"]]


EVALUATE = """
import json, sys, warnings
warnings.simplefilter("error", UserWarning)
import keras, numpy as np, tensorflow as tf
rows = np.load(sys.argv[2])
model = keras.saving.load_model(sys.argv[1] + "/model.keras")
loss, accuracy = model.evaluate(rows["x"], rows["y"], batch_size=len(rows["x"]), verbose=0)
saved_model = tf.saved_model.load(sys.argv[1] + "/saved_model")
served = saved_model.serve(rows["x"]).numpy()
apart = float(np.abs(served - model.predict(rows["x"], verbose=0)).max())
print(json.dumps({"loss": loss, "accuracy": accuracy, "apart": apart,
                  "iterations": int(model.optimizer.iterations.numpy())}))
"""
