"""The ledger: which rows of a pass the training steps have used so far. Pure NumPy.

A row is identified by the number of its partition in the DataFrame and its position there. Rows are recorded when a
batch is formed, under the number of the step that will use it. So rows that were read ahead of a checkpoint do not
count.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Intervals = list[list[int]]
Used = dict[int, Intervals]
"""Partition -> sorted, disjoint intervals ``[first, end)`` of rows."""

Numbers = npt.NDArray[np.int64]


def intervals_of(rows: Numbers) -> Intervals:
    """Return the rows as intervals; a row may occur several times."""
    distinct = np.unique(rows)
    if not len(distinct):
        return []
    breaks = np.flatnonzero(np.diff(distinct) > 1)
    first = distinct[np.concatenate([[0], breaks + 1])]
    last = distinct[np.concatenate([breaks, [len(distinct) - 1]])]
    return [[int(a), int(b) + 1] for a, b in zip(first, last, strict=True)]


def union(intervals: Iterable[Intervals]) -> Intervals:
    """Return one sorted list of disjoint intervals that covers all given intervals."""
    joined: Intervals = []
    for first, end in sorted(pair for each in intervals for pair in each):
        if joined and first <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([first, end])
    return joined


def merged(ledgers: Iterable[Mapping[int, Intervals]]) -> Used:
    """Return the rows that are in any of the ledgers."""
    found: dict[int, list[Intervals]] = {}
    for ledger in ledgers:
        for partition, intervals in ledger.items():
            found.setdefault(int(partition), []).append(intervals)
    return {partition: union(intervals) for partition, intervals in sorted(found.items())}


def num_rows(used: Mapping[int, Intervals]) -> int:
    """Return the number of rows in a ledger."""
    return sum(end - first for intervals in used.values() for first, end in intervals)


class Ledger:
    """Rows of one pass that one reader's steps use; the reading thread writes it, the training thread reads it."""

    def __init__(self) -> None:
        self._of_steps: dict[int, tuple[Numbers, Numbers]] = {}
        self._used: Used = {}
        self._lock = threading.Lock()

    def note(self, step: int, partitions: Numbers, rows: Numbers) -> None:
        """Record the rows of the batch for step `step` of the pass, counted from 0."""
        with self._lock:
            self._of_steps[step] = partitions, rows

    def up_to(self, steps: int) -> Used:
        """Return the rows that the first `steps` steps use; `steps` must not decrease between calls."""
        with self._lock:
            done = [self._of_steps.pop(step) for step in sorted(self._of_steps) if step < steps]
        if done:
            partitions = np.concatenate([part for part, _ in done])
            rows = np.concatenate([row for _, row in done])
            new = {int(part): intervals_of(rows[partitions == part]) for part in np.unique(partitions)}
            self._used = merged([self._used, new])
        return self._used
