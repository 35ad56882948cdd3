"""Compute mean, deviation and range of features and labels, by one pass of Spark. Driver only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfspark.errors import DataError
from tfspark.feed.spark_names import quoted
from tfspark.ml.inputs import Inputs
from tfspark.ml.rows import NUMBERS

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

Array = npt.NDArray[np.float64]


def feature_moments(df: DataFrame, inputs: Inputs) -> tuple[Array, Array]:
    """Return mean and standard deviation of each value, in the shape of one row; the deviation of a constant is 1.

    Raises:
        DataError: there are no rows.
    """
    mean, variance = _summary(inputs.prepared(df), inputs.name, "mean", "variance")
    return mean.reshape(inputs.shape), _deviation(variance).reshape(inputs.shape)


def largest_value(df: DataFrame, inputs: Inputs) -> float:
    """Return the largest of all values, by which pixels are divided; 1 if no value is above 0."""
    (most,) = _summary(inputs.prepared(df), inputs.name, "max")
    return float(most.max()) if most.max() > 0 else 1.0


def label_moments(df: DataFrame, label: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each number of a label."""
    mean, variance = _summary(df, label, "mean", "variance")
    return mean.tolist(), _deviation(variance).tolist()


def per_variable(mean: Array, deviation: Array) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each variable of a series, over all steps.

    Shapes:
        mean, deviation: (steps, variables).
    """
    own = mean.mean(axis=0)
    squares = (deviation**2 + mean**2).mean(axis=0) - own**2
    return own.tolist(), _deviation(squares).tolist()


def _deviation(variance: Array) -> Array:
    return np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 1.0)


def _summary(df: DataFrame, name: str, *metrics: str) -> list[Array]:
    from pyspark.ml.stat import Summarizer

    column = df[quoted(name)]
    there = df.select(_as_vector(df, name).alias("v")).where(column.isNotNull())
    row = there.select(Summarizer.metrics("count", *metrics).summary(there["v"]).alias("s")).first()
    if row is None or not row["s"]["count"]:
        raise DataError(
            f"expected rows with values in column {name!r}, but there are none; check the DataFrame"
        )
    return [np.asarray(row["s"][metric].toArray(), float) for metric in metrics]


def _as_vector(df: DataFrame, name: str) -> Column:
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import functions as sf

    column: Any = df[quoted(name)]
    kind = df.schema[name].dataType
    if hasattr(kind, "sqlType"):
        return column
    if kind.typeName() in NUMBERS:
        return array_to_vector(sf.array(column.cast("double")))
    while kind.elementType.typeName() == "array":
        column, kind = sf.flatten(column), kind.elementType
    return array_to_vector(column.cast("array<double>"))
