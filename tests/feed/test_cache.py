"""The node cache: later passes read the rows that a worker has stored, each once, or Spark serves them again."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import SPEC, Loopback, Taken, partitions_of, read_stored, rows_from, run_pass
from pyspark.sql import DataFrame, SparkSession
from support.rows import df_with_partitions, noting_partitions

from tfspark import Feeding, FeedOptions, TFCluster
from tfspark.errors import ConfigError
from tfspark.feed.cache import FOLDER, NodeCache, Place
from tfspark.feed.directory import Keep, matched
from tfspark.tfrecord import register

PLENTY = 1 << 30


def filled(
    folder: Path, sizes: list[int], limit_bytes: int = PLENTY, key: str = "a", lasting: bool = False
) -> tuple[NodeCache, str]:
    """Return a cache with batches of these sizes and consecutive ids, and the path of its file."""
    cache = NodeCache(str(folder), str(folder), limit_bytes)
    cache.begin(key, 0, lasting)
    first = 0
    for number, size in enumerate(sizes):
        cache.add(Place(number, first), rows_from(first, size))
        first += size
    return cache, cache.complete()


def ids_of(batch: pa.RecordBatch) -> list[int]:
    return [int(i) for i in batch.column("id").to_pylist()]


def all_in(cache: NodeCache, path: str) -> list[int]:
    return [i for _, batch in cache.read(path, None) for i in ids_of(batch)]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 40), max_size=12), seed=st.none() | st.integers(0, 9), lasting=st.booleans()
)
def test_cache_returns_all_stored_batches_with_their_places(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int | None, lasting: bool
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache, path = filled(folder, sizes, lasting=lasting)
    assert path
    assert cache.complete() == path
    reader = cache
    if lasting:
        reader = NodeCache(str(folder), str(folder), PLENTY)
        assert reader.found({5: path}) == [5]
    rng = None if seed is None else np.random.default_rng(seed)
    read = list(reader.read(path, rng))
    for place, batch in read:
        assert ids_of(batch) == list(range(place.first_row, place.first_row + sizes[place.partition]))
    found = [place.partition for place, _ in read]
    assert sorted(found) == list(range(len(sizes)))
    if seed is None:
        assert found == sorted(found)
    cache.drop()
    assert Path(path).exists() == lasting


def test_seed_decides_the_order_in_which_a_cache_is_read(tmp_path: Path) -> None:
    cache, path = filled(tmp_path, [3] * 20)
    orders = [
        [place.partition for place, _ in cache.read(path, np.random.default_rng(seed))] for seed in (1, 2, 1)
    ]
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]


def test_cache_that_exceeds_its_limit_stores_nothing_and_leaves_no_file(tmp_path: Path) -> None:
    cache, path = filled(tmp_path, [1000] * 5, limit_bytes=50_000)
    assert not path
    assert not cache.complete()
    assert list(tmp_path.iterdir()) == []


def test_cache_on_a_full_disk_stores_nothing_and_leaves_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = NodeCache(str(tmp_path), "", PLENTY)
    cache.begin("a", 0)
    path = tmp_path / "a-0.arrow"
    path.symlink_to("/dev/full")
    cache.add(Place(0, 0), rows_from(0, 5000))
    assert not cache.complete()
    assert "No space left on device" in caplog.text
    assert not path.is_symlink()


def test_cache_that_begins_a_second_pass_has_only_its_rows(tmp_path: Path) -> None:
    cache, path = filled(tmp_path, [7, 8])
    cache.begin("b", 0)
    cache.add(Place(0, 0), rows_from(100, 5))
    assert all_in(cache, cache.complete()) == list(range(100, 105))
    assert not Path(path).exists()


def test_cache_of_several_datasets_removes_the_least_recently_used(tmp_path: Path) -> None:
    """Each file has 1,000 rows, about 30 KB. There is room for two; the files of other workers do not count."""
    limit = 80_000
    other = NodeCache(str(tmp_path), str(tmp_path), limit)
    other.begin("other", 1, lasting=True)
    other.add(Place(0, 0), rows_from(0, 1000))
    paths = {"other": other.complete()}
    for key in "ab":
        cache, paths[key] = filled(tmp_path, [1000], limit, key, lasting=True)
    os.utime(paths["a"], ns=(1, 1))
    os.utime(paths["b"], ns=(2, 2))
    assert NodeCache(str(tmp_path), "", PLENTY).found({0: paths["a"]}) == [0], "a was used after b"
    _, paths["c"] = filled(tmp_path, [1000], limit, "c", lasting=True)
    assert {key for key, path in paths.items() if Path(path).exists()} == {"other", "a", "c"}
    assert all_in(cache, paths["b"]) == list(range(1000)), "a cache that has the file open can still read it"


def test_stale_files_of_a_cache_are_removed(tmp_path: Path) -> None:
    _, path = filled(tmp_path, [5], lasting=True)
    outside = tmp_path / "a-0.arrow"
    outside.touch()
    cache = NodeCache(str(tmp_path), str(tmp_path), PLENTY)
    cache.begin("b", 0, lasting=True, stale=[path, str(outside), str(tmp_path / FOLDER / "gone")])
    assert not Path(path).exists()
    assert outside.exists(), "only files in the folder of a node cache are removed"


@pytest.mark.parametrize("fault", ["is missing", "was cut", "has the content of another file", "is text"])
def test_damaged_file_of_a_cache_is_not_found(tmp_path: Path, fault: str) -> None:
    _, path = filled(tmp_path, [500], lasting=True)
    _, other = filled(tmp_path, [500], key="b", lasting=True)
    if fault == "is missing":
        os.unlink(path)
    elif fault == "was cut":
        os.truncate(path, os.path.getsize(path) - 10)
    elif fault == "has the content of another file":
        os.replace(other, path)
    else:
        Path(path).write_text("rows")
    assert NodeCache(str(tmp_path), "", PLENTY).found({0: path}) == []


@settings(max_examples=200)
@given(found=st.dictionaries(st.integers(0, 4), st.lists(st.integers(0, 4), max_size=4), max_size=5))
def test_matched_gives_as_many_readers_as_possible_a_file_that_they_can_read(
    found: dict[int, list[int]],
) -> None:
    taken = matched(found)
    assert all(file in found[reader] for reader, file in taken.items())
    assert len(set(taken.values())) == len(taken)
    most = max(
        sum(file in found[reader] for reader, file in zip(found, files, strict=False))
        for files in itertools.permutations(range(5))
    )
    assert len(taken) == most


# --- a whole feed on loopback ----------------------------------------------------------------------


def caches_in(folder: Path, *limits: int) -> list[NodeCache]:
    return [NodeCache(str(folder), str(folder), limit) for limit in limits]


def all_ids(taken: list[Taken]) -> list[int]:
    return sorted(i for one in taken for i in one.ids())


@pytest.mark.parametrize("shuffle_rows", [0, 20])
@pytest.mark.parametrize("sizes", [[50, 3, 0, 30], [1], [0, 120]], ids=["uneven", "one row", "one partition"])
def test_later_passes_from_the_cache_read_each_row_once_in_equally_many_batches(
    tmp_path: Path, sizes: list[int], shuffle_rows: int
) -> None:
    spec = replace(SPEC, cache_bytes=PLENTY, shuffle_rows=shuffle_rows)
    with Loopback(spec, caches_in(tmp_path, PLENTY, PLENTY)) as loop:
        first = run_pass(loop, partitions_of(sizes), keep=Keep("a"))
        stored = loop.directory.stored("train", 0)
        assert set(stored) == {0, 1}
        for _ in range(2):
            again = read_stored(loop, stored)
            assert all_ids(again) == all_ids(first) == list(range(sum(sizes)))
            assert len({len(one.batches) for one in again}) == 1
            for before, now in zip(first, again, strict=True):
                assert sorted(now.ids()) == sorted(before.ids()), "each worker reads its own rows"
                if not shuffle_rows:
                    assert now.ids() == before.ids()


def test_pass_that_one_worker_cannot_store_is_not_stored(tmp_path: Path) -> None:
    spec = replace(SPEC, cache_bytes=PLENTY)
    with Loopback(spec, caches_in(tmp_path, PLENTY, 1)) as loop:
        taken = run_pass(loop, partitions_of([60, 60]), keep=Keep("a"))
        assert all_ids(taken) == list(range(120))
        assert loop.directory.stored("train", 0) == {}


@pytest.mark.parametrize("ordered", [False, True])
def test_next_cluster_reads_the_files_of_the_previous_one(tmp_path: Path, ordered: bool) -> None:
    spec = replace(SPEC, cache_bytes=PLENTY, ordered=ordered)
    partitions = partitions_of([60, 60])
    with Loopback(spec, caches_in(tmp_path, PLENTY, PLENTY)) as loop:
        first = run_pass(loop, partitions, keep=Keep("a", lasting=True))
        stored = loop.directory.stored("train", 0)
    with Loopback(spec, caches_in(tmp_path, PLENTY, PLENTY)) as loop:
        again = run_pass(loop, partitions, keep=Keep("b", lasting=True), offer=stored)
        assert [one.ids() for one in again] == [one.ids() for one in first]
        assert loop.directory.stored("train", 0) == stored, (
            "later passes of the second cluster read them, too"
        )
        assert read_stored(loop, stored)[1].ids() == first[1].ids()


def test_workers_on_different_hosts_read_the_files_that_each_can_reach(tmp_path: Path) -> None:
    spec = replace(SPEC, cache_bytes=PLENTY)
    partitions = partitions_of([60, 60])
    with Loopback(spec, caches_in(tmp_path, PLENTY, PLENTY)) as loop:
        first = run_pass(loop, partitions, keep=Keep("a", lasting=True))
        stored = loop.directory.stored("train", 0)

    class Elsewhere(NodeCache):
        """The cache of a worker on another host, which can read only the file of worker 0."""

        def found(self, files: Mapping[int, str]) -> list[int]:
            return super().found({0: files[0]})

    here, elsewhere = caches_in(tmp_path, PLENTY)[0], Elsewhere(str(tmp_path), "", PLENTY)
    with Loopback(spec, [here, elsewhere]) as loop:
        again = run_pass(loop, partitions, offer=stored)
        assert [one.ids() for one in again] == [first[1].ids(), first[0].ids()]
    with Loopback(replace(spec, ordered=True), [here, elsewhere]) as loop:
        again = run_pass(loop, partitions, offer=stored)
        assert all_ids(again) == list(range(120)), (
            "in an ordered stream, each worker needs its own file: Spark serves"
        )
        assert loop.directory.stored("train", 0) == {}


def test_cache_is_not_read_if_the_file_of_one_worker_is_missing(tmp_path: Path) -> None:
    spec = replace(SPEC, cache_bytes=PLENTY)
    partitions = partitions_of([60, 60])
    with Loopback(spec, caches_in(tmp_path, PLENTY, PLENTY)) as loop:
        run_pass(loop, partitions, keep=Keep("a", lasting=True))
        stored = loop.directory.stored("train", 0)
    os.unlink(stored[1])
    with Loopback(spec, caches_in(tmp_path, PLENTY, PLENTY)) as loop:
        again = run_pass(loop, partitions, keep=Keep("b", lasting=True), offer=stored)
        assert all_ids(again) == list(range(120))
        assert {Path(path).name for path in loop.directory.stored("train", 0).values()} == {
            "b-0.arrow",
            "b-1.arrow",
        }


# --- on Spark --------------------------------------------------------------------------------------


def reading_ids() -> Any:
    """Return a ``main_fun`` that returns the ids it saw in each pass."""

    # A nested function is pickled by value: the trainers cannot import this module.
    def main_fun(args: Any, ctx: Any) -> list[list[int]]:
        from tfspark.training.input.dataset import open_feed

        feed = open_feed(ctx, "train")
        passes = []
        for _ in range(args["passes"]):
            batches = [batch["id"][batch["__weight__"] > 0].tolist() for batch in feed.batches()]
            passes.append([i for batch in batches for i in batch])
        return passes

    return main_fun


@pytest.mark.parametrize(
    ("cache_bytes", "kept", "computed"),
    [
        pytest.param(PLENTY, True, 2, id="enough space: Spark computes the rows once per train()"),
        pytest.param(1, False, 5, id="no space: Spark computes the rows in every epoch"),
    ],
)
def test_train_with_a_node_cache_computes_rows_again_only_if_they_do_not_fit(
    spark: SparkSession, tmp_path: Path, cache_bytes: int, kept: bool, computed: int
) -> None:
    log = tmp_path / "computed"
    rows = df_with_partitions(spark, [500, 0, 333])
    counted = rows.mapInArrow(noting_partitions(log), rows.schema)
    other = df_with_partitions(spark, [41])
    noted = other.mapInArrow(noting_partitions(log), other.schema)
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


class Runs:
    """Train clusters, by default of two workers, on rows; count how often Spark computes the rows.

    Attributes:
        computed: how often Spark has computed the first partition of `counted` rows.
        found: for each ``cache`` event, whether an earlier training had stored the rows.
        orders: for each cluster, pass -> the ids of each worker.
    """

    def __init__(self, spark: SparkSession, folder: Path):
        self.spark = spark
        self.log = folder / "computed"
        self.log.touch()
        self.found: list[bool] = []
        self.orders: list[Any] = []

    def counted(self, rows: DataFrame) -> DataFrame:
        """Return the same rows; `computed` counts each time that Spark computes their first partition."""
        return rows.mapInArrow(noting_partitions(self.log), rows.schema)

    @property
    def computed(self) -> int:
        return self.log.read_text().split().count("0")

    def train(
        self, *calls: DataFrame, epochs: int = 1, num_workers: int = 2, **feeding: Any
    ) -> list[list[int]]:
        """Train on each DataFrame in one cluster; return the ids of each pass."""
        feed = FeedOptions(**{"cache": "node", **feeding})

        def observe(event: str, fields: dict[str, Any]) -> None:
            if event == "cache":
                self.found.append(fields["found"])

        with TFCluster.run(
            self.spark, reading_ids(), {"passes": epochs * len(calls)}, num_workers, observer=observe
        ) as cluster:
            for rows in calls:
                cluster.train(rows, epochs, features=["id"], batch_size=16, feeding=feed)
            results = cluster.shutdown()
        passes = list(zip(*(results[f"worker {rank}"] for rank in range(num_workers)), strict=True))
        self.orders.append(passes)
        return [sorted(itertools.chain(*parts)) for parts in passes]


@pytest.fixture
def runs(spark: SparkSession, tmp_path: Path) -> Runs:
    return Runs(spark, tmp_path)


def test_later_trainings_of_the_same_rows_read_the_files_of_the_first(runs: Runs) -> None:
    """This holds in the same cluster, in the next one, and after other rows. Each pass has each row once."""
    some = runs.counted(df_with_partitions(runs.spark, [500, 0, 333]))
    other = runs.counted(df_with_partitions(runs.spark, [41]))
    assert runs.train(some, some) == [list(range(833))] * 2
    assert (runs.computed, runs.found) == (1, [True])
    assert runs.train(other, some, epochs=2) == [list(range(41))] * 2 + [list(range(833))] * 2
    assert (runs.computed, runs.found) == (2, [True, False, True])
    assert runs.train(some.select("*"), shuffle_rows=64) == [list(range(833))]
    assert (runs.computed, runs.found) == (2, [True, False, True, True])


def test_single_worker_reads_stored_rows_in_the_order_of_a_training_without_a_cache(runs: Runs) -> None:
    rows = df_with_partitions(runs.spark, [60, 50])
    options: dict[str, Any] = {"epochs": 3, "num_workers": 1, "shuffle_rows": 20}
    for _ in range(2):
        assert runs.train(rows, **options) == [list(range(110))] * 3
    assert runs.found == [False, True]
    first, again = runs.orders
    assert again == first
    assert first[0] != first[1] != first[2]


def numbered(spark: SparkSession, first: int) -> DataFrame:
    """Return 100 rows whose ids count from `first`."""
    return spark.range(first, first + 100, 1, 2).selectExpr("id", "id % 2 AS label")


@pytest.mark.parametrize(
    ("format", "scan"),
    [
        ("parquet", "spark"),
        ("tfrecord", "direct"),
        pytest.param("parquet", "direct", marks=pytest.mark.slow),
        pytest.param("tfrecord", "spark", marks=pytest.mark.slow),
    ],
)
def test_rows_of_files_are_read_from_spark_again_after_a_file_has_changed(
    runs: Runs, tmp_path: Path, format: str, scan: str
) -> None:
    register(runs.spark)
    path = str(tmp_path / "rows")

    def write(first: int, mode: str) -> None:
        numbered(runs.spark, first).write.format(format).mode(mode).save(path)

    def read() -> DataFrame:
        return runs.spark.read.format(format).schema("id long, label long").load(path)

    write(0, "overwrite")
    rows = read()
    assert runs.train(rows, rows, scan=scan) == [list(range(100))] * 2
    assert runs.found == [True]
    write(100, "append")
    assert runs.train(read(), scan=scan) == [list(range(200))]
    write(7, "overwrite")
    assert runs.train(read(), scan=scan) == [list(range(7, 107))]
    assert runs.found == [True], "the cache was not read after the rows had changed"
    assert runs.train(read(), scan=scan) == [list(range(7, 107))]
    assert runs.found == ([True] if (format, scan) == ("tfrecord", "spark") else [True, True]), (
        "Spark makes a different plan for each load of a data source that is written in Python"
    )


def test_rows_are_not_read_from_the_cache_after_the_files_of_their_dataframe_have_changed(
    runs: Runs, tmp_path: Path
) -> None:
    """The DataFrame still has the old list of files, so Spark fails, as it does without a cache."""
    path = str(tmp_path / "rows")
    numbered(runs.spark, 0).write.parquet(path)
    rows = runs.spark.read.parquet(path)
    assert runs.train(rows) == [list(range(100))]
    numbered(runs.spark, 100).write.mode("overwrite").parquet(path)
    with pytest.raises(Exception, match=r"make the DataFrame anew|FILE_NOT_EXIST|does not exist"):
        runs.train(rows)
    assert not runs.found


def test_rows_of_a_query_with_a_subquery_are_always_read_from_spark(runs: Runs, tmp_path: Path) -> None:
    """Spark does not list the files of a subquery among those of the rows, and only they have changed."""
    some, other = str(tmp_path / "some"), str(tmp_path / "other")
    numbered(runs.spark, 0).write.parquet(some)
    for most in (70, 30):
        runs.spark.range(most, most + 1).write.mode("overwrite").parquet(other)
        rows = runs.spark.sql(
            f"SELECT * FROM parquet.`{some}` WHERE id < (SELECT max(id) FROM parquet.`{other}`)"
        )
        assert runs.train(rows) == [list(range(most))]
    assert not runs.found


def test_rows_are_read_from_spark_again_if_they_are_dealt_to_workers_in_a_different_way(runs: Runs) -> None:
    rows = runs.counted(df_with_partitions(runs.spark, [100, 50]))
    for computed, options in enumerate([{"ordered": True}, {}, {"num_workers": 1}], 1):
        assert runs.train(rows, rows, **options) == [list(range(150))] * 2
        assert runs.computed == computed
    runs.train(rows, rows, ordered=True, shuffle_rows=8)
    assert runs.computed == 5, "each pass has a different order of the partitions"


def test_rows_of_different_functions_with_the_same_name_are_not_mistaken_for_each_other(runs: Runs) -> None:
    base = df_with_partitions(runs.spark, [30])

    def adding(number: int) -> DataFrame:
        def add(batches: Any) -> Any:
            import pyarrow.compute as pc

            for batch in batches:
                yield batch.set_column(0, "id", pc.add(batch["id"], number))

        return base.mapInArrow(add, base.schema)

    assert runs.train(adding(0), adding(1), adding(2)) == [list(range(n, n + 30)) for n in range(3)]


@pytest.mark.parametrize(
    "wrong",
    [{"cache": "disk"}, {"cache_bytes": 0}, {"chunk_bytes": 0}, {"buffer_bytes": -1}, {"shuffle_rows": -1}],
    ids=json.dumps,
)
def test_impossible_values_of_feeding_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"expected {next(iter(wrong))}"):
        Feeding(**wrong)
