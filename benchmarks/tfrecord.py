"""Measure the speed of the conversion of TFRecord files to record batches and back: of the codec, and through Spark.

    python benchmarks/tfrecord.py [--rows 60000] [--repeat 3]

The limit through Spark is the speed of the same rows from Parquet files. `mapInArrow` reads all rows and discards them.
The best of several repeats counts.

Needs no data.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
sys.path.insert(0, str(ROOT))

from tfspark.tfrecord import register  # noqa: E402
from tfspark.tfrecord.damage import Damage  # noqa: E402
from tfspark.tfrecord.decode import decode_block  # noqa: E402
from tfspark.tfrecord.encode import encode_batch, pieces  # noqa: E402
from tfspark.tfrecord.records import read_blocks  # noqa: E402


def float_rows(rows: int) -> pa.RecordBatch:
    pixels = np.random.default_rng(0).random(rows * 784, np.float32)
    column = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * 784, pixels)
    return pa.record_batch({"image": column, "label": np.arange(rows) % 10})


def byte_rows(rows: int) -> pa.RecordBatch:
    pixels = np.random.default_rng(0).bytes(rows * 784)
    images = [pixels[row * 784 : row * 784 + 784] for row in range(rows)]
    return pa.record_batch({"image": pa.array(images), "label": np.arange(rows) % 10})


def click_rows(rows: int) -> pa.RecordBatch:
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"f{k}": rng.random(rows, np.float32) for k in range(13)}
    for k in range(26):
        columns[f"c{k}"] = pa.array(rng.integers(0, 1_000_000, rows), mask=rng.random(rows) < 0.1)
    return pa.record_batch({**columns, "label": np.arange(rows) % 2})


SHAPES: dict[str, Callable[[int], pa.RecordBatch]] = {
    "784 float32, int64": float_rows,
    "784 bytes, int64": byte_rows,
    "13 float, 26 int64 with nulls, int64": click_rows,
}


def rate(rows: int, repeat: int, action: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(repeat):
        begin = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begin)
    return rows / best


def encode_all(batch: pa.RecordBatch) -> bytes:
    stream = io.BytesIO()
    for start in range(0, batch.num_rows, 10_000):  # Number of rows that Spark passes at a time.
        for piece in pieces(batch.slice(start, 10_000)):
            stream.write(encode_batch(piece))
    return stream.getvalue()


def decode_all(data: bytes, schema: pa.Schema) -> int:
    damage = Damage("memory")
    blocks = read_blocks(io.BytesIO(data), damage)
    return sum(decode_block(block, schema, damage).num_rows for block in blocks)


def drain(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield pa.record_batch({"n": [sum(batch.num_rows for batch in batches)]})


def count(df: Any) -> int:
    return sum(row.n for row in df.mapInArrow(drain, "n bigint").collect())


def session() -> Any:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").config("spark.driver.host", "127.0.0.1")
    spark = (
        builder.config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "2g")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    register(spark)
    return spark


def through_spark(spark: Any, batch: pa.RecordBatch, folder: Path, repeat: int) -> list[float]:
    import pyarrow.parquet as pq

    (folder / "rows").mkdir()
    for part in range(4):
        size = batch.num_rows // 4
        pq.write_table(pa.table(batch.slice(part * size, size)), folder / "rows" / f"{part}.parquet")
    rows = spark.read.parquet(str(folder / "rows"))
    to = str(folder / "records")
    write = rate(batch.num_rows, repeat, lambda: rows.write.format("tfrecord").mode("overwrite").save(to))
    records = spark.read.format("tfrecord").load(to)
    assert count(records) == batch.num_rows
    read = rate(batch.num_rows, repeat, lambda: count(records))
    return [read, rate(batch.num_rows, repeat, lambda: count(rows)), write]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    spark = session()
    print(f"{'rows per second':38}  decode   encode   read by Spark (parquet)  write by Spark")
    for name, make in SHAPES.items():
        batch = make(args.rows)
        data = encode_all(batch)
        folder = Path(tempfile.mkdtemp())
        rates = [
            rate(args.rows, args.repeat, lambda: decode_all(data, batch.schema)),  # noqa: B023 - called at once
            rate(args.rows, args.repeat, lambda: encode_all(batch)),  # noqa: B023
            *through_spark(spark, batch, folder, args.repeat),
        ]
        shutil.rmtree(folder)
        decode, encode, read, limit, write = (f"{value:,.0f}" for value in rates)
        print(f"{name:38} {decode:>8} {encode:>8} {read:>15} {f'({limit})':>9} {write:>15}", flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
