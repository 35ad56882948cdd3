"""The feed task: serves one partition's rows to whoever leases it.

Runs in Spark's Python worker, an ordinary Spark task. It imports neither TensorFlow nor pandas. Spark's
iterator fills a buffer bounded in bytes; readers pull chunks out of it over Arrow Flight, and each pull
acknowledges the chunk before. A chunk that is not acknowledged is kept, and given again to a reader that asks
again. The task ends when every chunk is acknowledged.
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
from typing import Any

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
"""How long a task that fails tries to say so."""
NOT_REACHED = "expected every worker to reach this feed task, one could not"
SHARED_FROM_BYTES = 64 << 10
"""Chunks of so many bytes are handed over in shared memory on the same host; smaller ones are copied more quickly."""
MANY_OBJECTS = 10_000
CHUNK = b"tfspark.chunk"
"""Key of a pulled table's schema metadata under which the chunk's identity travels."""


class SourceServer(ActionServer):
    """Serves one `ChunkBuffer` over Flight."""

    def __init__(self, host: str, secret: Secret, buffer: ChunkBuffer, schema: pa.Schema):
        self._buffer = buffer
        self._schema = schema
        self._shared: dict[int, SharedChunk] = {}
        self._sharing = threading.Lock()
        super().__init__(host, secret)

    def do_get(self, context: Any, ticket: Any) -> flight.RecordBatchStream:
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
        # What the reader had before it has mapped by now.
        self._let_go(request["reader"])
        if table.nbytes >= SHARED_FROM_BYTES and request.get("place") and request["place"] == shared_place():
            with suppress(OSError):  # No memory for it: it goes through the socket.
                chunk["shared"] = self._share(request["reader"], table)
                table = self._schema.empty_table()
        return flight.RecordBatchStream(table.replace_schema_metadata({CHUNK: json.dumps(chunk)}))

    def _share(self, reader: int, table: pa.Table) -> Json:
        shared = SharedChunk(table)
        self._let_go(reader, shared)
        return shared.to_json()

    def _let_go(self, reader: int, instead: SharedChunk | None = None) -> None:
        """Close what a reader had in shared memory; `instead` is what it has from now on."""
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
        """Take the acknowledgement of a reader that leaves."""
        self._buffer.acknowledge(request["reader"], request["sequence"])
        self._let_go(request["reader"])
        return {}


def spare_collections() -> None:
    """Let garbage collections skip what lives in this process by now: modules, for the most part.

    Spark's Python worker collects after each task. To look at 76,000 objects, which it has imported by its second
    task, took 10 to 90 ms, longer than many a partition.
    """
    if len(gc.get_objects()) > MANY_OBJECTS:  # Those that are skipped already are not among them.
        gc.freeze()


class InputBrokeOffError(Exception):
    """What computes the partition has failed in the middle; Spark itself raises why."""


def input_broke_off() -> bool:
    """Tell whether Spark's rows have ended since what computes them failed: another Python worker, a shuffle, a file.

    Spark then closes its end of the socket to this worker, and Arrow takes that for the end of the rows. After the real
    end Spark sends more. The socket is found where Spark's worker reads from it, below this function on the stack;
    where it is not there, as in a test, no input breaks off.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "main" and "infile" in frame.f_locals:
            return not frame.f_locals["infile"].peek(1)
        frame = frame.f_back
    return False


@dataclass(frozen=True)
class FeedTask:
    """What a feed task needs to know; called by Spark with the partition's batches.

    Attributes:
        location: the control plane.
        secret: the cluster's.
        stream: name of the stream.
        index: number of the pass.
        num_readers: readers of the stream.
        batch_rows: rows of one reader's batch.
        ordered: deal rows by position instead of first come, first served.
        buffer_bytes: bound of the buffer between Spark and the readers.
        timeout_s: how long the feed may stand still before that is an error.
        order: the partitions' own numbers, where they are served in another order.
        left_out: partitions of the pass, in ascending order, that this job has no tasks for.
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
        """Serve the partition of this Spark task; yield one row: partition, rows."""
        from pyspark import TaskContext

        spare_collections()
        task = TaskContext.get()
        number = task.partitionId() if task is not None else 0
        for partition in self.left_out:
            number += partition <= number
        yield self.serve(number, batches)

    def serve(self, partition: int, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch:
        """Serve a partition to its end; return one row: partition, rows."""
        with ActionClient(self.location, self.secret) as control:
            try:
                rows, stopped = self._serve(control, partition, batches)
            except InputBrokeOffError:
                return feed_result(partition, 0)  # Spark fails this task, and tries it again.
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
        return feed_result(partition, rows)

    def _serve(
        self, control: ActionClient, partition: int, batches: Iterator[pa.RecordBatch]
    ) -> tuple[int, str]:
        """Return the rows served, and the source if it was stopped before its end."""
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
        """Register the source; a second attempt is held until it is known what the first delivered."""
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


FEED_RESULT = pa.schema([("partition", pa.int64()), ("rows", pa.int64())])
FEED_RESULT_DDL = "partition bigint, rows bigint"


def feed_result(partition: int, rows: int) -> pa.RecordBatch:
    """Return what a feed task gives Spark."""
    return pa.RecordBatch.from_pydict({"partition": [partition], "rows": [rows]}, FEED_RESULT)


def _fill(buffer: ChunkBuffer, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch], skip: Ranges) -> int:
    """Move Spark's rows into the buffer, less those delivered already; return how many Spark gave."""
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
    """Tell the driver once a second that the source lives; stop the buffer when the driver says so.

    Yields:
        A list that takes the error when the driver cannot be reached; the buffer is stopped then, too.
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
