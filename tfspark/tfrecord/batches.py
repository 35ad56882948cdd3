"""Read files as record batches: the work of a task of the data source, usable without Spark.

A process that feeds a trainer from TFRecord files can call it directly, without a conversion to Spark's rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from tfspark.tfrecord.damage import FAILFAST, Damage
from tfspark.tfrecord.decode import decode_block, raw_records
from tfspark.tfrecord.files import InputFile, open_input
from tfspark.tfrecord.records import read_blocks
from tfspark.tfrecord.splits import Slice

RAW_COLUMN = "byteArray"
"""The column of raw records; the TensorFlow ecosystem's spark-tfrecord connector uses the same name."""


def read_batches(file: InputFile, schema: pa.Schema, mode: str = FAILFAST) -> Iterator[pa.RecordBatch]:
    """Yield a complete file as record batches of bounded size.

    Args:
        file: from `list_files`.
        schema: the columns to decode, including partition columns.
        mode: ``FAILFAST`` or ``DROPMALFORMED``.

    Raises:
        DataError: in mode ``FAILFAST``, a record is damaged or does not match the schema.
    """
    return read_slice(Slice(file), schema, mode)


def read_slice(piece: Slice, schema: pa.Schema, mode: str, raw: bool = False) -> Iterator[pa.RecordBatch]:
    """Decode the records of one slice, or yield them `raw`; partition columns come from the directories."""
    damage = Damage(piece.file.path, mode)
    from_path = dict(piece.file.partition)
    features = pa.schema([field for field in schema if field.name not in from_path])
    with open_input(piece.file, piece.start) as stream:
        for block in read_blocks(stream, damage, piece.start, piece.end):
            if raw:
                batch = pa.RecordBatch.from_arrays([raw_records(block).cast(pa.binary())], [RAW_COLUMN])
            else:
                batch = decode_block(block, features, damage)
            yield _with_partition(batch, piece.file, schema) if from_path else batch
    damage.report()


def _with_partition(batch: pa.RecordBatch, file: InputFile, schema: pa.Schema) -> pa.RecordBatch:
    """Add the partition columns to a batch, in the order of the schema."""
    values = dict(file.partition)
    columns = []
    for field in schema:
        if field.name in values:
            value = pa.array([values[field.name]], pa.string()).cast(field.type)[0]
            columns.append(pa.repeat(value, batch.num_rows))
        else:
            columns.append(batch.column(field.name))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
