"""From pieces of any size to batches of one size: pure NumPy, used by the reader in the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = dict[str, npt.NDArray[Any]]


def num_rows(rows: Rows) -> int:
    """Return the length of the first axis."""
    return len(next(iter(rows.values())))


def take(rows: Rows, index: Any) -> Rows:
    """Select rows by a slice (views) or an index array (copies)."""
    return {name: values[index] for name, values in rows.items()}


def concatenate(pieces: list[Rows]) -> Rows:
    """Join pieces row-wise; a single piece is returned as it is."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def pad(rows: Rows, batch_size: int, filler: Rows) -> Rows:
    """Fill up to `batch_size` with copies of `filler`'s rows, in turn."""
    missing = batch_size - num_rows(rows)
    if missing == 0:
        return rows
    index = np.arange(missing) % num_rows(filler)
    return concatenate([rows, take(filler, index)])


class Batcher:
    """Collect pieces, give out batches of `batch_size` rows, optionally shuffled within a window.

    Rows leave in the order they came, or, with ``window > batch_size``, each window of rows is permuted by
    `rng` before it is cut. Every row comes out exactly once.
    """

    def __init__(self, batch_size: int, window: int = 0, rng: np.random.Generator | None = None):
        self._batch_size = batch_size
        self._window = window if rng is not None and window > batch_size else 0
        self._rng = rng
        self._waiting: deque[Rows] = deque()
        self._mixed: deque[Rows] = deque()
        self._num_waiting = 0
        self._num_mixed = 0

    @property
    def num_rows(self) -> int:
        """Rows held."""
        return self._num_waiting + self._num_mixed

    def add(self, rows: Rows) -> None:
        """Take in a piece of any size."""
        self._waiting.append(rows)
        self._num_waiting += num_rows(rows)

    def full_batches(self) -> Iterator[Rows]:
        """Give out what is complete."""
        while self._num_waiting >= max(self._window, 1):
            self._mix(min(self._num_waiting, self._window or self._num_waiting))
            while self._num_mixed >= self._batch_size:
                yield self._pop(self._batch_size)

    def rest(self) -> Iterator[Rows]:
        """Give out everything that is left, the last batch perhaps short."""
        if self._num_waiting:
            self._mix(self._num_waiting)
        while self._num_mixed:
            yield self._pop(min(self._batch_size, self._num_mixed))

    def _mix(self, count: int) -> None:
        """Move `count` rows from waiting to mixed, permuted when there is a window."""
        rows = concatenate(_pop_rows(self._waiting, count))
        self._num_waiting -= count
        if self._window and self._rng is not None:
            rows = take(rows, self._rng.permutation(count))
        self._mixed.append(rows)
        self._num_mixed += count

    def _pop(self, count: int) -> Rows:
        self._num_mixed -= count
        return concatenate(_pop_rows(self._mixed, count))


def _pop_rows(pieces: deque[Rows], count: int) -> list[Rows]:
    """Remove exactly `count` rows from the front, splitting the last piece if need be."""
    taken: list[Rows] = []
    while count:
        piece = pieces.popleft()
        size = num_rows(piece)
        if size > count:
            pieces.appendleft(take(piece, slice(count, None)))
            piece, size = take(piece, slice(count)), count
        taken.append(piece)
        count -= size
    return taken
