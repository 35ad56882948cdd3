"""Strangers and garbage at the driver's port: nothing is accepted, nothing breaks, the cluster still works."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfspark.cluster.control import ControlPlane
from tfspark.cluster.state.registry import Registry
from tfspark.feed.buffer import ChunkBuffer
from tfspark.feed.source import SourceServer
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.wire import MAX_MESSAGE_BYTES, ActionClient, new_secret

SECRET = new_secret()
TOKEN = SECRET.token
ACTIONS = sorted(name.removeprefix("on_") for name in dir(ControlPlane) if name.startswith("on_"))
PULL = {"reader": 0, "acknowledged": 0, "max_bytes": 1 << 20, "rows_before": 0}
EXAMPLES = int(os.environ.get("TFSPARK_FUZZ_EXAMPLES", "300"))
FEW = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    nodes = plan_nodes(2)
    registry = Registry(nodes, 60.0, {})
    control = ControlPlane(
        ("127.0.0.1", "127.0.0.1"), SECRET, nodes, registry, lambda event, fields: None, tmp_path
    )
    yield control
    control.close()


def options(token: str | None) -> flight.FlightCallOptions:
    headers = [] if token is None else [(b"authorization", token.encode())]
    return flight.FlightCallOptions(timeout=20, headers=headers)


def is_untouched(plane: ControlPlane) -> bool:
    return plane.read(lambda state: len(state.registry.missing()) == 2 and not state.must_stop)


def serves(plane: ControlPlane) -> bool:
    """Return whether a node of this cluster can register."""
    with ActionClient(plane.location, SECRET) as client:
        reply = client.call("register", node=0, host="h", port=1, versions={})
    return reply["action"] == "go"


@pytest.mark.parametrize(
    "token",
    [
        None,
        "",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        TOKEN,
        f"bearer {TOKEN}",
        f"Bearer {new_secret().token}",
    ],
    ids=[
        "none",
        "empty",
        "no secret",
        "shortened",
        "longer",
        "no scheme",
        "another scheme",
        "another cluster's",
    ],
)
def test_stranger_is_refused_at_every_call(plane: ControlPlane, tmp_path: Path, token: str | None) -> None:
    body = json.dumps({"node": 0, "host": "h", "port": 1, "versions": {}}).encode()
    with flight.connect(plane.location) as stranger:
        for action in ACTIONS:
            with pytest.raises(flight.FlightUnauthenticatedError):
                list(stranger.do_action(flight.Action(action, body), options(token)))
        with pytest.raises(flight.FlightUnauthenticatedError):
            stranger.do_get(flight.Ticket(b'{"artifact": "config.yaml"}'), options(token)).read_all()
        with pytest.raises(flight.FlightUnauthenticatedError):
            upload(stranger, {"name": "export/model.keras"}, token)
    assert list(tmp_path.iterdir()) == []
    assert is_untouched(plane)
    assert serves(plane)


def upload(client: flight.FlightClient, header: dict[str, Any], token: str | None) -> None:
    schema = pa.schema([("path", pa.string()), ("data", pa.binary())])
    descriptor = flight.FlightDescriptor.for_command(json.dumps(header).encode())
    writer, _ = client.do_put(descriptor, schema, options(token))
    with writer:
        writer.write_batch(pa.record_batch([[""], [b"x"]], schema=schema))


@FEW
@given(action=st.sampled_from(ACTIONS) | st.text(max_size=30), body=st.binary(max_size=200))
def test_bodies_that_are_not_json_are_refused(plane: ControlPlane, action: str, body: bytes) -> None:
    with flight.connect(plane.location) as client, pytest.raises((flight.FlightError, pa.ArrowException)):
        list(client.do_action(flight.Action(action, b"\xff" + body), options(f"Bearer {TOKEN}")))
    assert is_untouched(plane)


@FEW
@given(action=st.sampled_from([name for name in ACTIONS if name != "register"]), request=JSON)
def test_json_of_a_wrong_form_changes_nothing(plane: ControlPlane, action: str, request: Any) -> None:
    body = json.dumps(request).encode()
    with flight.connect(plane.location) as client, pytest.raises((flight.FlightError, pa.ArrowException)):
        list(client.do_action(flight.Action(action, body), options(f"Bearer {TOKEN}")))
    assert is_untouched(plane)


def test_body_that_is_too_large_is_refused_on_both_sides(plane: ControlPlane) -> None:
    body = b'{"node": 0, "log": "' + b"x" * MAX_MESSAGE_BYTES + b'"}'
    with flight.connect(plane.location) as client, pytest.raises(pa.ArrowInvalid, match="at most 64 MB"):
        list(client.do_action(flight.Action("heartbeat", body), options(f"Bearer {TOKEN}")))
    with ActionClient(plane.location, SECRET) as client, pytest.raises(ValueError, match="at most 64 MB"):
        client.call("trainer_ended", node=0, result="x" * MAX_MESSAGE_BYTES)
    assert is_untouched(plane)
    assert serves(plane)


@pytest.fixture
def source() -> Iterator[SourceServer]:
    """Start the server of a feed task, with ten rows."""
    rows = pa.record_batch({"id": range(10)})
    buffer = ChunkBuffer(1 << 20, 60.0, num_readers=1, batch_rows=10)
    buffer.offer(0, rows)
    buffer.finish()
    server = SourceServer("127.0.0.1", SECRET, buffer, rows.schema)
    yield server
    server.close()


@pytest.fixture
def callers(source: SourceServer) -> Iterator[tuple[ActionClient, Any]]:
    """Connect a reader of the source and a second client. They connect once, because it takes longer than a call."""
    with ActionClient(source.location, SECRET) as client, flight.connect(source.location) as other:
        yield client, other


@FEW
@given(ticket=JSON | st.binary(max_size=100), sequence=st.integers(), reader=st.integers(1))
def test_invalid_tickets_and_acknowledgements_take_no_row(
    callers: tuple[ActionClient, Any], ticket: Any, sequence: int, reader: int
) -> None:
    client, other = callers
    body = ticket if isinstance(ticket, bytes) else json.dumps(ticket).encode()
    with pytest.raises((flight.FlightError, pa.ArrowException)):
        other.do_get(flight.Ticket(body), options(f"Bearer {TOKEN}")).read_all()
    with pytest.raises(flight.FlightUnauthenticatedError):
        other.do_get(flight.Ticket(json.dumps(PULL).encode()), options("Bearer stale")).read_all()
    client.call("acknowledge", reader=reader, sequence=sequence)
    pulled = client.get(PULL)
    assert pulled.column("id").to_pylist() == list(range(10))


class Trap:
    """Write a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickled_bodies_are_never_unpickled(plane: ControlPlane, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    body = pickle.dumps(Trap(trap))
    with flight.connect(plane.location) as client:
        for action in ACTIONS:
            with pytest.raises((flight.FlightError, pa.ArrowException)):
                list(client.do_action(flight.Action(action, body), options(f"Bearer {TOKEN}")))
    assert not trap.exists()
    assert serves(plane)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "", "."])
def test_uploads_that_lead_out_of_the_run_directory_are_refused(
    plane: ControlPlane, tmp_path: Path, name: str
) -> None:
    with flight.connect(plane.location) as client, pytest.raises((flight.FlightError, pa.ArrowException)):
        upload(client, {"name": name}, f"Bearer {TOKEN}")
    assert not (tmp_path.parent / "outside").exists()
    with flight.connect(plane.location) as client, pytest.raises((flight.FlightError, pa.ArrowException)):
        client.do_get(
            flight.Ticket(json.dumps({"artifact": name}).encode()), options(f"Bearer {TOKEN}")
        ).read_all()
