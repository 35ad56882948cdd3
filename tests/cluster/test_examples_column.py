"""Serialized Examples as a binary column, parsed in the trainers; and errors that TensorFlow finds in tf.data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster.programs import dense
from pyspark.sql import DataFrame, SparkSession
from support.pictures import picture, png
from support.rows import df_with_partitions

from tfspark import Feeding, InputMode, TFCluster
from tfspark.errors import ConfigError, DataError
from tfspark.feed.columns import Column, Columns
from tfspark.feed.files import TFRecordFiles
from tfspark.tfrecord import register

COLUMNS = {"features": (Column("features"),), "label": Column("label"), "num_classes": 2}
WEIGHTS = ((1, 0.25),)


def saved(spark: SparkSession, rows: DataFrame, path: Path) -> str:
    register(spark)
    rows.write.format("tfrecord").mode("append").save(str(path))
    return str(path)


def raw(spark: SparkSession, path: str) -> DataFrame:
    return spark.read.format("tfrecord").option("recordType", "ByteArray").load(path)


def test_examples_when_parsed_in_the_trainers_train_the_same_weights(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = saved(spark, df_with_partitions(spark, [50, 21]).select("features", "label"), tmp_path / "rows")
    in_order = {"batch_size": 32, "feeding": Feeding(ordered=True)}
    rows = raw(spark, path)
    columns = Columns(**COLUMNS, class_weights=WEIGHTS, examples="byteArray")
    with TFCluster.run(spark, dense, {}, 2, seed=3) as cluster:
        cluster.train(rows, columns=columns, **in_order)
        metrics = cluster.evaluate(rows, num_classes=2)
        parsed = cluster.shutdown()["worker 0"]
    with TFCluster.run(spark, dense, {}, 2, seed=3) as cluster:
        columns = Columns(**COLUMNS, class_weights=WEIGHTS)
        cluster.train(spark.read.format("tfrecord").load(path), columns=columns, **in_order)
        decoded = cluster.shutdown()["worker 0"]

    assert parsed["weights_sha256"] == decoded["weights_sha256"]
    assert parsed["history"] == decoded["history"]
    matrix = metrics["confusion_matrix"]
    assert [sum(row) for row in matrix] == [36, 35], "the true classes of 71 rows"
    assert (matrix[0][0] + matrix[1][1]) / 71 == pytest.approx(metrics["accuracy"], rel=1e-6)


def test_files_when_examples_are_declared_as_well_are_refused(tmp_path: Path) -> None:
    columns = Columns(**COLUMNS, examples="byteArray")
    with pytest.raises(ConfigError, match="expected no examples with TFRecordFiles"):
        TFRecordFiles(str(tmp_path), columns).plan(1, 8)


def test_files_when_workers_read_them_pad_ragged_features_and_decode_images(
    spark: SparkSession, tmp_path: Path
) -> None:
    tokens = [list(range(i % 4)) for i in range(11)]
    values = [(tokens[i], png(picture(i)), i) for i in range(11)]
    path = saved(
        spark, spark.createDataFrame(values, "tokens array<int>, photo binary, number int"), tmp_path / "rows"
    )
    photo = Column("photo", shape=(4, 6, 3), decode="image")
    columns = Columns((Column("tokens", ragged="pad", pad_to=4, pad_value=-1), photo), Column("number"))
    with TFCluster.run(spark, reading(), input_mode=InputMode.TENSORFLOW) as cluster:
        cluster.train(TFRecordFiles(path, columns), batch_size=4)
        rows = cluster.shutdown()["worker 0"]

    for padded, pixels, i in rows:
        assert padded == tokens[i] + [-1] * (4 - len(tokens[i]))
        assert pixels == picture(i).tolist()
    assert sorted(row[2] for row in rows) == list(range(11))


def test_train_when_a_label_within_an_example_is_no_class_says_so_on_the_driver(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = df_with_partitions(spark, [40], num_classes=3).select("features", "label")
    path = saved(spark, rows, tmp_path / "rows")
    with (
        pytest.raises(DataError, match=r"label 'label' expected classes from 0 to 1; .* came 2"),
        TFCluster.run(spark, dense, {}) as cluster,
    ):
        cluster.train(raw(spark, path), columns=Columns(**COLUMNS, examples="byteArray"))


def reading() -> Callable[[Any, Any], Any]:
    """Return a ``main_fun`` that returns the rows it reads, without padding; nested, because it is pickled by value."""

    def main_fun(args: Any, ctx: Any) -> list[Any]:
        rows = []
        for x, y, weight in ctx.dataset():
            tensors = [*(x.values() if isinstance(x, dict) else [x]), y]
            columns = [tensor.numpy()[weight.numpy() > 0].tolist() for tensor in tensors]
            rows.extend(zip(*columns, strict=True))
        return rows

    return main_fun


def test_main_fun_when_an_image_is_damaged_names_the_column_on_the_driver(spark: SparkSession) -> None:
    files = [(png(picture(i)) if i != 37 else png(picture(i))[:50], i % 2) for i in range(60)]
    rows = spark.createDataFrame(files, "photo binary, label int")
    columns = Columns((Column("photo", shape=(4, 6, 3), decode="image", scale=255),), Column("label"))
    with (
        pytest.raises(
            DataError, match="column 'photo' expected JPEG, PNG, GIF or BMP files, one is none or damaged"
        ),
        TFCluster.run(spark, reading()) as cluster,
    ):
        cluster.train(rows, columns=columns, batch_size=8)
