"""Divide input files into partitions. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tfspark.tfrecord.files import InputFile

MAX_SPLIT_BYTES = 128 << 20
MIN_SPLIT_BYTES = 32 << 20  # a task costs Spark about 0.1 s before it reads its first byte
_SPLITS = 32  # a small dataset is cut into about this number of splits, for parallel tasks


@dataclass(frozen=True)
class Slice:
    """A part of a file: the records that begin in ``[start, end)``; an end of None is the end of the file."""

    file: InputFile
    start: int = 0
    end: int | None = None


def split_size(files: Sequence[InputFile], given: int | None) -> int:
    """Return the size of a partition in bytes; 0: do not split files."""
    if given is not None:
        return given
    total = sum(file.num_bytes for file in files)
    return min(MAX_SPLIT_BYTES, max(MIN_SPLIT_BYTES, total // _SPLITS))


def plan_splits(files: Sequence[InputFile], split_bytes: int) -> list[tuple[Slice, ...]]:
    """Cut large plain files, and combine consecutive small pieces.

    Args:
        files: the files to read.
        split_bytes: maximum bytes of a partition; a compressed file is never cut. 0: one partition per file.
    """
    groups: list[list[Slice]] = []
    room = 0
    for file in files:
        for piece, size in _cut(file, split_bytes):
            if not groups or size > room:
                groups.append([])
                room = split_bytes
            groups[-1].append(piece)
            room -= size
    return [tuple(group) for group in groups]


def _cut(file: InputFile, split_bytes: int) -> Iterator[tuple[Slice, int]]:
    if file.compression or not split_bytes or file.num_bytes <= split_bytes:
        yield Slice(file), max(1, file.num_bytes)
        return
    for start in range(0, file.num_bytes, split_bytes):
        end = start + split_bytes
        yield (
            Slice(file, start, end if end < file.num_bytes else None),
            min(split_bytes, file.num_bytes - start),
        )
