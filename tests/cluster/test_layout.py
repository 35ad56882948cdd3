"""The layout: how Spark cuts rows into partitions. It is planned for each pass, and compared when planned again."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from cluster.file_rows import FORMATS, NUM_ROWS, files
from cluster.programs import counting
from cluster.strikes import Strike, kill
from py4j.protocol import Py4JError
from pyspark import cloudpickle
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition

from tfspark import Feeding, TFCluster
from tfspark.cluster.layout import PARALLELISM, Parallelism, PlannedRows
from tfspark.errors import NodeFailedError

__all__ = ["files"]

BATCH = 32
DERBY = "org.apache.derby.iapi.jdbc.AutoloadedDriver"


@pytest.fixture
def small_cuts(spark: SparkSession) -> Iterator[None]:
    """Let Spark cut small files by the number of cores, as it cuts files of many MB."""
    name = "spark.sql.files.openCostInBytes"
    before = spark.conf.get(name)
    spark.conf.set(name, "1000")
    yield
    spark.conf.set(name, str(before))
    spark.conf.unset(PARALLELISM)


def read(spark: SparkSession, files: Path, kind: str) -> DataFrame:
    return spark.read.format(kind).schema("id bigint, pad string").load(str(files / kind))


def by_range(rows: DataFrame) -> DataFrame:
    return rows.repartitionByRange(4, "id").sortWithinPartitions("id")


def by_hash(rows: DataFrame) -> DataFrame:
    return rows.repartition(5, "id").sortWithinPartitions("id")


AS_IT_IS: Callable[[DataFrame], DataFrame] = lambda rows: rows.where("id >= 0").select("id")  # noqa: E731
KINDS = [
    *[pytest.param(kind, AS_IT_IS, (True, True), id=kind) for kind in FORMATS],
    pytest.param("parquet", by_hash, (True, True), id="sorted after a shuffle by a hash"),
    pytest.param("parquet", by_range, (True, False), id="by ranges, whose bounds Spark samples again"),
    pytest.param("parquet", lambda rows: by_hash(rows).persist(), (True, True), id="persisted"),
    pytest.param("parquet", lambda rows: rows.orderBy("id"), (True, False), id="ordered"),
    pytest.param("parquet", lambda rows: rows.repartition(4), (False, False), id="in order of arrival"),
    pytest.param("parquet", lambda rows: rows.groupBy("id").count(), (False, False), id="a group by"),
    pytest.param(
        "parquet",
        lambda rows: rows.hint("merge").join(rows.select("id"), "id"),
        (False, False),
        id="a sort-merge join, which leaves rows of the same key in order of arrival",
    ),
    pytest.param("parquet", lambda rows: rows.limit(9).select("id"), (False, False), id="a limit"),
    pytest.param("orc", lambda rows: rows.sample(False, 0.5, 3), (True, True), id="a sample with a seed"),
    pytest.param("parquet", lambda rows: rows.sample(0.5), (True, False), id="a sample without a seed"),
    pytest.param(
        "parquet", lambda rows: rows.where("rand(5) < 0.5"), (True, True), id="a random filter with a seed"
    ),
    pytest.param(
        "parquet", lambda rows: rows.where("rand() < 0.5"), (True, False), id="a random filter without a seed"
    ),
    pytest.param(
        "parquet",
        lambda rows: rows.repartition(4).checkpoint(),
        (True, False),
        id="checkpointed by Spark, again in each program",
    ),
]


@pytest.mark.usefixtures("small_cuts")
@pytest.mark.parametrize(("kind", "change", "expected"), KINDS)
def test_plan_of_a_pass_is_kept_and_a_new_plan_has_the_same_layout_if_spark_can_repeat_it(
    spark: SparkSession,
    files: Path,
    kind: str,
    change: Callable[[DataFrame], DataFrame],
    expected: tuple[bool, bool],
) -> None:
    """`expected`: whether a later incarnation, and whether another program, can continue in the middle of a pass."""
    rows = change(read(spark, files, kind))
    before = PlannedRows(rows, Parallelism({PARALLELISM: "3"}))
    planned, layout = before.of_pass(0)
    kept = layout.to_json()
    assert planned.rdd.getNumPartitions() == layout.partitions
    assert before.of_pass(0)[0] is planned
    spark.range(3).repartition(2).count()  # More RDDs, so that the next plan has different ids.
    later = PlannedRows(change(read(spark, files, kind)), Parallelism(kept["parallelism"]))
    assert (not before.differ_from(0, kept), not later.differ_from(0, kept)) == expected
    assert spark.conf.get(PARALLELISM, None) is None
    rows.unpersist()


@pytest.mark.parametrize(
    ("change", "is_one_plan"),
    [
        pytest.param(lambda df: df.where("id > 5"), True, id="read"),
        pytest.param(lambda df: df.repartition(3, "id").persist(), True, id="persisted after a shuffle"),
        pytest.param(lambda df: df.persist().repartition(3, "id"), False, id="shuffled after persisting"),
        pytest.param(lambda df: df.repartition(3, "id").sortWithinPartitions("id"), False, id="sorted"),
        pytest.param(lambda df: df.limit(7), False, id="limited"),
    ],
)
def test_plan_serves_all_passes_unless_a_shuffle_must_be_computed_again(
    spark: SparkSession, files: Path, change: Callable[[DataFrame], DataFrame], is_one_plan: bool
) -> None:
    rows = change(read(spark, files, "csv"))
    planned = PlannedRows(rows, Parallelism(), scan="spark")
    first, second, again = (planned.of_pass(index) for index in (0, 1, 1))
    assert (first[0] is second[0]) == is_one_plan
    assert second[0] is again[0]
    assert first[0].collect() == second[0].collect() == rows.collect()
    spark.catalog.clearCache()


@pytest.mark.usefixtures("small_cuts")
@pytest.mark.parametrize("kind", FORMATS)
def test_layout_differs_when_a_file_was_written_again_or_is_cut_by_a_different_number_of_cores(
    spark: SparkSession, files: Path, kind: str
) -> None:
    def layout(cores: int) -> Any:
        return PlannedRows(read(spark, files, kind), Parallelism({PARALLELISM: str(cores)})).of_pass(0)[1]

    kept = layout(3).to_json()
    assert not layout(3).differs_from(kept)
    if kind != "tfrecord":  # Its files are cut by their sizes alone.
        assert "partitions, it were" in layout(7).differs_from(kept)
    file = next(path for path in sorted((files / kind).iterdir()) if path.name.startswith("part-"))
    os.utime(file, (1e9, 1e9))
    assert "the files, their sizes, times" in layout(3).differs_from(kept)


@pytest.fixture(scope="module")
def table(spark: SparkSession) -> Iterator[Callable[[], DataFrame]]:
    """Create a table of Derby, a database that comes with Spark. Spark reads it in three partitions."""
    system: Any = spark.sparkContext._jvm
    system.java.lang.System.setProperty("derby.stream.error.file", os.devnull)
    url = f"jdbc:derby:memory:{uuid.uuid4().hex}"
    rows = spark.range(0, 300, 1, 1)
    rows.write.option("driver", DERBY).jdbc(f"{url};create=true", "numbers")

    def read_table() -> DataFrame:
        return spark.read.option("driver", DERBY).jdbc(url, "numbers", "id", 0, 300, 3)

    yield read_table
    with contextlib.suppress(Py4JError):  # Derby confirms the drop with an error.
        system.java.sql.DriverManager.getConnection(f"{url};drop=true")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda rows: rows, (False, False), id="unchanged"),
        pytest.param(lambda rows: rows.where("id % 2 = 0").select("id"), (False, False), id="filtered"),
        pytest.param(lambda rows: rows.persist(), (False, False), id="persisted"),
        pytest.param(lambda rows: rows.union(rows), (False, False), id="a union"),
        pytest.param(by_hash, (True, False), id="sorted after a shuffle by a hash"),
    ],
)
def test_layout_of_a_table_of_a_database_cannot_be_repeated_unless_its_rows_are_sorted(
    spark: SparkSession,
    table: Callable[[], DataFrame],
    change: Callable[[DataFrame], DataFrame],
    expected: tuple[bool, bool],
) -> None:
    rows = change(table())
    before = PlannedRows(rows, Parallelism({PARALLELISM: "3"}))
    planned, layout = before.of_pass(0)
    assert {row.id for row in planned.collect()} == {row.id for row in rows.collect()} > {0, 2}
    later = PlannedRows(change(table()), Parallelism(layout.parallelism))
    found = (not before.differ_from(0, layout.to_json()), not later.differ_from(0, layout.to_json()))
    assert found == expected
    rows.unpersist()


class Dice(DataSource):  # type: ignore[misc]
    """A data source of Spark in Python. Its rows differ each time."""

    @classmethod
    def name(cls) -> str:
        """Return the name of the format."""
        return "dice"

    def schema(self) -> str:
        """Return the only column."""
        return "id bigint"

    def reader(self, schema: Any) -> DataSourceReader:
        """Return the reader."""
        del schema
        return Throw()


class Throw(DataSourceReader):  # type: ignore[misc]
    """Read three partitions."""

    def partitions(self) -> list[InputPartition]:
        """Return one partition for each die."""
        return [InputPartition(number) for number in range(3)]

    def read(self, partition: InputPartition) -> Iterator[tuple[int]]:
        """Throw the die."""
        del partition
        yield (random.randrange(6),)


def test_layout_of_a_data_source_in_python_cannot_be_repeated(spark: SparkSession) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    spark.dataSource.register(Dice)
    planned = PlannedRows(spark.read.format("dice").load(), Parallelism())
    layout = planned.of_pass(0)[1]
    assert layout.partitions == 3
    assert "after a shuffle" in planned.differ_from(0, layout.to_json())
    assert planned.of_pass(1)[1].differs_from(layout.to_json())


def test_layout_of_a_text_file_that_an_rdd_reads_differs_when_the_file_was_written_again(
    spark: SparkSession, tmp_path: Path
) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("".join(f"{number}\n" for number in range(100, 400)))

    def layout() -> Any:
        numbers = spark.sparkContext.textFile(str(file), 3).map(lambda line: (int(line),))
        return PlannedRows(numbers.toDF("id bigint"), Parallelism({PARALLELISM: "3"})).of_pass(0)[1]

    kept = layout().to_json()
    assert not layout().differs_from(kept)
    os.utime(file, (1e9, 1e9))  # Its size stays the same.
    assert "the files, their sizes, times" in layout().differs_from(kept)


def train_and_count(spark: SparkSession, rows: DataFrame, log_dir: Path, **options: Any) -> list[float]:
    """Train two epochs; return how often each row was trained on."""
    feeding = options.pop("feeding", Feeding())
    options = {"log_dir": str(log_dir), "checkpoint_every_steps": 3, **options}
    with TFCluster.run(spark, counting, {"rows": NUM_ROWS}, 2, **options) as cluster:
        cluster.train(rows, 2, features=["id"], label=None, batch_size=BATCH, feeding=feeding)
        cluster.shutdown(export=["keras"])
    (counts,) = keras.models.load_model(log_dir / "export/model.keras", compile=False).get_weights()
    return [round(float(count), 2) for count in np.asarray(counts)[:, 0]]


def change_cores_and(spark: SparkSession, strike: Callable[[], None]) -> Callable[[], None]:
    """Let Spark cut files by a different number of cores, as after the loss of an executor, then strike."""

    def both() -> None:
        spark.conf.set(PARALLELISM, "7")
        strike()

    return both


@pytest.mark.usefixtures("small_cuts")
@pytest.mark.parametrize(
    ("kind", "change", "feeding", "goes_on"),
    [
        pytest.param("parquet", AS_IT_IS, Feeding(), True, id="files"),
        pytest.param("csv", AS_IT_IS, Feeding(ordered=True), True, marks=pytest.mark.slow, id="in order"),
        pytest.param(
            "parquet", lambda rows: rows.repartition(4), Feeding(), False, id="rows in order of arrival"
        ),
    ],
)
def test_each_row_is_trained_on_once_per_epoch_when_the_number_of_cores_differs_after_a_loss(
    spark: SparkSession,
    files: Path,
    tmp_path: Path,
    kind: str,
    change: Callable[[DataFrame], DataFrame],
    feeding: Feeding,
    goes_on: bool,
) -> None:
    observer = Strike(change_cores_and(spark, kill()), "state", epoch=2, step=9)
    counts = train_and_count(
        spark, change(read(spark, files, kind)), tmp_path, observer=observer, feeding=feeding
    )
    assert counts == [2.0] * NUM_ROWS
    (resumed,) = observer.of("resumed")
    assert resumed["epoch"] == 2
    assert (resumed["step"] > 0) == goes_on
    assert [event["epoch"] for event in observer.of("rows_differ")] == ([] if goes_on else [2])


@pytest.mark.usefixtures("small_cuts")
@pytest.mark.parametrize(
    "changed", [False, True], ids=["with a different number of cores", "after a file was written again"]
)
def test_each_row_is_trained_on_once_per_epoch_by_a_resumed_run(
    spark: SparkSession, files: Path, tmp_path: Path, changed: bool
) -> None:
    rows, log_dir = AS_IT_IS(read(spark, files, "parquet")), tmp_path / "run"
    strike = Strike(change_cores_and(spark, kill()), "state", epoch=2, step=9)
    with contextlib.suppress(NodeFailedError):
        train_and_count(spark, rows, log_dir, observer=strike, max_restarts=0)
    if changed:
        (files / "parquet" / "part-zzz.parquet").write_bytes(b"")
        file = next(path for path in (files / "parquet").iterdir() if path.name.startswith("part-0"))
        os.utime(file, (2e9, 2e9))
        (files / "parquet" / "part-zzz.parquet").unlink()
    later = Strike(lambda: None, uuid.uuid4().hex)
    again = AS_IT_IS(read(spark, files, "parquet"))
    counts = train_and_count(spark, again, log_dir, observer=later, resume=str(log_dir))
    assert counts == [2.0] * NUM_ROWS
    (resumed,) = later.of("resumed")
    assert resumed["epoch"] == 2
    assert (resumed["step"] == 0) == changed
    assert len(later.of("rows_differ")) == changed
