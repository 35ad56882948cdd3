"""The data source in a real Spark session."""

from __future__ import annotations

import datetime
import decimal
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import AnalysisException
from pyspark.ml.linalg import DenseVector, SparseVector
from pyspark.sql import DataFrame, SparkSession

from tfspark.tfrecord import count_records, list_files, register
from tfspark.tfrecord.damage import Damage
from tfspark.tfrecord.files import open_input
from tfspark.tfrecord.records import read_blocks

UTC = datetime.UTC


@pytest.fixture
def session(spark: SparkSession) -> SparkSession:
    register(spark)
    return spark


def save(df: DataFrame, path: Path, mode: str = "append", **options: str) -> str:
    df.write.format("tfrecord").mode(mode).options(**options).save(str(path))
    return str(path)


def load(session: SparkSession, path: Path, schema: Any = None, **options: str) -> DataFrame:
    reader = session.read.format("tfrecord").options(**options)
    return (reader.schema(schema) if schema is not None else reader).load(str(path))


def test_formats_can_be_registered_and_used_in_a_thread(session: SparkSession, tmp_path: Path) -> None:
    def write_and_read() -> int:
        register(session)
        save(session.range(10), tmp_path / "out")
        return load(session, tmp_path / "out").count()

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(write_and_read).result() == 10


ROW: dict[str, tuple[str, list[Any]]] = {
    "flag": ("boolean", [True, False, None]),
    "tiny": ("tinyint", [-128, 127, None]),
    "small": ("smallint", [-5, 5, None]),
    "normal": ("int", [-(2**31), 1, None]),
    "big": ("bigint", [-(2**63), 2**63 - 1, None]),
    "real": ("float", [1.5, float("inf"), None]),
    "wide": ("double", [0.5, 1e300, None]),
    "money": ("decimal(5,2)", [decimal.Decimal("1.25"), decimal.Decimal("-999.50"), None]),
    "text": ("string", ["é", "", None]),
    "raw": ("binary", [b"\xff\x00", b"", None]),
    "day": ("date", [datetime.date(2020, 2, 29), datetime.date(1900, 1, 1), None]),
    "moment": ("timestamp", [datetime.datetime(2020, 2, 29, 1, 2, 3, 456789), None, None]),
    "local": ("timestamp_ntz", [datetime.datetime(2020, 2, 29, 1, 2, 3, 456789), None, None]),
    "ints": ("array<int>", [[1, 2], [], None]),
    "floats": ("array<float>", [[1.5, 2.5, 3.5], [], None]),
    "texts": ("array<string>", [["a", "b"], [], None]),
    "raws": ("array<binary>", [[b"a", b"\xff"], [], None]),
}


def test_read_with_the_schema_of_the_save_restores_every_type(session: SparkSession, tmp_path: Path) -> None:
    schema = ", ".join(f"{name} {kind}" for name, (kind, _) in ROW.items())
    df = session.createDataFrame(list(zip(*(values for _, values in ROW.values()), strict=True)), schema)
    save(df.coalesce(1), tmp_path / "out")
    came = [row.asDict() for row in load(session, tmp_path / "out", df.schema).collect()]
    expected = [row.asDict() for row in df.collect()]
    expected[1]["wide"] = float(np.float32(np.inf))  # a double beyond float32 becomes infinite
    assert came == expected


def test_read_without_a_schema_infers_it(session: SparkSession, tmp_path: Path) -> None:
    df = session.createDataFrame(
        [(1, 1.5, "a", [1, 2]), (2, 2.5, "b", [3])], "i int, d double, s string, l array<int>"
    )
    save(df, tmp_path / "out")
    came = load(session, tmp_path / "out")
    assert came.schema.simpleString() == "struct<d:float,i:bigint,l:array<bigint>,s:string>"
    assert sorted(came.select("i", "d", "s", "l").collect()) == sorted(df.collect())


def test_read_of_vectors_returns_arrays_or_dense_vectors(session: SparkSession, tmp_path: Path) -> None:
    df = session.createDataFrame([(DenseVector([1.0, 2.0]),), (SparseVector(3, {1: 5.0}),), (None,)], ["v"])
    save(df.coalesce(1), tmp_path / "out")
    assert [row.v for row in load(session, tmp_path / "out").collect()] == [[1.0, 2.0], [0.0, 5.0, 0.0], None]
    vectors = [row.v for row in load(session, tmp_path / "out", df.schema).collect()]
    assert vectors == [DenseVector([1.0, 2.0]), DenseVector([0.0, 5.0, 0.0]), None]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_save_names_files_as_spark_does_and_writes_a_success_marker(
    session: SparkSession, tmp_path: Path, compression: str
) -> None:
    save(session.range(0, 1000, 1, 3), tmp_path / "out", compression=compression)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    suffix = r"\.tfrecord\.gz" if compression == "gzip" else r"\.tfrecord"
    assert names[0] == "_SUCCESS"
    assert [bool(re.fullmatch(rf"part-0000\d-[0-9a-f-]{{36}}{suffix}", name)) for name in names[1:]] == [
        True
    ] * 3
    assert sum(count_records(file.path) for file in list_files(str(tmp_path / "out"))) == 1000
    assert load(session, tmp_path / "out").selectExpr("sum(id)").first()[0] == 499500


def test_save_with_append_adds_and_with_overwrite_replaces(session: SparkSession, tmp_path: Path) -> None:
    for mode, expected in (("append", 10), ("append", 20), ("overwrite", 10)):
        save(session.range(10), tmp_path / "out", mode)
        assert load(session, tmp_path / "out").count() == expected
    doubled = load(session, tmp_path / "out").union(load(session, tmp_path / "out"))
    save(doubled, tmp_path / "out", "overwrite")
    assert load(session, tmp_path / "out").count() == 20


@pytest.mark.parametrize("mode", ["error", "ignore"])
def test_save_in_a_mode_that_spark_does_not_offer_is_refused(
    session: SparkSession, tmp_path: Path, mode: str
) -> None:
    with pytest.raises(AnalysisException, match="UNSUPPORTED_DATA_SOURCE_SAVE_MODE"):
        save(session.range(10), tmp_path / "out", mode)


def test_save_with_partition_by_is_refused(session: SparkSession, tmp_path: Path) -> None:
    df = session.range(10)
    with pytest.raises(Exception, match="partitioning"):
        df.write.format("tfrecord").mode("append").partitionBy("id").save(str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("column", "message"),
    [("array(array(id))", "flatten it"), ("struct(id)", "select its fields"), ("map(id, id)", "cast it")],
)
def test_save_of_an_unsupported_type_is_refused_before_any_task_runs(
    session: SparkSession, tmp_path: Path, column: str, message: str
) -> None:
    with pytest.raises(AnalysisException, match=message):
        save(session.range(10).selectExpr(f"{column} c"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_save_that_fails_does_not_change_the_directory(session: SparkSession, tmp_path: Path) -> None:
    save(session.range(10), tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))

    def after_the_other_task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Fail only when the other task has its temporary file: it could create it after the job has failed."""
        for batch in batches:
            until = time.monotonic() + 60
            while 99 in batch.column(0).to_pylist() and time.monotonic() < until:
                if list((tmp_path / "out").glob("_temporary/*/*/part-00000-*")):
                    break
                time.sleep(0.05)
            yield batch

    ids = session.range(0, 100, 1, 2).mapInArrow(after_the_other_task, "id bigint")
    bad = ids.selectExpr("if(id = 99, array(null), array(id)) c")
    with pytest.raises(Exception, match="array_compact"):
        save(bad, tmp_path / "out", "overwrite")
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_read_of_partitioned_directories_adds_their_columns(session: SparkSession, tmp_path: Path) -> None:
    for year, name in ((2020, "x"), (2021, "y")):
        save(session.range(3), tmp_path / f"out/year={year}/name={name}")
    came = load(session, tmp_path / "out")
    assert came.schema.simpleString() == "struct<id:bigint,year:int,name:string>"
    assert came.where("year = 2021").select("id", "name").collect() == [(0, "y"), (1, "y"), (2, "y")]
    declared = load(session, tmp_path / "out", "name string, id int, year string")
    assert sorted(declared.collect())[0] == ("x", 0, "2020")


def test_read_in_small_splits_returns_every_record_once(session: SparkSession, tmp_path: Path) -> None:
    save(session.range(0, 2000, 1, 1).selectExpr("id", "repeat('x', id % 50) s"), tmp_path / "out")
    came = load(session, tmp_path / "out", splitBytes="10000")
    assert came.rdd.getNumPartitions() > 5
    assert sorted(row.id for row in came.collect()) == list(range(2000))


def test_read_of_a_damaged_file_fails_or_drops_its_bad_record(session: SparkSession, tmp_path: Path) -> None:
    save(session.range(0, 100, 1, 1), tmp_path / "out")
    (file,) = list_files(str(tmp_path / "out"))
    data = bytearray(Path(file.path).read_bytes())
    data[-6] ^= 1
    Path(file.path).write_bytes(data)
    with pytest.raises(Exception, match=rf"{re.escape(file.path)}, byte \d+: expected data with crc32c"):
        load(session, tmp_path / "out", "id bigint").collect()
    assert load(session, tmp_path / "out", "id bigint", mode="DROPMALFORMED").count() == 99


def test_error_of_several_values_for_an_inferred_scalar_names_the_fix(
    session: SparkSession, tmp_path: Path
) -> None:
    save(session.range(0, 100, 1, 1).selectExpr("if(id < 50, array(id), array(id, id)) c"), tmp_path / "out")
    with pytest.raises(Exception, match=r"got 2 values; declare the column as array<bigint>"):
        load(session, tmp_path / "out", inferSamples="50").collect()


def test_format_name_tfrecords_works_as_well(session: SparkSession, tmp_path: Path) -> None:
    session.range(10).write.format("tfrecords").mode("append").save(str(tmp_path / "out"))
    assert session.read.format("tfrecords").load([str(tmp_path / "out")] * 2).count() == 20


def test_read_of_an_empty_save_needs_a_schema(session: SparkSession, tmp_path: Path) -> None:
    save(session.range(0), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_SUCCESS"]
    with pytest.raises(AnalysisException, match="got none"):
        load(session, tmp_path / "out")


def test_records_read_as_bytes_are_the_records_of_the_files(session: SparkSession, tmp_path: Path) -> None:
    rows = session.range(0, 40, 1, 3).selectExpr("id", "repeat('x', int(id % 7) * 10) AS text")
    for compression in ("none", "gzip"):
        path = tmp_path / compression / "part=7"
        save(rows, path, compression=compression)
        df = load(session, path.parent, recordType="ByteArray", splitBytes="200")
        assert df.schema.simpleString() == "struct<byteArray:binary,part:int>"
        records = [(bytes(row.byteArray), row.part) for row in df.collect()]
        expected = []
        for file in list_files(str(path)):
            with open_input(file) as stream:
                for block in read_blocks(stream, Damage(file.path)):
                    expected += [(block.record(row), 7) for row in range(len(block))]
        assert len(expected) == 40
        assert sorted(records) == sorted(expected)


@pytest.mark.parametrize(
    ("options", "schema", "says"),
    [
        (
            {"recordType": "Sequence"},
            None,
            "expected option recordType to be Example or ByteArray, got 'Sequence'",
        ),
        (
            {"recordType": "ByteArray"},
            "id bigint",
            "expected the schema 'byteArray binary' with recordType ByteArray",
        ),
    ],
)
def test_unknown_record_type_or_unsuitable_schema_is_refused(
    session: SparkSession, tmp_path: Path, options: dict[str, str], schema: str | None, says: str
) -> None:
    save(session.range(3), tmp_path / "rows")
    with pytest.raises(Exception, match=re.escape(says)):
        load(session, tmp_path / "rows", schema, **options).collect()


def test_write_of_raw_records_is_refused(session: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="got ByteArray, which is for reading"):
        save(session.range(3), tmp_path / "rows", recordType="ByteArray")
