"""The trainer's end of the feed: pull chunks, make batches, agree on the end of the pass.

One thread per pass pulls, converts and batches rows. The training thread takes batches from a bounded queue. In
synchronous training, all readers of a stream return the same number of batches. So a reader that has no more rows
returns batches of padding: copies of real rows with weight 0.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import BrokenOffError, DataError, DeadlineError, TfsparkError
from tfspark.feed.arrays import row_weights, rows_at_once, to_numpy
from tfspark.feed.batching import (
    Batcher,
    LaneBatcher,
    Rows,
    num_rows,
    pad,
    row_shape,
    take,
    to_sparse,
    with_dense_rows,
)
from tfspark.feed.cache import NodeCache, Place
from tfspark.feed.ledger import Ledger, Used
from tfspark.feed.ranges import Ranges
from tfspark.feed.shared import open_shared, shared_place
from tfspark.feed.source import CHUNK
from tfspark.feed.stream import Start, StreamSpec
from tfspark.feed.structs import is_vector
from tfspark.protocol.activity import Activity
from tfspark.protocol.timing import SOURCE_UNREACHED_S
from tfspark.protocol.values import Json
from tfspark.protocol.wire import ActionClient, Secret

logger = logging.getLogger("tfspark")

WEIGHT = "__weight__"
"""Key of each row's weight in a batch: its own times that of its class, 1 if it has none; `PADDING` for padding."""

PADDING = np.float32(-0.0)
"""Weight of padding rows: -0.0, a zero that differs from the zero of a real row."""

PARTITION, ROW = "__partition__", "__row__"
"""Keys of each row's partition and position, in a stream with a ledger; removed when the batch is formed."""

BLOCKED_S = 0.05
RETRY_S = 0.05
PREFETCH_BATCHES = 4
"""Batches that may wait for the training thread; more would keep rows from workers that have none."""
MAX_LEASES = 4
SEQUENCE_BITS = 32
"""Bits of a chunk's number. The higher bits are the lease's number, so that a late call of an earlier lease does not
match a chunk of this one."""
LONG_VECTOR_BYTES = 8192
"""Minimum dense size of Spark ML vectors that wait in the shuffle window without their zeros."""


@dataclass
class Lease:
    """A source from which this reader pulls.

    Attributes:
        sequence: number of the last chunk that arrived; before the first, a number that no earlier lease of the source
            had.
        acknowledged: whether the source knows that it arrived.
        unreached_since: time of the first failed call, monotonic seconds; 0: the last call did not fail. The lost reply
            may have been a chunk.
    """

    source: str
    partition: int
    name: int
    client: ActionClient
    rows_before: int
    sequence: int
    acknowledged: bool = True
    unreached_since: float = 0.0
    delivered: Ranges = field(default_factory=Ranges)


class PassReader:
    """Read one pass of a stream; iterate over it to get batches.

    Args:
        control: connection to the control plane.
        secret: the cluster's secret, for calls to the sources.
        spec: the stream.
        index: number of the pass.
        rank: number of this reader.
        host: name of this machine, to prefer sources on it.
        filler: rows used as padding if this reader gets no rows of its own in the pass.
        cache: where this reader stores its rows when the driver asks for it.
        start: position within the pass at which to begin.
        activity: records waits for rows.
        steps_at_once: number of batches that must be ready at the same time.
    """

    def __init__(
        self,
        control: ActionClient,
        secret: Secret,
        spec: StreamSpec,
        index: int,
        rank: int,
        host: str,
        filler: Rows,
        cache: NodeCache | None = None,
        start: Start | None = None,
        activity: Activity | None = None,
        steps_at_once: int = 1,
    ):
        start = start or Start()
        # Steps that are taken at once must wait together, and those after them come meanwhile.
        self._max_queued = PREFETCH_BATCHES + steps_at_once - 1
        self._activity = activity or Activity()
        self._control = control
        self._secret = secret
        self._spec = spec
        self._index = index
        self._rank = rank
        self._host = host
        self._filler = filler
        self._cache = cache
        self._keeps = False
        self._given = ""
        self._is_mixed = False
        self._found: list[int] | None = None
        self._rng = np.random.default_rng([spec.seed, index, rank])
        self._batcher = self._new_batcher()
        self._place = shared_place()
        self._leases: list[Lease] = []
        self._num_leases = 0
        self._clients: dict[str, ActionClient] = {}
        self._last_partition = -1
        self._first_step = start.steps
        self._rows_before = self._rows = start.rows
        self._formed_before = self._formed = 0 if start.replays else start.steps
        self._ledger = Ledger()
        self._queue: deque[Rows] = deque()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self._broken_off = ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=self._run, name=f"tfspark-reader-{spec.name}-{index}", daemon=True
        )
        self._thread.start()

    def _new_batcher(self) -> Batcher:
        spec = self._spec
        if not (spec.ordered and spec.shuffle_rows):
            return Batcher(spec.batch_size, spec.shuffle_rows, self._rng)
        seed = spec.seed, self._index
        return LaneBatcher(spec.batch_size, spec.num_readers, self._rank, spec.shuffle_rows, seed)

    # --- methods for the training thread ----------------------------------------------------------------

    def has_step(self, step: int) -> bool:
        """Wait until it is known whether there is a batch `step`, counted from this reader's start; return whether."""
        return self.steps_from(step, 1) == 1

    def steps_from(self, step: int, most: int) -> int:
        """Wait until `most` batches from number `step` on are there; return how many are, fewer at the end."""
        wanted = self._first_step + step + most
        with self._activity.waiting(), self._changed:
            self._changed.wait_for(lambda: self._formed >= wanted or self._ended)
            self._raise_error()
            steps = min(most, max(self._formed - self._first_step - step, 0))
        if not steps:
            self.check_broken_off()
        return steps

    @property
    def is_broken_off(self) -> bool:
        """Whether this reader did not get all rows because the driver feeds no more."""
        return bool(self._broken_off)

    def check_broken_off(self) -> None:
        """Raise if the driver has broken off this pass. In a pass in step, all readers do so at the same step.

        Raises:
            BrokenOffError: it has.
        """
        if self._broken_off:
            raise broken_off(self._spec.name, self._broken_off)

    def __iter__(self) -> Iterator[Rows]:
        """Yield batches until the pass ends."""
        while True:
            with self._activity.waiting(), self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._ended)
                if not self._queue:
                    self._raise_error()
                    return
                batch = self._queue.popleft()
                self._changed.notify_all()
            yield batch

    @property
    def steps(self) -> int:
        """Number of batches formed so far, including those before the start and those still in the queue."""
        return self._formed

    @property
    def first_step(self) -> int:
        """Number of the first batch this reader gives out."""
        return self._first_step

    @property
    def rows(self) -> int:
        """Number of rows received so far, without padding."""
        return self._rows

    def used(self, steps: int) -> Used:
        """Return the rows in this reader's batches up to step `steps` of the pass."""
        return self._ledger.up_to(steps)

    @property
    def is_behind_the_end(self) -> bool:
        """Whether the stream was closed before this pass started."""
        return self._ended and self._error is None and not self._is_open

    def close(self) -> None:
        """Stop reading; rows that are left are not read."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # --- the reading thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self._error = error
        finally:
            for client in self._clients.values():
                client.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read(self) -> None:
        for place, batch in self._small_pieces():
            rows = self._converted(place, batch)
            self._rows += num_rows(rows)
            self._filler = take(rows, [0])
            self._batcher.add(self._to_keep(self._with_origin(rows, place), batch.schema))
            for full in self._batcher.full_batches():
                self._put(self._noted(full))
        if not self._is_open:
            return  # The stream was closed before this pass.
        for last in self._batcher.rest():
            rows = self._noted(last)
            self._put(self._padded(rows) if self._spec.synchronous else rows)
        self._agree_on_end()

    def _to_keep(self, rows: Rows, schema: pa.Schema) -> Rows:
        """Return rows in the form kept in the shuffle window: long vectors without their zeros."""
        if not self._spec.shuffle_rows:
            return rows
        long = {
            name
            for name, values in rows.items()
            if name in schema.names
            and is_vector(schema.field(name).type)
            and values[0].nbytes >= LONG_VECTOR_BYTES
        }
        return {name: to_sparse(values) if name in long else values for name, values in rows.items()}

    def _with_origin(self, rows: Rows, place: Place) -> Rows:
        if not self._spec.has_ledger:
            return rows
        count = num_rows(rows)
        first = place.first_row
        return {**rows, PARTITION: np.full(count, place.partition), ROW: np.arange(first, first + count)}

    def _noted(self, batch: Rows) -> Rows:
        """Record which rows the next step uses; return the batch in the form that the step takes."""
        batch = with_dense_rows(batch)
        if not self._spec.has_ledger:
            return batch
        self._ledger.note(self._formed, batch.pop(PARTITION), batch.pop(ROW))
        return batch

    def _padded(self, rows: Rows) -> Rows:
        filler = {**rows, WEIGHT: np.full_like(rows[WEIGHT], PADDING)}
        return pad(rows, self._spec.batch_size, filler)

    def _agree_on_end(self) -> None:
        """Return batches of weight 0 until all readers have returned the same number of batches."""
        weightless = {**self._filler, WEIGHT: np.full(1, PADDING, np.float32)}
        waited = _Deadline(self._spec.timeout_s, "the other workers to end the epoch")
        while not self._stopped:
            reply = self._agree(self._formed, ended=True)
            self._broken_off = reply.get("broken_off", "")
            if self._spec.synchronous and self._formed < reply["steps"]:
                while self._formed < reply["steps"] and not self._stopped:
                    self._put(pad(weightless, self._spec.batch_size, weightless))
                waited.restart()
            elif reply["final"] or reply["closed"] or not self._spec.synchronous:
                return
            else:
                waited.check()

    def _agree(self, steps: int, ended: bool) -> Json:
        spec = self._spec
        return self._control.call(
            "agree",
            stream=spec.name,
            index=self._index,
            rank=self._rank,
            steps=steps,
            ended=ended,
            rows=self._rows,
            stored=self._stored() if ended else "",
        )

    def _stored(self) -> str:
        """Return the file with all rows of this pass; empty if they are not in the node cache."""
        return self._cache.complete() if self._cache is not None and self._keeps else ""

    def _put(self, batch: Rows) -> None:
        """Queue a batch. If the queue is full, first settle, so that nobody waits for what this reader holds."""
        with self._changed:
            if self._formed >= self._first_step:
                self._queue.append(batch)
            self._formed += 1
            self._changed.notify_all()
            if self._changed.wait_for(self._has_space, BLOCKED_S):
                return
        self._settle()
        with self._changed:
            self._changed.wait_for(self._has_space)

    def _has_space(self) -> bool:
        return self._stopped or len(self._queue) < self._max_queued

    def _settle(self) -> None:
        """Acknowledge all chunks, release the leases, and announce the steps that the received rows make.

        If a source is lost meanwhile, it is replaced only after each of its readers has said what it received.
        """
        for lease in list(self._leases):
            self._release(lease, "left" if self._acknowledge(lease) else "gone")
        if self._spec.synchronous:
            received = (self._rows - self._rows_before) // self._spec.batch_size
            self._agree(max(self._formed, self._formed_before + received), ended=False)

    def _acknowledge(self, lease: Lease) -> bool:
        """Acknowledge the last chunk; return whether the source is still up.

        If a later chunk was sent and its reply was lost, other readers get it: this reader may be blocked until they
        have rows.
        """
        while not lease.acknowledged or lease.unreached_since:
            try:
                lease.client.call("acknowledge", reader=self._rank, sequence=lease.sequence)
                lease.acknowledged, lease.unreached_since = True, 0.0
            except flight.FlightError:
                if self._stopped or not self._may_come_back(lease):
                    return False
        return True

    def _small_pieces(self) -> Iterator[tuple[Place, pa.RecordBatch]]:
        """Yield the rows in pieces that are not larger than a chunk after conversion."""
        for place, batch in self._pieces():
            size = rows_at_once(batch, self._spec.columns, self._spec.chunk_bytes)
            for start in range(0, batch.num_rows, size):
                yield Place(place.partition, place.first_row + start), batch.slice(start, size)

    def _pieces(self) -> Iterator[tuple[Place, pa.RecordBatch]]:
        """Yield this reader's rows of the pass, from Spark or from a file of the node cache."""
        for chunk, lease in self._chunks():
            first_rows = [first for first, _ in json.loads(chunk.schema.metadata[CHUNK])["ranges"]]
            for batch, first_row in zip(chunk.to_batches(), first_rows, strict=False):
                place = Place(lease.name, first_row)
                if self._cache is not None and self._keeps:
                    self._cache.add(place, batch)
                yield place, batch
        if self._cache is not None and self._given:
            # The first epoch of a later training has the order that Spark would give: that of the storing one.
            is_mixed = self._is_mixed and self._spec.shuffle_rows and not self._spec.ordered
            yield from self._cache.read(self._given, self._rng if is_mixed else None)

    def _converted(self, place: Place, batch: pa.RecordBatch) -> Rows:
        try:
            rows = to_numpy(batch, self._spec.columns)
            rows[WEIGHT] = row_weights(rows, self._spec.columns, batch.num_rows)
        except DataError as error:
            raise DataError(_located(str(error), place.partition, place.first_row)) from None
        self._check_shapes(rows, place)
        return rows

    def _check_shapes(self, rows: Rows, place: Place) -> None:
        for name, values in rows.items():
            expected = row_shape(self._filler[name])
            if row_shape(values) != expected:
                raise DataError(
                    f"partition {place.partition}, row {place.first_row}: column {name!r} has values of shape "
                    f"{list(row_shape(values))}, those before it {list(expected)}; expected arrays of one shape; "
                    "declare the column ragged if rows differ in length, or pad or filter them before feeding"
                )

    # --- leases ------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[tuple[pa.Table, Lease]]:
        """Yield chunks until the pass has no more rows for this reader."""
        idle = _Deadline(self._spec.timeout_s, f"rows of epoch {self._index + 1} of {self._spec.name!r}")
        while not self._stopped:
            if not self._leases and not self._lease():
                if self._over:
                    return
                if self._spec.open_ended and not self._is_open:
                    idle.restart()  # The stream is quiet, but the driver is up; or the call failed.
                idle.check()
                continue
            lease = self._leases[0]
            status, chunk = self._pull(lease)
            if status == "chunk":
                idle.restart()
                yield chunk, lease
            elif status == "wait":
                self._try_another()
                idle.check()
            else:
                self._release(lease, status)

    @property
    def _over(self) -> bool:
        return self._end_status in ("end", "closed", "stored")

    _end_status = ""
    _is_open = False

    def _lease(self) -> bool:
        reply = self._control.call(
            "lease",
            stream=self._spec.name,
            index=self._index,
            rank=self._rank,
            host=self._host,
            held=[lease.source for lease in self._leases],
            after=self._last_partition,
            found=self._found,
        )
        self._end_status = reply["status"]
        self._is_open = self._index < reply.get("passes", self._index + 1)
        self._broken_off = reply.get("broken_off", "")
        if self._broken_off:
            return False
        if reply["status"] == "closed" and self._index >= reply["passes"] and not self._spec.open_ended:
            raise TfsparkError(
                f"epoch {self._index + 1} of {self._spec.name!r} was asked for, but the driver fed "
                f"{reply['passes']}; pass num_epochs={self._index + 1} to train(), or train fewer epochs"
            )
        self._note_cache(reply)
        if reply["status"] != "source":
            return False
        client = self._client(reply["location"])
        self._num_leases += 1
        first = self._num_leases << SEQUENCE_BITS
        self._leases.append(
            Lease(reply["source"], reply["partition"], reply["name"], client, reply["rows_before"], first)
        )
        return True

    def _note_cache(self, reply: Json) -> None:
        """Take from a reply whether to store this pass's rows, or which stored rows to look for or to read."""
        self._given, self._is_mixed = reply.get("given", ""), reply.get("mixed", False)
        if reply.get("keep") and self._cache is not None and not self._keeps:
            self._keeps = True
            self._cache.begin(rank=self._rank, **reply["keep"])
        offer = {int(number): path for number, path in reply.get("offer", {}).items()}
        self._found = (self._cache.found(offer) if self._cache is not None else []) if offer else None

    def _client(self, location: str) -> ActionClient:
        if location not in self._clients:
            self._clients[location] = ActionClient(location, self._secret, unreached_s=0.0)
        return self._clients[location]

    def _pull(self, lease: Lease) -> tuple[str, pa.Table]:
        ticket = {
            "reader": self._rank,
            "acknowledged": lease.sequence,
            "max_bytes": self._spec.chunk_bytes,
            "rows_before": lease.rows_before,
            "place": self._place,
        }
        try:
            table = lease.client.get(ticket)
        except flight.FlightError:
            return ("wait" if self._may_come_back(lease) else "gone"), None
        lease.unreached_since = 0.0
        chunk = json.loads(table.schema.metadata[CHUNK])
        if "shared" in chunk:
            try:
                table = open_shared(chunk["shared"]).replace_schema_metadata(table.schema.metadata)
            except OSError as error:
                # The chunk is not acknowledged, so the next pull gets it again, through the socket.
                logger.info("chunks come through sockets, shared memory cannot be opened: %s", error)
                self._place = ""
                return "wait", None
        lease.acknowledged = chunk["status"] != "chunk"
        lease.sequence = chunk["sequence"]
        lease.delivered.add_all(chunk["ranges"])
        return chunk["status"], table

    def _may_come_back(self, lease: Lease) -> bool:
        """Return whether to try an unreachable source again: it is up, and only the connection to it was lost."""
        now = time.monotonic()
        lease.unreached_since = lease.unreached_since or now
        if now - lease.unreached_since > SOURCE_UNREACHED_S:
            return False
        if not self._control.call("source_there", source=lease.source)["there"]:
            return False
        time.sleep(RETRY_S)
        return True

    def _try_another(self) -> None:
        """Lease one more source, or turn to the next leased one, because the current source has no row ready."""
        if not self._spec.ordered and len(self._leases) < MAX_LEASES:
            self._lease()
        self._leases.append(self._leases.pop(0))

    def _release(self, lease: Lease, status: str) -> None:
        self._leases.remove(lease)
        self._clients.pop(lease.client.location).close()
        if status == "end":
            self._last_partition = lease.partition
        self._control.call(
            "release",
            source=lease.source,
            rank=self._rank,
            delivered=lease.delivered.to_json(),
            gone=status == "gone",
        )


def broken_off(stream: str, why: str) -> BrokenOffError:
    """Return the error of a reader of a stream that the driver has broken off."""
    return BrokenOffError(
        f"expected all rows of {stream!r}, the driver's call was broken off by {why}; run another cluster, with "
        "resume= to go on"
    )


class _Deadline:
    """A deadline with a name for its error; progress restarts it."""

    def __init__(self, timeout_s: float, what: str):
        self._timeout_s = timeout_s
        self._what = what
        self.restart()

    def restart(self) -> None:
        self._until = time.monotonic() + self._timeout_s

    def check(self) -> None:
        if time.monotonic() > self._until:
            raise DeadlineError(
                f"waited feed_timeout_s={self._timeout_s:g} s for {self._what} and none came; see whether the "
                "Spark job that feeds is running (it needs a free slot), or raise feed_timeout_s"
            )


def _located(message: str, partition: int, first_row: int) -> str:
    """Change ``row 3: ...`` of a batch to ``partition 2, row 503: ...``."""
    head, separator, rest = message.partition(":")
    number = head.removeprefix("row ")
    if separator and number.isdigit():
        return f"partition {partition}, row {first_row + int(number)}:{rest}"
    return f"partition {partition}: {message}"
