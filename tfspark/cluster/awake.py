"""A clock that counts only the time in which this process ran; the driver measures silence with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tfspark.protocol.timing import AWAKE_S


class AwakeClock:
    """A clock that stands still while this process is stopped, for example by Ctrl-Z or a closed laptop; thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._seconds = 0.0
        self._last = clock()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the seconds so far."""
        with self._lock:
            now = self._clock()
            self._seconds += min(now - self._last, AWAKE_S)
            self._last = now
            return self._seconds
