"""What users hand to `TFCluster`, made a session, a DataFrame and columns. Runs on the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigError
from tfspark.feed.columns import Column, Columns, check_columns

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def session_of(spark: Any) -> SparkSession:
    """Return the session itself, or the one of a SparkContext."""
    from pyspark.sql import SparkSession

    if hasattr(spark, "range") and hasattr(spark, "createDataFrame"):
        session: SparkSession = spark
        return session
    return SparkSession.builder.config(conf=spark.getConf()).getOrCreate()


def as_dataframe(spark: SparkSession, data: Any) -> DataFrame:
    """Return a DataFrame itself, or one made of an RDD of Rows or tuples.

    Raises:
        ConfigError: it is something else.
    """
    if hasattr(data, "mapInArrow"):
        frame: DataFrame = data
        return frame
    if hasattr(data, "mapPartitions"):
        return spark.createDataFrame(data)
    raise ConfigError(
        f"expected a Spark DataFrame or an RDD of Rows or tuples, got {type(data).__name__}; make one with "
        "spark.createDataFrame(...) or spark.read"
    )


def choose_columns(
    df: DataFrame,
    features: Sequence[str | Column] | None,
    label: str | Column | Sequence[str | Column] | None,
    num_classes: int | None,
    class_weights: Mapping[int, float] | None,
) -> Columns:
    """Resolve names against the DataFrame.

    Raises:
        ConfigError: a column is not there; the message names the nearest.
    """
    labels = _as_columns([] if label is None else [label] if isinstance(label, str | Column) else label)
    if features is None:
        features = [name for name in df.columns if name not in {column.name for column in labels}]
    columns = Columns(
        _as_columns(features),
        labels[0] if len(labels) == 1 else labels or None,
        num_classes,
        tuple((class_weights or {}).items()),
    )
    check_columns(columns, df.columns)
    return columns


def _as_columns(items: Sequence[str | Column]) -> tuple[Column, ...]:
    return tuple(Column(item) if isinstance(item, str) else item for item in items)


def select_columns(df: DataFrame, columns: Columns) -> DataFrame:
    """Return the DataFrame with just the columns that are fed.

    Raises:
        ConfigError: one is not there.
    """
    check_columns(columns, df.columns)
    return df.select(*[df[f"`{column.name}`"] for column in columns.sent])
