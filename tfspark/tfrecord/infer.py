"""Infer a schema from a bounded sample of records, and count records.

Called on the driver if no schema is declared, and to plan over files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa

from tfspark.errors import DataError
from tfspark.tfrecord.damage import Damage
from tfspark.tfrecord.files import InputFile, list_files, open_input, partition_fields
from tfspark.tfrecord.framing import HEADER, OVERHEAD, read_header
from tfspark.tfrecord.records import BAD_HEADER, read_blocks, truncated
from tfspark.tfrecord.schema import Observed
from tfspark.tfrecord.wire import WireError, parse_example

INFER_SAMPLES = 1000
_SAMPLE_FILES = 8

Seen = dict[bytes, Observed]


def read_schema(paths: str | Sequence[str], samples: int = INFER_SAMPLES) -> pa.Schema:
    """Infer the schema of TFRecord files: the union of the features in a sample, then the partition columns.

    Args:
        paths: as for `list_files`.
        samples: number of records to read, spread over the first files.

    Raises:
        DataError: there are no records, a record is damaged, or records contradict each other.
    """
    return infer_schema(list_files(paths), samples)


def infer_schema(files: Sequence[InputFile], samples: int, mode: str = "FAILFAST") -> pa.Schema:
    """Infer the schema of listed files; see `read_schema`."""
    seen: Seen = {}
    left, chosen = samples, [file for file in files if file.num_bytes][:_SAMPLE_FILES]
    num_records = 0
    for place, file in enumerate(chosen):
        came = _observe(file, -(-left // (len(chosen) - place)), Damage(file.path, mode), seen)
        left, num_records = left - came, num_records + came
    if not num_records:
        raise DataError(
            f"expected records to infer a schema from, got none in {len(files)} files "
            f"({files[0].path} ...); declare one: spark.read.schema(...)"
        )
    fields = {key.decode(): observed.arrow_type() for key, observed in sorted(seen.items())}
    partitions = [field for field in partition_fields(files) if field.name not in fields]
    return pa.schema([*(pa.field(name, dtype) for name, dtype in fields.items()), *partitions])


def _observe(file: InputFile, samples: int, damage: Damage, seen: Seen) -> int:
    """Read the first records of a file; return their number."""
    came = 0
    with open_input(file) as stream:
        for block in read_blocks(stream, damage):
            for row in range(min(len(block), samples - came)):
                place = block.record_offset(row)
                try:
                    _see(block.record(row), seen, f"{file.path}, byte {place}")
                except WireError as error:
                    damage.hit(place, f"expected a serialized tf.train.Example; {error}")
            came += min(len(block), samples - came)
            if came >= samples:
                break
    return came


def _see(record: bytes, seen: Seen, place: str) -> None:
    for key, (kind, values) in parse_example(record).items():
        observed = seen.setdefault(key, Observed(kind))
        if observed.kind is not kind:
            raise DataError(
                f"{place}: feature {key.decode()!r}: expected {observed.kind.label} values as in earlier "
                f"records, got {kind.label} values; declare a schema without it, or write the records again"
            )
        observed.see(values)


def count_records(path: str) -> int:
    """Count the records of one file; only the headers of a plain local file are read.

    Raises:
        DataError: a header is damaged or the file is truncated.
    """
    file = list_files(path)[0]
    if not file.compression and "://" not in file.path:
        return _count_headers(file.path)
    with open_input(file) as stream:
        return sum(len(block) for block in read_blocks(stream, Damage(file.path)))


def _count_headers(path: str) -> int:
    """Count the records by seeking from header to header."""
    size, at, count = os.path.getsize(path), 0, 0
    damage = Damage(path)
    with open(path, "rb", buffering=HEADER) as stream:
        while at < size:
            stream.seek(at)
            needed = _record_size(stream.read(HEADER), at, damage)
            if at + needed > size:
                damage.hit(at, truncated(needed, size - at))
            at, count = at + needed, count + 1
    return count


def _record_size(raw: bytes, at: int, damage: Damage) -> int:
    """Return the size of the record with this header; the size of a header if the header is cut off."""
    if len(raw) < HEADER:
        return HEADER
    length = read_header(raw)
    if length is None:
        damage.hit(at, BAD_HEADER)
    return (length or 0) + OVERHEAD
