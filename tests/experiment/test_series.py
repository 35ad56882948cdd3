"""`windows` cuts series into training rows."""

from __future__ import annotations

from typing import Any

import pytest

from tfspark.errors import ConfigError, DataError
from tfspark.experiment.series import windows


def series(spark: Any, rows: list[tuple[Any, ...]]) -> Any:
    return spark.createDataFrame(rows, "place STRING, day INT, heat DOUBLE, rain DOUBLE").repartition(3)


def test_windows_of_several_series_do_not_mix_them(spark: Any) -> None:
    rows = [
        (place, day, 10.0 * day + offset, -day) for place, offset in (("a", 1), ("b", 2)) for day in range(5)
    ]
    df = series(spark, [(place, day, heat, float(rain)) for place, day, heat, rain in rows])
    cut = windows(df, "day", ["heat", "rain"], steps=2, horizon=2, targets=["heat"], by="place")
    found = sorted((row.place, row.day, row.window, row.target) for row in cut.collect())
    assert found == [
        ("a", 2, [1.0, 0.0, 11.0, -1.0], [21.0, 31.0]),
        ("a", 3, [11.0, -1.0, 21.0, -2.0], [31.0, 41.0]),
        ("b", 2, [2.0, 0.0, 12.0, -1.0], [22.0, 32.0]),
        ("b", 3, [12.0, -1.0, 22.0, -2.0], [32.0, 42.0]),
    ]


def test_windows_without_groups_and_targets_forecast_every_variable(spark: Any) -> None:
    df = series(spark, [("a", day, float(day), 0.5) for day in (3, 1, 2)])
    (row,) = windows(df, "day", ["heat", "rain"], steps=2).collect()
    assert (row.day, row.window, row.target) == (3, [1.0, 0.5, 2.0, 0.5], [3.0, 0.5])


def test_series_that_is_too_short_gives_no_windows(spark: Any) -> None:
    df = series(spark, [("a", 1, 1.0, 1.0), ("a", 2, 1.0, 1.0)])
    assert windows(df, "day", ["heat"], steps=2).collect() == []


def test_windows_when_a_value_is_missing_names_the_row(spark: Any) -> None:
    df = series(spark, [("a", 1, 1.0, 1.0), ("a", 2, None, 1.0)])
    with pytest.raises(DataError, match=r"a value in every row of heat, got .*day=2"):
        windows(df, "day", ["heat"], steps=1)


@pytest.mark.parametrize(("steps", "horizon", "values"), [(0, 1, ["heat"]), (1, 0, ["heat"]), (1, 1, [])])
def test_windows_when_the_arguments_are_invalid_says_so(
    spark: Any, steps: int, horizon: int, values: list[str]
) -> None:
    with pytest.raises(ConfigError, match="steps and horizon of 1 or more and at least one variable"):
        windows(series(spark, [("a", 1, 1.0, 1.0)]), "day", values, steps, horizon)
