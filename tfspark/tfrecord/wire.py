"""Parse one serialized ``tf.train.Example`` (protobuf wire format) in any legal form.

This is the slow and complete parser: any order of fields, unknown fields, unpacked lists, repeated keys. `lockstep`
reads blocks of records at a time and leaves the records that it does not recognise to this module; schema
inference and tests use it, too. The message (tensorflow/core/example/{example,feature}.proto)::

    Example  { Features features = 1; }
    Features { map<string, Feature> feature = 1; }      a map entry is { string key = 1; Feature value = 2; }
    Feature  { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2; Int64List int64_list = 3; } }
    *List    { repeated ... value = 1; }                floats and int64s packed, or one by one
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

FEATURE_LISTS = 2
"""Field 2 of a SequenceExample. Its field 1 is the same as that of an Example, which has no field 2."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class Kind(IntEnum):
    """The type of a feature's values; the number is that of the field within ``Feature``."""

    BYTES = 1
    FLOAT = 2
    INT64 = 3

    @property
    def label(self) -> str:
        """Return the name used in messages and in feature specs."""
        return self.name.lower()


class WireError(ValueError):
    """The bytes are not an Example; the message has the position in the record."""


# The values of one feature: bytes elements, the little-endian float32s joined, or integers.
Values = list[bytes] | bytes | list[int]
Feature = tuple[Kind, Values]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the unsigned varint at an offset, and the offset after it."""
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise WireError(f"a varint runs past the end of the message at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise WireError(f"a varint of more than 10 bytes ends at byte {at}")


def fields(data: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """Yield (number, wire type, payload) of each field of a message; the payload of a varint is an int."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, at = _read_varint(data, at)
            yield number, wire_type, value
            continue
        size, at = _payload_size(data, wire_type, at)
        if number == 0 or at + size > end:
            raise WireError(f"field {number} of {size} bytes does not fit at byte {at} of {end}")
        yield number, wire_type, data[at : at + size]
        at += size


def _payload_size(data: bytes, wire_type: int, at: int) -> tuple[int, int]:
    """Return the number of payload bytes and their offset."""
    if wire_type == LENGTH:
        return _read_varint(data, at)
    if wire_type in (FIXED32, FIXED64):
        return (4 if wire_type == FIXED32 else 8), at
    raise WireError(f"wire type {wire_type} at byte {at} is not used in an Example")


def parse_example(data: bytes, wanted: frozenset[bytes] | None = None) -> dict[bytes, Feature]:
    """Parse an Example into its features by key.

    Args:
        data: the serialized Example.
        wanted: keys to parse; the values of others are skipped. None for all.

    Returns:
        The features that have a list, even an empty one. As in TensorFlow, a feature without a kind is skipped.

    Raises:
        WireError: the bytes are not an Example.
    """
    found: dict[bytes, Feature] = {}
    for key, messages in _entries(data):
        if wanted is not None and key not in wanted:
            continue
        kind, lists = _merge_lists(messages)
        found.pop(key, None)
        if kind is not None:
            found[key] = kind, _PARSERS[kind](b"".join(lists))
    return found


def _entries(data: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield the key and the Feature messages of each map entry."""
    for number, _, features in fields(data):
        if number == FEATURE_LISTS and features and isinstance(features, bytes):
            raise WireError(
                "this is a tf.train.SequenceExample, whose feature lists have no columns: read with option "
                "recordType=ByteArray and parse the bytes by tf.io.parse_sequence_example"
            )
        if number != 1 or not isinstance(features, bytes):
            continue
        for entry_number, _, entry in fields(features):
            if entry_number == 1 and isinstance(entry, bytes):
                yield _entry(entry)


def _entry(entry: bytes) -> tuple[bytes, list[bytes]]:
    key, messages = b"", []
    for number, _, payload in fields(entry):
        if number == 1 and isinstance(payload, bytes):
            key = payload
        elif number == 2 and isinstance(payload, bytes):
            messages.append(payload)
    return key, messages


def _merge_lists(messages: list[bytes]) -> tuple[Kind | None, list[bytes]]:
    """Return the kind of a feature and its lists: lists of the same kind are joined, a different kind replaces
    the ones before."""
    kind: Kind | None = None
    lists: list[bytes] = []
    for message in messages:
        for number, _, payload in fields(message):
            if number not in (1, 2, 3) or not isinstance(payload, bytes):
                continue
            if kind != number:
                kind, lists = Kind(number), []
            lists.append(payload)
    return kind, lists


def _parse_bytes(data: bytes) -> Values:
    return [value for number, _, value in fields(data) if number == 1 and isinstance(value, bytes)]


def _parse_floats(data: bytes) -> Values:
    chunks = [
        value
        for number, kind, value in fields(data)
        if number == 1 and kind in (LENGTH, FIXED32) and isinstance(value, bytes)
    ]
    if any(len(chunk) % 4 for chunk in chunks):
        raise WireError("a packed list of floats is not a multiple of 4 bytes long")
    return b"".join(chunks)


def _parse_ints(data: bytes) -> Values:
    values: list[int] = []
    for number, _, payload in fields(data):
        if number != 1:
            continue
        if isinstance(payload, int):
            values.append(_signed(payload))
        else:
            values.extend(_packed_ints(payload))
    return values


def _packed_ints(payload: bytes) -> Iterator[int]:
    at = 0
    while at < len(payload):
        value, at = _read_varint(payload, at)
        yield _signed(value)


def _signed(value: int) -> int:
    """Read 64 bits as two's complement, the form of int64."""
    return value - (1 << 64) if value >= 1 << 63 else value


_PARSERS = {Kind.BYTES: _parse_bytes, Kind.FLOAT: _parse_floats, Kind.INT64: _parse_ints}
