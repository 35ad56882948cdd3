"""What a trainer uploads lands below the run directory, whole, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from tfspark.cluster.control import receive_files, safe_parts

SCHEMA = pa.schema([("path", pa.string()), ("data", pa.binary())])


@dataclass
class Chunk:
    data: pa.RecordBatch


def upload(*files: tuple[str, bytes]) -> Iterator[Chunk]:
    """What the server reads: one (path, bytes) row per chunk of a file."""
    for path, data in files:
        yield Chunk(pa.record_batch([[path], [data]], schema=SCHEMA))


def test_receive_files_when_a_folder_arrives_in_chunks_keeps_every_byte(tmp_path: Path) -> None:
    chunks = upload(("model.keras", b"abc"), ("model.keras", b"def"), ("saved_model/variables/v", b"\0" * 9))

    receive_files(chunks, tmp_path, "export")

    assert (tmp_path / "export/model.keras").read_bytes() == b"abcdef"
    assert (tmp_path / "export/saved_model/variables/v").read_bytes() == b"\0" * 9
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_receive_files_when_one_file_arrives_is_that_file(tmp_path: Path) -> None:
    receive_files(upload(("", b"abc"), ("", b"d")), tmp_path, "checkpoints/epoch-0001.keras")

    assert (tmp_path / "checkpoints/epoch-0001.keras").read_bytes() == b"abcd"


def test_receive_files_when_it_comes_again_replaces_the_former(tmp_path: Path) -> None:
    receive_files(upload(("old", b"1")), tmp_path, "export")
    receive_files(upload(("new", b"2")), tmp_path, "export")

    assert [path.name for path in (tmp_path / "export").iterdir()] == ["new"]


def test_receive_files_when_the_stream_breaks_keeps_the_former_alone(tmp_path: Path) -> None:
    receive_files(upload(("model", b"whole")), tmp_path, "export")

    def breaking() -> Iterator[Chunk]:
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
        pytest.param("a/../../outside", id="the parent further down"),
        pytest.param("/etc/outside", id="absolute"),
        pytest.param("//etc/outside", id="absolute with two slashes, which POSIX keeps apart"),
        pytest.param("///etc/outside", id="absolute with three"),
        pytest.param("", id="none"),
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
