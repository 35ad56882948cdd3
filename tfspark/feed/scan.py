"""Read splits of Parquet and TFRecord files in feed tasks as Spark would, but without Spark's JVM.

Spark plans the scan: files, splits, pruned partitions. A feed task reads its split here, with pyarrow or with the codec
of `tfspark.tfrecord`. Partitions, rows and their order are the same as in Spark's own scan, so a ledger, which
identifies rows by partition and position, is valid for both. Imports neither TensorFlow nor pyspark.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from tfspark.errors import DataError
from tfspark.feed.source import FeedTask, spare_collections
from tfspark.tfrecord.batches import read_slice
from tfspark.tfrecord.damage import FAILFAST
from tfspark.tfrecord.files import resolve
from tfspark.tfrecord.splits import Slice

BATCH_BYTES = 2 << 20
MAX_BATCH_ROWS = 16_384
READ_BYTES = 1 << 20
"""Number of bytes of one column that are read at a time."""
MAX_FILES = 10_000
"""Maximum number of files whose footers the driver reads; each costs about a millisecond and some kilobytes."""

Condition = tuple[Any, ...]
"""A function of `pyarrow.compute` and its arguments: ``("and_kleene" or "or_kleene", condition, condition)``,
``("invert", condition)``, ``("is_valid" or "is_null", column)`` or ``(a comparison, column, value)``."""


@dataclass(frozen=True)
class FileVersion:
    """A file as it was when Spark listed it.

    Attributes:
        path: local path, ``file:`` URI or a URI that pyarrow opens.
        num_bytes: its size.
        modified_ms: modification time, in milliseconds since 1970; 0: its file system does not report it.
    """

    path: str
    num_bytes: int
    modified_ms: int


@dataclass(frozen=True)
class Footer:
    """The content of a Parquet file's footer.

    Attributes:
        types: types of the top-level columns, as Arrow reads them.
        groups: for each row group, the position of its middle byte, its rows and its uncompressed bytes.
    """

    types: Mapping[str, pa.DataType]
    groups: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class RowGroups:
    """Row groups of one Parquet file, in order.

    Attributes:
        file: the file as Spark listed it.
        numbers: numbers of the row groups.
        num_rows: their total number of rows according to the footer.
        num_bytes: their total uncompressed bytes, over all columns.
        constants: partition column -> its value in this file.
    """

    file: FileVersion
    numbers: tuple[int, ...]
    num_rows: int
    num_bytes: int
    constants: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which rows and columns of the files are output.

    Attributes:
        columns: columns read from files and directories, with the types that Spark would pass to Python.
        given: (output name, name in `columns`) of each output column, in order.
        condition: rows for which it is not true are dropped, as by a filter in Spark; None: all rows are output.
    """

    columns: pa.Schema
    given: tuple[tuple[str, str], ...]
    condition: Condition | None = None

    def of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the output rows and columns of a batch."""
        if self.condition is not None:
            batch = batch.filter(holds(self.condition, batch))
        columns = [_as(batch.column(name), self.columns.field(name).type) for _, name in self.given]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Schema of the output."""
        return pa.schema([self.columns.field(inner).with_name(name) for name, inner in self.given])


def holds(condition: Condition, batch: pa.RecordBatch) -> pa.Array:
    """Evaluate a condition for each row: true, false or null, by SQL's three-valued logic."""
    function, *arguments = condition
    if function in ("and_kleene", "or_kleene", "invert"):
        return getattr(pc, function)(*(holds(argument, batch) for argument in arguments))
    column = batch.column(arguments[0])
    values = [pa.scalar(value, column.type) for value in arguments[1:]]
    return getattr(pc, function)(column, *values)


def _as(array: pa.Array, dtype: pa.DataType) -> pa.Array:
    return array if array.type == dtype else array.cast(dtype)


class Scan(Protocol):
    """Reads splits of one kind of file."""

    def read(self, split: Any) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a split in Spark's order, in batches of bounded size."""
        ...


@dataclass(frozen=True)
class ParquetScan:
    """Reads Parquet files.

    Attributes:
        selection: the output rows and columns.
    """

    selection: Selection

    def read(self, split: tuple[RowGroups, ...]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the given row groups.

        Raises:
            DataError: a file was changed or removed since Spark listed it, or it is damaged.
        """
        for groups in split:
            yield from self._read(groups)

    def _read(self, groups: RowGroups) -> Iterator[pa.RecordBatch]:
        constants = dict(groups.constants)
        names = [name for name in self.selection.columns.names if name not in constants]
        rows = 0
        with open_unchanged(groups.file) as stream:
            try:
                for batch in self._batches(stream, groups, names):
                    rows += batch.num_rows
                    for name, value in constants.items():
                        dtype = self.selection.columns.field(name).type
                        batch = batch.append_column(name, pa.repeat(pa.scalar(value, dtype), batch.num_rows))
                    yield self.selection.of(batch)
            except (pa.ArrowException, OSError) as error:
                raise DataError(
                    f"expected row groups {list(groups.numbers)} of {groups.file.path} to be readable Parquet, pyarrow "
                    f"says: {error}; write the file anew"
                ) from error
        if rows != groups.num_rows:
            raise DataError(
                f"expected {groups.num_rows} rows in row groups {list(groups.numbers)} of {groups.file.path}, as its "
                f"footer says, read {rows}; write the file anew"
            )

    def _batches(
        self, stream: pa.NativeFile, groups: RowGroups, names: list[str]
    ) -> Iterator[pa.RecordBatch]:
        if not names:  # Only partition columns are selected.
            rows = pa.RecordBatch.from_pydict({"": pa.nulls(groups.num_rows)})
            yield from (rows.slice(i, MAX_BATCH_ROWS) for i in range(0, groups.num_rows, MAX_BATCH_ROWS))
            return
        file = parquet_file(stream)
        row_bytes = max(1, groups.num_bytes // max(1, groups.num_rows))
        yield from file.iter_batches(
            batch_size=max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // row_bytes)),
            row_groups=list(groups.numbers),
            columns=names,
            use_threads=False,
        )


@dataclass(frozen=True)
class TFRecordScan:
    """Reads TFRecord files.

    Attributes:
        selection: the output rows and columns.
        raw: output the records without decoding them.
    """

    selection: Selection
    raw: bool

    def read(self, split: tuple[Slice, ...]) -> Iterator[pa.RecordBatch]:
        """Yield the records of the given slices.

        Raises:
            DataError: a file was changed or removed since Spark listed it, or a record is damaged.
        """
        for piece in split:
            version = FileVersion(piece.file.path, piece.file.num_bytes, piece.file.modified_ns // 1_000_000)
            _check_unchanged(version)
            for batch in read_slice(piece, self.selection.columns, FAILFAST, self.raw):
                yield self.selection.of(batch)


@dataclass(frozen=True)
class ScanTask:
    """A feed task that reads its split itself; Spark calls it with the number of its task.

    Attributes:
        task: serves the rows.
        scan: reads the rows.
        splits: for each task of the job, the number of its partition and its split.
    """

    task: FeedTask
    scan: Scan
    splits: tuple[tuple[int, Any], ...]

    def __call__(self, number: int) -> None:
        """Serve the partition of this Spark task."""
        spare_collections()
        partition, split = self.splits[number]
        self.task.serve(partition, self.scan.read(split))


def _check_unchanged(file: FileVersion) -> tuple[fs.FileSystem, str]:
    """Return the file system of a file and its path there.

    Raises:
        ConfigError: pyarrow does not support the file system.
        DataError: the file was changed or removed since Spark listed it.
    """
    system, inner = resolve(file.path)
    info = system.get_file_info(inner)
    if info.type != fs.FileType.File:
        raise DataError(
            f"expected {file.path}, which Spark listed with {file.num_bytes} bytes, it is gone; make the DataFrame anew"
        )
    modified_ms = (info.mtime_ns or 0) // 1_000_000
    # Some file systems store times only in whole seconds.
    is_older = (
        file.modified_ms
        and modified_ms
        and abs(modified_ms - file.modified_ms) >= (1 if isinstance(system, fs.LocalFileSystem) else 1000)
    )
    if info.size != file.num_bytes or is_older:
        raise DataError(
            f"expected {file.path} as Spark listed it ({file.num_bytes} bytes, written at {file.modified_ms} ms), it "
            f"has {info.size} bytes, written at {modified_ms} ms; do not change files that are trained on, or make "
            "the DataFrame anew"
        )
    return system, inner


def open_unchanged(file: FileVersion) -> pa.NativeFile:
    """Open a file for reading.

    Raises:
        ConfigError: pyarrow does not support the file system.
        DataError: the file was changed or removed since Spark listed it.
    """
    system, inner = _check_unchanged(file)
    return system.open_input_file(inner)


def parquet_file(stream: pa.NativeFile) -> pq.ParquetFile:
    """Return a Parquet file to read in pieces, with its checksums compared."""
    return pq.ParquetFile(stream, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True)


@functools.lru_cache(maxsize=MAX_FILES)
def footer_of(file: FileVersion) -> Footer:
    """Read the footer of a Parquet file.

    Raises:
        ConfigError: pyarrow does not support the file system.
        DataError: the file was changed or removed since Spark listed it.
        OSError: the file cannot be read.
        pyarrow.ArrowException: the file is not Parquet, or is encrypted.
    """
    with open_unchanged(file) as stream, pq.ParquetFile(stream) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return Footer(
            {field.name: field.type for field in schema},
            tuple((_middle(group), group.num_rows, group.total_byte_size) for group in groups),
        )


def _middle(group: pq.RowGroupMetaData) -> int:
    """Return the position of a row group's middle byte: the split that contains it reads the group.

    This is the rule of parquet-java's `ParquetMetadataConverter.filterFileMetaDataByMidpoint`, which Spark uses.
    """
    first = group.column(0)
    begins = int(first.data_page_offset)
    if first.dictionary_page_offset is not None and 0 < first.dictionary_page_offset < begins:
        begins = int(first.dictionary_page_offset)
    size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return int(begins + size // 2)


def row_groups(file: FileVersion, start: int, length: int, constants: Mapping[str, object]) -> RowGroups:
    """Return the row groups of a file that a split ``[start, start + length)`` reads."""
    chosen = [
        (number, rows, num_bytes)
        for number, (middle, rows, num_bytes) in enumerate(footer_of(file).groups)
        if start <= middle < start + length
    ]
    return RowGroups(
        file,
        tuple(number for number, _, _ in chosen),
        sum(rows for _, rows, _ in chosen),
        sum(num_bytes for _, _, num_bytes in chosen),
        tuple(constants.items()),
    )
