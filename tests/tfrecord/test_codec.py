"""Compare the codec with TensorFlow's protobuf messages, and its decoder with its encoder."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfspark.errors import DataError
from tfspark.tfrecord.damage import BadRecords, Damage
from tfspark.tfrecord.decode import decode, decode_block
from tfspark.tfrecord.encode import encode_batch
from tfspark.tfrecord.framing import frame
from tfspark.tfrecord.records import Block, read_blocks

tf_train = pytest.importorskip("tensorflow").train

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32)
ELEMENTS = {
    pa.int64(): INT64,
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.bool_(): st.booleans(),
    pa.float32(): FLOAT32,
    pa.string(): st.text(max_size=20),
    pa.binary(): st.binary(max_size=200),
}
VALUES = {**ELEMENTS, **{pa.list_(dtype): st.lists(value, max_size=6) for dtype, value in ELEMENTS.items()}}


def blocks_of(data: bytes) -> Block:
    (block,) = list(read_blocks(io.BytesIO(data), Damage("memory")))
    return block


def framed(examples: list[bytes]) -> Block:
    return blocks_of(b"".join(frame(example) for example in examples))


@st.composite
def batches(draw: st.DrawFn) -> pa.RecordBatch:
    types = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4))
    size = draw(st.sampled_from([1, 2, 7, 8, 9, 30]))
    names = draw(st.lists(st.text(max_size=150), min_size=len(types), max_size=len(types), unique=True))
    repeat = draw(st.booleans())
    columns = {}
    for name, dtype in zip(names, types, strict=True):
        cells = st.none() | VALUES[dtype]
        values = [draw(cells)] * size if repeat else draw(st.lists(cells, min_size=size, max_size=size))
        columns[name] = pa.array(values, dtype)
    return pa.record_batch(columns)


def same(left: pa.RecordBatch, right: pa.RecordBatch) -> bool:
    return left.schema == right.schema and repr(left.to_pydict()) == repr(right.to_pydict())


@settings(max_examples=150)
@given(batches())
def test_decode_returns_the_encoded_batch(batch: pa.RecordBatch) -> None:
    assert same(decode(blocks_of(encode_batch(batch).tobytes()), batch.schema), batch)


@settings(max_examples=80)
@given(batches())
def test_tensorflow_reads_encoded_batches(batch: pa.RecordBatch) -> None:
    block = blocks_of(encode_batch(batch).tobytes())
    for row in range(batch.num_rows):
        example = tf_train.Example.FromString(block.record(row))
        expected = {name: batch.column(name)[row].as_py() for name in batch.schema.names}
        assert set(example.features.feature) == {
            name for name, value in expected.items() if value is not None
        }
        for name, feature in example.features.feature.items():
            assert repr(values_of(feature)) == repr(as_list(expected[name]))


def values_of(feature: Any) -> list[Any]:
    return list(getattr(feature, feature.WhichOneof("kind")).value)


def as_list(value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    return [int(v) if isinstance(v, bool) else v.encode() if isinstance(v, str) else v for v in values]


def example_of(cells: dict[str, Any]) -> Any:
    features = {}
    for name, values in cells.items():
        if values is None:
            continue
        kind, cast = values
        lists = {
            "i": ("int64_list", "Int64List"),
            "f": ("float_list", "FloatList"),
            "b": ("bytes_list", "BytesList"),
        }
        field, message = lists[kind]
        features[name] = tf_train.Feature(**{field: getattr(tf_train, message)(value=cast)})
    return tf_train.Example(features=tf_train.Features(feature=features))


CELLS = {
    "i": st.none() | st.tuples(st.just("i"), st.lists(INT64, max_size=5)),
    "f": st.none() | st.tuples(st.just("f"), st.lists(FLOAT32, max_size=5)),
    "b": st.none() | st.tuples(st.just("b"), st.lists(st.binary(max_size=140), max_size=5)),
}
LISTS = pa.schema([("i", pa.list_(pa.int64())), ("f", pa.list_(pa.float32())), ("b", pa.list_(pa.binary()))])


@settings(max_examples=100)
@given(st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=20), st.booleans())
def test_decode_reads_examples_that_tensorflow_wrote(rows: list[dict[str, Any]], reverse: bool) -> None:
    examples = []
    for place, row in enumerate(rows):
        names = sorted(row, reverse=reverse and place % 2 == 1)
        # One message per feature: protobuf merges joined messages, so the test can choose the order of map entries.
        examples.append(b"".join(example_of({name: row[name]}).SerializeToString() for name in names))
    batch = decode(framed(examples), LISTS)
    expected = {name: [row[name] and row[name][1] for row in rows] for name in LISTS.names}
    assert repr(batch.to_pydict()) == repr(expected)


def tag(number: int, wire_type: int) -> bytes:
    return bytes([number << 3 | wire_type])


def field(number: int, payload: bytes) -> bytes:
    assert len(payload) < 128
    return tag(number, 2) + bytes([len(payload)]) + payload


def entry(key: bytes, feature: bytes) -> bytes:
    return field(1, field(1, key) + field(2, feature))


MINUS_ONE = b"\xff" * 9 + b"\x01"
ODD_SHAPES = {
    "no bytes at all": (b"", None),
    "no features": (field(1, b""), None),
    "unpacked": (field(1, entry(b"x", field(3, tag(1, 0) + b"\x05" + tag(1, 0) + MINUS_ONE))), [5, -1]),
    "packed and unpacked": (
        field(1, entry(b"x", field(3, field(1, b"\x05\x06") + tag(1, 0) + b"\x07"))),
        [5, 6, 7],
    ),
    "two packed": (field(1, entry(b"x", field(3, field(1, b"\x05") + field(1, b"\x06")))), [5, 6]),
    "empty packed": (field(1, entry(b"x", field(3, field(1, b"")))), []),
    "empty list": (field(1, entry(b"x", field(3, b""))), []),
    "kind not set": (field(1, entry(b"x", b"")), None),
    "value not set": (field(1, field(1, field(1, b"x"))), None),
    "value before key": (field(1, field(1, field(2, field(3, field(1, b"\x05"))) + field(1, b"x"))), [5]),
    "key twice": (
        field(1, entry(b"x", field(3, field(1, b"\x05"))) + entry(b"x", field(3, field(1, b"\x06")))),
        [6],
    ),
    "kind replaced": (field(1, entry(b"x", field(2, b"") + field(3, field(1, b"\x05")))), [5]),
    "two lists": (field(1, entry(b"x", field(3, field(1, b"\x05")) + field(3, field(1, b"\x06")))), [5, 6]),
    "features twice": (field(1, entry(b"y", b"")) + field(1, entry(b"x", field(3, field(1, b"\x05")))), [5]),
    "unknown varint": (tag(9, 0) + b"\x01" + field(1, entry(b"x", field(3, field(1, b"\x05")))), [5]),
    "unknown fixed": (field(1, entry(b"x", field(3, field(1, b"\x05")))) + tag(9, 1) + b"12345678", [5]),
    "unknown field in the list": (field(1, entry(b"x", field(3, field(1, b"\x05") + field(7, b"abc")))), [5]),
    "overlong varint": (field(1, entry(b"x", field(3, field(1, b"\x85\x80\x00")))), [5]),
    "ten bytes": (field(1, entry(b"x", field(3, field(1, MINUS_ONE)))), [-1]),
}


@pytest.mark.parametrize("copies", [1, 12], ids=["one by one", "in lockstep"])
@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_decode_of_a_legal_but_unusual_message_returns_the_same_values_as_protobuf(
    shape: str, copies: int
) -> None:
    record, expected = ODD_SHAPES[shape]
    example = tf_train.Example.FromString(record)
    reference = example.features.feature["x"].int64_list.value if expected is not None else None
    assert reference is None or list(reference) == expected
    batch = decode(framed([record] * copies), pa.schema([("x", pa.list_(pa.int64()))]))
    assert batch.column("x").to_pylist() == [expected] * copies


DAMAGED_MESSAGES = {
    "length past the end": b"\x0a\x7f",
    "cut varint": field(1, entry(b"x", field(3, field(1, b"\x85")))),
    "varint of 11 bytes": field(1, entry(b"x", field(3, field(1, b"\xff" * 10 + b"\x01")))),
    "group": tag(1, 3),
    "text": b"this is no protobuf message, only text",
}


@pytest.mark.parametrize("copies", [1, 12], ids=["one by one", "in lockstep"])
@pytest.mark.parametrize("shape", DAMAGED_MESSAGES)
def test_error_of_records_that_are_no_examples_names_their_rows(shape: str, copies: int) -> None:
    good = field(1, entry(b"x", field(3, field(1, b"\x05"))))
    block = framed([good, *[DAMAGED_MESSAGES[shape]] * copies, good])
    with pytest.raises(BadRecords) as error:
        decode(block, pa.schema([("x", pa.int64())]))
    assert error.value.rows == list(range(1, copies + 1))


@pytest.mark.parametrize("copies", [1, 12], ids=["one by one", "in lockstep"])
@pytest.mark.parametrize("with_context", [True, False])
def test_error_of_a_sequence_example_names_its_type_and_the_fix(copies: int, with_context: bool) -> None:
    record = tf_train.SequenceExample()
    if with_context:
        record.context.feature["x"].int64_list.value.append(1)
    record.feature_lists.feature_list["tokens"].feature.add().int64_list.value.append(7)
    block = framed([record.SerializeToString()] * copies)
    with pytest.raises(BadRecords, match=r"SequenceExample.*recordType=ByteArray"):
        decode(block, pa.schema([("x", pa.int64())]))


def test_decode_of_a_sequence_example_without_feature_lists_reads_its_context() -> None:
    record = tf_train.SequenceExample()
    record.context.feature["x"].int64_list.value.append(1)
    record.feature_lists.SetInParent()
    assert decode(framed([record.SerializeToString()]), pa.schema([("x", pa.int64())])).to_pydict() == {
        "x": [1]
    }


def test_decode_skips_columns_that_are_not_asked_for() -> None:
    batch = pa.record_batch({"a": [1] * 20, "b": [[b"x", b"y"]] * 20, "c": [1.5] * 20})
    block = blocks_of(encode_batch(batch).tobytes())
    assert decode(block, pa.schema([("b", pa.list_(pa.binary()))])).to_pydict() == {"b": [[b"x", b"y"]] * 20}


def test_decode_of_a_column_that_no_record_has_returns_nulls() -> None:
    block = blocks_of(encode_batch(pa.record_batch({"a": [1] * 20})).tobytes())
    schema = pa.schema([("z", pa.string()), ("l", pa.list_(pa.float64())), ("a", pa.int8())])
    assert decode(block, schema).to_pydict() == {"z": [None] * 20, "l": [None] * 20, "a": [1] * 20}


def test_decode_without_columns_keeps_the_number_of_rows() -> None:
    block = blocks_of(encode_batch(pa.record_batch({"a": [1] * 20})).tobytes())
    assert decode(block, pa.schema([])).num_rows == 20


MISFITS = [
    ([1, 2], pa.int64(), "array<bigint>", "several values for a scalar"),
    (300, pa.int8(), "-128 to 127", "out of range"),
    (2, pa.bool_(), "0 to 1", "not a boolean"),
    (2**40, pa.date32(), "got 1099511627776", "not a date"),
    (b"\xff", pa.string(), "declare the column as binary", "not UTF-8"),
    (1.5, pa.int64(), "got float values", "a different kind"),
    ("1", pa.float32(), "got bytes values", "a different kind"),
    (12345.0, pa.decimal128(5, 2), "fits decimal128(5, 2)", "too large for the decimal"),
    (99.999, pa.decimal128(4, 2), "fits decimal128(4, 2)", "too large for the decimal when it is rounded"),
    (-9.5, pa.decimal128(1, 0), "fits decimal128(1, 0)", "negative, and too large when it is rounded"),
    (math.nan, pa.decimal128(4, 2), "fits decimal128(4, 2)", "not a number"),
    (None, pa.field("x", pa.int64(), nullable=False), "declare it nullable", "null though declared not null"),
]


@pytest.mark.parametrize(("value", "declared", "message", "why"), MISFITS)
def test_error_of_a_value_that_does_not_fit_names_file_offset_and_fix(
    value: Any, declared: Any, message: str, why: str
) -> None:
    declared = declared if isinstance(declared, pa.Field) else pa.field("x", declared)
    fits = {"int": 1, "float": 1.0, "bytes": b"a", "str": "a"}
    good = fits.get(type(value[0] if isinstance(value, list) else value).__name__, 1)
    if "kind" in why:
        good = None
    values = [good if not isinstance(value, list) else [good]] * 10
    values[4] = value
    data = encode_batch(pa.record_batch({"x": pa.array(values)})).tobytes()
    block = blocks_of(data)
    offset = block.record_offset(4)
    with pytest.raises(DataError) as error:
        decode_block(block, pa.schema([declared]), Damage("train.tfrecord"))
    assert str(error.value).startswith(f"train.tfrecord, byte {offset}: feature 'x'")
    assert message in str(error.value)
    damage = Damage("train.tfrecord", "DROPMALFORMED")
    assert decode_block(block, pa.schema([declared]), damage).num_rows == 9
    assert damage.num_records == 1


WIDENED = [
    (
        pa.array([1.1, None], pa.float64()),
        pa.array([np.float32(1.1), None], pa.float64()),
        "narrowed to float32",
    ),
    (pa.array([1.25, None]).cast(pa.decimal128(5, 2)), None, "decimal, as float"),
    (pa.array([99.99, -99.99, 99.0]).cast(pa.decimal128(4, 2)), None, "decimals near their limit"),
    (pa.array([20000, -5, None], pa.int32()).cast(pa.date32()), None, "days since 1970"),
    (
        pa.array([10**15, -1, None], pa.int64()).cast(pa.timestamp("us", "UTC")),
        None,
        "microseconds since 1970",
    ),
    (pa.array([-128, 127, None], pa.int8()), None, "byte"),
    (pa.array([[1.5, math.inf], [], None], pa.list_(pa.float64())), None, "doubles that float32 holds"),
    (pa.array(["é", "", None], pa.large_string()).cast(pa.string()), None, "text"),
]


@pytest.mark.parametrize(("column", "expected", "why"), WIDENED)
def test_decode_to_the_declared_type_restores_the_column(column: Any, expected: Any, why: str) -> None:
    batch = pa.record_batch({"x": column})
    came = decode(blocks_of(encode_batch(batch).tobytes()), batch.schema).column("x")
    assert came.equals(column if expected is None else expected)


REFUSED = [
    (pa.array([[[1]]]), "flatten", "array of arrays"),
    (pa.array([{"a": 1}]), "select its fields", "struct"),
    (pa.array([[1, None]]), "array_compact", "null element"),
]


@pytest.mark.parametrize(("column", "message", "why"), REFUSED)
def test_encode_of_values_that_an_example_cannot_hold_is_refused(column: Any, message: str, why: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_batch(pa.record_batch({"x": column}))


def test_encode_of_a_slice_writes_only_the_slice() -> None:
    numbers = pa.array([[1.0], [], None, [2.0]], pa.list_(pa.float32()))
    batch = pa.record_batch({"s": ["a", "bb", None, "dd"], "l": [[1], [2, 3], [], None], "f": numbers})
    part = batch.slice(1, 2)
    assert decode(blocks_of(encode_batch(part).tobytes()), batch.schema).to_pydict() == {
        "s": ["bb", None],
        "l": [[2, 3], []],
        "f": [[], None],
    }


def test_decode_of_values_of_very_different_sizes_returns_the_encoded_batch() -> None:
    sizes = [700, 3, 700, 0, 90_000, 12] * 4
    values = [[float(place)] * size for place, size in enumerate(sizes)]
    batch = pa.record_batch(
        {"x": pa.array(values, pa.list_(pa.float32())), "b": [b"z" * size for size in sizes]}
    )
    assert decode(blocks_of(encode_batch(batch).tobytes()), batch.schema).equals(batch)


@settings(max_examples=300)
@given(st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=4), st.data())
def test_lockstep_parser_agrees_with_the_complete_parser_on_mutated_messages(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    records = [bytearray(example_of(row).SerializeToString()) for row in rows] * 3
    for record in records:
        for _ in range(data.draw(st.integers(0, 2)) if record else 0):
            place = data.draw(st.integers(0, min(len(record), 60) - 1))
            record[place] = data.draw(st.sampled_from([0x00, 0x01, 0x0A, 0x12, 0x1A, 0x7F, 0x80, 0xFF]))
    # Leave out records that the complete parser refuses: the lockstep parser does not check entries that it skips.
    legal = [bytes(record) for record in records if parsed([bytes(record)], 10**9) is not None]
    assert repr(parsed(legal, 1)) == repr(parsed(legal, 10**9))


def parsed(records: list[bytes], min_lanes: int) -> list[dict[str, Any]] | None:
    if not records:
        return []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfspark.tfrecord.decode._MIN_LANES", min_lanes)
        try:
            return decode(framed(records), LISTS).to_pylist()
        except BadRecords:
            return None


def test_decode_reads_features_in_any_order_and_number() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {f"k{key}": int(rng.integers(-5, 300)) for key in rng.permutation(12)[: rng.integers(0, 12)]}
        for _ in range(50)
    ]
    examples = []
    for row in rows:
        parts = [example_of({key: ("i", [value])}).SerializeToString()[2:] for key, value in row.items()]
        body = b"".join(parts)
        examples.append(
            b"\x0a"
            + (bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 127 | 128, len(body) >> 7]))
            + body
        )
    schema = pa.schema([(f"k{key}", pa.int64()) for key in range(12)])
    came = decode(framed(examples), schema).to_pylist()
    assert came == [{name: row.get(name) for name in schema.names} for row in rows]
