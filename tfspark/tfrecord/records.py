"""Read a stream of TFRecords in blocks of bounded size.

Runs in the Python worker of a task (and on the driver for schema inference). It yields `Block`s for the
decoder; only this module verifies checksums of data."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from tfspark.tfrecord.damage import Damage
from tfspark.tfrecord.framing import (
    HEADER,
    Ints,
    Scan,
    Stop,
    data_checksums,
    find_record,
    read_header,
    scan,
    stored_checksums,
)

CHUNK_BYTES = 4 << 20  # fastest of 0.25 to 16 MB: a chunk and its batch stay in cache
BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Block:
    """Complete, verified records within one buffer.

    Attributes:
        data: the buffer; it also contains the framing between the records.
        starts: offset of each record's data within the buffer.
        lengths: number of data bytes of each record.
        offset: offset of the buffer within the (uncompressed) file.
    """

    data: bytes
    starts: Ints
    lengths: Ints
    offset: int

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.starts)

    def record(self, row: int) -> bytes:
        """Return the data of one record."""
        start = int(self.starts[row])
        return self.data[start : start + int(self.lengths[row])]

    def record_offset(self, row: int) -> int:
        """Return the offset of one record in the file, including its header."""
        return self.offset + int(self.starts[row]) - HEADER

    def select(self, rows: Ints | slice) -> Block:
        """Return a block of some of the records, without a copy of the data."""
        return Block(self.data, self.starts[rows], self.lengths[rows], self.offset)


class Window:
    """A window that slides over a stream; `data` begins at `offset` of the stream."""

    def __init__(self, stream: IO[bytes], offset: int, end: int | None, damage: Damage):
        """Start at `offset` of a stream, with nothing read yet; after `end` read only what the last record needs."""
        self.end = end
        self.stream = stream
        self.data = b""
        self.offset = offset
        self.at_end = False
        self._damage = damage

    def slide(self, num_bytes: int, needed: int = HEADER, more: int | None = None) -> None:
        """Drop bytes from the front, then read a chunk (or `more` bytes), until at least `needed` bytes are there."""
        parts = [self.data[num_bytes:]]
        self.offset += num_bytes
        wanted = self._chunk(len(parts[0])) if more is None else more
        missing = max(wanted, needed - len(parts[0]))
        while missing > 0 and not self.at_end:
            part = self._read(min(missing, CHUNK_BYTES))
            self.at_end = not part
            parts.append(part)
            missing -= len(part)
        self.data = b"".join(parts)

    def _chunk(self, num_kept: int) -> int:
        """Return the number of bytes to read: up to the end of the split; after it only what a record needs."""
        if self.end is None:
            return CHUNK_BYTES
        return max(0, min(CHUNK_BYTES, self.end - self.offset - num_kept))

    def _read(self, num_bytes: int) -> bytes:
        try:
            return self.stream.read(num_bytes)
        except (OSError, EOFError, zlib.error) as error:
            place = self.offset + len(self.data)
            self._damage.hit(place, f"expected a readable stream; reading failed after this byte ({error})")
            return b""


def read_blocks(stream: IO[bytes], damage: Damage, start: int = 0, end: int | None = None) -> Iterator[Block]:
    """Yield the records that begin in ``[start, end)``, in blocks.

    Args:
        stream: a binary stream, positioned at `start`.
        damage: how to handle a damaged record.
        start: offset of the stream within the file; if not 0, search for the first record boundary.
        end: offset at which to stop; None for the end of the file.

    Raises:
        DataError: in mode ``FAILFAST``, a record is damaged or truncated.
    """
    window = Window(stream, start, end, damage)
    window.slide(0)
    if start:
        _resync(window, end)
    while window.data:
        limit = None if end is None else max(0, end - window.offset)
        found = scan(window.data, limit)
        for first in range(0, len(found.starts), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            block = Block(window.data, found.starts[rows], found.lengths[rows], window.offset)
            yield _verified(block, damage)
        if not _advance(window, found, end, damage):
            return


def _advance(window: Window, found: Scan, end: int | None, damage: Damage) -> bool:
    """Move the window past the found records; return False if there is no more to read."""
    if found.stop is Stop.LIMIT:
        window.slide(found.next, HEADER, more=0)
        _check_successor(window, damage)
        return False
    if found.stop is Stop.DAMAGED:
        damage.hit(window.offset + found.next, BAD_HEADER)
        window.slide(found.next + 1)
        _resync(window, end)
        return True
    window.slide(found.next, found.needed)
    if window.data and window.at_end and len(window.data) < found.needed:
        damage.hit(window.offset, truncated(found.needed, len(window.data)))
        return False
    return True


BAD_HEADER = (
    "expected a record header whose length matches its crc32c, but it does not match; the file is damaged "
    "or is not a TFRecord file (compressed? set option compression): write or copy it again"
)


def truncated(needed: int, came: int) -> str:
    """Return the reason for an incomplete last record."""
    expected = f"expected a record of at least {needed} bytes, got {came} before the end of the file"
    return f"{expected}; it is truncated: write or copy it again"


def _check_successor(window: Window, damage: Damage) -> None:
    """Reject a bad header right after this split: the next split searches for a record, and would skip it silently."""
    raw = window.data[:HEADER]
    if raw and (len(raw) < HEADER or read_header(raw) is None) and not damage.drops:
        damage.hit(window.offset, BAD_HEADER)


def _resync(window: Window, end: int | None) -> None:
    """Move the window to the next record boundary, or to the end if no record begins before `end`."""
    while window.data:
        found = find_record(window.data)
        if found is not None:
            window.slide(found, more=0)
            return
        exhausted = window.at_end or (end is not None and window.offset >= end)
        window.slide(len(window.data) if exhausted else max(0, len(window.data) - HEADER + 1))
        if exhausted:
            window.data = b""


def _verified(block: Block, damage: Damage) -> Block:
    """Return the block without the records whose data do not match their checksum."""
    expected = stored_checksums(block.data, block.starts, block.lengths)
    came = data_checksums(block.data, block.starts, block.lengths)
    bad = np.flatnonzero(expected != came)
    if not len(bad):
        return block
    row = int(bad[0])
    reason = f"expected data with crc32c {expected[row]:#010x} (masked), got {came[row]:#010x}"
    damage.hit(block.record_offset(row), f"{reason}; the record is damaged: write the file again", len(bad))
    return block.select(np.flatnonzero(expected == came))
