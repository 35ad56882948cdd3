"""Run ``tfspark run`` as a person does, on small data of the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from pyspark.sql import SparkSession
from support.environment import DRIVER_ID, OWN_WARM_PARENT, shared_warm_parent
from support.processes import (
    Finished,
    command_line,
    describe,
    kill_all,
    marked_processes,
    poll_until,
    run_to_end,
    what_stays,
)

DEADLINE_S = 480.0
AGAIN_S = 0.3
_SET_BY_THE_TESTS = ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_LOCAL_IP")


@dataclass(frozen=True)
class Images:
    """Images whose brightness is their class: rows of (image BINARY, label BIGINT)."""

    height: int = 16
    width: int = 16
    channels: int = 1
    num_classes: int = 3
    num_rows: int = 120

    @property
    def shape(self) -> list[int]:
        return [self.height, self.width, self.channels]

    def save(self, spark: SparkSession, path: Path, file_format: str) -> str:
        """Write the rows as three files of one of Spark's formats."""
        random = np.random.default_rng(0)
        labels = np.arange(self.num_rows) % self.num_classes
        levels = (labels + 0.5) * 256 / self.num_classes
        noise = random.uniform(-10, 10, (self.num_rows, *self.shape))
        pixels = (levels[:, None, None, None] + noise).astype(np.uint8)
        rows = [(image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)]
        df = spark.createDataFrame(rows, "image binary, label bigint").repartition(3)
        df.write.format(file_format).mode("append").save(str(path))
        return str(path)

    def config(self, path: str, **changes: Any) -> dict[str, Any]:
        """Return an experiment on these rows; `changes` are keys with ``__`` in place of dots."""
        config: dict[str, Any] = {
            "name": "small",
            "seed": 1,
            "model": {
                "module": "models/cnn.py",
                "params": {"filters": 4, "input_shape": self.shape, "num_classes": self.num_classes},
            },
            "data": {
                "format": "tfrecord",
                "path": path,
                "schema": "image BINARY, label LONG",
                "features": {"image": {"shape": self.shape, "dtype": "uint8", "scale": 255}},
                "label": {"column": "label", "classes": self.num_classes},
                "batch_size": 16,
                "validation": 0.2,
                "test": 0.2,
            },
            "cluster": {"master": "local[4]", "executors": 2},
            "train": {"epochs": 2},
            "output": {"dir": "runs"},
        }
        for key, value in changes.items():
            section = config
            *path_to, last = key.split("__")
            for name in path_to:
                section = section.setdefault(name, {})
            section[last] = value
        return config


def environment(**more: str) -> dict[str, str]:
    """Return a person's environment: no settings of the tests for Spark, except the shared warm parent."""
    kept = {name: value for name, value in os.environ.items() if name not in _SET_BY_THE_TESTS}
    return {**kept, **shared_warm_parent(), **more}


def command(directory: Path, config: Mapping[str, Any] | str, *arguments: str) -> list[str]:
    """Write ``experiment.yaml`` and return the command that runs it."""
    text = config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False)
    (directory / "experiment.yaml").write_text(text)
    return [sys.executable, "-m", "tfspark.cli", "run", "experiment.yaml", *arguments]


def tfspark_run(directory: Path, config: Mapping[str, Any] | str, *arguments: str) -> Finished:
    """Run an experiment in a directory to its end."""
    return _to_end(command(directory, config, *arguments), directory)


def tfspark_resume(directory: Path, run: Path, *arguments: str) -> Finished:
    """Resume a run and wait for its end."""
    words = [sys.executable, "-m", "tfspark.cli", "run", "--resume", str(run), *arguments]
    return _to_end(words, directory)


def tfspark(directory: Path, *words: str) -> Finished:
    """Run a command of ``tfspark`` in a directory to its end."""
    return _to_end([sys.executable, "-m", "tfspark.cli", *words], directory)


def _to_end(words: list[str], directory: Path) -> Finished:
    return run_to_end(
        words,
        env=environment(),
        mark=(DRIVER_ID, uuid.uuid4().hex),
        cwd=directory,
        timeout_s=DEADLINE_S,
    )


def run_directory(directory: Path) -> Path:
    """Return the single run below ``runs``."""
    (found,) = (directory / "runs").iterdir()
    return found


@dataclass(frozen=True)
class Interrupted:
    """The outcome of a disturbed run.

    Attributes:
        seconds: from the disturbance to the end of its last process.
        survivors: processes that had to be killed.
        scratch: the temporary directory of all its processes.
    """

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    survivors: list[str]
    scratch: Path


def interrupt_run(
    directory: Path,
    config: Mapping[str, Any],
    moment: Callable[[Path], bool],
    number: int,
    *,
    times: int = 1,
    to_group: bool = True,
) -> Interrupted:
    """Start an experiment in its own process group and send it a signal.

    Args:
        directory: working directory.
        config: the experiment.
        moment: checks the directory and returns whether it is time.
        number: the signal.
        times: how many times to send it, as an impatient person does.
        to_group: send it to the whole group, as a terminal does, or only to the command.
    """

    def interrupt(process: subprocess.Popen[bytes], mark: str) -> None:
        for _ in range(times):
            (os.killpg if to_group else os.kill)(process.pid, number)
            poll_until(lambda: process.poll() is not None, AGAIN_S)

    return disturb_run(directory, config, moment, interrupt)


def kill_a_trainer(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill one of a run's trainers, as the kernel does when memory runs out."""
    del process
    next(p for p in left_of(mark) if "tfspark.trainer" in command_line(p)).kill()


def disturb_run(
    directory: Path,
    config: Mapping[str, Any],
    moment: Callable[[Path], bool],
    disturb: Callable[[subprocess.Popen[bytes], str], None],
) -> Interrupted:
    """Start an experiment, disturb it at some moment, and wait for its end.

    Args:
        directory: working directory.
        config: the experiment.
        moment: checks the directory and returns whether it is time.
        disturb: called with the command's process, and the mark of all its descendants.
    """
    mark = uuid.uuid4().hex
    out, err, scratch = directory / "stdout", directory / "stderr", directory / "tmp"
    scratch.mkdir()
    more = {DRIVER_ID: mark, "TMPDIR": str(scratch), "SPARK_LOCAL_DIRS": str(scratch), **OWN_WARM_PARENT}
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            command(directory, config),
            env=environment(**more),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            start_new_session=True,
        )
    try:
        came = poll_until(lambda: moment(directory) or process.poll() is not None, DEADLINE_S)
        assert came, out.read_text() + err.read_text()
        assert process.poll() is None, out.read_text() + err.read_text()
        began = time.monotonic()
        disturb(process, mark)
        process.wait(DEADLINE_S)
        left = what_stays(lambda: left_of(mark), DEADLINE_S / 2)
        seconds = time.monotonic() - began
        survivors = [describe(p) for p in left]
    finally:
        kill_all(left_of(mark), again=lambda: left_of(mark))
        process.wait(10)
    return Interrupted(process.returncode, out.read_text(), err.read_text(), seconds, survivors, scratch)


def left_of(mark: str) -> list[psutil.Process]:
    """Return the running processes of a run."""
    return marked_processes(DRIVER_ID, mark)


def logged(pattern: str) -> Callable[[Path], bool]:
    """A moment: the run has written a line like `pattern` to its log."""

    def came(directory: Path) -> bool:
        return any(
            re.search(f"^\\S+ {pattern}", log.read_text(), re.MULTILINE)
            for log in directory.glob("runs/*/run.log")
        )

    return came


def spark_starts(directory: Path) -> bool:
    """A moment: Spark's JVM runs, but there is no session yet."""
    scratch = str(directory / "tmp")
    return any(
        Path(line[0]).name == "java" for p in marked_processes("TMPDIR", scratch) if (line := command_line(p))
    )


def has_checkpoint(directory: Path) -> bool:
    """A moment: the run has saved its first checkpoint, at the end of an epoch."""
    return any(directory.glob("runs/*/checkpoints/*.keras"))


MODEL = """
def build_model(params):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


NUM_ROWS = 2000


BATCH = 20


def experiment(epochs: int, executors: int = 1, **cluster: Any) -> dict[str, Any]:
    """Return a query for rows that Spark generates, the same each time."""
    sql = "SELECT transform(sequence(1, 4), i -> float(hash(id, i) / 2e9)) AS x, id % 2 AS y FROM range({})"
    return {
        "name": "lost",
        "model": {"module": "model.py"},
        "data": {
            "sql": sql.format(NUM_ROWS),
            "features": {"x": {}},
            "label": {"column": "y", "classes": 2},
            "batch_size": BATCH,
            "shuffle": False,
        },
        "cluster": {"master": "local[4]", "executors": executors, **cluster},
        "train": {"epochs": epochs},
        "checkpoint": {"every_steps": 30},
        "export": {"formats": []},
    }
