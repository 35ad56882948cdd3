"""Convert items of an RDD to Arrow rows, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import Row

from tfspark.errors import DataError
from tfspark.feed.rdd_rows import arrow_batches, elements_of


def round_trip(items: list[Any]) -> list[Any]:
    return [item for batch in arrow_batches(items, "partition 0") for item in elements_of(batch)]


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([([1, 2, 3], 4), ([5], 6)] * 40, id="tuples with lists of any length"),
        pytest.param([(1, "a", b"\x00", None, 2.5, True)] * 3, id="a tuple of every simple type"),
        pytest.param([[1], [2]], id="lists of numbers"),
        pytest.param([[[1, 2], "a"]], id="a list of different types"),
        pytest.param([tuple(range(50))] * 2, id="a tuple of many numbers"),
        pytest.param([3, 1, 2], id="numbers"),
        pytest.param(["b", "a"], id="text"),
        pytest.param([b"\xff", b""], id="bytes"),
        pytest.param([None, 1], id="a missing value"),
        pytest.param([{"a": 1, "b": [1.5]}, {"a": 2, "b": []}], id="dicts"),
        pytest.param([Row(image=[1, 2], label=3)] * 2, id="Rows"),
        pytest.param([()], id="an empty tuple"),
        pytest.param([[1]] * 40 + [[]], id="an empty list after the first batch"),
    ],
)
def test_items_are_equal_after_a_round_trip_through_arrow(items: list[Any]) -> None:
    found = round_trip(items)

    assert found == ([[]] if items == [()] else items)
    assert [type(item) for item in found] == [list if item == () else type(item) for item in items]


@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param([np.arange(6.0).reshape(2, 3)] * 40, id="matrices"),
        pytest.param([np.array([1, 2], np.uint8), np.array([3, 4, 5], np.uint8)], id="vectors of any length"),
        pytest.param([np.zeros((0, 2), np.float32), np.ones((2, 2), np.float32)], id="an empty matrix"),
    ],
)
def test_arrays_keep_values_shape_and_dtype_in_a_round_trip_through_arrow(arrays: list[Any]) -> None:
    for fields in (arrays, [(7, array) for array in arrays]):
        items = round_trip(fields)
        for array, item in zip(arrays, items, strict=True):
            found = item[1] if isinstance(item, tuple) else item
            np.testing.assert_array_equal(found, array)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)


def test_numpy_scalars_become_python_numbers() -> None:
    assert round_trip([(np.float32(1.5), np.int64(2))]) == [(1.5, 2)]


def test_arrow_batches_of_large_rows_have_fewer_rows() -> None:
    sizes = [batch.num_rows for batch in arrow_batches([b"x" * 200_000] * 50, "partition 0")]
    assert sum(sizes) == 50
    assert max(sizes[1:]) <= 6, "about a megabyte each"


@pytest.mark.parametrize(
    ("items", "said"),
    [
        pytest.param([object()], "expected numbers, text, bytes", id="an object of a class"),
        pytest.param([1, "a"], "Could not convert 'a'", id="two types in the first rows"),
        pytest.param(
            [1] * 32 + ["a"], "row 32 or after.*string after int64", id="a different type in a later row"
        ),
        pytest.param([1] * 40 + [2.5], "row 32 or after.*truncated", id="a fraction after whole numbers"),
        pytest.param([(1, 2)] * 40 + [(1,)], r"tuples of \['_1', '_2'\], got '\(1,\)'", id="a missing field"),
        pytest.param([{"a": 1}, {"b": 1}], r"dicts of \['a'\]", id="an unknown key"),
        pytest.param(
            [np.zeros((1, 2)), np.zeros((1, 3))], r"shape \[1, 3\]", id="arrays of different shapes"
        ),
        pytest.param([2**70], "too large", id="a number beyond 64 bits"),
    ],
)
def test_error_of_an_unsuitable_item_names_its_place_and_the_fix(items: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)partition 7, .*{said}.*rdd\.map") as caught:
        list(arrow_batches(items, "partition 7"))
    assert "expected" in str(caught.value)


def test_items_of_a_dataframe_are_rows_with_the_columns_in_the_given_order() -> None:
    batch = pa.record_batch({"label": [1, 2], "image": [[0.5], [1.5]]})

    rows = elements_of(batch, ["image", "label"])

    assert rows == [Row(image=[0.5], label=1), Row(image=[1.5], label=2)]
    assert rows[0].image == rows[0]["image"] == rows[0][0] == [0.5]
