"""What fits on the same rows have found out of them by Spark jobs, each once. Driver only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Findings:
    """Facts about one DataFrame; fits may ask from several threads, and wait for what another finds out."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """Return what `find` returns; it is called once for each key.

        Args:
            key: all that the fact depends on beside the DataFrame.
            find: finds it out.
        """
        with self._lock:
            if key not in self._known:
                self._known[key] = find()
            found: T = self._known[key]
            return found
