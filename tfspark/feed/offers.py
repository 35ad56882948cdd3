"""Partitions whose rows wait for results: which are offered, and which reader has taken each.

It is part of the driver, beside the feed directory and under the same lock. It has only state and decisions. A task
that computes a partition of an inference offers it. One reader takes the whole partition, so results keep the rows'
order.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tfspark.protocol.timing import SOURCE_SILENCE_S
from tfspark.protocol.values import Json


@dataclass
class Offer:
    """One attempt of one task that offers its partition."""

    stream: str
    location: str
    host: str
    heard: float
    taken_by: int | None = None
    dropped: bool = False


class Offers:
    """The driver's state of offered partitions.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._offers: dict[str, Offer] = {}
        self._clock = clock
        self._last_taken = clock()

    def offer(self, stream: str, location: str, host: str) -> Json:
        """Register a partition; return its number."""
        if not self._offers:
            self._last_taken = self._clock()
        name = uuid.uuid4().hex
        self._offers[name] = Offer(stream, location, host, self._clock())
        return {"offer": name}

    def alive(self, offer: str) -> Json:
        """Record that an offer waits; return whether it is taken or dropped, and seconds since any offer was taken."""
        entry = self._offers[offer]
        entry.heard = self._clock()
        return {
            "taken": entry.taken_by is not None,
            "stop": entry.dropped,
            "idle_s": self._clock() - self._last_taken,
        }

    def __contains__(self, offer: str) -> bool:
        """Return whether this offer exists."""
        return offer in self._offers

    def done(self, offer: str) -> Json:
        """Forget a partition that has all its results or whose task failed."""
        self._offers.pop(offer, None)
        self._last_taken = self._clock()
        return {}

    def take(self, stream: str, rank: int, host: str, held: Sequence[str] = ()) -> Json | None:
        """Give a reader a partition, preferably one of its own host; None if none waits.

        If the reader was given a partition that it does not hold, that reply was lost: it gets the same partition
        again.
        """
        now = self._clock()
        waiting = {
            name: entry
            for name, entry in self._offers.items()
            if entry.stream == stream
            and (entry.taken_by is None or (entry.taken_by == rank and name not in held))
            and now - entry.heard < SOURCE_SILENCE_S
        }
        if not waiting:
            return None
        name = min(waiting, key=lambda key: waiting[key].host != host)
        waiting[name].taken_by = rank
        self._last_taken = now
        return {"status": "partition", "offer": name, "location": waiting[name].location}

    def drop(self, rank: int | None = None) -> None:
        """Give up the partitions that a reader has taken (None: all partitions); their tasks get no more results."""
        for entry in self._offers.values():
            entry.dropped = entry.dropped or rank is None or entry.taken_by == rank
