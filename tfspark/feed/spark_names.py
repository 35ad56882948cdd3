"""Use columns of any name in Spark: with dots, backticks or brackets, or that differ only in case. For the driver."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

ArrowFunction = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def quoted(name: str) -> str:
    """Return a column's name quoted for Spark's expressions."""
    return "`" + name.replace("`", "``") + "`"


def map_in_arrow(df: DataFrame, function: ArrowFunction, schema: str | StructType) -> DataFrame:
    """Return ``df.mapInArrow(function, schema)``, for columns of any name.

    PySpark 4 looks up the columns there by an unquoted ``df[name]``, which fails if a name is an expression or a star.
    """
    names = df.columns
    if all(re.fullmatch(r"\w+", name) for name in names) and not are_alike(names):
        return df.mapInArrow(function, schema)
    return df.toDF(*_positions(names)).mapInArrow(Renamed(tuple(names), function), schema)


def select_by_name(df: DataFrame, names: list[str]) -> DataFrame:
    """Return the DataFrame with only these columns, by exact name; each must occur once."""
    if not are_alike(df.columns):
        return df.select(*[df[quoted(name)] for name in names])
    # Spark treats `a` and `A` as one name unless spark.sql.caseSensitive is set; positions are unique.
    positions = _positions(df.columns)
    by_position = df.toDF(*positions)
    return by_position.select(*[by_position[positions[df.columns.index(name)]].alias(name) for name in names])


def are_alike(names: Collection[str]) -> bool:
    """Return whether some names differ only in case, or not at all."""
    return len({name.lower() for name in names}) < len(names)


def _positions(names: list[str]) -> list[str]:
    return [f"column_{position}" for position in range(len(names))]


@dataclass(frozen=True)
class Renamed:
    """Restore the columns' names, then call a function over batches. Runs in Spark's Python workers.

    Attributes:
        names: names of the columns, in order.
        function: called with the batches.
    """

    names: tuple[str, ...]
    function: ArrowFunction

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Call the function."""
        return self.function(self._renamed(batch) for batch in batches)

    def _renamed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        fields = [field.with_name(name) for field, name in zip(batch.schema, self.names, strict=True)]
        return pa.RecordBatch.from_arrays(batch.columns, schema=pa.schema(fields, batch.schema.metadata))
