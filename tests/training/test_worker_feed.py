"""The batches of steps that a coordinator schedules, from a complete feed on loopback."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf
from feed.loopback import HOST, PATIENCE_S, SPEC, Loopback, partitions_of, rows_from
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import Column, Columns, TFRecordFiles, tfrecord
from tfspark.errors import DataError
from tfspark.feed.stream import encode_sample
from tfspark.protocol.activity import Activity
from tfspark.protocol.roles import NodeSpec
from tfspark.protocol.settings import Hooks, TrainerSettings
from tfspark.protocol.wire import ActionClient
from tfspark.training.input.files import element_of_records, records_of_share
from tfspark.training.ps.worker_feed import WorkerFeed

ASYNCHRONOUS = replace(SPEC, synchronous=False)


class Worker(SimpleNamespace):
    """A worker's context that collects the failures that it reports."""

    def tell_failure(self, error: BaseException) -> None:
        self.told.append(error)


def worker(loop: Loopback, rank: int, control: ActionClient) -> Worker:
    return Worker(
        control=control, secret=loop.secret, host=HOST, task_index=rank, hooks=Hooks(),
        node=NodeSpec(rank, "worker", rank), reader=rank,
        settings=TrainerSettings(runs_main_fun=False, feed_timeout_s=PATIENCE_S), told=[], activity=Activity(),
    )  # fmt: skip


def take_all(loop: Loopback, rank: int, indexes: int) -> list[list[list[int]]]:
    """Take batches as steps do: request the next batch of each pass until its end; return pass -> batch -> ids."""
    with ActionClient(loop.control.location, loop.secret) as control:
        feed = WorkerFeed(worker(loop, rank, control))
        passes: list[list[list[int]]] = []
        for index in range(indexes):
            passes.append([])
            while True:
                has_batch, own_rank, _, ids, *_ = feed._next_batch(b"train", index)
                assert own_rank == rank
                if not has_batch:
                    assert len(ids) == 0
                    break
                passes[-1].append(ids.tolist())
        assert feed.rows == [sum(map(len, batches)) for batches in passes]
        feed.close()
    return passes


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([37, 3], id="one partition larger"),
        pytest.param([1], id="one row: a worker gets none"),
        pytest.param([0, 0, 25], id="empty partitions"),
    ],
)
def test_workers_get_every_row_once_in_each_of_two_passes(sizes: list[int]) -> None:
    with Loopback(ASYNCHRONOUS) as loop, ThreadPoolExecutor(2) as pool:
        loop.directory.offer_sample("train", encode_sample(rows_from(0, 1)))
        workers = [pool.submit(take_all, loop, rank, 2) for rank in range(2)]
        for _ in range(2):
            loop.feed(loop.open_pass(), partitions_of(sizes), slots=2)
        taken = [future.result() for future in workers]

    for index in range(2):
        batches = [batch for passes in taken for batch in passes[index]]
        assert sorted(number for batch in batches for number in batch) == list(range(sum(sizes)))
        assert all(0 < len(batch) <= SPEC.batch_size for batch in batches)


def test_worker_reports_a_row_that_does_not_match_its_declaration() -> None:
    columns = replace(SPEC.columns, num_classes=2)  # The rows have three.
    with (
        Loopback(replace(ASYNCHRONOUS, columns=columns, num_readers=1)) as loop,
        ActionClient(loop.control.location, loop.secret) as control,
    ):
        loop.directory.offer_sample("train", encode_sample(rows_from(0, 1)))
        context = worker(loop, 0, control)
        feeding = threading.Thread(target=loop.feed, args=(loop.open_pass(), partitions_of([9]), 1))
        feeding.start()
        feed = WorkerFeed(context)
        with pytest.raises(DataError, match="partition 0, row 2"):
            feed._next_batch(b"train", 0)
        feed.close()
        loop.close_stream()
        feeding.join(PATIENCE_S)

    (error,) = context.told
    assert "row 2" in str(error)


def test_shares_of_all_workers_contain_every_record_once_without_padding(
    spark: SparkSession, tmp_path: Path
) -> None:
    tfrecord.register(spark)
    df = df_with_partitions(spark, [7, 4]).select("id", "label")
    df.write.format("tfrecord").mode("append").save(str(tmp_path / "rows"))
    columns = Columns((Column("id", dtype="int32"),), Column("label"), 2, ((0, 0.5), (1, 2.0)))
    plan: Any = TFRecordFiles(str(tmp_path / "rows"), columns).plan(2, 4)

    parse = element_of_records(plan)
    shares = [
        [parse(batch, tf.ones(len(batch))) for batch in records_of_share(plan, rank)] for rank in range(2)
    ]

    elements = [element for share in shares for element in share]
    assert sorted(int(number) for ids, *_ in elements for number in ids) == list(range(11))
    assert [[len(ids) for ids, *_ in share] for share in shares] == [[4, 1], [4, 2]]
    weights = {int(y): float(w) for _, ys, ws in elements for y, w in zip(ys, ws, strict=True)}
    assert weights == {0: 0.5, 1: 2.0}
