"""Convert what users pass to `TFCluster` to a session, a DataFrame and columns. Runs on the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

import numpy as np
from pyspark.errors import PySparkException

from tfspark.cluster.sparkjob import without_java_stack
from tfspark.driver_python import use_own_python
from tfspark.errors import ConfigError, DataError
from tfspark.feed.columns import Column, Columns, check_columns
from tfspark.feed.numpy_rows import rdd_to_dataframe
from tfspark.feed.spark_names import select_by_name
from tfspark.feed.values import text_problem

if TYPE_CHECKING:
    from pyspark import RDD, SparkContext
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType


class InputMode(IntEnum):
    """Who reads the data."""

    TENSORFLOW = 0
    """Each worker reads its share of TFRecord files through tf.data."""
    SPARK = 1
    """Spark reads; rows of a DataFrame are streamed to the workers."""


@dataclass(frozen=True)
class FeedOptions:
    """How rows are sent to the workers; the defaults suit most cases.

    Attributes:
        ordered: give rows to workers by their position in the DataFrame, so that every run with the same data and seed
            trains on the same global batches, for any number of workers. False: a free worker takes any row that is
            available.
        shuffle_rows: number of rows in each worker's shuffle window, or, if `ordered`, in the windows of all workers
            together; 0: do not shuffle. A window that is no larger than a batch could not mix anything, so it is
            enlarged to two batches.
        chunk_bytes: size of one pull.
        buffer_bytes: maximum size of the rows that wait in a feed task.
        cache: ``none``: Spark computes the DataFrame again for every epoch. ``node``: each worker stores its rows of
            the first epoch on its node's disk, and reads them from there in later epochs, and in later trainings of
            the same rows in the same Spark application.
        cache_bytes: maximum disk space per worker for the cache. Older rows are removed to make room; if the rows of
            one epoch need more, Spark computes them every epoch.
        scan: who reads files. ``auto``: feed tasks read Parquet and TFRecord files themselves, without Spark's JVM, if
            the DataFrame is only a scan of them with plain columns and simple filters; Spark reads everything else.
            ``spark``: Spark reads. ``direct``: as ``auto``, but raise an error if feed tasks cannot read the rows.
    """

    ordered: bool = False
    shuffle_rows: int = 0
    chunk_bytes: int = 4 << 20
    buffer_bytes: int = 32 << 20
    cache: Literal["none", "node"] = "none"
    cache_bytes: int = 16 << 30
    scan: Literal["auto", "spark", "direct"] = "auto"

    def __post_init__(self) -> None:
        """Reject invalid values."""
        if self.cache not in ("none", "node"):
            raise ConfigError(f"expected cache to be 'none' or 'node', got {self.cache!r}")
        if self.scan not in ("auto", "spark", "direct"):
            raise ConfigError(f"expected scan to be 'auto', 'spark' or 'direct', got {self.scan!r}")
        for name in ("chunk_bytes", "buffer_bytes", "cache_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.shuffle_rows < 0:
            raise ConfigError(f"expected shuffle_rows >= 0, got {self.shuffle_rows}")


Feeding = FeedOptions
"""The name of `FeedOptions` in earlier versions."""


def session_of(spark: SparkSession | SparkContext) -> SparkSession:
    """Return the session, or the session of a SparkContext; its Python workers can import tfspark."""
    from pyspark.sql import SparkSession

    session: SparkSession = spark
    if not (hasattr(spark, "range") and hasattr(spark, "createDataFrame")):
        session = SparkSession.builder.config(conf=spark.getConf()).getOrCreate()
    use_own_python(session)
    return session


def as_dataframe(spark: SparkSession, data: object) -> DataFrame:
    """Return the DataFrame, or make one from an RDD of Rows or tuples.

    Raises:
        ConfigError: it is of another type, or Spark cannot infer the columns from the RDD's items.
    """
    if hasattr(data, "mapInArrow"):
        frame: DataFrame = data
        return frame
    if is_rdd(data):
        try:
            return rdd_to_dataframe(spark, data)
        except (PySparkException, TypeError, ValueError) as error:
            raise ConfigError(
                f"expected an RDD of Rows, tuples or dicts of Python or NumPy values, which Spark makes columns of; "
                f"got {without_java_stack(str(error))}; make a DataFrame with spark.createDataFrame(rdd, schema)"
            ) from error
    raise ConfigError(
        f"expected a Spark DataFrame or an RDD of Rows or tuples, got {type(data).__name__}; make one with "
        "spark.createDataFrame(...) or spark.read"
    )


@dataclass(frozen=True)
class TrainingRows:
    """The rows that one `train` call feeds.

    Attributes:
        rows: a DataFrame with the fed columns, or an RDD, for a `main_fun`.
        columns: features, label and weight, as ``ctx.dataset()`` returns them.
        layout: further description for readers of items: ``names``, the columns in the DataFrame's order, and
            ``no_dataset``, the reason why ``ctx.dataset()`` cannot return the rows, if it cannot.
    """

    rows: DataFrame | RDD[object]
    columns: Columns
    layout: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_streaming(self) -> bool:
        """Whether the rows come from a streaming DataFrame."""
        return bool(getattr(self.rows, "isStreaming", False))


def _columns_to_feed(df: DataFrame, columns: Columns) -> TrainingRows:
    """Feed exactly these columns of a DataFrame."""
    sent = [column.name for column in columns.sent]
    names = [name for name in df.columns if name in sent]
    return TrainingRows(select_columns(df, columns), columns, {"names": names})


def _all_columns_to_feed(df: DataFrame) -> TrainingRows:
    """Feed a DataFrame whose label was not named: a `main_fun` may take its rows apart itself."""
    return TrainingRows(
        df,
        Columns(tuple(Column(name) for name in df.columns)),
        {"names": df.columns, "no_dataset": _no_dataset(f"a DataFrame of {df.columns}")},
    )


def elements_to_feed(rdd: RDD[object]) -> TrainingRows:
    """Feed the items of an RDD unchanged."""
    return TrainingRows(rdd, Columns((Column("value"),)), {"no_dataset": _no_dataset("an RDD")})


def _no_dataset(what: str) -> str:
    return (
        f"expected to know the label, got {what} without features= and label=; name them in cluster.train(), or "
        "take the rows apart with ctx.get_data_feed()"
    )


def _has_field(rdd: RDD[object], name: str) -> bool:
    """Return whether the first item of an RDD is a Row or a dict with this field; runs a small Spark job."""
    for first in rdd.take(1):
        return name in (first if isinstance(first, dict) else getattr(first, "__fields__", ()))
    return False


def is_rdd(data: object) -> bool:
    """Return whether this is an RDD, without importing pyspark."""
    return hasattr(data, "mapPartitionsWithIndex") and not hasattr(data, "mapInArrow")


def is_dstream(data: object) -> bool:
    """Return whether this is a DStream."""
    return hasattr(data, "foreachRDD")


def _choose_columns(
    df: DataFrame,
    features: Sequence[str | Column] | None,
    label: str | Column | Sequence[str | Column] | None,
    num_classes: int | None,
    class_weights: Mapping[int, float] | None,
    weight: str | Column | None = None,
) -> Columns:
    """Find the named columns in the DataFrame.

    Raises:
        ConfigError: a column is missing; the message names the most similar one.
    """
    labels = _as_columns([] if label is None else [label] if isinstance(label, str | Column) else label)
    weights = _as_columns([] if weight is None else [weight])
    if features is None:
        named = {column.name for column in (*labels, *weights)}
        features = [name for name in df.columns if name not in named]
    columns = Columns(
        _as_columns(features),
        labels[0] if len(labels) == 1 else labels or None,
        num_classes,
        _class_weights(class_weights),
        weight=weights[0] if weights else None,
    )
    check_columns(columns, df.columns)
    return columns


def _class_weights(given: Mapping[int, float] | None) -> tuple[tuple[int, float], ...]:
    for label, weight in (given or {}).items():
        if not isinstance(label, int | np.integer) or not isinstance(weight, int | float | np.number):
            raise ConfigError(
                f"expected class_weights to map classes, which are integers, to numbers, got {label!r}: {weight!r}; "
                "number the classes, for example with pyspark.ml.feature.StringIndexer"
            )
    return tuple((int(label), float(weight)) for label, weight in (given or {}).items())


def _as_columns(items: Sequence[str | Column]) -> tuple[Column, ...]:
    return tuple(Column(item) if isinstance(item, str) else item for item in items)


def select_columns(df: DataFrame, columns: Columns) -> DataFrame:
    """Return the DataFrame with only the columns that are fed.

    Raises:
        ConfigError: a column is missing, or is there twice.
    """
    check_columns(columns, df.columns)
    wanted = [column.name for column in columns.sent]
    twice = next((name for name in wanted if df.columns.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"expected one column {twice!r}, the data has {df.columns.count(twice)}, as after a join; drop or rename "
            "the others before feeding"
        )
    selected = select_by_name(df, wanted)
    check_text(selected, columns)
    _check_weight(selected, columns)
    return selected


def validation_rows(spark: SparkSession, data: object, columns: Columns) -> DataFrame:
    """Return what is evaluated after each epoch with just the columns that are fed.

    It is looked for a first row: workers that wait for one in the middle of a training could not do anything else.

    Raises:
        ConfigError: a column is not there.
        DataError: there are no rows.
    """
    rows = select_columns(as_dataframe(spark, data), columns)
    if rows.isEmpty():
        raise no_validation_rows()
    return rows


def check_alike(trained: object, other: DataFrame) -> None:
    """Reject rows whose columns are text where those trained on are numbers, or the other way round.

    A model that was built for numbers fails on text in the middle of a graph, after an epoch.

    Args:
        trained: the rows trained on; other than a DataFrame they tell no types.
        other: rows for validation or an evaluation.

    Raises:
        DataError: names the first such column.
    """
    from pyspark.sql.types import BinaryType, StringType

    fields = () if is_rdd(trained) or not hasattr(trained, "schema") else trained.schema.fields
    known = {field.name: field.dataType for field in fields}

    def is_bytes(dtype: DataType) -> bool:
        return isinstance(_innermost(dtype), StringType | BinaryType)

    for one in other.schema.fields:
        had = known.get(one.name, one.dataType)
        if is_bytes(had) != is_bytes(one.dataType):
            raise DataError(
                f"expected column {one.name!r} as in the rows trained on, {had.simpleString()}, got "
                f"{one.dataType.simpleString()}; cast it in Spark, for example "
                f"df.withColumn({one.name!r}, df[{one.name!r}].cast({had.simpleString()!r}))"
            )


def no_validation_rows() -> DataError:
    """Return the error that says that there is nothing to validate on."""
    return DataError(
        "expected validation rows, the DataFrame has none; leave validation= out of train(), or see what its filters "
        "leave"
    )


def check_text(df: DataFrame, columns: Columns) -> None:
    """Reject text columns where numbers are declared, as in a CSV file that was read without a schema.

    Raises:
        DataError: names the first such column.
    """
    if columns.examples is not None:
        return
    text = {field.name for field in df.schema.fields if _holds_text(field.dataType)}
    for column in columns.all:
        declared = column.dtype or ("float32, which scale makes" if column.scale is not None else None)
        if column.name not in text:
            continue
        if column is columns.class_label and (columns.num_classes or columns.class_weights):
            most = f" 0 to {columns.num_classes - 1}" if columns.num_classes else ""
            raise DataError(
                f"label {column.name!r} is text (string), expected integer classes{most}; cast it in Spark before "
                "feeding, or name the classes in data.label.classes"
            )
        if declared:
            raise DataError(text_problem(column.name, declared))


def _holds_text(dtype: DataType) -> bool:
    from pyspark.sql.types import StringType

    return isinstance(_innermost(dtype), StringType)


def _innermost(dtype: DataType) -> DataType:
    from pyspark.sql.types import ArrayType

    while isinstance(dtype, ArrayType):
        dtype = dtype.elementType
    return dtype


def _check_weight(df: DataFrame, columns: Columns) -> None:
    if columns.weight is None or columns.examples is not None:
        return
    found = df.schema[columns.weight.name].dataType.simpleString()
    if not found.startswith(
        ("tinyint", "smallint", "int", "bigint", "float", "double", "decimal", "boolean")
    ):
        raise ConfigError(
            f"expected numbers in the weight column {columns.weight.name!r} (weight=, data.weight), got {found}; "
            "cast it, or name another column"
        )


@dataclass(frozen=True)
class Selection:
    """The column arguments of one `train` call.

    Attributes:
        features: feature columns; None: every column except the label.
        label: one label column, or several; None: there is no label.
        num_classes: labels lie in [0, num_classes).
        class_weights: class -> weight of its rows in the loss.
        columns: all of these in one object.
        weight: the column with each row's weight.
    """

    features: Sequence[str | Column] | None = None
    label: str | Column | Sequence[str | Column] | None = "label"
    num_classes: int | None = None
    class_weights: Mapping[int, float] | None = None
    columns: Columns | None = None
    weight: str | Column | None = None

    @property
    def is_default(self) -> bool:
        """Whether no argument was given."""
        return self == Selection()

    def of(self, df: DataFrame) -> Columns:
        """Return these columns of a DataFrame; see `choose_columns`."""
        return self.columns or _choose_columns(
            df, self.features, self.label, self.num_classes, self.class_weights, self.weight
        )


def what_to_feed(spark: SparkSession, data: object, chosen: Selection, to_main_fun: bool) -> TrainingRows:
    """Convert the data that was passed to `train` to the rows that are fed.

    A `main_fun` may read its rows with ``ctx.dataset()``, which must know the label, or it may take them apart itself.
    So if no columns were named and there is no column ``label``, it gets the rows unchanged.

    Raises:
        ConfigError: the data cannot be fed, or a column is missing.
    """
    as_it_is = to_main_fun and chosen.is_default
    if as_it_is and is_rdd(data) and not _has_field(data, "label"):
        return elements_to_feed(data)
    df = as_dataframe(spark, data)
    if as_it_is and "label" not in df.columns:
        return _all_columns_to_feed(df)
    return _columns_to_feed(df, chosen.of(df))


def default_fs(spark: SparkSession) -> str:
    """Return Hadoop's default file system without a trailing slash.

    On Spark Connect it is not known; the local file system is returned.
    """
    try:
        found = spark.sparkContext._jsc.hadoopConfiguration().get("fs.defaultFS")
    except PySparkException:
        found = "file:///"
    return "file://" if found == "file:///" else str(found).rstrip("/")
