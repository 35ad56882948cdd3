"""TFRecord framing: where records begin and end in a buffer, and whether they are complete.

One record is (https://www.tensorflow.org/tutorials/load_data/tfrecord, tsl/lib/io/record_writer.h)::

    uint64 length | uint32 masked crc32c of the length | data | uint32 masked crc32c of the data

all little-endian, with ``masked = rotate_right(crc, 15) + 0xa282ead8``. Pure: bytes in, arrays out. `records`
calls it on streams, `encode` on whole batches.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

HEADER = 12
FOOTER = 4
OVERHEAD = HEADER + FOOTER

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_MASK_DELTA = 0xA282EAD8
_crc32c = google_crc32c.value


class Stop(Enum):
    """Why a scan ended."""

    LIMIT = "the next record begins at or after the limit"
    SHORT = "the next record is not complete in the buffer"
    DAMAGED = "the next header does not match its checksum"


@dataclass(frozen=True)
class Scan:
    """The complete records at the front of a buffer.

    Attributes:
        starts: offset of each record's data within the buffer.
        lengths: number of data bytes of each record.
        next: offset of the first byte after the last complete record.
        stop: why the scan ended there.
        needed: total bytes of the record at `next`, as far as known.
    """

    starts: Ints
    lengths: Ints
    next: int
    stop: Stop
    needed: int


def mask(crc: int) -> int:
    """Return a crc32c in the masked form that TFRecord stores."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """Return the masked crc32c of some bytes."""
    return mask(_crc32c(data))


def header(length: int) -> bytes:
    """Return the 12 bytes that precede a record of `length` data bytes."""
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc(packed))


def frame(data: bytes) -> bytes:
    """Return one record in the form of a file."""
    return header(len(data)) + data + struct.pack("<I", masked_crc(data))


def read_header(raw: bytes) -> int | None:
    """Return the length in a 12-byte header; None if its checksum does not match."""
    length, crc = struct.unpack("<QI", raw)
    return int(length) if masked_crc(raw[:8]) == crc else None


def scan(buffer: bytes, limit: int | None = None) -> Scan:
    """Find the complete records at the front of a buffer; check only headers.

    Args:
        buffer: bytes that begin at a record boundary.
        limit: records that begin at or after this offset are skipped.
    """
    end, limit = len(buffer), len(buffer) + 1 if limit is None else limit
    known: dict[bytes, int | None] = {}
    runs: list[tuple[int, int, int]] = []
    at, stop, needed = 0, Stop.LIMIT, HEADER
    while at < limit:
        raw, needed, stop = buffer[at : at + HEADER], HEADER, Stop.SHORT
        if len(raw) < HEADER:
            break
        if raw not in known:
            known[raw] = read_header(raw)
        length = known[raw]
        if length is None:
            stop = Stop.DAMAGED
            break
        needed = length + OVERHEAD
        if at + needed > end:
            break
        count = _run(buffer, at, needed, min(limit, end))
        runs.append((at + HEADER, length, count))
        at, stop, needed = at + count * needed, Stop.LIMIT, HEADER
    starts, lengths = _unroll(runs)
    return Scan(starts, lengths, at, stop, needed)


def _run(buffer: bytes, at: int, step: int, limit: int) -> int:
    """Return the number of complete records from `at` on, before `limit`, with the same header as the one at `at`."""
    raw = buffer[at : at + HEADER]
    ahead = at + 3 * step
    if raw != buffer[at + step : at + step + HEADER] or raw != buffer[ahead : ahead + HEADER]:
        return 1
    most = min((len(buffer) - at) // step, -((at - limit) // step))
    view = np.frombuffer(buffer, np.uint8, most * step, at).reshape(most, step)[:, :HEADER]
    differs = (view != view[0]).any(axis=1)
    return int(differs.argmax()) if differs.any() else most


def _unroll(runs: list[tuple[int, int, int]]) -> tuple[Ints, Ints]:
    """Convert runs of (start, length, count) to one start and one length per record."""
    start, length, count = np.array(runs, np.int64).reshape(-1, 3).T
    lengths = np.repeat(length, count)
    before = np.repeat(np.cumsum(count) - count, count)
    starts = np.repeat(start, count) + (np.arange(len(lengths)) - before) * (lengths + OVERHEAD)
    return starts, lengths


def find_record(buffer: bytes, at: int = 0) -> int | None:
    """Return the first offset from `at` on where a record begins, by its checksums; None if there is none.

    The header's crc32c must match, and also that of the data if the record is complete in the buffer."""
    view = np.frombuffer(buffer, np.uint8)
    high = view[at + 5 : len(view) - HEADER + 8]
    if len(high) < 3:
        return None
    candidates = np.flatnonzero((high[:-2] == 0) & (high[1:-1] == 0) & (high[2:] == 0)) + at
    for candidate in candidates.tolist():
        length = read_header(buffer[candidate : candidate + HEADER])
        if length is not None and _data_fits(buffer, candidate + HEADER, length):
            return int(candidate)
    return None


def _data_fits(buffer: bytes, start: int, length: int) -> bool:
    """Whether the data of a record match their checksum; True if the buffer does not contain all of them."""
    end = start + length
    if end + FOOTER > len(buffer):
        return True
    return masked_crc(buffer[start:end]) == int.from_bytes(buffer[end : end + FOOTER], "little")


def data_checksums(buffer: Any, starts: Ints, lengths: Ints) -> NDArray[np.uint32]:
    """Compute the masked crc32c of every record's data.

    Args:
        buffer: bytes, or a read-only uint8 array.
        starts: offset of each record's data.
        lengths: number of data bytes of each record.
    """
    ends = (starts + lengths).tolist()
    crcs = [_crc32c(buffer[start:end]) for start, end in zip(starts.tolist(), ends, strict=True)]
    crc = np.array(crcs, np.uint32)
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(_MASK_DELTA)


def stored_checksums(buffer: bytes, starts: Ints, lengths: Ints) -> NDArray[np.uint32]:
    """Return the masked crc32c that is stored after the data of every record."""
    index = (starts + lengths)[:, None] + np.arange(FOOTER)
    footers: Bytes = np.frombuffer(buffer, np.uint8)[index]
    return footers.view("<u4").reshape(-1)


def frame_gaps(out: Bytes, starts: Ints, lengths: Ints) -> None:
    """Write header and footer around data that are already in `out`, `OVERHEAD` bytes apart."""
    sizes, which = np.unique(lengths, return_inverse=True)
    headers = np.frombuffer(b"".join(header(int(size)) for size in sizes), np.uint8).reshape(-1, HEADER)
    out[(starts - HEADER)[:, None] + np.arange(HEADER)] = headers[which]
    readable = out.view()
    readable.flags.writeable = False
    crcs = data_checksums(readable, starts, lengths).astype("<u4")
    out[(starts + lengths)[:, None] + np.arange(FOOTER)] = crcs.view(np.uint8).reshape(-1, FOOTER)
