"""Strike a cluster at a moment: an observer that kills what runs below this process."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
from cluster.lives import Events


def trainers() -> dict[tuple[str, int], psutil.Process]:
    """Find the trainers below this process by their TF_CONFIG."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # A process of Spark's that has just ended.
            if "tfspark.cluster.trainer" in process.cmdline():
                task = json.loads(process.environ()["TF_CONFIG"])["task"]
                found[task["type"], task["index"]] = process
    return found


class Strike(Events):
    """An observer that does something the first time it is told a certain thing."""

    def __init__(self, what: Callable[[], None], event: str, **fields: Any):
        super().__init__()
        self._what, self._event, self._fields = what, event, fields
        self.struck_at = 0.0

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        super().__call__(event, fields)
        if not self.struck_at and event == self._event and self._fields.items() <= fields.items():
            self.struck_at = time.monotonic()
            self._what()


def kill(role: str = "worker", index: int = 1) -> Callable[[], None]:
    return lambda: trainers()[role, index].kill()
