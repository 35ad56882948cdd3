"""How often a cluster may be restarted. Pure: no sockets, no Spark."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SECOND_PAUSE_S = 1.0
"""Pause before the second restart. The first has none: most losses affect one process and happen once."""
LONGEST_PAUSE_S = 30.0


class RestartBudget:
    """Allow `most` restarts within a sliding window; the pause before each further restart is longer.

    Args:
        most: restarts within the window; 0: none.
        window_s: length of the window in seconds.
        clock: monotonic seconds.
    """

    def __init__(self, most: int, window_s: float, clock: Callable[[], float] = time.monotonic):
        self.most = most
        self.window_s = window_s
        self._clock = clock
        self._spent: deque[float] = deque()

    @property
    def next_pause_s(self) -> float | None:
        """Seconds to wait before the next restart; None if no restart is left."""
        while self._spent and self._clock() - self._spent[0] > self.window_s:
            self._spent.popleft()
        used = len(self._spent)
        if used >= self.most:
            return None
        return float(min(SECOND_PAUSE_S * 2 ** (used - 1), LONGEST_PAUSE_S)) if used else 0.0

    def spend(self) -> float | None:
        """Use up one restart; return the pause before it in seconds, None if no restart was left."""
        pause_s = self.next_pause_s
        if pause_s is not None:
            self._spent.append(self._clock())
        return pause_s
