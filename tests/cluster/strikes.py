"""Cause a failure in a cluster at a chosen event: an observer that kills its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.incarnations import Events
from support.trainers import trainers


class Strike(Events):
    """An observer that acts on the first event that meets a condition."""

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
    """Return a function that kills the trainer of a node."""
    return lambda: trainers()[f"{role} {index}"].kill()


class Strikes(Events):
    """An observer that acts once, and once more in the restart that follows."""

    def __init__(self, first: Strike, in_restart: Strike):
        super().__init__()
        self.first, self.in_restart = first, in_restart

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        super().__call__(event, fields)
        self.first(event, fields)
        if self.of("restarting"):
            self.in_restart(event, fields)
