"""A trainer that is paused for longer than any call may take loses no rows."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.protocol.timing import CALL_TIMEOUT_S

PAUSE_S = CALL_TIMEOUT_S + 5


def reading_ids() -> Callable[[Any, Any], Any]:
    """Return a ``main_fun`` that returns the ids it saw, and reports its process id at batch 10."""

    def main_fun(args: Any, ctx: Any) -> list[int]:
        from tfspark.training.input.dataset import open_feed

        ids: list[int] = []
        for number, batch in enumerate(open_feed(ctx, "train").batches()):
            ids += batch["id"][batch["__weight__"] > 0].tolist()
            if number == 10:
                ctx.report("pid", pid=os.getpid())
        return ids

    return main_fun


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_trainer_that_is_paused_for_longer_than_a_call_may_take_loses_no_rows(spark: SparkSession) -> None:
    pids: queue.SimpleQueue[int] = queue.SimpleQueue()

    def tell(event: str, fields: Any) -> None:
        if event == "pid" and fields["node"] == "worker 0":
            # The report may arrive twice: the pause is longer than the trainer waits for an answer.
            pids.put(fields["pid"])

    def pause() -> None:
        pid = pids.get(timeout=120)
        os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(PAUSE_S)
        os.kill(pid, signal.SIGCONT)

    pausing = threading.Thread(target=pause)
    pausing.start()
    rows = df_with_partitions(spark, [20_000, 0, 30_000, 10_000])
    with TFCluster.run(spark, reading_ids(), None, 2, observer=tell) as cluster:
        feeding = Feeding(chunk_bytes=4096, buffer_bytes=16384)
        cluster.train(rows, features=["id"], batch_size=64, feeding=feeding)
        results = cluster.shutdown()
    pausing.join()
    assert sorted(results["worker 0"] + results["worker 1"]) == list(range(60_000))
