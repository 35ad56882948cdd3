"""``tfspark run`` from YAML to the run directory, in a separate process on ``local[4]``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs.pages import REPOSITORY, Page
from experiment.runs import Images, run_directory, tfspark, tfspark_run
from pyspark.sql import SparkSession
from support.processes import json_of_python

from tfspark.experiment.config import load_config
from tfspark.tfrecord import register

IMAGES = Images()
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Run:
    config: Path
    directory: Path
    stdout: str

    def json(self, name: str) -> Any:
        return json.loads((self.directory / name).read_text())

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two workers, two epochs over TFRecord files, with validation and test rows."""
    register(spark)
    directory = tmp_path_factory.mktemp("run")
    path = IMAGES.save(spark, directory / "images", "tfrecord")
    result = tfspark_run(directory, IMAGES.config(path)).check()
    return Run(directory / "experiment.yaml", run_directory(directory), result.stdout)


def test_run_directory_after_a_run_has_all_files_and_the_docs_name_them(run: Run) -> None:
    found = {path.relative_to(run.directory).as_posix() for path in run.directory.rglob("*")}
    expected = {
        "config.yaml", "versions.json", "metrics.jsonl", "run.log", "results.json",
        "logs/worker-0.log", "logs/worker-1.log",
        "checkpoints/epoch-0001.keras", "checkpoints/epoch-0002.keras",
        "loss.png", "accuracy.png", "confusion_matrix.png", "roc.png",
        "export/model.keras", "export/saved_model/saved_model.pb",
        "export/prediction.json", "export/signature.json", "export/module.py",
    }  # fmt: skip
    assert expected - found == set()
    assert not [name for name in found if "partial" in name]
    page = Page(REPOSITORY / "docs/run-directory.md")
    documented = re.findall(r"`([^`]+)`", " ".join(page.first_cells("file")))
    files = [
        path.relative_to(run.directory).as_posix() for path in run.directory.rglob("*") if path.is_file()
    ]
    unnamed = [name for name in files if not any(fnmatch(name, pattern) for pattern in documented)]
    assert unnamed == ["accuracy.png"], "there is one picture for each metric"


@pytest.mark.slow
def test_run_when_the_workers_parse_the_examples_counts_the_same_rows(run: Run, tmp_path: Path) -> None:
    config = IMAGES.config(
        str(run.config.parent / "images"),
        data__examples="byteArray",
        data__options={"recordType": "ByteArray"},
    )
    del config["data"]["schema"]
    tfspark_run(tmp_path, config).check()
    results = json.loads((run_directory(tmp_path) / "results.json").read_text())
    assert set(results["test"]) == set(run.json("results.json")["test"])
    assert [sum(row) for row in results["confusion_matrix"]] != [0, 0, 0]
    assert sum(map(sum, results["confusion_matrix"])) == 24


def test_config_yaml_after_a_run_loads_back_as_the_same_experiment(run: Run) -> None:
    assert load_config(run.directory / "config.yaml") == load_config(run.config)


def test_versions_after_a_run_name_python_and_the_packages(run: Run) -> None:
    versions = run.json("versions.json")
    assert {"python", "pyspark", "keras", "pyarrow", "numpy"} <= set(versions)


def test_metrics_after_a_run_have_both_epochs_and_one_test(run: Run) -> None:
    epochs = [event for event in run.events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2]
    assert [event["rows"] for event in epochs] == [72, 72]
    assert all({"loss", "accuracy", "val_loss", "val_accuracy"} <= set(event) for event in epochs)
    assert len([event for event in run.events if event["event"] == "test"]) == 1


def test_results_after_a_run_agree_with_the_metrics(run: Run) -> None:
    results = run.json("results.json")
    last = [event for event in run.events if event["event"] == "epoch"][-1]
    tested = next(event for event in run.events if event["event"] == "test")
    assert results["train"]["loss"] == last["loss"]
    assert results["validation"]["loss"] == last["val_loss"]
    assert results["test"]["loss"] == tested["loss"]
    assert 0 < results["test"]["auc_macro"] <= 1
    assert sum(map(sum, results["confusion_matrix"])) == 24
    digests = {node["weights_sha256"] for node in results["nodes"].values()}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["loss.png", "accuracy.png", "confusion_matrix.png", "roc.png"])
def test_pictures_after_a_run_are_png_files(run: Run, name: str) -> None:
    picture = (run.directory / name).read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) > 5000


def test_predict_and_evaluate_of_a_run_agree_with_keras(
    run: Run, spark: SparkSession, tmp_path: Path
) -> None:
    images = str(run.config.parent / "images")
    output = tmp_path / "predicted"
    arguments = [
        "predict",
        str(run.directory),
        "--data",
        images,
        "--output",
        str(output),
        "--output-format",
        "json",
    ]
    done = tfspark(tmp_path, *arguments).check()
    assert f"120 rows in {output}" in done.stdout
    assert "oneDNN" not in done.stderr  # A start-up message of TensorFlow.
    rows = spark.read.schema("image BINARY, label LONG, prediction LONG, probability ARRAY<DOUBLE>").json(
        str(output)
    )
    found = rows.collect()

    import keras

    model = keras.saving.load_model(run.directory / "export" / "model.keras")
    pixels = np.stack([np.frombuffer(row["image"], np.uint8).reshape(IMAGES.shape) for row in found])
    chances = model.predict(pixels / np.float32(255), verbose=0)
    np.testing.assert_allclose([row["probability"] for row in found], chances, atol=1e-5)
    assert [row["prediction"] for row in found] == chances.argmax(axis=1).tolist()

    arrays = (pixels / np.float32(255)).reshape(len(pixels), -1)
    table = spark.createDataFrame([(array.tolist(),) for array in arrays], "x array<float>")
    table.coalesce(1).write.parquet(str(tmp_path / "rows.parquet"))
    arguments = ["predict", str(run.directory / "export" / "model.keras"), "--data", "rows.parquet"]
    arguments += ["--features", "x", "--output", "alone", "--output-format", "csv"]
    tfspark(tmp_path, *arguments).check()
    told = spark.read.option("header", "true").csv(str(tmp_path / "alone")).collect()
    alone = [json.loads(row["prediction"]) for row in told]
    np.testing.assert_allclose(alone, chances, atol=1e-5)

    arguments = ["evaluate", str(run.directory), "--data", images, "--output", str(tmp_path / "results")]
    done = tfspark(tmp_path, *arguments).check()
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    labels = np.array([row["label"] for row in found])
    loss, accuracy = model.evaluate(pixels / np.float32(255), labels, verbose=0)
    assert results["test"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert results["test"]["accuracy"] == pytest.approx(accuracy)
    assert np.sum(results["confusion_matrix"]) == 120
    assert {"confusion_matrix.png", "roc.png"} <= {path.name for path in (tmp_path / "results").iterdir()}
    assert (tmp_path / "results" / "pictures" / "saliency.png").read_bytes().startswith(PNG)
    assert re.search(r"^accuracy +\d\.\d{4}$", done.stdout, re.MULTILINE)


def test_tensorboard_after_a_run_reads_every_epoch(run: Run) -> None:
    code = (
        "import sys, json\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1]).Reload()\n"
        "print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)]\n"
        "                  for tag in events.Tags()['scalars']}))\n"
    )
    scalars = json_of_python("-c", code, str(run.directory / "tensorboard"), timeout_s=300)
    losses = [event["loss"] for event in run.events if event["event"] == "epoch"]
    assert {"epoch_loss", "epoch_accuracy", "epoch_val_loss", "epoch_val_accuracy"} <= set(scalars)
    assert scalars["epoch_loss"] == [[1, pytest.approx(losses[0])], [2, pytest.approx(losses[1])]]


def test_console_of_a_run_shows_each_phase_and_where_the_results_are(run: Run) -> None:
    for phrase in ("Spark session", "reservation", "epoch 1/2", "epoch 2/2", "export and stop"):
        assert phrase in run.stdout
        assert phrase in (run.directory / "run.log").read_text()
    assert f"results in {run.directory}" in run.stdout.replace("\n", "")


def test_run_on_different_images_in_parquet_needs_only_different_yaml(
    spark: SparkSession, tmp_path: Path
) -> None:
    images = Images(height=20, width=16, channels=3, num_classes=4, num_rows=100)
    path = images.save(spark, tmp_path / "images", "parquet")
    config = images.config(
        path,
        data__format="parquet",
        data__label={"column": "label", "classes": "infer"},
        train__class_weights="balanced",
        train__optimizer={"name": "sgd", "momentum": 0.9},
        train__learning_rate=0.01,
        cluster__executors=1,
        export__formats=["keras"],
    )
    del config["data"]["schema"], config["model"]["params"]["num_classes"]
    del config["model"]["params"]["input_shape"]

    tfspark_run(tmp_path, config).check()

    directory = run_directory(tmp_path)
    results = json.loads((directory / "results.json").read_text())
    assert [len(row) for row in results["confusion_matrix"]] == [4] * 4
    exported = sorted(path.name for path in (directory / "export").iterdir())
    assert exported == ["model.keras", "module.py", "prediction.json", "signature.json"]


TABULAR = """
import keras

def build_model(params):
    inputs = {name: keras.Input((), name=name) for name in ("width", "height")}
    columns = [keras.layers.Reshape((1,))(inputs[name]) for name in ("width", "height")]
    hidden = keras.layers.Dense(8, activation="relu")(keras.layers.Concatenate()(columns))
    outputs = keras.layers.Dense(params["num_classes"], activation="softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


@pytest.mark.slow
def test_run_on_csv_with_texts_as_labels_takes_them_in_the_order_listed(tmp_path: Path) -> None:
    (tmp_path / "tabular.py").write_text(TABULAR)
    kinds = ["small", "large"]
    lines = [f"{(i % 3) * 9 + i / 100},{(i % 3) * 5},{kinds[min(i % 3, 1)]}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("width,height,kind\n" + "\n".join(lines) + "\n")
    config = {
        "name": "boxes",
        "model": {"module": "tabular.py"},
        "data": {
            "format": "csv",
            "path": "rows.csv",
            "schema": "width FLOAT, height FLOAT, kind STRING",
            "options": {"header": True},
            "features": {"width": None, "height": None},
            "label": {"column": "kind", "classes": kinds},
            "batch_size": 10,
            "test": 0.5,
        },
        "cluster": {"master": "local[4]", "executors": 2},
        "train": {"epochs": 2, "callbacks": {"early_stopping": {"monitor": "loss"}}},
    }

    tfspark_run(tmp_path, config).check()

    directory = run_directory(tmp_path)
    results = json.loads((directory / "results.json").read_text())
    small, large = map(sum, results["confusion_matrix"])
    assert small < large, "a third of the rows is small, which is listed first"
    assert small + large == 30
    assert results["validation"] is None
    assert (directory / "export/saved_model/saved_model.pb").is_file()


CLASSIFIER = """
import keras

def build_model(params):
    inputs = keras.Input(params["input_shape"])
    hidden = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = keras.layers.Dense(params["num_classes"], activation="softmax")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


def test_run_with_separate_test_rows_finds_the_texts_of_the_labels_itself(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "classifier.py").write_text(CLASSIFIER)
    images = Images(height=7, width=9, channels=4, num_classes=5, num_rows=60)
    path = images.save(spark, tmp_path / "images", "parquet")
    named = "element_at(array('red', 'green', 'blue', 'black', 'white'), int(label) + 1) AS colour"
    rows = spark.read.parquet(path).selectExpr("image", named)
    rows.write.json(str(tmp_path / "test"))
    rows.write.orc(str(tmp_path / "train"))
    config = images.config(
        str(tmp_path / "train"),
        model__module="classifier.py",
        data__format="orc",
        data__schema="image BINARY, colour STRING",
        data__label={"column": "colour", "classes": "infer"},
        data__test={
            "path": str(tmp_path / "test"),
            "format": "json",
            "schema": "image BINARY, colour STRING",
        },
        cluster__executors=1,
        export__formats=[],
    )
    del config["model"]["params"]

    tfspark_run(tmp_path, config).check()

    results = json.loads((run_directory(tmp_path) / "results.json").read_text())
    assert [sum(row) for row in results["confusion_matrix"]] == [12] * 5


REGRESSION = """
import keras

def build_model(params):
    model = keras.Sequential([keras.Input(params["input_shape"]), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model
"""


@pytest.mark.slow
def test_run_on_labels_that_are_numbers_trains_a_regression(tmp_path: Path) -> None:
    (tmp_path / "regression.py").write_text(REGRESSION)
    (tmp_path / "rows.csv").write_text("".join(f"{i / 50};{i / 25}\n" for i in range(50)))
    config = {
        "name": "line",
        "model": {"module": "regression.py"},
        "data": {
            "format": "csv",
            "path": "rows.csv",
            "schema": "x FLOAT, y FLOAT",
            "options": {"sep": ";"},
            "features": {"x": {"shape": [1]}},
            "label": {"column": "y"},
            "batch_size": 5,
            "validation": 0.2,
        },
        "cluster": {"master": "local[4]"},
        "train": {"epochs": 3},
        "export": {"formats": []},
    }

    tfspark_run(tmp_path, config).check()

    results = json.loads((run_directory(tmp_path) / "results.json").read_text())
    assert results["confusion_matrix"] is None
    assert results["validation"]["mae"] < 1.0
    assert results["validation"].keys() == results["train"].keys() == {"loss", "mae"}


SEVERAL_CLASSES = """
def build_model(params):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(params["num_classes"], "sigmoid")])
    model.compile("sgd", "binary_crossentropy")
    return model
"""


@pytest.mark.slow
def test_run_on_rows_with_several_classes_scores_each_class(tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(SEVERAL_CLASSES)
    sql = "SELECT array(id % 2, 1.0) AS x, transform(sequence(1, 3), k -> float(id % k = 0)) AS y FROM range(60)"
    config = {
        "name": "several",
        "model": {"module": "several.py", "params": {"num_classes": 3}},
        "data": {
            "sql": sql,
            "features": {"x": {"dtype": "float32"}},
            "label": {"column": "y"},
            "batch_size": 5,
            "test": {"sql": sql},
        },
        "cluster": {"master": "local[4]"},
        "train": {"epochs": 2},
        "export": {"formats": []},
    }

    tfspark_run(tmp_path, config).check()

    run = run_directory(tmp_path)
    results = json.loads((run / "results.json").read_text())
    assert [[sum(row) for row in matrix] for matrix in results["confusion_matrix"]] == [
        [0, 60],
        [30, 30],
        [40, 20],
    ]
    assert list(results["classes"]) == ["0", "1", "2"]
    f1 = [scores["f1"] for scores in results["classes"].values()]
    assert results["test"]["f1_macro"] == pytest.approx(sum(f1) / 3)
    assert (run / "roc.png").is_file()
    assert not (run / "confusion_matrix.png").exists()


@pytest.mark.slow
def test_run_with_an_evaluator_keeps_its_validation_metrics(spark: SparkSession, tmp_path: Path) -> None:
    register(spark)
    path = IMAGES.save(spark, tmp_path / "images", "tfrecord")
    config = IMAGES.config(path, cluster__evaluator=True, data__test=0.0, export__formats=[])

    tfspark_run(tmp_path, config).check()

    results = json.loads((run_directory(tmp_path) / "results.json").read_text())
    validated = results["nodes"]["evaluator 0"]
    assert validated["epochs"] == [1, 2]
    assert results["validation"]["loss"] == pytest.approx(validated["history"]["val_loss"][-1])


def test_run_with_a_parameter_server_needs_only_two_keys(spark: SparkSession, tmp_path: Path) -> None:
    register(spark)
    path = IMAGES.save(spark, tmp_path / "images", "tfrecord")
    config = IMAGES.config(path, cluster__executors=3, cluster__ps=1)

    tfspark_run(tmp_path, config).check()

    directory = run_directory(tmp_path)
    results = json.loads((directory / "results.json").read_text())
    assert set(results["nodes"]) == {"worker 0", "worker 1", "ps 0", "chief 0"}
    rows = zip(*(results["nodes"][f"worker {i}"]["rows"] for i in range(2)), strict=True)
    assert {sum(of_epoch) for of_epoch in rows} == set(results["nodes"]["chief 0"]["rows"])
    assert results["validation"].keys() == results["train"].keys()
    assert sum(map(sum, results["confusion_matrix"])) > 0
    assert (directory / "export" / "model.keras").is_file()


def test_run_when_workers_read_the_files_themselves_uses_every_row(
    spark: SparkSession, tmp_path: Path
) -> None:
    register(spark)
    path = IMAGES.save(spark, tmp_path / "images", "tfrecord")
    config = IMAGES.config(
        path, cluster__input_mode="tensorflow", data__validation={"path": path}, data__test={"path": path}
    )

    tfspark_run(tmp_path, config).check()

    directory = run_directory(tmp_path)
    results = json.loads((directory / "results.json").read_text())
    assert sum(map(sum, results["confusion_matrix"])) == IMAGES.num_rows
    assert results["validation"]["loss"] == pytest.approx(results["test"]["loss"], rel=1e-6)
    epochs = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert epochs[0]["rows"] == IMAGES.num_rows
