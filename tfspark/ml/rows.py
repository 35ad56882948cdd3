"""Select the rows of a fit: the features, label and weight to feed, checked before anything starts. Driver only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigError, DataError
from tfspark.feed.columns import Column, Columns, check_columns
from tfspark.feed.spark_names import quoted
from tfspark.ml.inputs import Inputs

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame

MOST_CLASSES = 10_000
NUMBERS = ("byte", "short", "integer", "long", "float", "double", "decimal", "boolean")


@dataclass(frozen=True)
class Target:
    """What a network predicts.

    Attributes:
        label: the column of the label; None: the features themselves are the target.
        num_classes: number of classes; None: the label is a number, or several.
        classes: values of the label in the order of the classes; empty: 0, 1, and so on.
        units: number of predicted values, if the label is not a class.
    """

    label: str | None = None
    num_classes: int | None = None
    classes: tuple[Any, ...] = ()
    units: int = 1

    @property
    def output(self) -> dict[str, Any]:
        """The settings of a network's output layer."""
        if self.label is None:
            return {}
        return {"units": self.units} if self.num_classes is None else {"classes": self.num_classes}


@dataclass(frozen=True)
class FitRows:
    """The rows that a fit feeds.

    Attributes:
        train: training rows.
        validation: rows that are evaluated after each epoch; None: there are none.
        columns: of both.
    """

    train: DataFrame
    validation: DataFrame | None
    columns: Columns


def find_classes(df: DataFrame, label: str, given: Sequence[Any] | None) -> Target:
    """Return the classes of a label, by at most one Spark job.

    Raises:
        ConfigError: the column does not exist, or its type cannot be a label.
        DataError: there are no rows, or the labels are neither texts nor 0 to k-1.
    """
    check_columns(Columns((Column(label),)), df.columns)
    kind = df.schema[label].dataType.typeName()
    if kind not in (*NUMBERS, "string"):
        raise ConfigError(
            f"expected numbers or texts in the label column {label!r}, got {df.schema[label].dataType.simpleString()}; "
            "choose another labelCol"
        )
    if given is not None:
        if isinstance(given[0], str) != (kind == "string"):
            raise ConfigError(
                f"expected classes of the type of the label column {label!r}, {kind}, got {list(given)[:5]}; use the "
                "values of the label"
            )
        if list(given) == list(range(len(given))):
            return Target(label, len(given))
        return Target(label, len(given), tuple(given))
    return _texts(df, label) if kind == "string" else _numbers(df, label)


def _texts(df: DataFrame, label: str) -> Target:
    found = df.select(df[quoted(label)]).distinct().limit(MOST_CLASSES + 1).collect()
    values = sorted(row[0] for row in found if row[0] is not None)
    if not 2 <= len(values) <= MOST_CLASSES:
        raise DataError(
            f"expected 2 to {MOST_CLASSES:,} different labels in column {label!r}, found "
            f"{'more' if len(values) > MOST_CLASSES else values}; choose another labelCol, or set classes"
        )
    return Target(label, len(values), tuple(values))


def _numbers(df: DataFrame, label: str) -> Target:
    from pyspark.sql import functions as sf

    known = _classes_of_metadata(df, label)
    if known:
        return Target(label, known)
    value = df[quoted(label)].cast("double")
    broken = sf.sum(sf.when(value.isNull() | (value < 0) | (value != sf.floor(value)), 1).otherwise(0))
    least, most, bad, count = (
        df.agg(sf.min(value), sf.max(value), broken, sf.count("*")).first() or (None,) * 4
    )
    if not count:
        raise DataError(
            f"expected rows to fit on, but the DataFrame has none (label column {label!r}); check its filters"
        )
    if bad or most is None or most >= MOST_CLASSES:
        raise DataError(
            f"expected labels 0, 1, ..., k-1 in column {label!r}, got values from {least} to {most}, {bad} of {count} "
            "rows without such a number; set classes=[...] to name them, or number them with "
            "pyspark.ml.feature.StringIndexer"
        )
    return Target(label, max(2, int(most) + 1))


def _classes_of_metadata(df: DataFrame, label: str) -> int:
    """Return the number of classes in StringIndexer's metadata; 0: there is none."""
    attributes = (df.schema[label].metadata or {}).get("ml_attr", {})
    return len(attributes.get("vals", ())) if attributes.get("type") == "nominal" else 0


def find_numbers(df: DataFrame, label: str) -> Target:
    """Return a target of numbers: one, or as many as a vector or an array has.

    Raises:
        ConfigError: the column does not exist, or does not hold numbers.
        DataError: no row has a label.
    """
    check_columns(Columns((Column(label),)), df.columns)
    kind = df.schema[label].dataType
    if kind.typeName() in NUMBERS:
        return Target(label)
    if not (hasattr(kind, "sqlType") or kind.typeName() == "array"):
        raise ConfigError(
            f"expected numbers in the label column {label!r}, got {kind.simpleString()}; choose another labelCol"
        )
    first = df.select(df[quoted(label)]).where(df[quoted(label)].isNotNull()).first()
    if first is None:
        raise DataError(
            f"expected rows with a label in column {label!r}, but there are none; check the DataFrame"
        )
    return Target(label, units=len(first[0]))


def fit_rows(
    df: DataFrame, inputs: Inputs, target: Target, weight: str | None, indicator: str | None
) -> FitRows:
    """Return the training and the validation rows, with only the columns to feed.

    Raises:
        ConfigError: a column does not exist, or has a wrong type.
    """
    prepared = inputs.prepared(df)
    features = [inputs.name] if inputs.kind == "sparse" else [column.name for column in inputs.columns]
    chosen: dict[str, SparkColumn] = {name: prepared[quoted(name)] for name in features}
    if target.label is not None:
        chosen[target.label] = _label(prepared, target)
    if weight is not None:
        check_columns(Columns((Column(weight),)), df.columns)
        chosen[weight] = prepared[quoted(weight)]
    parts: list[DataFrame | None] = [prepared, None]
    if indicator is not None:
        check_columns(Columns((Column(indicator),)), df.columns)
        if df.schema[indicator].dataType.typeName() != "boolean":
            raise ConfigError(
                f"expected true and false in validationIndicatorCol={indicator!r}, got "
                f"{df.schema[indicator].dataType.simpleString()}; cast it to boolean"
            )
        is_validation = prepared[quoted(indicator)]
        parts = [prepared.where(~is_validation), prepared.where(is_validation)]
    train, validation = (
        None if part is None else inputs.split(part.select(*[c.alias(name) for name, c in chosen.items()]))
        for part in parts
    )
    assert train is not None
    label = None if target.label is None else Column(target.label)
    columns = Columns(
        inputs.columns, label, target.num_classes, weight=None if weight is None else Column(weight)
    )
    return FitRows(train, validation, columns)


def _label(df: DataFrame, target: Target) -> SparkColumn:
    from pyspark.sql import functions as sf

    column = df[quoted(str(target.label))]
    if target.num_classes is None:
        return column.cast("double") if df.schema[target.label].dataType.typeName() in NUMBERS else column
    if not target.classes:
        return column.cast("long")
    known = sf.array(*[sf.lit(value) for value in target.classes])
    text = sf.concat(
        sf.lit(f"label column {target.label!r} is "),
        sf.coalesce(column.cast("string"), sf.lit("null")),
        sf.lit(
            f", expected one of the {len(target.classes)} classes {', '.join(map(str, target.classes[:20]))}; "
            "correct the data or set classes=[...]"
        ),
    )
    number = sf.array_position(known, column.cast(_type_of(target.classes))) - 1
    return sf.when(number >= 0, number).otherwise(sf.raise_error(text)).cast("long")


def _type_of(classes: Sequence[Any]) -> str:
    if isinstance(classes[0], str):
        return "string"
    return "double" if any(isinstance(value, float) for value in classes) else "bigint"
