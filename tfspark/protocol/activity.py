"""Whether a trainer makes progress.

Seen from outside, a long step, a step that never ends and a wait for rows look the same. So the trainer reports them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tfspark.protocol.values import Json

BUSY, WAITING, IDLE = "busy", "waiting", "idle"


class Activity:
    """What a trainer reports about itself every few seconds; thread-safe.

    A trainer is idle until it starts work that consists of steps. Waits for rows or for the driver have their own
    deadlines, and do not count as a step that does not end.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()

    def step_done(self) -> None:
        """Record that a step was done."""
        self._steps += 1

    def busy(self) -> AbstractContextManager[None]:
        """Mark the block as work that consists of steps."""
        return self._in(BUSY)

    def waiting(self) -> AbstractContextManager[None]:
        """Mark the block as a wait for rows or for another process."""
        return self._in(WAITING)

    @contextmanager
    def _in(self, state: str) -> Iterator[None]:
        with self._lock:
            self._under_way[state] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[state] -= 1

    def to_json(self) -> Json:
        """Return the number of steps so far and the activity: ``busy``, ``waiting`` or ``idle``."""
        with self._lock:
            state = next((state for state in (WAITING, BUSY) if self._under_way[state]), IDLE)
            return {"steps": self._steps, "activity": state}
