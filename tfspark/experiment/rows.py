"""Read the rows of an experiment by Spark, convert labels to classes, divide into train, validation and test."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from tfspark.cluster.inputs import check_text
from tfspark.cluster.layout import PARALLELISM, parallelism_of
from tfspark.errors import ConfigError, DataError
from tfspark.experiment.config import Data, Experiment, Source
from tfspark.experiment.datasets import DATASETS
from tfspark.experiment.series import windows
from tfspark.experiment.spark_errors import spark_words
from tfspark.feed.columns import Column, Columns, check_columns
from tfspark.feed.spark_names import quoted

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame, SparkSession

MAX_CLASSES = 10_000
_POSITION = "__position"
_UNTIL = "__until"
_COPY = "__copy"


@dataclass(frozen=True)
class Rows:
    """The rows of an experiment.

    Attributes:
        train: training rows.
        validation: rows evaluated after each epoch; None: there are none.
        test: rows evaluated at the end; None: there are none.
        columns: the columns to feed.
        classes: values of the label in the order of the classes; empty if the label is not a class.
    """

    train: DataFrame
    validation: DataFrame | None
    test: DataFrame | None
    columns: Columns
    classes: tuple[Any, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in order."""
        return tuple(str(value) for value in self.classes)


def load_rows(spark: SparkSession, experiment: Experiment) -> Rows:
    """Read, classify and divide the rows of an experiment.

    Raises:
        ConfigError: a path, a table or a column does not exist.
        DataError: no rows, or too many classes.
    """
    data = experiment.data
    whole = cut_series(read_source(spark, data.source), data)
    columns = columns_of(data)
    check_columns(columns, whole.columns)
    classes = _classes(whole, data)
    columns = _with_class_count(columns, classes)
    parts: tuple[DataFrame, DataFrame | None, DataFrame | None]
    if data.windows is not None:
        parts = _divide_by_time(whole, data, columns, experiment.seed)
    else:
        prepared = select_rows(whole, columns, classes)
        reads_itself = experiment.cluster.input_mode == "tensorflow"
        parts = (prepared, None, None) if reads_itself else _divide(prepared, data, experiment.seed)
    validation = _own_rows(spark, data.validation_source, data, columns, classes) or parts[1]
    test = _own_rows(spark, data.test_source, data, columns, classes) or parts[2]
    train = _resampled(parts[0], data, experiment.seed)
    columns = replace(columns, class_weights=_class_weights(train, experiment, classes))
    return Rows(train, validation, test, columns, classes)


def read_source(spark: SparkSession, source: Source) -> DataFrame:
    """Read the rows of a source.

    Raises:
        ConfigError: it does not exist or Spark cannot read it; the message includes Spark's own.
    """
    if source.path is not None and not path_exists(source.path):
        raise ConfigError(
            f"expected files at data path {source.path!r}, there are none (working directory {os.getcwd()}); "
            f"correct data.path; `tfspark prepare-data` can fetch {', '.join(DATASETS)}"
        )
    try:
        return _read(spark, source)
    except (ConfigError, DataError):
        raise
    except Exception as error:
        wanted = source.path or source.table or source.sql
        raise ConfigError(f"expected Spark to read {wanted!r}, it said: {spark_words(error)}") from None


def path_exists(path: str) -> bool:
    """Return whether a local path or glob exists; True for other file systems, which only Spark can check."""
    if "://" in path or path.startswith(("hdfs:", "s3:", "s3a:", "gs:")):
        return True
    here = path.removeprefix("file:")
    # Spark's globs have alternatives, {a,b}; Python's do not, so any text is accepted in their place.
    return os.path.exists(here) or bool(glob.glob(re.sub(r"\{[^{}]*\}", "*", here)))


def _read(spark: SparkSession, source: Source) -> DataFrame:
    from tfspark.tfrecord import register

    if source.sql is not None:
        return spark.sql(source.sql)
    if source.table is not None:
        return spark.table(source.table)
    register(spark)
    reader = spark.read.format(source.format or "tfrecord").options(**source.options)
    if source.schema_ddl is not None:
        reader = reader.schema(source.schema_ddl)
    return reader.load(source.path)


def cut_series(df: DataFrame, data: Data) -> DataFrame:
    """Cut series into windows if the experiment has `data.windows`.

    Raises:
        ConfigError: a column does not exist.
        DataError: a value is missing.
    """
    if data.windows is None:
        return df
    cut = data.windows
    names = dict.fromkeys([cut.order, *cut.groups, *cut.columns, *(cut.targets or ())])
    check_columns(Columns(tuple(map(Column, names))), df.columns)
    return windows(
        df, cut.order, cut.columns, cut.steps, cut.horizon, cut.targets, by=cut.groups, until=_UNTIL
    )


def columns_of(data: Data) -> Columns:
    """Return the columns that an experiment feeds."""
    features = tuple(Column(name, **dict(feature)) for name, feature in data.features.items())
    label = data.label
    labels = () if label is None else tuple(Column(name, label.shape, label.dtype) for name in label.columns)
    weight = None if data.weight is None else Column(data.weight)
    of_model = labels[0] if len(labels) == 1 else labels or None
    return Columns(features, of_model, examples=data.examples, weight=weight)


def _with_class_count(columns: Columns, classes: tuple[Any, ...]) -> Columns:
    return replace(columns, num_classes=len(classes)) if classes else columns


def _classes(df: DataFrame, data: Data) -> tuple[Any, ...]:
    """Return the label's values in the order of the classes; empty if the label is not a class."""
    if data.label is None or data.label.classes is None:
        return ()
    declared = data.label.classes
    if isinstance(declared, int):
        return tuple(range(declared))
    if declared != "infer":
        return tuple(declared)
    (label,) = data.label.columns
    found = df.select(df[quoted(label)]).distinct().limit(MAX_CLASSES + 1).collect()
    values = sorted(row[0] for row in found if row[0] is not None)
    if not 2 <= len(values) <= MAX_CLASSES:
        raise DataError(
            f"expected 2 to {MAX_CLASSES} different labels in column {label!r}, found "
            f"{'more' if len(values) > MAX_CLASSES else len(values)}; name the classes in data.label.classes, or "
            "leave classes out for a regression"
        )
    return tuple(values)


def select_rows(df: DataFrame, columns: Columns, classes: tuple[Any, ...]) -> DataFrame:
    """Return the columns to feed, with the label as the number of its class.

    Raises:
        ConfigError: a column does not exist.
        DataError: a column is text, but declared as numbers.
    """
    check_columns(columns, df.columns)
    chosen = {column.name: df[quoted(column.name)] for column in columns.sent}
    label = columns.class_label
    if label is not None and columns.examples is None:
        chosen[label.name] = _class_index(chosen[label.name], label.name, classes)
    selected = df.select(*chosen.values())
    check_text(selected, columns)
    return selected


def _class_index(label: SparkColumn, name: str, classes: tuple[Any, ...]) -> SparkColumn:
    """Return a label's class number; integers from 0 on are already class numbers."""
    from pyspark.sql import functions as sf

    if not classes or classes == tuple(range(len(classes))):
        return label.alias(name)
    known = ", ".join(str(value) for value in classes[:20])
    text = sf.concat(
        sf.lit(f"label {name!r} is "),
        sf.coalesce(sf.concat(sf.lit("'"), label.cast("string"), sf.lit("'")), sf.lit("null")),
        sf.lit(
            f", expected one of the {len(classes)} classes {known}; correct the data or data.label.classes"
        ),
    )
    number = sf.array_position(sf.array(*[sf.lit(value) for value in classes]), label) - 1
    return sf.when(number >= 0, number).otherwise(sf.raise_error(text)).cast("long").alias(name)


def _own_rows(
    spark: SparkSession, source: Source | None, data: Data, columns: Columns, classes: tuple[Any, ...]
) -> DataFrame | None:
    if source is None:
        return None
    return select_rows(cut_series(read_source(spark, source), data), columns, classes)


def _divide_by_time(
    df: DataFrame, data: Data, columns: Columns, seed: int
) -> tuple[DataFrame, DataFrame | None, DataFrame | None]:
    """Divide the windows of all series exactly: the newest rows are for the test, the rows before for validation.

    All values that a row is to forecast lie in the row's own part of the time.
    """
    from pyspark.storagelevel import StorageLevel

    assert data.windows is not None
    time, until = df[quoted(data.windows.order)], df[_UNTIL]
    cut = df.persist(StorageLevel.MEMORY_AND_DISK)
    shares = [data.test_fraction, data.validation_fraction and data.validation_fraction + data.test_fraction]
    wanted = [round(cut.count() * share) for share in shares] if any(shares) else [0, 0]
    begins = _newest(cut, data.windows.order, wanted)
    parts: list[DataFrame | None] = []
    rows = cut
    for begin in begins:
        parts.append(None if begin is None else select_rows(rows.where(time >= begin), columns, ()))
        rows = rows if begin is None else rows.where(until < begin)
    if any(shares) and rows.isEmpty():
        raise DataError(
            f"expected rows to train on, but all windows of data.windows go to validation and test ({max(shares):g}); "
            "use smaller fractions, or shorter windows"
        )
    train = select_rows(rows, columns, ())
    return _placed(train, seed).drop(_POSITION) if data.shuffle else train, parts[1], parts[0]


def _newest(df: DataFrame, order: str, wanted: list[int]) -> list[Any]:
    """Return for each wanted number of rows the time of the first one, counted from the end; None for 0 rows.

    There may be a few more rows from that time on, because several rows have the same time.
    """
    counts = df.groupBy(df[quoted(order)].alias("time")).count().sort("time", ascending=False)
    found: list[Any] = [None] * len(wanted)
    num_rows = 0
    for row in counts.toLocalIterator():
        if num_rows >= max(wanted):
            break
        for place, number in enumerate(wanted):
            if num_rows < number:
                found[place] = row["time"]
        num_rows += row["count"]
    return found


def _divide(df: DataFrame, data: Data, seed: int) -> tuple[DataFrame, DataFrame | None, DataFrame | None]:
    """Divide the rows exactly: the last fractions, after a shuffle, are for validation and test."""
    if not (data.shuffle or data.validation_fraction or data.test_fraction):
        return df, None, None
    placed = _placed(df, seed if data.shuffle else None)
    sizes = _partition_sizes(placed)
    total = sum(sizes.values())
    num_test = round(total * data.test_fraction)
    num_validation = round(total * data.validation_fraction)
    num_train = total - num_validation - num_test
    if total and not num_train:
        raise DataError(
            f"expected rows to train on, but all {total} rows go to validation and test; use smaller fractions in "
            "data.validation and data.test"
        )
    first, second = _position_after(sizes, num_train), _position_after(sizes, num_train + num_validation)
    position = placed[_POSITION]
    train = placed.where(position < first).drop(_POSITION)
    validation = placed.where((position >= first) & (position < second)).drop(_POSITION)
    test = placed.where(position >= second).drop(_POSITION)
    return train, validation if num_validation else None, test if num_test else None


def _placed(df: DataFrame, seed: int | None) -> DataFrame:
    """Give every row a position that grows in the order of the rows, and persist the result.

    It is persisted (in memory, on disk if memory runs out) because every epoch reads it, and because each row must
    be in the same part whenever it is computed.
    """
    from pyspark.sql import functions as sf
    from pyspark.storagelevel import StorageLevel

    if seed is not None:
        # As many partitions as the input has, so that their size still suits Spark, but enough for all slots.
        # (Adaptive execution does not merge the small partitions of a persisted result.) A hash chooses the partition:
        # the bounds of ranges depend on a sample, which differs if the program has created other RDDs before.
        count = max(df.rdd.getNumPartitions(), int(parallelism_of(df.sparkSession)[PARALLELISM]))
        mixed = df.withColumn(_POSITION, sf.rand(seed))
        df = mixed.repartition(count, _POSITION).sortWithinPartitions(_POSITION)
    return df.withColumn(_POSITION, sf.monotonically_increasing_id()).persist(StorageLevel.MEMORY_AND_DISK)


def _partition_sizes(placed: DataFrame) -> dict[int, int]:
    """Return partition -> number of its rows; Spark numbers the rows of partition p from ``p << 33``."""
    from pyspark.sql import functions as sf

    partition = sf.shiftright(placed[_POSITION], 33).alias("partition")
    return {row[0]: row[1] for row in placed.groupBy(partition).count().collect()}


def _position_after(sizes: dict[int, int], count: int) -> int:
    """Return the position after the first `count` rows, computed from the sizes of the partitions."""
    for partition, size in sorted(sizes.items()):
        if count <= size:
            return (int(partition) << 33) + count
        count -= size
    return 1 << 62


def _resampled(train: DataFrame, data: Data, seed: int) -> DataFrame:
    """Repeat rows of small classes, or drop rows of large ones, at random; the result is the same in every epoch."""
    from pyspark.sql import functions as sf

    if data.resample == "none" or data.label is None:
        return train
    (name,) = data.label.columns
    label = train[quoted(name)]
    counts = _class_counts(train, name, "data.resample")
    wanted = max(counts.values()) if data.resample == "over" else min(counts.values())
    times = sf.coalesce(*[sf.when(label == known, sf.lit(wanted / count)) for known, count in counts.items()])
    # 2.3 times: twice, and a third time in 3 of 10 cases.
    copies = sf.floor(times + sf.rand(seed)).cast("int")
    return train.withColumn(_COPY, sf.explode(sf.array_repeat(sf.lit(0), copies))).drop(_COPY)


def _class_counts(train: DataFrame, label: str, key: str) -> dict[Any, int]:
    """Return class -> number of its rows.

    Raises:
        DataError: some rows have no class.
    """
    counts = {row[0]: row[1] for row in train.groupBy(train[quoted(label)]).count().collect()}
    if None in counts:
        raise DataError(
            f"expected a class in every row for {key}, but label {label!r} is null in {counts[None]} rows; filter "
            f"them, for example by data.sql: SELECT * FROM ... WHERE {quoted(label)} IS NOT NULL"
        )
    return counts


def _class_weights(
    train: DataFrame, experiment: Experiment, classes: tuple[Any, ...]
) -> tuple[tuple[int, float], ...]:
    """Return class -> weight; ``balanced`` is rows / (classes * rows of the class), as scikit-learn defines it."""
    wanted = experiment.train.class_weights
    if wanted is None or experiment.data.label is None:
        return ()
    if wanted != "balanced":
        return tuple((classes.index(known), float(weight)) for known, weight in wanted.items())
    (label,) = experiment.data.label.columns
    counts = {
        int(known): count for known, count in _class_counts(train, label, "train.class_weights").items()
    }
    total = reduce(int.__add__, counts.values(), 0)
    return tuple((known, total / (len(classes) * count)) for known, count in sorted(counts.items()))
