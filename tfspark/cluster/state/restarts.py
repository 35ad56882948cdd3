"""How often a cluster may be started again. Pure: no sockets, no Spark."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SECOND_PAUSE_S = 1.0
"""After the first loss the nodes are started again at once: most losses are of one process, and come once."""
LONGEST_PAUSE_S = 30.0


class RestartBudget:
    """So many restarts within a sliding window of time; each next one within it after a longer pause.

    Args:
        most: restarts within the window; 0: none ever.
        window_s: its length.
        clock: monotonic seconds.
    """

    def __init__(self, most: int, window_s: float, clock: Callable[[], float] = time.monotonic):
        self.most = most
        self.window_s = window_s
        self._clock = clock
        self._spent: deque[float] = deque()

    @property
    def next_pause_s(self) -> float | None:
        """Seconds to wait before the next restart; None when there is none left."""
        while self._spent and self._clock() - self._spent[0] > self.window_s:
            self._spent.popleft()
        used = len(self._spent)
        if used >= self.most:
            return None
        return float(min(SECOND_PAUSE_S * 2 ** (used - 1), LONGEST_PAUSE_S)) if used else 0.0

    def spend(self) -> float | None:
        """Use up one restart; return the pause before it in seconds, None when there was none left."""
        pause_s = self.next_pause_s
        if pause_s is not None:
            self._spent.append(self._clock())
        return pause_s
