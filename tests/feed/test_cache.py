"""The node cache: what a worker kept comes back, every row once, or Spark serves it again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import SPEC, Loopback, Taken, partitions_of, read_kept, rows_from, run_pass
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.errors import ConfigError
from tfspark.feed.cache import NodeCache, Place

PLENTY = 1 << 30


def filled(path: Path, sizes: list[int], limit_bytes: int = PLENTY) -> tuple[NodeCache, bool]:
    """Return a cache that was given batches of these sizes, ids counting on, and whether it kept them."""
    cache = NodeCache(str(path), limit_bytes)
    cache.begin(0)
    first = 0
    for number, size in enumerate(sizes):
        cache.add(Place(number, first), rows_from(first, size))
        first += size
    return cache, cache.complete()


def ids_of(batch: pa.RecordBatch) -> list[int]:
    return [int(i) for i in batch.column("id").to_pylist()]


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), max_size=12), seed=st.none() | st.integers(0, 9))
def test_cache_whatever_was_kept_gives_it_back_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int | None
) -> None:
    path = tmp_path_factory.mktemp("cache") / "rows.arrow"
    cache, kept = filled(path, sizes)
    assert kept
    assert cache.holds(0)
    rng = None if seed is None else np.random.default_rng(seed)
    read = list(cache.read(rng))
    for place, batch in read:
        assert ids_of(batch) == list(range(place.first_row, place.first_row + sizes[place.partition]))
    found = [place.partition for place, _ in read]
    assert sorted(found) == list(range(len(sizes)))
    if seed is None:
        assert found == sorted(found)
    cache.drop()
    assert not path.exists()


def test_cache_read_twice_with_another_seed_comes_in_another_order(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path / "rows.arrow", [3] * 20)
    orders = [[place.partition for place, _ in cache.read(np.random.default_rng(seed))] for seed in (1, 2, 1)]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


def test_cache_beyond_its_limit_is_given_up_and_leaves_no_file(tmp_path: Path) -> None:
    cache, kept = filled(tmp_path / "rows.arrow", [1000] * 5, limit_bytes=50_000)
    assert not kept
    assert not cache.holds(0)
    assert list(tmp_path.iterdir()) == []


def test_cache_on_a_full_disk_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.arrow"
    cache = NodeCache(str(path), PLENTY)
    cache.begin(0)
    path.symlink_to("/dev/full")
    cache.add(Place(0, 0), rows_from(0, 5000))
    assert not cache.complete()
    assert "No space left on device" in caplog.text
    assert not path.is_symlink()


def test_cache_begun_again_holds_the_later_pass_only(tmp_path: Path) -> None:
    cache, _ = filled(tmp_path / "rows.arrow", [7, 8])
    cache.begin(3)
    cache.add(Place(0, 0), rows_from(100, 5))
    assert cache.complete()
    assert not cache.holds(0)
    assert [ids_of(batch) for _, batch in cache.read(None)] == [list(range(100, 105))]


# --- a whole feed on loopback ----------------------------------------------------------------------


def all_ids(taken: list[Taken]) -> list[int]:
    return sorted(i for one in taken for i in one.ids())


@pytest.mark.parametrize("shuffle_rows", [0, 20])
@pytest.mark.parametrize("sizes", [[50, 3, 0, 30], [1], [0, 120]], ids=["uneven", "one row", "one partition"])
def test_later_passes_from_the_cache_give_each_row_once_in_equally_many_batches(
    tmp_path: Path, sizes: list[int], shuffle_rows: int
) -> None:
    spec = replace(SPEC, cache_bytes=PLENTY, shuffle_rows=shuffle_rows)
    caches = [NodeCache(str(tmp_path / str(rank)), PLENTY) for rank in range(spec.num_readers)]
    with Loopback(spec, caches) as loop:
        first = run_pass(loop, partitions_of(sizes), keep=True)
        assert loop.directory.all_kept("train", 0)
        for _ in range(2):
            again = read_kept(loop, 0)
            assert all_ids(again) == all_ids(first) == list(range(sum(sizes)))
            assert len({len(one.batches) for one in again}) == 1
            for before, now in zip(first, again, strict=True):
                assert sorted(now.ids()) == sorted(before.ids()), "each worker reads its own rows"
                if not shuffle_rows:
                    assert now.ids() == before.ids()


def test_pass_that_one_worker_cannot_keep_is_not_kept(tmp_path: Path) -> None:
    spec = replace(SPEC, cache_bytes=PLENTY)
    caches = [NodeCache(str(tmp_path / "0"), PLENTY), NodeCache(str(tmp_path / "1"), 1)]
    with Loopback(spec, caches) as loop:
        taken = run_pass(loop, partitions_of([60, 60]), keep=True)
        assert all_ids(taken) == list(range(120))
        assert not loop.directory.all_kept("train", 0)


# --- on Spark --------------------------------------------------------------------------------------


def reading_ids() -> Any:
    """Return a ``main_fun`` that returns the ids it saw in each pass."""

    # A nested function travels by value: the trainers cannot import this module.
    def main_fun(args: Any, ctx: Any) -> list[list[int]]:
        from tfspark.training.input.dataset import open_feed

        feed = open_feed(ctx, "train")
        passes = []
        for _ in range(args["passes"]):
            batches = [batch["id"][batch["__weight__"] > 0].tolist() for batch in feed.batches()]
            passes.append([i for batch in batches for i in batch])
        return passes

    return main_fun


def counting(log: str) -> Any:
    def note(batches: Any) -> Any:
        from pyspark import TaskContext

        with open(log, "a") as out:
            out.write(f"{TaskContext.get().partitionId()}\n")
        yield from batches

    return note


@pytest.mark.parametrize(
    ("cache_bytes", "kept", "computed"),
    [
        pytest.param(PLENTY, True, 2, id="room for all: Spark computes each train() once"),
        pytest.param(1, False, 5, id="no room: Spark computes every epoch"),
    ],
)
def test_train_with_a_node_cache_reads_from_spark_as_often_as_it_must(
    spark: SparkSession, tmp_path: Path, cache_bytes: int, kept: bool, computed: int
) -> None:
    log = tmp_path / "computed"
    rows = df_with_partitions(spark, [500, 0, 333])
    counted = rows.mapInArrow(counting(str(log)), rows.schema)
    other = df_with_partitions(spark, [41])
    noted = other.mapInArrow(counting(str(log)), other.schema)
    events: list[Any] = []
    feeding = Feeding(cache="node", cache_bytes=cache_bytes)
    with TFCluster.run(
        spark, reading_ids(), {"passes": 5}, 2, observer=lambda event, fields: events.append((event, fields))
    ) as cluster:
        cluster.train(counted, 3, features=["id"], batch_size=16, feeding=feeding)
        cluster.train(noted, 2, features=["id"], batch_size=16, feeding=feeding)
        results = cluster.shutdown()
    passes = zip(results["worker 0"], results["worker 1"], strict=True)
    seen = [sorted(mine + other) for mine, other in passes]
    assert seen == [list(range(833))] * 3 + [list(range(41))] * 2
    assert [fields["kept"] for event, fields in events if event == "cache"] == [kept, kept]
    assert log.read_text().split().count("0") == computed


@pytest.mark.parametrize(
    "wrong",
    [{"cache": "disk"}, {"cache_bytes": 0}, {"chunk_bytes": 0}, {"buffer_bytes": -1}, {"shuffle_rows": -1}],
    ids=json.dumps,
)
def test_feeding_of_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))}"):
        Feeding(**wrong)
