"""The convolutional classifiers of ``models/cnn.py``."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from models import cnn


@pytest.mark.parametrize("architecture", cnn.ARCHITECTURES)
def test_build_model_when_image_has_the_least_size_gives_probabilities(architecture: str) -> None:
    size = cnn.LEAST_SIZE[architecture]
    shape = [size, size + 1, 3]
    model = cnn.build_model({"architecture": architecture, "input_shape": shape, "num_classes": 4})
    probabilities = model.predict(np.zeros((2, *shape), np.float32), verbose=0)
    assert probabilities.shape == (2, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("architecture", cnn.ARCHITECTURES)
def test_build_model_when_image_is_too_small_gives_the_least_size(architecture: str) -> None:
    size = cnn.LEAST_SIZE[architecture]
    with pytest.raises(ValueError, match=f"at least {size} x {size} pixels"):
        cnn.build_model({"architecture": architecture, "input_shape": [size - 1, size, 1]})


def test_build_model_when_called_bare_is_compiled_for_mnist() -> None:
    model = cnn.build_model()
    assert model.input_shape == (None, 28, 28, 1)
    assert model.loss == "sparse_categorical_crossentropy"
    assert isinstance(model.optimizer, keras.optimizers.Adam)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"droput": 0.1}, "unknown model parameter 'droput': did you mean 'dropout'"),
        ({"zzz": 1}, "unknown model parameter 'zzz': known are architecture,"),
        ({"architecture": "lent"}, r"architecture must be one of lenet.*Received: architecture='lent'"),
        ({"num_classes": 1}, "num_classes must be a whole number, 2 or more. Received: num_classes=1"),
        ({"num_classes": True}, "num_classes must be"),
        ({"filters": 0}, "filters must be a whole number, 1 or more"),
        ({"dropout": 1}, r"dropout must be a number in \[0, 1\)"),
        ({"shift": -0.1}, r"shift must be a number in \[0, 1\)"),
        ({"weight_decay": -1}, "weight_decay must be a number, 0 or more"),
        ({"learning_rate": 0}, "learning_rate must be a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number above 0. Received: learning_rate='fast'"),
        (
            {"input_shape": [28, 28]},
            "input_shape must be three whole numbers above 0: height, width, channels",
        ),
    ],
)
def test_build_model_when_parameter_wrong_says_what_it_must_be(
    params: dict[str, object], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        cnn.build_model(params)


def test_build_model_when_weight_decay_given_adds_a_penalty_per_kernel() -> None:
    assert not cnn.build_model().losses
    assert len(cnn.build_model({"weight_decay": 1e-4}).losses) == 3


def test_build_model_when_shifted_predicts_the_same_every_time() -> None:
    model = cnn.build_model({"shift": 0.5})
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    np.testing.assert_array_equal(model.predict(images, verbose=0), model.predict(images, verbose=0))


def test_model_when_saved_as_json_is_the_same_network() -> None:
    model = cnn.build_model()
    again = keras.models.model_from_json(model.to_json())
    assert json.loads(again.to_json()) == json.loads(model.to_json())


def test_model_when_trained_on_a_few_images_learns_them() -> None:
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((20, 12, 12, 1), np.float32)
    labels = np.arange(20) % 4
    params = {
        "architecture": "simple",
        "input_shape": (12, 12, 1),
        "num_classes": 4,
        "dropout": 0,
        "filters": 8,
    }
    model = cnn.build_model(params)
    model.fit(images, labels, epochs=60, batch_size=20, verbose=0)
    assert model.evaluate(images, labels, verbose=0)[1] > 0.9
