"""Files that trainers send to the run directory and fetch from it. Runs on the driver."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

FILE_CHUNK_BYTES = 4 << 20


def receive_files(batches: Iterable[pa.RecordBatch], directory: Path, name: str) -> None:
    """Write an uploaded artifact below `directory`: first to a temporary path, which is renamed when complete.

    Raises:
        ValueError: a path in the upload is outside the directory.
    """
    target = directory.joinpath(*safe_parts(name))
    # A unique name: if the connection of an upload was reset, the trainer sends it again, perhaps before this call
    # knows.
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        _write_files(batches, aside)
        remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(target)
    finally:
        remove(aside)


def read_to_the_end(batches: Iterable[pa.RecordBatch]) -> None:
    """Read the rest of the stream. Otherwise the trainer would report a broken stream as its own error."""
    for _ in batches:
        pass


def _write_files(batches: Iterable[pa.RecordBatch], aside: Path) -> None:
    for batch in batches:
        for path, data in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
            file = aside.joinpath(*safe_parts(path)) if path else aside
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab") as out:
                out.write(data.as_buffer())


def safe_parts(name: str) -> tuple[str, ...]:
    """Split a relative path; reject one that leads out of its directory."""
    path = PurePosixPath(name)
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts:
        raise ValueError(f"expected a path below the run directory, got {name!r}")
    return parts


def file_batches(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the content of a file in pieces."""
    with file.open("rb") as stream:
        while data := stream.read(FILE_CHUNK_BYTES):
            yield pa.record_batch([[data]], schema=schema)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
