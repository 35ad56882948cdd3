"""A clock that a test moves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Monotonic seconds. A test advances the clock: it adds to ``now``."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now
