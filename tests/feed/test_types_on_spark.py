"""Feed every column type from real Spark to a trainer; compare the values in Spark with the tensors in TensorFlow."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql import types as st
from support.pictures import picture, png

from tfspark import TFCluster
from tfspark.feed.columns import Column, Columns

NUM_ROWS = 21
BATCH = 8
DAY = datetime.date(1969, 12, 30)
MOMENT = datetime.datetime(2024, 2, 29, 12, 0, 0, 250000)
UTC_S = MOMENT.replace(tzinfo=datetime.UTC).timestamp()


@dataclass(frozen=True)
class Case:
    """A column type.

    Attributes:
        kind: the type in Spark.
        value: row number -> its value in Spark.
        seen: row number -> its value in the trainer.
        dtype: dtype of the tensor.
        options: arguments of the `Column`.
    """

    kind: st.DataType | str
    value: Callable[[int], Any]
    seen: Callable[[int], Any]
    dtype: str
    options: dict[str, Any]


def case(
    kind: st.DataType | str,
    value: Callable[[int], Any],
    dtype: str,
    seen: Callable[[int], Any] | None = None,
    /,
    **options: Any,
) -> Case:
    return Case(kind, value, seen or value, dtype, options)


def tokens(row: int) -> list[int]:
    return list(range(row % 4))


def words(row: int) -> list[str]:
    return ["ä" * (i + 1) for i in range(row % 3)]


def padded(values: list[Any], length: int, fill: Any) -> list[Any]:
    return values + [fill] * (length - len(values))


def longest_of_batch(row: int, values: Callable[[int], list[Any]]) -> int:
    """Return the length of the longest value in the batch of a row; the last batch is padded with its own rows."""
    first = row // BATCH * BATCH
    return max(len(values(i)) for i in range(first, min(first + BATCH, NUM_ROWS)))


def vector(row: int) -> Any:
    dense = [float(row), 0.0, -1.5]
    return Vectors.dense(dense) if row % 2 else Vectors.sparse(3, {0: float(row), 2: -1.5})


CASES: dict[str, Case] = {
    "boolean": case("boolean", lambda i: i % 2 == 0, "bool"),
    "byte": case("tinyint", lambda i: i - 10, "int8"),
    "short": case("smallint", lambda i: i - 1000, "int16"),
    "integer": case("int", lambda i: i - 2**31, "int32"),
    "long": case("bigint", lambda i: 2**62 + i, "int64"),
    "float": case("float", lambda i: i / 4, "float32"),
    "double": case("double", lambda i: i / 3, "float64"),
    "decimal": case("decimal(10,3)", lambda i: decimal.Decimal(i) / 8, "float64", lambda i: i / 8),
    "narrow": case("bigint", lambda i: i, "uint8", dtype="uint8"),
    "scaled": case("int", lambda i: i, "float32", lambda i: i / 2, scale=2.0),
    "column": case("int", lambda i: i, "int32", lambda i: [i], shape=(1,)),
    "string": case("string", lambda i: f"é{i}", "string"),
    "empty": case("string", lambda i: "", "string"),
    "binary": case("binary", lambda i: bytes([i, 255]), "string", lambda i: bytes([i, 255]).decode("latin-1")),
    "raw": case(
        "binary",
        lambda i: np.array([i, -i], "<i2").tobytes(),
        "int16",
        lambda i: [[i], [-i]],
        dtype="int16",
        shape=(2, 1),
    ),
    "date": case("date", lambda i: DAY + datetime.timedelta(i), "int32", lambda i: i - 2),
    "timestamp": case(
        "timestamp",
        lambda i: (MOMENT + datetime.timedelta(seconds=i)).replace(tzinfo=datetime.UTC),
        "float64",
        lambda i: UTC_S + i,
    ),
    "local": case(
        "timestamp_ntz", lambda i: MOMENT + datetime.timedelta(days=i), "float64", lambda i: UTC_S + 86400 * i
    ),
    "interval": case(
        "interval day to second", lambda i: datetime.timedelta(seconds=i + 0.5), "float64", lambda i: i + 0.5
    ),
    "time": case("time(6)", lambda i: datetime.time(1, 0, i), "float64", lambda i: 3600.0 + i),
    "array": case("array<float>", lambda i: [float(i), -0.5], "float32"),
    "nested": case("array<array<int>>", lambda i: [[i], [2], [3]], "int32"),
    "flags": case("array<boolean>", lambda i: [True, i > 3], "bool"),
    "days": case("array<date>", lambda i: [DAY], "int32", lambda i: [-2]),
    "texts": case("array<string>", lambda i: [f"ä{i}", ""], "string"),
    "vector": case(VectorUDT(), vector, "float64", lambda i: [i, 0.0, -1.5]),
    "vector32": case(VectorUDT(), vector, "float32", lambda i: [i, 0.0, -1.5], dtype="float32"),
    "longest": case(
        "array<int>",
        tokens,
        "int32",
        lambda i: padded(tokens(i), longest_of_batch(i, tokens), -1),
        ragged="pad",
        pad_value=-1,
    ),
    "pad_to": case(
        "array<bigint>", tokens, "int32", lambda i: padded(tokens(i), 5, 0), ragged="pad", pad_to=5, dtype="int32"
    ),
    "ragged": case("array<double>", lambda i: [v / 3 for v in tokens(i)], "float64", ragged="ragged"),
    "ragged_rows": case(
        "array<array<float>>", lambda i: [[float(v), -1.0] for v in range(1 + i % 3)], "float32", ragged="ragged"
    ),
    "words": case("array<string>", words, "string", ragged="ragged"),
    "words_padded": case(
        "array<string>",
        words,
        "string",
        lambda i: padded(words(i), longest_of_batch(i, words), "<pad>"),
        ragged="pad",
        pad_value="<pad>",
    ),
    "sound": case(
        "binary",
        lambda i: np.arange(i % 4, dtype="<i2").tobytes(),
        "int16",
        lambda i: padded(tokens(i), 3, 0),
        dtype="int16",
        ragged="pad",
        pad_to=3,
    ),
    "file": case(
        "binary",
        lambda i: png(picture(i)),
        "uint8",
        lambda i: picture(i).tolist(),
        decode="image",
        shape=(4, 6, 3),
    ),
    "resized": case(
        "binary",
        lambda i: png(np.full((2 + i % 3, 3, 1), i, np.uint8)),
        "float32",
        lambda i: np.full((5, 4, 1), i / 2).tolist(),
        decode="image",
        shape=(5, 4, 1),
        resize=True,
        scale=2.0,
    ),
}  # fmt: skip


def all_types(spark: SparkSession, folder: Path) -> DataFrame:
    """Return a DataFrame with a column for each case, and columns of images that Spark has read."""
    fields = [st.StructField("id", st.IntegerType())]
    for name, one in CASES.items():
        kind = one.kind if isinstance(one.kind, st.DataType) else st.DataType.fromDDL(one.kind)
        fields.append(st.StructField(name, kind))
    rows = [(i, *(one.value(i) for one in CASES.values())) for i in range(NUM_ROWS)]
    df = spark.createDataFrame(rows, st.StructType(fields)).repartition(3, "id").sortWithinPartitions("id")
    for i in range(NUM_ROWS):
        for channels in (1, 3, 4):
            (folder / str(channels)).mkdir(exist_ok=True)
            (folder / str(channels) / f"{i}.png").write_bytes(png(picture(i, channels=channels)))
    for channels in (1, 3, 4):
        images = spark.read.format("image").load(str(folder / str(channels)))
        number = sf.regexp_extract("image.origin", r"(\d+)\.png", 1).cast("int")
        df = df.join(images.select(number.alias("id"), images["image"].alias(f"image{channels}")), "id")
    return df.orderBy("id").coalesce(1)


def reporting_tensors() -> Callable[[Any, Any], Any]:
    """Return a ``main_fun`` that returns what it saw: column -> dtype, and column -> values of real rows."""

    # A nested function is pickled by value: the trainers cannot import this module.
    def main_fun(args: Any, ctx: Any) -> dict[str, Any]:
        import tensorflow as tf

        def plain(values: Any) -> Any:
            if isinstance(values, list):
                return [plain(value) for value in values]
            if isinstance(values, bytes):
                try:
                    return values.decode()
                except UnicodeDecodeError:
                    return values.decode("latin-1")
            return values

        seen: dict[str, list[Any]] = {}
        dtypes: dict[str, str] = {}
        padding = 0
        for features, labels, weight in ctx.dataset():
            real = int(tf.math.count_nonzero(weight))
            padding += int(weight.shape[0]) - real
            for name, tensor in {
                **features,
                **(labels if isinstance(labels, dict) else {"label": labels}),
            }.items():
                assert tensor.shape[0] == args["batch"], (name, tensor.shape)
                kind = "ragged " if isinstance(tensor, tf.RaggedTensor) else ""
                dtypes[name] = kind + tensor.dtype.name
                values = tensor.to_list() if kind else tensor.numpy().tolist()
                seen.setdefault(name, []).extend(plain(values)[:real])
        return {"seen": seen, "dtypes": dtypes, "padding": padding}

    return main_fun


def tensors_of(spark: SparkSession, df: DataFrame, columns: Columns) -> dict[str, Any]:
    """Train on a DataFrame; return what the trainer saw."""
    with TFCluster.run(spark, reporting_tensors(), {"batch": BATCH}) as cluster:
        cluster.train(df, columns=columns, batch_size=BATCH)
        result: dict[str, Any] = cluster.shutdown()["worker 0"]
    return result


def test_every_type_of_spark_arrives_in_the_trainer_as_documented(
    spark: SparkSession, tmp_path: Path
) -> None:
    images = {f"image{channels}": channels for channels in (1, 3, 4)}
    features = tuple(Column(name, **one.options) for name, one in CASES.items())
    columns = Columns((Column("id"), *features[1:], *map(Column, images)), features[0])
    result = tensors_of(spark, all_types(spark, tmp_path), columns)

    seen, dtypes = result["seen"], result["dtypes"]
    seen["boolean"], dtypes["boolean"] = seen.pop("label"), dtypes.pop("label")
    order = seen.pop("id")
    assert sorted(order) == list(range(NUM_ROWS))
    assert result["padding"] == -NUM_ROWS % BATCH
    for name, one in CASES.items():
        ragged = "ragged " if one.options.get("ragged") == "ragged" else ""
        assert dtypes[name] == ragged + one.dtype, name
        assert seen[name] == [one.seen(i) for i in order], name
    for name, channels in images.items():
        assert dtypes[name] == "uint8"
        assert seen[name] == [picture(i, channels=channels).tolist() for i in order], f"{name} is RGB"
