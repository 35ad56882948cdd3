"""The Spark data source ``tfrecord`` (and ``tfrecords``): a thin layer over the codec.

Spark creates the source and the reader or writer in a Python process on the driver, and calls `read` and
`write` in the Python workers of its tasks. Only `register` imports it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql.datasource import (
    DataSource,
    DataSourceArrowWriter,
    DataSourceReader,
    InputPartition,
    WriterCommitMessage,
)
from pyspark.sql.types import StructType

from tfspark.errors import ConfigError
from tfspark.tfrecord.batches import RAW_COLUMN, read_slice
from tfspark.tfrecord.commit import Job, abort_job, commit_job, open_output
from tfspark.tfrecord.encode import check_encodable, encode_batch, pieces
from tfspark.tfrecord.files import absolute, list_files, partition_fields, paths_of
from tfspark.tfrecord.infer import infer_schema
from tfspark.tfrecord.options import Options, parse_options
from tfspark.tfrecord.schema import kind_of
from tfspark.tfrecord.spark_types import arrow_schema, ddl
from tfspark.tfrecord.splits import Slice, plan_splits, split_size


class TFRecordDataSource(DataSource):  # type: ignore[misc]
    """TFRecord files of ``tf.train.Example`` messages as a Spark data source."""

    @classmethod
    def name(cls) -> str:
        """Return the short name for ``spark.read.format``."""
        return "tfrecord"

    def schema(self) -> str:
        """Infer the schema from a sample of the records."""
        options = parse_options(self.options)
        files = list_files(paths_of(self.options), options.compression)
        if options.raw:
            return ddl(pa.schema([pa.field(RAW_COLUMN, pa.binary()), *partition_fields(files)]))
        return ddl(infer_schema(files, options.infer_samples, options.mode))

    def reader(self, schema: StructType) -> DataSourceReader:
        """Return a reader of the declared or inferred columns."""
        return TFRecordReader(paths_of(self.options), arrow_schema(schema), parse_options(self.options))

    def writer(self, schema: StructType, overwrite: bool) -> DataSourceArrowWriter:
        """Return a writer; reject a schema that an Example cannot hold before any task starts."""
        options = parse_options(self.options)
        if options.raw:
            raise ConfigError(
                "expected no option recordType to write, got ByteArray, which is for reading; leave it out"
            )
        columns = arrow_schema(schema)
        check_encodable(columns)
        path = absolute(paths_of(self.options)[0])
        return TFRecordWriter(Job(path, str(uuid.uuid4()), overwrite, options.compression or ""))


class TFRecordsDataSource(TFRecordDataSource):
    """The same source with its second name."""

    @classmethod
    def name(cls) -> str:
        """Return the short name for ``spark.read.format``."""
        return "tfrecords"


class _Split(InputPartition):  # type: ignore[misc]
    """The slices that one task reads, and the options; direct scans get them from Spark's plan."""

    def __init__(self, slices: tuple[Slice, ...], options: Options):
        self.slices = slices
        self.mode = options.mode
        self.raw = options.raw


class TFRecordReader(DataSourceReader):  # type: ignore[misc]
    """Plans on the driver, reads in tasks."""

    def __init__(self, paths: Sequence[str], schema: pa.Schema, options: Options):
        """Check that every column can be read."""
        self.paths = paths
        self.columns = schema
        self.options = options
        for field in schema:
            kind_of(field.name, field.type)
        if options.raw and (RAW_COLUMN not in schema.names or schema.field(RAW_COLUMN).type != pa.binary()):
            raise ConfigError(
                f"expected the schema '{RAW_COLUMN} binary' with recordType ByteArray, got {schema.names}; "
                "leave it out"
            )

    def partitions(self) -> list[InputPartition]:
        """List the files and divide them among tasks."""
        files = list_files(self.paths, self.options.compression)
        split_bytes = split_size(files, self.options.split_bytes)
        return [_Split(slices, self.options) for slices in plan_splits(files, split_bytes)]

    def read(self, partition: _Split) -> Iterator[pa.RecordBatch]:
        """Yield the records of a split as batches of bounded size."""
        for piece in partition.slices:
            yield from read_slice(piece, self.columns, self.options.mode, self.options.raw)


@dataclass(frozen=True)
class _Written(WriterCommitMessage):  # type: ignore[misc]
    """The result of one task attempt: the name of its file, None for an empty partition."""

    name: str | None
    num_records: int


class TFRecordWriter(DataSourceArrowWriter):  # type: ignore[misc]
    """Writes in tasks, commits on the driver."""

    def __init__(self, job: Job):
        """Store the job; only the tasks write."""
        self.job = job

    def write(self, iterator: Iterator[pa.RecordBatch]) -> WriterCommitMessage:
        """Write one file with the rows of a partition; none for an empty one."""
        context = TaskContext.get()
        name = self.job.file_name(context.partitionId(), context.taskAttemptId())
        return _write_file(self.job, name, iterator)

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """Move the files into place."""
        commit_job(self.job, [message.name for message in messages if message and message.name])

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """Remove everything that the job wrote."""
        abort_job(self.job)


def _write_file(job: Job, name: str, batches: Iterator[pa.RecordBatch]) -> _Written:
    """Encode batches into one new file."""
    parts = (part for batch in batches for part in pieces(batch))
    first = next(parts, None)
    if first is None:
        return _Written(None, 0)
    num_records = first.num_rows
    with open_output(job, name) as stream:
        stream.write(encode_batch(first))
        for part in parts:
            stream.write(encode_batch(part))
            num_records += part.num_rows
    return _Written(name, num_records)
