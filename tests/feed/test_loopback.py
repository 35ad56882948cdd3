"""The feed over real Flight, without Spark and TensorFlow: feed tasks and trainers are threads."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import loopback
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from loopback import (
    HOST,
    PATIENCE_S,
    SPEC,
    Dying,
    Loopback,
    Taken,
    attempt_until_served,
    partitions_of,
    rows_from,
    run_pass,
)
from support.processes import poll_until

from tfspark.errors import DataError, TfsparkError
from tfspark.feed import reader, source
from tfspark.feed.arrays import to_numpy
from tfspark.feed.batching import Rows
from tfspark.feed.buffer import ChunkBuffer
from tfspark.feed.columns import Column, Columns
from tfspark.feed.reader import WEIGHT
from tfspark.feed.shared import SharedChunk, open_shared
from tfspark.feed.source import SourceServer
from tfspark.feed.stream import StreamSpec
from tfspark.protocol.wire import ActionClient, Secret, new_secret


def check_pass(taken: list[Taken], rows: int, spec: StreamSpec) -> None:
    """Check that each row was read once; in synchronous mode, also that all trainers got equally many full batches."""
    assert sorted(i for one in taken for i in one.ids()) == list(range(rows))
    for one in taken:
        for batch in one.batches:
            check_batch(batch, rows)
    if spec.synchronous:
        assert len({len(one.batches) for one in taken}) == 1
        assert {len(batch["id"]) for one in taken for batch in one.batches} <= {spec.batch_size}


def check_batch(batch: dict[str, np.ndarray], rows: int) -> None:
    """Check that all rows are rows of the pass. Padding is, too: it consists of copies of real rows."""
    ids = batch["id"]
    assert set(batch[WEIGHT].tolist()) <= {0.0, 1.0}
    assert set(ids.tolist()) <= set(range(max(rows, 1)))
    np.testing.assert_array_equal(batch["x"], np.repeat(ids[:, None], 3, axis=1).astype(np.float32))
    np.testing.assert_array_equal(batch["y"], ids % 3)


LAYOUTS: list[tuple[str, list[int]]] = [
    ("one partition", [123]),
    ("all rows in the last of several", [0, 0, 0, 120]),
    ("all rows in the first of several", [120, 0, 0, 0]),
    ("empty partitions between others", [0, 31, 0, 0, 17, 0]),
    ("fewer rows than readers", [1]),
    ("fewer rows than readers, in two partitions", [0, 1, 0, 1]),
    ("64 tiny partitions", [n % 4 for n in range(64)]),
    ("one large and many tiny partitions", [90, *[1] * 12]),
    ("a whole number of global batches", [24, 24]),
]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("num_readers", [1, 2, 3])
@pytest.mark.parametrize("sizes", [sizes for _, sizes in LAYOUTS], ids=[name for name, _ in LAYOUTS])
def test_pass_over_any_layout_reads_each_row_once_in_equally_many_batches(
    sizes: list[int], num_readers: int, ordered: bool
) -> None:
    spec = replace(SPEC, num_readers=num_readers, ordered=ordered)
    with Loopback(spec) as loop:
        check_pass(run_pass(loop, partitions_of(sizes)), sum(sizes), spec)


@pytest.mark.parametrize("shuffle_rows", [0, 20])
def test_each_of_several_passes_reads_each_row_once(shuffle_rows: int) -> None:
    spec = replace(SPEC, shuffle_rows=shuffle_rows, num_readers=3)
    with Loopback(spec) as loop:
        for sizes in ([50, 3, 0, 30], [83], [1] * 5):
            check_pass(run_pass(loop, partitions_of(sizes)), sum(sizes), spec)


@pytest.mark.parametrize("fails", ["", "opening it", "making it"])
def test_pass_in_shared_memory_reads_each_row_once_and_leaves_no_open_descriptor(
    monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    tried = []

    def opened(found: dict[str, int]) -> pa.Table:
        tried.append(found)
        if fails == "opening it":
            raise PermissionError("not allowed")
        return open_shared(found)

    def made(table: pa.Table) -> SharedChunk:
        if fails == "making it":
            raise OSError("no memory")
        return SharedChunk(table)

    monkeypatch.setattr(source, "SHARED_FROM_BYTES", 1)
    monkeypatch.setattr(source, "SharedChunk", made)
    monkeypatch.setattr(reader, "open_shared", opened)
    before = num_open_chunks()
    for ordered in (False, True):
        spec = replace(SPEC, ordered=ordered)
        with Loopback(spec) as loop:
            check_pass(run_pass(loop, partitions_of([50, 3, 0, 30])), 83, spec)
    assert (len(tried) > 2) == (fails != "making it")
    assert num_open_chunks() == before


def num_open_chunks() -> int:
    """Return the number of chunks in shared memory that this process has open."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum("tfspark-chunk" in name for name in names)


def test_pass_without_synchronous_steps_reads_each_row_once_without_padding() -> None:
    spec = replace(SPEC, synchronous=False, num_readers=3)
    with Loopback(spec) as loop:
        taken = run_pass(loop, partitions_of([41, 0, 2]))
    check_pass(taken, 43, spec)
    assert sum(len(batch["id"]) for one in taken for batch in one.batches) == 43


@pytest.mark.parametrize("window", [0, 250])
def test_pass_of_sparse_vectors_makes_only_a_few_rows_dense_at_a_time(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    size, count, dense = 40_000, 300, []

    def noted(batch: pa.RecordBatch, columns: Columns) -> Rows:
        rows = to_numpy(batch, columns)
        dense.append(rows["v"].nbytes)
        return rows

    vector = pa.struct(
        {
            "type": pa.int8(),
            "size": pa.int32(),
            "indices": pa.list_(pa.int32()),
            "values": pa.list_(pa.float64()),
        }
    )

    def vectors(first: int, rows: int) -> pa.RecordBatch:
        ids = range(first, first + rows)
        cells = [{"type": 0, "size": size, "indices": [i], "values": [float(i)]} for i in ids]
        return pa.RecordBatch.from_arrays([pa.array(ids), pa.array(cells, vector)], ["id", "v"])

    monkeypatch.setattr(reader, "to_numpy", noted)
    monkeypatch.setattr(loopback, "rows_from", vectors)
    columns = Columns((Column("id"), Column("v")))
    spec = replace(SPEC, columns=columns, num_readers=1, chunk_bytes=1 << 20, shuffle_rows=window)
    ids = []

    def check(batch: Rows) -> None:
        places, values = np.nonzero(batch["v"]), batch["v"].sum(axis=1)
        real = batch["id"] > 0
        assert batch["v"].shape == (spec.batch_size, size)
        assert batch["v"].dtype == np.float64
        assert places[1].tolist() == values[real].tolist() == batch["id"][real].tolist()
        ids.extend(batch["id"][batch[WEIGHT] > 0].tolist())

    tracemalloc.start()
    try:
        with Loopback(spec) as loop, ThreadPoolExecutor() as pool:
            index = loop.open_pass()
            served = pool.submit(loop.feed, index, [[vectors(0, count)]], 1)
            with (
                ActionClient(loop.control.location, loop.secret) as control,
                contextlib.closing(loop.reader(control, 0, index)) as batches,
            ):
                for batch in batches:
                    check(batch)
            assert served.result() == count
        (_, most) = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(ids) == list(range(count))
    assert (ids == sorted(ids)) == (not window)
    assert max(dense) <= 1 << 20
    assert most < 8 * size * count / 2, "a window of dense rows would take more memory"


# --- trainers of different speeds ------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("sizes", [[160], [20, 100, 0, 3]], ids=["one partition", "uneven partitions"])
@pytest.mark.parametrize(
    ("pauses", "reason"),
    [
        ({1: lambda step: 0.02}, "one is slower in every step"),
        ({0: lambda step: 1.5 if step == 3 else 0.0}, "one stops for longer than a long poll"),
        ({0: lambda step: 0.06, 1: lambda step: 0.06}, "all are so slow that their queues stay full"),
    ],
    ids=["slow", "stops", "all slow"],
)
def test_pass_with_slow_trainers_reads_each_row_once_in_equally_many_batches(
    pauses: dict[int, Callable[[int], float]], reason: str, sizes: list[int], ordered: bool
) -> None:
    spec = replace(SPEC, ordered=ordered)
    with Loopback(spec) as loop:
        check_pass(run_pass(loop, partitions_of(sizes), pauses=pauses), sum(sizes), spec)


def other_reader_agrees(loop: Loopback, index: int, steps: int, ended: bool) -> None:
    """Announce steps in the place of reader 0."""
    with ActionClient(loop.control.location, loop.secret) as control:
        control.call("agree", stream="train", index=index, rank=0, steps=steps, ended=ended, rows=0)


def test_reader_that_pads_slowly_reaches_the_number_of_steps_of_the_others() -> None:
    # Five rows make two batches of four, the second with padding; the ten batches after them are only padding.
    with Loopback(SPEC) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        other_reader_agrees(loop, index, 12, ended=False)
        taken = pool.submit(loop.take, 1, index, lambda number: time.sleep(0.08))
        loop.feed(index, partitions_of([5]), slots=1)
        other_reader_agrees(loop, index, 12, ended=True)
        assert taken.result().ids() == list(range(5))
        assert len(taken.result().batches) == 12


def test_reader_that_has_padded_enough_waits_in_long_polls_instead_of_many_calls() -> None:
    with Loopback(SPEC) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        other_reader_agrees(loop, index, 3, ended=False)
        asked: list[int] = []
        agree = loop.directory.agree
        loop.directory.agree = lambda **call: (asked.append(call["rank"]), agree(**call))[1]
        reached = threading.Event()
        taken = pool.submit(loop.take, 1, index, lambda number: reached.set() if number == 2 else None)
        loop.feed(index, partitions_of([1]), slots=1)
        reached.wait(PATIENCE_S)
        asked.clear()
        threading.Event().wait(0.5)
        other_reader_agrees(loop, index, 3, ended=True)
        assert len(taken.result().batches) == 3
    assert len(asked) < 20


# --- ordered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[90], [30, 0, 1, 1, 1, 57], [1] * 37], ids=str)
@pytest.mark.parametrize("num_readers", [1, 2, 3])
def test_step_of_an_ordered_pass_has_the_rows_at_its_position(sizes: list[int], num_readers: int) -> None:
    spec = replace(SPEC, ordered=True, num_readers=num_readers)
    with Loopback(spec) as loop:
        taken = run_pass(loop, partitions_of(sizes))
    total, step_rows = sum(sizes), spec.batch_size * num_readers
    for step, parts in enumerate(zip(*(one.steps() for one in taken), strict=True)):
        expected = list(range(step * step_rows, min((step + 1) * step_rows, total)))
        assert [i for part in parts for i in part] == expected


@pytest.mark.parametrize("shuffle_rows", [0, 12])
def test_batches_of_an_ordered_pass_do_not_depend_on_slots_speed_or_batches_of_spark(
    shuffle_rows: int,
) -> None:
    spec = replace(SPEC, ordered=True, shuffle_rows=shuffle_rows, num_readers=2, seed=11)
    runs = []
    conditions = [(1, {}, 10), (3, {1: lambda step: 0.01}, 7), (2, {0: lambda step: 0.01}, 3)]
    for slots, pauses, batch_rows in conditions:
        with Loopback(spec) as loop:
            parts = partitions_of([33, 0, 20, 9, 1], batch_rows)
            runs.append([one.steps() for one in run_pass(loop, parts, slots, pauses)])
    assert runs[0] == runs[1] == runs[2]


# --- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    ("dies_at", "reason"),
    [
        ([0], "before its first row"),
        ([2], "in the middle"),
        ([4, 2, 5], "three times, and earlier in the second attempt"),
    ],
)
def test_rows_of_a_feed_task_that_dies_and_is_retried_are_each_read_once(
    dies_at: list[int], reason: str, slots: int, ordered: bool
) -> None:
    spec = replace(SPEC, ordered=ordered)
    whole = partitions_of([15, 60, 3, 30], batch_rows=8)
    partitions = [whole[0], Dying(whole[1], dies_at), whole[2], Dying(whole[3], dies_at)]
    with Loopback(spec) as loop:
        check_pass(run_pass(loop, partitions, slots), 108, spec)


class Held:
    """Rows of a partition: yields the first batch, and the others after the test has set an event."""

    def __init__(self, batches: list[pa.RecordBatch], opened: threading.Event):
        self._batches = batches
        self._opened = opened

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        yield self._batches[0]
        self._opened.wait(PATIENCE_S)
        yield from self._batches[1:]


def only_source(loop: Loopback, index: int) -> str:
    """Wait until a reader has leased the source of partition 0; return the id of the source."""
    feed_pass = loop.directory._streams["train"].passes[index]
    assert poll_until(lambda: bool(feed_pass.sources) and bool(feed_pass.sources[0].readers), PATIENCE_S)
    return feed_pass.sources[0].id


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_source_waits_for_its_turn_without_a_timeout_while_rows_of_other_sources_are_read(
    ordered: bool,
) -> None:
    """The training on the first partition takes longer than the feed's timeout; the second partition waits."""
    spec = replace(SPEC, ordered=ordered, num_readers=1, shuffle_rows=0, timeout_s=3.0)
    partitions = partitions_of([60, 60])
    with Loopback(spec) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        taken = pool.submit(loop.take, 0, index, lambda number: time.sleep(0.5))
        tasks = [
            pool.submit(loop.task(index, buffer_bytes=64).serve, number, iter(rows))
            for number, rows in enumerate(partitions)
        ]
        for task in tasks:
            task.result()
        assert loop.finish_pass(index) == 120
        assert sorted(taken.result().ids()) == list(range(120))


def told_to_stop(loop: Loopback) -> threading.Event:
    """Return an event that is set when the directory has told a source to stop."""
    told = threading.Event()
    source_alive = loop.directory.source_alive

    def answer(**call: Any) -> dict[str, Any]:
        reply = source_alive(**call)
        if reply["stop"]:
            told.set()
        return reply

    loop.directory.source_alive = answer
    return told


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
def test_source_that_a_reader_cannot_reach_fails_and_its_retry_serves_the_rest(ordered: bool) -> None:
    # The network between the reader and the source is broken. The task itself works, but it must not report its
    # partition as served.
    spec = replace(SPEC, ordered=ordered, num_readers=1)
    opened = threading.Event()
    held = Held(partitions_of([2000])[0], opened)
    attempts: list[int] = []
    with Loopback(spec) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        taken = pool.submit(loop.take, 0, index, lambda number: None)
        fed = pool.submit(lambda: attempts.append(attempt_until_served(loop.task(index), 0, held)))
        source = only_source(loop, index)
        told = told_to_stop(loop)
        loop.control.update(lambda state: setattr(state.directory._by_id[source][2], "lost", True))
        assert told.wait(PATIENCE_S)
        opened.set()
        fed.result()
        loop.finish_pass(index)
        check_pass([taken.result()], 2000, spec)
    assert attempts == [2]


def test_retry_of_a_task_is_read_by_the_reader_for_whose_step_another_reader_waits() -> None:
    # Reader 0 has filled its queue, and cannot continue without reader 1, which has no row yet. All remaining rows
    # are in the partition whose task dies.
    first_died, second_has_rows = threading.Event(), threading.Event()
    batches = partitions_of([160], batch_rows=80)[0]

    def attempts() -> Iterator[Iterator[pa.RecordBatch]]:
        def dying() -> Iterator[pa.RecordBatch]:
            yield batches[0]
            first_died.wait(PATIENCE_S)
            raise ConnectionError("the task was killed")

        yield dying()
        yield iter(batches)

    spec = replace(SPEC, chunk_bytes=1 << 20)
    with Loopback(spec) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        tries = attempts()

        class Rows:
            def __iter__(self) -> Iterator[pa.RecordBatch]:
                return next(tries)

        blocked = pool.submit(loop.take, 0, index, lambda number: second_has_rows.wait(PATIENCE_S))
        fed = pool.submit(attempt_until_served, loop.task(index), 0, Rows())
        only_source(loop, index)
        assert poll_until(lambda: loop.directory._streams["train"].passes[index].announced != {}, PATIENCE_S)
        first_died.set()
        other = pool.submit(loop.take, 1, index, lambda number: second_has_rows.set())
        assert fed.result() == 2
        loop.finish_pass(index)
        check_pass([blocked.result(), other.result()], 160, spec)


def test_second_attempt_waits_and_serves_nothing_while_the_first_runs() -> None:
    spec = replace(SPEC, num_readers=1)
    opened = threading.Event()
    held = Held(partitions_of([50])[0], opened)
    with Loopback(spec) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        taken = pool.submit(loop.take, 0, index, lambda number: None)
        first = pool.submit(loop.task(index).serve, 0, iter(held))
        only_source(loop, index)
        second = pool.submit(loop.task(index).serve, 0, iter(partitions_of([50])[0]))
        # A busy cluster wakes the waiting call often; the call must not count a wake-up as elapsed time.
        for _ in range(100):
            loop.control.update(lambda _: time.sleep(0.005))
        assert not second.done()
        opened.set()
        first.result()
        second.result()
        assert loop.finish_pass(index) == 50
        check_pass([taken.result()], 50, spec)


def test_readers_and_tasks_end_when_their_stream_is_closed_in_the_middle_of_a_pass() -> None:
    def endless() -> Iterator[pa.RecordBatch]:
        for first in itertools.count(0, 10):
            yield rows_from(first, 10)

    with Loopback(SPEC) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        third = threading.Event()
        readers = [
            pool.submit(loop.take, rank, index, lambda number: third.set() if number == 3 else None)
            for rank in range(2)
        ]
        tasks = [pool.submit(loop.task(index).serve, part, endless()) for part in range(2)]
        assert third.wait(PATIENCE_S)
        loop.close_stream()
        for future in [*readers, *tasks]:
            future.result(PATIENCE_S)


def test_reader_can_be_closed_in_the_middle_of_a_pass() -> None:
    with Loopback(replace(SPEC, num_readers=1)) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        task = pool.submit(loop.task(index).serve, 0, iter(partitions_of([2000])[0]))
        with ActionClient(loop.control.location, loop.secret) as control:
            reader = loop.reader(control, 0, index)
            assert next(iter(reader))["id"].tolist() == [0, 1, 2, 3]
            reader.close()
        loop.close_stream()
        task.result(PATIENCE_S)


def test_reading_a_pass_that_the_driver_never_fed_fails_with_the_number_of_epochs() -> None:
    with Loopback(replace(SPEC, num_readers=1)) as loop:
        run_pass(loop, partitions_of([5]))
        loop.close_stream()
        with pytest.raises(TfsparkError, match=r"epoch 2 of 'train' was asked for, but the driver fed 1"):
            loop.take(0, 1, lambda number: None)


def bad_rows(number: int, values: list[object], kind: pa.DataType) -> pa.RecordBatch:
    good = rows_from(0, number)
    x = pa.array([[0.0, 0.0, 0.0]] * (number - len(values)) + values, kind)
    return pa.RecordBatch.from_arrays([good["id"], x, good["y"]], names=["id", "x", "y"])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, r"partition 1, row 17: column 'x' is null"),
        ([1.0, None, 2.0], r"partition 1, row 17: column 'x' holds a null"),
        ([1.0], r"partition 1, row 17: column 'x' has "),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [16, 1 << 20])
def test_error_of_a_wrong_row_has_its_partition_and_row(value: object, says: str, chunk_bytes: int) -> None:
    kind = pa.list_(pa.float32())
    rows = [bad_rows(10, [], kind), bad_rows(8, [value], kind), bad_rows(5, [], kind)]
    spec = replace(SPEC, num_readers=1, batch_size=2, chunk_bytes=chunk_bytes)
    with Loopback(spec) as loop, ThreadPoolExecutor() as pool:
        index = loop.open_pass()
        good = [bad_rows(3, [], kind)]
        tasks = [pool.submit(loop.task(index).serve, part, iter(b)) for part, b in enumerate([good, rows])]
        with pytest.raises(DataError, match=says):
            loop.take(0, index, lambda number: None)
        loop.close_stream()
        for task in tasks:
            task.result(PATIENCE_S)


def test_class_weights_become_the_weights_of_the_rows() -> None:
    columns = replace(SPEC.columns, class_weights=((1, 0.25),))
    with Loopback(replace(SPEC, num_readers=1, columns=columns)) as loop:
        (taken,) = run_pass(loop, partitions_of([8]))
    for batch in taken.batches:
        np.testing.assert_array_equal(batch[WEIGHT], np.where(batch["y"] == 1, 0.25, 1.0))


# --- authorization ---------------------------------------------------------------------------------


@contextlib.contextmanager
def source_server(secret: Secret) -> Iterator[SourceServer]:
    buffer = ChunkBuffer(1 << 20, PATIENCE_S, num_readers=1, batch_rows=4)
    rows = rows_from(0, 10)
    buffer.offer(0, rows)
    buffer.finish()
    server = SourceServer(HOST, secret, buffer, rows.schema)
    try:
        yield server
    finally:
        server.close()


TICKET = {"reader": 0, "acknowledged": 0, "max_bytes": 1 << 20, "rows_before": 0}


def calls_of(client: ActionClient) -> list[Callable[[], object]]:
    header = {"name": "x"}
    schema = pa.schema([("path", pa.string())])
    return [
        lambda: client.call("describe", stream="train"),
        lambda: client.call("acknowledge", reader=0, sequence=1),
        lambda: client.get(TICKET),
        lambda: client.put(header, schema, iter([]), PATIENCE_S),
    ]


@pytest.mark.parametrize("token", ["", "wrong"])
def test_call_with_a_wrong_token_is_refused_by_both_servers(token: str) -> None:
    with Loopback(SPEC) as loop, source_server(loop.secret) as source:
        for location in (loop.control.location, source.location):
            with ActionClient(location, Secret(token)) as client:
                for call in calls_of(client):
                    with pytest.raises(flight.FlightUnauthenticatedError):
                        call()


def test_call_without_a_token_is_refused_by_both_servers() -> None:
    with Loopback(SPEC) as loop, source_server(loop.secret) as source:
        for location in (loop.control.location, source.location):
            with flight.connect(location) as client:
                with pytest.raises(flight.FlightUnauthenticatedError):
                    list(client.do_action(flight.Action("describe", b'{"stream": "train"}')))
                with pytest.raises(flight.FlightUnauthenticatedError):
                    client.do_get(flight.Ticket(json.dumps(TICKET).encode())).read_all()
                with pytest.raises(flight.FlightUnauthenticatedError):
                    list(client.list_flights())


def test_pass_over_tls_reads_each_row_once() -> None:
    with Loopback(SPEC, tls=True) as loop:
        assert loop.control.location.startswith("grpc+tls://")
        check_pass(run_pass(loop, partitions_of([9, 0, 40])), 49, SPEC)


@pytest.mark.parametrize(
    "certificate", ["", new_secret(tls=True).certificate], ids=["without TLS", "another certificate"]
)
def test_client_without_the_certificate_of_the_cluster_cannot_call(certificate: str) -> None:
    with Loopback(SPEC, tls=True) as loop, source_server(loop.secret) as source:
        for location in (loop.control.location, source.location):
            where = location if certificate else location.replace("grpc+tls", "grpc")
            # The connection itself is refused, so one kind of call is enough. Each attempt takes seconds.
            secret = Secret(loop.secret.token, certificate)
            with (
                ActionClient(where, secret, unreached_s=0.0) as client,
                pytest.raises(flight.FlightUnavailableError),
            ):
                client.call("describe", stream="train")
        check_pass(run_pass(loop, partitions_of([9])), 9, SPEC)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([60, 45, 0, 7], id="some partitions"),
        pytest.param([30], id="one partition"),
    ],
)
@pytest.mark.parametrize("chunks", [0, 1, 4])
def test_rows_of_a_reader_that_dies_are_read_by_the_other_readers(sizes: list[int], chunks: int) -> None:
    spec, total = replace(SPEC, synchronous=False), sum(sizes)
    with Loopback(spec, coordinated=True) as loop, ThreadPoolExecutor(3) as pool:
        directory, index = loop.directory, loop.open_pass()
        feeding = pool.submit(loop.feed, index, partitions_of(sizes), 2)
        read_and_die(loop, 1, index, chunks)
        loop.control.update(lambda state: state.directory.lose_reader(1))
        others = [pool.submit(loop.take, rank, index, lambda number: None) for rank in (0, 3)]
        feeding.result(PATIENCE_S)

        loop.control.wait(
            lambda state: state.directory.is_settled("train", index),
            PATIENCE_S,
            "readers to end their leases",
        )
        assert directory.lacks_rows("train", index)
        reopened = loop.control.update(lambda state: state.directory.reopen("train", index))
        assert reopened == (chunks > 1), "acknowledged"
        assert loop.feed(index, partitions_of(sizes), 2) == total
        taken = [other.result(PATIENCE_S) for other in others]
        assert sorted(i for one in taken for i in one.ids()) == list(range(total))
        assert sum(directory.rows_received("train", index).values()) == total
        assert not directory.is_over("train", index)
        assert directory.end_pass("train", index, [0, 1, 3], [0, 3]) == {"lost": [1]}
        assert directory.is_over("train", index)


def test_rows_of_a_reader_that_dies_at_the_end_of_a_pass_are_read_by_its_replacement() -> None:
    with Loopback(replace(SPEC, synchronous=False), coordinated=True) as loop, ThreadPoolExecutor(3) as pool:
        directory, index = loop.directory, loop.open_pass()
        readers = [pool.submit(loop.take, rank, index, lambda number: None) for rank in (0, 1)]
        assert loop.feed(index, partitions_of([40, 40]), 2) == 80
        first, second = (reader.result(PATIENCE_S) for reader in readers)
        loop.control.update(lambda state: state.directory.lose_reader(1))
        assert directory.end_pass("train", index, [0, 1], [0, 1]) == {"lost": [1]}
        assert not directory.is_over("train", index)

        reopened = loop.control.update(lambda state: state.directory.reopen("train", index))
        assert reopened == bool(second.rows)
        reading = pool.submit(loop.take, 3, index, lambda number: None)
        assert loop.feed(index, partitions_of([40, 40]), 2) == 80
        assert sorted(reading.result(PATIENCE_S).ids()) == sorted(second.ids())
        assert directory.rows_received("train", index) == {0: first.rows, 3: second.rows}


def read_and_die(loop: Loopback, rank: int, index: int, chunks: int) -> None:
    """Pull chunks as a reader does, where each pull acknowledges the previous chunk; then stop without a release."""
    with ActionClient(loop.control.location, loop.secret) as control:

        def lease() -> dict[str, Any]:
            return control.call("lease", stream="train", index=index, rank=rank, host=HOST, held=[], after=-1)

        assert poll_until(lambda: lease()["status"] == "source", PATIENCE_S)
        lent = lease()
        with ActionClient(lent["location"], loop.secret) as source:
            for number in range(chunks):
                ticket = {"reader": rank, "acknowledged": number, "max_bytes": 64, "rows_before": 0}
                assert source.get(ticket).num_rows


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("no_such_action", b"{}"),
        ("__init__", b"{}"),
        ("describe", b""),
        ("describe", b"not json"),
        ("describe", b"[1, 2]"),
        ("describe", b"\xff\xfe"),
        ("describe", b'{"stream": []}'),
        ("agree", b'{"stream": "train"}'),
        ("release", b'{"source": "unknown", "rank": 0}'),
        ("acknowledge", b'{"reader": "x"}'),
    ],
)
def test_malformed_call_fails_and_the_servers_still_work(action: str, body: bytes) -> None:
    with Loopback(SPEC) as loop, source_server(loop.secret) as source:
        options = flight.FlightCallOptions(
            headers=[(b"authorization", f"Bearer {loop.secret.token}".encode())]
        )
        for location in (loop.control.location, source.location):
            with flight.connect(location) as client, pytest.raises((flight.FlightError, pa.ArrowException)):
                list(client.do_action(flight.Action(action, body), options))
        with ActionClient(source.location, loop.secret) as client:
            assert client.get(TICKET).num_rows > 0
        check_pass(run_pass(loop, partitions_of([9])), 9, SPEC)
