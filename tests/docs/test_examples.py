"""Every program below ``examples`` runs to its end on `local[4]` and prints what it promises."""

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
    """Two hundred images of noise, brighter by the class, in the form of mnist_5k."""
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

    assert len(numbers_behind("loss per epoch", result.stdout)) == 2
    assert 0 <= numbers_behind("test accuracy", result.stdout)[0] <= 1
    assert (tmp_path / "run" / "export" / "model.keras").is_file()
    assert (tmp_path / "run" / "logs" / "worker-1.log").is_file()


def test_main_fun_fit_learns_the_same_on_both_workers() -> None:
    result = run_driver(
        "local[4]", EXAMPLES / "main_fun_fit.py", "--epochs", "3", "--rows", "4000", timeout_s=TIMEOUT_S
    ).check()

    first, second = (numbers_behind(f"worker {index}", result.stdout) for index in (0, 1))
    assert first == second
    assert len(first) == 3
    assert first[-1] > 0.8


def test_submit_parquet_without_data_makes_its_own_and_learns() -> None:
    result = run_driver(
        "local[4]", EXAMPLES / "submit_parquet.py", "--epochs", "2", timeout_s=TIMEOUT_S
    ).check()

    losses = numbers_behind("loss per epoch", result.stdout)
    assert losses[1] < losses[0]


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))

    assert tested == {path.name for path in EXAMPLES.glob("*.py")}


def numbers_behind(words: str, output: str) -> list[float]:
    """Return the numbers on the line that begins with these words."""
    (line,) = [line for line in output.splitlines() if line.startswith(words)]
    return [float(number) for number in re.findall(r"\d+\.?\d*", line.removeprefix(words))]
