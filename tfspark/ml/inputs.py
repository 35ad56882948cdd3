"""What a column of features is to a network: found on the driver from the schema and the first row."""

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
"""A vector of more dimensions would take half a megabyte a row where it must be dense, as in a network of one's own."""
INDICES, VALUES = "_indices", "_values"
"""Suffixes of the columns that a sparse vector becomes."""
PLAIN_TEXT = "__tfspark_text"
TABLE = "__tfspark_table"
"""The column that several columns of numbers become."""
NUMBERS = ("boolean", "byte", "short", "integer", "long", "float", "double", "decimal")
IMAGE_FILES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
SEPARATORS = r"[^\\p{L}\\p{N}]+"
"""What stands between words."""


@dataclass(frozen=True)
class Inputs:
    """How a column enters a network.

    Attributes:
        name: of the column.
        kind: ``dense`` numbers of `shape`; ``sparse`` vectors of `size` dimensions; ``text`` or ``words``, arrays of
            them.
        shape: of one row.
        dtype: of the numbers as they are fed; None: their own.
        scale: they are divided by it.
        decode: ``image``: files to decode and resize to `shape`.
        size: dimensions of a sparse vector.
        plain: words are written small and separated by single spaces first, by Spark.
        table: columns of numbers that make one row of numbers, the column `name`, which is not in the data.
        named: inputs of their own, each by its column's name, instead of all of the above.
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
        """Rebuild what `to_json` gave."""
        lists = {name: tuple(data.get(name, ())) for name in ("shape", "table")}
        return cls(**{**data, **lists, "named": tuple(map(cls.from_json, data.get("named", ())))})

    def called(self, name: str) -> Inputs:
        """Return the same under another name; several columns keep theirs."""
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
        """The columns as they are fed."""
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
        """Return the DataFrame with the texts or the table as the network reads them, in a column of their own."""
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
        """What makes columns of a sparse vector; None: it is none."""
        return SparseParts(self.name, self.size) if self.kind == "sparse" else None

    def split(self, df: DataFrame) -> DataFrame:
        """Return the DataFrame with the columns of a sparse vector in its place."""
        if self.parts is None:
            return df
        from pyspark.sql.types import StructType

        others = [field for field in df.schema.fields if field.name != self.name]
        added = StructType.fromDDL(
            f"{quoted(self.name + INDICES)} array<int>, {quoted(self.name + VALUES)} array<float>"
        )
        return map_in_arrow(df, _Split(self.parts), StructType([*others, *added.fields]))


def _with_table(df: DataFrame, names: Sequence[str]) -> DataFrame:
    """Add an array of the numbers of several columns; null where one of them is."""
    from pyspark.sql import functions as sf

    columns = [df[quoted(name)] for name in names]
    is_there = functools.reduce(lambda one, other: one & other, [column.isNotNull() for column in columns])
    return df.withColumn(TABLE, sf.when(is_there, sf.array(*[column.cast("float") for column in columns])))


def table_of(df: DataFrame, names: Sequence[str], scale: float | None) -> Inputs:
    """Return how several columns of numbers enter a network as one row of numbers.

    Raises:
        ConfigError: one is not there, or holds no numbers.
    """
    check_columns(Columns(tuple(map(Column, names))), df.columns)
    for name in names:
        kind = df.schema[name].dataType
        if kind.typeName() not in NUMBERS:
            raise ConfigError(
                f"expected numbers in each of inputCols, column {name!r} is {kind.simpleString()}; leave it out, or "
                "make numbers of it with pyspark.ml.feature.StringIndexer and OneHotEncoder, and one vector with "
                "VectorAssembler"
            )
    return Inputs(TABLE, "dense", (len(names),), "float32", scale, table=tuple(names))


@dataclass(frozen=True)
class SparseParts:
    """Makes of a column of vectors one of indices and one of values, without making anything dense.

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
            DataError: a null, or a vector of another size.
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
        if is_dense.any():  # Among sparse ones; each has all its indices.
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
        """Put the parts in the place of the vectors."""
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
    """Find out what a column of features is.

    Args:
        df: the training rows.
        name: of the column.
        shape: of one row, where the caller knows it.
        scale: values are divided by it; None: bytes of images by 255, others by nothing.
        takes_sparse: the network reads sparse vectors as they are.
        plain: texts are to be written in small letters, words with single spaces between.

    Raises:
        ConfigError: the column is not there, or of a type that no network reads, or too large to be dense.
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
        raise DataError(f"expected rows with features in column {name!r}, there is none; check the DataFrame")
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
            "reduction, or DenseClassifier, DenseRegressor or RNNClassifier, which read sparse vectors as they are"
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
            f"expected {math.prod(shape)} values in column {name!r}, as inputShape={list(shape)} says, the first "
            f"row has {math.prod(found)}; correct inputShape or the data"
        )
    return shape


def vocabulary_of(df: DataFrame, size: int) -> list[str]:
    """Return the most frequent words of the first column, whose texts `Inputs.prepared` has written, by one Spark job.

    Args:
        df: training rows.
        size: so many words are told apart, two of which stand for padding and unknown words.

    Raises:
        DataError: there are no words.
    """
    words = df.selectExpr(f"explode(split({quoted(df.columns[0])}, ' ')) AS word").where("word != ''")
    counts = words.groupBy("word").count().sort("count", "word", ascending=[False, True])
    found = [row[0] for row in counts.limit(size - 2).collect()]
    if not found:
        raise DataError("expected texts with words in the features column, found none; check featuresCol")
    return found
