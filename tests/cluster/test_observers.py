"""An observer that raises ends the run with an error that names it; the node that sent the event is not blamed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster.planes import PART, SCHEMA, upload
from cluster.registered import is_transient

from tfspark.cluster.control import ControlPlane
from tfspark.cluster.state.checkpoint_store import CheckpointStore
from tfspark.cluster.state.registry import Registry
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.wire import ActionClient, new_secret

REGISTER: dict[str, Any] = {"node": 0, "host": "h", "port": 1, "versions": {}}


def report(client: ActionClient) -> None:
    client.call("report", node=0, event="step", fields={})


def register(client: ActionClient) -> None:
    assert client.call("register", **REGISTER)["action"] == "go"


def beat(client: ActionClient) -> None:
    client.call("heartbeat", node=0, attempt=0, log=["a line"], leaving="")


def end(client: ActionClient) -> None:
    client.call("node_ended", node=0, attempt=0, cause="", log=["a line"], log_tail=[])


def send_state(client: ActionClient) -> None:
    client.put({"part": PART}, SCHEMA, upload(("", b"whole")), 60.0)


@pytest.mark.parametrize("error", [RuntimeError, OSError, SystemExit], ids=lambda error: error.__name__)
@pytest.mark.parametrize(
    ("event", "tell"),
    [("step", report), ("registered", register), ("log", beat), ("log", end), ("state", send_state)],
    ids=["a report", "a registration", "a heartbeat's log", "a node's last log", "a checkpoint"],
)
def test_observer_that_raises_is_named_and_the_call_of_the_node_succeeds(
    tmp_path: Path, event: str, tell: Callable[[ActionClient], None], error: type[BaseException]
) -> None:
    def observer(told: str, fields: Any) -> None:
        del fields
        if told == event:
            raise error("of its own")

    secret, nodes = new_secret(), plan_nodes(1)
    registry = Registry(nodes, 60.0, {})
    addresses, store = ("127.0.0.1", "127.0.0.1"), CheckpointStore(tmp_path, None)
    plane = ControlPlane(addresses, secret, nodes, registry, observer, tmp_path, store=store)
    try:
        with ActionClient(plane.location, secret) as client:
            tell(client)
        assert registry.failed
        assert not is_transient(registry)
        said = f"the observer to return when it is told of '{event}', it raised {error.__name__}: of its own"
        assert said in str(registry.error())
    finally:
        plane.close()
