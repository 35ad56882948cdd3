"""Sets of row numbers, stored as half-open intervals; they are used to deliver each row exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Ranges:
    """A set of row numbers, stored as sorted, disjoint, non-touching intervals ``[first, end)``."""

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()):
        self._intervals: list[tuple[int, int]] = []
        for first, end in intervals:
            self.add(first, end)

    def add(self, first: int, end: int) -> None:
        """Add the rows ``first <= row < end``."""
        if first >= end:
            return
        apart = [(a, b) for a, b in self._intervals if b < first or a > end]
        touching = [(a, b) for a, b in self._intervals if not (b < first or a > end)]
        merged = (
            min([first, *(a for a, _ in touching)]),
            max([end, *(b for _, b in touching)]),
        )
        self._intervals = sorted([*apart, merged])

    def add_all(self, intervals: Iterable[Iterable[int]]) -> None:
        """Add several intervals in the form that `to_json` returns."""
        for first, end in intervals:
            self.add(first, end)

    def missing(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of ``[first, end)`` that are not in the set."""
        for a, b in self._intervals:
            if b <= first:
                continue
            if a >= end:
                break
            if a > first:
                yield first, a
            first = b
        if first < end:
            yield first, end

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(b - a for a, b in self._intervals)

    def to_json(self) -> list[list[int]]:
        """Return the intervals as lists."""
        return [list(pair) for pair in self._intervals]
