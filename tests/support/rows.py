"""Small DataFrames with known rows and partitions.

Row ``i`` of the whole DataFrame has id ``i``. `features_of` and `label_of` return its other values, so a test can
compare received rows with sent rows without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Row, SparkSession

SCHEMA = "id bigint, features array<float>, label bigint"
_BATCH_ROWS = 1000


def features_of(ids: np.ndarray, num_features: int = 4) -> np.ndarray:
    """Return the feature vectors of rows.

    Shapes:
        ids: (rows,) int64
        returns: (rows, features) float32, in [0, 1)
    """
    cells = np.asarray(ids, np.int64)[:, None] * num_features + np.arange(num_features)
    # Multiplying by the golden ratio spreads neighbours over the interval (Knuth, TAOCP 6.4).
    return ((cells * 0.6180339887498949) % 1.0).astype(np.float32)


def label_of(ids: np.ndarray, num_classes: int = 2) -> np.ndarray:
    """Return the labels of rows: 1-D int64, ``id % num_classes``."""
    return np.asarray(ids, np.int64) % num_classes


def df_with_partitions(
    spark: SparkSession, sizes: Sequence[int], *, num_features: int = 4, num_classes: int = 2
) -> DataFrame:
    """Return a DataFrame (id, features, label) whose partition ``p`` has exactly ``sizes[p]`` rows.

    Ids count through the partitions in order. No shuffle is involved, so adaptive execution merges nothing,
    and a recomputed partition has the same rows in the same order.
    """
    if not sizes or min(sizes) < 0:
        raise ValueError(f"sizes must be a non-empty list of row counts >= 0. Received: sizes={list(sizes)}")
    # A range of n rows in n partitions puts row p in partition p.
    seeds = spark.range(0, len(sizes), 1, len(sizes))
    return seeds.mapInArrow(_expand(list(sizes), num_features, num_classes), SCHEMA)


def partition_sizes(df: DataFrame) -> list[int]:
    """Return the number of rows in each partition, including empty ones."""

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        partition = TaskContext.get().partitionId()
        rows = sum(batch.num_rows for batch in batches)
        yield pa.RecordBatch.from_pydict({"partition": [partition], "rows": [rows]})

    counted = df.mapInArrow(count, "partition bigint, rows bigint").collect()
    return [row.rows for row in sorted(counted)]


def noting_partitions(log: Path | str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a function for `mapInArrow` that notes its partition in a file each time that Spark computes it."""
    file = str(log)

    def note(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        with open(file, "a") as out:
            out.write(f"{TaskContext.get().partitionId()}\n")
        yield from batches

    return note


def _expand(
    sizes: list[int], num_features: int, num_classes: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    firsts = np.concatenate([[0], np.cumsum(sizes)])

    def expand(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for partition in batch.column(0).to_pylist():
                for first in range(firsts[partition], firsts[partition + 1], _BATCH_ROWS):
                    last = min(first + _BATCH_ROWS, firsts[partition + 1])
                    yield _batch(np.arange(first, last, dtype=np.int64), num_features, num_classes)

    return expand


def _batch(ids: np.ndarray, num_features: int, num_classes: int) -> pa.RecordBatch:
    flat = _array(pa.float32(), features_of(ids, num_features).ravel())
    offsets = _array(pa.int32(), np.arange(len(ids) + 1, dtype=np.int32) * num_features)
    features = pa.ListArray.from_arrays(offsets, flat)
    labels = _array(pa.int64(), label_of(ids, num_classes))
    return pa.RecordBatch.from_arrays(
        [_array(pa.int64(), ids), features, labels], names=["id", "features", "label"]
    )


def _array(dtype: pa.DataType, values: np.ndarray) -> pa.Array:
    """Return an array of the values' bytes; see `tfspark.feed.stream.first_row` for what ``pa.array`` costs."""
    return pa.Array.from_buffers(dtype, len(values), [None, pa.py_buffer(values.tobytes())])


def assert_same_predictions(made: Sequence[Row], expected: Sequence[Row]) -> None:
    """Compare rows in order, and predictions to float tolerance: rounding depends on the number of rows in a batch."""
    for rows in zip(made, expected, strict=True):
        one, other = ({**row.asDict(), "prediction": row["prediction"] is None} for row in rows)
        assert one == other
    of_both = [
        [row["prediction"] for row in rows if row["prediction"] is not None] for rows in (made, expected)
    ]
    np.testing.assert_allclose(*of_both, rtol=1e-5, atol=1e-6)
