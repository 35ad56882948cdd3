"""Rows one by one, for a program that takes them apart itself. Runs in the trainer; `TFNode.DataFeed` uses it.

The rows come from all passes of a stream, one after another, and from the partitions of an inference. A pass is read as
by `PassReader`, but in small pieces, so that no worker holds rows that another one waits for.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, cast

import pyarrow.flight as flight

from tfspark.errors import DataError
from tfspark.feed.rdd_rows import arrow_batches, elements_of
from tfspark.feed.reader import PassReader
from tfspark.feed.source import CHUNK
from tfspark.feed.stream import StreamSpec
from tfspark.protocol.values import Json
from tfspark.protocol.wire import ActionClient

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext

PIECE_ROWS = 32
"""Approximate rows per pull of a pass: rows that a worker has fetched are not available to others."""
FIRST_PULL_BYTES = 4 << 10
PULL_BYTES = 1 << 20
NUM_COPIED = 64
"""Number of rows that `RowFeed` keeps for padding."""
RESULTS_TIMEOUT_S = 60.0


class RowsOfPass(PassReader):
    """Reads one pass as lists of items; see `PassReader`."""

    def __init__(self, context: NodeContext, description: Json, index: int):
        self._names: Sequence[str] | None = description.get("names")
        spec = replace(
            StreamSpec.from_json(description),
            synchronous=False,
            shuffle_rows=0,
            chunk_bytes=FIRST_PULL_BYTES,
            cache_bytes=0,
        )
        rank = context.node.task_index
        super().__init__(context.control, context.secret, spec, index, rank, context.host, {})

    def _read(self) -> None:
        for chunk, _ in self._chunks():
            rows = [row for batch in chunk.to_batches() for row in elements_of(batch, self._names)]
            self._spec = replace(self._spec, chunk_bytes=max(1, PIECE_ROWS * chunk.nbytes // len(rows)))
            self._rows += len(rows)
            self._put(cast(Any, rows))
        if self._stopped:
            self._settle()
        else:
            self._agree_on_end()


class RowsOfPartition:
    """Reads a partition whose task waits for one result per row."""

    def __init__(self, context: NodeContext, offer: str, location: str):
        self.offer = offer
        self._client = ActionClient(location, context.secret)
        self._ended = False
        self.unanswered = 0

    def __iter__(self) -> Iterator[list[object]]:
        """Yield pieces in order until the partition's end, or until its task is gone."""
        sequence = 0
        while not self._ended:
            ticket = {"reader": 0, "acknowledged": sequence, "max_bytes": PULL_BYTES, "rows_before": 0}
            try:
                table = self._client.get(ticket)
            except flight.FlightError:
                break  # The task has failed or was ended. If Spark starts it again, it offers its rows again.
            chunk = json.loads(table.schema.metadata[CHUNK])
            if chunk["status"] == "chunk":
                sequence = chunk["sequence"]
                rows = [row for batch in table.to_batches() for row in elements_of(batch)]
                yield rows
            elif chunk["status"] != "wait":
                break
        self._ended = True

    @property
    def answered(self) -> bool:
        """Whether all rows were taken and every row has its result."""
        return self._ended and not self.unanswered

    def send(self, results: Sequence[object]) -> None:
        """Send results for the next rows; results that a lost partition's task does not accept are dropped."""
        self.unanswered -= len(results)
        with contextlib.suppress(flight.FlightError):
            for batch in arrow_batches(results, "results"):
                self._client.put({}, batch.schema, iter([batch]), RESULTS_TIMEOUT_S)

    def close(self) -> None:
        """Stop reading."""
        self._ended = True
        self._client.close()


class RowFeed:
    """All rows of one stream that arrive at this node; there is one object per stream and node.

    In synchronous training every worker needs the same number of rows: TensorFlow gives an empty batch to a worker
    without rows, and convolutions reject it. So the feed of a worker with fewer rows is padded at its end with copies
    of its last rows. A process that does not train synchronously gets no padding.

    Args:
        context: the node.
        stream: name of the stream.
    """

    def __init__(self, context: NodeContext, stream: str):
        self._context = context
        self._stream = stream
        self._index = 0
        self._part: RowsOfPass | RowsOfPartition | None = None
        self._pieces: Iterator[list[object]] = iter(())
        self._rows: deque[object] = deque()
        self._owed: deque[RowsOfPartition] = deque()
        self._taking = threading.Lock()
        self._beginning = threading.Lock()
        self._left = False
        self._recent: deque[object] = deque(maxlen=NUM_COPIED)
        self._num_fed = 0
        self._over = False

    @property
    def ended(self) -> bool:
        """Whether there are no more rows and none will follow."""
        return self._over and not self._rows

    def take(self, count: int) -> list[Any]:
        """Return the next `count` rows, waiting for them; fewer at the end of the feed or of a partition."""
        taken: list[Any] = []
        with self._taking:
            while len(taken) < count and not self.ended:
                if self._rows:
                    taken.append(self._take_row())
                elif self._part is None:
                    self._wait_for_part()
                elif self._next_piece_ends_partition() and taken:
                    break
        return taken

    def _take_row(self) -> object:
        row = self._rows.popleft()
        if isinstance(self._part, RowsOfPartition):
            self._part.unanswered += 1
        else:
            self._num_fed += 1
            self._recent.append(row)
        return row

    def answer(self, results: Sequence[object]) -> None:
        """Send results of an inference: one for each row taken, in the same order.

        Raises:
            DataError: there are more results than rows that still need one.
        """
        while len(results):
            while self._owed and self._owed[0].answered:
                self._owed.popleft().close()
            if not self._owed or not self._owed[0].unanswered:
                raise DataError(
                    f"expected one result for each row, batch_results() was given {len(results)} more than "
                    "next_batch() gave rows of an inference; return one for each, and none while training"
                )
            count = min(len(results), self._owed[0].unanswered)
            self._owed[0].send(results[:count])
            results = results[count:]

    def leave(self) -> None:
        """Take no more rows; the other workers get them. May be called from any thread, and twice."""
        with self._beginning:
            if self._left:
                return
            self._over = self._left = True
            self._rows.clear()
            part = self._part
        if isinstance(part, RowsOfPass):
            part.close()
        self._context.control.call(
            "leave",
            stream=self._stream,
            rank=self._context.node.task_index,
            index=self._index,
            rows=part.rows if isinstance(part, RowsOfPass) else 0,
        )
        for partition in self._owed:
            partition.close()

    def _next_piece_ends_partition(self) -> bool:
        """Fetch the next piece of the current part, or record its end; return whether a partition has ended."""
        piece = next(self._pieces, None)
        if piece is not None:
            self._rows.extend(piece)
            return False
        ended, self._part = self._part, None
        if isinstance(ended, RowsOfPass):
            ended.close()
            self._index += 1
        return isinstance(ended, RowsOfPartition)

    def _wait_for_part(self) -> None:
        """Wait for what the driver feeds next. The driver ends the wait; if the driver is lost, this process ends."""
        while self._part is None and not self._over:
            reply = self._context.control.call(
                "next_rows",
                stream=self._stream,
                index=self._index,
                rank=self._context.node.task_index,
                host=self._context.host,
                held=[partition.offer for partition in self._owed],
            )
            with self._beginning:
                if reply["status"] == "end" and not self._over:
                    self._over = True
                    self._fill_up(reply["most_rows"])
                elif not self._over and reply["status"] != "wait":
                    self._begin_part(reply)

    def _fill_up(self, most_rows: int) -> None:
        if self._recent and _trains_synchronously():
            self._rows.extend(islice(cycle(list(self._recent)), max(most_rows - self._num_fed, 0)))

    def _begin_part(self, reply: Json) -> None:
        if reply["status"] == "pass":
            self._part = RowsOfPass(self._context, reply["description"], self._index)
        else:
            self._part = RowsOfPartition(self._context, reply["offer"], reply["location"])
            self._owed.append(self._part)
        self._pieces = iter(cast(Any, self._part))


def _trains_synchronously() -> bool:
    """Return whether TensorFlow in this process reduces over several workers, as set up by a strategy."""
    if "tensorflow" not in sys.modules:
        return False
    from tensorflow.python.eager import context

    return context.context()._collective_ops_server_def is not None
