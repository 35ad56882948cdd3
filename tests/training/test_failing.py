"""A trainer's report of the exception that ends it."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import keras
import pytest
import tensorflow as tf

from tfspark.errors import DataError
from tfspark.protocol.failures import FailureKind
from tfspark.training.failing import describe, noting_what_was_given

LABEL, WEIGHT = keras.KerasTensor((32,), "int64"), keras.KerasTensor((32,), "float32")


@pytest.mark.parametrize(
    ("features", "words"),
    [
        pytest.param(
            keras.KerasTensor((32, 28, None), "uint8"), "features uint8 (batch, 28, any) and", id="one column"
        ),
        pytest.param(
            {"a": keras.KerasTensor((32,), "float32"), "b": keras.KerasTensor((32, 3), "float32")},
            "features {'a': float32 (batch), 'b': float32 (batch, 3)} and label int64 (batch). Several feature columns "
            "are a dictionary: name the model's inputs as the columns, make one array column of them (in Spark: "
            "array(a, b)), or write a function features(batch).",
            id="several columns",
        ),
    ],
)
def test_error_of_a_model_describes_the_inputs_of_the_model(features: object, words: str) -> None:
    model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(4)])
    with pytest.raises(ValueError) as caught, noting_what_was_given((features, LABEL, WEIGHT)):  # noqa: PT011
        model.compute_output_spec([features, features])
    told = describe(caught.value)
    assert words in told["traceback"]
    assert words not in told["cause"]


def test_error_of_a_model_keeps_its_message_for_inputs_of_any_shape() -> None:
    given = tf.TensorSpec(None, tf.float32), LABEL, WEIGHT
    with pytest.raises(ValueError, match=r"^the model's own") as caught, noting_what_was_given(given):
        raise ValueError("the model's own")
    assert "features float32 of any shape and" in describe(caught.value)["traceback"]


def test_error_of_a_trainer_whose_directory_was_removed_is_reported_as_a_lost_executor(
    tmp_path: Path,
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shutil.rmtree(scratch)
    for error in (FileNotFoundError(2, "none", str(scratch / "part.npz")), RuntimeError("no such part")):
        told = describe(error, str(scratch))
        assert (told["kind"], FailureKind(told["kind"]).is_transient) == ("lost", True)
        assert told["cause"].startswith(f"its directory {scratch} was removed, as Spark does")


def test_error_of_a_trainer_whose_files_are_removed_before_their_directory_is_reported_as_lost(
    tmp_path: Path,
) -> None:
    removal = threading.Timer(0.3, shutil.rmtree, [tmp_path])
    removal.start()
    assert describe(FileNotFoundError(2, "none", f"{tmp_path}/part.npz"), str(tmp_path))["kind"] == "lost"
    removal.join()


@pytest.mark.parametrize("name", ["epoch-1.keras", "/elsewhere/rows"])
def test_missing_file_of_the_program_is_reported_as_an_exception(tmp_path: Path, name: str) -> None:
    error = FileNotFoundError(2, "none", str(tmp_path / name))
    told = describe(error, str(tmp_path))
    assert (told["kind"], told["cause"]) == ("exception", f"FileNotFoundError: {error}")


def test_error_of_rows_is_reported_as_a_data_error_without_a_directory() -> None:
    assert describe(DataError("row 3: a null"))["kind"] == "data"
