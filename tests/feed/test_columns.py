"""Convert Arrow arrays to NumPy arrays, and refuse each kind of wrong value."""

from __future__ import annotations

import decimal
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.errors import ConfigError, DataError
from tfspark.feed.arrays import column_to_numpy, row_weights, to_numpy
from tfspark.feed.columns import Column, Columns, check_columns

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NUMERICS = [*INTEGERS, "float16", "float32", "float64"]


def converted(array: pa.Array, **column: Any) -> np.ndarray:
    return column_to_numpy(array, Column("c", **column))


def message_of(array: pa.Array, **column: Any) -> str:
    with pytest.raises(DataError) as caught:
        converted(array, **column)
    return str(caught.value)


def pairs(values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    return pa.array(values, pa.list_(kind or pa.float32()))


# --- converted values ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NUMERICS)
def test_converted_numbers_keep_their_dtype_and_share_memory(dtype: str) -> None:
    values = np.arange(5).astype(dtype)
    array = pa.array(values)
    found = converted(array)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    assert found.ctypes.data == array.buffers()[1].address, "a view, not a copy"


TABLE: list[tuple[str, pa.Array, dict[str, Any], Any, str]] = [
    ("booleans", pa.array([True, False, True]), {}, [True, False, True], "bool"),
    ("booleans as floats", pa.array([True, False]), {"dtype": "float32"}, [1.0, 0.0], "float32"),
    (
        "decimals",
        pa.array([decimal.Decimal("1.25"), decimal.Decimal("-3.50")], pa.decimal128(5, 2)),
        {},
        [1.25, -3.5],
        "float64",
    ),
    (
        "wide decimals",
        pa.array([decimal.Decimal("1.25")], pa.decimal256(40, 2)),
        {"dtype": "float32"},
        [1.25],
        "float32",
    ),
    ("another dtype", pa.array([1, 2], pa.int32()), {"dtype": "float64"}, [1.0, 2.0], "float64"),
    ("lists", pairs([[1, 2], [3, 4]]), {}, [[1, 2], [3, 4]], "float32"),
    ("large lists", pa.array([[1, 2]], pa.large_list(pa.int64())), {}, [[1, 2]], "int64"),
    ("fixed lists", pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)), {}, [[1, 2], [3, 4]], "int8"),
    (
        "lists of lists",
        pa.array([[[1, 2]], [[3, 4]]], pa.list_(pa.list_(pa.int64()))),
        {},
        [[[1, 2]], [[3, 4]]],
        "int64",
    ),
    (
        "fixed lists in lists",
        pa.array([[[1, 2], [5, 6]], [[3, 4], [7, 8]]], pa.list_(pa.list_(pa.int64(), 2))),
        {},
        [[[1, 2], [5, 6]], [[3, 4], [7, 8]]],
        "int64",
    ),
    ("lists of booleans", pa.array([[True], [False]]), {}, [[True], [False]], "bool"),
    ("lists without values", pairs([[], []]), {}, [[], []], "float32"),
    ("a declared shape", pairs([[1, 2, 3, 4]]), {"shape": (2, 2)}, [[[1, 2], [3, 4]]], "float32"),
    ("a scalar as a vector", pa.array([1, 2]), {"shape": (1,)}, [[1], [2]], "int64"),
    ("a vector as a scalar", pairs([[1], [2]]), {"shape": ()}, [1, 2], "float32"),
    ("strings", pa.array(["a", "é", ""]), {}, [b"a", "é".encode(), b""], "object"),
    ("large strings", pa.array(["a"], pa.large_string()), {}, [b"a"], "object"),
    ("binaries", pa.array([b"\x00\xff", b""]), {}, [b"\x00\xff", b""], "object"),
    ("fixed binaries", pa.array([b"ab", b"cd"], pa.binary(2)), {}, [b"ab", b"cd"], "object"),
    ("raw bytes", pa.array([b"\x01\x02", b"\x03\x04"]), {"dtype": "uint8"}, [[1, 2], [3, 4]], "uint8"),
    (
        "raw values of two bytes",
        pa.array([b"\x01\x00\x00\x01", b"\x02\x00\x03\x00"]),
        {"dtype": "int16"},
        [[1, 256], [2, 3]],
        "int16",
    ),
    (
        "raw values with a shape",
        pa.array([bytes(range(4))], pa.large_binary()),
        {"dtype": "uint8", "shape": (2, 2, 1)},
        [[[[0], [1]], [[2], [3]]]],
        "uint8",
    ),
    (
        "raw values of fixed width",
        pa.array([b"\x01\x00", b"\x02\x00"], pa.binary(2)),
        {"dtype": "uint16"},
        [[1], [2]],
        "uint16",
    ),
]


@pytest.mark.parametrize(
    ("array", "column", "expected", "dtype"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE]
)
def test_converted_column_has_the_expected_values_and_dtype(
    array: pa.Array, column: dict[str, Any], expected: Any, dtype: str
) -> None:
    found = converted(array, **column)
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("array", "column", "expected", "dtype"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE]
)
def test_converted_slice_has_only_its_own_rows(
    array: pa.Array, column: dict[str, Any], expected: Any, dtype: str
) -> None:
    longer = pa.concat_arrays([array, array, array])
    found = converted(longer.slice(len(array), len(array)), **column)
    assert found.tolist() == expected
    assert found.dtype == np.dtype(dtype)


@pytest.mark.parametrize("column", [{}, {"shape": (3,)}])
def test_column_of_lists_without_rows_becomes_an_empty_array(column: dict[str, Any]) -> None:
    assert len(converted(pairs([]), **column)) == 0


def test_raw_values_at_an_unaligned_address_are_read() -> None:
    array = pa.array([b"x", np.arange(3, dtype="<f8").tobytes()]).slice(1)
    assert converted(array, dtype="float64").tolist() == [[0.0, 1.0, 2.0]]


def test_nulls_outside_a_slice_are_allowed() -> None:
    assert converted(pa.array([None, 1, 2, None]).slice(1, 2)).tolist() == [1, 2]
    nested = pairs([None, [1, 2], [3, None]]).slice(1, 1)
    assert converted(nested).tolist() == [[1, 2]]


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    """Draw an array whose rows have the same shape, of up to three axes."""
    shape = draw(st.lists(st.integers(1, 4), max_size=3))
    rows = draw(st.integers(1, 6))
    dtype = draw(st.sampled_from([*NUMERICS, "bool"]))
    count = rows * int(np.prod(shape, dtype=int))
    values = draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    return np.array(values).astype(dtype).reshape(rows, *shape)


def arrow_of(values: np.ndarray, kinds: list[str]) -> pa.Array:
    """Convert a tensor to nested Arrow lists; `kinds` has the kind of list for each axis, the innermost first."""
    array = pa.array(values.ravel())
    for size, kind in zip(reversed(values.shape[1:]), kinds, strict=False):
        offsets = np.arange(0, len(array) + 1, size)
        if kind == "fixed":
            array = pa.FixedSizeListArray.from_arrays(array, size)
        elif kind == "large":
            array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), array)
        else:
            array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array)
    return array


@given(
    values=tensors(),
    kinds=st.lists(st.sampled_from(["fixed", "large", "plain"]), min_size=3, max_size=3),
    cut=st.tuples(st.integers(0, 5), st.integers(1, 6)),
)
def test_tensor_in_arrow_lists_is_converted_without_a_change(
    values: np.ndarray, kinds: list[str], cut: tuple[int, int]
) -> None:
    first, count = min(cut[0], len(values) - 1), cut[1]
    found = converted(arrow_of(values, kinds).slice(first, count))
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values[first : first + count])


@given(values=tensors(), first=st.integers(0, 5))
def test_tensor_in_raw_bytes_is_converted_without_a_change(values: np.ndarray, first: int) -> None:
    first = min(first, len(values) - 1)
    array = pa.array([row.tobytes() for row in values]).slice(first)
    found = converted(array, dtype=values.dtype.name, shape=values.shape[1:])
    np.testing.assert_array_equal(found, values[first:])


# --- refused values --------------------------------------------------------------------------------

NESTED = pa.list_(pa.list_(pa.int64()))
DEEP = pa.list_(NESTED)
REFUSED: list[tuple[str, pa.Array, dict[str, Any], int, str]] = [
    ("null number", pa.array([1, 2, None]), {}, 2, "is null"),
    ("nothing but nulls", pa.nulls(2), {}, 0, "is null"),
    ("null string", pa.array(["a", None]), {}, 1, "is null"),
    ("null raw value", pa.array([b"a", None]), {"dtype": "uint8"}, 1, "is null"),
    ("null list", pairs([[1], [2], None]), {}, 2, "is null"),
    ("null fixed list", pa.array([[1], None], pa.list_(pa.int8(), 1)), {}, 1, "is null"),
    ("null in a list", pairs([[1, 2], [3, None], [5, 6]]), {}, 1, "holds a null inside its array"),
    ("null list in a list", pa.array([[[1], [2]], [[3], None]], NESTED), {}, 1, "holds a null array"),
    ("null deep inside", pa.array([[[1], [2]], [[3], [4]], [[5], [None]]], NESTED), {}, 2, "null inside"),
    ("unequal lengths", pairs([[1, 2], [1, 2], [3]]), {}, 2, "has 1 values where those before have 2"),
    ("unequal inner lengths", pa.array([[[1], [2]], [[3], [4, 5]]], NESTED), {}, 1, "has 2 values"),
    ("unequal lengths inside one row", pa.array([[[1], [2, 3]], [[3], [4]]], NESTED), {}, 0, "has 2 values"),
    (
        "unequal lengths two levels down",
        pa.array([[[[1], [2]]], [[[3], [4]]], [[[5], []]]], DEEP),
        {},
        2,
        "has 0 values",
    ),
    ("unequal raw lengths", pa.array([b"ab", b"a"]), {"dtype": "uint8"}, 1, "has 1 bytes"),
    (
        "a byte count that is not a multiple of the value size",
        pa.array([b"abc"]),
        {"dtype": "int16"},
        0,
        "no multiple of the 2 bytes",
    ),
    ("wrong shape", pairs([[1, 2, 3]]), {"shape": (2, 2)}, 0, "has 3 values per row"),
    ("a list where a scalar is declared", pairs([[1, 2]]), {"shape": ()}, 0, "has 2 values per row"),
    ("structs", pa.array([{"a": 1}]), {}, 0, "cannot be fed"),
    ("maps", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), {}, 0, "cannot be fed"),
]


@pytest.mark.parametrize(
    ("array", "column", "row", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_error_of_a_wrong_value_names_its_row(
    array: pa.Array, column: dict[str, Any], row: int, says: str
) -> None:
    message = message_of(array, **column)
    assert message.startswith(f"row {row}: column 'c' "), message
    assert says in message


@pytest.mark.parametrize(
    ("array", "column", "row", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_error_of_a_wrong_value_in_a_slice_counts_rows_from_the_start_of_the_slice(
    array: pa.Array, column: dict[str, Any], row: int, says: str
) -> None:
    longer = pa.concat_arrays([array, array])
    message = message_of(longer.slice(len(array)), **column)
    assert message.startswith(f"row {row}: "), message
    assert says in message


# --- labels, weights, columns ----------------------------------------------------------------------


def labelled(labels: pa.Array, num_classes: int | None = 3) -> dict[str, np.ndarray]:
    columns = Columns((Column("x"),), Column("y"), num_classes)
    x = pa.array(np.zeros(len(labels), np.float32))
    return to_numpy(pa.RecordBatch.from_arrays([labels, x], names=["y", "x"]), columns)


@pytest.mark.parametrize(
    ("labels", "row", "says"),
    [
        (pa.array([0, 1, 3]), 2, "is 3, expected a class from 0 to 2"),
        (pa.array([0, -1, 3]), 1, "is -1, expected a class from 0 to 2"),
        (pa.array([[0], [5]]), 1, "is 5, expected a class from 0 to 2"),
        (pa.array([0.0, 1.0]), 0, "has type float64, expected integer classes"),
        (pa.array(["a", "b"]), 0, "has type object, expected integer classes"),
    ],
)
def test_label_outside_its_classes_is_refused_with_its_row_and_value(
    labels: pa.Array, row: int, says: str
) -> None:
    with pytest.raises(DataError) as caught:
        labelled(labels)
    assert str(caught.value).startswith(f"row {row}: label 'y' ")
    assert says in str(caught.value)


@pytest.mark.parametrize("labels", [pa.array([0, 2]), pa.array([True, False]), pa.array([2], pa.uint8())])
def test_label_among_its_classes_is_converted(labels: pa.Array) -> None:
    assert labelled(labels)["y"].tolist() == labels.to_pylist()


def test_label_without_num_classes_is_not_checked() -> None:
    assert labelled(pa.array([-7.5]), num_classes=None)["y"].tolist() == [-7.5]


def test_row_weights_are_the_weights_of_the_classes_and_1_for_classes_without_a_weight() -> None:
    columns = Columns((Column("x"),), Column("y"), class_weights=((1, 0.5), (2, 3.0)))
    weights = row_weights({"y": np.array([[0], [1], [2], [1]])}, columns, 4)
    assert weights.tolist() == [1.0, 0.5, 3.0, 0.5]
    assert weights.dtype == np.float32


def test_row_weights_of_one_hot_labels_are_the_weights_of_their_classes() -> None:
    columns = Columns((Column("x"),), Column("y"), class_weights=((1, 0.5), (2, 3.0)))
    labels = np.eye(3, dtype=np.float32)[[0, 2, 1]]
    assert row_weights({"y": labels}, columns, 3).tolist() == [1.0, 3.0, 0.5]
    assert row_weights({"y": labels.astype(bool)}, columns, 3).tolist() == [1.0, 3.0, 0.5]


def test_row_weights_of_a_weight_column_are_multiplied_by_the_weights_of_the_classes() -> None:
    columns = Columns((Column("x"),), Column("y"), class_weights=((1, 0.5),), weight=Column("w"))
    rows = {"y": np.array([0, 1, 1]), "w": np.array([[3], [2], [-0.0]])}
    weights = row_weights(rows, columns, 3)
    assert weights.tolist() == [3.0, 1.0, 0.0]
    assert not np.signbit(weights).any(), "-0.0 means padding"
    assert "w" not in rows


@pytest.mark.parametrize(
    ("label", "weight", "says"),
    [
        (np.array([0, 1]), np.array([1.0, np.nan]), "row 1: weight column 'w' is nan"),
        (np.array([0, 1]), np.array([np.inf, 1.0]), "row 0: weight column 'w' is inf"),
        (
            np.array([0, 1]),
            np.array([b"1", b"2"], object),
            "row 0: weight column 'w' has values of type object",
        ),
        (
            np.array([0, 1]),
            np.ones((2, 3)),
            "row 0: weight column 'w' has values of type float64 and shape [3]",
        ),
        (np.zeros((2, 4, 4)), np.ones(2), "row 0: label 'y' has float64 values of shape [4, 4]"),
        (np.array([[0, 1], [2, 0]]), np.ones(2), "row 1: label 'y' is [2, 0], expected one-hot"),
        (np.array([b"a", b"b"], object), np.ones(2), "row 0: label 'y' has object values"),
    ],
)
def test_impossible_row_weights_are_refused_with_their_row(label: Any, weight: Any, says: str) -> None:
    columns = Columns((Column("x"),), Column("y"), class_weights=((1, 0.5),), weight=Column("w"))
    with pytest.raises(DataError) as caught:
        row_weights({"y": label, "w": weight}, columns, 2)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Column("a", shape=(2, 0)), "expected a shape of sizes >= 1, got [2, 0]"),
        (lambda: Column("a", scale=0.0), "expected a finite scale other than 0, got 0.0"),
        (lambda: Column("a", scale=float("nan")), "expected a finite scale other than 0, got nan"),
        (lambda: Column("a", dtype="floaty"), "expected a numeric dtype"),
        (lambda: Column("a", dtype="datetime64[s]"), "expected a numeric dtype"),
        (lambda: Column("a", dtype="O"), "expected a numeric dtype"),
        (lambda: Columns(()), "expected at least one feature column"),
        (lambda: Columns((Column("a"),), Column("a")), "expected every column once, got ['a', 'a']"),
        (
            lambda: Columns((Column("a"),), (Column("y"), Column("z")), num_classes=2),
            "expected num_classes and class_weights with a single label only, got labels ['y', 'z']",
        ),
        (
            lambda: Columns((Column("a"),), Column("y", shape=(4, 4)), class_weights=((1, 2.0),)),
            "expected class_weights for a label that is one class or one-hot, 'y' has the shape [4, 4]",
        ),
        (
            lambda: Columns((Column("a"),), weight=Column("w", ragged="pad")),
            "expected the weight column 'w' to hold one number for each row",
        ),
        (
            lambda: Columns((Column("a"),), Column("y"), weight=Column("a")),
            "expected every column once, got ['a', 'y', 'a']",
        ),
    ],
)
def test_impossible_declarations_of_columns_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert says in str(caught.value)


def test_columns_are_equal_after_a_round_trip_through_json() -> None:
    columns = Columns(
        (Column("a", shape=(2, 3), dtype="uint8", scale=255.0), Column("b", shape=())),
        Column("y"),
        num_classes=2,
        class_weights=((0, 1.5),),
    )
    assert Columns.from_json(json.loads(json.dumps(columns.to_json()))) == columns
    others = [
        Columns((Column("a"),)),
        Columns((Column("a"),), Column("y"), weight=Column("w", dtype="float32")),
        Columns((Column("a", ragged="pad", pad_to=3, pad_value="-"),), (Column("y"), Column("z"))),
        Columns((Column("a", shape=(2, 2, 3), decode="image", resize=True),), examples="record"),
    ]
    for other in others:
        assert Columns.from_json(json.loads(json.dumps(other.to_json()))) == other


def test_columns_inside_examples_need_only_the_column_of_records_in_the_data() -> None:
    columns = Columns((Column("image"),), Column("label"), examples="byteArray")
    check_columns(columns, ["byteArray"])
    with pytest.raises(ConfigError, match="expected a column 'byteArray', the data has"):
        check_columns(columns, ["image", "label"])


def test_column_that_the_data_lacks_is_refused_with_the_most_similar_name() -> None:
    with pytest.raises(ConfigError, match=r"expected a column 'imagee'.*did you mean 'image'"):
        check_columns(Columns((Column("imagee"),)), ["image", "label"])


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        ([1, 300], "uint8", "300 would become 44"),
        ([1, -1], "uint64", "-1 would become 2**64 - 1"),
        ([1.0, 0.5], "int64", "0.5 would become 0"),
        ([1.0, float("nan")], "int32", "nan is no whole number"),
        ([0, 2], "bool", "2 would become true"),
    ],
)
def test_column_to_numpy_refuses_a_value_that_the_dtype_cannot_hold(
    values: list[float], dtype: str, reason: str
) -> None:
    with pytest.raises(
        DataError, match=f"row 1: column 'x' holds values that the declared dtype {dtype} cannot"
    ):
        column_to_numpy(pa.array(values), Column("x", dtype=dtype))


@pytest.mark.parametrize(
    ("name", "available", "hint"),
    [
        ("s.x", ["s", "label"], "df.withColumn('s.x', df['s.x'])"),
        ("ID", ["id", "label"], "did you mean 'id'?"),
        ("labl", ["id", "label"], "did you mean 'label'?"),
        ("nothing", ["id", "label"], "name the feature and label columns"),
    ],
)
def test_error_of_a_missing_column_has_a_hint(name: str, available: list[str], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_columns(Columns((Column(name),)), available)
    assert hint in str(caught.value)


def test_error_of_a_struct_names_its_fields_in_the_syntax_of_spark() -> None:
    assert "df.select('c.a', 'c.`y.z`')" in message_of(pa.array([{"a": 1, "y.z": 2}]))
    assert "expected no variant" in message_of(pa.array([{"value": b"1", "metadata": b""}]))
