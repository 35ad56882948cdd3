"""A worker's rows of a pass, stored as Arrow on its node's disk and read from there in later passes.

Runs in the reading thread of the trainer. The file is uncompressed Arrow IPC, so reading it again only maps it into
memory: nothing is copied before a batch is formed, and the operating system may free the mapped memory at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

logger = logging.getLogger("tfspark")


@dataclass(frozen=True)
class Place:
    """Origin of rows: the partition, and the number of the first row within it."""

    partition: int
    first_row: int


class NodeCache:
    """The rows one worker received in one pass of a stream.

    Args:
        path: the file; `drop` removes it, and so does the end of the trainer, with its scratch directory.
        limit_bytes: if the file would exceed this, it is dropped, and the rows are read from Spark again.
    """

    def __init__(self, path: str, limit_bytes: int):
        self._path = path
        self._limit_bytes = limit_bytes
        self._places: list[Place] = []
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._sink: pa.OSFile | None = None
        self._index = -1
        self._complete = False

    def begin(self, index: int) -> None:
        """Start to store the rows of pass `index`; rows stored before are dropped."""
        self.drop()
        self._index = index

    def add(self, place: Place, batch: pa.RecordBatch) -> None:
        """Store rows; no effect if the cache was given up."""
        if self._index < 0:
            return
        try:
            if self._writer is None:
                self._sink = pa.OSFile(self._path, "wb")
                self._writer = pa.ipc.new_file(self._sink, batch.schema)
            self._writer.write_batch(batch)
            self._places.append(place)
            if self._sink is not None and self._sink.tell() > self._limit_bytes:
                self._give_up(f"its rows exceed the limit of {self._limit_bytes} bytes on this node")
        except OSError as error:
            self._give_up(str(error))

    def complete(self) -> bool:
        """Record that the pass is over; return whether all its rows are stored. May be called again."""
        if self._index < 0:
            return False
        try:
            self._close()
        except OSError as error:
            self._give_up(str(error))
        self._complete = self._index >= 0
        return self._complete

    def holds(self, index: int) -> bool:
        """Return whether all rows of pass `index` are stored."""
        return self._complete and self._index == index

    def read(self, rng: np.random.Generator | None) -> Iterator[tuple[Place, pa.RecordBatch]]:
        """Yield the stored rows as views of the mapped file.

        Args:
            rng: shuffles the batches; None: they come in the stored order.
        """
        if not self._places:
            return
        order = np.arange(len(self._places)) if rng is None else rng.permutation(len(self._places))
        with pa.memory_map(self._path) as file, pa.ipc.open_file(file) as reader:
            for number in order.tolist():
                yield self._places[number], reader.get_batch(number)

    def drop(self) -> None:
        """Remove the file if it exists."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._places, self._index, self._complete = [], -1, False

    def _close(self) -> None:
        writer, sink = self._writer, self._sink
        self._writer = self._sink = None
        try:
            if writer is not None:
                writer.close()
        finally:
            if sink is not None:
                sink.close()

    def _give_up(self, why: str) -> None:
        logger.warning("the node cache is not used, later epochs are read from Spark: %s", why)
        self.drop()
