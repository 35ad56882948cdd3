"""The driver's and readers' common data about a stream: its description, its first row, its name."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tfspark.errors import ConfigError
from tfspark.feed.columns import Columns
from tfspark.protocol.values import Json, plain


@dataclass(frozen=True)
class StreamSpec:
    """The description of a stream that a reader needs; made on the driver, sent as JSON.

    Attributes:
        name: name of the stream.
        columns: the columns that are fed.
        batch_size: rows of one reader's batch.
        num_readers: number of readers that share the stream.
        synchronous: all readers return the same number of batches of equal size (padded with weight 0).
        ordered: rows are assigned to readers by position, so that a pass is the same in every run.
        shuffle_rows: rows of each reader's shuffle window, or of all readers' windows if `ordered`; 0: no shuffling.
        seed: seed of the shuffle.
        chunk_bytes: size of one pull.
        timeout_s: seconds without a row before a DeadlineError.
        cache_bytes: maximum size of each reader's node cache; 0: nothing is stored.
        open_ended: the number and times of the passes are unknown: they are micro-batches of a streaming DataFrame.
        has_ledger: readers record which rows each step uses, for checkpoints within a pass.
    """

    name: str
    columns: Columns
    batch_size: int
    num_readers: int
    synchronous: bool
    ordered: bool
    shuffle_rows: int
    seed: int
    chunk_bytes: int
    timeout_s: float
    cache_bytes: int = 0
    open_ended: bool = False
    has_ledger: bool = False

    def to_json(self) -> Json:
        """Return a form that can be written as JSON."""
        told: Json = json.loads(json.dumps({**vars(self), "columns": self.columns.to_json()}, default=plain))
        return told

    @classmethod
    def from_json(cls, data: Json) -> StreamSpec:
        """Create the description from the result of `to_json`."""
        known = {key: data[key] for key in cls.__dataclass_fields__}
        return cls(**{**known, "columns": Columns.from_json(data["columns"])})


@dataclass(frozen=True)
class Start:
    """Where a reader begins within a pass; taken from a checkpoint.

    Attributes:
        steps: number of batches used before.
        rows: number of rows this reader has had before, if it does not read the pass from its beginning.
        replays: whether it reads the pass from its beginning and skips the first `steps` batches. The batches of an
            ordered stream are the same again.
    """

    steps: int = 0
    rows: int = 0
    replays: bool = False


def encode_sample(batch: pa.RecordBatch) -> str:
    """Encode one row with its schema for a JSON message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return base64.b64encode(sink.getvalue()).decode()


SAMPLE = pa.schema([("sample", pa.string())])
SAMPLE_DDL = "sample string"


def first_row(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the first row of a partition, encoded; for Spark's `mapInArrow`."""
    for batch in batches:
        if batch.num_rows:
            yield _row_of_text(encode_sample(batch.slice(0, 1)))
            return


def _row_of_text(text: str) -> pa.RecordBatch:
    """Return a row of `SAMPLE`.

    pyarrow imports pandas when it first converts a Python object. In a fresh Python worker of Spark this takes 0.3 s of
    CPU, often while TensorFlow is imported beside it, so the row is made of its bytes.
    """
    encoded = text.encode()
    parts = (struct.pack("<ii", 0, len(encoded)), encoded)
    array = pa.Array.from_buffers(pa.string(), 1, [None, *map(pa.py_buffer, parts)])
    return pa.RecordBatch.from_arrays([array], schema=SAMPLE)


def decode_sample(text: str) -> pa.RecordBatch:
    """Decode the result of `encode_sample`."""
    table = pa.ipc.open_stream(base64.b64decode(text)).read_all()
    return table.combine_chunks().to_batches()[0]


def stream_of(qname: str) -> str:
    """Return the name of the stream that feeds a queue."""
    return "train" if qname == "input" else qname


def check_qname(qname: str, queues: Sequence[str]) -> None:
    """Reject a queue that the cluster does not have.

    Raises:
        ConfigError: its name is not among `queues`, or is reserved for errors.
    """
    known = [name for name in queues if name != "error"]
    if qname not in known:
        raise ConfigError(
            f"expected qname to be one of {known}, got {qname!r}; name further queues in TFCluster.run(queues=[...])"
        )
