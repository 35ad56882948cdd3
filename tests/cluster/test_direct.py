"""Feed tasks that read files themselves get the rows that Spark would pass to them, in the same places."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster.incarnations import Events
from cluster.programs import dense
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from support.errors import raises

from tfspark import Feeding, TFCluster
from tfspark.cluster.direct import DirectRows
from tfspark.cluster.layout import Parallelism, PlannedRows
from tfspark.errors import ConfigError, DataError
from tfspark.tfrecord import register

PLACED = "partition int, ipc binary"
SMALL_CUTS = {"spark.sql.files.maxPartitionBytes": "3000", "spark.sql.files.openCostInBytes": "100"}


@pytest.fixture(autouse=True)
def small_cuts(spark: SparkSession) -> Iterator[None]:
    """Let Spark cut small files as it cuts large ones."""
    before = {name: spark.conf.get(name) for name in SMALL_CUTS}
    for name, value in SMALL_CUTS.items():
        spark.conf.set(name, value)
    yield
    for name, value in before.items():
        spark.conf.set(name, str(value))


def by_spark(df: DataFrame) -> list[pa.Table]:
    """Return the rows of each partition as Spark passes them to Python."""

    def placed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        for batch in batches:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            ipc = sink.getvalue().to_pybytes()
            yield pa.RecordBatch.from_pydict(
                {"partition": pa.array([TaskContext.get().partitionId()], pa.int32()), "ipc": [ipc]}
            )

    planned, layout = PlannedRows(df, Parallelism(), "spark").of_pass(0)
    parts: list[list[pa.Table]] = [[] for _ in range(layout.partitions)]
    for row in planned.mapInArrow(placed, PLACED).collect():
        parts[row["partition"]].append(pa.ipc.open_stream(bytes(row["ipc"])).read_all())
    return [pa.concat_tables(part) if part else pa.table({}) for part in parts]


def direct(df: DataFrame, scan: str = "direct") -> DirectRows | None:
    planned = PlannedRows(df, Parallelism(), scan)
    planned.of_pass(0)
    return planned.direct()


def by_feed_tasks(df: DataFrame) -> list[pa.Table]:
    """Return the rows of each partition as feed tasks read them."""
    rows = direct(df)
    assert rows is not None
    read = [list(rows.scan.read(split)) for split in rows.splits]
    return [pa.Table.from_batches(part) if part else pa.table({}) for part in read]


def check_alike(df: DataFrame) -> list[pa.Table]:
    """Check that feed tasks and Spark read the same rows and types in the same places; return the rows."""
    ours, sparks = by_feed_tasks(df), by_spark(df)
    assert [part.num_rows for part in ours] == [part.num_rows for part in sparks]
    for mine, theirs in zip(ours, sparks, strict=True):
        if theirs.num_rows:
            assert mine.schema.names == theirs.schema.names
            assert mine.schema.types == theirs.schema.types
            # Compare texts, because NaN does not equal NaN.
            assert [str(row) for row in mine.to_pylist()] == [str(row) for row in theirs.to_pylist()]
    return ours


TYPES: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
    "bool": st.booleans,
    "int8": lambda: st.integers(-128, 127),
    "int16": lambda: st.integers(-(2**15), 2**15 - 1),
    "int32": lambda: st.integers(-(2**31), 2**31 - 1),
    "int64": lambda: st.integers(-(2**63), 2**63 - 1),
    "uint8": lambda: st.integers(0, 255),
    "uint32": lambda: st.integers(0, 2**32 - 1),
    "float": lambda: st.floats(width=32),
    "double": st.floats,
    "string": lambda: st.text(max_size=5),
    "binary": lambda: st.binary(max_size=5),
}
ARROW_NAMES = {"bool": "bool_", "float": "float32", "double": "float64"}
PRIMITIVE = {name: getattr(pa, ARROW_NAMES.get(name, name))() for name in TYPES}


@st.composite
def columns(draw: st.DrawFn, rows: int) -> pa.Array:
    name = draw(st.sampled_from(sorted(TYPES)))
    depth = draw(st.sampled_from([0, 0, 1, 2]))
    dtype, values = PRIMITIVE[name], TYPES[name]()
    for _ in range(depth):
        dtype, values = pa.list_(dtype), st.lists(st.none() | values, max_size=3)
    some = draw(st.lists(st.none() | values, min_size=1, max_size=6))
    array = pa.array([some[i % len(some)] for i in range(rows)], dtype)
    is_large = draw(st.booleans())
    if name == "string" and depth == 0:
        return array.cast(pa.large_string()) if is_large else array.dictionary_encode()
    return array


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[pa.Table], list[int], str]:
    """Draw files of one schema, the sizes of their row groups, and a compression."""
    sizes = draw(st.lists(st.integers(0, 400), min_size=1, max_size=3))
    width = draw(st.integers(1, 4))
    first = [draw(columns(rows=max(1, sizes[0]))) for _ in range(width)]
    files = []
    for size in sizes:
        ids = pa.array(np.arange(size))
        like = [
            pa.array([value.as_py() for value in (column[i % len(column)] for i in range(size))], column.type)
            for column in first
        ]
        files.append(pa.table({"id": ids, **{f"c{i}": column for i, column in enumerate(like)}}))
    groups = draw(st.lists(st.integers(1, 150), min_size=len(sizes), max_size=len(sizes)))
    return files, groups, draw(st.sampled_from(["snappy", "none", "gzip", "zstd"]))


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(made=tables(), partitioned=st.booleans(), data=st.data())
def test_feed_tasks_read_the_same_rows_of_parquet_files_as_spark_in_the_same_places(
    spark: SparkSession,
    tmp_path_factory: pytest.TempPathFactory,
    made: tuple[list[pa.Table], list[int], str],
    partitioned: bool,
    data: st.DataObject,
) -> None:
    files, groups, compression = made
    place = tmp_path_factory.mktemp("files")
    for number, (table, rows) in enumerate(zip(files, groups, strict=True)):
        below = place / (f"day={number}/kind=a b%" if partitioned else "")
        below.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table, below / f"part {number}%25.parquet", row_group_size=rows, compression=compression
        )
    df = spark.read.parquet(str(place))
    chosen = data.draw(st.lists(st.sampled_from(df.columns), min_size=1, unique=True))
    bound = data.draw(st.none() | st.integers(0, 400))
    if bound is not None:
        df = df.where((sf.col("id") < bound) & ((sf.col("id") > 3) | sf.col("c0").isNull()))
    check_alike(df.select(*[sf.col(name).alias(f"new {name}") for name in chosen]))
    shutil.rmtree(place)


@pytest.mark.parametrize(
    "condition",
    [
        "id = 3 or text = 'b'", "not (id >= 3)", "flag", "not flag", "text > 'a'", "x is null", "x is not null",
        "part = 1", "id < 100 and text is not null and not (text = 'a')",
    ],
)  # fmt: skip
def test_feed_tasks_keep_the_same_rows_of_a_filter_as_spark(
    spark: SparkSession, mixed: Path, condition: str
) -> None:
    rows = check_alike(spark.read.parquet(str(mixed)).where(condition).select("id", "x"))
    assert sum(part.num_rows for part in rows) > 0


@pytest.fixture(scope="module")
def mixed(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let Spark write rows with nulls, in directories of a partition column."""
    place = tmp_path_factory.mktemp("mixed") / "rows"
    rows = spark.range(0, 600, 1, 2).selectExpr(
        "id", "id % 3 = 0 as flag", "if(id % 7 = 0, null, substr('abc', 1 + id % 3, 1)) as text",
        "if(id % 5 = 0, null, array(float(id), 0.5F, 1.0F, 2.0F)) as x", "id % 2 as part", "double(id) as d",
        "timestamp_seconds(id) as at", "struct(id as a) as inner",
    )  # fmt: skip
    rows.write.partitionBy("part").parquet(str(place))
    return place


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda df: df.selectExpr("id + 1 as id"), "a column is computed: (id + 1", id="an expression"),
        pytest.param(lambda df: df.select("inner.a"), "a column is computed: inner.`a`", id="a field of a struct"),
        pytest.param(lambda df: df.select("at"), "column 'at' is of type timestamp", id="a timestamp"),
        pytest.param(lambda df: df.select("inner"), "column 'inner' is of type struct<a", id="a struct"),
        pytest.param(lambda df: df.where("d > 3").select("id"), "may not evaluate this filter alike: (d > 3", id="NaN"),
        pytest.param(lambda df: df.where("text like 'a%'").select("id"), "filter alike: startswith(text", id="LIKE"),
        pytest.param(lambda df: df.orderBy("id"), "Spark shuffles or joins the rows", id="a sort"),
        pytest.param(lambda df: df.limit(3), "Spark computes the rows", id="a limit"),
        pytest.param(lambda df: df.join(df.select("id"), "id"), "Spark shuffles or joins the rows", id="a join"),
        pytest.param(lambda df: df.union(df), "several sources (Union)", id="a union"),
        pytest.param(lambda df: df.select("id", "_metadata.file_name"), "is computed", id="metadata of files"),
        pytest.param(lambda df: df.sparkSession.range(3), "the rows come from Range", id="no files"),
        pytest.param(
            lambda df: df.sparkSession.read.option("ignoreCorruptFiles", "true").parquet(*df.inputFiles()),
            "ignoreCorruptFiles is set", id="corrupt files ignored",
        ),
        pytest.param(
            lambda df: df.sparkSession.read.schema("ID bigint").parquet(*df.inputFiles()),
            "has no column 'ID' by just this name", id="a name in capitals",
        ),
        pytest.param(
            lambda df: df.sparkSession.read.schema("id double").parquet(*df.inputFiles()),
            "column 'id' of", id="a different type declared",
        ),
        pytest.param(
            lambda df: df.sparkSession.read.schema("id bigint, new int").parquet(*df.inputFiles()),
            "has no column 'new' by just this name", id="a column that files lack",
        ),
    ],
)  # fmt: skip
def test_direct_when_spark_must_read_says_why(
    spark: SparkSession, mixed: Path, change: Callable[[DataFrame], DataFrame], reason: str
) -> None:
    df = change(spark.read.parquet(str(mixed)))
    assert direct(df, "auto") is None
    with raises(ConfigError, "expected rows that feed tasks can read", reason, "say scan='auto'"):
        direct(df)


def test_feed_tasks_read_the_same_rows_of_tfrecords_as_spark_in_the_same_places(
    spark: SparkSession, tmp_path: Path
) -> None:
    register(spark)
    rows = spark.range(0, 500, 1, 3).selectExpr(
        "id", "if(id % 5 = 0, null, array(float(id), 0.5F)) as x", "cast(id as string) text",
        "cast(cast(id as string) as binary) bytes", "float(id) f", "id % 2 as part",
    )  # fmt: skip
    for compression in ("gzip", "none"):
        rows.write.format("tfrecord").mode("append").option("compression", compression).save(
            str(tmp_path / f"made=in {compression}")
        )
    read = lambda: spark.read.format("tfrecord").option("splitBytes", "5000")  # noqa: E731
    everything = read().load(str(tmp_path))
    assert sum(part.num_rows for part in check_alike(everything)) == 1000
    declared = read().schema("x array<float>, text string, made string, nothing bigint").load(str(tmp_path))
    check_alike(declared.select("made", sf.col("x").alias("y"), "nothing").where("text is not null"))
    check_alike(read().option("recordType", "ByteArray").load(str(tmp_path)))
    with raises(ConfigError, "records that do not fit are dropped"):
        direct(read().option("mode", "DROPMALFORMED").load(str(tmp_path)))


def test_file_that_is_changed_after_spark_listed_it_is_named(spark: SparkSession, tmp_path: Path) -> None:
    register(spark)
    spark.range(0, 100, 1, 1).write.format("tfrecord").mode("append").save(str(tmp_path / "records"))
    table = pa.table({"id": np.arange(100)})
    pq.write_table(table, tmp_path / "rows.parquet")
    parquet = direct(spark.read.parquet(str(tmp_path / "rows.parquet")))
    records = direct(spark.read.format("tfrecord").load(str(tmp_path / "records")))
    assert parquet is not None
    assert records is not None
    (file,) = (tmp_path / "records").glob("*.tfrecord")
    os.utime(file, (1, 1))
    pq.write_table(table.slice(1), tmp_path / "rows.parquet")
    for rows, name in ((parquet, "rows.parquet"), (records, file.name)):
        with raises(DataError, f"{name} as Spark listed it", "do not change files that are trained on"):
            list(rows.scan.read(rows.splits[0]))
    (tmp_path / "rows.parquet").unlink()
    with raises(DataError, "rows.parquet, which Spark listed", "it is gone; make the DataFrame anew"):
        list(parquet.scan.read(parquet.splits[0]))


def test_damaged_page_is_named(spark: SparkSession, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.random.default_rng(0).random(5000)}), path, write_page_checksum=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:20_000] + b"\xff" * 2000 + whole[22_000:])
    rows = direct(spark.read.parquet(str(path)))
    assert rows is not None
    with raises(DataError, "rows.parquet to be readable Parquet", "write the file anew"):
        for split in rows.splits:
            list(rows.scan.read(split))


@pytest.mark.parametrize("ordered", [False, True])
def test_training_on_files_is_the_same_whether_spark_or_feed_tasks_read_them(
    spark: SparkSession, mixed: Path, ordered: bool
) -> None:
    rows = spark.read.parquet(str(mixed)).where("x is not null").select("x", "part")
    histories = []
    for scan in ("spark", "direct"):
        events = Events()
        with TFCluster.run(spark, dense, {}, 2, observer=events) as cluster:
            feeding = Feeding(ordered=ordered, shuffle_rows=64, scan=scan)
            history = cluster.train(rows, 2, features=["x"], label="part", batch_size=32, feeding=feeding)
            nodes = cluster.shutdown()
        assert sum(sum(node["rows"]) for node in nodes.values()) == 2 * 480
        histories.append(history["loss"])
    if ordered:
        assert histories[0] == histories[1]
