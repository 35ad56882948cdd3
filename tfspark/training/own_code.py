"""Run a model's own steps and losses with the same results as in one process. Runs in the trainer.

A model may override `train_step`, `test_step`, `compute_loss` or `compute_metrics`. Such code usually takes means over
the rows it gets, as in Keras's guides. With several replicas, these would be means over each replica's rows, including
padding, and the sum of the gradients would be too large by the number of replicas. So:

- the code gets only real rows; a replica without real rows gets one row that does not count;
- within the code, Keras losses and `tf.nn.compute_average_loss` are also means over the replica's rows;
- its loss is multiplied by the replica's share of all rows, so that the sum over replicas is the mean over all rows;
- the gradients of weights that a tape returns are such sums, so that the code may clip them or change them otherwise.
  Within a branch or a function, where replicas cannot meet, they are the replica's own, and the optimizer adds them up;
- a number passed to a `Mean` among the model's metrics is weighted by this share, so that each batch counts once;
- so is a number that a step returns beside metrics;
- if the loss has a value for each row, its gradient is that of their sum, as in one process: these are added up.

A loss of Keras that adds up its values (reduction "sum") adds up those of all rows. A sum by other functions does not
become one over all rows: each replica has its own sum, and the sums are averaged. Code that compares rows, or divides
by a count of its own, sees the replica's rows alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import keras
import tensorflow as tf
from keras.src import backend, tree
from tensorflow.python.eager import record

from tfspark.errors import ConfigError

if TYPE_CHECKING:
    from tfspark.training.input.elements import Structure

MIRRORED = (tf.distribute.MultiWorkerMirroredStrategy, tf.distribute.MirroredStrategy)
"""Strategies whose replicas take each step together; also used with a single worker."""

Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices"

_running = threading.local()
"""Each replica has a thread."""


class _OwnCode:
    """A model's own code while a replica runs or traces it.

    Attributes:
        share: this replica's share of the rows of all replicas, in [0, 1].
        has_sums: whether it took gradients that were added up over the replicas at once.
        has_gradients_of_its_own: whether it took gradients of the replica's rows alone.
    """

    def __init__(self, share: tf.Tensor):
        self.share = share
        self.has_sums = self.has_gradients_of_its_own = False
        self._graph = _graph()

    def is_traced_here(self) -> bool:
        """Return whether replicas can meet: not within a function or a branch, which is a graph of its own."""
        return _graph() is self._graph

    def summed(self, gradients: Sequence[Gradient | None]) -> Sequence[Gradient | None]:
        """Add up gradients over the replicas."""
        known = [_changed(each, self._of_rows) for each in gradients if each is not None]
        # Another tape may want the gradient of this sum; slices would have none.
        if record.could_possibly_record():
            known = [tf.convert_to_tensor(each) for each in known]
        context = tf.distribute.get_replica_context()
        sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, known) if known else [])
        return [None if each is None else next(sums) for each in gradients]

    def _of_rows(self, values: tf.Tensor) -> tf.Tensor:
        # Without rows a gradient may be NaN, from 0 / 0.
        return tf.where(self.share > 0, values, tf.zeros_like(values))

    def multiplied(self, values: tf.Tensor) -> tf.Tensor:
        """Multiply a gradient by the share."""
        return self._of_rows(values * tf.cast(self.share, values.dtype))

    def divided(self, values: tf.Tensor) -> tf.Tensor:
        """Divide a gradient by the share; 0 without rows."""
        return tf.math.divide_no_nan(values, tf.cast(self.share, values.dtype))


def _graph() -> tf.Graph | None:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _code() -> _OwnCode | None:
    stack = getattr(_running, "stack", ())
    return stack[-1] if stack else None


def replicas() -> tf.distribute.ReplicaContext | None:
    """Return the context of this replica if several replicas take each step together; otherwise None."""
    context = tf.distribute.get_replica_context()
    if context is None or not isinstance(context.strategy, MIRRORED):
        return None
    return context if context.strategy.num_replicas_in_sync > 1 else None


def is_own(model: keras.Model, name: str) -> bool:
    """Return whether a model overrides this method of Keras."""
    return getattr(type(model), name) is not getattr(keras.Model, name)


def share() -> tf.Tensor | None:
    """Return this replica's share of all rows; None while no own code of a model runs."""
    code = _code()
    return None if code is None else code.share


@contextmanager
def as_in_one_process(of_rows: tf.Tensor) -> Iterator[None]:
    """Make losses means over this replica's rows within the block.

    Args:
        of_rows: this replica's share of the rows of all replicas, in [0, 1].
    """
    before = getattr(_running, "stack", ())
    _running.stack = (*before, _OwnCode(of_rows))
    try:
        yield
    finally:
        _running.stack = before


def watch_steps(
    model: keras.Model,
    share_of: Callable[[tf.Tensor], tf.Tensor],
    is_real: Callable[[tf.Tensor], tf.Tensor],
    weights_given: bool,
) -> None:
    """Let a model's own steps and its own `compute_metrics` see only real rows; harmless if called before.

    Args:
        model: a compiled model.
        share_of: returns this replica's share of all replicas' real rows, given which rows are real.
        is_real: returns which rows are real, given the rows' weights.
        weights_given: whether rows have their own weights; if not, `compute_metrics` gets none.
    """
    results: _Results = {}
    for name in ("train_step", "test_step"):
        step = getattr(model, name)
        if is_own(model, name) and not hasattr(step, "_tfspark_watched"):
            watched = _on_real_rows(model, step, share_of, is_real, results)
            watched._tfspark_watched = True  # type: ignore[attr-defined]
            setattr(model, name, watched)
            _let_results_be_those_of_all(model, results)
    if is_own(model, "compute_metrics") and not hasattr(model.compute_metrics, "_tfspark_watched"):
        computed = _metrics_of_real_rows(model, share_of, is_real, weights_given, results)
        computed._tfspark_watched = True  # type: ignore[attr-defined]
        model.compute_metrics = computed
        _let_results_be_those_of_all(model, results)
    tf.nn.compute_average_loss = _of_these_rows(tf.nn.compute_average_loss)
    tf.GradientTape.gradient = _with_sums(tf.GradientTape.gradient)


_Results = dict[frozenset[str], dict[str, tuple[keras.Metric, str | None]]]
"""The names that a step returns -> of those that are results of metrics, the metric, and which part of its result."""


def _let_results_be_those_of_all(model: keras.Model, of_steps: _Results) -> None:
    """Use the metric results over all replicas as logs of an epoch, whatever else a step returns.

    Keras does so only if a step returns exactly the model's metrics; else it uses the last step's logs, which are means
    of the replicas' results. Keras's guide returns nested logs, and other steps return numbers beside metrics.
    """
    original: Callable[[dict[str, object]], dict[str, object]] = model._get_metrics_result_or_logs
    if hasattr(original, "_tfspark_watched"):
        return

    def results(logs: dict[str, object]) -> dict[str, object]:
        if not isinstance(logs, dict):
            return original(logs)
        flat = {name: value for name, value in logs.items() if not isinstance(value, dict)}
        for part in logs.values():
            flat.update(part if isinstance(part, dict) else {})
        found: dict[str, object] = model.get_metrics_result()
        if set(found) == set(flat):
            return found
        of_metrics = of_steps.get(frozenset(logs), {})
        return {**logs, **{name: _result_of(*part) for name, part in of_metrics.items()}}

    results._tfspark_watched = True  # type: ignore[attr-defined]
    model._get_metrics_result_or_logs = results


def _on_real_rows(
    model: keras.Model,
    step: Callable[[Structure], Structure],
    share_of: Callable[[tf.Tensor], tf.Tensor],
    is_real: Callable[[tf.Tensor], tf.Tensor],
    of_steps: _Results,
) -> Callable[[Structure], Structure]:
    @functools.wraps(step)
    def own_step(data: Structure) -> Structure:
        strategy = tf.distribute.get_strategy()
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(strategy, MIRRORED) or not (tf.is_tensor(weights) and weights.shape.rank == 1):
            return step(data)  # There is no padding.
        real = is_real(weights)
        if strategy.num_replicas_in_sync == 1:
            return step(real_parts(model, (x, y, weights), real))
        return _logs_of_replica(
            model, lambda: step(real_parts(model, (x, y, weights), real)), share_of(real), of_steps
        )

    return own_step


def _metrics_of_real_rows(
    model: keras.Model,
    share_of: Callable[[tf.Tensor], tf.Tensor],
    is_real: Callable[[tf.Tensor], tf.Tensor],
    weights_given: bool,
    of_steps: _Results,
) -> Callable[..., Structure]:
    compute = model.compute_metrics

    @functools.wraps(compute)
    def compute_metrics(
        x: Structure, y: Structure, y_pred: Structure, sample_weight: tf.Tensor | None = None
    ) -> Structure:
        if share() is not None or sample_weight is None or sample_weight.shape.rank != 1:
            return compute(x, y, y_pred, sample_weight)  # A model's own step calls it.
        real = is_real(sample_weight)
        *parts, weights = real_parts(model, (x, y, y_pred, sample_weight), real)

        def computed() -> Structure:
            return compute(*parts, weights if weights_given else None)

        return (
            computed() if replicas() is None else _logs_of_replica(model, computed, share_of(real), of_steps)
        )

    return compute_metrics


def _logs_of_replica(
    model: keras.Model, run: Callable[[], Structure], of_rows: tf.Tensor, of_steps: _Results
) -> Structure:
    """Run a model's own code on this replica's rows; return its logs, weighted by their share."""
    metrics = model.metrics
    for metric in metrics:
        _count_by_share(metric)
    with as_in_one_process(of_rows), _noting_results(metrics) as noted:
        logs = run()
    if not isinstance(logs, dict):
        return logs
    parts = {name: _part_of_results(value, noted) for name, value in logs.items()}
    of_metrics = {name: part for name, part in parts.items() if part is not None}
    of_steps[frozenset(logs)] = of_metrics
    factor = of_rows * tf.distribute.get_strategy().num_replicas_in_sync
    return {name: value if name in of_metrics else _weighted(value, factor) for name, value in logs.items()}


@contextmanager
def _noting_results(metrics: Sequence[keras.Metric]) -> Iterator[list[tuple[keras.Metric, object]]]:
    """Note the results that the block asks of metrics, each with its metric."""
    noted: list[tuple[keras.Metric, object]] = []

    def noting(metric: keras.Metric, original: Callable[[], object]) -> Callable[[], object]:
        def result() -> object:
            noted.append((metric, original()))
            return noted[-1][1]

        return result

    for metric in metrics:
        metric.result = noting(metric, metric.result)
    try:
        yield noted
    finally:
        for metric in metrics:
            del metric.result


def _part_of_results(
    value: object, noted: list[tuple[keras.Metric, object]]
) -> tuple[keras.Metric, str | None] | None:
    """Return the metric that a value comes from, and the part of its result; None if it comes from no metric."""
    for metric, result in noted:
        if value is result:
            return metric, None
        for name, part in result.items() if isinstance(result, dict) else ():
            if value is part:
                return metric, name
    return None


def _result_of(metric: keras.Metric, part: str | None) -> object:
    return metric.result() if part is None else metric.result()[part]


def _weighted(value: Structure, factor: tf.Tensor) -> Structure:
    """Weight a number that is no result of a metric: Keras takes the mean over the replicas."""
    if isinstance(value, Mapping | Sequence) or not tf.is_tensor(value):
        return value
    if value.shape.rank != 0 or not value.dtype.is_floating:
        return value
    return tf.where(factor > 0, value * tf.cast(factor, value.dtype), tf.zeros_like(value))


def real_parts(model: keras.Model, parts: Structure, real: tf.Tensor) -> Structure:
    """Return the real rows of all parts; if no row is real, the first row with a weight that says so.

    A model that accepts only one batch size gets all rows; so does a model with sparse rows.
    """
    is_sparse = any(isinstance(part, tf.SparseTensor) for part in tree.flatten(parts))
    if is_sparse or fixed_batch_size(model) is not None:
        return parts
    size = tf.shape(real)[0]
    kept = tf.boolean_mask(tf.range(size), real)
    kept = tf.cond(tf.size(kept) > 0, lambda: kept, lambda: tf.zeros([1], tf.int32))
    kept.set_shape([None])

    def chosen(part: tf.Tensor | None) -> tf.Tensor | None:
        if part is None:
            return None
        rows = tf.gather(part, kept)
        mask = backend.get_keras_mask(part)
        if mask is not None:
            backend.set_keras_mask(rows, tf.gather(mask, kept))
        return rows

    return tree.map_structure(chosen, parts)


def fixed_batch_size(model: keras.Model) -> int | None:
    """Return the batch size of a model that accepts only one; otherwise None."""
    inputs = tf.nest.flatten(getattr(model, "inputs", None) or [])
    sizes = {part.shape[0] for part in inputs if part is not None}
    return next(iter(sizes)) if len(sizes) == 1 else None


def _count_by_share(metric: keras.metrics.Metric) -> None:
    """Let a metric ignore replicas without rows, and weight a number by the replica's share of the batch."""
    if hasattr(metric, "_tfspark_step") or hasattr(metric, "_tfspark_by_share"):
        return  # Metrics that Keras compiles are handled in `padding`.
    metric._tfspark_by_share = True
    original = metric.update_state

    def update_state(*args: object, **kwargs: object) -> object:
        of_rows = share()
        if of_rows is None:
            return original(*args, **kwargs)
        given = [value for value in (*args, *kwargs.values()) if value is not None]
        is_number = len(given) == 1 and tf.convert_to_tensor(given[0]).shape.rank == 0
        if type(metric) is keras.metrics.Mean and is_number:
            return original(given[0], sample_weight=of_rows)
        if not metric.variables:  # Create them now: a branch of a graph must not.
            return original(*args, **kwargs)

        def count() -> tf.Tensor:
            original(*args, **kwargs)
            return tf.constant(True)

        return tf.cond(of_rows > 0, count, lambda: tf.constant(False))

    metric.update_state = update_state


def _of_these_rows(original: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Return a `compute_average_loss` that takes the mean over this replica's rows within a model's own code."""
    if hasattr(original, "_tfspark_original"):
        return original

    @functools.wraps(original)
    def compute_average_loss(
        per_example_loss: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
        global_batch_size: int | tf.Tensor | None = None,
    ) -> tf.Tensor:
        loss = original(per_example_loss, sample_weight, global_batch_size)
        of_rows = share()
        if of_rows is None:
            return loss
        if global_batch_size is None:
            return loss * tf.distribute.get_strategy().num_replicas_in_sync
        return tf.math.divide_no_nan(loss, tf.cast(of_rows, loss.dtype))

    compute_average_loss._tfspark_original = original  # type: ignore[attr-defined]
    return compute_average_loss


def _with_sums(original: Callable[..., Structure]) -> Callable[..., Structure]:
    """Return a `GradientTape.gradient` which, in a model's own code, adds up the weights' gradients of all replicas.

    The code may then clip them, or do with them whatever it likes, as in one process. Values of rows are added up over
    all rows.
    """
    if hasattr(original, "_tfspark_original"):
        return original

    @functools.wraps(original)
    def gradient(
        self: tf.GradientTape,
        target: Structure,
        sources: Structure,
        output_gradients: Structure | None = None,
        **kwargs: object,
    ) -> Structure:
        code = _code()
        are_weights = all(isinstance(each, tf.Variable | keras.Variable) for each in tf.nest.flatten(sources))
        if code is None or not are_weights:
            return original(self, target, sources, output_gradients, **kwargs)
        are_of_rows = _has_values_of_rows(target)
        if not code.is_traced_here():
            code.has_gradients_of_its_own = True
            found = original(self, target, sources, output_gradients, **kwargs)
            return (
                tf.nest.map_structure(lambda each: _changed(each, code.divided), found)
                if are_of_rows
                else found
            )
        code.has_sums = True
        if not are_of_rows:
            # Not the results: they may be those of gradients that were added up before.
            factors = (
                tf.nest.map_structure(tf.ones_like, target) if output_gradients is None else output_gradients
            )
            output_gradients = tf.nest.map_structure(
                lambda each: each * tf.cast(code.share, each.dtype), factors
            )
        found = original(self, target, sources, output_gradients, **kwargs)
        return tf.nest.pack_sequence_as(found, code.summed(tf.nest.flatten(found)))

    gradient._tfspark_original = original  # type: ignore[attr-defined]
    return gradient


def _has_values_of_rows(target: Structure) -> bool:
    """Return whether a loss has a value for each row, and not one for all: their number is known to no graph.

    Raises:
        ConfigError: it has several values, and its shape does not say whether they are of rows.
    """
    shapes = [part.shape for part in tf.nest.flatten(target)]
    of_rows = [shape.rank is not None and shape.num_elements() != 1 for shape in shapes]
    if not any(of_rows):
        return False
    if not all(is_of_rows and shape[0] is None for is_of_rows, shape in zip(of_rows, shapes, strict=True)):
        raise ConfigError(
            f"expected a loss that is one number in the model's own step, its shape is {', '.join(map(str, shapes))}; "
            "take its mean, for example tf.reduce_mean(loss)"
        )
    return True


def are_sums() -> bool:
    """Return whether the gradients that a model's own code passes to an optimizer are those of all replicas.

    Raises:
        ConfigError: only some of them are.
    """
    code = _code()
    if code is None or not code.has_sums:
        return False
    if code.has_gradients_of_its_own:
        raise ConfigError(
            "expected all gradients of a step to be taken in the step itself, or all in a tf.function or a branch "
            "within it, got both; remove @tf.function from the step's functions"
        )
    return True


def is_in_a_branch() -> bool:
    """Return whether a model's own code passes sums to an optimizer in a branch, or in a function, within its step."""
    code = _code()
    return code is not None and code.has_sums and not code.is_traced_here()


def by_share(gradients: Sequence[Gradient | None]) -> Sequence[Gradient | None]:
    """Multiply gradients by this replica's share of the rows if they come from a model's own code."""
    code = _code()
    if code is None:
        return gradients
    return [_changed(gradient, code.multiplied) for gradient in gradients]


def _changed(gradient: Gradient | None, change: Callable[[tf.Tensor], tf.Tensor]) -> Gradient | None:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(change(gradient.values), gradient.indices, gradient.dense_shape)
    return change(gradient)
