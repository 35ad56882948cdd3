"""Make batches of one size from pieces of any size. Pure NumPy; used by the reader in the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = dict[str, npt.NDArray[Any]]


def num_rows(rows: Rows) -> int:
    """Return the length of the first axis."""
    return len(next(iter(rows.values())))


def row_shape(values: npt.NDArray[np.generic]) -> tuple[int | None, ...]:
    """Return the shape of one row; the first size is None if rows have different lengths."""
    if values.dtype == object and values.ndim == 1 and len(values) and isinstance(values[0], np.ndarray):
        return (None, *values[0].shape[1:])
    return values.shape[1:]


def take(rows: Rows, index: slice | Sequence[int] | npt.NDArray[np.integer]) -> Rows:
    """Select rows by a slice (views) or an index array (copies)."""
    return {name: values[index] for name, values in rows.items()}


def concatenate(pieces: list[Rows]) -> Rows:
    """Join pieces row-wise; a single piece is returned as it is."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def pad(rows: Rows, batch_size: int, filler: Rows) -> Rows:
    """Fill up to `batch_size` with copies of the rows of `filler`, starting over when they run out."""
    missing = batch_size - num_rows(rows)
    if missing == 0:
        return rows
    index = np.arange(missing) % num_rows(filler)
    return concatenate([rows, take(filler, index)])


@dataclass(frozen=True)
class SparseRow:
    """One row of numbers that are mostly 0.

    Attributes:
        shape: shape of the row.
        places: positions of the non-zero numbers in the flattened row.
        numbers: the non-zero numbers.
    """

    shape: tuple[int, ...]
    places: npt.NDArray[np.intp]
    numbers: npt.NDArray[np.generic]


def to_sparse(values: npt.NDArray[np.generic]) -> npt.NDArray[np.object_]:
    """Return numeric rows ``(n, ...)`` as ``(n,)`` objects of type `SparseRow`, which need less memory."""
    rows = np.empty(len(values), object)
    for number, row in enumerate(values.reshape(len(values), -1)):
        places = np.flatnonzero(row)
        rows[number] = SparseRow(values.shape[1:], places, row[places])
    return rows


def with_dense_rows(rows: Rows) -> Rows:
    """Undo `to_sparse` in the columns to which it was applied."""
    return {name: _to_dense(values) if _is_sparse(values) else values for name, values in rows.items()}


def _is_sparse(values: npt.NDArray[np.generic]) -> bool:
    return values.dtype == object and len(values) > 0 and isinstance(values[0], SparseRow)


def _to_dense(rows: npt.NDArray[np.object_]) -> npt.NDArray[np.generic]:
    dense = np.zeros((len(rows), *rows[0].shape), rows[0].numbers.dtype)
    flat = dense.reshape(len(rows), -1)
    for number, row in enumerate(rows):
        flat[number, row.places] = row.numbers
    return dense


class Batcher:
    """Collect pieces and return batches of `batch_size` rows, optionally shuffled within a window.

    Without a window, rows leave in the order in which they came. With a window, a pool of `window` rows is kept full:
    each batch is drawn from it at random and replaced by the next rows, as by tf.data's ``shuffle``. All workers hold
    the same number of rows when the input ends, so no worker has work left that the others do not have. Every row is
    returned exactly once.
    """

    def __init__(self, batch_size: int, window: int = 0, rng: np.random.Generator | None = None):
        self._batch_size = batch_size
        # Drawing a batch from a pool of one batch would not mix anything.
        wanted = window if window > batch_size else 2 * batch_size
        self._window = wanted if rng is not None and window else 0
        self._rng = rng
        self._waiting: deque[Rows] = deque()
        self._num_waiting = 0
        self._pool: Rows = {}
        self._num_pooled = 0

    @property
    def num_rows(self) -> int:
        """Rows held."""
        return self._num_waiting + self._num_pooled

    def add(self, rows: Rows) -> None:
        """Add a piece of any size."""
        self._waiting.append(rows)
        self._num_waiting += num_rows(rows)

    def full_batches(self) -> Iterator[Rows]:
        """Yield the complete batches."""
        if self._window:
            self._fill_pool()
        while self._num_pooled == self._window and self._num_waiting >= self._batch_size:
            rows = self._next(self._batch_size)
            yield self._swapped(rows) if self._window else rows

    def rest(self) -> Iterator[Rows]:
        """Yield everything that is left; the last batch may be short."""
        rows = self._drained()
        for start in range(0, num_rows(rows) if rows else 0, self._batch_size):
            yield take(rows, slice(start, start + self._batch_size))

    def _next(self, count: int) -> Rows:
        self._num_waiting -= count
        return concatenate(_pop_rows(self._waiting, count))

    def _fill_pool(self) -> None:
        count = min(self._window - self._num_pooled, self._num_waiting)
        if not count:
            return
        rows = self._next(count)
        if not self._pool:
            self._pool = {
                name: np.empty((self._window, *values.shape[1:]), values.dtype)
                for name, values in rows.items()
            }
        for name, values in rows.items():
            self._pool[name][self._num_pooled : self._num_pooled + count] = values
        self._num_pooled += count

    def _swapped(self, rows: Rows) -> Rows:
        """Draw a batch from the pool and put `rows` in its place."""
        slots = self._slots()[: num_rows(rows)]
        drawn = take(self._pool, slots)
        for name, values in rows.items():
            self._pool[name][slots] = values
        return drawn

    def _slots(self) -> npt.NDArray[np.int64]:
        """Draw the places in the pool of a batch."""
        assert self._rng is not None
        return self._rng.choice(self._window, self._batch_size, replace=False, shuffle=False)

    def _drained(self) -> Rows:
        """Remove and return all rows, mixed if there is a window."""
        pieces = [take(self._pool, slice(self._num_pooled))] if self._num_pooled else []
        if self._num_waiting:
            pieces.append(self._next(self._num_waiting))
        self._num_pooled = 0
        if not pieces:
            return {}
        rows = concatenate(pieces)
        if not self._window or self._rng is None:
            return rows
        return take(rows, self._rng.permutation(num_rows(rows)))


class LaneBatcher(Batcher):
    """Return shuffled batches of an ordered stream; which rows are in a global batch does not depend on the readers.

    The rows of a stream are dealt by position: row ``p`` comes in *lane* ``p % global_rows``, and each reader has
    `batch_size` consecutive lanes. Each lane is shuffled on its own: every step draws one row from the lane's window
    and puts the lane's next row there, by random numbers that are drawn for all lanes. So a global batch has one row of
    each lane, and it is the same row whether one reader has all lanes or many readers have a few.

    Args:
        batch_size: rows of this reader's batch.
        num_readers: readers that share the lanes.
        rank: number of this reader.
        window: rows in the windows of all lanes; a lane has at least two.
        seed: of the random numbers; all readers have the same.
    """

    def __init__(self, batch_size: int, num_readers: int, rank: int, window: int, seed: Sequence[int]):
        self._global_rows = batch_size * num_readers
        self._lanes = slice(rank * batch_size, (rank + 1) * batch_size)
        self._depth = max(2, window // self._global_rows)
        self._last_rng = np.random.default_rng([*seed, 1])
        super().__init__(batch_size, self._depth * batch_size, np.random.default_rng([*seed, 0]))

    def _slots(self) -> npt.NDArray[np.int64]:
        assert self._rng is not None
        drawn = self._rng.integers(self._depth, size=self._global_rows)[self._lanes]
        return drawn * self._batch_size + np.arange(self._batch_size)

    def rest(self) -> Iterator[Rows]:
        """Yield everything that is left, a row of each lane that has one at a time."""
        # Lanes with one more row than others are one step ahead in the end, too.
        ahead = [self._swapped(self._next(self._num_waiting))] if self._num_waiting else []
        pool = take(self._pool, slice(self._num_pooled))
        num_pooled, self._num_pooled = self._num_pooled, 0
        if not num_pooled:
            return
        kept = concatenate([pool, *ahead])
        num_ahead = num_rows(kept) - num_pooled
        order = self._last_order(num_pooled)
        none = np.full((1, self._batch_size), -1)
        shifted = np.concatenate([num_pooled + np.arange(self._batch_size)[None], order])
        has_more = np.arange(self._batch_size) < num_ahead
        for step in np.where(has_more, shifted, np.concatenate([order, none])):
            rows = step[step >= 0]
            if len(rows):
                yield take(kept, rows)

    def _last_order(self, num_pooled: int) -> npt.NDArray[np.int64]:
        """Return the places in the pool in the order in which each lane's rows leave: (steps, lanes), -1 if none."""
        places = np.arange(-(-num_pooled // self._batch_size) * self._batch_size).reshape(
            -1, self._batch_size
        )
        # One row after the other is drawn, so that fewer rows get the same numbers as the first of more rows.
        keys = self._last_rng.random((len(places), self._global_rows))[:, self._lanes]
        keys[places >= num_pooled] = np.inf
        order = np.take_along_axis(places, np.argsort(keys, axis=0, kind="stable"), axis=0)
        return np.where(order < num_pooled, order, -1)


def _pop_rows(pieces: deque[Rows], count: int) -> list[Rows]:
    """Remove exactly `count` rows from the front; split the last piece if necessary."""
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
