"""The ledger: which rows the steps of a pass have used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.feed.ledger import Ledger, intervals_of, merged, num_rows, union

ROWS = st.sets(st.integers(0, 60))


def rows_in(intervals: list[list[int]]) -> list[int]:
    """Return the rows of intervals."""
    return [row for first, end in intervals for row in range(first, end)]


@given(ROWS, st.integers(0, 2**31))
def test_intervals_of_rows_in_any_order_contain_each_row_once(rows: set[int], seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(np.array([*rows, *rows], np.int64))
    assert rows_in(intervals_of(shuffled)) == sorted(rows)


@given(st.lists(ROWS, max_size=5))
def test_union_contains_the_rows_of_all_parts_in_the_fewest_intervals(parts: list[set[int]]) -> None:
    joined = union(intervals_of(np.array(sorted(part), np.int64)) for part in parts)
    expected = set[int]().union(*parts)
    assert rows_in(joined) == sorted(expected)
    assert joined == intervals_of(np.array(sorted(expected), np.int64))


def test_merged_reads_partitions_of_ledgers_from_json_as_numbers() -> None:
    both = merged([{1: [[0, 5]]}, {"1": [[3, 9]], "0": [[2, 3]]}])  # type: ignore[dict-item]
    assert both == {0: [[2, 3]], 1: [[0, 9]]}
    assert num_rows(both) == 10


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), unique=True, max_size=80),
    st.integers(1, 9),
    st.lists(st.integers(0, 90), max_size=4),
)
def test_ledger_up_to_a_step_has_exactly_the_rows_of_the_earlier_steps(
    rows: list[tuple[int, int]], batch_size: int, asked: list[int]
) -> None:
    ledger = Ledger()
    steps = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    for number, step in enumerate(steps):
        table = np.array(step, np.int64)
        ledger.note(number, table[:, 0], table[:, 1])
    for up_to in sorted(asked):
        used = ledger.up_to(up_to)
        found = [(partition, row) for partition, intervals in used.items() for row in rows_in(intervals)]
        assert sorted(found) == sorted(row for step in steps[:up_to] for row in step)


@pytest.mark.parametrize("up_to", [0, 7])
def test_ledger_of_a_pass_without_rows_is_empty(up_to: int) -> None:
    assert Ledger().up_to(up_to) == {}
