"""The convolutional classifiers of ``models/cnn.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models import cnn


@pytest.mark.parametrize("architecture", cnn.ARCHITECTURES)
def test_build_model_when_image_has_the_least_size_gives_probabilities(architecture: str) -> None:
    size = cnn.ARCHITECTURES[architecture].least_size
    shape = [size, size + 1, 3]
    params = {"architecture": architecture, "input_shape": shape, "num_classes": 4, "filters": 2}
    model = cnn.build_model(params)
    probabilities = model(np.zeros((2, *shape), np.float32)).numpy()
    assert probabilities.shape == (2, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("architecture", cnn.ARCHITECTURES)
def test_build_model_when_image_is_too_small_gives_the_least_size(architecture: str) -> None:
    size = cnn.ARCHITECTURES[architecture].least_size
    with pytest.raises(ValueError, match=f"at least {size} x {size} pixels"):
        cnn.build_model({"architecture": architecture, "input_shape": [size - 1, size, 1]})


def test_build_model_without_params_is_compiled_for_mnist() -> None:
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
        ({"multi_label": 1}, "multi_label must be true or false. Received: multi_label=1"),
        ({"resize": [8]}, "resize must be two whole numbers above 0"),
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


@pytest.mark.parametrize("architecture", cnn.ARCHITECTURES)
def test_model_when_trained_a_step_and_saved_predicts_the_same(architecture: str, tmp_path: Path) -> None:
    size = max(cnn.ARCHITECTURES[architecture].least_size, 8)
    shape = (size, size, 1)
    model = cnn.build_model({"architecture": architecture, "input_shape": shape, "filters": 2})
    images = np.random.default_rng(0).random((4, *shape), np.float32)
    before = [weight.copy() for weight in model.get_weights()]
    model.run_eagerly = True  # tracing a deep network takes far longer than a step
    assert np.isfinite(model.train_on_batch(images, np.arange(4), sample_weight=np.ones(4))[0])
    assert any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(images), model(images), rtol=1e-5, atol=1e-7)
    assert [v.path for v in again.optimizer.variables] == [v.path for v in model.optimizer.variables]


def test_model_when_multi_label_gives_each_class_its_own_probability() -> None:
    params = {"architecture": "simple", "input_shape": [8, 8, 3], "num_classes": 3, "multi_label": True}
    model = cnn.build_model(params)
    labels = np.array([[0, 1, 1], [1, 0, 0]], np.float32)
    results = model.evaluate(np.zeros((2, 8, 8, 3), np.float32), labels, verbose=0, return_dict=True)
    assert set(results) == {"loss", "accuracy", "auc", "f1"}
    assert model.layers[-1].activation is keras.activations.sigmoid


def test_model_when_images_are_resized_takes_small_ones() -> None:
    params = {"architecture": "alexnet", "resize": [67, 67], "filters": 3}
    probabilities = cnn.build_model(params).predict(np.zeros((1, 28, 28, 1), np.float32), verbose=0)
    assert probabilities.shape == (1, 10)


def test_model_when_augmented_predicts_the_same_every_time() -> None:
    changes: dict[str, Any] = {"shift": 0.2, "rotate": 0.1, "zoom": 0.2, "flip": True}
    model = cnn.build_model({**changes, "architecture": "simple"})
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    np.testing.assert_array_equal(model.predict(images, verbose=0), model.predict(images, verbose=0))
    assert not np.array_equal(model(images, training=True), model(images, training=True))


def test_inception_when_training_learns_from_its_auxiliary_heads() -> None:
    params = {"architecture": "inception", "input_shape": [65, 65, 1], "filters": 2, "dropout": 0}
    images, labels = np.random.default_rng(0).random((2, 65, 65, 1), np.float32), np.array([0, 1])
    model = cnn.build_model(params)
    outputs = model(images, training=True)
    assert len(outputs) == 3
    first, *others = [
        keras.losses.SparseCategoricalCrossentropy()(labels, probabilities) for probabilities in outputs
    ]
    loss = model.compute_loss(y=labels, y_pred=outputs)
    assert float(loss) == pytest.approx(float(first) + 0.3 * sum(map(float, others)), rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_saliency_when_only_one_pixel_matters_finds_it_however_sure_the_model_is(size: float) -> None:
    inputs = keras.Input((4, 4, 1))
    outputs = keras.layers.Dense(2, "softmax", name="class")
    model = keras.Model(inputs, outputs(keras.layers.Flatten()(inputs)))
    kernel = np.zeros((16, 2))
    kernel[1 * 4 + 2, 0] = size
    outputs.set_weights([kernel, np.zeros(2)])
    maps = cnn.saliency(model, np.full((1, 4, 4, 1), 0.5, np.float32))
    assert np.argwhere(maps[0] > 0).tolist() == [[1, 2]]


def test_saliency_when_network_has_auxiliary_heads_looks_at_the_first() -> None:
    # With fewer than four filters, some seeds give a network whose gradient is 0.
    keras.utils.set_random_seed(0)
    params = {"architecture": "inception", "input_shape": [65, 65, 1], "filters": 4}
    maps = cnn.saliency(cnn.build_model(params), np.random.default_rng(0).random((1, 65, 65, 1), np.float32))
    assert maps.max() == 1


@pytest.mark.parametrize("labels", [[0, 9], [[0], [9]], np.eye(2, 10), np.zeros((2, 10))], ids=str)
def test_draw_when_labels_are_one_or_several_writes_a_picture(labels: Any, tmp_path: Path) -> None:
    multi_label = np.ndim(labels) == 2 and np.shape(labels)[1] > 1
    model = cnn.build_model({"architecture": "simple", "input_shape": [8, 8, 3], "multi_label": multi_label})
    cnn.draw(model, np.zeros((2, 8, 8, 3), np.float32), np.array(labels), str(tmp_path))
    assert (tmp_path / "saliency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "filters"),
    [("resnet20", 16), ("vgg11", 16), ("vgg16", 8), ("vgg19", 8), ("inception", 16), ("alexnet", 24)],
)
def test_deep_network_when_trained_on_digits_beats_chance_by_far(architecture: str, filters: int) -> None:
    if not cnn.DIGITS.is_dir():
        from tfspark.experiment.datasets import prepare

        prepare("mnist_5k")
    keras.utils.set_random_seed(0)
    images, labels = cnn.read_digits(cnn.DIGITS, seed=0)
    least = cnn.ARCHITECTURES[architecture].least_size
    params = {
        "architecture": architecture,
        "filters": filters,
        "dropout": 0.2,
        "resize": [least, least] if least > 28 else None,
    }
    model = cnn.build_model(params)
    model.fit(images[:4000], labels[:4000], batch_size=32, epochs=3, verbose=0)
    assert model.evaluate(images[4000:], labels[4000:], verbose=0)[1] > 0.5


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
