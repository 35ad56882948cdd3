"""Windows of a time series as columns of its rows, computed by Spark. Driver only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tfspark.feed.columns import Column, Columns, check_columns
from tfspark.feed.spark_names import quoted

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

WINDOW, TARGET = "__tfspark_window", "__tfspark_target"


@dataclass(frozen=True)
class Windows:
    """How a series is divided into windows.

    Attributes:
        order: the column with the time.
        groups: the columns that distinguish series.
        values: the variables of a window.
        target: the variable to forecast.
        steps: rows of a window.
        horizon: number of values to forecast.
    """

    order: str
    groups: tuple[str, ...]
    values: tuple[str, ...]
    target: str
    steps: int
    horizon: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Windows:
        """Create the windows from the result of `to_json`."""
        return cls(**{**data, "groups": tuple(data["groups"]), "values": tuple(data["values"])})


def with_windows(df: DataFrame, windows: Windows, with_target: bool = False) -> DataFrame:
    """Give each row the window that ends with it; null if too few rows come before it, or one of them has a null.

    Args:
        df: one row per point in time and series.
        windows: how to divide the series.
        with_target: keep only rows with a complete window, and add the following values.

    Raises:
        ConfigError: a column is missing.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as sf

    needed = [windows.order, *windows.groups, *windows.values, *([windows.target] if with_target else [])]
    check_columns(Columns(tuple(Column(name) for name in dict.fromkeys(needed))), df.columns)
    series = Window.partitionBy(*map(quoted, windows.groups)).orderBy(quoted(windows.order))
    point = sf.array(*[df[quoted(name)].cast("float") for name in windows.values])
    whole = sf.when(~sf.exists(point, lambda value: value.isNull()), point)
    before = sf.collect_list(whole).over(series.rowsBetween(1 - windows.steps, 0))
    cut = df.withColumn(WINDOW, sf.when(sf.size(before) == windows.steps, sf.flatten(before)))
    if not with_target:
        return cut
    after = sf.collect_list(df[quoted(windows.target)].cast("float")).over(
        series.rowsBetween(1, windows.horizon)
    )
    cut = cut.withColumn(TARGET, after)
    return cut.where(cut[WINDOW].isNotNull() & (sf.size(TARGET) == windows.horizon))
