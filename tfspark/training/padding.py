"""Losses and metrics of a batch as those of its real rows, over all workers. Runs in the trainer.

The feed gives every row a weight, ``(B,)``, and fills batches up with copies of rows at weight -0.0 (`PADDING` of
`tfspark.feed.reader`): a zero that can be told from the zero of a real row. Keras takes such weights for losses of one
value per row alone, divides by what one replica has, and gives unweighted metrics every row. Here

- a weight is stretched over all values of its row (pixels, steps of time);
- what a reduction divides by is that of all replicas: real rows, sums of weights, values that are not masked;
- a loss that is no sum over rows, such as Dice of the whole batch, is taken of the rows of all replicas;
- metrics get the real rows, without weights if nobody gave any;
- the epoch's loss, and that of each output, is the mean over real rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend, tree
from keras.src.losses import loss as loss_module

from tfspark.training.own_code import (
    MIRRORED,
    as_in_one_process,
    is_own,
    real_parts,
    share,
    watch_steps,
)

MEANS = ("sum_over_batch_size", "mean")
_keras_reduction = loss_module.reduce_weighted_values
_keras_scaling = loss_module.scale_loss_for_distribution


def count_real_rows_alone(model: keras.Model, weights_given: bool) -> None:
    """Let a compiled model's losses and metrics be those of real rows; harmless when done before.

    Args:
        model: a compiled model.
        weights_given: whether rows have weights of their own; else weighted metrics get none.
    """
    loss_module.reduce_weighted_values = _reduced
    loss_module.scale_loss_for_distribution = _scaled
    step = _Step(model, weights_given or is_own(model, "train_step"))
    watch_steps(model, _share_of, real_rows)
    if not hasattr(model._loss_tracker, "_tfspark_step"):
        step.watch_total()
    if model._compile_loss is not None and not hasattr(model._compile_loss, "_tfspark_step"):
        step.watch_losses(model._compile_loss)
    if model._compile_metrics is not None and not hasattr(model._compile_metrics, "_tfspark_step"):
        step.watch_metrics(model._compile_metrics)


def real_rows(weights: tf.Tensor) -> tf.Tensor:
    """Return which rows are real, ``(B,)`` bool: all whose weight is not -0.0."""
    bits = tf.bitcast(tf.cast(weights, tf.float32), tf.int32)
    return tf.not_equal(bits, tf.int32.min)


@dataclass
class _Rows:
    """Rows of the batch whose losses are being computed.

    Attributes:
        real: ``(B,)`` bool.
        weights: ``(B,)`` float32.
        weights_given: whether these say more than which rows are real.
        tracked: what the last loss adds to a mean over rows.
        is_whole: whether the last loss was no sum over rows.
        reductions: how many the last loss has taken: more than one if it is made of others.
    """

    real: tf.Tensor
    weights: tf.Tensor
    weights_given: bool
    tracked: Any = None
    is_whole: bool = False
    reductions: int = 0
    _in_step: tf.Tensor | None = None

    def count(self) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(self.real, tf.float32))

    def in_step(self) -> tf.Tensor:
        """Return how many rows all replicas have, at least 1; they exchange it once, however many losses ask."""
        if self._in_step is None:
            self._in_step = tf.stop_gradient(tf.maximum(over_replicas(self.count()), 1.0))
        return self._in_step


_current: list[_Rows] = []
"""The batch under way; empty outside of a step: Keras's own reduction is used then."""
_whole: list[Any] = []
"""The loss that is being taken of all replicas' rows, which has its share of all in one place."""


# --- losses ----------------------------------------------------------------------------------------


def _reduced(
    values: Any,
    sample_weight: Any = None,
    mask: Any = None,
    reduction: str | None = "sum_over_batch_size",
    dtype: Any = None,
) -> Any:
    """Reduce the values of a loss as Keras does, over all replicas' rows."""
    if not _current:
        return _keras_reduction(values, sample_weight, mask, reduction, dtype)
    rows = _current[-1]
    rows.reductions += 1
    values = tf.cast(tf.convert_to_tensor(values), dtype or backend.floatx())
    rows.is_whole = values.shape.rank == 0 or values.shape[0] not in (None, rows.real.shape[0])
    if rows.is_whole:
        return values
    real = _stretched(rows.real, values)
    weights = tf.where(real, _stretched(tf.cast(rows.weights, values.dtype), values), 0)
    if mask is not None:
        mask = tf.logical_and(_stretched(tf.cast(mask, tf.bool), values), real)
        weights *= tf.cast(mask, values.dtype)
    weighed = tf.where(real, values, 0) * weights
    per_row = tf.cast(tf.size(values) / tf.shape(values)[0], values.dtype)
    total = tf.reduce_sum(weighed)
    if reduction in MEANS and mask is None:
        rows.tracked = total / per_row
        return total / per_row / tf.cast(rows.in_step(), values.dtype)
    if reduction in (None, "none"):
        rows.tracked = total / per_row
        return weighed
    if reduction != "sum":
        counted = weights if reduction == "mean_with_sample_weight" else tf.cast(mask, values.dtype)
        total = tf.math.divide_no_nan(total, tf.stop_gradient(over_replicas(tf.reduce_sum(counted))))
    rows.tracked = total * tf.cast(rows.in_step(), total.dtype)
    return total


def _scaled(value: Any) -> Any:
    """Divide by the replicas as Keras does, but for what is of all replicas' rows, and in a model's own code."""
    return value if _whole or share() is not None else _keras_scaling(value)


def _share_of(real: tf.Tensor) -> tf.Tensor:
    """Return the share of all replicas' real rows that this one has."""
    rows = tf.reduce_sum(tf.cast(real, tf.float32))
    return rows / tf.maximum(over_replicas(rows), 1.0)


def _stretched(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Repeat ``(B, ...)`` over the further axes of values, ``(B, ..., ...)``."""
    while weights.shape.rank < values.shape.rank:
        weights = weights[..., None]
    if weights.shape.rank > values.shape.rank and weights.shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    return tf.broadcast_to(weights, tf.shape(values))


def _replicas() -> Any:
    """Return the context of this replica if it is one of several that take each step together."""
    context = tf.distribute.get_replica_context()
    if context is None or not isinstance(context.strategy, MIRRORED):
        return None
    return context if context.strategy.num_replicas_in_sync > 1 else None


def num_replicas() -> int:
    """Return how many replicas take a step together."""
    context = _replicas()
    return 1 if context is None else int(context.strategy.num_replicas_in_sync)


def over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Add a number of each replica up."""
    context = _replicas()
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _joined(tensor: tf.Tensor) -> tf.Tensor:
    """Put the rows of all replicas together: ``(B, ...)`` -> ``(replicas * B, ...)``."""
    context = _replicas()
    # Only a tensor that was made on this device can be sent.
    return tensor if context is None else context.all_gather(tf.identity(tensor), axis=0)


class _LossOfRows:
    """Stands for a loss of a compiled model; notes what it adds to the mean over rows.

    Args:
        loss: a `keras.losses.Loss`.
    """

    def __init__(self, loss: Any):
        self._loss = loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if not _current:
            return self._loss(y_true, y_pred, sample_weight)
        rows = _current[-1]
        value = None
        if not compares_rows(self._loss):
            rows.is_whole, rows.tracked, rows.reductions = False, None, 0
            value = self._loss(y_true, y_pred, rows.weights)
        if value is None or rows.is_whole or rows.reductions > 1:
            value = self._of_whole_batch(rows, y_true, y_pred)
            rows.tracked = value * tf.cast(rows.in_step(), value.dtype)
        elif rows.tracked is None:  # It has a way of its own to take the weights.
            of_rows = share()
            value = value * num_replicas() if of_rows is None else value
            rows.tracked = value * tf.cast(rows.count(), value.dtype)
            value = value / num_replicas() if of_rows is None else value * tf.cast(of_rows, value.dtype)
        return value

    def _of_whole_batch(self, rows: _Rows, y_true: Any, y_pred: Any) -> Any:
        """Return this replica's share of the loss of all replicas' real rows."""
        real = tf.cast(_joined(tf.cast(rows.real, tf.int32)), tf.bool)
        truth, guess, weights = (
            tf.boolean_mask(_joined(tf.convert_to_tensor(t)), real) for t in (y_true, y_pred, rows.weights)
        )
        if not rows.weights_given:
            weights = None  # What is left may be numbers of classes, not of rows.
        of_rows = _current[:]
        _current.clear()
        _whole.append(self)
        try:
            value = self._loss(truth, guess, weights)
        finally:
            _current[:] = of_rows
            _whole.pop()
        return tf.reduce_sum(value) / num_replicas()


def compares_rows(loss: Any) -> bool:
    """Tell whether the value of a row depends on the other rows of its batch."""
    axis = getattr(loss, "axis", None)
    is_over_rows = isinstance(loss, keras.losses.Dice | keras.losses.Tversky) and 0 in tree.flatten(axis)
    return isinstance(loss, keras.losses.Circle) or is_over_rows


class _Step:
    """Watches the losses and metrics of a model from within its steps."""

    def __init__(self, model: keras.Model, weights_given: bool):
        self._model = model
        self._weights_given = weights_given
        self._rows: _Rows | None = None
        self._data_loss: Any = None
        self._tracked: Any = None

    # --- losses ------------------------------------------------------------------------------------

    def watch_total(self) -> None:
        """Stand between a model and the mean of its loss."""
        model, tracker = self._model, self._model._loss_tracker
        compute_loss = model._compute_loss
        tracker._tfspark_step = self
        tracker.update_state = self._counting(tracker, None)

        def computed(
            x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
        ) -> Any:
            if not _is_row_weight(sample_weight):
                self._rows = None
                return compute_loss(x, y, y_pred, sample_weight, training)
            real = real_rows(sample_weight)
            self._rows = _Rows(real, sample_weight, self._weights_given)
            self._data_loss = self._tracked = None
            is_fed = isinstance(tf.distribute.get_strategy(), MIRRORED)
            if share() is not None or not is_fed or not is_own(model, "compute_loss"):
                return compute_loss(x, y, y_pred, sample_weight, training)
            parts = real_parts(model, (x, y, y_pred, sample_weight), real)
            if _replicas() is None:
                return compute_loss(*parts, training)
            of_rows = _share_of(real)
            with as_in_one_process(of_rows):
                loss = compute_loss(*parts, training)
            return tf.where(of_rows > 0, loss, tf.zeros_like(loss)) * tf.cast(of_rows, loss.dtype)

        model._compute_loss = computed

    def watch_losses(self, losses: Any) -> None:
        """Stand between a model and its compiled losses."""
        losses._tfspark_step = self
        call, build = losses.call, losses.build

        def built(y_true: Any, y_pred: Any) -> None:
            build(y_true, y_pred)
            losses._flat_losses = [each._replace(loss=self._watched(each)) for each in losses._flat_losses]
            for metric in losses.metrics:
                metric.update_state = self._counting(metric, lambda: self._last)

        def called(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            if not _is_row_weight(sample_weight):
                self._rows = None  # Those of another trace, which no metric has asked for.
                return call(y_true, y_pred, sample_weight)
            self._rows = _Rows(real_rows(sample_weight), sample_weight, self._weights_given)
            self._data_loss = self._tracked = 0.0
            _current.append(self._rows)
            try:
                self._data_loss = call(y_true, y_pred, sample_weight)
            finally:
                _current.pop()
            return _of_own_rows(self._data_loss)

        losses.build, losses.call = built, called
        if losses.built:
            losses._flat_losses = [each._replace(loss=self._watched(each)) for each in losses._flat_losses]
            for metric in losses.metrics:
                metric.update_state = self._counting(metric, lambda: self._last)

    _last: Any = 0.0

    def _watched(self, entry: Any) -> Any:
        loss, factor = _LossOfRows(entry.loss), entry.loss_weights

        def call(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            value = loss(y_true, y_pred, sample_weight)
            if _current:
                self._last = tf.cast(_current[-1].tracked, tf.float32)
                self._tracked += self._last * (1.0 if factor is None else factor)
            return value

        return call

    def _counting(self, metric: Any, tracked: Any) -> Any:
        """Return an ``update_state`` of a mean of losses that counts real rows."""
        original = metric.update_state

        def update_state(value: Any, sample_weight: Any = None) -> None:
            if self._rows is None:
                of_rows = share() if sample_weight is None else None
                original(value, sample_weight=sample_weight if of_rows is None else of_rows)
                return
            rows = self._rows.count()
            if tracked is None:
                total = self._total(value, rows)
                if sample_weight is None:  # A step of one's own, to which all batches count alike.
                    total, rows = (part / self._rows.in_step() for part in (total, rows))
                self._rows = None
            else:
                total = tracked()
            metric.total.assign_add(tf.cast(total, metric.total.dtype))
            metric.count.assign_add(tf.cast(rows, metric.count.dtype))

        return update_state

    def _total(self, value: Any, rows: tf.Tensor) -> tf.Tensor:
        """Return what a step's loss adds: that of the rows, and for each row that of regularisation."""
        assert self._rows is not None
        loss = tf.reduce_mean(tf.cast(value, tf.float32))
        is_own_step = share() is not None
        if self._data_loss is None:  # It has no compiled loss, or leaves it out.
            if is_own_step or not is_own(self._model, "compute_loss"):
                return loss * rows
            return loss / num_replicas() * self._rows.in_step()
        if is_own_step:
            return self._tracked + (loss - tf.reduce_mean(_of_own_rows(self._data_loss))) * rows
        of_rows = tf.reduce_mean(tf.cast(self._data_loss, tf.float32)) * num_replicas()
        # Each replica has its share of what comes beside: of regularisation, or of a loss that is changed.
        is_shared = tf.convert_to_tensor(self._data_loss).shape.rank == 0
        in_step = self._rows.in_step() if is_shared else tf.cast(tf.size(self._rows.real), tf.float32)
        return self._tracked + (loss - of_rows) / num_replicas() * in_step

    # --- metrics -----------------------------------------------------------------------------------

    def watch_metrics(self, metrics: Any) -> None:
        """Stand between a model and its compiled metrics."""
        metrics._tfspark_step = self
        update_state = metrics.update_state

        def updated(y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
            is_of_rows = _is_row_weight(sample_weight)
            of_rows = None if is_of_rows else share()
            if not is_of_rows and of_rows is None:
                update_state(y_true, y_pred, sample_weight=sample_weight)
                return
            if not metrics.built:
                metrics.build(y_true, y_pred)
            if is_of_rows:
                for metric in metrics._flat_weighted_metrics:
                    for each in getattr(metric, "metrics", []):
                        _stretch_weights_of(each)
                real = real_rows(sample_weight)
                has_rows = tf.reduce_any(real)
                chosen = tree.map_structure(lambda part: _chosen(part, real), (y_true, y_pred))
                weights = tf.boolean_mask(sample_weight, real) if self._weights_given else None
            else:  # A step of one's own that passes no weights on.
                has_rows = tf.greater(of_rows, 0)
                chosen, weights = (y_true, y_pred), sample_weight

            def count() -> tf.Tensor:
                update_state(*chosen, sample_weight=weights)
                return tf.constant(True)

            if _replicas() is None:
                count()
            else:  # Of several workers one may have no row any more.
                tf.cond(has_rows, count, lambda: tf.constant(False))

        metrics.update_state = updated


def _of_own_rows(loss: Any) -> Any:
    """Make of a share in all replicas' loss, in a model's own code, a mean over this replica's rows."""
    of_rows = share()
    return loss if of_rows is None else tf.math.divide_no_nan(loss, tf.cast(of_rows, loss.dtype))


def _is_row_weight(weight: Any) -> bool:
    return bool(tf.is_tensor(weight) and weight.shape.rank == 1)


def _chosen(part: Any, real: tf.Tensor) -> Any:
    """Return the real rows of labels or predictions, with their mask."""
    if part is None:
        return None
    if isinstance(part, tf.RaggedTensor):
        return tf.ragged.boolean_mask(part, real)
    rows = tf.boolean_mask(part, real)
    mask = backend.get_keras_mask(part)
    if mask is not None:
        backend.set_keras_mask(rows, tf.boolean_mask(mask, real))
    return rows


def _stretch_weights_of(metric: Any) -> None:
    """Let a weighted metric that compares single values take a weight for each row; the means of Keras do."""
    if isinstance(metric, keras.metrics.Mean | keras.metrics.Sum) or hasattr(metric, "_tfspark_stretched"):
        return
    metric._tfspark_stretched = True
    update_state = metric.update_state

    def stretched(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if _is_row_weight(sample_weight) and y_pred.shape.rank > 2:
            is_sparse = isinstance(metric, keras.metrics.IoU) and metric.sparse_y_true
            like = y_true if is_sparse else y_pred[..., 0]
            sample_weight = _stretched(sample_weight, like)
        return update_state(y_true, y_pred, sample_weight=sample_weight)

    metric.update_state = stretched
