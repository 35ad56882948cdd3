"""Decode a block of serialized Examples into an Arrow record batch.

The reading task calls it for each block. `lockstep` decodes almost every record, `wire` the rest;
both return the same flat columns, which `columns` checks and converts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tfspark.tfrecord.columns import Ragged, to_column
from tfspark.tfrecord.damage import BadRecords, Damage
from tfspark.tfrecord.framing import Bytes, Ints
from tfspark.tfrecord.lockstep import Span, gather, walk
from tfspark.tfrecord.records import Block
from tfspark.tfrecord.schema import kind_of
from tfspark.tfrecord.varint import decode_varints
from tfspark.tfrecord.wire import Feature, Kind, WireError, parse_example

_MIN_LANES = 8  # fewer records are parsed faster one by one


@dataclass(frozen=True)
class _Part:
    """Some rows of a block, decoded."""

    rows: Ints
    features: dict[bytes, tuple[Kind, Ragged]]


def decode_block(block: Block, schema: pa.Schema, damage: Damage) -> pa.RecordBatch:
    """Decode the columns of `schema` from every record of a block.

    Args:
        block: complete, verified records.
        schema: the columns to decode; other features are skipped.
        damage: how to handle records that do not match the schema.

    Raises:
        DataError: a record does not match, in mode ``FAILFAST``.
    """
    while True:
        try:
            return decode(block, schema)
        except BadRecords as bad:
            damage.hit(block.record_offset(bad.rows[0]), bad.reason, len(bad.rows))
            block = block.select(np.delete(np.arange(len(block)), bad.rows))


def raw_records(block: Block) -> pa.Array:
    """Return every record of a block as bytes."""
    return _binary(gather(block.data, block.starts, block.lengths), block.lengths)


def decode(block: Block, schema: pa.Schema) -> pa.RecordBatch:
    """Decode a block completely, or raise.

    Raises:
        BadRecords: some records do not match the schema.
    """
    wanted = frozenset(name.encode() for name in schema.names)
    parts = list(_parts(block, wanted))
    order = np.concatenate([part.rows for part in parts]) if parts else np.empty(0, np.int64)
    in_order = bool((np.diff(order) > 0).all())
    columns = []
    for field in schema:
        arrays = [_column(part, field) for part in parts] or [pa.array([], field.type)]
        column = arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
        columns.append(column if in_order else column.take(pa.array(np.argsort(order))))
    if not columns:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(block), pa.struct([])))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(part: _Part, field: pa.Field) -> pa.Array:
    expected = kind_of(field.name, field.type)
    kind, feature = part.features.get(field.name.encode(), (None, None))
    try:
        if kind is not None and feature is not None and kind is not expected:
            _refuse_kind(kind, feature, field)
        if feature is None or kind is not expected:
            feature = Ragged(_no_values(expected), np.full(len(part.rows), -1))
        return to_column(feature, field)
    except BadRecords as bad:
        raise BadRecords(part.rows[bad.rows], bad.reason) from None


def _refuse_kind(kind: Kind, feature: Ragged, field: pa.Field) -> None:
    """Raise if any record has the feature, because it has the wrong kind."""
    present = np.flatnonzero(feature.counts >= 0)
    if len(present):
        expected = kind_of(field.name, field.type)
        reason = f"feature {field.name!r}: expected {expected.label} values (declared {field.type})"
        fix = "correct the declared type, or leave it to inference"
        raise BadRecords(present, f"{reason}, got {kind.label} values; {fix}")


def _parts(block: Block, wanted: frozenset[bytes]) -> Iterable[_Part]:
    """Decode in lockstep as many rows as possible, then the rest one by one."""
    left = np.arange(len(block))
    if len(left) >= _MIN_LANES:
        understood, spans = walk(block.data, block.starts, block.lengths, wanted)
        rows, left = left[understood], left[~understood]
        if len(left) and len(rows):
            _, spans = walk(block.data, block.starts[rows], block.lengths[rows], wanted)
        if len(rows):
            yield _lockstep_part(block.data, rows, spans)
    if len(left):
        yield from _one_by_one(block, left, wanted)


def _lockstep_part(data: bytes, rows: Ints, spans: dict[bytes, Span]) -> _Part:
    try:
        return _Part(rows, {key: (span.kind, _ragged(data, span)) for key, span in spans.items()})
    except BadRecords as bad:
        raise BadRecords(rows[bad.rows], bad.reason) from None


def _ragged(data: bytes, span: Span) -> Ragged:
    """Copy the payload of a span from the buffer."""
    counts = np.where(span.here, 0, -1)
    if span.kind is Kind.BYTES:
        counts += np.bincount(span.lanes, minlength=len(counts))
        return Ragged(_binary(gather(data, span.starts, span.lengths), span.lengths), counts)
    payload = gather(data, span.starts, span.lengths)
    if span.kind is Kind.FLOAT:
        if bool((span.lengths % 4).any()):
            raise BadRecords(span.lanes[span.lengths % 4 > 0], _NOT_FOURS)
        counts[span.lanes] = span.lengths // 4
        return Ragged(payload.view("<f4"), counts)
    values, counts[span.lanes], bad = decode_varints(payload, span.lengths)
    if len(bad):
        raise BadRecords(span.lanes[bad], _BAD_VARINT)
    return Ragged(values, counts)


_NOT_FOURS = (
    "expected packed floats of 4 bytes each, got a list of a different length; write the record again"
)
_BAD_VARINT = "expected packed varints, got one that is cut off or too long; write the record again"


def _binary(payload: Bytes, lengths: Ints) -> pa.Array:
    """Return a binary array of joined values."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    dtype, width = (pa.binary(), np.int32) if offsets[-1] < 1 << 31 else (pa.large_binary(), np.int64)
    buffers = [None, pa.py_buffer(offsets.astype(width)), pa.py_buffer(payload)]
    return pa.Array.from_buffers(dtype, len(lengths), buffers)


def _one_by_one(block: Block, rows: Ints, wanted: frozenset[bytes]) -> Iterable[_Part]:
    """Parse rows with the complete parser; rows with the same kinds of features form one part."""
    groups: dict[tuple[tuple[bytes, Kind], ...], list[tuple[int, dict[bytes, Feature]]]] = {}
    bad: dict[int, str] = {}
    for row in rows.tolist():
        try:
            features = parse_example(block.record(row), wanted)
        except WireError as error:
            bad[row] = (
                f"expected a serialized tf.train.Example; {error}; is it a different message, or raw bytes?"
            )
            continue
        kinds = tuple(sorted((key, kind) for key, (kind, _) in features.items()))
        groups.setdefault(kinds, []).append((row, features))
    if bad:
        raise BadRecords(bad, next(iter(bad.values())))
    for kinds, members in groups.items():
        index = np.array([row for row, _ in members])
        yield _Part(index, {key: (kind, _collect(key, kind, members)) for key, kind in kinds})


def _collect(key: bytes, kind: Kind, members: list[tuple[int, dict[bytes, Feature]]]) -> Ragged:
    lists = [features[key][1] for _, features in members]
    counts = np.array([len(values) for values in lists])
    if kind is Kind.FLOAT:
        return Ragged(np.frombuffer(b"".join(lists), "<f4"), counts // 4)  # type: ignore[arg-type]
    flat = [value for values in lists for value in values]
    return Ragged(np.array(flat, np.int64) if kind is Kind.INT64 else pa.array(flat, pa.binary()), counts)


def _no_values(kind: Kind) -> object:
    if kind is Kind.BYTES:
        return pa.array([], pa.binary())
    return np.empty(0, np.float32 if kind is Kind.FLOAT else np.int64)
