"""Every program in ``examples`` runs on `local[4]` and prints the expected results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.driver import run_driver
from support.environment import REPOSITORY

from tfspark import tfrecord

EXAMPLES = REPOSITORY / "examples"
TIMEOUT_S = 400


@pytest.fixture
def digits(spark: Any, tmp_path: Path) -> Path:
    """Two hundred images of noise, brighter for higher classes, in the format of mnist_5k."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 200)
    images = [rng.integers(0, 20 + 20 * int(label), 784, np.uint8).tobytes() for label in labels]
    tfrecord.register(spark)
    rows = spark.createDataFrame(pa.table({"image": pa.array(images, pa.binary()), "label": labels}))
    rows.write.format("tfrecord").mode("append").save(str(tmp_path / "digits"))
    return tmp_path / "digits"


def test_mnist_build_model_trains_evaluates_and_exports(digits: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(digits), "--epochs", "2", "--log-dir", str(tmp_path / "run")]

    result = run_driver(
        "local[4]", EXAMPLES / "mnist_build_model.py", *arguments, timeout_s=TIMEOUT_S
    ).check()

    assert len(numbers_after("loss per epoch", result.stdout)) == 2
    assert 0 <= numbers_after("test accuracy", result.stdout)[0] <= 1
    assert (tmp_path / "run" / "export" / "model.keras").is_file()
    assert (tmp_path / "run" / "logs" / "worker-1.log").is_file()


def test_main_fun_fit_learns_the_same_on_both_workers() -> None:
    result = run_driver(
        "local[4]", EXAMPLES / "main_fun_fit.py", "--epochs", "3", "--rows", "4000", timeout_s=TIMEOUT_S
    ).check()

    first, second = (numbers_after(f"worker {index}", result.stdout) for index in (0, 1))
    assert first == second
    assert len(first) == 3
    assert first[-1] > 0.8


def test_submit_parquet_without_data_makes_its_own_and_learns() -> None:
    result = run_driver(
        "local[4]", EXAMPLES / "submit_parquet.py", "--epochs", "2", timeout_s=TIMEOUT_S
    ).check()

    losses = numbers_after("loss per epoch", result.stdout)
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_ml_cnn_digits_learns_from_libsvm_files_and_saves_its_pipeline(digits: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(digits), "--libsvm", str(tmp_path / "libsvm"), "--epochs", "2"]
    result = run_driver(
        "local[4]",
        EXAMPLES / "ml_cnn_digits.py",
        *arguments,
        "--save",
        str(tmp_path / "saved"),
        timeout_s=TIMEOUT_S,
    ).check()

    assert len(numbers_after("loss per epoch", result.stdout)) == 2
    assert 0 <= numbers_after("test accuracy", result.stdout)[0] <= 1
    assert (next((tmp_path / "saved" / "stages").glob("1_*")) / "model.keras").is_file()


@pytest.mark.slow
def test_ml_rnn_text_compares_three_classifiers(spark: Any, tmp_path: Path) -> None:
    rows = spark.range(200).selectExpr(
        "concat('a film of ', id, if(id % 2 = 0, ' good', ' bad'), ' scenes') AS text", "id % 2 AS label"
    )
    tfrecord.register(spark)
    rows.write.format("tfrecord").mode("append").save(str(tmp_path / "texts"))
    result = run_driver(
        "local[4]",
        EXAMPLES / "ml_rnn_text.py",
        *("--data", str(tmp_path / "texts"), "--epochs", "2"),
        timeout_s=TIMEOUT_S,
    ).check()

    for name in ("recurrent network on terms", "recurrent network on text", "logistic regression on terms"):
        assert 0.3 < numbers_after(name, result.stdout)[0] <= 1


@pytest.mark.slow
def test_ml_autoencoder_kmeans_clusters_codes_and_components(digits: Path) -> None:
    result = run_driver(
        "local[4]",
        EXAMPLES / "ml_autoencoder_kmeans.py",
        *("--data", str(digits), "--epochs", "2"),
        timeout_s=TIMEOUT_S,
    ).check()

    assert 0.1 < numbers_after("k-means on codes: purity", result.stdout)[0] <= 1
    assert 0.1 < numbers_after("k-means on principal components: purity", result.stdout)[0] <= 1


@pytest.fixture
def tumours(spark: Any, tmp_path: Path) -> Path:
    """Two hundred rows of 30 numbers, larger for malignant rows, in the format of breast_cancer."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    measures = rng.standard_normal((200, 30)).astype(np.float32) + labels[:, None]
    lists = pa.array(list(measures.astype(np.float32)), pa.list_(pa.float32()))
    tfrecord.register(spark)
    for part, rows in (("train", slice(0, 120)), ("test", slice(120, 200))):
        table = pa.table({"measures": lists[rows], "malignant": labels[rows]})
        place = str(tmp_path / "tumours" / "fold_1" / part)
        spark.createDataFrame(table).write.format("tfrecord").mode("append").save(place)
    return tmp_path / "tumours"


@pytest.mark.slow
def test_ml_grid_search_scores_each_setting(tumours: Path) -> None:
    result = run_driver(
        "local[4]",
        EXAMPLES / "ml_grid_search.py",
        *("--data", str(tumours), "--epochs", "2", "--folds", "2"),
        timeout_s=TIMEOUT_S,
    ).check()

    assert result.stdout.count("regParam") == 4
    assert numbers_after("test area", result.stdout)[0] > 0.8


@pytest.mark.slow
def test_ml_comparison_prints_a_line_for_each_classifier(digits: Path, tumours: Path) -> None:
    result = run_driver(
        "local[4]",
        EXAMPLES / "ml_comparison.py",
        *("--digits", str(digits), "--tumours", str(tumours), "--epochs", "1"),
        timeout_s=TIMEOUT_S,
    ).check()

    assert result.stdout.count("| digits |") == 6
    assert result.stdout.count("| tumours |") == 5


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))

    assert tested == {path.name for path in EXAMPLES.glob("*.py")}


def numbers_after(words: str, output: str) -> list[float]:
    """Return the numbers on the line that begins with these words."""
    (line,) = [line for line in output.splitlines() if line.startswith(words)]
    return [float(number) for number in re.findall(r"\d+\.?\d*", line.removeprefix(words))]
