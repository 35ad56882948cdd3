"""Decide how a column of features enters a network, on the driver, from the schema and the first row."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import ConfigError, DataError
from tfspark.feed.columns import Column, Columns, check_columns
from tfspark.feed.spark_names import map_in_arrow, quoted
from tfspark.feed.values import refuse_nulls
from tfspark.inference.values import DENSE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SPARSE_FROM = 4096
"""Sparse vectors of more dimensions than this stay sparse: ready-made networks read them by index and value."""
MOST_DENSE = 65_536
"""Most dimensions of a vector that must be dense, as in the user's own network: a larger row needs half a megabyte."""
INDICES, VALUES = "_indices", "_values"
"""Suffixes of the two columns into which a sparse vector is split."""
PLAIN_TEXT = "__tfspark_text"
TABLE = "__tfspark_table"
"""The column into which several columns of numbers are combined."""
NUMBERS = ("boolean", "byte", "short", "integer", "long", "float", "double", "decimal")
IMAGE_FILES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
SEPARATORS = r"[^\\p{L}\\p{N}]+"
"""The text between words."""


@dataclass(frozen=True)
class Inputs:
    """How a column enters a network.

    Attributes:
        name: of the column.
        kind: ``dense``: numbers of `shape`; ``sparse``: vectors of `size` dimensions; ``text``; ``words``: arrays of
            texts.
        shape: of one row.
        dtype: type of the fed numbers; None: that of the column.
        scale: the numbers are divided by it.
        decode: ``image``: files to decode and resize to `shape`.
        size: dimensions of a sparse vector.
        plain: Spark first converts words to lower case, with single spaces between.
        table: columns of numbers that are combined to one row of numbers, the new column `name`.
        named: separate inputs, each with its column's name, instead of all of the above.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str | None = None
    scale: float | None = None
    decode: str | None = None
    size: int = 0
    plain: bool = False
    table: tuple[str, ...] = ()
    named: tuple[Inputs, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Inputs:
        """Return the inputs from the result of `to_json`."""
        lists = {name: tuple(data.get(name, ())) for name in ("shape", "table")}
        return cls(**{**data, **lists, "named": tuple(map(cls.from_json, data.get("named", ())))})

    def called(self, name: str) -> Inputs:
        """Return the same inputs with a different column name; several columns keep their names."""
        return self if self.table or self.named else replace(self, name=name)

    @property
    def each(self) -> tuple[Inputs, ...]:
        """The inputs one by one."""
        return self.named or (self,)

    @property
    def read(self) -> tuple[str, ...]:
        """The columns of the data that enter the network."""
        return tuple(name for part in self.each for name in (part.table or (part.name,)))

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns to feed."""
        if self.named:
            return tuple(column for part in self.named for column in part.columns)
        if self.kind == "sparse":
            names = (self.name + INDICES, self.name + VALUES)
            return tuple(Column(name, ragged="pad") for name in names)
        if self.kind in ("text", "words"):
            return (Column(PLAIN_TEXT if self.plain or self.kind == "words" else self.name),)
        resize = self.decode is not None
        return (Column(self.name, self.shape, self.dtype, self.scale, decode=self.decode, resize=resize),)

    @property
    def features(self) -> Columns:
        """The columns of a prediction."""
        return Columns(self.columns)

    def prepared(self, df: DataFrame) -> DataFrame:
        """Return the DataFrame with an added column: the texts or the table in the form that the network reads."""
        for part in self.named:
            df = part.prepared(df)
        if self.named:
            return df
        if self.table:
            return _with_table(df, self.table)
        if self.columns[0].name != PLAIN_TEXT:
            return df
        from pyspark.sql import functions as sf

        column = df[quoted(self.name)]
        words = sf.concat_ws(" ", column) if self.kind == "words" else column
        if self.plain:
            words = sf.trim(sf.regexp_replace(sf.lower(words), SEPARATORS.replace("\\\\", "\\"), " "))
        return df.withColumn(PLAIN_TEXT, sf.when(column.isNotNull(), words))

    @property
    def hidden(self) -> tuple[str, ...]:
        """The columns that `prepared` has added."""
        if self.named:
            return tuple(name for part in self.named for name in part.hidden)
        if self.table:
            return (TABLE,)
        return (PLAIN_TEXT,) if self.columns[0].name == PLAIN_TEXT else ()

    @property
    def parts(self) -> SparseParts | None:
        """Converts a sparse vector to columns; None: the column is not a sparse vector."""
        return SparseParts(self.name, self.size) if self.kind == "sparse" else None

    def split(self, df: DataFrame) -> DataFrame:
        """Return the DataFrame with a sparse vector replaced by its columns."""
        if self.parts is None:
            return df
        from pyspark.sql.types import StructType

        others = [field for field in df.schema.fields if field.name != self.name]
        added = StructType.fromDDL(
            f"{quoted(self.name + INDICES)} array<int>, {quoted(self.name + VALUES)} array<float>"
        )
        return map_in_arrow(df, _Split(self.parts), StructType([*others, *added.fields]))


def _with_table(df: DataFrame, names: Sequence[str]) -> DataFrame:
    """Add an array of the numbers of several columns; it is null if one of them is."""
    from pyspark.sql import functions as sf

    columns = [df[quoted(name)] for name in names]
    is_there = functools.reduce(lambda one, other: one & other, [column.isNotNull() for column in columns])
    return df.withColumn(TABLE, sf.when(is_there, sf.array(*[column.cast("float") for column in columns])))


def table_of(df: DataFrame, names: Sequence[str], scale: float | None) -> Inputs:
    """Return the inputs for several columns of numbers: one row of numbers.

    Raises:
        ConfigError: a column does not exist, or does not hold numbers.
    """
    check_columns(Columns(tuple(map(Column, names))), df.columns)
    for name in names:
        kind = df.schema[name].dataType
        if kind.typeName() not in NUMBERS:
            raise ConfigError(
                f"expected numbers in each of inputCols, but column {name!r} is {kind.simpleString()}; leave it out, "
                "or convert it with pyspark.ml.feature.StringIndexer and OneHotEncoder, and assemble one vector with "
                "VectorAssembler"
            )
    return Inputs(TABLE, "dense", (len(names),), "float32", scale, table=tuple(names))


@dataclass(frozen=True)
class SparseParts:
    """Converts a column of vectors to one of indices and one of values, without a dense copy.

    Attributes:
        name: of the column.
        size: dimensions that every vector must have.
    """

    name: str
    size: int

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (self.name,)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Add the two columns.

        Raises:
            DataError: a null, or a vector of a different size.
        """
        column = batch.column(self.name)
        refuse_nulls(column, self.name)
        kinds, sizes, indices, values = column.flatten()
        is_dense = kinds.to_numpy(zero_copy_only=False) == DENSE
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        found = np.where(is_dense, lengths, pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False))
        if (found != self.size).any():
            row = int((found != self.size).argmax())
            raise DataError(
                f"row {row}: column {self.name!r} has a vector of size {found[row]}, expected {self.size}, as in the "
                "rows trained on; assemble vectors of the same columns"
            )
        if is_dense.any():  # Dense vectors among sparse ones have all indices.
            every = list(range(self.size))
            listed = zip(is_dense, indices.to_pylist(), strict=True)
            indices = pa.array([every if dense else known for dense, known in listed], pa.list_(pa.int32()))
        columns = [indices, values.cast(pa.list_(pa.float32()))]
        names = [*batch.schema.names, self.name + INDICES, self.name + VALUES]
        return pa.RecordBatch.from_arrays([*batch.columns, *columns], names)


@dataclass(frozen=True)
class _Split:
    parts: SparseParts

    def __call__(self, batches: Any) -> Any:
        """Replace the vectors by their parts."""
        for batch in batches:
            split = self.parts(batch)
            kept = [name for name in split.schema.names if name != self.parts.name]
            yield split.select(kept)


def find_inputs(
    df: DataFrame,
    name: str,
    shape: tuple[int, ...] | None = None,
    scale: float | None = None,
    takes_sparse: bool = False,
    plain: bool = False,
) -> Inputs:
    """Return how a column of features enters a network.

    Args:
        df: the training rows.
        name: of the column.
        shape: of one row, if the caller knows it.
        scale: values are divided by it; None: bytes of images by 255, others are not divided.
        takes_sparse: the network can read sparse vectors.
        plain: convert texts to words in lower case, with single spaces between.

    Raises:
        ConfigError: the column does not exist, has a type that no network reads, or is too large to be dense.
        DataError: there is no row with a value.
    """
    check_columns(Columns((Column(name),)), df.columns)
    kind = df.schema[name].dataType
    type_name = kind.typeName() if not hasattr(kind, "sqlType") else "vector"
    if type_name in ("string", "varchar", "char"):
        return Inputs(name, "text", plain=plain)
    if type_name == "array" and kind.elementType.typeName() == "string":
        return Inputs(name, "words", plain=plain)
    first = df.select(df[quoted(name)]).where(df[quoted(name)].isNotNull()).first()
    if first is None:
        raise DataError(
            f"expected rows with features in column {name!r}, but there are none; check the DataFrame"
        )
    value = first[0]
    if type_name == "vector":
        return _of_vector(name, value, shape, scale, takes_sparse)
    if type_name == "struct" and getattr(value, "__fields__", [None])[0] == "origin":
        return Inputs(name, "dense", (value.height, value.width, value.nChannels), None, scale or 255.0)
    if type_name == "binary":
        return _of_bytes(name, bytes(value), shape, scale)
    if type_name == "array":
        found = _array_shape(value)
        return Inputs(name, "dense", _fitting(name, found, shape), _number_type(kind), scale)
    if type_name in NUMBERS:
        return Inputs(name, "dense", (1,), "float32", scale)
    raise ConfigError(
        f"expected vectors, arrays, images, texts or numbers in the features column {name!r}, got "
        f"{kind.simpleString()}; assemble a vector with pyspark.ml.feature.VectorAssembler"
    )


def _of_vector(
    name: str, value: Any, shape: tuple[int, ...] | None, scale: float | None, takes_sparse: bool
) -> Inputs:
    size = len(value)
    is_sparse = hasattr(value, "indices")
    if shape is None and takes_sparse and is_sparse and size > SPARSE_FROM:
        return Inputs(name, "sparse", size=size)
    if size > MOST_DENSE:
        raise ConfigError(
            f"expected vectors of at most {MOST_DENSE:,} dimensions in column {name!r}, got {size:,}: this network "
            "reads them dense, 8 bytes for each dimension of a row; use HashingTF(numFeatures=...), PCA or another "
            "reduction, or DenseClassifier, DenseRegressor or RNNClassifier, which read sparse vectors"
        )
    return Inputs(name, "dense", _fitting(name, (size,), shape), "float32", scale)


def _of_bytes(name: str, value: bytes, shape: tuple[int, ...] | None, scale: float | None) -> Inputs:
    if value.startswith(IMAGE_FILES):
        if shape is None or len(shape) != 3:
            raise ConfigError(
                f"expected inputShape=[height, width, channels] for the image files in column {name!r}, got {shape}: "
                "they are decoded and resized to it"
            )
        return Inputs(name, "dense", shape, None, scale or 255.0, decode="image")
    return Inputs(name, "dense", _fitting(name, (len(value),), shape), "uint8", scale or 255.0)


def _array_shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _number_type(kind: Any) -> str | None:
    while kind.typeName() == "array":
        kind = kind.elementType
    return "float32" if kind.typeName() in ("double", "decimal", "float") else None


def _fitting(name: str, found: tuple[int, ...], shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is None:
        return found
    if math.prod(shape) != math.prod(found):
        raise ConfigError(
            f"expected {math.prod(shape)} values in column {name!r} for inputShape={list(shape)}, but the first "
            f"row has {math.prod(found)}; correct inputShape or the data"
        )
    return shape


def vocabulary_of(df: DataFrame, size: int) -> list[str]:
    """Return the most frequent words of the first column, which `Inputs.prepared` has added, by one Spark job.

    Args:
        df: training rows.
        size: of the vocabulary, including one entry for padding and one for unknown words.

    Raises:
        DataError: there are no words.
    """
    words = df.selectExpr(f"explode(split({quoted(df.columns[0])}, ' ')) AS word").where("word != ''")
    counts = words.groupBy("word").count().sort("count", "word", ascending=[False, True])
    found = [row[0] for row in counts.limit(size - 2).collect()]
    if not found:
        raise DataError("expected texts with words in the features column, found none; check featuresCol")
    return found
