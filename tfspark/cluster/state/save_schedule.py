"""When to save the state in the middle of an epoch, by the clock. Pure: no sockets, no Spark.

A checkpoint needs the same step of every worker, and their clocks do not agree. So the workers *meet*: after a number
of steps that they were told at the meeting before, each tells the driver that it is there, and the last to come
decides for all whether this step is saved and how many steps later they meet again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tfspark.protocol.values import Json

APART_S = 2.0
"""Seconds between two meetings, about: each costs a call of every worker."""
FASTEST_GROWTH = 4
"""The first steps are slow, since they are compiled: the number of steps between meetings grows in bounds."""


@dataclass
class Meeting:
    """One meeting."""

    came: set[int] = field(default_factory=set)
    decision: Json | None = None


class SaveSchedule:
    """The meetings of one incarnation of a cluster. Methods are called under the control plane's lock.

    Args:
        every_s: how often to save; 0: only when `save_soon` says so.
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
        """Let the next meeting save."""
        self._save_soon = True

    def arrive(self, number: int, rank: int, of: int) -> Json | None:
        """Note that a worker has come to a meeting; return what was decided, None until all of them are there.

        Args:
            number: of the meeting, from 0.
            rank: the worker; it may ask again.
            of: how many workers there are.

        Returns:
            ``save``: whether this step is saved; ``steps``: how many later the next meeting is.
        """
        meeting = self._meetings.setdefault(number, Meeting())
        meeting.came.add(rank)
        if meeting.decision is None and len(meeting.came) == of:
            meeting.decision = self._decide()
            self._meetings.pop(number - 1, None)  # All have left it.
        return meeting.decision

    def _decide(self) -> Json:
        now = self._clock()
        took_s, self._met_at = now - self._met_at, now
        steps = round(self._steps_apart * self._apart_s / max(took_s, 1e-6))
        self._steps_apart = min(max(1, steps), FASTEST_GROWTH * self._steps_apart)
        # A meeting is as good as the next if it is as near.
        due = bool(self._every_s) and now - self._saved_at >= self._every_s - self._apart_s / 2
        save, self._save_soon = due or self._save_soon, False
        if save:
            self._saved_at = now
        return {"save": save, "steps": self._steps_apart}
