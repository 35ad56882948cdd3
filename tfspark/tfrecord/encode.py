"""Encode an Arrow record batch to framed TFRecords, the whole batch in one buffer.

The writing task calls it for each batch. All lengths are computed first, column by column. Then each tag,
length, key and payload is written to its place in all records at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from tfspark.errors import DataError
from tfspark.tfrecord.flatten import flatten
from tfspark.tfrecord.framing import HEADER, OVERHEAD, Bytes, Ints, frame_gaps
from tfspark.tfrecord.schema import kind_of
from tfspark.tfrecord.varint import encode_varints, put_varints, varint_widths
from tfspark.tfrecord.wire import Kind

_ENTRY, _KEY, _VALUE, _ITEM = b"\x0a", b"\x0a", b"\x12", b"\x0a"
_PIECE_BYTES = 4 << 20
_SCATTER_BYTES = 48  # payloads up to this mean size are scattered byte by byte, larger ones copied row by row


@dataclass(frozen=True)
class _Feature:
    """One column, ready to be written; all arrays have one entry per row that has the feature.

    Attributes:
        rows: the rows that have the feature.
        head: the key in the form of a map entry, followed by the tag of the value.
        kind: of the feature's values.
        body: the contents of all lists, concatenated.
        sizes: bytes of each row's list contents.
        packed: whether the contents are one packed field; its tag and length are not in `body`.
    """

    rows: Ints
    head: bytes
    kind: Kind
    body: Bytes
    sizes: Ints
    packed: bool

    @cached_property
    def list_sizes(self) -> Ints:
        """Bytes of each row's list message."""
        if not self.packed:
            return self.sizes
        return np.where(self.sizes > 0, 1 + varint_widths(self.sizes) + self.sizes, 0)

    @cached_property
    def feature_sizes(self) -> Ints:
        """Bytes of each row's Feature message."""
        return _field_sizes(self.list_sizes)

    @cached_property
    def entry_sizes(self) -> Ints:
        """Bytes of each row's map entry message."""
        return len(self.head) + varint_widths(self.feature_sizes) + self.feature_sizes


def _field_sizes(sizes: Ints) -> Ints:
    """Return the bytes of messages as fields: tag, length and contents."""
    return 1 + varint_widths(sizes) + sizes


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into slices of about 4 MB for `encode_batch`, so that its buffers stay in the CPU cache."""
    size = max(1, batch.num_rows * _PIECE_BYTES // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, size):
        yield batch.slice(start, size)


def encode_batch(batch: pa.RecordBatch) -> Bytes:
    """Encode every row as a framed Example; a null cell becomes a missing feature.

    Returns:
        The bytes to append to a file.

    Raises:
        DataError: an Example cannot hold a column or a value.
    """
    features = [
        _feature(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    sizes = np.zeros(batch.num_rows, np.int64)
    for feature in features:
        sizes[feature.rows] += _field_sizes(feature.entry_sizes)
    lengths = _field_sizes(sizes)
    ends = np.cumsum(lengths + OVERHEAD)
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    starts = ends - lengths - OVERHEAD + HEADER
    at = put_varints(out, _put(out, starts, _ENTRY), sizes)
    for feature in features:
        at[feature.rows] = _put_entry(out, at[feature.rows], feature)
    frame_gaps(out, starts, lengths)
    return out


def _feature(name: str, column: pa.Array) -> _Feature:
    """Prepare a column: its list contents and their sizes."""
    kind, values, counts, rows = flatten(name, column)
    if kind is Kind.FLOAT:
        body, sizes = values.astype("<f4", copy=False).view(np.uint8), 4 * counts
    else:
        body, item_sizes = _items(values) if kind is Kind.BYTES else encode_varints(values)
        sizes = _sum_groups(item_sizes, counts)
    key = name.encode()
    head = _KEY + _varint(len(key)) + key + _VALUE
    return _Feature(rows, head, kind, body, sizes, kind is not Kind.BYTES)


def _items(values: pa.Array) -> tuple[Bytes, Ints]:
    """Return the elements of lists of bytes, each with its tag and length."""
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    _, offsets_buffer, data_buffer = values.buffers()
    count = len(values)
    if not count:
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    bounds = np.frombuffer(offsets_buffer, width)[values.offset : values.offset + count + 1].astype(np.int64)
    data = np.frombuffer(data_buffer or b"", np.uint8)[bounds[0] : bounds[-1]]
    sizes = np.diff(bounds)
    fields = _field_sizes(sizes)
    ends = np.cumsum(fields)
    out = np.empty(int(ends[-1]), np.uint8)
    at = put_varints(out, _put(out, ends - fields, _ITEM), sizes)
    _put_payload(out, at, sizes, data)
    return out, fields


def _sum_groups(sizes: Ints, counts: Ints) -> Ints:
    """Return the total size of each row's elements."""
    if bool((counts == 1).all()):
        return sizes
    totals = np.concatenate([[0], np.cumsum(sizes)])
    bounds = np.concatenate([[0], np.cumsum(counts)])
    sums: Ints = totals[bounds[1:]] - totals[bounds[:-1]]
    return sums


def _put_entry(out: Bytes, at: Ints, feature: _Feature) -> Ints:
    """Write the map entry of every row that has the feature; return the offsets after it."""
    at = put_varints(out, _put(out, at, _ENTRY), feature.entry_sizes)
    at = put_varints(out, _put(out, at, feature.head), feature.feature_sizes)
    at = put_varints(out, _put(out, at, bytes([feature.kind << 3 | 2])), feature.list_sizes)
    if feature.packed:
        filled = np.flatnonzero(feature.sizes > 0)
        at[filled] = put_varints(out, _put(out, at[filled], _ITEM), feature.sizes[filled])
    _put_payload(out, at, feature.sizes, feature.body)
    return at + feature.sizes


def _put(out: Bytes, at: Ints, literal: bytes) -> Ints:
    """Write the same bytes at every offset; return the offsets after them."""
    out[at[:, None] + np.arange(len(literal))] = np.frombuffer(literal, np.uint8)
    return at + len(literal)


def _put_payload(out: Bytes, at: Ints, sizes: Ints, payload: Bytes) -> None:
    """Copy consecutive pieces of `payload` to their offsets in `out`."""
    if not len(payload):
        return
    steps = np.diff(at)
    if len(at) > 1 and bool((sizes == sizes[0]).all()) and bool((steps == steps[0]).all()):
        shape, strides = (len(at), int(sizes[0])), (int(steps[0]), 1)
        np.lib.stride_tricks.as_strided(out[int(at[0]) :], shape, strides)[:] = payload.reshape(shape)
    elif len(payload) <= _SCATTER_BYTES * len(at):
        ends = np.cumsum(sizes)
        out[np.repeat(at - ends + sizes, sizes) + np.arange(len(payload))] = payload
    else:
        _copy_pieces(out, at, sizes, payload)


def _copy_pieces(out: Bytes, at: Ints, sizes: Ints, payload: Bytes) -> None:
    target, source, begin = out.data, payload.data, 0
    for start, size in zip(at.tolist(), sizes.tolist(), strict=True):
        target[start : start + size] = source[begin : begin + size]
        begin += size


def _varint(value: int) -> bytes:
    return encode_varints(np.array([value]))[0].tobytes()


def check_encodable(schema: pa.Schema) -> None:
    """Reject a schema that an Example cannot hold.

    Raises:
        DataError: no feature can hold a column's type, or two columns have the same name.
    """
    for field in schema:
        kind_of(field.name, field.type)
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise DataError(
            f"expected column names that differ, got {', '.join(doubled)} twice; rename one of them"
        )
