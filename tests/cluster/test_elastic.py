"""A cluster that cannot replace all lost workers continues with fewer, and grows when slots are free again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cluster.incarnations import Events
from cluster.programs import counting, dense, stepping
from cluster.strikes import Strike, kill
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from support.driver import run_driver
from support.errors import raises
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.cluster import preflight
from tfspark.cluster.state.size import Size, redistribute
from tfspark.errors import ConfigError
from tfspark.feed.columns import Column, Columns
from tfspark.feed.stream import StreamSpec

ROWS = [320, 160, 0, 160]
BATCH = 64


class Slots:
    """Replace Spark's count of slots, which never changes on a local master."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int):
        self.number = number
        monkeypatch.setattr(preflight, "count_slots", lambda spark: self.number)

    def change_to(self, number: int) -> None:
        self.number = number


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.integers(1, 9))
def test_redistribute_keeps_the_sum_and_the_rows_of_the_nodes_that_stay(
    rows: list[int], num_nodes: int
) -> None:
    found = redistribute(rows, num_nodes)
    assert len(found) == num_nodes
    assert sum(found) == sum(rows)
    assert list(found[1 : len(rows)]) == rows[1:num_nodes]


def lose_one_worker_for_an_epoch(slots: Slots) -> Strike:
    """Return an observer that removes a worker after three steps, and frees a slot for it too late for this epoch."""

    def lose() -> None:
        slots.change_to(2)
        kill()()

    class LoseAndFreeSlot(Strike):
        def __call__(self, event: str, fields: Any) -> None:
            super().__call__(event, fields)
            if event == "sized" and fields["workers"] == 1:
                slots.change_to(3)

    return LoseAndFreeSlot(lose, "state", epoch=1, step=3)


def test_training_that_shrinks_within_an_epoch_and_grows_after_it_uses_each_row_once_per_epoch(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = lose_one_worker_for_an_epoch(Slots(monkeypatch, 3))
    rows = df_with_partitions(spark, ROWS).select("id")
    with TFCluster.run(
        spark,
        counting,
        {"rows": sum(ROWS)},
        2,
        min_executors=1,
        observer=observer,
        log_dir=str(tmp_path),
        checkpoint_every_steps=3,
        checkpoint_every_epochs=1,
    ) as cluster:
        cluster.train(rows, 3, features=["id"], label=None, batch_size=BATCH)
        nodes = cluster.shutdown(export=["keras"])
    assert [event["workers"] for event in observer.of("sized")] == [2, 1, 2]
    assert len(observer.of("restarting")) == 1
    first, second = observer.of("resumed")
    assert (first["epoch"], first["step"] in (3, 6)) == (1, True)
    assert (second["epoch"], second["step"]) == (2, 0)
    for epochs, path in ((1, "checkpoints/epoch-0001.keras"), (3, "export/model.keras")):
        (counts,) = keras.models.load_model(tmp_path / path, compile=False).get_weights()
        assert np.round(counts[:, 0], 3).tolist() == [epochs] * sum(ROWS)
    assert [sum(node["rows"][epoch] for node in nodes.values()) for epoch in range(3)] == [sum(ROWS)] * 3
    # Rows are fed as they come, so workers may get unequal numbers of rows, and have steps that are not full.
    assert nodes["worker 0"]["iterations"] >= 3 * sum(ROWS) // BATCH


STEPS = sum(ROWS) // BATCH


def steps_of_rows(path: Path) -> list[list[int]]:
    """Return for each row the step that used it, in each of three epochs, from the weights of a `stepping` model."""
    (weights,) = keras.models.load_model(path, compile=False).get_weights()
    numbers = np.round(weights[:, 0]).astype(int)
    return (numbers[:, None] // [1, 100, 10_000] % 100 - 1).tolist()


@pytest.mark.parametrize(
    "window",
    [
        pytest.param(3 * BATCH, id="shuffled"),
        pytest.param(0, id="in the order of the rows", marks=pytest.mark.slow),
    ],
)
def test_batches_of_an_ordered_training_are_the_same_for_any_number_of_workers(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    rows = df_with_partitions(spark, ROWS).select("id")

    def train(name: str, workers: int, **options: Any) -> list[list[int]]:
        params = {"rows": sum(ROWS), "steps": STEPS}
        with TFCluster.run(
            spark,
            stepping,
            params,
            workers,
            log_dir=str(tmp_path / name),
            checkpoint_every_steps=3,
            **options,
        ) as cluster:
            feeding = Feeding(ordered=True, shuffle_rows=window)
            cluster.train(rows, 3, features=["id"], label=None, batch_size=BATCH, feeding=feeding)
            cluster.shutdown(export=["keras"])
        return steps_of_rows(tmp_path / name / "export/model.keras")

    alone = train("alone", 1)
    in_order = [[row // BATCH] * 3 for row in range(sum(ROWS))]
    if window:
        for epoch in range(3):
            assert np.bincount([row[epoch] for row in alone]).tolist() == [BATCH] * STEPS
            assert [row[epoch] for row in alone] != [row[0] for row in in_order]
        assert [len(set(row)) for row in alone] != [1] * len(alone)
    else:
        assert alone == in_order
    assert train("two", 2) == alone
    observer = lose_one_worker_for_an_epoch(Slots(monkeypatch, 3))
    made = train("lost", 2, min_executors=1, observer=observer)
    assert [event["workers"] for event in observer.of("sized")] == [2, 1, 2]
    first, second = observer.of("resumed")
    assert (first["epoch"], first["step"] in (3, 6), second["epoch"]) == (1, True, 2)
    assert made == alone


@pytest.mark.slow
def test_batches_of_four_workers_are_those_of_one_worker() -> None:
    program = """
        import tempfile
        from pathlib import Path
        from pyspark.sql import SparkSession
        from cluster.programs import stepping
        from cluster.test_elastic import BATCH, STEPS, steps_of_rows
        from tfspark import FeedOptions, TFCluster

        spark = SparkSession.builder.getOrCreate()
        made = []
        for workers in (1, 4):
            with tempfile.TemporaryDirectory() as place:
                with TFCluster.run(spark, stepping, {"rows": 640, "steps": STEPS}, workers, log_dir=place) as cluster:
                    cluster.train(
                        spark.range(0, 640, 1, 5), 3, features=["id"], label=None, batch_size=BATCH,
                        feeding=FeedOptions(ordered=True, shuffle_rows=4 * BATCH),
                    )
                    cluster.shutdown(export=["keras"])
                made.append(steps_of_rows(Path(place, "export/model.keras")))
        print(made[0] == made[1], len({tuple(steps) for steps in made[0]}) > STEPS)
    """
    assert run_driver("local[5]", program, timeout_s=400).check().stdout.splitlines()[-1] == "True True"


def test_cluster_with_too_few_slots_starts_with_fewer_workers_and_keeps_the_batch_of_a_worker(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    Slots(monkeypatch, 2)
    events = Events()
    rows = df_with_partitions(spark, ROWS)
    with TFCluster.run(
        spark, dense, {}, 3, min_executors=1, resize_keeps="worker_batch", observer=events
    ) as cluster:
        cluster.train(rows, 1, features=["features"], batch_size=3 * 32)
        nodes = cluster.shutdown()
    assert events.of("sized") == [{"workers": 1, "wanted": 3}]
    assert list(nodes) == ["worker 0"]
    assert nodes["worker 0"]["iterations"] == sum(ROWS) // 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"min_executors": 3}, ["between 1", "num_executors=2", "got 3"], id="more than all"),
        pytest.param({"min_executors": 0}, ["between 1", "got 0"], id="none"),
        pytest.param({"min_executors": 1, "num_ps": 1}, ["between 2", "num_ps=1"], id="no worker"),
        pytest.param({"min_executors": 1, "max_restarts": 0}, ["max_restarts >= 1"], id="no restarts"),
        pytest.param({"resize_keeps": "rows"}, ["resize_keeps", "'rows'"], id="an unknown rule"),
    ],
)
def test_wrong_sizes_are_refused_before_anything_starts(
    spark: SparkSession, options: dict[str, Any], words: list[str]
) -> None:
    with raises(ConfigError, *words):
        TFCluster.run(spark, dense, {}, 2, **options)


def test_step_with_fewer_workers_keeps_the_global_batch_or_the_batch_of_a_worker() -> None:
    spec = StreamSpec("train", Columns((Column("x"),)), 32, 3, True, False, 0, 0, 1, 1.0)
    kept = [Size(3, 1).for_workers(spec, workers) for workers in (3, 2, 1)]
    assert [(one.num_readers, one.batch_size) for one in kept] == [(3, 32), (2, 48), (1, 96)]
    scaled = [Size(3, 1, preserves="worker_batch").for_workers(spec, workers) for workers in (3, 2, 1)]
    assert [(one.num_readers, one.batch_size) for one in scaled] == [(3, 32), (2, 32), (1, 32)]
    assert Size(5, 1).for_workers(spec, 3).batch_size == round(32 * 5 / 3)
