"""Find and open TFRecord files: a file, a directory, a glob, Hive-partitioned directories; local or remote.

Called on the driver to plan a read, and by tasks to open the planned files. Remote schemes use
`pyarrow.fs.FileSystem.from_uri`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from tfspark.errors import ConfigError, DataError

GZIP = "gzip"
_GZIP_MAGIC = b"\x1f\x8b"
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_MAGIC = re.compile(r"[*?\[{]")
_S3_OF_HADOOP = re.compile(r"^s3[an]://")


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    Attributes:
        path: absolute local path, or URI.
        num_bytes: stored size, perhaps compressed.
        compression: ``"gzip"`` or ``""``.
        partition: (column, value) of each Hive-style directory above it; the value is None for null.
        modified_ns: time of the last write, if its file system knows it; a resumed run compares it.
    """

    path: str
    num_bytes: int
    compression: str
    partition: tuple[tuple[str, str | None], ...] = ()
    modified_ns: int = 0


def resolve(path: str) -> tuple[Any, str]:
    """Return the file system of a path or URI, and the path within it."""
    path = _without_file_scheme(path)
    if "://" not in path:
        return fs.LocalFileSystem(), os.path.abspath(path)
    try:
        system, inner = fs.FileSystem.from_uri(_S3_OF_HADOOP.sub("s3://", path))
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"expected a local path or a URI that pyarrow can open, got {path!r} ({error}); "
            "see the supported schemes of pyarrow.fs.FileSystem.from_uri"
        ) from error
    return system, inner


def _without_file_scheme(path: str) -> str:
    """Convert a ``file:`` URI to its local path."""
    if not path.startswith("file:"):
        return path
    return unquote(re.sub(r"^file:(//[^/]*)?", "", path))


def absolute(path: str) -> str:
    """Return an absolute path: executors have different working directories."""
    path = _without_file_scheme(path)
    return path if "://" in path else os.path.abspath(path)


def paths_of(options: Mapping[str, str]) -> list[str]:
    """Return the paths that were passed to ``load(...)``.

    Raises:
        ConfigError: there are none.
    """
    if options.get("paths"):
        return [str(path) for path in json.loads(options["paths"])]
    if options.get("path"):
        return [options["path"]]
    raise ConfigError('expected a path, got none; call .load("/data/train") or .save("/data/train")')


def list_files(paths: str | Sequence[str], compression: str | None = None) -> list[InputFile]:
    """List the files to read, in the order of their paths.

    Args:
        paths: files, directories or globs, local or as URIs. Names that begin with ``_`` or ``.`` are
            ignored below a directory.
        compression: ``"gzip"`` or ``""`` for all files; None: detect it by the name and the first bytes of each.

    Raises:
        DataError: a path does not exist, or there are no files.
    """
    paths = [paths] if isinstance(paths, str) else paths
    found = [entry for path in paths for entry in _expand(path)]
    if not found:
        raise DataError(f"expected TFRecord files in {', '.join(paths)}, got none; check the path")
    with ThreadPoolExecutor(16) as pool:
        kinds = pool.map(lambda entry: _compression(entry[0], compression), found)
        return [
            InputFile(path, num_bytes, kind, partition, modified_ns)
            for (path, num_bytes, partition, modified_ns), kind in zip(found, kinds, strict=True)
        ]


_Entry = tuple[str, int, tuple[tuple[str, str | None], ...], int]


def _expand(path: str) -> list[_Entry]:
    """List the files of one path."""
    path = _without_file_scheme(path)
    system, inner = resolve(path)
    info = system.get_file_info(inner) if not _MAGIC.search(path) or "://" not in path else None
    if info is not None and info.type == fs.FileType.File:
        return [(path if "://" in path else inner, info.size, (), info.mtime_ns or 0)]
    if info is not None and info.type == fs.FileType.Directory:
        return _below(path, None)
    magic = _MAGIC.search(path)
    if magic is None:
        raise DataError(f"expected a file, a directory or a glob; {path} does not exist; check the path")
    base = path[: path.rfind("/", 0, magic.start()) + 1] or "."
    return _below(base, _glob_pattern(path[len(base) if base != "." else 0 :]))


def _below(base: str, pattern: re.Pattern[str] | None) -> list[_Entry]:
    """List the visible files below a directory that match a glob, or lie below a directory that matches."""
    system, inner = resolve(base)
    inner = inner.rstrip("/")
    prefix = base.rstrip("/") if "://" in base else inner
    entries = []
    for info in system.get_file_info(fs.FileSelector(inner, recursive=True, allow_not_found=True)):
        relative = info.path[len(inner) :].lstrip("/")
        if info.type == fs.FileType.File and _is_visible(relative) and _matches(relative, pattern):
            modified_ns = info.mtime_ns or 0
            entries.append((f"{prefix}/{relative}", info.size, _partition(relative), modified_ns))
    return sorted(entries)


def _is_visible(relative: str) -> bool:
    """Whether no part of a path is hidden by Spark's rules; ``_a=1`` is a partition."""
    return not any(part[0] == "." or (part[0] == "_" and "=" not in part) for part in relative.split("/"))


def _matches(relative: str, pattern: re.Pattern[str] | None) -> bool:
    if pattern is None:
        return True
    parts = relative.split("/")
    return any(pattern.fullmatch("/".join(parts[: depth + 1])) for depth in range(len(parts)))


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """Translate a glob with ``*``, ``?``, ``[a-z]`` and ``{a,b}`` to a regular expression."""
    pieces = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|", "[": "[", "]": "]", "-": "-"}
    depth, out = 0, []
    for char in glob:
        depth += (char == "{") - (char == "}")
        is_plain = char not in pieces or (char == "," and not depth)
        out.append(re.escape(char) if is_plain else pieces[char])
    return re.compile("".join(out).replace("[!", "[^"))


def _partition(relative: str) -> tuple[tuple[str, str | None], ...]:
    """Return the partition values from the directories above a file."""
    pairs = [part.split("=", 1) for part in relative.split("/")[:-1] if "=" in part]
    return tuple((unquote(key), None if value == _NULL_PARTITION else unquote(value)) for key, value in pairs)


def _compression(path: str, given: str | None) -> str:
    if given is not None:
        return given
    if path.endswith(".gz"):
        return GZIP
    system, inner = resolve(path)
    with system.open_input_stream(inner, compression=None) as stream:
        return GZIP if stream.read(2) == _GZIP_MAGIC else ""


def open_input(file: InputFile, start: int = 0) -> IO[bytes]:
    """Open a file for reading, decompressed, at an offset (0 when compressed)."""
    system, inner = resolve(file.path)
    if file.compression == GZIP:
        return system.open_input_stream(inner, compression=GZIP)  # type: ignore[no-any-return]
    if not start:
        return system.open_input_stream(inner, compression=None)  # type: ignore[no-any-return]
    stream = system.open_input_file(inner)
    stream.seek(start)
    return stream  # type: ignore[no-any-return]


def partition_fields(files: Sequence[InputFile]) -> list[pa.Field]:
    """Infer the partition columns: int, bigint or string.

    Raises:
        DataError: the files do not agree on the columns.
    """
    names = [name for name, _ in files[0].partition] if files else []
    for file in files:
        if [name for name, _ in file.partition] != names:
            raise DataError(
                f"expected partition directories {names} as above {files[0].path}, got "
                f"{[name for name, _ in file.partition]} above {file.path}; load a directory with the same partition "
                "columns everywhere"
            )
    values = [[file.partition[place][1] for file in files] for place in range(len(names))]
    return [pa.field(name, _partition_type(column)) for name, column in zip(names, values, strict=True)]


def _partition_type(values: Sequence[str | None]) -> pa.DataType:
    present = [value for value in values if value is not None]
    if not present or not all(re.fullmatch(r"-?\d{1,18}", value) for value in present):
        return pa.string()
    return pa.int32() if all(-(2**31) <= int(value) < 2**31 for value in present) else pa.int64()
