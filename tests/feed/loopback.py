"""A complete feed over real Flight on loopback. Threads take the place of Spark's tasks and of the trainers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.cluster.control import ControlPlane
from tfspark.cluster.state.registry import Registry
from tfspark.feed.arrays import to_numpy
from tfspark.feed.batching import Rows
from tfspark.feed.cache import NodeCache
from tfspark.feed.columns import Column, Columns
from tfspark.feed.directory import Keep
from tfspark.feed.reader import WEIGHT, PassReader
from tfspark.feed.source import FeedTask
from tfspark.feed.stream import StreamSpec
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.wire import ActionClient, new_secret

HOST = "127.0.0.1"
PATIENCE_S = 20.0
"""Seconds that a test waits for an event that normally occurs immediately."""

COLUMNS = Columns((Column("id"), Column("x")), Column("y"))
SPEC = StreamSpec(
    name="train",
    columns=COLUMNS,
    batch_size=4,
    num_readers=2,
    synchronous=True,
    ordered=False,
    shuffle_rows=0,
    seed=0,
    chunk_bytes=256,
    timeout_s=PATIENCE_S,
)


def rows_from(first: int, count: int) -> pa.RecordBatch:
    """Return rows whose ids count from `first`; the values of the other columns follow from the id."""
    ids = np.arange(first, first + count)
    x = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(ids, 3).astype(np.float32)), 3)
    return pa.RecordBatch.from_arrays([pa.array(ids), x, pa.array(ids % 3)], names=["id", "x", "y"])


def partitions_of(sizes: Sequence[int], batch_rows: int = 10) -> list[list[pa.RecordBatch]]:
    """Return partitions of these sizes. Ids count through all partitions."""
    firsts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return [
        [rows_from(first + start, min(batch_rows, size - start)) for start in range(0, size, batch_rows)]
        for first, size in zip(firsts, sizes, strict=False)
    ]


@dataclass
class Taken:
    """The batches that one trainer got in one pass."""

    batches: list[Rows] = field(default_factory=list)
    rows: int = 0

    def ids(self) -> list[int]:
        """Return the ids of real rows, in order."""
        return [int(i) for batch in self.batches for i in batch["id"][batch[WEIGHT] > 0]]

    def steps(self) -> list[list[int]]:
        """Return the ids of real rows, batch by batch."""
        return [batch["id"][batch[WEIGHT] > 0].tolist() for batch in self.batches]


class Loopback:
    """A control plane with one stream; a context manager."""

    def __init__(
        self,
        spec: StreamSpec,
        caches: Sequence[NodeCache | None] = (),
        tls: bool = False,
        coordinated: bool = False,
    ):
        self.spec = spec
        self.caches = caches or [None] * spec.num_readers
        self.secret = new_secret(tls)
        nodes = plan_nodes(spec.num_readers)
        registry = Registry(nodes, PATIENCE_S, {})
        self.control = ControlPlane(
            (HOST, HOST), self.secret, nodes, registry, lambda event, fields: None, None
        )
        # Tests inspect it and replace its methods.
        self.directory = self.control.read(lambda state: state.directory)
        description = {**spec.to_json(), "kind": "rows", "needs_sample": True}
        self.control.update(
            lambda state: state.directory.open_stream(
                spec.name, description, spec.num_readers, spec.ordered, coordinated
            )
        )

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()

    def task(self, index: int, **changes: Any) -> FeedTask:
        """Return the feed task of a pass."""
        task = FeedTask(
            location=self.control.location,
            secret=self.secret,
            stream=self.spec.name,
            index=index,
            num_readers=self.spec.num_readers,
            batch_rows=self.spec.batch_size,
            ordered=self.spec.ordered,
            buffer_bytes=2048,
            timeout_s=self.spec.timeout_s,
        )
        return replace(task, **changes)

    def open_pass(
        self,
        keep: Keep | None = None,
        given: Mapping[int, str] | None = None,
        offer: Mapping[int, str] | None = None,
    ) -> int:
        """Begin the next pass."""
        return self.control.update(
            lambda state: state.directory.open_pass(self.spec.name, keep, given=given, offer=offer)
        )

    def feed(self, index: int, partitions: Sequence[Iterable[pa.RecordBatch]], slots: int) -> int:
        """Run one task per partition, `slots` in parallel, as Spark does; return the number of served rows."""
        task = self.task(index)
        with ThreadPoolExecutor(slots) as pool:
            done = [
                pool.submit(attempt_until_served, task, number, rows)
                for number, rows in enumerate(partitions)
            ]
            for future in done:
                future.result()
        return self.finish_pass(index)

    def finish_pass(self, index: int) -> int:
        """Report that Spark has finished the pass; return the number of served rows."""
        return self.control.update(lambda state: state.directory.finish_pass(self.spec.name, index))

    def close_stream(self) -> None:
        """Report that no further pass will follow."""
        self.control.update(lambda state: state.directory.close_stream(self.spec.name))

    def reader(self, control: ActionClient, rank: int, index: int) -> PassReader:
        """Open a pass as a trainer does."""
        sample = {**to_numpy(rows_from(0, 1), self.spec.columns), WEIGHT: np.ones(1, np.float32)}
        cache = self.caches[rank] if rank < len(self.caches) else None
        return PassReader(control, self.secret, self.spec, index, rank, HOST, sample, cache)

    def take(self, rank: int, index: int, after_batch: Callable[[int], None]) -> Taken:
        """Read a pass to its end; call `after_batch` with the number of each batch."""
        taken = Taken()
        with ActionClient(self.control.location, self.secret) as control:
            reader = self.reader(control, rank, index)
            try:
                for number, batch in enumerate(reader):
                    taken.batches.append(batch)
                    after_batch(number)
            finally:
                reader.close()
            taken.rows = reader.rows
        return taken


MAX_ATTEMPTS = 4
"""Default of Spark's spark.task.maxFailures."""


def attempt_until_served(task: FeedTask, partition: int, rows: Iterable[pa.RecordBatch]) -> int:
    """Run a task, and repeat it if it fails, as Spark does; return the number of attempts."""
    for attempt in range(1, MAX_ATTEMPTS):
        try:
            task.serve(partition, iter(rows))
        except Exception:
            continue
        return attempt
    task.serve(partition, iter(rows))
    return MAX_ATTEMPTS


class Dying:
    """Rows of a partition whose task fails. Attempt ``n`` fails before batch ``dies_at[n]``; later attempts succeed."""

    def __init__(self, batches: Sequence[pa.RecordBatch], dies_at: Sequence[int]):
        self._batches = batches
        self._dies_at = list(dies_at)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        dies_at = self._dies_at.pop(0) if self._dies_at else len(self._batches) + 1
        for number, batch in enumerate(self._batches):
            if number == dies_at:
                raise ConnectionError("the task was killed")
            yield batch


def in_step(
    together: int, pauses: dict[int, Callable[[int], float]], num_readers: int
) -> Iterator[Callable[[int], None]]:
    """Yield a function for each trainer, to be called after a batch: it pauses, then waits for the others' same step.

    The barrier simulates the collective of a training step: a trainer that ends a step early waits for the others.
    With ``together=1`` no trainer waits.
    """
    barrier = threading.Barrier(together)

    def make(rank: int) -> Callable[[int], None]:
        def step(number: int) -> None:
            if rank in pauses:
                time.sleep(pauses[rank](number))
            barrier.wait(PATIENCE_S)

        return step

    return (make(rank) for rank in range(num_readers))


def run_pass(
    loop: Loopback,
    partitions: Sequence[Iterable[pa.RecordBatch]],
    slots: int = 2,
    pauses: dict[int, Callable[[int], float]] | None = None,
    keep: Keep | None = None,
    offer: Mapping[int, str] | None = None,
) -> list[Taken]:
    """Feed one pass and read it with all trainers; return the batches of each.

    If the trainers can read the offered files, no rows are fed.
    """
    index = loop.open_pass(keep, offer=offer)
    readers = loop.spec.num_readers
    steps = list(in_step(readers if loop.spec.synchronous else 1, pauses or {}, readers))
    with ThreadPoolExecutor(readers) as pool:
        taken: list[Future[Taken]] = [
            pool.submit(loop.take, rank, index, step) for rank, step in enumerate(steps)
        ]
        takes_offer = False
        if offer is not None:
            loop.control.wait(lambda state: state.directory.has_looked(loop.spec.name, index), PATIENCE_S, "")
            takes_offer = loop.control.update(
                lambda state: state.directory.takes_offer(loop.spec.name, index)
            )
        served = 0 if takes_offer else loop.feed(index, partitions, slots)
        found = [future.result() for future in taken]
    assert takes_offer or served == sum(one.rows for one in found)
    return found


def read_stored(loop: Loopback, given: Mapping[int, str]) -> list[Taken]:
    """Let all trainers read the rows that they have stored, without Spark."""
    index = loop.open_pass(given=given)
    with ThreadPoolExecutor(loop.spec.num_readers) as pool:
        taken = [pool.submit(loop.take, rank, index, lambda _: None) for rank in range(loop.spec.num_readers)]
        return [future.result() for future in taken]
