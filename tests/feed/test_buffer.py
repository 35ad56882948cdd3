"""The buffer of a feed task returns each offered row once, in any order of calls."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tfspark.errors import DeadlineError
from tfspark.feed.buffer import UNFINISHED_BATCHES, ChunkBuffer, Piece, stripes

LIMIT_BYTES = 400
STRIPE_ROWS = 3
VALUES_PER_ROW = 4
PAYLOAD = 4 * VALUES_PER_ROW
"""Bytes of a row without its share of the list offsets."""


def batch_of(first: int, count: int) -> pa.RecordBatch:
    """Return rows whose first value is their number, in lists as Spark makes them."""
    cells = np.repeat(np.arange(first, first + count, dtype=np.float32), VALUES_PER_ROW)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * VALUES_PER_ROW)
    return pa.RecordBatch.from_arrays([pa.ListArray.from_arrays(offsets, pa.array(cells))], names=["x"])


def numbers_of(pieces: list[Piece]) -> list[int]:
    """Return the numbers that the rows contain, and check that the pieces have the same row numbers."""
    held = [int(row[0]) for piece in pieces for row in piece.batch.column(0).to_pylist()]
    said = [piece.first_row + i for piece in pieces for i in range(piece.batch.num_rows)]
    assert held == said
    return held


# --- stripes ---------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 20), max_size=8),
    stripe_rows=st.integers(1, 7),
    num_readers=st.integers(1, 4),
    before=st.integers(0, 25),
)
def test_stripes_deal_each_row_by_its_position_for_pieces_of_any_size(
    sizes: list[int], stripe_rows: int, num_readers: int, before: int
) -> None:
    dealt: list[int] = []
    first_row = before
    for size in sizes:
        for reader, start, length in stripes(first_row, size, stripe_rows, num_readers):
            assert first_row + start == before + len(dealt), "stripes are in order and without a gap"
            dealt += [reader] * length
        first_row += size
    expected = [row // stripe_rows % num_readers for row in range(before, first_row)]
    assert dealt == expected


# --- any interleaving of calls ---------------------------------------------------------------------


class BufferMachine(RuleBasedStateMachine):
    """Offers, pulls and acknowledgements in any order. The timeout is 0: a call that would wait fails instead."""

    striped = False

    @initialize(num_readers=st.integers(1, 3), batch_rows=st.integers(1, 6), before=st.integers(0, 20))
    def begin(self, num_readers: int, batch_rows: int, before: int) -> None:
        self.rows_before = before
        self.readers = range(num_readers)
        stripe = STRIPE_ROWS if self.striped else None
        self.buffer = ChunkBuffer(LIMIT_BYTES, 0.0, num_readers, batch_rows, stripe)
        self.offered = 0
        self.finished = False
        self.sequence = dict.fromkeys(self.readers, 0)
        self.unacknowledged: set[int] = set()
        self.ended: set[int] = set()
        self.got: dict[int, list[int]] = {reader: [] for reader in self.readers}
        self.lost: dict[int, list[int]] = {}

    @property
    def waiting(self) -> int:
        return self.offered - sum(map(len, [*self.got.values(), *self.lost.values()]))

    def share_of(self, reader: int) -> list[int]:
        """Return which of the offered rows a reader must get; this is known only for stripes."""
        stripe = [(self.rows_before + row) // STRIPE_ROWS for row in range(self.offered)]
        return [row for row in range(self.offered) if stripe[row] % len(self.readers) == reader]

    @precondition(lambda self: not self.finished)
    @rule(count=st.integers(1, 30))
    def offer(self, count: int) -> None:
        before = self.waiting
        try:
            assert self.buffer.offer(self.offered, batch_of(self.offered, count))
        except DeadlineError:
            assert before * (PAYLOAD + 8) >= LIMIT_BYTES, "refused though there was space"
        else:
            assert before * PAYLOAD < LIMIT_BYTES, "accepted though the buffer was full"
            self.offered += count

    @rule(data=st.data(), max_bytes=st.integers(1, 300))
    def pull(self, data: st.DataObject, max_bytes: int) -> None:
        self.pull_as(data.draw(st.sampled_from(self.readers)), max_bytes)

    @rule(data=st.data())
    def pull_whose_answer_is_lost(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        status, pieces, _ = self.buffer.pull(reader, self.sequence[reader], 100, 0.0, self.rows_before)
        self.unacknowledged.discard(reader)
        if status == "chunk":
            assert self.lost.get(reader) in (None, numbers_of(pieces)), (
                "another chunk instead of the lost one"
            )
            self.lost[reader] = numbers_of(pieces)
            self.unacknowledged.add(reader)

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.buffer.acknowledge(reader, self.sequence[reader])
        self.unacknowledged.discard(reader)
        self.lost.pop(reader, None)  # The buffer takes the lost chunk back; the next pull returns it.

    @rule()
    def finish(self) -> None:
        self.buffer.finish()
        self.finished = True

    def pull_as(self, reader: int, max_bytes: int = 100) -> str:
        status, pieces, sequence = self.buffer.pull(
            reader, self.sequence[reader], max_bytes, 0.0, self.rows_before
        )
        self.unacknowledged.discard(reader)
        if status == "chunk":
            assert reader not in self.ended, "rows after the end"
            assert sequence != self.sequence[reader]
            rows = numbers_of(pieces)
            assert self.lost.pop(reader, rows) == rows, "another chunk instead of the lost one"
            self.got[reader] += rows
            self.unacknowledged.add(reader)
        else:
            assert not pieces
        if status == "end":
            self.check_end(reader)
            self.ended.add(reader)
        self.sequence[reader] = sequence
        return status

    def check_end(self, reader: int) -> None:
        assert self.finished
        if self.striped:
            assert self.got[reader] == self.share_of(reader)
        else:
            assert self.waiting == 0
            assert not self.unacknowledged, "another reader may still lose its chunk"

    @invariant()
    def no_row_is_read_twice(self) -> None:
        if hasattr(self, "got"):
            rows = [row for rows in self.got.values() for row in rows]
            assert len(rows) == len(set(rows))

    @precondition(lambda self: self.finished)
    @rule()
    def wait_served(self) -> None:
        try:
            assert self.buffer.wait_served()
        except DeadlineError:
            assert self.waiting or self.unacknowledged
        else:
            assert not self.waiting
            assert not self.unacknowledged

    def teardown(self) -> None:
        """Let all readers pull until the end; together they must have every row."""
        if not hasattr(self, "got"):
            return
        self.finish()
        for _ in range(self.waiting + 2 * len(self.readers)):
            for reader in self.readers:
                self.pull_as(reader)
        assert self.ended == set(self.readers)
        assert sorted(row for rows in self.got.values() for row in rows) == list(range(self.offered))
        assert self.buffer.wait_served()
        if self.striped:
            for reader in self.readers:
                assert self.got[reader] == self.share_of(reader)


class StripedBufferMachine(BufferMachine):
    striped = True


@pytest.mark.parametrize("machine", [BufferMachine, StripedBufferMachine])
def test_buffer_returns_each_row_once_and_ends_for_any_order_of_calls(
    machine: type[RuleBasedStateMachine],
) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40))


def test_buffer_that_is_never_empty_stays_within_its_limit() -> None:
    # Nine booleans take two bytes, but each slice of them takes at least one. Rows that are pulled in slices must not
    # count as more bytes than they did when they were offered.
    rows = pa.RecordBatch.from_pydict({"x": pa.array([True] * 9)})
    buffer = ChunkBuffer(100, 0.0, num_readers=1, batch_rows=1)
    offered, pulled, sequence = 0, 0, 0
    while offered < 9 * 1000:
        try:
            buffer.offer(offered, rows)
            offered += 9
            assert (offered - pulled) / 9 * 2 < 100 + 10
        except DeadlineError:
            _, pieces, sequence = buffer.pull(0, sequence, 1, 0.0)
            pulled += sum(piece.batch.num_rows for piece in pieces)


@given(
    num_readers=st.integers(1, 4),
    batch_rows=st.integers(1, 32),
    share=st.integers(5 * UNFINISHED_BATCHES, 100),
    pulls_before=st.integers(0, 3),
)
def test_readers_of_a_buffer_that_take_turns_get_equal_shares_although_some_pull_early(
    num_readers: int, batch_rows: int, share: int, pulls_before: int
) -> None:
    num_rows = share * batch_rows * num_readers
    buffer = ChunkBuffer(1 << 30, 1.0, num_readers, batch_rows)
    buffer.offer(0, batch_of(0, num_rows))
    got, sequences = [0] * num_readers, [0] * num_readers

    def pull(reader: int) -> str:
        status, pieces, sequences[reader] = buffer.pull(reader, sequences[reader], 1 << 20, 0.0)
        got[reader] += sum(piece.batch.num_rows for piece in pieces)
        return status

    for turn in range(pulls_before):  # The buffer does not know yet that no more rows will follow.
        pull(turn % num_readers)
    buffer.finish()
    while "chunk" in [pull(reader) for reader in range(num_readers)]:
        pass
    assert sum(got) == num_rows
    assert max(got) - min(got) <= 2 * batch_rows


# --- with threads ----------------------------------------------------------------------------------


def run_all(*functions: Callable[[], object]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a thread waits forever"


def pull_to_the_end(buffer: ChunkBuffer, reader: int, rows: list[int]) -> Callable[[], None]:
    def pull() -> None:
        sequence, status = 0, ""
        while status != "end":
            status, pieces, sequence = buffer.pull(reader, sequence, 200, 1.0)
            rows.extend(numbers_of(pieces))

    return pull


@pytest.mark.parametrize("stripe_rows", [None, 5])
@pytest.mark.parametrize("num_readers", [1, 3])
def test_buffer_with_a_thread_for_each_reader_serves_all_rows_and_ends(
    stripe_rows: int | None, num_readers: int
) -> None:
    buffer = ChunkBuffer(LIMIT_BYTES, 20.0, num_readers, 5, stripe_rows)
    got: list[list[int]] = [[] for _ in range(num_readers)]

    def fill() -> None:
        for first in range(0, 500, 10):
            buffer.offer(first, batch_of(first, 10))
        buffer.finish()
        buffer.wait_served()

    run_all(fill, *(pull_to_the_end(buffer, reader, rows) for reader, rows in enumerate(got)))
    assert sorted(row for rows in got for row in rows) == list(range(500))


def test_stopped_buffer_ends_all_waiting_calls() -> None:
    buffer = ChunkBuffer(LIMIT_BYTES, 20.0, num_readers=2, batch_rows=5)
    buffer.offer(0, batch_of(0, 60))
    waiting = threading.Barrier(3)
    answers: list[bool] = []

    def offer() -> None:
        waiting.wait()
        answers.append(buffer.offer(60, batch_of(60, 10)))

    def wait() -> None:
        waiting.wait()
        answers.append(buffer.wait_served())

    def stop() -> None:
        waiting.wait()
        buffer.stop()

    run_all(offer, wait, stop)
    assert answers == [False, False]
    assert buffer.stopped
    status, pieces, _ = buffer.pull(0, 0, 100, 1.0)
    assert (status, pieces) == ("stopped", []), "not the end: rows are left"


def test_error_of_a_buffer_that_nobody_pulls_from_names_the_setting_to_change() -> None:
    buffer = ChunkBuffer(LIMIT_BYTES, 0.0, num_readers=1, batch_rows=5)
    buffer.offer(0, batch_of(0, 60))
    with pytest.raises(
        DeadlineError, match=r"no trainer took a row within feed_timeout_s=0 s though 60 rows"
    ):
        buffer.offer(60, batch_of(60, 1))
