"""Evaluate without padding and without collectives: each rank evaluates its rows, and the driver adds up the states."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfspark.errors import DeadlineError
from tfspark.feed.reader import PADDING, broken_off
from tfspark.training.class_counts import (
    Kind,
    Matrix,
    count_classes,
    kind_of_label,
    matrix_and_curves,
    num_counts,
)
from tfspark.training.input.dataset import Feed, local_dataset
from tfspark.training.metric_states import merges_of
from tfspark.training.own_code import fixed_batch_size
from tfspark.training.padding import count_real_rows_alone

if TYPE_CHECKING:
    from tfspark.training.input.elements import Element, Structure
    from tfspark.training.node_context import NodeContext

Figure: TypeAlias = "float | list[Figure]"
"""A result of a metric: a number, or a list if the metric has several."""
SHOWN_ROWS = 1000
"""Number of rows of an evaluation that are kept for pictures."""


class LocalEvaluator:
    """Evaluate a model that belongs to no strategy, on this rank's rows and together with the other ranks.

    The states of metrics are merged; see `tfspark.training.metric_states`.

    Args:
        model: a compiled model.
        context: the node.
        num_ranks: number of ranks that evaluate together.
    """

    def __init__(self, model: keras.Model, context: NodeContext, num_ranks: int):
        self._model = model
        self._context = context
        self._num_ranks = num_ranks
        # Keras does not let AutoGraph convert steps, and for a small model conversion takes longer than the evaluation.
        self._step = tf.function(self._test_step, autograph=False)
        count = functools.partial(count_classes, model)
        self._count = tf.function(count, reduce_retracing=True, autograph=False)
        self._is_built = False
        self.confusion_matrix: Matrix | None = None
        self.roc: list[list[list[float]]] | None = None
        self.first_rows: tuple[object, object] | None = None

    def evaluate(self, feed: Feed, key: str, num_classes: int | None = None) -> dict[str, Figure]:
        """Return the metrics over all ranks' rows.

        Args:
            feed: this rank's rows.
            key: name of this evaluation, the same on all ranks.
            num_classes: also set `confusion_matrix` to the counts of (true, predicted) class, and `roc` to each class's
                curve. Both are None if the model does not predict these classes.
        """
        model = self._model
        if not self._is_built:
            self._build(feed)
        model.reset_metrics()
        kind = self._kind(num_classes, feed) if num_classes else None
        counts = np.zeros(num_counts(num_classes, kind) if num_classes and kind else 0)
        first: list[Element] = []
        dataset = local_dataset(feed)
        # Use the dataset's shapes, not those of the batches, so that the shorter last batch needs no graph of its own.
        step = self._step.get_concrete_function(dataset.element_spec)
        for element in dataset:
            step(element)
            self._context.activity.step_done()
            if sum(len(weights) for *_, weights in first) < SHOWN_ROWS:
                first.append(element)
            if kind:
                counts += self._count(element[:2], num_classes, kind).numpy()
        rank = self._context.node.task_index
        shown = np.zeros(self._num_ranks)
        shown[rank] = sum(len(weights) for *_, weights in first)
        merges = merges_of(model) if self._num_ranks > 1 else [np.add] * len(model.metrics_variables)
        states = [
            self._to_add_up(np.asarray(variable.numpy(), np.float64), merge)
            for variable, merge in zip(model.metrics_variables, merges, strict=True)
        ]
        # Every rank adds its part, also if it did not get all rows, so that no rank waits for another in vain.
        lacking = np.asarray([feed.is_broken_off], np.float64)
        *total, counts, shown, lacking = _sum_over_ranks(
            self._context, key, [*states, counts, shown, lacking], self._num_ranks
        )
        if np.any(lacking):
            raise broken_off(feed.spec.name, "an exception")
        # Any rank, also the chief, may get no rows of a small evaluation, because free ranks take them.
        self.first_rows = _joined([element[:2] for element in first]) if np.argmax(shown) == rank else None
        self.confusion_matrix, curves = None, None
        if num_classes and kind:
            self.confusion_matrix, curves = matrix_and_curves(np.asarray(counts), num_classes, kind)
        for variable, value, merge in zip(model.metrics_variables, total, merges, strict=True):
            state = np.asarray(value) if merge is np.add else merge.reduce(np.asarray(value))
            variable.assign(state.astype(variable.numpy().dtype))
        self.roc = roc_of(model) or curves
        return plain_logs(model.get_metrics_result())

    def _to_add_up(self, state: npt.NDArray[np.float64], merge: np.ufunc) -> npt.NDArray[np.float64]:
        """Return what this rank adds to the sum. If states are not added up, each rank has a place of its own in it."""
        if merge is np.add:
            return state
        places = np.zeros((self._num_ranks, *state.shape))
        places[self._context.node.task_index] = state
        return places

    def _build(self, feed: Feed) -> None:
        """Evaluate the sample: metrics create their variables at the first batch, which this rank may not have."""
        count_real_rows_alone(self._model, feed.weighs_rows)
        for element in local_dataset(feed, lambda: iter([feed.sample])):
            self._test_step(element)
        self._is_built = True

    def _test_step(self, element: Element) -> Structure:
        return self._model.test_step(self._filled_up(element))

    def _filled_up(self, element: Element) -> Element:
        """Pad a batch to the batch size for which the model was built; stateful layers need it."""
        size = fixed_batch_size(self._model)
        if size is None:
            return element
        x, y, weights = element
        missing = tf.maximum(size - tf.shape(weights)[0], 0)

        def filled(part: tf.Tensor) -> tf.Tensor:
            whole = tf.concat([part, tf.repeat(part[-1:], missing, axis=0)], 0)
            return tf.ensure_shape(whole, [size, *part.shape[1:]])

        padding = tf.fill([missing], tf.constant(PADDING))
        whole = tf.ensure_shape(tf.concat([weights, padding], 0), [size])
        return tf.nest.map_structure(filled, x), tf.nest.map_structure(filled, y), whole

    def _kind(self, num_classes: int, feed: Feed) -> Kind | None:
        """Return how to read labels; None if the model does not predict these classes."""
        if self._model.loss is None or fixed_batch_size(
            self._model
        ):  # Such a model may not be callable, either.
            return None
        (element,) = local_dataset(feed, lambda: iter([feed.sample]))
        return kind_of_label(self._model, self._model(element[0], training=False), element[1], num_classes)


def plain_logs(logs: Mapping[str, object]) -> dict[str, Figure]:
    """Return metric results as plain JSON; the entries of a metric that returns a dict get their own names."""
    found: dict[str, Figure] = {}
    for name, value in logs.items():
        found |= plain_logs(value) if isinstance(value, Mapping) else {name: plain(value)}
    return found


def plain(value: object) -> Figure:
    """Return a metric result as plain JSON: a number, or a list if the metric has several."""
    array = np.asarray(keras.ops.convert_to_numpy(value), np.float64)
    return float(array) if array.ndim == 0 else list(array.tolist())


def roc_of(model: keras.Model) -> list[list[list[float]]] | None:
    """Return the curve of the model's first AUC metric: (false positive rate, true positive rate) by threshold."""
    flat = [metric for outer in model.metrics for metric in getattr(outer, "metrics", [outer])]
    for metric in flat:
        if isinstance(metric, keras.metrics.AUC) and not metric.multi_label:
            names = ("false_positives", "true_negatives", "true_positives", "false_negatives")
            false_pos, true_neg, true_pos, false_neg = (getattr(metric, name).numpy() for name in names)
            rates = (
                false_pos / np.maximum(false_pos + true_neg, 1),
                true_pos / np.maximum(true_pos + false_neg, 1),
            )
            points: list[list[float]] = np.stack(rates, axis=1)[::-1].tolist()
            return [points]
    return None


def is_dense(parts: object) -> bool:
    """Return whether all parts of a structure are plain tensors, whose rows can be concatenated."""
    return all(isinstance(part, tf.Tensor) for part in tf.nest.flatten(parts))


def _joined(elements: Sequence[tuple[Structure, Structure]]) -> tuple[object, object] | None:
    """Concatenate features and labels of some batches, at most `SHOWN_ROWS` rows; None if they are not dense."""
    if not elements or not is_dense(elements):
        return None
    x, y = tf.nest.map_structure(lambda *parts: np.concatenate(parts)[:SHOWN_ROWS], *elements)
    return x, y


def _sum_over_ranks(
    context: NodeContext, key: str, values: list[npt.NDArray[np.float64]], num_ranks: int
) -> list[Any]:
    """Add up arrays of all ranks through the driver."""
    timeout_s = context.settings.feed_timeout_s
    until = time.monotonic() + timeout_s
    parts: list[Figure] | None = [value.tolist() for value in values]
    while time.monotonic() < until:
        reply = context.control.call("sum", key=key, rank=context.node.task_index, of=num_ranks, values=parts)
        if reply["status"] == "ok":
            return list(reply["values"])
        # Values that have arrived are not sent again with each call.
        parts = [value.tolist() for value in values] if reply["status"] == "again" else None
    raise DeadlineError(
        f"waited feed_timeout_s={timeout_s:g} s for the other workers to evaluate {key!r}; see their logs, or "
        "raise feed_timeout_s"
    )
