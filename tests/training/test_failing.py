"""What an error of a model says beside Keras's own words."""

from __future__ import annotations

import keras
import pytest

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
def test_error_of_a_model_says_what_the_model_was_given(features: object, words: str) -> None:
    model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(4)])
    with pytest.raises(ValueError) as caught, noting_what_was_given((features, LABEL, WEIGHT)):  # noqa: PT011
        model.compute_output_spec([features, features])
    told = describe(caught.value)
    assert words in told["traceback"]
    assert words not in told["cause"]
