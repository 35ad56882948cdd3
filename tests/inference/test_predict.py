"""`predict` on real Spark, with real TensorFlow in the Python workers."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import PythonException
from pyspark.sql import Row
from support.rows import assert_same_predictions, df_with_partitions, features_of, partition_sizes

from tfspark import Column, Columns, predict
from tfspark.errors import ConfigError
from tfspark.feed.described import FORMAT, Described, write_signature
from tfspark.inference.model_files import LoadedModels, of_keras, read_model
from tfspark.inference.predict import DescribeTask
from tfspark.ml import KerasModel
from tfspark.tfrecord import register


def scorer(seed: int = 0, units: int = 1, activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(units, activation)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_predict_keeps_columns_order_and_rows_and_equals_keras(spark: Any, folder: Path) -> None:
    model = scorer(units=3)
    model.save(folder / "model.keras")
    df = df_with_partitions(spark, [5, 0, 700]).selectExpr(
        "*", "concat('row ', id) AS text", "DATE'2020-01-01' AS `a.day`", "map('k', id) AS map"
    )

    made = predict(df, str(folder / "model.keras"), batch_rows=256)

    assert made.columns == [*df.columns, "prediction"]
    assert partition_sizes(made.select("id")) == [5, 0, 700]
    rows = made.collect()
    assert [row["id"] for row in rows] == list(range(705))
    assert (rows[7]["text"], rows[7]["a.day"], rows[7]["map"]) == (
        "row 7",
        datetime.date(2020, 1, 1),
        {"k": 7},
    )
    expected = model.predict(features_of(np.arange(705)), verbose=0)
    np.testing.assert_allclose([row["prediction"] for row in rows], expected, rtol=1e-5, atol=1e-6)
    # A new model with the same file name replaces the old one, also in the same Python workers.
    other = scorer(seed=1, units=1)
    other.save(folder / "model.keras")
    again = predict(df.coalesce(1), str(folder / "model.keras")).collect()
    expected = other.predict(features_of(np.arange(705)), verbose=0)[:, 0]
    np.testing.assert_allclose([row["prediction"] for row in again], expected, rtol=1e-5, atol=1e-6)


def test_task_that_describes_a_model_reads_all_its_rows_so_that_spark_reuses_the_python_worker(
    folder: Path,
) -> None:
    scorer().save(folder / "described.keras")
    rows = iter([pa.record_batch([[0]], ["id"])])
    (told,) = DescribeTask(read_model(folder / "described.keras"))(rows)
    assert [tensor["name"] for tensor in json.loads(told.column(0)[0].as_py())["inputs"]] == ["features"]
    assert next(rows, None) is None


def test_predict_leaves_the_environment_of_its_python_workers_unchanged_for_later_tasks(
    spark: Any, folder: Path
) -> None:
    def of_worker(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            yield pa.record_batch([["tensorflow" in sys.modules], [sorted(os.environ)]], ["used", "names"])

    scorer().save(folder / "guest.keras")
    df = df_with_partitions(spark, [5, 5])
    predict(df, folder / "guest.keras").collect()
    seen = df.mapInArrow(of_worker, "used boolean, names array<string>").where("used").collect()
    assert seen
    assert [set(row["names"]) & {"KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"} for row in seen] == [set()] * len(
        seen
    )


def test_predict_with_several_inputs_and_outputs_takes_them_by_name(spark: Any, folder: Path) -> None:
    age, words = keras.Input((1,), name="age"), keras.Input((2,), name="marks")
    both = keras.layers.Concatenate()([age, words])
    outputs = {"total": keras.layers.Dense(1)(both), "twice": both * 2.0}
    model = keras.Model({"age": age, "marks": words}, outputs)
    model.save(folder / "two.keras")
    model.export(str(folder / "saved"), verbose=False)
    df = spark.createDataFrame([(1.0, [2.0, 3.0]), (4.0, [5.0, 6.0])], "age double, marks array<float>")

    made = predict(df.coalesce(1), folder / "two.keras").collect()

    assert [row["prediction_twice"] for row in made] == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    assert all(isinstance(row["prediction_total"], float) for row in made)
    saved = predict(df.coalesce(1), folder / "saved", output="y").collect()
    assert [row["y_twice"] for row in saved] == [row["prediction_twice"] for row in made]


def test_predict_from_a_run_knows_columns_classes_and_scale(spark: Any, folder: Path) -> None:
    run = folder / "run"
    (run / "export").mkdir(parents=True)
    (run / "config.yaml").touch()
    model = scorer(units=1, activation="sigmoid")
    model.save(run / "export" / "model.keras")
    columns = Columns((Column("raw", dtype="uint8", scale=255),), Column("label"), num_classes=2)
    Described(columns, ("cat", "dog")).write(run / "export")
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 4) * 6
    rows = [(bytearray(row.tobytes()), f"é{index}") for index, row in enumerate(pixels)]
    df = spark.createDataFrame(rows, "raw binary, name string").coalesce(1)

    made = predict(df, run).collect()

    chance = model.predict(pixels / np.float32(255), verbose=0)[:, 0]
    assert [row["prediction"] for row in made] == ["dog" if p > 0.5 else "cat" for p in chance]
    np.testing.assert_allclose([row["probability"][1] for row in made], chance, atol=1e-6)
    assert made[3]["name"] == "é3"
    write_signature(model, run / "export")
    stage = KerasModel.from_run(run)
    assert (stage.classes, stage.getLabelCol()) == (["cat", "dog"], "label")
    staged = stage.transform(df).collect()
    assert [row["prediction"] for row in staged] == [row["prediction"] for row in made]
    stage.write().overwrite().save(str(folder / "stage"))
    assert KerasModel.load(str(folder / "stage")).transform(df).collect() == staged
    newer = json.loads((run / "export" / "prediction.json").read_text()) | {"format": FORMAT + 1}
    (run / "export" / "prediction.json").write_text(json.dumps(newer))
    with pytest.raises(ConfigError, match="format 2: a newer tfspark has saved it"):
        predict(df, run)


def test_predict_when_features_are_null_follows_handle_invalid(spark: Any, folder: Path) -> None:
    scorer().save(folder / "nulls.keras")
    df = spark.createDataFrame(
        [(0, [0.0] * 4), (1, None), (2, [1.0] * 4)], "id long, features array<float>"
    ).coalesce(1)
    place = folder / "nulls.keras"

    kept = predict(df, place, handle_invalid="keep").collect()
    assert [row["prediction"] is None for row in kept] == [False, True, False]
    assert [row["id"] for row in predict(df, place, handle_invalid="skip").collect()] == [0, 2]
    nothing = predict(df.where("id = 1"), place, handle_invalid="keep").collect()
    assert [tuple(row) for row in nothing] == [(1, None, None)]
    with pytest.raises(PythonException, match="column 'features' is null"):
        predict(df, place).collect()
    with pytest.raises(ConfigError, match="did you mean 'skip'"):
        predict(df, place, handle_invalid="skp")


@pytest.mark.parametrize("handle_invalid", ["keep", "skip", "error"])
def test_predict_that_decodes_tfrecords_itself_has_the_same_result_as_through_spark(
    spark: Any, folder: Path, tmp_path: Path, handle_invalid: str
) -> None:
    scorer(units=3).save(folder / "records.keras")
    register(spark)
    with_nulls = "IF(id = 11, NULL, features) AS features" if handle_invalid != "error" else "features"
    df_with_partitions(spark, [5, 0, 700, 40]).selectExpr(
        "id", with_nulls, "concat('row ', id) AS text"
    ).write.format("tfrecord").mode("append").save(str(tmp_path / "records"))
    df = spark.read.format("tfrecord").load(str(tmp_path / "records")).where("id > 3")
    computed = df.where("pmod(id, 1) = 0")  # A filter that Spark must evaluate.

    def predicted(rows: Any) -> Any:
        return predict(rows, folder / "records.keras", features="features", handle_invalid=handle_invalid)

    made, through_spark = predicted(df), predicted(computed)

    assert "BatchScan" not in made._jdf.queryExecution().toString()
    assert "BatchScan" in through_spark._jdf.queryExecution().toString()
    assert made.schema == through_spark.schema
    assert partition_sizes(made.select("id")) == partition_sizes(through_spark.select("id"))
    rows = through_spark.collect()
    assert_same_predictions(made.collect(), rows)
    assert_same_predictions(made.coalesce(1).collect(), rows)
    assert_same_predictions(
        made.where("id = 500").select("prediction", "text").collect(),
        [Row(prediction=row["prediction"], text="row 500") for row in rows if row["id"] == 500],
    )


def test_predict_when_a_tfrecord_file_has_changed_names_it(spark: Any, folder: Path, tmp_path: Path) -> None:
    scorer().save(folder / "changed.keras")
    register(spark)
    place = tmp_path / "records"
    df_with_partitions(spark, [20]).select("features").write.format("tfrecord").mode("append").save(
        str(place)
    )
    made = predict(spark.read.format("tfrecord").load(str(place)), folder / "changed.keras")
    (file,) = place.glob("part-*")
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(PythonException, match=f"expected .*{file.name} as Spark listed it"):
        made.collect()


def test_predict_when_the_model_or_a_column_name_is_wrong_says_so(spark: Any, folder: Path) -> None:
    scorer().save(folder / "plain.keras")
    df = spark.range(1).selectExpr("array(1f, 2f, 3f, 4f) AS x", "id")
    with pytest.raises(ConfigError, match="got nothing that is none of them"):
        predict(df, folder / "absent.keras")
    with pytest.raises(ConfigError, match="expected columns called as the model's inputs"):
        predict(df, folder / "plain.keras")
    with pytest.raises(ConfigError, match="expected no column 'id' in the data"):
        predict(df, folder / "plain.keras", features="x", output="id")


def test_loaded_models_when_full_drop_the_least_recently_used(folder: Path) -> None:
    for number in range(3):
        scorer(number).save(folder / f"{number}.keras")
    files = [read_model(folder / f"{number}.keras") for number in range(3)]
    made: list[str] = []
    models = LoadedModels(most=2)
    for which in (0, 1, 0, 2, 0, 1):
        models.get(files[which], lambda model, which=which: made.append(str(which)) or model)
    assert made == ["0", "1", "2", "1"]
    assert of_keras(files[0].keras_file).digest == files[0].digest != files[1].digest


def test_predict_runs_one_spark_job_for_each_model_to_find_its_inputs_and_outputs(
    spark: Any, folder: Path
) -> None:
    scorer(seed=7).save(folder / "asked.keras")
    df = df_with_partitions(spark, [3]).select("features")

    def jobs() -> list[int]:
        return sorted(spark.sparkContext.statusTracker().getJobIdsForGroup())

    before = jobs()
    predict(df, folder / "asked.keras")
    described = jobs()
    predict(df, folder / "asked.keras")
    assert (len(described), jobs()) == (len(before) + 1, described)
