"""What of a training's state is kept beside weights and optimizers: what callbacks have counted."""

from __future__ import annotations

import keras
import numpy as np

from tfspark.training.state import capture_callbacks, restore_callbacks


class Counting(keras.callbacks.Callback):
    """Counts, and has something of its own."""

    def __init__(self, count: int = 0):
        super().__init__()
        self.count = np.int64(count)
        self._own = object()


def test_callbacks_get_back_what_they_counted_and_remembered() -> None:
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


def test_callbacks_that_only_the_chief_has_leave_the_others_to_theirs() -> None:
    of_chief = [keras.callbacks.TerminateOnNaN(), Counting(7), Counting(8)]
    of_worker = [Counting(), keras.callbacks.EarlyStopping("loss"), Counting(), Counting(9)]
    untouched = dict(vars(of_worker[1]))

    restore_callbacks(of_worker, *capture_callbacks(of_chief))

    assert [callback.count for callback in of_worker if isinstance(callback, Counting)] == [7, 8, 9]
    assert vars(of_worker[1]) == untouched
