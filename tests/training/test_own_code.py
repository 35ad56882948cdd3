"""The gradient of a loss in a model's own step; one process computes it as a replica that has half of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import pytest
import tensorflow as tf

from tfspark.errors import ConfigError
from tfspark.training.own_code import are_sums, as_in_one_process, by_share, watch_steps

HALF = tf.constant(0.5)


@pytest.fixture
def weight() -> Iterator[tf.Variable]:
    original = tf.GradientTape.gradient
    watch_steps(keras.Sequential([keras.Input((1,))]), None, None, False)  # type: ignore[arg-type]
    yield tf.Variable(2.0)
    tf.GradientTape.gradient = original


def gradient(weight: tf.Variable, rows: Any, loss_of: Any) -> float:
    """Return what a replica with half of the rows adds to the gradient over all rows."""
    with as_in_one_process(HALF):
        with tf.GradientTape() as tape:
            loss = loss_of(weight * rows)
        found = tape.gradient(loss, weight)
        assert are_sums(), "an optimizer would add them up again"
        return found


@pytest.mark.parametrize(
    ("loss_of", "expected"), [(tf.reduce_mean, 0.5 * 2), (lambda values: values, 1 + 2 + 3)]
)
def test_gradient_of_a_mean_is_weighted_by_the_share_but_the_gradient_of_row_values_is_a_sum(
    weight: tf.Variable, loss_of: Any, expected: float
) -> None:
    step = tf.function(
        lambda rows: gradient(weight, rows, loss_of), input_signature=[tf.TensorSpec([None], tf.float32)]
    )

    assert float(step(tf.constant([1.0, 2.0, 3.0]))) == pytest.approx(expected)


def test_gradient_of_several_values_that_may_not_belong_to_rows_is_rejected(weight: tf.Variable) -> None:
    with pytest.raises(ConfigError, match="a loss that is one number"):
        gradient(weight, tf.constant([1.0, 2.0]), lambda values: values)


def test_gradient_with_respect_to_an_input_is_not_changed(weight: tf.Variable) -> None:
    rows = tf.constant([1.0, 2.0])
    with as_in_one_process(HALF):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            said = weight * rows
        assert tape.gradient(said, rows).numpy().tolist() == [2.0, 2.0]


def mean_and_gradient(weight: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(weight * rows)
    return tape.gradient(loss, weight)


def test_gradient_taken_in_a_function_of_its_own_is_left_to_the_optimizer(weight: tf.Variable) -> None:
    apart = tf.function(mean_and_gradient)

    @tf.function
    def step() -> tf.Tensor:
        with as_in_one_process(HALF):
            found = apart(weight, tf.constant([1.0, 2.0, 3.0]))
            assert not are_sums()
            return by_share([found])[0]

    assert float(step()) == pytest.approx(0.5 * 2)


def test_step_with_gradients_of_both_kinds_is_rejected(weight: tf.Variable) -> None:
    apart = tf.function(mean_and_gradient)

    @tf.function(autograph=False)  # It would wrap the error.
    def step() -> None:
        with as_in_one_process(HALF):
            for take in (apart, mean_and_gradient):
                take(weight, tf.constant([1.0]))
            are_sums()

    with pytest.raises(ConfigError, match="all gradients of a step to be taken in the step itself"):
        step()


def test_gradient_of_a_replica_without_rows_is_zero_even_if_its_own_is_nan(weight: tf.Variable) -> None:
    with as_in_one_process(tf.constant(0.0)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(weight * tf.zeros([0]))
        assert float(tape.gradient(loss, weight)) == 0.0
