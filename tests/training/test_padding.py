"""A padded batch has the losses and metrics of its real rows; single steps in one process."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspark.feed.reader import PADDING
from tfspark.training.padding import count_real_rows_alone, real_rows

REAL, SIZE = 5, 8


def dice(truth: Any, guess: Any) -> Any:
    return 1 - 2 * keras.ops.sum(truth * guess) / (keras.ops.sum(truth) + keras.ops.sum(guess))


def own_mean(truth: Any, guess: Any) -> Any:
    return keras.ops.mean(keras.ops.square(truth - guess))


def mean_and_dice(truth: Any, guess: Any) -> Any:
    """The sum of a loss for each row and a loss for the whole batch."""
    return keras.losses.binary_crossentropy(truth, guess) + keras.losses.Dice()(truth, guess)


def among_others(truth: Any, guess: Any) -> Any:
    """A value for each row that depends on the other rows."""
    flat = keras.ops.reshape(guess, (-1, 6))
    likeness = keras.ops.matmul(flat, keras.ops.transpose(flat))
    return keras.ops.logsumexp(likeness, axis=1) - keras.ops.diagonal(likeness)


class OwnCall(keras.losses.Loss):
    """A Loss whose own `__call__` computes the mean."""

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))


LOSSES: dict[str, Any] = {
    "mean over rows": "binary_crossentropy",
    "mean of weights": keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
    "sum": keras.losses.MeanSquaredError(reduction="sum"),
    "no reduction": keras.losses.MeanSquaredError(reduction="none"),
    "a function of the batch": dice,
    "a function with its own mean": own_mean,
    "a sum of other losses": mean_and_dice,
    "values that depend on other rows": among_others,
    "a Loss with its own __call__": OwnCall(),
    "Dice over rows and places": keras.losses.Dice(axis=(0, 1)),
    "Dice of each row": keras.losses.Dice(axis=(1, 2)),
}


def model_of(loss: Any, regularizer: str | None = "l2") -> keras.Model:
    start = keras.initializers.RandomNormal(stddev=0.5, seed=2)
    layer = keras.layers.Dense(2, "sigmoid", kernel_initializer=start, kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((3, 4)), layer])
    metrics = [keras.metrics.BinaryIoU(name="iou"), keras.metrics.AUC(name="auc"), "mae"]
    model.compile("sgd", loss, metrics=metrics, run_eagerly=True)
    return model


def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(REAL, 3, 4)).astype(np.float32), rng.integers(0, 2, (REAL, 3, 2)).astype(
        np.float32
    )


def filled(rows: Any) -> Any:
    return tf.constant(np.concatenate([rows, rows[-1:].repeat(SIZE - REAL, axis=0)]))


def test_real_rows_distinguishes_padding_from_rows_of_weight_0() -> None:
    weights = tf.constant([1.0, 0.0, PADDING, -2.0])
    assert real_rows(weights).numpy().tolist() == [True, True, False, True]
    assert float(PADDING) == 0.0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_padded_batch_has_the_loss_and_metrics_of_its_real_rows(loss: Any) -> None:
    x, y = batch()
    # Keras cannot add a regularizer to row values.
    regularizer = None if getattr(loss, "reduction", "") == "none" else "l2"
    plain = model_of(loss, regularizer).evaluate(x, y, batch_size=REAL, verbose=0, return_dict=True)
    model = model_of(loss, regularizer)
    count_real_rows_alone(model, weights_given=False)
    weights = np.full(SIZE, PADDING, np.float32)
    weights[:REAL] = 1

    model.test_step((filled(x), filled(y), tf.constant(weights)))

    for name, value in model.get_metrics_result().items():
        assert float(value) == pytest.approx(plain[name], rel=1e-5), name


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_training_step_on_a_padded_batch_equals_a_step_on_its_real_rows(loss: Any) -> None:
    x, y = batch()
    regularizer = None if getattr(loss, "reduction", "") == "none" else "l2"
    plain, model = model_of(loss, regularizer), model_of(loss, regularizer)
    before = model.get_weights()[0]
    count_real_rows_alone(model, weights_given=False)
    weights = np.full(SIZE, PADDING, np.float32)
    weights[:REAL] = 1

    plain.train_on_batch(x, y)
    model.train_step((filled(x), filled(y), tf.constant(weights)))

    assert np.abs(plain.get_weights()[0] - before).max() > 1e-4
    for trained, expected in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(trained, expected, rtol=1e-5, atol=1e-7)


class AddsSquares(keras.layers.Layer):
    """A layer that adds a value for each row to the loss."""

    def call(self, x: Any) -> Any:
        self.add_loss(keras.ops.sum(keras.ops.square(x), axis=(1, 2)))
        return x


@pytest.mark.parametrize("loss", ["mse", None])
def test_loss_that_a_layer_adds_for_each_row_counts_only_real_rows(loss: str | None) -> None:
    x, y = batch()
    start = keras.initializers.RandomNormal(stddev=0.5, seed=2)
    plain, model = (
        keras.Sequential(
            [keras.Input((3, 4)), keras.layers.Dense(2, kernel_initializer=start), AddsSquares()]
        )
        for _ in range(2)
    )
    for each in (plain, model):
        each.compile("sgd", loss, run_eagerly=True)
    count_real_rows_alone(model, weights_given=False)
    weights = np.full(SIZE, PADDING, np.float32)
    weights[:REAL] = 1

    expected = plain.train_on_batch(x, y, return_dict=True)
    logs = model.train_step((filled(x), filled(y), tf.constant(weights)))

    assert float(logs["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    for trained, value in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(trained, value, rtol=1e-5, atol=1e-7)


def test_rows_of_weight_0_count_in_unweighted_metrics() -> None:
    x, y = batch()
    weights = np.array([1, 0, 0, 2, 1], np.float32)
    plain = model_of("mse").evaluate(
        x, y, sample_weight=np.repeat(weights[:, None], 3, 1), batch_size=REAL, verbose=0, return_dict=True
    )
    model = model_of("mse")
    count_real_rows_alone(model, weights_given=True)
    model.test_step((tf.constant(x), tf.constant(y), tf.constant(weights)))
    for name, value in model.get_metrics_result().items():
        assert float(value) == pytest.approx(plain[name], rel=1e-5), name


def test_counting_real_rows_twice_changes_nothing() -> None:
    x, y = batch()
    results = []
    for times in (1, 2):
        model = model_of("mse")
        for _ in range(times):
            count_real_rows_alone(model, weights_given=False)
        model.test_step((tf.constant(x), tf.constant(y), tf.ones(REAL)))
        results.append({name: float(value) for name, value in model.get_metrics_result().items()})
    assert results[0] == results[1]
