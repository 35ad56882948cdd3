"""The feed over real Flight, without Spark and TensorFlow: feed tasks and trainers are threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loopback import SPEC, Loopback, Taken, partitions_of, run_pass

from tfspark.feed.reader import WEIGHT, StreamSpec


def check_pass(taken: list[Taken], rows: int, spec: StreamSpec) -> None:
    """Every row once, and in synchronous mode full batches, equally many for all."""
    assert sorted(i for one in taken for i in one.ids()) == list(range(rows))
    for one in taken:
        for batch in one.batches:
            check_batch(batch, rows)
    if spec.synchronous:
        assert len({len(one.batches) for one in taken}) == 1
        assert {len(batch["id"]) for one in taken for batch in one.batches} <= {spec.batch_size}


def check_batch(batch: dict[str, np.ndarray], rows: int) -> None:
    """Padding too is made of real rows: its columns fit together, and its id is one of the pass."""
    ids = batch["id"]
    assert set(batch[WEIGHT].tolist()) <= {0.0, 1.0}
    assert set(ids.tolist()) <= set(range(max(rows, 1)))
    np.testing.assert_array_equal(batch["x"], np.repeat(ids[:, None], 3, axis=1).astype(np.float32))
    np.testing.assert_array_equal(batch["y"], ids % 3)


LAYOUTS: list[tuple[str, list[int]]] = [
    ("one partition", [123]),
    ("everything in the last of several", [0, 0, 0, 120]),
    ("everything in the first of several", [120, 0, 0, 0]),
    ("empty ones between", [0, 31, 0, 0, 17, 0]),
    ("fewer rows than readers", [1]),
    ("fewer rows than readers, apart", [0, 1, 0, 1]),
    ("64 tiny partitions", [n % 4 for n in range(64)]),
    ("one large, many tiny", [90, *[1] * 12]),
    ("a whole number of global batches", [24, 24]),
]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
@pytest.mark.parametrize("num_readers", [1, 2, 3])
@pytest.mark.parametrize("sizes", [sizes for _, sizes in LAYOUTS], ids=[name for name, _ in LAYOUTS])
def test_pass_over_any_layout_gives_each_row_once_in_equally_many_batches(
    sizes: list[int], num_readers: int, ordered: bool
) -> None:
    spec = replace(SPEC, num_readers=num_readers, ordered=ordered)
    with Loopback(spec) as loop:
        check_pass(run_pass(loop, partitions_of(sizes)), sum(sizes), spec)
