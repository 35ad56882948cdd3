"""Cut series into windows, with Spark. Called on the driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfspark.errors import ConfigError, DataError
from tfspark.feed.spark_names import quoted

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def windows(
    df: DataFrame,
    order: str,
    values: Sequence[str],
    steps: int,
    horizon: int = 1,
    targets: Sequence[str] | None = None,
    by: str | Sequence[str] | None = None,
    until: str | None = None,
) -> DataFrame:
    """Return, for each row of a series with enough rows before and after it, the values before it and from it on.

    Args:
        df: one row per point in time (and series).
        order: the column by which rows are ordered in time; a value occurs once per series.
        values: the variables of a window.
        steps: length of a window, 1 or more.
        horizon: number of steps to forecast, 1 or more.
        targets: the variables to forecast; None: all of `values`.
        by: the columns that identify a series; None: there is one series, which one Spark task sorts.
        until: name of a column to add: the `order` of the last step to forecast.

    Returns:
        `by`; `order` of the first step to forecast; `window` and `target`: arrays of float, steps first, so that step
        s of variable v is at ``s * len(values) + v``.

    Raises:
        ConfigError: no value, steps or horizon.
        DataError: a series has a null.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as sf

    if steps < 1 or horizon < 1 or not values:
        raise ConfigError(
            f"expected steps and horizon of 1 or more and at least one variable, got {steps}, {horizon}, {list(values)}"
        )
    _refuse_nulls(df, list(dict.fromkeys([*values, *(targets or [])])))
    keys = [quoted(name) for name in ([by] if isinstance(by, str) else by or [])]
    series = Window.partitionBy(*keys).orderBy(quoted(order))
    before = sf.collect_list(_floats(values)).over(series.rowsBetween(-steps, -1))
    after = sf.collect_list(_floats(targets or values)).over(series.rowsBetween(0, horizon - 1))
    made = [before.alias("window"), after.alias("target")]
    if until is not None:
        last = sf.max(quoted(order)).over(series.rowsBetween(0, horizon - 1))
        made.append(last.alias(until))
    cut = df.select(*keys, quoted(order), *made)
    whole = cut.where((sf.size("window") == steps) & (sf.size("target") == horizon))
    return whole.withColumn("window", sf.flatten("window")).withColumn("target", sf.flatten("target"))


def _floats(names: Sequence[str]) -> Column:
    from pyspark.sql import functions as sf

    return sf.array(*[sf.col(quoted(name)).cast("float") for name in names])


def _refuse_nulls(df: DataFrame, names: Sequence[str]) -> None:
    from pyspark.sql import functions as sf

    missing = df.where(sf.expr(" OR ".join(f"{quoted(name)} IS NULL" for name in names))).first()
    if missing is not None:
        raise DataError(
            f"expected a value in every row of {', '.join(names)}, got {missing}; fill it or drop the series"
        )
