"""What a trainer uploads lands below the run directory, whole, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cluster.planes import PART, SCHEMA, plane_of, upload

from tfspark.cluster.state.checkpoint_store import CheckpointStore
from tfspark.cluster.uploads import receive_files, safe_parts
from tfspark.protocol.wire import ActionClient, new_secret


def test_receive_files_when_a_folder_arrives_in_chunks_keeps_every_byte(tmp_path: Path) -> None:
    files = upload(("model.keras", b"abc"), ("model.keras", b"def"), ("saved_model/variables/v", b"\0" * 9))

    receive_files(files, tmp_path, "export")

    assert (tmp_path / "export/model.keras").read_bytes() == b"abcdef"
    assert (tmp_path / "export/saved_model/variables/v").read_bytes() == b"\0" * 9
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_receive_files_when_one_file_arrives_writes_this_file(tmp_path: Path) -> None:
    receive_files(upload(("", b"abc"), ("", b"d")), tmp_path, "checkpoints/epoch-0001.keras")

    assert (tmp_path / "checkpoints/epoch-0001.keras").read_bytes() == b"abcd"


def test_receive_files_when_an_upload_is_repeated_replaces_the_earlier_one(tmp_path: Path) -> None:
    receive_files(upload(("old", b"1")), tmp_path, "export")
    receive_files(upload(("new", b"2")), tmp_path, "export")

    assert [path.name for path in (tmp_path / "export").iterdir()] == ["new"]


def test_receive_files_when_the_stream_breaks_keeps_only_the_earlier_upload(tmp_path: Path) -> None:
    receive_files(upload(("model", b"whole")), tmp_path, "export")

    def breaking() -> Iterator[pa.RecordBatch]:
        yield from upload(("model", b"ha"))
        raise ConnectionError("the trainer was killed")

    with pytest.raises(ConnectionError):
        receive_files(breaking(), tmp_path, "export")

    assert (tmp_path / "export/model").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../outside", id="the parent"),
        pytest.param("a/../../outside", id="the parent, behind a folder"),
        pytest.param("/etc/outside", id="absolute"),
        pytest.param("//etc/outside", id="absolute with two slashes, a special case of POSIX"),
        pytest.param("///etc/outside", id="absolute with three"),
        pytest.param("", id="empty"),
        pytest.param(".", id="the directory itself"),
    ],
)
def test_safe_parts_when_a_path_leads_out_refuses_it(path: str) -> None:
    with pytest.raises(ValueError, match="expected a path below the run directory"):
        safe_parts(path)


def test_safe_parts_when_below_splits_it() -> None:
    assert safe_parts("a/b..c/.d") == ("a", "b..c", ".d")


@pytest.mark.parametrize("where", ["name", "path"])
def test_receive_files_when_a_path_leads_out_writes_nothing_there(tmp_path: Path, where: str) -> None:
    run = tmp_path / "runs/one"
    outside = f"/{tmp_path}/outside" if where == "name" else "../../../outside"
    name, path = (outside, "x") if where == "name" else ("export", outside)

    with pytest.raises(ValueError, match="expected a path below the run directory"):
        receive_files(upload((path, b"x")), run, name)

    assert not (tmp_path / "outside").exists()


# --- from a process that is killed while it sends --------------------------------------------------

SEND = """
import json, sys
import pyarrow as pa
from tfspark.protocol.wire import ActionClient, Secret

location, token, header, num_batches = sys.argv[1:]
schema = pa.schema([("path", pa.string()), ("data", pa.binary())])

def batches():
    for _ in range(int(num_batches)):
        yield pa.record_batch([[""], [bytes(1000)]], schema=schema)
    print("on its way", flush=True)
    sys.stdin.read()

ActionClient(location, Secret(token)).put(json.loads(header), schema, batches(), 60.0)
"""


@pytest.mark.parametrize("num_batches", [0, 3])
@pytest.mark.parametrize("header", [{"name": "export"}, {"part": PART}], ids=["artifact", "part"])
def test_upload_of_a_process_that_is_killed_is_not_kept(
    tmp_path: Path, header: dict[str, Any], num_batches: int
) -> None:
    events = list[str]()
    secret, run = new_secret(), tmp_path / "run"
    store = CheckpointStore(run / "state", None)
    plane = plane_of(run, store, secret, events)
    sender = subprocess.Popen(
        [sys.executable, "-c", SEND, plane.location, secret.token, json.dumps(header), str(num_batches)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == b"on its way\n"
        sender.kill()
    plane.close()  # Returns when the call has ended.
    kept = [path for path in run.rglob("*") if path.is_file() and ".state-" not in str(path)]
    assert (kept, events, store.newest()) == ([], [], None)

    plane = plane_of(run, store, secret, events)
    with ActionClient(plane.location, secret) as client:
        client.put(header, SCHEMA, upload(("", b"whole")), 60.0)
    plane.close()

    newest = store.newest()
    if "part" in header:
        assert newest is not None
        assert (newest.path / "part-0000.npz").read_bytes() == b"whole"
    else:
        assert (run / "export").read_bytes() == b"whole"
