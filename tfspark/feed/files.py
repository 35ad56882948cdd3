"""`TFRecordFiles`: the driver divides the records of files among the workers; they read them with tf.data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import pyarrow as pa

from tfspark.errors import ConfigError, DataError
from tfspark.feed.arrays import to_numpy
from tfspark.feed.columns import Columns, check_columns
from tfspark.protocol.values import Json
from tfspark.tfrecord import InputFile, count_records, feature_specs, list_files, read_schema
from tfspark.tfrecord.damage import Damage
from tfspark.tfrecord.decode import decode_block
from tfspark.tfrecord.files import open_input
from tfspark.tfrecord.records import read_blocks

if TYPE_CHECKING:
    pass

COUNTING_THREADS = 8


@dataclass(frozen=True)
class Slice:
    """Consecutive records of one file."""

    path: str
    compression: str
    skip: int
    take: int


@dataclass(frozen=True)
class TFRecordFiles:
    """TFRecord files that every executor can read under the same path.

    Attributes:
        path: a file, a directory or a glob, or several of them.
        columns: which features are used and how.
        shuffle_rows: rows of each worker's shuffle window.
    """

    path: str | Sequence[str]
    columns: Columns
    shuffle_rows: int = 0

    def plan(self, num_workers: int, local_batch_size: int) -> Json:
        """Divide the records among the workers, in file order; the shares differ by at most one record.

        Raises:
            DataError: a file is missing or damaged, or there are no records.
            ConfigError: a column is not in the files.
        """
        if self.columns.examples is not None:
            raise ConfigError(
                "expected no examples with TFRecordFiles, whose records are Examples anyway; leave it out"
            )
        files = list_files(self.path)
        schema = read_schema(self.path)
        check_columns(self.columns, schema.names)
        shares = divide(files, _count(files), num_workers)
        rows = [sum(piece.take for piece in share) for share in shares]
        return {
            "columns": self.columns.to_json(),
            "features": [vars(spec) for spec in feature_specs(schema) if spec.name in self.columns.names],
            "shapes": self._shapes(files, schema),
            "shares": [[vars(piece) for piece in share] for share in shares],
            "filler": vars(Slice(files[0].path, files[0].compression, 0, 1)),
            "batch_size": local_batch_size,
            "num_readers": num_workers,
            "steps": -(-max(rows) // local_batch_size),
            "shuffle_rows": self.shuffle_rows,
        }

    def _shapes(self, files: Sequence[InputFile], schema: pa.Schema) -> dict[str, list[int]]:
        """Return column name -> shape of one row, taken from the first record."""
        wanted = pa.schema([schema.field(name) for name in self.columns.names])
        file = next(file for file in files if file.num_bytes)
        damage = Damage(file.path)
        with open_input(file) as stream:
            block = next(iter(read_blocks(stream, damage)))
        rows = to_numpy(decode_block(block, wanted, damage).slice(0, 1), self.columns)
        return {name: list(values.shape[1:]) for name, values in rows.items()}


def _count(files: Sequence[InputFile]) -> list[int]:
    with ThreadPoolExecutor(COUNTING_THREADS, thread_name_prefix="tfspark-count") as pool:
        return list(pool.map(count_records, [file.path for file in files]))


def divide(files: Sequence[InputFile], counts: Sequence[int], num_workers: int) -> list[list[Slice]]:
    """Cut the sequence of all records into `num_workers` runs whose lengths differ by at most one.

    Args:
        files: the files in reading order.
        counts: number of records of each file.
        num_workers: number of shares.

    Returns:
        Worker -> slices of files. Every record is in exactly one.

    Raises:
        DataError: there are no records.
    """
    total = sum(counts)
    if not total:
        raise DataError(f"expected records, got none in {len(files)} files; check the path")
    bounds = [total * worker // num_workers for worker in range(num_workers + 1)]
    return [list(_between(files, counts, first, end)) for first, end in pairwise(bounds)]


def _between(files: Sequence[InputFile], counts: Sequence[int], first: int, end: int) -> Iterable[Slice]:
    start = 0
    for file, count in zip(files, counts, strict=True):
        skip, stop = max(first - start, 0), min(end - start, count)
        if skip < stop:
            yield Slice(file.path, file.compression, skip, stop - skip)
        start += count
