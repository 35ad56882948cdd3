"""``data.windows``: an experiment cuts series into rows by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfspark.errors import ConfigError, DataError
from tfspark.experiment.config import Experiment, load_config
from tfspark.experiment.rows import load_rows

CONFIG = """\
name: heat
model: {{module: models/rnn.py, params: {{inputs: series, task: forecast}}}}
data:
  format: parquet
  path: {path}
  windows: {windows}
{more}
"""


def experiment(folder: Path, windows: str, *more: str) -> Experiment:
    text = CONFIG.format(path=folder / "days", windows=windows, more="\n".join(f"  {line}" for line in more))
    (folder / "heat.yaml").write_text(text)
    return load_config(folder / "heat.yaml")


@pytest.fixture
def days(spark: Any, tmp_path: Path) -> Path:
    """Ten days at two places. The heat is the number of the day, plus 100 at place b. The rain is twice the heat."""
    rows = [
        (place, day, float(offset + day), 2.0 * (offset + day))
        for place, offset in (("a", 0), ("b", 100))
        for day in range(10)
    ]
    df = spark.createDataFrame(rows, "place STRING, day INT, heat DOUBLE, rain DOUBLE")
    df.repartition(3).write.parquet(str(tmp_path / "days"))
    return tmp_path


def values(df: Any) -> list[tuple[list[float], list[float]]]:
    return sorted((row["window"], row["target"]) for row in df.collect())


def test_windows_are_the_feature_and_the_label_of_each_series(spark: Any, days: Path) -> None:
    cut = "{order: day, groups: place, columns: [heat, rain], steps: 2, horizon: 3, targets: heat}"
    found = experiment(days, cut)
    rows = load_rows(spark, found)
    assert [(column.name, column.shape) for column in rows.columns.features] == [("window", (2, 2))]
    assert [column.name for column in rows.columns.labels] == ["target"]
    assert rows.train.columns == ["window", "target"]
    expected = [
        ([o + d, 2 * (o + d), o + d + 1, 2 * (o + d + 1)], [o + d + 2, o + d + 3, o + d + 4])
        for o in (0.0, 100.0)
        for d in range(6)
    ]
    assert values(rows.train) == expected
    assert rows.validation is rows.test is None


def test_windows_hold_back_the_newest_rows_and_forecast_only_within_their_part(
    spark: Any, days: Path
) -> None:
    cut = "{order: day, groups: [place], columns: heat, steps: 1, horizon: 2}"
    rows = load_rows(spark, experiment(days, cut, "validation: 0.25", "test: 0.25"))
    # Each place has rows for days 1 to 8. The newest quarter is days 7 and 8, the quarter before it days 5 and 6.
    of_first = [values(part)[: len(values(part)) // 2] for part in (rows.train, rows.validation, rows.test)]
    assert of_first[2] == [([6.0], [7.0, 8.0]), ([7.0], [8.0, 9.0])]
    assert of_first[1] == [([4.0], [5.0, 6.0])]  # Day 6 would forecast day 7, which is in the test rows.
    assert of_first[0] == [([0.0], [1.0, 2.0]), ([1.0], [2.0, 3.0]), ([2.0], [3.0, 4.0])]


def test_windows_when_no_rows_are_left_for_training_says_so(spark: Any, days: Path) -> None:
    cut = "{order: day, groups: place, columns: heat, steps: 1, horizon: 8}"
    with pytest.raises(DataError, match=r"all windows of data\.windows go to"):
        load_rows(spark, experiment(days, cut, "test: 0.5"))


def test_windows_when_a_column_is_missing_suggests_a_similar_name(spark: Any, days: Path) -> None:
    with pytest.raises(ConfigError, match=r"'heet'.*heat"):
        load_rows(spark, experiment(days, "{order: day, groups: place, columns: heet, steps: 1}"))


@pytest.mark.parametrize(
    ("windows", "more", "expected"),
    [
        ("{order: day, columns: heat}", (), "data.windows.steps: missing"),
        (
            "{order: day, columns: [], steps: 2}",
            (),
            "data.windows.columns: expected a column's name, or a list",
        ),
        (
            "{order: day, columns: heat, steps: 0}",
            (),
            "data.windows.steps: expected a whole number, 1 or more",
        ),
        (
            "{order: day, columns: heat, steps: 2}",
            ("features: {heat: {}}",),
            "data.features: expected only window",
        ),
        (
            "{order: day, columns: heat, steps: 2}",
            ("label: {column: rain}",),
            "data.label.column: expected target",
        ),
        (
            "{order: day, columns: heat, steps: 2}",
            ("weight: rain",),
            "data.weight: expected nothing beside data.windows",
        ),
    ],
)
def test_windows_with_invalid_or_contradictory_settings_are_refused(
    tmp_path: Path, windows: str, more: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(tmp_path, windows, *more)
    assert expected in str(caught.value)
