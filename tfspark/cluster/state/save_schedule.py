"""Decide, by the clock, when to save the state within an epoch. Pure: no sockets, no Spark.

A checkpoint needs the same step from every worker, but the workers' clocks do not agree. So the workers meet at a
barrier. Each meeting says after how many steps the next one is. There each worker reports to the driver, and when the
last one has arrived, the driver decides for all: whether this step is saved, and when the next meeting is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tfspark.protocol.values import Json

APART_S = 2.0
"""Approximate seconds between two meetings: each meeting costs one call per worker."""
FASTEST_GROWTH = 4
"""Limit on the growth of the number of steps between meetings. The first steps are slow because they are compiled."""


@dataclass
class Meeting:
    """One meeting."""

    came: set[int] = field(default_factory=set)
    decision: Json | None = None


class SaveSchedule:
    """The meetings of one incarnation of a cluster. Methods are called under the control plane's lock.

    Args:
        every_s: seconds between saves; 0: save only when `save_soon` was called.
        clock: monotonic seconds.
    """

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic):
        self._every_s = every_s
        self._apart_s = min(APART_S, every_s / 4) if every_s else APART_S
        self._clock = clock
        self._met_at = self._saved_at = clock()
        self._steps_apart = 1
        self._save_soon = False
        self._meetings: dict[int, Meeting] = {}

    @property
    def in_use(self) -> bool:
        """Whether the workers meet at all."""
        return bool(self._meetings)

    def save_soon(self) -> None:
        """Save at the next meeting."""
        self._save_soon = True

    def arrive(self, number: int, rank: int, of: int) -> Json | None:
        """Record that a worker has arrived at a meeting; return the decision, None until all workers are there.

        Args:
            number: of the meeting, from 0.
            rank: the worker; it may repeat the call.
            of: number of workers.

        Returns:
            ``save``: whether this step is saved; ``steps``: number of steps until the next meeting.
        """
        meeting = self._meetings.setdefault(number, Meeting())
        meeting.came.add(rank)
        if meeting.decision is None and len(meeting.came) == of:
            meeting.decision = self._decide()
            self._meetings.pop(number - 1, None)  # All workers have left it.
        return meeting.decision

    def _decide(self) -> Json:
        now = self._clock()
        took_s, self._met_at = now - self._met_at, now
        steps = round(self._steps_apart * self._apart_s / max(took_s, 1e-6))
        self._steps_apart = min(max(1, steps), FASTEST_GROWTH * self._steps_apart)
        # Save now if this meeting is at least as close to the due time as the next one.
        due = bool(self._every_s) and now - self._saved_at >= self._every_s - self._apart_s / 2
        save, self._save_soon = due or self._save_soon, False
        if save:
            self._saved_at = now
        return {"save": save, "steps": self._steps_apart}
