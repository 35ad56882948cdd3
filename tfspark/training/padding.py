"""Compute losses and metrics over the real rows of a batch on all workers. Runs in the trainer.

The feed gives every row a weight, ``(B,)``, and pads batches with copies of rows whose weight is -0.0 (`PADDING` of
`tfspark.feed.reader`). This zero differs from the zero weight of a real row. Keras accepts such weights only for losses
with one value per row, divides by the count of one replica, and passes every row to unweighted metrics. Here:

- a row's weight applies to all its values (pixels, time steps);
- a reduction divides by the count over all replicas: real rows, sums of weights, values that are not masked;
- a loss that is not a sum over rows, such as Dice of the whole batch, is computed on the rows of all replicas;
- metrics get the real rows, without weights if the user gave none; those whose states are not sums over rows get the
  rows of all replicas;
- the loss of an epoch, and of each output, is the mean over real rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras.src import backend, tree
from keras.src.backend.common import global_state
from keras.src.losses import loss as loss_module

from tfspark.errors import ConfigError
from tfspark.training.metric_states import is_of_rows_alone, nature_of, random_values, watched_metrics
from tfspark.training.own_code import (
    MIRRORED,
    as_in_one_process,
    is_own,
    real_parts,
    replicas,
    share,
    watch_steps,
)

if TYPE_CHECKING:
    from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics

    from tfspark.training.input.elements import Structure

MEANS = ("sum_over_batch_size", "mean")
_keras_reduction = loss_module.reduce_weighted_values
_keras_scaling = loss_module.scale_loss_for_distribution


def count_real_rows_alone(model: keras.Model, weights_given: bool) -> None:
    """Let a compiled model's losses and metrics use real rows only; harmless if called before.

    Args:
        model: a compiled model.
        weights_given: whether rows have their own weights; if not, weighted metrics get none.
    """
    loss_module.reduce_weighted_values = _reduced
    loss_module.scale_loss_for_distribution = _scaled
    step = _Step(model, weights_given or is_own(model, "train_step"))
    watch_steps(model, _share_of, real_rows, weights_given)
    if not hasattr(model._loss_tracker, "_tfspark_step"):
        step.watch_total()
    if model._compile_loss is not None and not hasattr(model._compile_loss, "_tfspark_step"):
        step.watch_losses(model._compile_loss)
    if model._compile_metrics is not None and not hasattr(model._compile_metrics, "_tfspark_step"):
        step.watch_metrics(model._compile_metrics)


def real_rows(weights: tf.Tensor) -> tf.Tensor:
    """Return which rows are real, ``(B,)`` bool: all rows whose weight is not -0.0."""
    bits = tf.bitcast(tf.cast(weights, tf.float32), tf.int32)
    return tf.not_equal(bits, tf.int32.min)


@dataclass
class _Rows:
    """The rows of the batch whose losses are being computed.

    Attributes:
        real: ``(B,)`` bool.
        weights: ``(B,)`` float32.
        weights_given: whether the weights say more than which rows are real.
        tracked: what the last loss adds to a mean over rows.
        is_whole: whether the last loss was not a sum over rows.
        reductions: number of reductions in the last loss; more than one if it consists of several losses.
    """

    real: tf.Tensor
    weights: tf.Tensor
    weights_given: bool
    tracked: tf.Tensor | None = None
    is_whole: bool = False
    reductions: int = 0
    _in_step: tf.Tensor | None = None

    def count(self) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(self.real, tf.float32))

    def in_step(self) -> tf.Tensor:
        """Return the number of rows on all replicas, at least 1; replicas exchange it once per step, for all losses."""
        if self._in_step is None:
            self._in_step = tf.stop_gradient(tf.maximum(_over_replicas(self.count()), 1.0))
        return self._in_step


_current: list[_Rows] = []
"""The current batch; empty outside of a step, where Keras's own reduction is used."""
_whole: list[_LossOfRows] = []
"""The loss that is being computed on all replicas' rows; each replica has its share of all rows in one place."""


# --- losses ----------------------------------------------------------------------------------------


def _reduced(
    values: tf.Tensor,
    sample_weight: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    reduction: str | None = "sum_over_batch_size",
    dtype: str | None = None,
) -> tf.Tensor:
    """Reduce the values of a loss as Keras does, but over all replicas' rows."""
    if not _current:
        value = _keras_reduction(values, sample_weight, mask, reduction, dtype)
        # In a model's own code, what is a sum over this replica's rows becomes one over all rows.
        return _of_own_rows(value) if reduction == "sum" else value
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
        total = tf.math.divide_no_nan(total, tf.stop_gradient(_over_replicas(tf.reduce_sum(counted))))
    rows.tracked = total * tf.cast(rows.in_step(), total.dtype)
    return total


def _scaled(value: tf.Tensor) -> tf.Tensor:
    """Divide by the number of replicas as Keras does, except for values over all rows and in a model's own code.

    Nor within a layer: what it adds to the loss is divided when it is added.
    """
    is_in_layer = global_state.get_global_attribute("current_call_ctx") is not None
    return value if _whole or share() is not None or is_in_layer else _keras_scaling(value)


def _share_of(real: tf.Tensor) -> tf.Tensor:
    """Return this replica's share of all replicas' real rows."""
    rows = tf.reduce_sum(tf.cast(real, tf.float32))
    return rows / tf.maximum(_over_replicas(rows), 1.0)


def _stretched(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Repeat ``(B, ...)`` over the additional axes of values, ``(B, ..., ...)``."""
    while weights.shape.rank < values.shape.rank:
        weights = weights[..., None]
    if weights.shape.rank > values.shape.rank and weights.shape[-1] == 1:
        weights = tf.squeeze(weights, -1)
    return tf.broadcast_to(weights, tf.shape(values))


def _num_replicas() -> int:
    """Return the number of replicas that take a step together."""
    context = replicas()
    return 1 if context is None else int(context.strategy.num_replicas_in_sync)


def _over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Return the sum of a number over all replicas."""
    context = replicas()
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _joined(tensor: tf.Tensor) -> tf.Tensor:
    """Concatenate the rows of all replicas: ``(B, ...)`` -> ``(replicas * B, ...)``."""
    context = replicas()
    if context is None:
        return tensor
    if tensor.dtype == tf.bool:
        return tf.cast(context.all_gather(tf.cast(tensor, tf.int32), axis=0), tf.bool)
    # Only a tensor that was created on this device can be sent.
    return context.all_gather(tf.identity(tensor), axis=0)


class _LossOfRows:
    """Wrap a loss of a compiled model, and record what it adds to the mean over rows."""

    def __init__(self, loss: keras.losses.Loss):
        self._loss = loss
        self._compares_rows: bool | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def __call__(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        if not _current:
            return self._loss(y_true, y_pred, sample_weight)
        rows = _current[-1]
        value = None
        if self._compares_rows is None:
            self._compares_rows = _compares_rows(self._loss, y_true, y_pred)
        if not self._compares_rows:
            rows.is_whole, rows.tracked, rows.reductions = False, None, 0
            value = self._loss(y_true, y_pred, rows.weights)
        if value is None or rows.is_whole or rows.reductions > 1:
            value = self._of_whole_batch(rows, y_true, y_pred)
            rows.tracked = value * tf.cast(rows.in_step(), value.dtype)
        return value

    def _of_whole_batch(self, rows: _Rows, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return this replica's share of the loss of all replicas' real rows."""
        real = _joined(rows.real)
        truth, guess, weights = (
            tf.boolean_mask(_joined(tf.convert_to_tensor(t)), real) for t in (y_true, y_pred, rows.weights)
        )
        if not rows.weights_given:
            weights = None  # The remaining axis may be classes, not rows.
        mask = backend.get_keras_mask(y_pred)
        if mask is not None:
            backend.set_keras_mask(guess, tf.boolean_mask(_joined(tf.cast(mask, tf.bool)), real))
        of_rows = _current[:]
        _current.clear()
        _whole.append(self)
        try:
            value = self._loss(truth, guess, weights)
        finally:
            _current[:] = of_rows
            _whole.pop()
        return tf.reduce_sum(value) / _num_replicas()


def _compares_rows(loss: keras.losses.Loss, y_true: tf.Tensor, y_pred: tf.Tensor) -> bool:
    """Return whether a row's value may depend on other rows of its batch."""
    if type(loss).__call__ is not keras.losses.Loss.__call__:
        return True
    made_of = (type(loss), getattr(loss, "fn", type(loss)))
    if not all(str(part.__module__).startswith("keras.") for part in made_of):
        return _depends_on_other_rows(loss, y_true, y_pred)
    is_over_rows = isinstance(loss, keras.losses.Dice | keras.losses.Tversky) and 0 in tree.flatten(loss.axis)
    return isinstance(loss, keras.losses.Circle) or is_over_rows


def _depends_on_other_rows(loss: keras.losses.Loss, y_true: tf.Tensor, y_pred: tf.Tensor) -> bool:
    """Try a loss on a row among others, and on the row alone."""
    of_rows = _current[:]
    _current.clear()
    try:
        with tf.init_scope():
            truth, guess = random_values(y_true, 4, 0), random_values(y_pred, 4, 1)
            among, alone = (np.asarray(loss.call(truth[:n], guess[:n])) for n in (4, 1))
    except Exception:  # It takes no such values.
        return False
    finally:
        _current[:] = of_rows
    return among.ndim > 0 and not np.allclose(among[:1], alone, rtol=1e-3, equal_nan=True)


class _Step:
    """Watches the losses and metrics of a model within its steps."""

    def __init__(self, model: keras.Model, weights_given: bool):
        self._model = model
        self._weights_given = weights_given
        self._rows: _Rows | None = None
        self._data_loss: tf.Tensor | float | None = None
        self._tracked: tf.Tensor | float | None = None

    # --- losses ------------------------------------------------------------------------------------

    def watch_total(self) -> None:
        """Wrap the mean of a model's loss."""
        model, tracker = self._model, self._model._loss_tracker
        compute_loss, aggregate = model._compute_loss, model._aggregate_additional_loss
        tracker._tfspark_step = self
        tracker.update_state = self._counting(tracker, None)

        def computed(
            x: Structure | None = None,
            y: Structure | None = None,
            y_pred: Structure | None = None,
            sample_weight: tf.Tensor | None = None,
            training: bool = True,
        ) -> tf.Tensor:
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
            if replicas() is None:
                return compute_loss(*parts, training)
            of_rows = _share_of(real)
            with as_in_one_process(of_rows):
                loss = compute_loss(*parts, training)
            return tf.where(of_rows > 0, loss, tf.zeros_like(loss)) * tf.cast(of_rows, loss.dtype)

        def aggregated(loss: tf.Tensor) -> tf.Tensor:
            """Add up what a layer adds to the loss: a number, which is a mean, or a value for each row."""
            real = None if self._rows is None else self._rows.real
            of_rows = real is not None or share() is not None
            size = None if real is None else real.shape[0]
            if not loss.shape.rank or not of_rows or loss.shape[0] not in (None, size):
                return aggregate(loss)
            loss = tf.cast(loss, loss.dtype if loss.dtype.is_floating else backend.floatx())
            if size is not None:  # There may be padding.
                loss = tf.where(_stretched(real, loss), loss, 0)
            return _of_own_rows(tf.reduce_sum(loss))

        model._compute_loss, model._aggregate_additional_loss = computed, aggregated

    def watch_losses(self, losses: CompileLoss) -> None:
        """Wrap a model's compiled losses."""
        losses._tfspark_step = self
        call, build = losses.call, losses.build

        def built(y_true: Structure, y_pred: Structure) -> None:
            build(y_true, y_pred)
            losses._flat_losses = [each._replace(loss=self._watched(each)) for each in losses._flat_losses]
            for metric in losses.metrics:
                metric.update_state = self._counting(metric, lambda: self._last)

        def called(y_true: Structure, y_pred: Structure, sample_weight: Structure | None = None) -> tf.Tensor:
            if not _is_row_weight(sample_weight):
                self._rows = None  # They belong to another trace, and no metric used them.
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

    _last: tf.Tensor | float = 0.0

    def _watched(self, entry: CompileLoss.Loss) -> Callable[..., tf.Tensor]:
        loss, factor = _LossOfRows(entry.loss), entry.loss_weights

        def call(y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> tf.Tensor:
            value = loss(y_true, y_pred, sample_weight)
            if _current:
                self._last = tf.cast(_current[-1].tracked, tf.float32)
                self._tracked += self._last * (1.0 if factor is None else factor)
            return value

        return call

    def _counting(
        self, metric: keras.metrics.Mean, tracked: Callable[[], tf.Tensor | float] | None
    ) -> Callable[..., None]:
        """Return an ``update_state`` for a mean of losses that counts real rows."""
        original = metric.update_state

        def update_state(value: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
            if self._rows is None or not _is_in_scope(self._rows.real):
                of_rows = share() if sample_weight is None else None
                original(value, sample_weight=sample_weight if of_rows is None else of_rows)
                return
            rows = self._rows.count()
            if tracked is None:
                total = self._total(value, rows)
                if sample_weight is None:  # A model's own step, where all batches count equally.
                    total, rows = (part / self._rows.in_step() for part in (total, rows))
                self._rows = None
            else:
                total = tracked()
            metric.total.assign_add(tf.cast(total, metric.total.dtype))
            metric.count.assign_add(tf.cast(rows, metric.count.dtype))

        return update_state

    def _total(self, value: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Return the number that a step's loss adds: its sum over rows, with the regularisation once for each row."""
        assert self._rows is not None
        loss = tf.reduce_mean(tf.cast(value, tf.float32))
        is_own_step = share() is not None
        if self._data_loss is None:  # The model has no compiled loss, or does not use it.
            return loss * rows if is_own_step else loss / _num_replicas() * self._rows.in_step()
        if is_own_step:
            return self._tracked + (loss - tf.reduce_mean(_of_own_rows(self._data_loss))) * rows
        of_rows = tf.reduce_mean(tf.cast(self._data_loss, tf.float32)) * _num_replicas()
        # Other terms, such as regularisation or a changed loss, are divided among the replicas.
        is_shared = tf.convert_to_tensor(self._data_loss).shape.rank == 0
        in_step = self._rows.in_step() if is_shared else tf.cast(tf.size(self._rows.real), tf.float32)
        return self._tracked + (loss - of_rows) / _num_replicas() * in_step

    # --- metrics -----------------------------------------------------------------------------------

    def watch_metrics(self, metrics: CompileMetrics) -> None:
        """Wrap a model's compiled metrics."""
        metrics._tfspark_step = self
        model, update_state = self._model, metrics.update_state

        def updated(y_true: Structure, y_pred: Structure, sample_weight: Structure | None = None) -> None:
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
            else:  # A model's own step that passes no weights on.
                has_rows = tf.greater(of_rows, 0)
                chosen, weights = (y_true, y_pred), sample_weight
            for metric in watched_metrics(model):
                _let_state_be_known(metric)

            if replicas() is None:
                update_state(*chosen, sample_weight=weights)
                return

            def count_own() -> tf.Tensor:
                with _counting_metrics(sums=True):
                    update_state(*chosen, sample_weight=weights)
                return tf.constant(True)

            # One of several workers may have no more rows.
            tf.cond(has_rows, count_own, lambda: tf.constant(False))
            others = [metric.name for metric in watched_metrics(model) if not is_of_rows_alone(metric)]
            if others:
                # All replicas have the same rows here, and there are some in each step.
                joined = tree.map_structure(
                    lambda part: _of_all(part, has_rows, others[0]), (chosen, weights)
                )
                with _counting_metrics(sums=False):
                    update_state(*joined[0], sample_weight=joined[1])

        metrics.update_state = updated


_counting: list[bool] = []
"""Which metrics count now: those whose states are sums over rows, or the others; empty: all."""


@contextmanager
def _counting_metrics(sums: bool) -> Iterator[None]:
    """Let only those metrics count within the block whose states are sums over rows, or only the others."""
    _counting.append(sums)
    try:
        yield
    finally:
        _counting.pop()


def _let_state_be_known(metric: keras.Metric) -> None:
    """Find out what a metric's state is when it is first updated; later, let it count when it is its turn."""
    if hasattr(metric, "_tfspark_nature"):
        return
    metric._tfspark_nature = None
    original = metric.update_state

    @functools.wraps(original)
    def update_state(y_true: tf.Tensor, y_pred: tf.Tensor, *args: object, **kwargs: object) -> object:
        if metric._tfspark_nature is None:
            metric._tfspark_nature = nature_of(metric, original, y_true, y_pred)
        if _counting and _counting[-1] != is_of_rows_alone(metric):
            return None
        return original(y_true, y_pred, *args, **kwargs)

    metric.update_state = update_state


def _of_all(part: tf.Tensor | None, has_rows: tf.Tensor, name: str) -> tf.Tensor | None:
    """Return the rows of all replicas that have some.

    Raises:
        ConfigError: they cannot be sent; `name` is the metric for which they are needed.
    """
    if part is None:
        return None
    if not isinstance(part, tf.Tensor) or part.dtype == tf.string:
        raise ConfigError(
            f"expected labels and predictions that are arrays of numbers for a metric whose state is not a sum over "
            f"rows ({name!r}), got a {type(part).__name__} of {part.dtype.name}; use one worker, or leave it out"
        )
    rows, mask = (
        each if each is None else tf.cond(has_rows, lambda each=each: each, lambda each=each: each[:0])
        for each in (part, backend.get_keras_mask(part))
    )
    joined = _joined(rows)
    if mask is not None:
        backend.set_keras_mask(joined, _joined(mask))
    return joined


def _of_own_rows(loss: tf.Tensor) -> tf.Tensor:
    """Convert a share of all replicas' loss to a mean over this replica's rows, in a model's own code.

    Values of rows remain what they are: no share.
    """
    of_rows = share()
    if of_rows is None or tf.convert_to_tensor(loss).shape.rank:
        return loss
    return tf.math.divide_no_nan(loss, tf.cast(of_rows, loss.dtype))


def _is_in_scope(tensor: tf.Tensor) -> bool:
    """Return whether a tensor belongs to what is traced now. A model's own step may leave one of another trace."""
    if not tf.is_symbolic_tensor(tensor):
        return True
    graph = tf.compat.v1.get_default_graph()
    while graph is not None and graph is not tensor.graph:
        graph = getattr(graph, "outer_graph", None)
    return graph is not None


def _is_row_weight(weight: Any) -> bool:
    return bool(tf.is_tensor(weight) and weight.shape.rank == 1)


def _chosen(part: tf.Tensor | tf.RaggedTensor | None, real: tf.Tensor) -> tf.Tensor | tf.RaggedTensor | None:
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


def _stretch_weights_of(metric: keras.metrics.Metric) -> None:
    """Let a weighted metric that compares single values accept one weight per row, as Keras's means do."""
    if isinstance(metric, keras.metrics.Mean | keras.metrics.Sum) or hasattr(metric, "_tfspark_stretched"):
        return
    metric._tfspark_stretched = True
    update_state = metric.update_state

    def stretched(y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> object:
        if _is_row_weight(sample_weight) and y_pred.shape.rank > 2:
            is_sparse = isinstance(metric, keras.metrics.IoU) and metric.sparse_y_true
            like = y_true if is_sparse else y_pred[..., 0]
            sample_weight = _stretched(sample_weight, like)
        return update_state(y_true, y_pred, sample_weight=sample_weight)

    metric.update_state = stretched
