"""What the state of a metric is, found out by trying it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfspark.errors import ConfigError
from tfspark.training.metric_states import merged, merges_of, nature_of

NUMBERS = tf.TensorSpec([None, 3], tf.float32)


class Kept(keras.metrics.Metric):
    """A metric with one variable.

    Args:
        state_of: (state, errors of a batch) -> state.
        start: value of the variable after a reset.
    """

    def __init__(self, state_of: Callable[[Any, Any], Any], start: float = 0.0):
        super().__init__(name="kept")
        self.state_of, self.start = state_of, start
        self.state = self.add_weight(name="state", initializer="zeros")

    def update_state(self, truth: Any, guess: Any, sample_weight: Any = None) -> None:
        self.state.assign(self.state_of(self.state.value, keras.ops.abs(truth - guess)))

    def result(self) -> Any:
        return self.state

    def reset_state(self) -> None:
        self.state.assign(self.start)


def no_such_rows(state: Any, errors: Any) -> Any:
    raise ValueError("it takes no such rows")


@pytest.mark.parametrize(
    ("metric", "is_of_rows", "merges"),
    [
        (keras.metrics.MeanSquaredError(), True, []),
        (keras.metrics.MeanMetricWrapper(lambda y, p: keras.ops.sum(y - p, -1), name="fn"), True, []),
        (keras.metrics.MeanMetricWrapper(lambda y, p: keras.ops.max(p), name="fn"), False, [np.add] * 2),
        (Kept(lambda state, errors: state + keras.ops.sum(errors)), True, []),
        (Kept(lambda state, errors: state + 1), False, [np.add]),
        (Kept(lambda state, errors: keras.ops.maximum(state, keras.ops.max(errors))), False, [np.maximum]),
        (Kept(lambda state, errors: keras.ops.minimum(state, keras.ops.min(errors)), 9.0), False, [np.minimum]),
        (Kept(lambda state, errors: state + keras.ops.sum(errors), 1.0), False, [None]),
        (Kept(lambda state, errors: keras.ops.mean(errors)), False, [None]),
        (Kept(lambda state, errors: 0.9 * state + keras.ops.mean(errors)), False, [None]),
        (Kept(no_such_rows), True, []),
    ],
    ids=["Keras's", "a value for each row", "a number for a batch", "sum", "batches", "largest", "smallest",
         "sum from one", "last", "moving mean", "one that fails"],
)  # fmt: skip
def test_nature_of_a_metric(metric: keras.Metric, is_of_rows: bool, merges: list[Any]) -> None:
    nature = nature_of(metric, metric.update_state, NUMBERS, NUMBERS)

    assert (nature.is_of_rows, list(nature.merges)) == (is_of_rows, merges)
    assert all(not np.any(variable.numpy()) for variable in metric.variables), "the trial must leave no trace"


def test_merges_of_a_model_are_in_the_order_of_its_metric_variables() -> None:
    metrics = [
        "mae",
        Kept(lambda state, errors: keras.ops.maximum(state, keras.ops.max(errors))),
    ]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse", metrics=metrics)
    model.evaluate(np.ones((2, 3)), np.ones((2, 3)), verbose=0)
    kept = metrics[1]
    kept._tfspark_nature = nature_of(kept, kept.update_state, NUMBERS, NUMBERS)

    merges = dict(zip([v.path for v in model.metrics_variables], merges_of(model), strict=True))
    assert [path for path, merge in merges.items() if merge is np.maximum] == [kept.state.path]
    assert set(merges.values()) == {np.add, np.maximum}


def test_metric_whose_states_cannot_be_merged_is_rejected_by_name() -> None:
    last = Kept(lambda state, errors: keras.ops.mean(errors))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse", metrics=[last])
    model.evaluate(np.ones((2, 3)), np.ones((2, 3)), verbose=0)
    last._tfspark_nature = nature_of(last, last.update_state, NUMBERS, NUMBERS)

    with pytest.raises(ConfigError, match="'kept' is none; use one worker"):
        merges_of(model)


@given(states=st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=5))
def test_states_are_merged_one_by_one_and_counts_behind_them_are_added_up(states: list[list[int]]) -> None:
    merges = [np.maximum, np.add, np.minimum]
    columns = list(zip(*states, strict=True))

    assert merged(states, merges) == [max(columns[0]), sum(columns[1]), min(columns[2]), sum(columns[3])]
