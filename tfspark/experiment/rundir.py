"""The run directory: the only module that knows the files of a run.

``runs/<name>-<timestamp>/`` has ``config.yaml`` (resolved), ``versions.json``, ``metrics.jsonl``, ``run.log``,
``logs/`` (one file per node), ``tensorboard/``, ``checkpoints/``, ``export/``, ``results.json`` and pictures.
"""

from __future__ import annotations

import datetime
import io
import json
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from tfspark.errors import ConfigError
from tfspark.experiment.report import metrics_of
from tfspark.experiment.secrets import arguments_without_secrets
from tfspark.tfrecord.framing import frame

PACKAGES = ("tfspark", "pyspark", "tensorflow", "tensorflow-cpu", "keras", "pyarrow", "numpy", "pandas")


class RunDirectory:
    """One run's directory, created by the constructor; it must not exist before.

    Args:
        parent: directory of all runs.
        name: the experiment's name.

    Raises:
        ConfigError: it already exists or cannot be written.
    """

    def __init__(self, parent: Path, name: str):
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self.path = (parent / f"{name}-{stamp}").absolute()
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(
                f"expected to make a new run directory, but {self.path} exists; wait a second or set output.dir"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"expected to make the run directory {self.path}: {error.strerror}; set output.dir to a directory "
                "that you may write to"
            ) from None
        # Written here, because TensorBoard's own writer imports TensorFlow, which the driver does not need.
        self._curves = self.path / "tensorboard" / f"events.out.tfevents.{int(time.time())}.{platform.node()}"

    def write_text(self, name: str, text: str) -> None:
        """Write a file."""
        (self.path / name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def open_log(self) -> TextIO:
        """Open ``run.log``, unbuffered: on a full disk, closing the file must not fail because of buffered text."""
        raw = (self.path / "run.log").open("ab", buffering=0)
        return io.TextIOWrapper(raw, encoding="utf-8", write_through=True)

    def write_versions(self) -> None:
        """Write the versions of Python, the platform and the packages, and the command line."""
        found = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "argv": arguments_without_secrets(sys.argv),
        }
        self.write_json("versions.json", {**found, **_package_versions()})

    def add_metrics(self, event: str, **fields: Any) -> None:
        """Append a line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def add_epochs(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Copy an earlier run's events of epochs, with their times."""
        for event in events:
            self.add_metrics(**event)
            self.add_scalars(event["epoch"], metrics_of(event))

    def add_scalars(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add an epoch's metrics to the TensorBoard logs."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=f"epoch_{name}", simple_value=v) for name, v in metrics.items()]
        events = [Event(wall_time=time.time(), step=epoch, summary=Summary(value=values))]
        if not self._curves.exists():
            self._curves.parent.mkdir(exist_ok=True)
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        with self._curves.open("ab") as file:
            file.writelines(frame(event.SerializeToString()) for event in events)


def _package_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
