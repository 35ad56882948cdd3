"""A worker's rows of a pass, stored as Arrow on its node's disk and read from there in later passes.

Runs in the reading thread of the trainer. The file is uncompressed Arrow IPC, so reading it again only maps it into
memory: nothing is copied before a batch is formed, and the operating system may free the mapped memory at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

logger = logging.getLogger("tfspark")

FOLDER = "tfspark-rows"
"""Folder of the files that outlive their trainer, in a directory that Spark removes with the application."""
SUFFIX = ".arrow"
NAME = b"tfspark.rows"
"""Key in a file's schema: the name under which the file was written."""
PLACE = b"tfspark.place"
"""Key in a batch's metadata: partition and number of the first row."""


@dataclass(frozen=True)
class Place:
    """Origin of rows: the partition, and the number of the first row within it."""

    partition: int
    first_row: int


class NodeCache:
    """Files with the rows that one worker received in passes of a stream.

    Args:
        scratch_dir: directory for files that end with the trainer, and for the file that is being written.
        lasting_dir: directory in whose folder `FOLDER` complete files outlive the trainer; empty: there is none.
        limit_bytes: maximum size of this worker's files. Older files are removed to make room. If the rows of one pass
            exceed it, they are not stored.
    """

    def __init__(self, scratch_dir: str, lasting_dir: str, limit_bytes: int):
        self._scratch_dir = scratch_dir
        self._lasting_dir = os.path.join(lasting_dir, FOLDER) if lasting_dir else ""
        self._limit_bytes = limit_bytes
        self._name = ""
        self._is_lasting = False
        self._path = ""
        self._older: list[tuple[Path, int]] = []
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._sink: pa.OSFile | None = None
        self._opened: dict[str, pa.NativeFile] = {}

    def begin(self, key: str, rank: int, lasting: bool = False, stale: Sequence[str] = ()) -> None:
        """Start to store the rows of a pass.

        Args:
            key: identifies the rows; the file is named after it.
            rank: the worker's number, also part of the name.
            lasting: whether later trainings may read the file.
            stale: files that no training will read any more.
        """
        self.drop()
        for path in map(Path, stale):
            if path.parent.name == FOLDER:
                path.unlink(missing_ok=True)
        self._name = f"{key}-{rank}{SUFFIX}"
        self._is_lasting = lasting and bool(self._lasting_dir)
        self._path = os.path.join(self._scratch_dir, self._name)
        self._older = self._files_of(rank) if self._is_lasting else []

    def add(self, place: Place, batch: pa.RecordBatch) -> None:
        """Store rows; no effect if the cache was given up."""
        if not self._name:
            return
        try:
            if self._writer is None or self._sink is None:
                self._sink = pa.OSFile(self._path, "wb")
                schema = batch.schema.with_metadata({**(batch.schema.metadata or {}), NAME: self._name})
                self._writer = pa.ipc.new_file(self._sink, schema)
            where = f"{place.partition} {place.first_row}".encode()
            self._writer.write_batch(batch, custom_metadata={PLACE: where})
            self._make_room(self._sink.tell())
        except OSError as error:
            self._give_up(str(error))

    def complete(self) -> str:
        """Record that the pass is over; return the file with all its rows, empty if there is none.

        May be called again.
        """
        if not self._name or self._path in self._opened:
            return self._path if self._name else ""
        try:
            if self._writer is None:  # A reader without rows: an empty file says that it has all of them.
                Path(self._path).touch()
            self._close()
            if self._is_lasting:
                os.makedirs(self._lasting_dir, mode=0o700, exist_ok=True)
                kept = os.path.join(self._lasting_dir, self._name)
                os.rename(self._path, kept)
                self._path = kept
            self._open(self._path)
        except (OSError, pa.ArrowException) as error:
            self._give_up(str(error))
        return self._path

    def found(self, files: Mapping[int, str]) -> list[int]:
        """Return the numbers of those files that can be read here. They stay open, even if they are removed."""
        return [number for number, path in files.items() if self._is_readable(path)]

    def read(self, path: str, rng: np.random.Generator | None) -> Iterator[tuple[Place, pa.RecordBatch]]:
        """Yield the rows of a complete or found file, as views of the mapped file.

        Args:
            path: the file.
            rng: shuffles the batches; None: they come in the stored order.
        """
        file = self._opened[path]
        if not file.size():
            return
        with pa.ipc.open_file(file) as reader:
            count = reader.num_record_batches
            for number in range(count) if rng is None else rng.permutation(count).tolist():
                batch, metadata = reader.get_batch_with_custom_metadata(number)
                partition, first_row = map(int, metadata[PLACE].split())
                yield Place(partition, first_row), batch

    def drop(self) -> None:
        """Close all files and remove the one being written; those that outlive the trainer stay."""
        with contextlib.suppress(OSError):
            self._close()
        for file in self._opened.values():
            file.close()
        if self._path and not (self._is_lasting and self._path in self._opened):
            Path(self._path).unlink(missing_ok=True)
        self._opened = {}
        self._name = self._path = ""

    def _open(self, path: str) -> None:
        self._opened[path] = pa.memory_map(path) if os.path.getsize(path) else pa.BufferReader(b"")

    def _is_readable(self, path: str) -> bool:
        """Return whether a file of an earlier training is here, and is the one that its name says."""
        try:
            self._open(path)
            file = self._opened[path]
            if file.size():
                with pa.ipc.open_file(file) as reader:
                    if (reader.schema.metadata or {}).get(NAME, b"").decode() != os.path.basename(path):
                        raise OSError("it was not written under this name")
            os.utime(path)
        except (OSError, pa.ArrowException) as error:
            self._opened.pop(path, None)
            logger.debug("cannot read %s: %s", path, error)
            return False
        return True

    def _files_of(self, rank: int) -> list[tuple[Path, int]]:
        """Return this worker's lasting files and their sizes, the one used last at the end."""
        found = []
        with contextlib.suppress(OSError):
            for path in Path(self._lasting_dir).glob(f"*-{rank}{SUFFIX}"):
                status = path.stat()
                found.append((status.st_mtime_ns, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]

    def _make_room(self, size: int) -> None:
        """Remove older files if all together exceed the limit; give up if this one alone does."""
        while self._older and size + sum(of for _, of in self._older) > self._limit_bytes:
            self._older.pop(0)[0].unlink(missing_ok=True)
        if size > self._limit_bytes:
            self._give_up(f"its rows exceed the limit of {self._limit_bytes} bytes on this node")

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
