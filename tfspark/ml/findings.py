"""Share facts about rows between fits, so that each fact needs Spark jobs only once. Driver only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Findings:
    """Facts about one DataFrame. Fits may ask from several threads; they wait while another one computes a fact."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: dict[Hashable, Any] = {}

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """Return the result of `find`, which is called once for each key.

        Args:
            key: everything on which the fact depends, beside the DataFrame.
            find: computes the fact.
        """
        with self._lock:
            if key not in self._known:
                self._known[key] = find()
            found: T = self._known[key]
            return found
