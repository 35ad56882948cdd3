"""Sets of row numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.feed.ranges import Ranges

INTERVAL = st.tuples(st.integers(0, 40), st.integers(0, 40))
INTERVALS = st.lists(INTERVAL, max_size=12)


def rows_of(intervals: list[tuple[int, int]]) -> set[int]:
    return {row for first, end in intervals for row in range(first, end)}


@pytest.mark.parametrize(
    ("added", "expected", "reason"),
    [
        ([], [], "nothing added"),
        ([(3, 3)], [], "an interval without rows"),
        ([(5, 2)], [], "an interval that ends before it begins"),
        ([(0, 2), (2, 4)], [[0, 4]], "touching intervals are one"),
        ([(2, 4), (0, 2)], [[0, 4]], "touching from the left"),
        ([(0, 2), (3, 4)], [[0, 2], [3, 4]], "one row between keeps them apart"),
        ([(0, 2), (6, 8), (1, 7)], [[0, 8]], "an interval over a gap closes it"),
        ([(0, 8), (2, 3)], [[0, 8]], "rows that are already there change nothing"),
    ],
)
def test_ranges_keep_added_intervals_merged_and_sorted(
    added: list[tuple[int, int]], expected: list[list[int]], reason: str
) -> None:
    assert Ranges(added).to_json() == expected, reason


@given(added=INTERVALS, asked=INTERVAL)
def test_ranges_contain_exactly_the_rows_of_the_added_intervals(
    added: list[tuple[int, int]], asked: tuple[int, int]
) -> None:
    ranges = Ranges(added)
    rows = rows_of(added)
    missing = list(ranges.missing(*asked))
    assert len(ranges) == len(rows)
    assert rows_of([tuple(pair) for pair in ranges.to_json()]) == rows
    assert rows_of(missing) == set(range(*asked)) - rows
    assert sum(end - first for first, end in missing) == len(rows_of(missing)), "no row is missing twice"


@given(added=INTERVALS)
def test_ranges_are_equal_after_a_round_trip_through_json(added: list[tuple[int, int]]) -> None:
    sent = Ranges(added)
    received = Ranges()
    received.add_all(json.loads(json.dumps(sent.to_json())))
    assert received.to_json() == sent.to_json()
