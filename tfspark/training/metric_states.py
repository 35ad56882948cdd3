"""Find out what the state of a metric is, by trying the metric. Runs in the trainer.

The variables of Keras's own metrics are sums over rows, so the states of several workers can be added up. A user's
metric may keep a maximum, count batches, or compare the rows of a batch. Such a metric needs all rows of a batch at
once, and its states are merged in another way, if at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src import backend

from tfspark.errors import ConfigError

Merge: TypeAlias = np.ufunc | None
"""Merges two states of a variable; None: no function that is known here."""
MERGES = (np.add, np.maximum, np.minimum)
ROWS, FIRST_ROWS = 3, 2
"""Number of the rows of a trial, and of those in its first part."""


@dataclass(frozen=True)
class Nature:
    """What the state of a metric is.

    Attributes:
        is_of_rows: whether it is a sum over rows: a batch may then be divided, and the parts' states be added up.
        merges: for each variable, what merges its states after different batches; empty for sums over rows.
    """

    is_of_rows: bool
    merges: tuple[Merge, ...] = ()


OF_ROWS = Nature(True)


def is_of_rows_alone(metric: keras.Metric) -> bool:
    """Return whether a metric's state is a sum over rows, as far as it is known."""
    nature: Nature | None = getattr(metric, "_tfspark_nature", None)
    return nature is None or nature.is_of_rows


def nature_of(
    metric: keras.Metric, update: Callable[..., object], y_true: tf.Tensor, y_pred: tf.Tensor
) -> Nature:
    """Return what the state of a metric is. One of Keras, or one that fails with random values, has sums over rows.

    Args:
        metric: a metric whose variables exist.
        update: its own ``update_state``.
        y_true: labels of the shape and type that it gets.
        y_pred: predictions of the shape and type that it gets.
    """
    made_of = (type(metric), getattr(metric, "_fn", type(metric)))
    if all(str(getattr(part, "__module__", "")).startswith("keras.") for part in made_of):
        return OF_ROWS
    try:
        with tf.init_scope():
            truth, guess = (random_values(part, ROWS, seed) for seed, part in enumerate((y_true, y_pred)))
            whole, first, second = (
                [(truth[rows], guess[rows])]
                for rows in (slice(None), slice(FIRST_ROWS), slice(FIRST_ROWS, None))
            )
            start, together, one, other, both, reverse = (
                _states(metric, update, given)
                for given in ([], whole, first, second, first + second, second + first)
            )
    except Exception:  # The user's code takes no such values.
        return OF_ROWS
    merges = tuple(
        next((merge for merge in MERGES if _is_merged(merge, *states)), None)
        for states in zip(start, one, other, both, reverse, strict=True)
    )
    is_same = all(_are_close(a, b) for a, b in zip(together, both, strict=True))
    if is_same and set(merges) <= {np.add}:
        return OF_ROWS
    _let_replicas_agree(metric)
    return Nature(False, merges)


def _let_replicas_agree(metric: keras.Metric) -> None:
    """Use the first replica's variables for all: each replica gets all rows, so their sum would be too much."""
    for variable in metric.variables:
        if isinstance(variable._value, tf.distribute.DistributedValues):
            variable._value._aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA


def random_values(like: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Return `count` rows of a tensor's shape and type: numbers in [0, 1), classes 0 and 1."""
    rng = np.random.default_rng(seed)
    values = rng.random([count, *(4 if size is None else size for size in like.shape[1:])], np.float32)
    return tf.cast(values if like.dtype.is_floating else values > 0.5, like.dtype)


def _states(
    metric: keras.Metric, update: Callable[..., object], batches: Iterable[tuple[tf.Tensor, tf.Tensor]]
) -> list[npt.NDArray[np.float64]]:
    """Return the values of a metric's variables after some batches; the variables themselves are not changed."""
    zeros = [(variable, tf.zeros(variable.shape, variable.dtype)) for variable in metric.variables]
    with backend.StatelessScope(state_mapping=zeros) as scope:
        metric.reset_state()
        for truth, guess in batches:
            update(truth, guess)
    return [np.asarray(scope.get_current_value(variable), np.float64) for variable in metric.variables]


def _is_merged(
    merge: np.ufunc,
    start: npt.NDArray[np.float64],
    one: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    both: npt.NDArray[np.float64],
    reverse: npt.NDArray[np.float64],
) -> bool:
    """Return whether a function merges the states after one batch and another to those after both, in any order."""
    starts_at_zero = merge is not np.add or not start.any()
    return starts_at_zero and all(_are_close(merge(one, other), state) for state in (both, reverse))


def _are_close(found: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> bool:
    return np.allclose(found, expected, rtol=1e-3, atol=1e-6, equal_nan=True)


def watched_metrics(model: keras.Model) -> list[keras.Metric]:
    """Return the metrics that were given to ``compile`` and are built."""
    compiled = model._compile_metrics
    if compiled is None or not compiled.built:
        return []
    lists = [*compiled._flat_metrics, *compiled._flat_weighted_metrics]
    return [metric for of_output in lists if of_output is not None for metric in of_output.metrics]


def merges_of(model: keras.Model) -> list[np.ufunc]:
    """Return what merges the states of each of a model's metric variables, in the order of `metrics_variables`.

    Raises:
        ConfigError: for a metric of ``compile`` it is not known.
    """
    found: dict[int, Merge] = {}
    for metric in watched_metrics(model):
        nature: Nature | None = getattr(metric, "_tfspark_nature", None)
        if nature is None or nature.is_of_rows:  # Keras's own may have made their variables later.
            continue
        if None in nature.merges:
            raise ConfigError(
                f"expected a metric whose state after several batches is a sum, a maximum or a minimum of those after "
                f"each of them, so that the states of several workers can be merged; {metric.name!r} is none; use one "
                "worker, or compute it from predictions"
            )
        found |= {
            id(variable): merge for variable, merge in zip(metric.variables, nature.merges, strict=True)
        }
    return [found.get(id(variable)) or np.add for variable in model.metrics_variables]


def merged(states: Sequence[Sequence[Any]], merges: Sequence[np.ufunc]) -> list[npt.NDArray[np.float64]]:
    """Merge the states of several workers; values behind the last variable are added up."""
    every = [*merges, *[np.add] * (len(states[0]) - len(merges))]
    return [
        merge.reduce(np.asarray(values))
        for merge, values in zip(every, zip(*states, strict=True), strict=True)
    ]
