"""The feed directory with simulated feed tasks and readers that die, stop calling, or repeat a call."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.clock import Clock

from tfspark.feed.directory import FeedDirectory
from tfspark.feed.ranges import Ranges
from tfspark.protocol.timing import SOURCE_SILENCE_S

STREAM = "train"
BATCH = 2
"""Number of rows in a batch, and in a stripe of an ordered stream."""


@dataclass(eq=False)
class Attempt:
    """One run of a feed task: new, waiting, serving, failed or succeeded."""

    partition: int
    state: str = "new"
    source: str = ""
    waiting: list[int] = field(default_factory=list)
    heard: float = 0.0
    given_up_by_a_reader: bool = False
    chunk_lost: bool = False

    @property
    def alive(self) -> bool:
        return self.state in ("new", "waiting", "serving")


@dataclass(eq=False)
class Lease:
    attempt: Attempt
    rows_before: int
    delivered: Ranges = field(default_factory=Ranges)


@dataclass
class Reader:
    rank: int
    leases: list[Lease] = field(default_factory=list)
    rows: list[tuple[int, int]] = field(default_factory=list)
    last_partition: int = -1
    at_end: bool = False
    steps: int = 0


class DirectoryMachine(RuleBasedStateMachine):
    """Spark starts, kills and repeats feed tasks while readers lease, pull and release, in any order."""

    ordered = False

    @initialize(sizes=st.lists(st.integers(0, 7), min_size=1, max_size=4), num_readers=st.integers(1, 3))
    def begin(self, sizes: list[int], num_readers: int) -> None:
        self.sizes = sizes
        self.clock = Clock()
        self.directory = FeedDirectory(self.clock)
        self.directory.open_stream(STREAM, {}, num_readers, self.ordered)
        self.index = self.directory.open_pass(STREAM)
        self.attempts = [[Attempt(partition)] for partition in range(len(sizes))]
        self.readers = [Reader(rank) for rank in range(num_readers)]
        self.finished = False

    # --- Spark and its feed tasks ------------------------------------------------------------------

    def draw_attempt(self, data: st.DataObject, *states: str) -> Attempt | None:
        found = [a for attempts in self.attempts for a in attempts if a.state in states]
        return data.draw(st.sampled_from(found)) if found else None

    def succeeded(self, partition: int) -> bool:
        return any(attempt.state == "succeeded" for attempt in self.attempts[partition])

    @rule(data=st.data())
    def start_another_attempt(self, data: st.DataObject) -> None:
        """Repeat a failed task, or run a slow one a second time, as Spark does."""
        attempts = data.draw(st.sampled_from(self.attempts))
        if not self.succeeded(attempts[0].partition) and len(attempts) < 4:
            attempts.append(Attempt(attempts[0].partition))

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        attempt = self.draw_attempt(data, "new", "waiting", "serving")
        if attempt is not None:
            attempt.state = "failed"

    @rule(data=st.data())
    def announce_one(self, data: st.DataObject) -> None:
        attempt = self.draw_attempt(data, "new", "waiting")
        if attempt is not None:
            self.announce(attempt)

    @rule(data=st.data())
    def beat_one(self, data: st.DataObject) -> None:
        attempt = self.draw_attempt(data, "serving")
        if attempt is not None:
            self.beat(attempt)

    @rule(data=st.data())
    def finish_one(self, data: st.DataObject) -> None:
        attempt = self.draw_attempt(data, "serving")
        if attempt is not None:
            self.finish(attempt)

    @rule(seconds=st.sampled_from([0.5, SOURCE_SILENCE_S + 0.1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    def announce(self, attempt: Attempt) -> None:
        size = self.sizes[attempt.partition]
        if size == 0:
            self.done(attempt)
            return
        reply = self.directory.source_up(
            STREAM, self.index, attempt.partition, "grpc://h:1", "h", attempt.partition
        )
        if reply["action"] == "wait":
            attempt.state = "waiting"
        elif reply["action"] == "stop":
            assert reply["rows"] == size
            self.done(attempt)
        else:
            self.check_no_other_serves(attempt)
            attempt.state, attempt.source, attempt.heard = "serving", reply["source"], self.clock.now
            skipped = Ranges(reply["skip"])
            attempt.waiting = [row for a, b in skipped.missing(0, size) for row in range(a, b)]
            self.directory.source_alive(attempt.source, rows=size)

    def check_no_other_serves(self, attempt: Attempt) -> None:
        for other in self.attempts[attempt.partition]:
            silent = self.clock.now - other.heard > SOURCE_SILENCE_S
            assert other.state != "serving" or other.given_up_by_a_reader or silent
            assert not any(lease.attempt is other for reader in self.readers for lease in reader.leases)

    def beat(self, attempt: Attempt) -> None:
        attempt.heard = self.clock.now
        if self.directory.source_alive(attempt.source)["stop"]:
            served = not attempt.waiting and not attempt.chunk_lost
            if served:
                self.done(attempt)
            else:
                self.give_up(attempt)

    def give_up(self, attempt: Attempt) -> None:
        reply = self.directory.partition_done(
            STREAM, self.index, attempt.partition, self.sizes[attempt.partition], stopped=attempt.source
        )
        assert reply["retry"], "rows are left: another attempt must serve them"
        attempt.state = "failed"

    def finish(self, attempt: Attempt) -> None:
        if not attempt.waiting and not attempt.chunk_lost:
            self.done(attempt)

    def done(self, attempt: Attempt) -> None:
        size = self.sizes[attempt.partition]
        assert not self.directory.partition_done(STREAM, self.index, attempt.partition, size)["retry"]
        for other in self.attempts[attempt.partition]:
            if other.alive:
                other.state = "failed"  # Spark kills the copies of a task that has succeeded.
        attempt.state = "succeeded"

    # --- readers -----------------------------------------------------------------------------------

    @rule(data=st.data())
    def lease_one(self, data: st.DataObject) -> None:
        self.lease(data.draw(st.sampled_from(self.readers)))

    @rule(data=st.data())
    def lease_one_and_lose_the_answer(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        if not reader.at_end and (not self.ordered or not reader.leases):
            self.ask_for_lease(reader)

    @rule(data=st.data(), count=st.integers(1, 4), arrives=st.booleans())
    def pull_one(self, data: st.DataObject, count: int, arrives: bool) -> None:
        lease = self.draw_lease(data)
        if lease is not None:
            self.pull(*lease, count, arrives)

    @rule(data=st.data())
    def release_one(self, data: st.DataObject) -> None:
        """Release a lease, as a reader does before it waits for its training thread."""
        lease = self.draw_lease(data)
        if lease is not None:
            self.release(*lease, gone=False)

    @rule(data=st.data())
    def announce_steps(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.agree(reader, len(reader.rows) // BATCH, ended=False)

    def draw_lease(self, data: st.DataObject) -> tuple[Reader, Lease] | None:
        held = [(reader, lease) for reader in self.readers for lease in reader.leases]
        return data.draw(st.sampled_from(held)) if held else None

    def ask_for_lease(self, reader: Reader) -> dict[str, Any]:
        held = [lease.attempt.source for lease in reader.leases]
        return self.directory.lease(STREAM, self.index, reader.rank, "h", held, reader.last_partition)

    def lease(self, reader: Reader) -> None:
        if reader.at_end or (self.ordered and reader.leases):
            return
        reply = self.ask_for_lease(reader)
        if reply["status"] == "end":
            assert self.finished
            assert self.num_missing == 0, "the directory reported the end while rows were missing"
            reader.at_end = True
        elif reply["status"] == "source":
            attempt = next(a for every in self.attempts for a in every if a.source == reply["source"])
            assert attempt not in [lease.attempt for lease in reader.leases], "leased twice"
            if self.ordered:
                assert reply["rows_before"] == sum(self.sizes[: attempt.partition])
            reader.leases.append(Lease(attempt, reply["rows_before"]))

    def pull(self, reader: Reader, lease: Lease, count: int = 3, arrives: bool = True) -> None:
        attempt = lease.attempt
        if attempt.state != "serving":
            # The task is over: its server is closed, whether it failed or not.
            self.release(reader, lease, gone=True)
            return
        mine = [row for row in attempt.waiting if self.is_for(reader, lease, row)][:count]
        attempt.waiting = [row for row in attempt.waiting if row not in mine]
        if not mine and not attempt.chunk_lost:
            reader.last_partition = attempt.partition if self.ordered else reader.last_partition
            self.release(reader, lease, gone=False)
        elif not arrives:
            attempt.chunk_lost = attempt.chunk_lost or bool(mine)
            self.release(reader, lease, gone=True)
        else:
            for row in mine:
                lease.delivered.add(row, row + 1)
                reader.rows.append((attempt.partition, row))

    def is_for(self, reader: Reader, lease: Lease, row: int) -> bool:
        stripe = (lease.rows_before + row) // BATCH
        return not self.ordered or stripe % len(self.readers) == reader.rank

    def release(self, reader: Reader, lease: Lease, gone: bool) -> None:
        reader.leases.remove(lease)
        lease.attempt.given_up_by_a_reader |= gone
        self.directory.release(lease.attempt.source, reader.rank, lease.delivered.to_json(), gone)

    def agree(self, reader: Reader, steps: int, ended: bool) -> dict[str, Any]:
        return self.directory.agree(STREAM, self.index, reader.rank, steps, ended, len(reader.rows))

    # --- invariants --------------------------------------------------------------------------------

    @property
    def num_missing(self) -> int:
        return sum(self.sizes) - sum(len(reader.rows) for reader in self.readers)

    @invariant()
    def no_row_is_read_twice(self) -> None:
        if hasattr(self, "readers"):
            rows = [row for reader in self.readers for row in reader.rows]
            assert len(rows) == len(set(rows))

    def teardown(self) -> None:
        """Stop all failures: the pass must end with every row read."""
        if not hasattr(self, "readers"):
            return
        for _ in range(60):
            self.run_one_second()
            if all(reader.at_end for reader in self.readers):
                break
        assert all(reader.at_end for reader in self.readers), "a reader waits forever"
        assert self.num_missing == 0
        self.check_agreement()

    def run_one_second(self) -> None:
        """Advance the clock by a second, and let every task and reader make its next call."""
        self.clock.now += 1.0
        for attempts in self.attempts:
            if not self.succeeded(attempts[0].partition) and not any(a.alive for a in attempts):
                attempts.append(Attempt(attempts[0].partition))
            for attempt in list(attempts):
                self.run(attempt)
        for reader in self.readers:
            for lease in list(reader.leases):
                self.pull(reader, lease)
            self.lease(reader)
        if not self.finished and all(map(self.succeeded, range(len(self.sizes)))):
            self.finished = True
            assert self.directory.finish_pass(STREAM, self.index) == sum(self.sizes)

    def run(self, attempt: Attempt) -> None:
        if attempt.state in ("new", "waiting"):
            self.announce(attempt)
        if attempt.state == "serving":
            self.beat(attempt)
        if attempt.state == "serving":
            self.finish(attempt)

    def check_agreement(self) -> None:
        """Let readers pad until all have equally many steps; all must then learn that this number is final."""
        wanted = max(-(-len(reader.rows) // BATCH) for reader in self.readers)
        for reader in self.readers:
            reader.steps = -(-len(reader.rows) // BATCH)
        told: set[int] = set()
        for _ in range(2 * wanted + 2):
            for reader in self.readers:
                reply = self.agree(reader, reader.steps, ended=True)
                if reader.steps < reply["steps"]:
                    reader.steps += 1
                elif reply["final"]:
                    told.add(reader.rank)
        assert told == {reader.rank for reader in self.readers}, "a reader waits forever"
        assert {reader.steps for reader in self.readers} == {wanted}
        received = self.directory.rows_received(STREAM, self.index)
        assert received == {reader.rank: len(reader.rows) for reader in self.readers}


class OrderedDirectoryMachine(DirectoryMachine):
    ordered = True


@pytest.mark.parametrize("machine", [DirectoryMachine, OrderedDirectoryMachine])
def test_each_row_is_read_once_and_all_readers_end_for_any_failures_of_tasks_and_readers(
    machine: type[RuleBasedStateMachine],
) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=50))


# --- one decision at a time ------------------------------------------------------------------------


def opened(num_readers: int = 2, clock: Clock | None = None) -> FeedDirectory:
    directory = FeedDirectory(clock or Clock())
    directory.open_stream(STREAM, {"needs_sample": True}, num_readers)
    directory.open_pass(STREAM)
    return directory


def source_up(directory: FeedDirectory, partition: int, host: str = "h") -> dict[str, Any]:
    return directory.source_up(STREAM, 0, partition, f"grpc://{host}:{partition}", host, partition)


def lease(directory: FeedDirectory, rank: int, host: str = "h", *held: str) -> dict[str, Any]:
    return directory.lease(STREAM, 0, rank, host, list(held), -1)


def test_silent_source_without_readers_is_replaced() -> None:
    clock = Clock()
    directory = opened(clock=clock)
    first = source_up(directory, 0)
    assert source_up(directory, 0) == {"action": "wait"}
    clock.now += SOURCE_SILENCE_S - 0.1
    directory.source_alive(first["source"])
    clock.now += SOURCE_SILENCE_S - 0.1
    assert source_up(directory, 0) == {"action": "wait"}
    clock.now += 0.2
    assert source_up(directory, 0)["action"] == "serve"
    assert directory.source_alive(first["source"])["stop"], "the first attempt calls again, but too late"


@pytest.mark.parametrize(("repeatable", "delivered"), [(False, True), (False, False), (True, True)])
def test_second_attempt_ends_the_pass_if_the_order_of_delivered_rows_may_have_changed(
    repeatable: bool, delivered: bool
) -> None:
    clock = Clock()
    directory = opened(clock=clock)
    directory.note_layout("train", 0, {"repeatable": repeatable})
    first = source_up(directory, 0)["source"]
    lease(directory, 0)
    directory.release(first, 0, [[0, 5]] if delivered else [], gone=True)
    second = source_up(directory, 0)
    moved = delivered and not repeatable
    assert (second["action"], second.get("moved", False)) == (("stop", True) if moved else ("serve", False))
    assert source_up(directory, 1)["action"] == ("stop" if moved else "serve")


def test_partition_is_unfinished_until_its_task_reports_it_or_the_stream_is_closed() -> None:
    directory = opened()
    for partition in range(3):
        source_up(directory, partition)
    directory.partition_done(STREAM, 0, 1, 5)
    assert directory.unfinished(STREAM, 0) == [0, 2]
    directory.close_stream(STREAM)
    assert directory.unfinished(STREAM, 0) == []


def test_directory_does_not_grow_with_the_number_of_passes_and_remembers_the_rows_of_readers() -> None:
    directory = opened()

    def bytes_after(num_passes: int) -> int:
        for _ in range(num_passes):
            index = directory.open_pass("train")
            for partition in range(20):
                source = directory.source_up(
                    "train", index, partition, f"grpc://h:{partition}", "h", partition
                )
                directory.lease("train", index, 0, "h", [], -1)
                directory.release(source["source"], 0, [[i, i + 5] for i in range(0, 100, 10)], False)
                directory.partition_done("train", index, partition, 100)
            directory.finish_pass("train", index)
            for rank, rows in enumerate((2000, 0)):
                directory.agree("train", index, rank, 10, True, rows)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = bytes_after(10)
        grown = bytes_after(100) - before
    finally:
        tracemalloc.stop()
    assert grown < 100 * 1000, "less than 1,000 bytes are kept for a pass"
    assert directory.most_rows("train") == 110 * 2000


def test_dropped_stream_keeps_no_memory_and_its_late_calls_end_without_an_error() -> None:
    directory = opened()
    directory.open_stream("evaluate-1", {"needs_sample": True}, 1)

    def evaluate(number: int) -> str:
        name = f"evaluate-{number}"
        directory.open_stream(name, {"needs_sample": True}, 1)
        directory.open_pass(name)
        up = directory.source_up(name, 0, 0, "grpc://h:1", "h", 0)["source"]
        directory.offer_sample(name, "row" * 1000)
        directory.lease(name, 0, 0, "h", [], -1)
        directory.release(up, 0, [[0, 5]], False)
        directory.drop_stream(name)
        return str(up)

    evaluate(1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        source = [evaluate(number) for number in range(2, 1002)][-1]
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000, "less than 100 bytes are kept for each of 1,000 evaluations"
    name = "evaluate-1001"
    assert name not in directory.stream_names
    assert directory.source_alive(source)["stop"]
    assert directory.source_up(name, 0, 1, "grpc://h:1", "h", 1) == {"action": "stop", "rows": 0}
    assert directory.partition_done(name, 0, 0, 5) == {"retry": False}
    assert directory.partition_done(name, 0, 0, 5, stopped=source) == {"retry": False}
    assert directory.lease(name, 0, 0, "h", [], -1)["status"] == "closed"
    assert directory.agree(name, 0, 0, 3, True, 30)["final"]
    directory.release(source, 0, [[0, 5]], False)
    directory.offer_sample(name, "row")
    assert directory.describe(name)["status"] == "wait"


def test_unknown_source_must_stop() -> None:
    assert opened().source_alive("of another driver")["stop"]


def test_lease_prefers_an_unread_source_then_one_on_the_same_host_then_the_least_read() -> None:
    directory = opened(num_readers=4)
    near = [source_up(directory, partition, "near")["source"] for partition in range(2)]
    far = source_up(directory, 2, "far")["source"]
    got = [lease(directory, rank, "near")["source"] for rank in range(3)]
    assert got == [*near, far], "unread sources first, and among them those on the same host"
    assert lease(directory, 3, "far")["source"] == far
    assert lease(directory, 3, "far", far)["source"] in near
    assert lease(directory, 3, "far", far, *near)["status"] == "wait"


def test_lease_of_a_closed_stream_returns_the_number_of_passes() -> None:
    directory = opened()
    assert directory.lease(STREAM, 1, 0, "h", [], -1)["status"] == "wait", "another pass may follow"
    directory.close_stream(STREAM)
    assert directory.lease(STREAM, 1, 0, "h", [], -1) == {"status": "closed", "passes": 1}
    assert lease(directory, 0) == {"status": "closed", "passes": 1}


@pytest.mark.parametrize("end", ["close_stream", "abandon_pass"])
def test_source_of_a_closed_stream_or_an_abandoned_pass_stops_and_is_not_repeated(end: str) -> None:
    directory = opened()
    source = source_up(directory, 0)["source"]
    if end == "close_stream":
        directory.close_stream(STREAM)
    else:
        directory.abandon_pass(STREAM, 0)
    assert directory.source_alive(source)["stop"]
    assert not directory.partition_done(STREAM, 0, 0, 5, stopped=source)["retry"]
    assert source_up(directory, 1) == {"action": "stop", "rows": 0}


def test_description_of_a_stream_waits_for_its_first_row_or_its_close() -> None:
    directory = opened()
    assert directory.describe("another") == {"status": "wait"}
    assert directory.describe(STREAM)["status"] == "wait"
    assert source_up(directory, 0)["want_sample"]
    directory.offer_sample(STREAM, "first")
    directory.offer_sample(STREAM, "second")
    assert directory.describe(STREAM)["sample"] == "first"
    assert not source_up(directory, 1)["want_sample"]
    empty = opened()
    empty.close_stream(STREAM)
    assert empty.describe(STREAM)["sample"] is None


def test_repeated_announcement_that_arrives_after_a_later_one_changes_nothing() -> None:
    directory = opened()
    directory.agree(STREAM, 0, rank=1, steps=3, ended=True, rows=9)
    assert directory.agree(STREAM, 0, rank=1, steps=0, ended=False, rows=0)["steps"] == 3
    assert directory.agree(STREAM, 0, rank=1, steps=2, ended=True, rows=6)["steps"] == 3
    assert directory.rows_received(STREAM, 0) == {1: 9}


@given(
    own=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_readers_agree_on_the_largest_number_of_steps_for_any_order_of_calls(
    own: list[int], order: Any
) -> None:
    directory = opened(num_readers=len(own))
    formed = [0] * len(own)
    reading = set(range(len(own)))
    for _ in range(3 * max(own) + 3):
        for rank in order.sample(sorted(reading), len(reading)):
            ended = formed[rank] >= own[rank]
            reply = directory.agree(STREAM, 0, rank, formed[rank], ended, rows=0)
            assert reply["steps"] <= max(own), "no reader pads beyond the largest number of steps"
            if not ended or formed[rank] < reply["steps"]:
                formed[rank] += 1
            elif reply["final"]:
                reading.remove(rank)
    assert not reading
    assert set(formed) == {max(own)}


def test_readers_of_a_pass_that_is_broken_off_end_with_the_same_number_of_steps() -> None:
    directory = opened(num_readers=2)
    directory.offer_sample(STREAM, "row")
    source = source_up(directory, 0)["source"]
    lease(directory, 0)
    assert directory.agree(STREAM, 0, 1, 5, True, 50) == {"steps": 5, "final": False, "closed": False}
    directory.break_off("KeyboardInterrupt")
    assert directory.source_alive(source)["stop"]
    assert lease(directory, 0) == {"status": "closed", "passes": 1, "broken_off": "KeyboardInterrupt"}
    assert not directory.agree(STREAM, 0, 0, 4, False, 40)["closed"], (
        "it must still reach the number of steps of the other reader"
    )
    ends = [directory.agree(STREAM, 0, rank, 5, True, 50) for rank in (0, 1)]
    why = {"broken_off": "KeyboardInterrupt"}
    assert ends == [{"steps": 5, "final": True, "closed": False, **why}] * 2
    assert directory.lease(STREAM, 1, 0, "h", [], -1)["broken_off"]


def test_pass_that_all_readers_have_ended_is_not_broken_off_for_a_late_call() -> None:
    directory = opened(num_readers=2)
    for rank in (0, 1):
        directory.agree(STREAM, 0, rank, 5, True, 50)
    directory.break_off("KeyboardInterrupt")
    assert directory.agree(STREAM, 0, 1, 5, True, 50) == {"steps": 5, "final": True, "closed": True}


def test_description_of_a_stream_broken_off_before_its_first_row_has_the_reason() -> None:
    directory = opened()
    directory.break_off("KeyboardInterrupt")
    directory.offer_sample(STREAM, "too late")
    assert directory.describe(STREAM) == {"status": "broken_off", "why": "KeyboardInterrupt"}
