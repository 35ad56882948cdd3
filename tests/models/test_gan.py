"""The adversarial networks of ``models/gan.py``."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import gan

SMALL: dict[str, Any] = {"input_shape": [8, 12, 1], "filters": 2, "latent": 4, "dropout": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "plain": SMALL,
    "conditional": {**SMALL, "conditional": True, "num_classes": 3},
    "in colour": {**SMALL, "input_shape": [4, 4, 3], "gradient_penalty": 0.5},
}


def batch_of(params: dict[str, Any], num_rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).random((num_rows, *params["input_shape"]), np.float32)
    return images, np.arange(num_rows) % 3


def weights_of(model: gan.GAN) -> list[np.ndarray]:
    return [weight.copy() for weight in model.get_weights()]


@pytest.mark.parametrize("params", KINDS.values(), ids=list(KINDS))
def test_model_when_trained_a_step_changes_both_networks(params: dict[str, Any]) -> None:
    model = gan.build_model(params)
    model.run_eagerly = True
    before = [
        [v.numpy() for v in network.trainable_variables] for network in (model.generator, model.discriminator)
    ]
    results = model.train_on_batch(*batch_of(params), return_dict=True)
    assert set(results) == {"generator_loss", "discriminator_loss", "real_score", "fake_score"}
    for values, network in zip(before, (model.generator, model.discriminator), strict=True):
        assert any(
            not np.array_equal(old, new) for old, new in zip(values, network.trainable_variables, strict=True)
        )
    assert int(model.optimizer.iterations) == int(model.discriminator_optimizer.iterations) == 1


@pytest.mark.parametrize("params", KINDS.values(), ids=list(KINDS))
def test_model_when_saved_keeps_both_networks_and_optimizers(params: dict[str, Any], tmp_path: Path) -> None:
    model = gan.build_model(params)
    model.run_eagerly = True
    model.train_on_batch(*batch_of(params))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.run_eagerly = True
    for name in ("optimizer", "discriminator_optimizer"):
        old, new = getattr(model, name).variables, getattr(again, name).variables
        assert len(old) == len(new) > 2
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(gan.samples(again, 3)[0], gan.samples(model, 3)[0], rtol=1e-4, atol=1e-6)
    # Both models take the same next step, because the noise depends on the number of the step.
    model.train_on_batch(*batch_of(params))
    again.train_on_batch(*batch_of(params))
    for a, b in zip(weights_of(model), weights_of(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "conditional"])
def test_losses_do_not_depend_on_a_row_of_weight_0(name: str) -> None:
    model, (images, labels) = gan.build_model(KINDS[name]), batch_of(KINDS[name])
    other = images.copy()
    other[2] = 1 - other[2]
    weights = np.array([1, 1, 0, 1, 1, 1], np.float32)
    first, second = (model.losses_of(x, labels, weights, training=False) for x in (images, other))
    np.testing.assert_allclose(first, second, rtol=1e-6)
    third = model.losses_of(other, labels, None, training=False)
    assert not np.allclose(second, third)


def test_losses_with_a_gradient_penalty_add_the_squared_gradient_at_real_images() -> None:
    penalty, weights = 0.8, np.array([1, 1, 0, 1, 1, 1], np.float32)
    plain, (images, labels) = gan.build_model(KINDS["conditional"]), batch_of(KINDS["conditional"])
    penalised = gan.build_model({**KINDS["conditional"], "gradient_penalty": penalty})
    penalised.set_weights(plain.get_weights())
    pixels, step = images[0].copy(), 5e-4  # A small step, because the networks are only piecewise smooth.
    gradient = np.zeros_like(pixels)
    for index in np.ndindex(pixels.shape):  # By finite differences, one pixel at a time.
        ends = np.stack([pixels, pixels])
        ends[(0, *index)] += step
        ends[(1, *index)] -= step
        up, down = plain.discriminator({"image": ends, "label": labels[[0, 0]]}).numpy()[:, 0]
        gradient[index] = (up - down) / (2 * step)
    first_alone = np.eye(6, dtype=np.float32)[0]

    tested = [model.losses_of(images, labels, weights, training=False)[1] for model in (plain, penalised)]
    np.testing.assert_allclose(*tested, rtol=1e-6)  # The penalty applies only in training.
    for rows in (first_alone, weights):
        generators, discriminators = zip(
            *(model.losses_of(images, labels, rows, training=True) for model in (plain, penalised)),
            strict=True,
        )
        np.testing.assert_allclose(generators[0], generators[1], rtol=1e-6)
        if rows is first_alone:  # The mean is over all rows of the batch.
            expected = penalty / 2 * np.square(gradient).sum() / 6
            np.testing.assert_allclose(discriminators[1] - discriminators[0], expected, rtol=0.02)
    other = images.copy()
    other[2] = 1 - other[2]
    np.testing.assert_allclose(
        penalised.losses_of(other, labels, weights, training=True)[1], discriminators[1], rtol=1e-5
    )


def test_losses_with_smoothed_labels_are_lower_at_90_percent_than_near_certainty() -> None:
    logits = tf.constant([float(np.log(9)), 20.0])
    smoothed = gan.cross_entropy(logits, 0.9).numpy()
    assert smoothed[0] < smoothed[1]  # 90 % is right, certainty is not


@pytest.fixture
def mirrored_strategy() -> tf.distribute.Strategy:
    devices = tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices[:1]])


def test_model_when_under_a_strategy_takes_the_same_step(mirrored_strategy: tf.distribute.Strategy) -> None:
    alone = gan.build_model(SMALL)
    with mirrored_strategy.scope():
        mirrored = gan.build_model(SMALL)
    mirrored.set_weights(alone.get_weights())
    images, labels = batch_of(SMALL)
    for model in (alone, mirrored):
        model.fit(images, labels, sample_weight=np.ones(6), batch_size=6, shuffle=False, verbose=0)
    for a, b in zip(weights_of(alone), weights_of(mirrored), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_noise_of_another_step_is_different() -> None:
    model = gan.build_model(SMALL)
    first = model.noise(3).numpy()
    np.testing.assert_array_equal(model.noise(3), first)
    model.optimizer.iterations.assign(1)
    assert not np.array_equal(model.noise(3), first)


def test_noise_differs_between_all_replicas_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = gan.build_model(SMALL), set()
    for step, replica in itertools.product(range(2), range(3)):
        context = SimpleNamespace(num_replicas_in_sync=3, replica_id_in_sync_group=replica)
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda context=context: context)
        model.optimizer.iterations.assign(step)
        drawn.add(model.noise(2).numpy().tobytes())
    assert len(drawn) == 6


def test_samples_when_conditional_are_of_every_class_in_turn() -> None:
    images, labels = gan.samples(gan.build_model(KINDS["conditional"]), 7)
    assert images.shape == (7, 8, 12, 1)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert images.min() >= 0
    assert images.max() <= 1


def test_judge_when_classifier_is_sure_says_so() -> None:
    inputs = keras.Input((2, 2, 1))
    sure = keras.Model(inputs, keras.ops.one_hot(keras.ops.cast(inputs[:, 0, 0, 0], "int32"), 4))
    images = np.array([0, 1, 1, 3], np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)
    confidence, shares = gan.judge(images, sure)
    assert confidence == 1
    assert shares.tolist() == [0.25, 0.5, 0, 0.25]


@pytest.mark.parametrize("name", ["plain", "conditional", "in colour"])
def test_draw_writes_grids_and_export_writes_the_generator(name: str, tmp_path: Path) -> None:
    model = gan.build_model(KINDS[name])
    gan.draw(model, None, None, str(tmp_path))
    gan.draw_epoch(model, 3, str(tmp_path))
    gan.export(model, str(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch-0003.png", "generator.keras", "samples.png"]
    assert keras.models.load_model(tmp_path / "generator.keras").output_shape == model.generator.output_shape


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"latnet": 1}, "unknown model parameter 'latnet': did you mean 'latent'"),
        ({"input_shape": [30, 28, 1]}, "height and width must be multiples of 4, at least 4 x 4 pixels"),
        ({"label_smoothing": 1}, r"label_smoothing must be a number in \[0, 1\)"),
        ({"gradient_penalty": -1}, "gradient_penalty must be a number, 0 or more"),
        ({"conditional": "yes"}, "conditional must be true or false"),
        (
            {"discriminator_learning_rate": 0},
            "discriminator_learning_rate must be a number above 0. Received: discriminator_learning_rate=0",
        ),
    ],
)
def test_build_model_when_parameter_wrong_says_what_it_must_be(params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        gan.build_model(params)
