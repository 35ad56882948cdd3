"""Walk many serialized Examples at once: one NumPy step moves through the same field of all of them.

The records of a dataset have the same keys in the same order, so all of a block can be parsed in lockstep:
every record is a *lane* with its own offset; each step reads a tag, a length or a key in all lanes. A key
that a lane does not have at its turn is taken as missing there. A lane that does not come out exactly at
its end was not understood: `decode` leaves it to the complete parser in `wire`. So this module may refuse a
legal record, and never misreads one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfspark.tfrecord.framing import Bytes, Ints
from tfspark.tfrecord.wire import Kind

_TAG_1, _TAG_2 = 0x0A, 0x12  # field 1 and 2, length-delimited
_KIND_TAGS = {kind: kind << 3 | 2 for kind in Kind}

_INDEX_BYTES = 32  # pieces up to this mean size are gathered byte by byte, larger ones copied one by one

Layout = tuple[tuple[bytes, Kind], ...]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Span:
    """Where the payload of one feature stands in the buffer.

    Attributes:
        kind: what the feature holds.
        here: lanes that have the feature.
        lanes: the lane of each piece, ascending. A piece is one element of a list of bytes, or a packed list.
        starts: offset of each piece.
        lengths: bytes of each piece.
    """

    kind: Kind
    here: Bools
    lanes: Ints
    starts: Ints
    lengths: Ints


def merge_layouts(layouts: Iterable[Layout]) -> Layout:
    """Merge the key orders of several records into one order that has them all, if they agree."""
    keys: list[bytes] = []
    kinds: dict[bytes, Kind] = {}
    for layout in layouts:
        place = 0
        for key, kind in layout:
            if key not in kinds:
                keys.insert(place, key)
            kinds.setdefault(key, kind)
            place = keys.index(key) + 1
    return tuple((key, kinds[key]) for key in keys)


def walk(
    view: Bytes, starts: Ints, lengths: Ints, layout: Layout, wanted: frozenset[bytes]
) -> tuple[Bools, dict[bytes, Span]]:
    """Parse all lanes by one layout.

    Args:
        view: the buffer.
        starts: offset of each record.
        lengths: bytes of each record.
        layout: keys in their order on the wire, with their kinds; keys may be missing in a lane.
        wanted: keys whose payload is asked for; the others are stepped over.

    Returns:
        Which lanes were understood, and the span of each wanted key. Only the lanes understood may be used.
    """
    lanes = _Lanes(view, starts)
    lanes.expect(_TAG_1)
    ends = lanes.length_end()
    understood = lanes.good & (ends == starts + lengths)
    spans: dict[bytes, Span] = {}
    for key, kind in layout:
        here, sound, span = _entry(lanes, ends, key, kind, key in wanted)
        understood &= sound | ~here
        if span is not None:
            spans[key] = span
    return understood & (lanes.at == ends), spans


def _entry(
    lanes: _Lanes, ends: Ints, key: bytes, kind: Kind, wanted: bool
) -> tuple[Bools, Bools, Span | None]:
    """Step over one map entry in the lanes that have it; return those lanes, the sound ones and the span."""
    before = lanes.at
    lanes.good = before < ends
    lanes.expect(_TAG_1)
    entry_ends = lanes.length_end()
    lanes.expect(_TAG_1)
    lanes.expect_bytes(_varint(len(key)) + key)
    here = lanes.good
    lanes.good = here & (entry_ends <= ends)
    span = _feature(lanes, entry_ends, kind, here) if wanted else None
    lanes.at = np.where(here, entry_ends, before)
    return here, lanes.good, span


def _feature(lanes: _Lanes, ends: Ints, kind: Kind, here: Bools) -> Span:
    """Step through a Feature that must fill its map entry, down to the payload of its list."""
    lanes.expect(_TAG_2)
    lanes.check(lanes.length_end() == ends)
    lanes.expect(_KIND_TAGS[kind])
    lanes.check(lanes.length_end() == ends)
    pieces = _elements(lanes, ends) if kind is Kind.BYTES else [_packed(lanes, ends)]
    order = np.concatenate([piece[0] for piece in pieces])
    starts = np.concatenate([piece[1] for piece in pieces])
    lengths = np.concatenate([piece[2] for piece in pieces])
    if len(pieces) > 1:
        by_lane = np.argsort(order, kind="stable")
        order, starts, lengths = order[by_lane], starts[by_lane], lengths[by_lane]
    return Span(kind, here, order, starts, lengths)


Piece = tuple[Ints, Ints, Ints]


def _packed(lanes: _Lanes, ends: Ints) -> Piece:
    """Read the one packed field of a list of numbers, or none when the list is empty."""
    filled = lanes.at != ends
    good = lanes.good
    lanes.expect(_TAG_1)
    payload_ends = lanes.length_end()
    lanes.check(payload_ends == ends)
    lanes.good = np.where(filled, lanes.good, good)
    rows = np.flatnonzero(lanes.good)
    starts = np.where(filled, lanes.at, ends)
    return rows, starts[rows], (ends - starts)[rows]


def _elements(lanes: _Lanes, ends: Ints) -> list[Piece]:
    """Read the elements of lists of bytes, one of each lane per round."""
    pieces: list[Piece] = []
    while True:
        active = lanes.good & (lanes.at < ends)
        rows = np.flatnonzero(active)
        if not len(rows) and pieces:
            return pieces
        part = _Lanes(lanes.view, lanes.at[rows])
        part.expect(_TAG_1)
        element_ends = part.length_end()
        part.check(element_ends <= ends[rows])
        lanes.good[rows] = part.good
        keep = part.good
        pieces.append((rows[keep], part.at[keep], (element_ends - part.at)[keep]))
        lanes.at[rows] = element_ends
        if not len(rows):
            return pieces


class _Lanes:
    """The read position of every lane, and which lanes are as expected so far."""

    def __init__(self, view: Bytes, starts: Ints):
        self.view = view
        self.at = starts
        self.good: Bools = np.ones(len(starts), np.bool_)

    def check(self, condition: Bools) -> None:
        self.good = self.good & condition

    def expect(self, byte: int) -> None:
        """Require one byte and step over it."""
        self.check(self.view.take(self.at, mode="clip") == byte)
        self.at = self.at + 1

    def expect_bytes(self, literal: bytes) -> None:
        """Require several bytes and step over them."""
        index = self.at[:, None] + np.arange(len(literal))
        came = self.view.take(index, mode="clip")
        self.check((came == np.frombuffer(literal, np.uint8)).all(axis=1))
        self.at = self.at + len(literal)

    def length_end(self) -> Ints:
        """Read a length of up to 35 bits, step behind it, and return where what it measures ends."""
        byte = self.view.take(self.at, mode="clip")
        self.at = self.at + 1
        value = (byte & 0x7F).astype(np.int64)
        more = byte >= 0x80
        for shift in (7, 14, 21, 28):
            if not more.any():
                break
            byte = self.view.take(self.at, mode="clip")
            value += np.where(more, (byte & 0x7F).astype(np.int64) << shift, 0)
            self.at = self.at + more
            more = more & (byte >= 0x80)
        self.check(~more)
        return self.at + value


def _varint(value: int) -> bytes:
    """Encode a small length."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def gather(data: bytes, starts: Ints, lengths: Ints) -> Bytes:
    """Copy pieces of a buffer into one array, one behind the other."""
    if not len(starts):
        return np.empty(0, np.uint8)
    size = int(lengths[0])
    if bool((lengths == size).all()):
        return _gather_equal(data, starts, size)
    total = int(lengths.sum())
    if total <= _INDEX_BYTES * len(starts):
        shift = starts - np.cumsum(lengths) + lengths
        return np.frombuffer(data, np.uint8).take(np.repeat(shift, lengths) + np.arange(total))
    return _join(data, starts.tolist(), (starts + lengths).tolist())


def _gather_equal(data: bytes, starts: Ints, size: int) -> Bytes:
    """Copy pieces of the same length; evenly spaced ones in a single strided copy."""
    view = np.frombuffer(data, np.uint8)
    steps = np.diff(starts)
    if len(starts) > 1 and steps[0] > 0 and bool((steps == steps[0]).all()):
        shape, strides = (len(starts), size), (int(steps[0]), 1)
        matrix = np.lib.stride_tricks.as_strided(view[int(starts[0]) :], shape, strides)
        return np.ascontiguousarray(matrix).reshape(-1)
    if size <= _INDEX_BYTES:
        index: Ints = starts[:, None] + np.arange(size)
        return view.take(index).reshape(-1)
    return _join(data, starts.tolist(), (starts + size).tolist())


def _join(data: bytes, starts: Sequence[int], ends: Sequence[int]) -> Bytes:
    pieces = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    return np.frombuffer(b"".join(pieces), np.uint8)
