"""The feed task: serve one partition's rows to the readers that lease it.

It runs as an ordinary Spark task in Spark's Python worker, and imports neither TensorFlow nor pandas. Spark's iterator
fills a buffer that is bounded in bytes. Readers pull chunks from it over Arrow Flight; each pull acknowledges the chunk
before. An unacknowledged chunk is kept, and sent again to a reader that asks again. The task ends when every chunk is
acknowledged.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import DeadlineError, TfsparkError
from tfspark.feed.buffer import ChunkBuffer
from tfspark.feed.ranges import Ranges
from tfspark.feed.shared import SharedChunk, shared_place
from tfspark.feed.stream import encode_sample
from tfspark.protocol.timing import HEARTBEAT_S
from tfspark.protocol.values import Json
from tfspark.protocol.wire import ActionClient, ActionServer, Secret, local_address_towards

PULL_WAIT_S = 0.2
FAILED_S = 5.0
"""Seconds for which a failing task tries to report its error."""
NOT_REACHED = "expected every worker to reach this feed task, one could not"
SHARED_FROM_BYTES = 64 << 10
"""Minimum bytes of a chunk for shared memory on the same host; smaller chunks are copied faster."""
MANY_OBJECTS = 10_000
CHUNK = b"tfspark.chunk"
"""Key of the schema metadata that holds the chunk's identity in a pulled table."""


class SourceServer(ActionServer):
    """Serves one `ChunkBuffer` over Flight."""

    def __init__(self, host: str, secret: Secret, buffer: ChunkBuffer, schema: pa.Schema):
        self._buffer = buffer
        self._schema = schema
        self._shared: dict[int, SharedChunk] = {}
        self._sharing = threading.Lock()
        super().__init__(host, secret)

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.RecordBatchStream:
        """Answer one pull."""
        del context
        request = json.loads(ticket.ticket)
        status, pieces, sequence = self._buffer.pull(
            request["reader"],
            request["acknowledged"],
            request["max_bytes"],
            PULL_WAIT_S,
            request["rows_before"],
        )
        ranges = [[piece.first_row, piece.first_row + piece.batch.num_rows] for piece in pieces]
        chunk: Json = {"status": status, "sequence": sequence, "ranges": ranges}
        table = pa.Table.from_batches([piece.batch for piece in pieces], self._schema)
        # The reader has mapped its previous chunk by now.
        self._let_go(request["reader"])
        if table.nbytes >= SHARED_FROM_BYTES and request.get("place") and request["place"] == shared_place():
            with suppress(OSError):  # No memory left: send it through the socket.
                chunk["shared"] = self._share(request["reader"], table)
                table = self._schema.empty_table()
        return flight.RecordBatchStream(table.replace_schema_metadata({CHUNK: json.dumps(chunk)}))

    def _share(self, reader: int, table: pa.Table) -> Json:
        shared = SharedChunk(table)
        self._let_go(reader, shared)
        return shared.to_json()

    def _let_go(self, reader: int, instead: SharedChunk | None = None) -> None:
        """Close the shared memory of a reader's chunk; `instead` replaces it."""
        with self._sharing:
            before = self._shared.pop(reader, None)
            if instead is not None:
                self._shared[reader] = instead
        if before is not None:
            before.close()

    def close(self) -> None:
        """Stop serving."""
        super().close()
        for reader in list(self._shared):
            self._let_go(reader)

    def on_acknowledge(self, request: Json) -> Json:
        """Record the acknowledgement of a reader that leaves."""
        self._buffer.acknowledge(request["reader"], request["sequence"])
        self._let_go(request["reader"])
        return {}


def spare_collections() -> None:
    """Let garbage collections skip the current objects of this process; most of them belong to modules.

    Spark's Python worker collects after each task. Visiting 76,000 objects, which it has imported by its second task,
    took 10 to 90 ms. That is longer than many partitions take.
    """
    if len(gc.get_objects()) > MANY_OBJECTS:  # Skipped objects are not in this list.
        gc.freeze()


class InputBrokeOffError(Exception):
    """The computation of the partition's rows has failed; Spark itself raises the reason."""


def input_broke_off() -> bool:
    """Return whether the rows ended because their computation failed: in a Python worker, a shuffle or a file.

    In that case Spark closes its end of the socket to this worker, which Arrow takes for the end of the rows. After a
    real end, Spark sends more bytes. The socket is found on the stack, where Spark's worker reads from it, below this
    function. Without it, as in a test, the input cannot fail in this way.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "main" and "infile" in frame.f_locals:
            return not frame.f_locals["infile"].peek(1)
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class FeedTask:
    """Everything that a feed task needs; Spark calls it with the partition's batches.

    Attributes:
        location: address of the control plane.
        secret: the cluster's secret.
        stream: name of the stream.
        index: number of the pass.
        num_readers: number of readers of the stream.
        batch_rows: rows of one reader's batch.
        ordered: assign rows to readers by position, instead of to the first that pulls.
        buffer_bytes: maximum size of the buffer between Spark and the readers.
        timeout_s: seconds without progress before an error is raised.
        order: the partitions' own numbers, if they are served in a different order.
        left_out: partitions of the pass, in ascending order, for which this job has no tasks.
    """

    location: str
    secret: Secret = field(repr=False)
    stream: str
    index: int
    num_readers: int
    batch_rows: int
    ordered: bool
    buffer_bytes: int
    timeout_s: float
    order: tuple[int, ...] = ()
    left_out: tuple[int, ...] = ()

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Serve the partition of this Spark task; yield no rows."""
        from pyspark import TaskContext

        spare_collections()
        task = TaskContext.get()
        number = task.partitionId() if task is not None else 0
        for partition in self.left_out:
            number += partition <= number
        self.serve(number, batches)
        yield from ()

    def serve(self, partition: int, batches: Iterator[pa.RecordBatch]) -> None:
        """Serve a partition to its end."""
        with ActionClient(self.location, self.secret) as control:
            try:
                rows, stopped = self._serve(control, partition, batches)
            except InputBrokeOffError:
                return  # Spark fails this task and runs it again.
            reply = control.call(
                "partition_done",
                stream=self.stream,
                index=self.index,
                partition=partition,
                rows=rows,
                stopped=stopped,
            )
        if reply["retry"]:
            raise TfsparkError(
                f"partition {partition}: {NOT_REACHED}; Spark serves the rest in another attempt, if "
                "spark.task.maxFailures allows one"
            )

    def _serve(
        self, control: ActionClient, partition: int, batches: Iterator[pa.RecordBatch]
    ) -> tuple[int, str]:
        """Return the number of rows served, and the source's name if it was stopped before its end."""
        first = next((batch for batch in batches if batch.num_rows), None)
        if first is None:
            if input_broke_off():
                raise InputBrokeOffError
            return 0, ""
        buffer = ChunkBuffer(
            self.buffer_bytes,
            self.timeout_s,
            self.num_readers,
            self.batch_rows,
            self.batch_rows if self.ordered else None,
        )
        server = SourceServer(local_address_towards(self.location), self.secret, buffer, first.schema)
        source = ""
        try:
            reply = self._announce(control, partition, server)
            source = reply.get("source", "")
            if reply["action"] == "stop":
                return int(reply["rows"]), ""
            if reply["want_sample"]:
                control.call("offer_sample", stream=self.stream, sample=encode_sample(first.slice(0, 1)))
            with heartbeats(control, reply["source"], buffer) as errors:
                rows = _fill(buffer, first, batches, Ranges(reply["skip"]))
                if not buffer.stopped:
                    control.call("source_alive", source=reply["source"], rows=rows)
                    buffer.finish()
                served = buffer.wait_served()
            if errors and not served:
                raise errors[0]
            return rows, "" if served else reply["source"]
        except Exception:
            if source:
                with suppress(flight.FlightError):
                    control.call("source_failed", timeout_s=FAILED_S, attempts=1, source=source)
            raise
        finally:
            server.close()

    def _announce(self, control: ActionClient, partition: int, server: SourceServer) -> Json:
        """Register the source; a second attempt waits until it is known which rows the first one delivered."""
        until, attempt = time.monotonic() + self.timeout_s, uuid.uuid4().hex
        while time.monotonic() < until:
            reply = control.call(
                "source_up",
                attempt=attempt,
                stream=self.stream,
                index=self.index,
                partition=partition,
                location=server.location,
                host=server.host,
                name=self.order[partition] if self.order else partition,
            )
            if reply["action"] != "wait":
                return reply
        raise DeadlineError(
            f"partition {partition}: waited feed_timeout_s={self.timeout_s:g} s for an earlier attempt of this "
            "task to end; it still serves"
        )


def _fill(buffer: ChunkBuffer, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch], skip: Ranges) -> int:
    """Move Spark's rows into the buffer, without those already delivered; return how many rows Spark sent."""
    row = 0
    batch: pa.RecordBatch | None = first
    while batch is not None:
        for start, end in skip.missing(row, row + batch.num_rows):
            if not buffer.offer(start, batch.slice(start - row, end - start)):
                return row
        row += batch.num_rows
        batch = next(rest, None)
    if input_broke_off():
        raise InputBrokeOffError
    return row


@contextmanager
def heartbeats(control: ActionClient, source: str, buffer: ChunkBuffer) -> Iterator[list[Exception]]:
    """Report to the driver once a second that the source is up; stop the buffer when the driver says so.

    Yields:
        A list that receives the error if the driver cannot be reached; the buffer is stopped in that case, too.
    """
    ended = threading.Event()
    errors: list[Exception] = []

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            try:
                reply = control.call("source_alive", source=source, pulls=buffer.pulls)
                buffer.moved(reply["moves"])
                buffer.lose_readers(reply["lost"])
                stop = reply["stop"]
            except flight.FlightError as error:
                errors.append(error)
                stop = True
            if stop:
                buffer.stop()
                return

    thread = threading.Thread(target=beat, name="tfspark-source-heartbeat", daemon=True)
    thread.start()
    try:
        yield errors
    finally:
        ended.set()
        thread.join()
