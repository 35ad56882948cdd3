"""Make batches of one size from pieces of any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.feed.batching import (
    Batcher,
    LaneBatcher,
    Rows,
    concatenate,
    num_rows,
    pad,
    take,
    to_sparse,
    with_dense_rows,
)

SIZES = st.lists(st.integers(0, 25), max_size=15)


def rows_from(first: int, count: int) -> Rows:
    ids = np.arange(first, first + count)
    return {"id": ids, "pair": np.stack([ids, -ids], axis=1)}


def batches_of(
    sizes: Sequence[int], batch_size: int, window: int = 0, seed: int | None = None
) -> list[list[int]]:
    """Push pieces of these sizes through a `Batcher`; return the ids of each batch."""
    batcher = Batcher(batch_size, window, None if seed is None else np.random.default_rng(seed))
    batches, first = [], 0
    for size in sizes:
        batcher.add(rows_from(first, size))
        first += size
        batches += list(batcher.full_batches())
    batches += list(batcher.rest())
    assert batcher.num_rows == 0
    for batch in batches:
        np.testing.assert_array_equal(batch["pair"], np.stack([batch["id"], -batch["id"]], axis=1))
    return [batch["id"].tolist() for batch in batches]


@given(sizes=SIZES, batch_size=st.integers(1, 12), window=st.integers(0, 40), seed=st.none() | st.just(7))
def test_batcher_returns_every_row_once_in_full_batches_for_pieces_of_any_size(
    sizes: list[int], batch_size: int, window: int, seed: int | None
) -> None:
    batches = batches_of(sizes, batch_size, window, seed)
    assert sorted(chain(*batches)) == list(range(sum(sizes)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in batches[-1:])


@given(sizes=SIZES, batch_size=st.integers(1, 12))
def test_batcher_without_a_window_keeps_the_order(sizes: list[int], batch_size: int) -> None:
    assert list(chain(*batches_of(sizes, batch_size, 0, seed=1))) == list(range(sum(sizes)))


@pytest.mark.parametrize("window", [1, 31, 32, 33, 64])
def test_batcher_with_a_window_of_any_size_mixes_rows_of_several_batches(window: int) -> None:
    first, *_ = batches_of([320], 32, window, seed=1)
    assert first != sorted(first) or first != list(range(32))
    assert set(first) - set(range(32))


@given(sizes=SIZES, cuts=st.randoms(use_true_random=False), batch_size=st.integers(1, 8))
def test_batcher_with_the_same_seed_gives_the_same_batches_for_any_sizes_of_pieces(
    sizes: list[int], cuts: object, batch_size: int
) -> None:
    total = sum(sizes)
    edges = sorted(cuts.randint(0, total) for _ in range(5))  # type: ignore[attr-defined]
    others = np.diff([0, *edges, total]).tolist()
    window = 3 * batch_size
    assert batches_of(sizes, batch_size, window, seed=5) == batches_of(others, batch_size, window, seed=5)


def test_batcher_with_a_window_shuffles_rows_and_the_seed_decides_their_order() -> None:
    first = list(chain(*batches_of([100] * 3, 10, 50, seed=1)))
    other = list(chain(*batches_of([100] * 3, 10, 50, seed=2)))
    assert first != list(range(300))
    assert first != other


@given(sizes=SIZES, batch_size=st.integers(1, 6), window=st.integers(7, 20))
def test_batcher_with_a_window_returns_no_row_before_the_window_reaches_it(
    sizes: list[int], batch_size: int, window: int
) -> None:
    for index, batch in enumerate(batches_of(sizes, batch_size, window, seed=3)):
        assert max(batch) < window + (index + 1) * batch_size


def test_batcher_returns_every_full_batch_and_keeps_the_rest() -> None:
    batcher = Batcher(4)
    batcher.add(rows_from(0, 10))
    assert [num_rows(batch) for batch in batcher.full_batches()] == [4, 4]
    assert batcher.num_rows == 2


@pytest.mark.parametrize(
    ("have", "fillers", "expected", "reason"),
    [
        (4, 2, [0, 1, 2, 3], "a full batch does not change"),
        (3, 2, [0, 1, 2, 90], "one row is missing"),
        (1, 2, [0, 90, 91, 90], "fillers are used in turn"),
    ],
)
def test_pad_repeats_the_fillers_in_place_of_missing_rows(
    have: int, fillers: int, expected: list[int], reason: str
) -> None:
    padded = pad(rows_from(0, have), 4, rows_from(90, fillers))
    assert padded["id"].tolist() == expected, reason
    assert padded["pair"].shape == (4, 2)


def test_take_of_a_slice_returns_views_and_concatenate_returns_a_single_piece_as_it_is() -> None:
    rows = rows_from(0, 6)
    part = take(rows, slice(2, 4))
    assert np.shares_memory(part["pair"], rows["pair"])
    assert concatenate([part]) is part


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_rows_kept_as_sparse_become_dense_again_without_a_change(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(-1, 2, (7, *shape)).astype(dtype)
    values[3] = 0
    if dtype != "int16":
        values[4] = np.nan
    kept: Rows = {"v": to_sparse(values), "id": np.arange(7)}
    assert kept["v"].shape == (7,)
    back = with_dense_rows(take(kept, [4, 0, 3]))
    np.testing.assert_array_equal(back["v"], values[[4, 0, 3]])
    assert back["v"].dtype == dtype
    assert back["id"].tolist() == [4, 0, 3]


def global_batches(
    total: int, num_readers: int, batch_size: int, window: int, cuts: Sequence[int] = ()
) -> list[list[int]]:
    """Deal rows by position to readers that shuffle them; return the rows of each global batch, sorted."""
    batches: list[list[int]] = []
    for rank in range(num_readers):
        own = [row for row in range(total) if row // batch_size % num_readers == rank]
        batcher, made = LaneBatcher(batch_size, num_readers, rank, window, (3, 1)), list[Rows]()
        for part in np.split(np.array(own, np.int64), sorted(cut % (len(own) + 1) for cut in cuts)):
            batcher.add({"id": part})
            made += batcher.full_batches()
        made += batcher.rest()
        assert batcher.num_rows == 0
        assert all(num_rows(batch) == batch_size for batch in made[:-1])
        batches += [[] for _ in range(len(made) - len(batches))]
        for step, batch in enumerate(made):
            batches[step] += batch["id"].tolist()
    return [sorted(batch) for batch in batches]


@given(
    total=st.integers(0, 200),
    lanes=st.sampled_from([1, 2, 4, 8]),
    batch_size=st.integers(1, 3),
    window=st.integers(0, 100),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_shuffled_global_batches_of_an_ordered_stream_are_the_same_for_any_number_of_readers(
    total: int, lanes: int, batch_size: int, window: int, cuts: list[int]
) -> None:
    global_rows = lanes * batch_size
    expected = global_batches(total, 1, global_rows, window)
    for num_readers in (n for n in (2, 4, 8) if lanes % n == 0):
        assert global_batches(total, num_readers, global_rows // num_readers, window, cuts) == expected
    assert sorted(chain(*expected)) == list(range(total))
    assert [len(batch) for batch in expected[:-1]] == [global_rows] * (len(expected) - 1)


def test_shuffled_global_batches_of_an_ordered_stream_draw_from_the_whole_window() -> None:
    batches = global_batches(400, 4, 5, 100)
    assert batches != [list(range(first, first + 20)) for first in range(0, 400, 20)]
    assert max(batches[0]) >= 80
    assert max(batches[0]) < 100
    assert [max(batch) - min(batch) >= 60 for batch in batches] == [True] * len(batches)
