"""Send the rows of one partition to a trainer, and receive one result for each. Runs in Spark's Python worker.

The task of an inference serves its partition over Flight, as a feed task does, but to one reader only. The reader sends
the results to the same server by ``DoPut``, in the order of the rows, and the task yields them. Results are sent as
Arrow (`tfspark.feed.rdd_rows`), never pickled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from tfspark.errors import DeadlineError, TfsparkError
from tfspark.feed.buffer import ChunkBuffer
from tfspark.feed.rdd_rows import arrow_batches, elements_of
from tfspark.feed.source import SourceServer, heartbeats
from tfspark.protocol.wire import ActionClient, Secret, local_address_towards, uploaded

if TYPE_CHECKING:
    import pyarrow.flight as flight

POLL_S = 0.5


class Results:
    """Received results, in order. The server's threads add them, the task takes them."""

    def __init__(self) -> None:
        self._arrived: list[pa.RecordBatch] = []
        self._changed = threading.Condition()

    def put(self, batches: list[pa.RecordBatch]) -> None:
        """Add results."""
        with self._changed:
            self._arrived += batches
            self._changed.notify_all()

    def take(self, wait_s: float = 0.0) -> list[object]:
        """Remove and return the results that have arrived; wait for the first at most `wait_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._arrived), wait_s)
            batches, self._arrived = self._arrived, []
        return [element for batch in batches for element in elements_of(batch)]


class ExchangeServer(SourceServer):
    """Serves a `ChunkBuffer` and receives results."""

    def __init__(self, host: str, secret: Secret, buffer: ChunkBuffer, schema: pa.Schema):
        self.results = Results()
        super().__init__(host, secret, buffer, schema)

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Receive some results."""
        del context, descriptor, writer
        self.results.put(list(uploaded(reader)))


@dataclass(frozen=True)
class InferenceTask:
    """Everything that the task of an inference needs; Spark calls it with the items of a partition.

    Attributes:
        location: address of the control plane.
        secret: the cluster's secret.
        stream: the stream whose readers compute the results.
        chunk_rows: minimum rows of one pull.
        buffer_bytes: maximum size of the rows that wait for a pull.
        timeout_s: seconds without progress before an error is raised.
    """

    location: str
    secret: Secret = field(repr=False)
    stream: str
    chunk_rows: int
    buffer_bytes: int
    timeout_s: float

    def __call__(self, partition: int, elements: Iterable[object]) -> Iterator[object]:
        """Yield one result for each item, in order."""
        batches = arrow_batches(elements, f"partition {partition}")
        first = next(batches, None)
        if first is not None:
            yield from self._offer(partition, first.schema, chain([first], batches))

    def _offer(
        self, partition: int, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[object]:
        buffer = ChunkBuffer(self.buffer_bytes, self.timeout_s, 1, self.chunk_rows)
        with ActionClient(self.location, self.secret) as control:
            server = ExchangeServer(local_address_towards(self.location), self.secret, buffer, schema)
            offer = ""
            try:
                reply = control.call(
                    "offer_partition",
                    attempts=1,
                    stream=self.stream,
                    location=server.location,
                    host=server.host,
                )
                offer = reply["offer"]
                self._wait_until_taken(control, offer, partition)
                with heartbeats(control, offer, buffer) as errors:
                    yield from self._exchange(buffer, server.results, batches, partition)
                if errors:
                    raise errors[0]
            finally:
                server.close()
                control.call("partition_inferred", offer=offer)

    def _wait_until_taken(self, control: ActionClient, offer: str, partition: int) -> None:
        """Wait for a reader. While readers take other partitions, they are busy, not absent, and the wait continues."""
        while True:
            reply = control.call("await_reader", offer=offer)
            if reply["stop"]:
                raise TfsparkError(_ended(partition))
            if reply["taken"]:
                return
            if reply["idle_s"] > self.timeout_s:
                raise DeadlineError(
                    f"partition {partition}: no worker took it within feed_timeout={self.timeout_s:g} s; see that "
                    "map_fun calls next_batch() of a DataFeed until should_stop(), or raise feed_timeout"
                )

    def _exchange(
        self, buffer: ChunkBuffer, results: Results, batches: Iterator[pa.RecordBatch], partition: int
    ) -> Iterator[object]:
        given = returned = 0
        for batch in batches:
            if not buffer.offer(given, batch):
                break
            given += batch.num_rows
            arrived = results.take()
            returned += len(arrived)
            yield from arrived
        buffer.finish()
        moved = time.monotonic()
        while returned < given and not buffer.stopped:
            arrived = results.take(POLL_S)
            returned += len(arrived)
            yield from arrived
            moved = time.monotonic() if arrived else moved
            if time.monotonic() - moved > self.timeout_s:
                raise DeadlineError(
                    f"partition {partition}: {returned} results for {given} rows, and none within "
                    f"feed_timeout={self.timeout_s:g} s; map_fun must call batch_results() with one result per row"
                )
        if returned != given:
            raise TfsparkError(_ended(partition))


def _ended(partition: int) -> str:
    return (
        f"partition {partition}: expected one result per row, the worker that had the rows, or the cluster, ended "
        "before; call map_fun's next_batch() until should_stop(), and shut the cluster down after the last action on "
        "the results"
    )
