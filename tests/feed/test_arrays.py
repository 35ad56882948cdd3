"""Convert ragged arrays, vectors, images and times from Arrow to NumPy, and refuse each kind of wrong value."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.pictures import picture

from tfspark.errors import ConfigError, DataError
from tfspark.feed.arrays import column_to_numpy, rows_at_once
from tfspark.feed.batching import Batcher, num_rows, pad, row_shape, take
from tfspark.feed.columns import Column, Columns

Rows = list[list[int]]
LISTS = [pa.list_, pa.large_list]
RAGGED = st.lists(st.lists(st.integers(-100, 100), max_size=5), min_size=1, max_size=12)
VECTOR = pa.struct(
    [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
)
IMAGE = pa.struct(
    [
        ("origin", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("nChannels", pa.int32()),
        ("mode", pa.int32()),
        ("data", pa.binary()),
    ]
)


def converted(array: pa.Array, **column: Any) -> np.ndarray:
    return column_to_numpy(array, Column("c", **column))


# --- ragged ----------------------------------------------------------------------------------------


@given(
    rows=RAGGED,
    kind=st.sampled_from(LISTS),
    first=st.integers(0, 11),
    dtype=st.sampled_from(["int8", "float32"]),
)
def test_ragged_rows_become_one_array_per_row(rows: Rows, kind: Any, first: int, dtype: str) -> None:
    first = min(first, len(rows) - 1)
    found = converted(pa.array(rows, kind(pa.int64())).slice(first), ragged="ragged", dtype=dtype)
    assert [row.tolist() for row in found] == rows[first:]
    assert {row.dtype.name for row in found} == {dtype}
    assert row_shape(found) == (None,)


@given(rows=RAGGED, first=st.integers(0, 11), fill=st.integers(-100, 100))
def test_padded_ragged_rows_keep_their_values_and_end_with_pad_value(
    rows: Rows, first: int, fill: int
) -> None:
    first = min(first, len(rows) - 1)
    array = pa.array(rows, pa.list_(pa.int64())).slice(first)
    found = converted(array, ragged="pad", pad_to=5, pad_value=fill)
    assert found.tolist() == [row + [fill] * (5 - len(row)) for row in rows[first:]]


@given(rows=RAGGED)
def test_raw_bytes_of_unequal_lengths_become_one_array_per_row(rows: Rows) -> None:
    array = pa.array([np.array(row, "<i2").tobytes() for row in rows])
    assert [row.tolist() for row in converted(array, ragged="ragged", dtype="int16")] == rows


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    batch_size=st.integers(1, 7),
    window=st.integers(0, 20),
    cut=st.integers(1, 5),
)
def test_batcher_returns_each_ragged_row_once_and_pad_fills_the_last_batch(
    lengths: list[int], batch_size: int, window: int, cut: int
) -> None:
    rows = [[number] * length for number, length in enumerate(lengths)]
    ids = np.arange(len(rows))
    ragged = converted(pa.array(rows, pa.list_(pa.int64())), ragged="ragged")
    batcher = Batcher(batch_size, window, np.random.default_rng(0))
    batches = []
    for start in range(0, len(rows), cut):
        batcher.add(take({"id": ids, "v": ragged}, slice(start, start + cut)))
        batches.extend(batcher.full_batches())
    batches.extend(batcher.rest())

    seen = [(int(i), v.tolist()) for batch in batches for i, v in zip(batch["id"], batch["v"], strict=True)]
    assert sorted(seen) == list(enumerate(rows))
    filled = pad(batches[-1], batch_size, batches[-1])
    assert num_rows(filled) == batch_size
    assert all(v.tolist() == rows[i] for i, v in zip(filled["id"], filled["v"], strict=True))


def test_ragged_rows_of_vectors_keep_the_inner_axis() -> None:
    found = converted(pa.array([[[1, 2]], [[3, 4], [5, 6]]]), ragged="ragged")
    assert [row.tolist() for row in found] == [[[1, 2]], [[3, 4], [5, 6]]]
    assert row_shape(found) == (None, 2)
    dense = converted(pa.array([[[1, 2]], [[3, 4], [5, 6]]]), ragged="pad", pad_to=2)
    assert dense.tolist() == [[[1, 2], [0, 0]], [[3, 4], [5, 6]]]


def test_ragged_strings_are_padded_with_the_empty_string() -> None:
    assert converted(pa.array([["a"], ["b", "é"]]), ragged="pad", pad_to=2).tolist() == [
        [b"a", b""],
        [b"b", "é".encode()],
    ]


# --- vectors and images ----------------------------------------------------------------------------


def vector_of(values: list[float], sparse: bool) -> dict[str, Any]:
    """Return a vector as Spark's `VectorUDT` serializes it."""
    if not sparse:
        return {"type": 1, "size": None, "indices": None, "values": values}
    places = [i for i, value in enumerate(values) if value]
    return {"type": 0, "size": len(values), "indices": places, "values": [values[i] for i in places]}


@given(
    dense=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 8), st.integers(1, 5)),
        elements=st.sampled_from([0.0, 1.5, -2.0, float("inf")]),
    ),
    sparse=st.lists(st.booleans(), min_size=8, max_size=8),
    first=st.integers(0, 7),
)
def test_dense_and_sparse_vectors_become_one_dense_array(
    dense: np.ndarray, sparse: list[bool], first: int
) -> None:
    first = min(first, len(dense) - 1)
    values = [vector_of(row, kind) for row, kind in zip(dense.tolist(), sparse, strict=False)]
    found = converted(pa.array(values, VECTOR).slice(first))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, dense[first:])


def image_of(pixels: np.ndarray) -> dict[str, Any]:
    """Return pixels as Spark's image source does: with the blue channel first, as in OpenCV."""
    height, width, channels = pixels.shape
    swapped = pixels[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]]
    mode = {1: 0, 3: 16, 4: 24}[channels]
    return {
        "origin": "file:/x.png",
        "height": height,
        "width": width,
        "nChannels": channels,
        "mode": mode,
        "data": swapped.tobytes(),
    }


@given(
    pixels=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3, 4])),
    ),
    first=st.integers(0, 3),
)
def test_channels_of_images_are_ordered_red_green_blue(pixels: np.ndarray, first: int) -> None:
    first = min(first, len(pixels) - 1)
    found = converted(pa.array([image_of(one) for one in pixels], IMAGE).slice(first))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels[first:])


# --- times -----------------------------------------------------------------------------------------

EPOCH = datetime.date(1970, 1, 1)
UTC = datetime.UTC


@given(days=st.lists(st.dates(), min_size=1))
def test_dates_become_days_since_1970(days: list[datetime.date]) -> None:
    found = converted(pa.array(days))
    assert found.dtype == np.int32
    assert found.tolist() == [(day - EPOCH).days for day in days]


@given(
    moments=st.lists(st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)), min_size=1)
)
def test_timestamps_become_seconds_since_1970_in_utc(moments: list[datetime.datetime]) -> None:
    seconds = [moment.replace(tzinfo=UTC).timestamp() for moment in moments]
    plain = converted(pa.array(moments, pa.timestamp("us")))
    zoned = converted(
        pa.array([m.replace(tzinfo=UTC) for m in moments], pa.timestamp("us", tz="America/New_York"))
    )
    assert plain.dtype == zoned.dtype == np.float64
    np.testing.assert_allclose(plain, seconds, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(zoned, plain)


def test_intervals_and_times_of_day_become_seconds() -> None:
    assert converted(pa.array([datetime.timedelta(hours=1, milliseconds=500)])).tolist() == [3600.5]
    assert converted(pa.array([datetime.time(0, 1, 30)], pa.time64("ns"))).tolist() == [90.0]


# --- refused values --------------------------------------------------------------------------------

NESTED = pa.list_(pa.list_(pa.int64()))
RAGGED_OPTION = {"ragged": "ragged"}
PAD = {"ragged": "pad", "pad_to": 2}
DENSE_2, DENSE_3 = vector_of([1.0, 2.0], False), vector_of([1.0, 2.0, 0.0], True)
SMALL, LARGE = image_of(picture(0)), image_of(picture(0, 5, 7))
REFUSED: list[tuple[str, pa.Array, dict[str, Any], int, str]] = [
    ("a null row", pa.array([[1], None]), RAGGED_OPTION, 1, "is null"),
    ("a null inside a row", pa.array([[], [1], [2, None]]), RAGGED_OPTION, 2, "holds a null inside its array"),
    ("a null list inside a row", pa.array([[[1]], [[2], None]], NESTED), RAGGED_OPTION, 1, "holds a null array"),
    ("different inner lengths", pa.array([[[1]], [], [[2], [3, 4]]], NESTED), RAGGED_OPTION, 2, "has 2 values"),
    ("a number", pa.array([1]), RAGGED_OPTION, 0, "expected arrays, or binaries with a dtype, to be ragged"),
    ("a string", pa.array(["a"]), RAGGED_OPTION, 0, "leave ragged='ragged' out"),
    ("a row too long", pa.array([[1], [], [1, 2, 3]]), PAD, 2, "has 3 values, more than pad_to=2"),
    ("a pad_value that is no number", pa.array([[1]]), PAD | {"pad_value": "x"}, 0, "a number that int64 can hold"),
    ("a pad_value that is no text", pa.array([["a"]]), PAD | {"pad_value": 1}, 0, "pad_value to be a text, got 1"),
    (
        "a pad_value out of range",
        pa.array([[1]]),
        PAD | {"pad_value": -1, "dtype": "uint8"},
        0,
        "a number that uint8 can hold, got -1",
    ),
    ("a value out of range", pa.array([[1], [2, 300]]), PAD | {"dtype": "uint8"}, 1, "the declared dtype uint8"),
    (
        "a byte count that is not a multiple of the value size",
        pa.array([b"ab", b"abc"]),
        {"ragged": "ragged", "dtype": "int16"},
        1,
        "no multiple of the 2 bytes",
    ),
    ("different lengths without ragged", pa.array([[1], [2, 3]]), {}, 1, "declare Column('c', ragged='pad')"),
    ("vectors of two sizes", pa.array([DENSE_2, DENSE_2, DENSE_3], VECTOR), {}, 2, "a vector of size 3"),
    ("a null vector", pa.array([DENSE_2, None], VECTOR), {}, 1, "is null"),
    ("images of two sizes", pa.array([SMALL, LARGE], IMAGE), {}, 1, "an image of 5 x 7 x 3 where"),
    (
        "an image that Spark could not decode",
        pa.array([SMALL, SMALL | {"mode": -1}], IMAGE),
        {},
        1,
        "an image of mode -1 (file:/x.png)",
    ),
    ("a null image", pa.array([None, SMALL], IMAGE), {}, 0, "is null"),
    ("a vector of an undeclared size", pa.array([DENSE_2], VECTOR), {"shape": (3,)}, 0, "has 2 values per row"),
    ("numbers as files", pa.array([1]), {"decode": "image", "shape": (1, 1, 1)}, 0, "expected binary image files"),
    ("null files", pa.array([None], pa.binary()), {"decode": "image", "shape": (1, 1, 1)}, 0, "is null"),
    ("scaled strings", pa.array(["a"]), {"scale": 2.0}, 0, "holds strings, which cannot be scaled"),
    ("a struct", pa.array([{"a": 1, "b": 2}]), {}, 0, "df.select('c.a', 'c.b')"),
    ("a map", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), {}, 0, "df['c']['key']"),
    ("a struct in a list", pa.array([[{"a": 1}]]), {}, 0, "cannot be fed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("array", "column", "row", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_error_of_a_wrong_value_names_its_row_and_the_fix(
    array: pa.Array, column: dict[str, Any], row: int, says: str
) -> None:
    for part in (array, pa.concat_arrays([array, array]).slice(len(array))):
        with pytest.raises(DataError) as caught:
            converted(part, **column)
        assert str(caught.value).startswith(f"row {row}: column 'c'"), str(caught.value)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ragged": "yes"}, "expected ragged to be pad or ragged, got 'yes'"),
        ({"ragged": "pad", "shape": (3,)}, "expected no shape beside ragged"),
        ({"pad_to": 3}, "expected pad_to only beside ragged pad, got it beside ragged None"),
        ({"ragged": "ragged", "pad_value": 1}, "expected pad_value only beside ragged pad"),
        ({"ragged": "pad", "pad_to": 0}, "expected pad_to >= 1, got 0"),
        ({"resize": True}, "expected resize only beside decode image"),
        ({"decode": "sound"}, "expected decode to be image, got 'sound'"),
        ({"decode": "image"}, "expected the shape [height, width, channels] beside decode image"),
        ({"decode": "image", "shape": (4, 4, 2)}, "channels being 1, 3 or 4; got [4, 4, 2]"),
        ({"decode": "image", "shape": (4, 4, 3), "dtype": "uint8"}, "expected neither dtype nor ragged"),
    ],
)
def test_contradicting_options_of_a_column_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Column("c", **options)
    assert says in str(caught.value)


# --- rows that grow when they are converted ----------------------------------------------------------


def sparse(rows: int, size: int) -> pa.Array:
    """Return sparse vectors that have one number each."""
    return pa.array([{"type": 0, "size": size, "indices": [1], "values": [1.0]}] * rows, VECTOR)


@pytest.mark.parametrize(
    ("array", "options", "expected", "why"),
    [
        (sparse(100, 1000), {}, 8, "64 KB of rows of 8,000 bytes"),
        (sparse(100, 262_144), {}, 1, "a row that is larger than the bound"),
        (sparse(100, 10), {}, 100, "small vectors"),
        (sparse(100, 1000).slice(90), {}, 8, "a slice"),
        (pa.array([[1, 2]] * 100), {"ragged": "pad", "pad_to": 2000}, 4, "padded lists"),
        (pa.array([[1.0] * 2000] * 100), {}, 100, "dense arrays are as large in Arrow"),
    ],
)
def test_rows_at_once_returns_rows_that_fit_the_bound_when_they_are_dense(
    array: pa.Array, options: dict[str, Any], expected: int, why: str
) -> None:
    batch = pa.RecordBatch.from_arrays([array], ["c"])
    assert rows_at_once(batch, Columns((Column("c", **options),)), 1 << 16) == expected, why


# --- text where numbers are declared -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (pa.array(["10.0", "10.5"]), {"dtype": "float32"}),
        (pa.array(["10.0", "10.5"], pa.large_string()), {"dtype": "uint8"}),
        (pa.array(["10.0", "9"]), {"dtype": "float32", "ragged": "pad"}),
        (pa.array([["1", "2"], ["3", "4"]]), {"dtype": "int64"}),
        (pa.array([["1"], ["3", "4"]]), {"dtype": "float32", "ragged": "ragged"}),
    ],
)
def test_text_in_a_column_declared_as_numbers_is_refused(array: pa.Array, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"row 0: column 'c' is text \(string\).*cast"):
        converted(array, **options)
