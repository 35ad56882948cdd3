"""A clock that a test moves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Monotonic seconds, as long as the test only adds to them."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now
