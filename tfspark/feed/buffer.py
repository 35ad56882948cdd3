"""A partition's rows between Spark's iterator and the readers. No sockets, no Spark."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from tfspark.errors import DeadlineError

UNFINISHED_BATCHES = 8
"""Maximum batches of the first pull while Spark may still deliver rows of the partition."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of the partition, for one queue."""

    first_row: int
    batch: pa.RecordBatch


def stripes(
    first_row: int, num_rows: int, stripe_rows: int, num_readers: int
) -> Iterator[tuple[int, int, int]]:
    """Divide rows among readers only by their position: stripe ``s`` belongs to reader ``s % n``.

    Args:
        first_row: position of the first row in the whole pass.
        num_rows: number of rows that follow.
        stripe_rows: rows per stripe: one worker's batch.
        num_readers: n.

    Yields:
        (reader, start, length); start is counted from `first_row`.
    """
    start = 0
    while start < num_rows:
        stripe, within = divmod(first_row + start, stripe_rows)
        length = min(stripe_rows - within, num_rows - start)
        yield stripe % num_readers, start, length
        start += length


class ChunkBuffer:
    """A partition's rows between Spark's iterator and the readers. Bounded in bytes; thread-safe.

    Args:
        limit_bytes: `offer` blocks while more bytes than this wait for a pull.
        timeout_s: seconds that `offer` and `wait_served` wait without any pull, here or elsewhere (see `moved`).
        num_readers: number of readers of the stream.
        batch_rows: rows of one reader's batch; a pull returns at least this many if it can.
        stripe_rows: if set, rows are assigned to readers by position (see `stripes`), as soon as the first pull has
            said how many rows the earlier partitions have. None: the first reader that pulls gets them.
    """

    def __init__(
        self,
        limit_bytes: int,
        timeout_s: float,
        num_readers: int,
        batch_rows: int,
        stripe_rows: int | None = None,
    ):
        self._limit = limit_bytes
        self._timeout_s = timeout_s
        self._num_readers = num_readers
        self._batch_rows = batch_rows
        self._stripe_rows = stripe_rows
        self._rows_before: int | None = None
        self._undealt: deque[Piece] = deque()
        num_queues = 1 if stripe_rows is None else num_readers
        self._queues: list[deque[Piece]] = [deque() for _ in range(num_queues)]
        self._bytes = 0
        self._rows = 0
        self._pulls = self._moves = 0
        self._unacknowledged: dict[int, tuple[int, list[Piece]]] = {}
        self._granted: Counter[int] = Counter()
        self._lost: set[int] = set()
        self._finished = False
        self._stopped = False
        self._changed = threading.Condition()

    def offer(self, first_row: int, batch: pa.RecordBatch) -> bool:
        """Add rows, and wait for space. Return False if the buffer was stopped."""
        with self._changed:
            self._wait_while_moving(lambda: self._bytes < self._limit or self._stopped)
            self._undealt.append(Piece(first_row, batch))
            self._bytes += batch.nbytes
            self._deal()
            self._rows += batch.num_rows
            self._changed.notify_all()
            return not self._stopped

    def finish(self) -> None:
        """Record that the partition has no more rows."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop serving: the stream was closed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def moved(self, moves: int) -> None:
        """Record the number of pulls of the whole stream: readers may be busy with other sources or with their rows."""
        with self._changed:
            if moves != self._moves:
                self._moves = moves
                self._changed.notify_all()

    def lose_readers(self, readers: Iterable[int]) -> None:
        """Give unacknowledged rows of lost readers to other readers; only for rows not assigned by position."""
        with self._changed:
            self._lost.update(readers)
            for reader in self._lost.intersection(self._unacknowledged):
                self._take_back(reader)

    @property
    def pulls(self) -> int:
        """Number of pulls so far."""
        return self._pulls

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def pull(
        self, reader: int, acknowledged: int, max_bytes: int, wait_s: float, rows_before: int = 0
    ) -> tuple[str, list[Piece], int]:
        """Return the next chunk for a reader, and acknowledge the one before.

        Args:
            reader: the reader that pulls.
            acknowledged: sequence number of the reader's previous chunk; 0: none.
            max_bytes: approximate size of the chunk.
            wait_s: seconds to wait for rows.
            rows_before: rows of the partitions before this one; the same in every call.

        Returns:
            (status, pieces, sequence number to acknowledge). The status is ``chunk``; ``wait`` if no rows came within
            `wait_s`; ``end`` if the partition is served and acknowledged; or ``stopped``.
        """
        with self._changed:
            self._acknowledge(reader, acknowledged)
            self._rows_before = rows_before
            self._deal()
            self._pulls += 1
            queue = self._queues[0 if self._stripe_rows is None else reader]
            is_again = reader in self._unacknowledged
            self._changed.wait_for(lambda: is_again or bool(queue) or self._over_for(reader), wait_s)
            if reader in self._unacknowledged and not self._stopped:
                # The reply to an earlier pull was lost, perhaps while the reader was paused.
                sequence, pieces = self._unacknowledged[reader]
                return "chunk", pieces, sequence
            if reader in self._lost:
                return "stopped", [], acknowledged
            if queue and not self._stopped:
                return self._grant(reader, queue, max_bytes, acknowledged + 1)
            if self._stopped and not self._served():
                return "stopped", [], acknowledged
            return ("end" if self._over_for(reader) else "wait"), [], acknowledged

    def _grant(
        self, reader: int, queue: deque[Piece], max_bytes: int, sequence: int
    ) -> tuple[str, list[Piece], int]:
        """Return the next chunk; it is kept until it is acknowledged."""
        pieces = self._take(queue, self._grant_rows(reader, queue, max_bytes))
        self._granted[reader] += sum(piece.batch.num_rows for piece in pieces)
        self._unacknowledged[reader] = sequence, pieces
        self._changed.notify_all()
        return "chunk", pieces, sequence

    def acknowledge(self, reader: int, sequence: int) -> None:
        """Record that a chunk has arrived, from a reader that leaves.

        A later chunk whose reply was lost goes to other readers.
        """
        with self._changed:
            self._acknowledge(reader, sequence)
            if reader in self._unacknowledged and self._unacknowledged[reader][0] == sequence + 1:
                self._take_back(reader)

    def _take_back(self, reader: int) -> None:
        """Put the unacknowledged chunk of a reader back to the front."""
        _, pieces = self._unacknowledged.pop(reader)
        self._queues[0 if self._stripe_rows is None else reader].extendleft(reversed(pieces))
        num_rows = sum(piece.batch.num_rows for piece in pieces)
        self._bytes += sum(piece.batch.nbytes for piece in pieces)
        self._rows += num_rows
        self._granted[reader] -= num_rows
        self._changed.notify_all()

    def wait_served(self) -> bool:
        """Wait until every row is acknowledged or the buffer was stopped; return True if all are acknowledged."""
        with self._changed:
            self._wait_while_moving(self._over)
            return self._served()

    def _wait_while_moving(self, reached: Callable[[], bool]) -> None:
        """Wait for a condition while readers make progress; each sign of progress starts the deadline again."""
        while not reached():
            before = self._pulls, self._moves
            if not self._changed.wait_for(self._moved_since(before, reached), self._timeout_s):
                raise DeadlineError(
                    f"no trainer took a row within feed_timeout_s={self._timeout_s:g} s though {self._rows} rows "
                    "were waiting; raise feed_timeout_s if a training step may take that long"
                )

    def _moved_since(self, before: tuple[int, int], reached: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: reached() or (self._pulls, self._moves) != before

    def _over(self) -> bool:
        return self._stopped or self._served()

    def _served(self) -> bool:
        empty = not self._undealt and not any(self._queues) and not self._unacknowledged
        return self._finished and empty

    def _over_for(self, reader: int) -> bool:
        """Return whether a reader gets no more rows.

        With rows assigned by position, that is when its own rows are used up. Otherwise it may still get rows that
        another reader lost.
        """
        if self._stripe_rows is None:
            return self._over()
        own_end = self._finished and not self._queues[reader] and reader not in self._unacknowledged
        return self._stopped or own_end

    def _acknowledge(self, reader: int, sequence: int) -> None:
        if reader in self._unacknowledged and self._unacknowledged[reader][0] == sequence:
            del self._unacknowledged[reader]
            self._changed.notify_all()

    def _deal(self) -> None:
        """Move offered rows into the readers' queues as soon as it is known which reader gets them."""
        if self._stripe_rows is None:
            self._queues[0].extend(self._undealt)
        elif self._rows_before is not None:
            for piece in self._undealt:
                self._bytes -= piece.batch.nbytes
                first = self._rows_before + piece.first_row
                for reader, start, length in stripes(
                    first, piece.batch.num_rows, self._stripe_rows, self._num_readers
                ):
                    part = Piece(piece.first_row + start, piece.batch.slice(start, length))
                    self._queues[reader].append(part)
                    self._bytes += part.batch.nbytes
        else:
            return
        self._undealt.clear()

    def _grant_rows(self, reader: int, queue: deque[Piece], max_bytes: int) -> int:
        """Return how many rows one pull may take.

        Readers should end at about the same time: where one has rows left and another has none, steps are trained on
        fewer rows. So the first pulls take a few batches, because Spark may deliver no more; a later one takes at most
        what was taken before. Once Spark has delivered all of the partition, a pull takes half of what the reader lacks
        of its equal share, but at least a batch (after guided self-scheduling: Polychronopoulos and Kuck, 1987). A row
        that is larger than a chunk is sent alone.
        """
        head = queue[0].batch
        by_bytes = max(1, int(max_bytes * head.num_rows / max(head.nbytes, 1)))
        if self._stripe_rows is not None:
            return by_bytes
        if not self._finished:
            return min(by_bytes, max(UNFINISHED_BATCHES * self._batch_rows, self._granted.total()))
        share = (self._rows + self._granted.total()) // self._num_readers
        return min(by_bytes, max((share - self._granted[reader]) // 2, self._batch_rows))

    def _take(self, queue: deque[Piece], count: int) -> list[Piece]:
        taken: list[Piece] = []
        while queue and count:
            piece = queue.popleft()
            self._bytes -= piece.batch.nbytes
            if piece.batch.num_rows > count:
                rest = Piece(piece.first_row + count, piece.batch.slice(count))
                queue.appendleft(rest)
                self._bytes += rest.batch.nbytes
                piece = Piece(piece.first_row, piece.batch.slice(0, count))
            taken.append(piece)
            count -= piece.batch.num_rows
            self._rows -= piece.batch.num_rows
        return taken
