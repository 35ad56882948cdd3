"""A control plane for a test, and uploads to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tfspark.cluster.control import ControlPlane
from tfspark.cluster.state.checkpoint_store import CheckpointStore
from tfspark.cluster.state.registry import Registry
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.wire import Secret

SCHEMA = pa.schema([("path", pa.string()), ("data", pa.binary())])


def upload(*files: tuple[str, bytes]) -> Iterator[pa.RecordBatch]:
    """Return the table that the server reads: one (path, bytes) row per chunk of a file."""
    for path, data in files:
        yield pa.record_batch([[path], [data]], schema=SCHEMA)


PART = {
    "passes": 0,
    "steps": 4,
    "rank": 0,
    "of": 1,
    "used": {},
    "rows": 0,
    "facts": {"progress": {"call": 0, "finished": False}, "model": []},
}


def plane_of(run: Path, store: CheckpointStore, secret: Secret, events: list[str]) -> ControlPlane:
    nodes = plan_nodes(1)
    return ControlPlane(
        ("127.0.0.1", "127.0.0.1"),
        secret,
        nodes,
        Registry(nodes, 60.0, {}),
        lambda event, fields: events.append(event),
        run,
        store=store,
    )
