"""The state of a training beside weights and optimizers: counters of callbacks, learning rates, metrics."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tfspark.training.evaluation import plain_logs
from tfspark.training.state import (
    capture,
    capture_callbacks,
    keep_rates_that_were_changed,
    learning_rates,
    restore,
    restore_callbacks,
    settings_of,
    with_metrics_of,
)


class Counting(keras.callbacks.Callback):
    """A callback with a counter, and an attribute that cannot be saved."""

    def __init__(self, count: int = 0):
        super().__init__()
        self.count = np.int64(count)
        self._own = object()


def test_callbacks_get_their_counters_and_weights_back() -> None:
    before, after = (
        [Counting(7), keras.callbacks.EarlyStopping("loss", restore_best_weights=True), Counting(8)],
        [Counting(), keras.callbacks.EarlyStopping("loss", restore_best_weights=True), Counting()],
    )
    before[1].wait, before[1].best = 2, 0.25
    before[1].best_weights = [np.full(3, number) for number in range(12)]

    restore_callbacks(after, *capture_callbacks(before))

    assert [after[0].count, after[2].count] == [7, 8]
    assert (after[1].wait, after[1].best, after[1].patience) == (2, 0.25, 0)
    np.testing.assert_array_equal(after[1].best_weights, before[1].best_weights)
    assert after[0]._own is not before[0]._own


def test_callbacks_of_a_worker_without_a_counterpart_on_the_chief_are_not_changed() -> None:
    of_chief = [keras.callbacks.TerminateOnNaN(), Counting(7), Counting(8)]
    of_worker = [Counting(), keras.callbacks.EarlyStopping("loss"), Counting(), Counting(9)]
    untouched = dict(vars(of_worker[1]))

    restore_callbacks(of_worker, *capture_callbacks(of_chief))

    assert [callback.count for callback in of_worker if isinstance(callback, Counting)] == [7, 8, 9]
    assert vars(of_worker[1]) == untouched


def test_callbacks_of_a_resumed_run_keep_their_new_settings() -> None:
    before = [keras.callbacks.EarlyStopping("loss", patience=2), keras.callbacks.ReduceLROnPlateau("loss")]
    settings = settings_of(before)
    before[0].wait, before[0].best, before[1].wait = 1, 0.25, 3
    after = [
        keras.callbacks.EarlyStopping("loss", patience=20),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5),
    ]
    restore_callbacks(after, *capture_callbacks(before, settings))
    assert (after[0].monitor, after[0].patience, after[0].wait, after[0].best) == ("loss", 20, 1, 0.25)
    assert (after[1].monitor, after[1].factor, after[1].wait) == ("loss", 0.5, 3)


def test_callback_of_a_resumed_run_starts_again_if_it_monitors_a_different_metric() -> None:
    before = [
        keras.callbacks.EarlyStopping("val_accuracy", patience=2, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", mode="min"),
    ]
    settings = settings_of(before)
    before[0].wait, before[0].best, before[0].best_weights = 1, 0.25, [np.ones(3)]
    before[1].wait, before[1].best = 3, 0.25
    after = [
        keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("loss", mode="max"),
    ]
    untouched = [dict(vars(callback)) for callback in after]
    restore_callbacks(after, *capture_callbacks(before, settings))
    assert [vars(callback) for callback in after] == untouched


def model_with(rate: float) -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(rate), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param(0.1, 0.1, id="a new rate"),
        pytest.param(0.01, 0.002, id="the same rate, which a callback had lowered"),
    ],
)
def test_learning_rate_of_a_resumed_run_is_the_new_rate_or_else_the_saved_one(
    asked: float, expected: float
) -> None:
    before, after = model_with(0.01), model_with(asked)
    at_first = learning_rates(before)
    before.optimizer.learning_rate = 0.002
    arrays, rates = capture(before, True), learning_rates(after)
    restore(after, arrays, arrays)
    keep_rates_that_were_changed(after, rates, at_first)
    assert float(after.optimizer.learning_rate) == pytest.approx(expected)


def test_plain_logs_has_a_python_number_or_list_for_each_name() -> None:
    class Several(keras.metrics.Mean):
        def result(self) -> dict[str, object]:
            mean = super().result()
            return {"mean": mean, "of both": [mean, 2 * mean]}

    metric = Several()
    metric.update_state([1.0, 3.0])
    logs = {"loss": np.float32(0.5), "several": metric.result()}
    assert plain_logs(logs) == {"loss": 0.5, "mean": 2.0, "of both": [2.0, 4.0]}


def test_metrics_of_a_removed_node_are_added_if_they_are_sums_over_its_rows() -> None:
    own, gone = (
        {
            "own/state/0000": np.array(1),
            "own/metrics/0000": np.array(n),
            "own/metrics of all/0000": np.array(7),
        }
        for n in (3, 4)
    )

    assert with_metrics_of(own, gone) == {**own, "own/metrics/0000": 7}
