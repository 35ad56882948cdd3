"""Network faults between real clients and real servers: each row is read once, and no call waits forever or raises.

``TFSPARK_FAULT_SCHEDULES=1000 scripts/test -m slow tests/feed/test_faults.py -k many`` runs a thousand schedules of
each kind. This takes an hour, but little CPU time. The course of a schedule also depends on the timing of threads, so
a seed that fails may fail in only some of its runs.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from feed.faults import FaultyCalls, Proxy
from feed.loopback import HOST, SPEC, Loopback, Taken, in_step, partitions_of

from tfspark.cluster import control
from tfspark.cluster.control import ControlPlane
from tfspark.cluster.state.checkpoint_store import CheckpointStore
from tfspark.cluster.state.registry import Registry
from tfspark.protocol import wire
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.wire import ActionClient, new_secret

SECRET = new_secret()
SCHEDULES = {"calls": 30, "bytes": 5}
"""Number of schedules of each kind. After a reset, gRPC waits a second or two before it connects again."""
MANY = int(os.environ.get("TFSPARK_FAULT_SCHEDULES", "1000"))


@contextmanager
def faults(seed: int, kind: str, rate: float) -> Iterator[None]:
    """Give every connection that is opened in the block faults, drawn from a seed."""
    chance = random.Random(seed)
    connect = flight.connect
    proxies: dict[str, Proxy] = {}
    lock = threading.Lock()
    with ExitStack() as ends, pytest.MonkeyPatch.context() as patch:

        def faulty(location: str, **options: Any) -> Any:
            with lock:
                drawn = random.Random(chance.random())
            if kind == "calls":
                return FaultyCalls(connect(location, **options), drawn, rate)
            with lock:
                if location not in proxies:
                    proxies[location] = ends.enter_context(Proxy(location, drawn, rate))
            return connect(proxies[location].location, **options)

        patch.setattr(wire.flight, "connect", faulty)
        patch.setattr(control, "LONG_POLL_S", 0.1)
        yield


def run_pass(loop: Loopback, partitions: list[list[pa.RecordBatch]]) -> list[Taken]:
    """Feed a pass and read it. Each feed task runs once, as on a local master: a failure fails the pass."""
    index, readers = loop.open_pass(), loop.spec.num_readers
    steps = list(in_step(readers, {}, readers))
    with ThreadPoolExecutor(readers + 2) as pool:
        taken = [pool.submit(loop.take, rank, index, step) for rank, step in enumerate(steps)]
        served = [
            pool.submit(loop.task(index).serve, number, iter(rows)) for number, rows in enumerate(partitions)
        ]
        for each in served:
            each.result()
        loop.finish_pass(index)
        return [each.result() for each in taken]


def check_passes(seed: int, kind: str) -> None:
    """Read two passes through a network whose faults are drawn from a seed; check that each row is read once."""
    drawn = random.Random(seed)
    sizes = [drawn.choice((0, 3, 17, 40)) for _ in range(drawn.randint(1, 3))] + [5]
    spec = replace(SPEC, ordered=drawn.random() < 0.3, num_readers=drawn.choice((1, 2)))
    with Loopback(spec) as loop, faults(seed, kind, 0.1):
        for _ in range(2):
            taken = run_pass(loop, partitions_of(sizes))
            ids = sorted(number for one in taken for number in one.ids())
            assert ids == list(range(sum(sizes))), f"seed {seed}: {kind}, {sizes}"
            assert len({len(one.batches) for one in taken}) == 1
            assert not loop.control.read(lambda state: state.registry.failed)


@pytest.mark.parametrize("kind", ["calls", "bytes"])
def test_each_row_is_read_once_through_a_network_that_fails(kind: str) -> None:
    for seed in range(SCHEDULES[kind]):
        check_passes(seed, kind)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["calls", "bytes"])
def test_each_row_is_read_once_through_a_network_that_fails_in_many_ways(kind: str) -> None:
    for seed in range(SCHEDULES[kind], MANY):
        check_passes(seed, kind)


@contextmanager
def plane(directory: Path) -> Iterator[ControlPlane]:
    """Start a driver's server that stores checkpoints of two workers."""
    nodes = plan_nodes(2)
    server = ControlPlane(
        (HOST, HOST),
        SECRET,
        nodes,
        Registry(nodes, 60.0, {}),
        lambda event, fields: None,
        directory,
        store=CheckpointStore(directory / "state", None),
    )
    try:
        yield server
    finally:
        server.close()


def part(rank: int) -> dict[str, Any]:
    """Return the header of a worker's part of a checkpoint."""
    facts = {"progress": {"call": 0, "finished": False}, "model": []}
    return {"passes": 1, "steps": 0, "rank": rank, "of": 2, "used": {}, "rows": 0, "facts": facts}


@pytest.mark.parametrize("seed", range(3))
def test_checkpoints_files_and_sums_arrive_complete_through_a_network_that_fails(
    tmp_path: Path, seed: int
) -> None:
    data = [np.random.default_rng(rank).bytes(3 << 20) for rank in range(2)]
    schema = pa.schema([("path", pa.string()), ("data", pa.binary())])

    def work(rank: int, client: ActionClient) -> list[Any]:
        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(data[rank]), 1 << 18):
                yield pa.record_batch([[""], [data[rank][start : start + (1 << 18)]]], schema=schema)

        client.put({"part": part(rank)}, schema, batches, 60.0)
        client.put({"name": f"file-{rank}"}, schema, batches, 60.0)
        sums = []
        for number in range(20):
            values: Any = [[rank + number]]
            reply = {"status": "wait"}
            while reply["status"] != "ok":
                reply = client.call("sum", key=f"sum-{number}", rank=rank, of=2, values=values)
                values = [[rank + number]] if reply["status"] == "again" else None
            sums.append(reply["values"])
        return sums

    with plane(tmp_path) as server, faults(seed, "bytes", 0.03), ThreadPoolExecutor(2) as pool:
        clients = [ActionClient(server.location, SECRET) for _ in range(2)]
        found = [each.result(120) for each in [pool.submit(work, rank, c) for rank, c in enumerate(clients)]]
        for client in clients:
            client.close()
    assert found == [[[[1 + 2 * number]] for number in range(20)]] * 2
    assert [(tmp_path / f"file-{rank}").read_bytes() for rank in range(2)] == data
    (kept,) = (tmp_path / "state").glob("state-*")
    assert [(kept / f"part-000{rank}.npz").read_bytes() for rank in range(2)] == data
