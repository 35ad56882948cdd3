"""Decode and encode arrays of protobuf varints, without a Python loop per value.

Pure. `decode` and `encode` use it.
"""

from __future__ import annotations

import numpy as np

from tfspark.tfrecord.framing import Bytes, Ints

MAX_BYTES = 10


def decode_varints(payload: Bytes, lengths: Ints) -> tuple[Ints, Ints, Ints]:
    """Decode packed varints, row by row.

    Args:
        payload: the packed lists of all rows, concatenated.
        lengths: bytes of each row's list.

    Returns:
        The values of all rows; the number of values of each row; the rows that are malformed (then the
        first two are meaningless).
    """
    is_last = payload < 0x80
    if bool(is_last.all()):
        return payload.astype(np.int64), lengths, np.empty(0, np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    lasts = np.flatnonzero(is_last)
    counts = np.diff(np.searchsorted(lasts, bounds))
    rows = np.searchsorted(bounds, lasts, side="right") - 1
    firsts = np.maximum(np.concatenate([[0], lasts + 1])[:-1], bounds[rows])
    widths = lasts - firsts + 1
    filled = np.flatnonzero(lengths > 0)
    cut = filled[~is_last[bounds[filled + 1] - 1]]
    bad = np.union1d(cut, rows[widths > MAX_BYTES])
    return (_join(payload, firsts, widths) if not len(bad) else firsts), counts, bad


def _join(payload: Bytes, firsts: Ints, widths: Ints) -> Ints:
    """Join the 7-bit groups of each varint."""
    values = np.zeros(len(firsts), np.uint64)
    for place in range(int(widths.max(initial=0))):
        rows = np.flatnonzero(widths > place)
        group = payload[firsts[rows] + place] & np.uint8(0x7F)
        values[rows] |= group.astype(np.uint64) << np.uint64(7 * place)
    return values.view(np.int64)


def varint_widths(values: Ints) -> Ints:
    """Return the number of bytes of each value's varint; a negative value needs ten."""
    widths = np.ones(len(values), np.int64)
    if not len(values):
        return widths
    unsigned = values.view(np.uint64)
    top = int(unsigned.max())
    for place in range(1, MAX_BYTES):
        if top < 1 << 7 * place:
            break
        widths += unsigned >= np.uint64(1 << 7 * place)
    return widths


def put_varints(out: Bytes, at: Ints, values: Ints) -> Ints:
    """Write each value as a varint at its own offset of `out`; return the offsets after them."""
    widths, unsigned = varint_widths(values), values.view(np.uint64)
    if len(values) and int(unsigned.max()) < 0x80:
        out[at] = values
        return at + 1
    for place in range(int(widths.max(initial=0))):
        rows = np.flatnonzero(widths > place)
        group = (unsigned[rows] >> np.uint64(7 * place)).astype(np.uint8) & np.uint8(0x7F)
        out[at[rows] + place] = group | np.where(widths[rows] > place + 1, 0x80, 0).astype(np.uint8)
    return at + widths


def encode_varints(values: Ints) -> tuple[Bytes, Ints]:
    """Encode values, concatenated; return the bytes, and the width of each value."""
    if bool(((values >= 0) & (values < 0x80)).all()):
        return values.astype(np.uint8), np.ones(len(values), np.int64)
    widths = varint_widths(values)
    ends = np.cumsum(widths)
    out = np.empty(int(ends[-1]), np.uint8)
    put_varints(out, ends - widths, values)
    return out, widths
