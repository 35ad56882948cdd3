"""The programs and commands of the documentation run in a fresh environment and from another directory.

They run outside the checkout and with very few environment variables. The tests prepare what a page expects from its
reader, for example files or a session. Each snippet of a page continues after the snippet before it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pages import REPOSITORY, Page
from support.environment import bare_environment
from support.processes import Finished, run_to_end
from support.standalone import StandaloneCluster

from tfspark import tfrecord

TIMEOUT_S = 580
SESSION = """
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[4]").config("spark.ui.enabled", "false").getOrCreate()
"""
NOT_RUN = {
    (
        "docs/models.md",
        1,
    ): "needs a trained model; tests/models/test_autoencoder.py does the same",
    ("docs/migrating.md", 2): "only a function; tests/migrate/mnist_spark.py is the whole program",
}
"""Snippets that no test here runs, and why."""


def run_program(code: str, folder: Path) -> Finished:
    """Run a program from another directory; its paths below /tmp and /data are moved below `folder`."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    program = folder / "program.py"
    program.write_text(re.sub(r'"/(tmp|data)/', rf'"{folder}/\1/', code))
    return run_to_end(
        [sys.executable, str(program)],
        env=bare_environment(folder),
        mark=("HOME", str(folder)),
        cwd=elsewhere,
        timeout_s=TIMEOUT_S,
    ).check()


def snippet(page: str, number: int) -> str:
    return Page(REPOSITORY / page).blocks("python")[number - 1]


def test_every_snippet_of_python_is_run_by_a_test() -> None:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    there = {
        (Page(path).name, number)
        for path in pages
        for number, _ in enumerate(Page(path).blocks("python"), start=1)
    }
    alone = {("README.md", 1), ("docs/ml.md", 1), ("docs/predictions.md", 1)}
    run = {*alone, *((page, number) for page, numbers in QUICK + SLOW for number in numbers)}
    assert there == run | NOT_RUN.keys()
    assert not run & NOT_RUN.keys()


def test_program_of_the_readme_runs_and_exports(tmp_path: Path) -> None:
    finished = run_program(snippet("README.md", 1), tmp_path)

    assert (tmp_path / "elsewhere" / "runs" / "first" / "export" / "model.keras").is_file()
    assert "'accuracy'" in finished.stdout
    assert "[Stage 0:" not in finished.stderr, "Spark's progress bar hides what the program prints"


@pytest.mark.slow
def test_programs_of_the_pages_ml_and_predictions_run(tmp_path: Path) -> None:
    finished = run_program(snippet("docs/ml.md", 1) + "spark.stop()\n", tmp_path)
    assert re.search(r"^0\.[89]\d+$|^1\.0$", finished.stdout, re.MULTILINE), finished.stdout
    assert "'accuracy'" in finished.stdout

    (tmp_path / "tmp").mkdir()
    finished = run_program(snippet("docs/predictions.md", 1) + "spark.stop()\n", tmp_path)
    assert "['id', 'point', 'prediction']" in finished.stdout


QUICK = [
    ("docs/data-types.md", (1, 2, 3)),
    ("docs/tfrecord.md", (1, 2)),
    ("docs/migrating.md", (1,)),
    ("docs/models.md", (2,)),
]
QUICK_BEFORE = """
from pathlib import Path

import numpy as np
from PIL import Image
from tfspark import tfrecord

Path("photos").mkdir()
Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("photos/a.jpg")
tfrecord.register(spark)
df = spark.range(20).selectExpr("array(float(id), 1f) AS image", "int(id % 2) AS label")
df.write.format("tfrecord").mode("append").save("/data/train")
"""
QUICK_AFTER = """
import tensorflow as tf

assert files.count() == 1
found = features({"today": tf.constant([3]), "born": tf.constant([1]), "words": tf.ragged.constant([["a", "b"]])})
assert found["age"].shape == (1, 1) and found["words"].shape == (1, 2), found
"""


@pytest.mark.slow
def test_snippets_without_a_cluster_run(tmp_path: Path) -> None:
    (_, types), (_, records), (_, migrating), (_, models) = QUICK
    first, second, third = (snippet("docs/data-types.md", number) for number in types)
    code = [
        SESSION,
        QUICK_BEFORE,
        first,
        second,
        QUICK_AFTER,
        third,
        "assert records.columns == ['byteArray'] and records.count() == 20",
        *(snippet("docs/tfrecord.md", number) for number in records),
        "assert df.count() == 20 and schema.names == ['image', 'label']",
        *(snippet("docs/migrating.md", number) for number in migrating),
        *(snippet("docs/models.md", number) for number in models),
        "assert (p.units, p.sizes, p.dropout) == (64, (8, 8), 0.5)",
        "spark.stop()",
    ]
    run_program("\n".join(code), tmp_path)


SLOW = [("docs/python-api.md", tuple(range(1, 12)))]
STREAM_BEFORE = """
import json
from pathlib import Path


def clicks_model(params):
    import keras

    inputs = {name: keras.Input((1,), name=name) for name in ("x", "y")}
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(list(inputs.values()))))
    model.compile("sgd", "mse")
    return model


Path("/tmp/clicks").mkdir(parents=True)
rows = [{"x": number / 64, "y": 1.0, "label": number % 2} for number in range(64)]
Path("/tmp/clicks/a.json").write_text("\\n".join(map(json.dumps, rows)))
cluster = TFCluster.run(spark, clicks_model, None, 1)
"""


@pytest.mark.slow
def test_program_of_the_python_api_runs_snippet_by_snippet(tmp_path: Path) -> None:
    snippets = [snippet("docs/python-api.md", number) for number in range(1, 12)]
    snippets[6] = (
        STREAM_BEFORE + snippets[6] + 'print("of a stream:", cluster.shutdown()["worker 0"]["rows"])\n'
    )
    finished = run_program("\n\n".join([*snippets, "spark.stop()"]), tmp_path)

    assert "285" in finished.stdout, "the squares of 0 to 9"
    assert "of a stream: [64]" in finished.stdout
    assert re.search(r"^worker 0 \S+ ValueError: no such thing$", finished.stdout, re.MULTILINE)
    runs = tmp_path / "elsewhere" / "runs"
    assert (runs / "points" / "export" / "model.keras").is_file()
    assert (runs / "grid" / "export" / "model.keras").is_file()
    assert (runs / "hooks" / "export" / "model.weights.h5").is_file()


# --- commands ----------------------------------------------------------------------------------------


def commands(page: str, *beginnings: str) -> list[str]:
    """Return the command lines of a page with these beginnings, with continued lines joined and without comments."""
    text = "\n".join(Page(REPOSITORY / page).blocks("sh", "bash"))
    lines = [re.sub(r"\s+#.*$", "", line).strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith(beginnings)]


HERE, CHAOS, SCRIPTS = "in this file", "tests/experiment/test_chaos.py", "tests/scripts/test_scripts.py"
COMMANDS = {
    "scripts/run configs/mnist_cnn.yaml": SCRIPTS,
    "scripts/test": SCRIPTS,
    "scripts/prepare_data mnist_5k rotten_tomatoes sunspots breast_cancer digits": SCRIPTS,
    "spark-submit --master spark://host:7077 ... run experiment.yaml": HERE,
    "spark-submit --master spark://host:7077 ... train my_model.py": HERE,
    "spark-submit --master spark://127.0.0.1:7077 ... run digits.yaml": HERE,
    "spark-submit --master spark://127.0.0.1:7077 ... examples/submit_parquet.py": HERE,
    "tfspark run configs/mnist_cnn.yaml": HERE,
    "tfspark run --resume": HERE,
    "tfspark predict": "tests/experiment/test_run.py",
    "tfspark evaluate": "tests/experiment/test_run.py",
    "tfspark chaos": CHAOS,
    "spark-submit --master spark://host:7077 ... chaos": CHAOS,
    "python -m models.": "tests/models/test_alone.py",
    "spark-class org.apache.spark.deploy.": "every standalone cluster of the tests starts in this way",
    "export PYSPARK_PYTHON=": "the path depends on the machines of the reader",
    "python -m venv tfspark-env": "installs from a package index; tests/test_wheel.py installs the same",
    "tfspark-env/bin/venv-pack": "makes a file of a gigabyte, for YARN",
    "export PYSPARK_DRIVER_PYTHON=": "for YARN",
    "spark-submit --archives": "for YARN",
    "spark-submit --master yarn": "there is no YARN",
    "spark-submit --master k8s:": "there is no Kubernetes",
    "--conf spark.": "options, for executors with GPUs",
}
"""Beginning of a command line, with ``...`` for any text -> the test that runs it, or why no test does."""


def test_every_command_is_run_by_a_test_or_has_a_reason_why_not() -> None:
    pages = ["README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
    lines = {line for page in pages for line in commands(page, "") if line and line[0] != "#"}
    known = {line: [shown for shown in COMMANDS if _begins(line, shown)] for line in lines}
    assert [line for line, found in known.items() if not found] == []
    assert set(COMMANDS) == {shown for found in known.values() for shown in found}
    tests = {where for where in COMMANDS.values() if where.startswith("tests/")}
    assert all((REPOSITORY / where.split(";")[0]).is_file() for where in tests)


def _begins(line: str, shown: str) -> bool:
    first, _, then = shown.partition("...")
    return line.startswith(first.strip()) and then.strip() in line


def run_commands(lines: Sequence[str], folder: Path) -> Finished:
    """Run command lines in a shell, with this Python's programs on PATH."""
    programs = Path(sys.executable).parent
    environment = bare_environment(folder)
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{programs}{os.pathsep}{environment['PATH']}"
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "tfspark"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tfspark.cli "$@"\n')
    command.chmod(0o755)
    return run_to_end(
        ["bash", "-e", "-c", "\n".join(lines)],
        env=environment,
        mark=("HOME", str(folder)),
        cwd=folder,
        timeout_s=TIMEOUT_S,
    ).check()


@pytest.fixture
def digits(spark: Any, tmp_path: Path) -> Path:
    """Images of noise, brighter for higher classes, where the shipped configuration looks for mnist_5k."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 200)
    images = [rng.integers(0, 20 + 20 * int(label), 784, np.uint8).tobytes() for label in labels]
    tfrecord.register(spark)
    rows = spark.createDataFrame(pa.table({"image": pa.array(images, pa.binary()), "label": labels}))
    for place in ("data/mnist_5k/images", "digits"):
        rows.write.format("tfrecord").mode("append").save(str(tmp_path / place))
    return tmp_path


@pytest.mark.slow
def test_commands_of_the_readme_run_from_another_directory_and_resume(digits: Path) -> None:
    (own,) = commands("README.md", "tfspark run")
    first, second = commands("docs/guarantees.md", "tfspark run --resume")
    ended = re.sub(r"runs/\S+", '"$(ls -d runs/* | head -n 1)"', first)
    more = re.sub(r"runs/\S+", '"$(ls -d runs/* | head -n 1)"', second)
    script = [
        own.replace("cluster.executors=3", "cluster.executors=2 --set train.epochs=2"),
        "sleep 1",
        ended,
        f"if {more}; then exit 9; fi",  # This must fail, because the training has ended.
    ]
    finished = run_commands(script, digits)

    assert "epoch 2/2" in finished.stdout
    assert "all 2 epochs are trained" in finished.stdout
    assert "expected train.epochs" in finished.stderr
    assert len(list((digits / "runs").iterdir())) >= 2


MODEL = """
def build_model(params):
    import keras

    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


@pytest.mark.slow
def test_spark_submit_of_the_readme_runs(digits: Path) -> None:
    (digits / "my_model.py").write_text(MODEL)
    line = commands("README.md", "spark-submit")[1]
    line = line.replace("spark://host:7077", "local[3]").replace("hdfs:///digits", "digits")
    line = line.replace("--executors 8", "--executors 2 --set data.features.image.dtype=uint8")

    finished = run_commands([f"PYSPARK_PYTHON={sys.executable} {line}"], digits)

    assert "epoch 1/1" in finished.stdout


STANDALONE = """
name: digits
model: {module: my_model.py}
data:
  path: digits
  format: tfrecord
  schema: image BINARY, label LONG
  features: {image: {shape: [784], dtype: uint8}}
  label: {column: label, classes: 10}
  batch_size: 20
cluster: {executors: 2}
train: {epochs: 1}
"""


@pytest.mark.slow
def test_commands_for_a_standalone_cluster_run(digits: Path, standalone: StandaloneCluster) -> None:
    (digits / "my_model.py").write_text(MODEL)
    (digits / "digits.yaml").write_text(STANDALONE)
    lines = commands("docs/deployment.md", "spark-submit --master spark://127.0.0.1:7077")
    assert len(lines) == 2
    lines = [
        f"PYSPARK_PYTHON={sys.executable} "
        + line.replace("spark://127.0.0.1:7077", standalone.master_url)
        .replace("examples/", f"{REPOSITORY}/examples/")
        .replace("--data /data/rides", "")  # Without --data, the program makes its own.
        for line in lines
    ]
    finished = run_commands(lines, digits)
    assert "epoch 1/1" in finished.stdout
