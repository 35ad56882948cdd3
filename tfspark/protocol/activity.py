"""Whether a trainer gets on. From outside a long step, one that never ends and a wait for rows look the same."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tfspark.protocol.wire import Json

BUSY, WAITS, IDLE = "busy", "waits", "idle"


class Pulse:
    """What a trainer says of itself every few seconds; thread-safe.

    A trainer is idle until it works on something that is made of steps. A wait for rows or for the driver, which have
    deadlines of their own, is not taken for a step that does not end.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()

    def beat(self) -> None:
        """Note that a step was done."""
        self._steps += 1

    def working(self) -> AbstractContextManager[None]:
        """Steps are done within the block."""
        return self._in(BUSY)

    def waiting(self) -> AbstractContextManager[None]:
        """The block waits for something that is not of this trainer."""
        return self._in(WAITS)

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
        """Return the steps so far and the state."""
        with self._lock:
            state = next((state for state in (WAITS, BUSY) if self._under_way[state]), IDLE)
            return {"steps": self._steps, "state": state}
