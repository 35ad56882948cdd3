"""The feed task: serves one partition's rows to whoever leases it.

Runs in Spark's Python worker, an ordinary Spark task. It imports neither TensorFlow nor pandas. Spark's
iterator fills a buffer bounded in bytes; readers pull chunks out of it over Arrow Flight, and each pull
acknowledges the chunk before. A chunk that is not acknowledged is kept, and given again to a reader that asks
again. The task ends when every chunk is acknowledged.
"""

from __future__ import annotations

import base64
import gc
import json
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import DeadlineError, TfsparkError
from tfspark.feed.ranges import Ranges
from tfspark.feed.shared import SharedChunk, shared_place
from tfspark.protocol.wire import ActionClient, ActionServer, Json, Secret, local_address_towards

HEARTBEAT_S = 1.0
PULL_WAIT_S = 0.2
FAILED_S = 5.0
"""How long a task that fails tries to say so."""
NOT_REACHED = "expected every worker to reach this feed task, one could not"
SHARED_FROM_BYTES = 64 << 10
"""Chunks of so many bytes are handed over in shared memory on the same host; smaller ones are copied more quickly."""
MANY_OBJECTS = 10_000
CHUNK = b"tfspark.chunk"
"""Key of a pulled table's schema metadata under which the chunk's identity travels."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of the partition, for one queue."""

    first_row: int
    batch: pa.RecordBatch


def stripes(
    first_row: int, num_rows: int, stripe_rows: int, num_readers: int
) -> Iterator[tuple[int, int, int]]:
    """Divide rows among readers by their position alone: stripe ``s`` belongs to reader ``s % n``.

    Args:
        first_row: position of the first row in the whole pass.
        num_rows: how many rows follow.
        stripe_rows: rows per stripe, a worker's batch.
        num_readers: n.

    Yields:
        (reader, start, length), start counted from `first_row`.
    """
    start = 0
    while start < num_rows:
        stripe, within = divmod(first_row + start, stripe_rows)
        length = min(stripe_rows - within, num_rows - start)
        yield stripe % num_readers, start, length
        start += length


class ChunkBuffer:
    """A partition's rows between Spark's iterator and the readers; bounded in bytes; thread-safe.

    Args:
        limit_bytes: `offer` blocks while more than this is waiting to be pulled.
        timeout_s: how long `offer` and `wait_served` bear without any pull, here or elsewhere (see `moved`).
        num_readers: readers of the stream.
        batch_rows: rows of one reader's batch; the least that is worth a pull.
        stripe_rows: if set, rows are dealt to readers by position (see `stripes`) once the first pull has
            told how many rows the partitions before this one have; None: first come.
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
        self._lost: set[int] = set()
        self._finished = False
        self._stopped = False
        self._changed = threading.Condition()

    def offer(self, first_row: int, batch: pa.RecordBatch) -> bool:
        """Put rows in, waiting for space. Returns False when the buffer was stopped."""
        with self._changed:
            self._wait_while_moving(lambda: self._bytes < self._limit or self._stopped)
            self._undealt.append(Piece(first_row, batch))
            self._bytes += batch.nbytes
            self._deal()
            self._rows += batch.num_rows
            self._changed.notify_all()
            return not self._stopped

    def finish(self) -> None:
        """Say that the partition has no more rows."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Give up: the stream was closed."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def moved(self, moves: int) -> None:
        """Note how far the readers are with the stream: they may be busy with other sources, or with what they have."""
        with self._changed:
            if moves != self._moves:
                self._moves = moves
                self._changed.notify_all()

    def lose_readers(self, readers: Iterable[int]) -> None:
        """Give what readers that died have not acknowledged to others; for rows that are not dealt by position."""
        with self._changed:
            self._lost.update(readers)
            for reader in self._lost.intersection(self._unacknowledged):
                self._take_back(reader)

    @property
    def pulls(self) -> int:
        """How often it was pulled from."""
        return self._pulls

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def pull(
        self, reader: int, acknowledged: int, max_bytes: int, wait_s: float, rows_before: int = 0
    ) -> tuple[str, list[Piece], int]:
        """Take the next chunk for a reader, acknowledging what it had before.

        Args:
            reader: who pulls.
            acknowledged: sequence number of the chunk it had before; 0: none.
            max_bytes: size of the chunk, about.
            wait_s: how long to wait for rows.
            rows_before: rows of the partitions before this one; the same in every call.

        Returns:
            (status, pieces, sequence number to acknowledge): ``chunk``; ``wait`` when nothing came within
            `wait_s`; ``end`` when the partition is served and acknowledged; ``stopped``.
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
                # The answer to an earlier pull was lost on its way, perhaps while the reader was paused.
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
        """Hand out the next chunk; it is kept until it is acknowledged."""
        pieces = self._take(queue, self._grant_rows(queue, max_bytes))
        self._unacknowledged[reader] = sequence, pieces
        self._changed.notify_all()
        return "chunk", pieces, sequence

    def acknowledge(self, reader: int, sequence: int) -> None:
        """Note that a chunk has arrived; its reader leaves, so the next, whose answer was lost, goes to others."""
        with self._changed:
            self._acknowledge(reader, sequence)
            if reader in self._unacknowledged and self._unacknowledged[reader][0] == sequence + 1:
                self._take_back(reader)

    def _take_back(self, reader: int) -> None:
        """Put what a reader was given and has not acknowledged back to the front."""
        _, pieces = self._unacknowledged.pop(reader)
        self._queues[0 if self._stripe_rows is None else reader].extendleft(reversed(pieces))
        self._bytes += sum(piece.batch.nbytes for piece in pieces)
        self._rows += sum(piece.batch.num_rows for piece in pieces)
        self._changed.notify_all()

    def wait_served(self) -> bool:
        """Wait until every row is acknowledged or the buffer was stopped; tell whether the former."""
        with self._changed:
            self._wait_while_moving(self._over)
            return self._served()

    def _wait_while_moving(self, reached: Callable[[], bool]) -> None:
        """Wait for a condition as long as readers get on; the deadline counts from the last sign of that."""
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
        """With dealt rows a reader is done with its own; otherwise it may still get what another lost."""
        if self._stripe_rows is None:
            return self._over()
        own_end = self._finished and not self._queues[reader] and reader not in self._unacknowledged
        return self._stopped or own_end

    def _acknowledge(self, reader: int, sequence: int) -> None:
        if reader in self._unacknowledged and self._unacknowledged[reader][0] == sequence:
            del self._unacknowledged[reader]
            self._changed.notify_all()

    def _deal(self) -> None:
        """Move what was offered into the readers' queues, as soon as it is known whose it is."""
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

    def _grant_rows(self, queue: deque[Piece], max_bytes: int) -> int:
        """Return how many rows one pull may take: a chunk of bytes, less towards the partition's end.

        Once Spark has delivered everything, a pull takes at most the (n + 1)-th part of what is left, so
        that the readers end together (guided self-scheduling: Polychronopoulos and Kuck, 1987), but a batch
        if that fits. A row that is larger than a chunk travels alone.
        """
        head = queue[0].batch
        by_bytes = max(1, int(max_bytes * head.num_rows / max(head.nbytes, 1)))
        if not self._finished or self._stripe_rows is not None:
            return by_bytes
        fair = self._rows // (self._num_readers + 1)
        return min(by_bytes, max(fair, self._batch_rows))

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


def encode_sample(batch: pa.RecordBatch) -> str:
    """Encode one row with its schema for a JSON message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return base64.b64encode(sink.getvalue()).decode()


SAMPLE_DDL = "sample string"


def first_row(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the first row of a partition, encoded; for Spark's `mapInArrow`."""
    for batch in batches:
        if batch.num_rows:
            yield pa.RecordBatch.from_pydict({"sample": [encode_sample(batch.slice(0, 1))]})
            return


def decode_sample(text: str) -> pa.RecordBatch:
    """Decode what `encode_sample` gave."""
    table = pa.ipc.open_stream(base64.b64decode(text)).read_all()
    return table.combine_chunks().to_batches()[0]


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
