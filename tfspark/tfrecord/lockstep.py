"""Parse many serialized Examples together: one NumPy step moves through the same field of all of them.

Every record is a *lane* with its own offset; each step reads a tag, a length or a key in all lanes. First the map
entries are listed, by rounds: the first entry of every lane, the second, and so on, in any order of the keys. Then each
wanted key is parsed in all lanes that have it. A lane that is not exactly as expected is left to the complete parser in
`wire`: this module may reject a legal record, but never misreads one. It does not parse entries that are not wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfspark.tfrecord.framing import Bytes, Ints
from tfspark.tfrecord.wire import Kind

_TAG_1, _TAG_2 = 0x0A, 0x12  # field 1 and 2, length-delimited
_KINDS = {kind << 3 | 2: kind for kind in Kind}
_INDEX_BYTES = 32  # pieces up to this mean size are gathered byte by byte, larger ones copied one by one

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Span:
    """The position of one feature's payload in the buffer.

    Attributes:
        kind: of the feature's values.
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


@dataclass(frozen=True)
class _Entries:
    """The map entries of one key: their lane, where the Feature field begins, and where the entry ends."""

    lanes: Ints
    starts: Ints
    ends: Ints


def walk(
    data: bytes, starts: Ints, lengths: Ints, wanted: frozenset[bytes]
) -> tuple[Bools, dict[bytes, Span]]:
    """Parse all lanes.

    Args:
        data: the buffer.
        starts: offset of each record.
        lengths: bytes of each record.
        wanted: keys whose payload is wanted; the others are skipped.

    Returns:
        Which lanes were understood, and the span of each wanted key. Use only the lanes that were understood.
    """
    lanes = _Lanes(np.frombuffer(data, np.uint8), starts)
    lanes.expect(_TAG_1)
    ends = lanes.length_end()
    understood = lanes.good & (ends == starts + lengths)
    spans: dict[bytes, Span] = {}
    for key, entries in _entries(data, lanes, ends, understood, wanted).items():
        span = _feature(lanes.view, entries, understood)
        if span is not None:
            spans[key] = span
    return understood, spans


def _entries(
    data: bytes, lanes: _Lanes, ends: Ints, understood: Bools, wanted: frozenset[bytes]
) -> dict[bytes, _Entries]:
    """List the entries of the wanted keys; set `understood` to False where an entry is not as expected."""
    found: dict[bytes, list[_Entries]] = {}
    active, at = np.flatnonzero(understood & (lanes.at < ends)), lanes.at
    at = at[active]
    while len(active):
        part = _Lanes(lanes.view, at)
        part.expect(_TAG_1)
        entry_ends = part.length_end()
        part.expect(_TAG_1)
        key_ends = part.length_end()
        part.check((entry_ends <= ends[active]) & (key_ends <= entry_ends))
        understood[active[~part.good]] = False
        sound = np.flatnonzero(part.good)
        for key, same in _by_key(data, lanes.view, part.at[sound], key_ends[sound]):
            if key in wanted:
                members = sound[same]
                entry = _Entries(active[members], key_ends[members], entry_ends[members])
                found.setdefault(key, []).append(entry)
        going_on = part.good & (entry_ends < ends[active])
        active, at = active[going_on], entry_ends[going_on]
    return {key: _merge(rounds, understood) for key, rounds in found.items()}


def _by_key(data: bytes, view: Bytes, starts: Ints, ends: Ints) -> Iterator[tuple[bytes, Ints]]:
    """Group lanes by the key between their offsets."""
    left = np.arange(len(starts))
    while len(left):
        key = data[int(starts[left[0]]) : int(ends[left[0]])]
        index = starts[left, None] + np.arange(len(key))
        same = (view.take(index, mode="clip") == np.frombuffer(key, np.uint8)).all(axis=1)
        same &= ends[left] - starts[left] == len(key)
        yield key, left[same]
        left = left[~same]


def _merge(rounds: Sequence[_Entries], understood: Bools) -> _Entries:
    """Join the entries of one key from all rounds, in the order of the lanes; reject a lane that has the key twice."""
    if len(rounds) == 1:
        return rounds[0]
    lanes, starts, ends = (
        np.concatenate([getattr(entries, name) for entries in rounds]) for name in ("lanes", "starts", "ends")
    )
    order = np.argsort(lanes, kind="stable")
    lanes = lanes[order]
    understood[lanes[1:][lanes[1:] == lanes[:-1]]] = False
    return _Entries(lanes, starts[order], ends[order])


def _feature(view: Bytes, entries: _Entries, understood: Bools) -> Span | None:
    """Parse a Feature, which must fill its map entry, down to the payload of its list; all lanes must have the kind
    of the first one."""
    lanes, ends = _Lanes(view, entries.starts), entries.ends
    lanes.expect(_TAG_2)
    lanes.check(lanes.length_end() == ends)
    kind = _KINDS.get(int(view.take(lanes.at[0], mode="clip")))
    if kind is None:
        understood[entries.lanes] = False
        return None
    lanes.expect(kind << 3 | 2)
    lanes.check(lanes.length_end() == ends)
    rows, starts, lengths = _elements(lanes, ends) if kind is Kind.BYTES else _packed(lanes, ends)
    understood[entries.lanes[~lanes.good]] = False
    here = np.zeros(len(understood), np.bool_)
    here[entries.lanes] = True
    return Span(kind, here, entries.lanes[rows], starts, lengths)


Piece = tuple[Ints, Ints, Ints]


def _packed(lanes: _Lanes, ends: Ints) -> Piece:
    """Read the single packed field of a list of numbers; an empty list has none."""
    filled = lanes.at != ends
    good = lanes.good
    lanes.expect(_TAG_1)
    payload_ends = lanes.length_end()
    lanes.check(payload_ends == ends)
    lanes.good = np.where(filled, lanes.good, good)
    rows = np.flatnonzero(lanes.good)
    starts = np.where(filled, lanes.at, ends)
    return rows, starts[rows], (ends - starts)[rows]


def _elements(lanes: _Lanes, ends: Ints) -> Piece:
    """Read the elements of lists of bytes, one of each lane per round."""
    pieces: list[Piece] = []
    rows = np.flatnonzero(lanes.good & (lanes.at < ends))
    while len(rows):
        part = _Lanes(lanes.view, lanes.at[rows])
        part.expect(_TAG_1)
        element_ends = part.length_end()
        part.check(element_ends <= ends[rows])
        keep = part.good
        lanes.good[rows] = keep
        lanes.at[rows] = element_ends
        pieces.append((rows[keep], part.at[keep], (element_ends - part.at)[keep]))
        rows = rows[keep & (element_ends < ends[rows])]
    return _in_lane_order(pieces)


def _in_lane_order(pieces: Sequence[Piece]) -> Piece:
    """Join the pieces of all rounds by lane; pieces of one lane keep their order."""
    if len(pieces) == 1:
        return pieces[0]
    if not pieces:
        return (np.empty(0, np.int64),) * 3
    rows, starts, lengths = (np.concatenate(columns) for columns in zip(*pieces, strict=True))
    order = np.argsort(rows, kind="stable")
    return rows[order], starts[order], lengths[order]


class _Lanes:
    """The read position of every lane, and which lanes are as expected so far."""

    def __init__(self, view: Bytes, starts: Ints):
        self.view = view
        self.at = starts
        self.good: Bools = np.ones(len(starts), np.bool_)

    def check(self, condition: Bools) -> None:
        self.good = self.good & condition

    def expect(self, byte: int) -> None:
        """Require one byte and move past it."""
        self.check(self.view.take(self.at, mode="clip") == byte)
        self.at = self.at + 1

    def length_end(self) -> Ints:
        """Read a length of up to 35 bits, move past it, and return the end of the field that it describes."""
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


def gather(data: bytes, starts: Ints, lengths: Ints) -> Bytes:
    """Copy pieces of a buffer to one array, concatenated."""
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
