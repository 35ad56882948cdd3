"""Run ``tfspark run`` as a user does, on small data."""

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
SIGNAL_INTERVAL_S = 0.3
_SET_BY_THE_TESTS = ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_LOCAL_IP")


@dataclass(frozen=True)
class Images:
    """Rows of (image BINARY, label BIGINT). The class of an image determines its brightness."""

    height: int = 16
    width: int = 16
    channels: int = 1
    num_classes: int = 3
    num_rows: int = 120

    @property
    def shape(self) -> list[int]:
        return [self.height, self.width, self.channels]

    def save(self, spark: SparkSession, path: Path, file_format: str) -> str:
        """Write the rows as three files in one of Spark's formats."""
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
        """Return an experiment on these rows. `changes` are keys with ``__`` instead of dots."""
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
    """Return the environment of a user, without the tests' Spark settings, but with the shared warm parent."""
    kept = {name: value for name, value in os.environ.items() if name not in _SET_BY_THE_TESTS}
    return {**kept, **shared_warm_parent(), **more}


def command(directory: Path, config: Mapping[str, Any] | str, *arguments: str) -> list[str]:
    """Write ``experiment.yaml`` and return the command that runs it."""
    text = config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False)
    (directory / "experiment.yaml").write_text(text)
    return [sys.executable, "-m", "tfspark.cli", "run", "experiment.yaml", *arguments]


def tfspark_run(directory: Path, config: Mapping[str, Any] | str, *arguments: str) -> Finished:
    """Run an experiment in a directory and wait for its end."""
    return _to_end(command(directory, config, *arguments), directory)


def tfspark_resume(directory: Path, run: Path, *arguments: str) -> Finished:
    """Resume a run and wait for its end."""
    words = [sys.executable, "-m", "tfspark.cli", "run", "--resume", str(run), *arguments]
    return _to_end(words, directory)


def tfspark(directory: Path, *words: str) -> Finished:
    """Run a ``tfspark`` command in a directory and wait for its end."""
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
    """The outcome of a run that a test has disturbed.

    Attributes:
        seconds: time from the disturbance to the end of the last process.
        survivors: processes that did not end by themselves.
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
        moment: takes the directory and returns whether to send the signal now.
        number: number of the signal.
        times: how many times to send the signal; an impatient user presses Ctrl-C several times.
        to_group: send it to the whole group, as a terminal does, or only to the command.
    """

    def interrupt(process: subprocess.Popen[bytes], mark: str) -> None:
        for _ in range(times):
            (os.killpg if to_group else os.kill)(process.pid, number)
            poll_until(lambda: process.poll() is not None, SIGNAL_INTERVAL_S)

    return disturb_run(directory, config, moment, interrupt)


def kill_a_trainer(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill one trainer of a run, as the kernel does when memory runs out."""
    del process
    next(p for p in processes_of(mark) if "tfspark.trainer" in command_line(p)).kill()


def disturb_run(
    directory: Path,
    config: Mapping[str, Any],
    moment: Callable[[Path], bool],
    disturb: Callable[[subprocess.Popen[bytes], str], None],
) -> Interrupted:
    """Start an experiment, disturb it at a moment, and wait for its end.

    Args:
        directory: working directory.
        config: the experiment.
        moment: takes the directory and returns whether to disturb the run now.
        disturb: takes the process of the command and the mark of all its descendants.
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
        left = what_stays(lambda: processes_of(mark), DEADLINE_S / 2)
        seconds = time.monotonic() - began
        survivors = [describe(p) for p in left]
    finally:
        kill_all(processes_of(mark), again=lambda: processes_of(mark))
        process.wait(10)
    return Interrupted(process.returncode, out.read_text(), err.read_text(), seconds, survivors, scratch)


def processes_of(mark: str) -> list[psutil.Process]:
    """Return the running processes with the mark of a run."""
    return marked_processes(DRIVER_ID, mark)


def logged(pattern: str) -> Callable[[Path], bool]:
    """Return a moment: the log of the run has a line that matches `pattern`."""

    def came(directory: Path) -> bool:
        return any(
            re.search(f"^\\S+ {pattern}", log.read_text(), re.MULTILINE)
            for log in directory.glob("runs/*/run.log")
        )

    return came


def spark_starts(directory: Path) -> bool:
    """Return whether Spark's JVM runs. It starts before the Spark session."""
    scratch = str(directory / "tmp")
    return any(
        Path(line[0]).name == "java" for p in marked_processes("TMPDIR", scratch) if (line := command_line(p))
    )


def has_checkpoint(directory: Path) -> bool:
    """Return whether the run has saved a model, which it does at the end of each epoch."""
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
    """Return an experiment on rows that Spark generates; the rows are the same each time."""
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
