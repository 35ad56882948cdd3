"""Corrections that let Keras 3's ``model.fit`` train with many workers; applied only in trainers.

Each correction is small, and is installed only if the faulty lines are found in Keras's source. `tests/training` has a
test for each fault, which fails when Keras has fixed it.

1. ``reduce_per_replica`` averages a scalar along axis 0, which a scalar does not have (keras-team/keras #20585).
   Corrected: the mean over replicas, axis None.
2. ``_maybe_symbolic_build`` takes a batch from the data to learn its shapes, and reduces the tuple of per-replica
   values as one tensor (same issue). Corrected: shapes come from the dataset's element spec; no row is consumed.
3. Keras detects the end of an epoch by an ``OutOfRange`` error in the compiled step. The parts of the step that need no
   data have already run then: ``optimizer.iterations`` counts one step too many per epoch. The first epoch also fixes
   the length of all epochs. Corrected for tfspark's datasets, which know before each step whether there is another.
   With ``steps_per_execution`` they say how many of the next steps there are: see `tfspark.training.several_steps`.
4. Moving statistics of BatchNormalization are created without aggregation: each replica has its own values.
   Corrected: averaged over the replicas at the end of each epoch, before evaluation.
5. Each replica clips its own gradient before the sum, and changes variables by a ``merge_call``, which must not be in
   a branch of a graph: see `tfspark.training.summed_gradients`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import tensorflow as tf
from keras.src import tree
from keras.src.backend.tensorflow import trainer as keras_trainer
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.trainers.epoch_iterator import EpochIterator

from tfspark.training.build import check_synchronous
from tfspark.training.chief_callbacks import is_chief_of, written_by_chief
from tfspark.training.failing import noting_what_was_given
from tfspark.training.feeding import ReadPass, TrainingFeed, feed_of_dataset
from tfspark.training.metric_states import merges_of
from tfspark.training.padding import count_real_rows_alone
from tfspark.training.several_steps import Block, run_blocks
from tfspark.training.state import optimizers_of
from tfspark.training.summed_gradients import sum_gradients_first, sum_gradients_first_in

if TYPE_CHECKING:
    from tfspark.training.input.elements import Structure

Replicated: TypeAlias = "tf.Tensor | tf.distribute.DistributedValues"
"""A value of a step: a tensor, or one for each of several replicas."""
Given: TypeAlias = "tf.distribute.DistributedIterator | Block"
"""What Keras's functions take their batches from."""
Callbacks: TypeAlias = (
    "keras.callbacks.CallbackList | Sequence[keras.callbacks.Callback] | keras.callbacks.Callback"
)
"""What ``fit`` accepts as its callbacks."""


def present_faults() -> set[str]:
    """Return which of the faults the installed Keras has; they are recognised by their source lines."""
    trainer = keras_trainer.TensorFlowTrainer
    found = {
        "reduce": 'strategy.reduce("MEAN", v, axis=0)' in inspect.getsource(keras_trainer.reduce_per_replica),
        "build": "maybe_distributed_data_batch = next(it)"
        in inspect.getsource(trainer._maybe_symbolic_build),
        "epochs": "self._num_batches = self._steps_seen" in inspect.getsource(EpochIterator),
        "gradients": "grads = self._clip_gradients(grads)"
        in inspect.getsource(BaseOptimizer._backend_apply_gradients),
        "state": "aggregation=" not in inspect.getsource(keras.layers.BatchNormalization.build),
    }
    return {fault for fault, is_there in found.items() if is_there}


def apply_corrections(leave_out: Collection[str] = ()) -> None:
    """Correct the faults of the installed Keras; later calls change nothing.

    Args:
        leave_out: names of faults that are not corrected, for the tests of these faults.
    """
    if getattr(keras_trainer, "_tfspark_corrected", False):
        return
    faults = present_faults() - set(leave_out)
    keras_trainer._tfspark_corrected = True
    trainer = keras_trainer.TensorFlowTrainer
    if "reduce" in faults:
        keras_trainer.reduce_per_replica = _reduce_scalars_without_axis(keras_trainer.reduce_per_replica)
    if "build" in faults:
        trainer._maybe_symbolic_build = _build_from_element_spec(trainer._maybe_symbolic_build)
    if "epochs" in faults:
        keras_trainer.TFEpochIterator = _feed_epoch_iterator(keras_trainer.TFEpochIterator)
        trainer._make_function = run_blocks(trainer._make_function)
    trainer.fit = _fit_with_callbacks(trainer.fit, averages="state" in faults)
    trainer.evaluate = _evaluate_real_rows(trainer.evaluate)
    if "gradients" in faults:
        sum_gradients_first()


def _reduce_scalars_without_axis(original: Callable[..., Structure]) -> Callable[..., Structure]:
    @functools.wraps(original)
    def reduce_per_replica(values: Structure, strategy: tf.distribute.Strategy, reduction: str) -> Structure:
        if reduction in ("auto", "mean") and keras_trainer._collective_all_reduce_multi_worker(strategy):
            return tree.pack_sequence_as(values, _means_of_replicas(strategy, tree.flatten(values)))
        return original(values, strategy, reduction)

    return reduce_per_replica


def _means_of_replicas(strategy: tf.distribute.Strategy, values: list[Replicated]) -> list[tf.Tensor]:
    """Average the logs of a step over the replicas, in one exchange if possible: each one waits for the network."""
    # The result of a metric may be its state variable.
    values = [value.value if isinstance(value, keras.Variable) else value for value in values]
    is_plain = all(
        tf.is_tensor(value)
        and not isinstance(value, tf.distribute.DistributedValues)
        and value.shape.is_fully_defined()
        for value in values
    )
    if len(values) < 2 or not is_plain or len({value.dtype for value in values}) > 1:
        return [_mean_of_replicas(strategy, value) for value in values]
    joined = tf.concat([tf.reshape(value, [-1]) for value in values], 0)
    parts = tf.split(_mean_of_replicas(strategy, joined), [value.shape.num_elements() for value in values])
    return [tf.reshape(part, value.shape) for part, value in zip(parts, values, strict=True)]


def _mean_of_replicas(strategy: tf.distribute.Strategy, value: Replicated) -> tf.Tensor:
    if tf.is_tensor(value) and not isinstance(value, tf.distribute.DistributedValues):
        with tf.device(strategy.extended.worker_devices[0]):  # A tensor without a device cannot be sent.
            value = tf.identity(value)
    return strategy.reduce("MEAN", value, axis=None)


def _build_from_element_spec(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def _maybe_symbolic_build(
        self: keras.Model,
        iterator: EpochIterator | None = None,
        data_batch: Structure | None = None,
    ) -> None:
        dataset = getattr(iterator, "_distributed_dataset", None)
        strategy = self._distribute_strategy
        is_fed = feed_of_dataset(dataset) is not None  # Also with only one worker.
        is_ours = is_fed or keras_trainer._collective_all_reduce_multi_worker(strategy)
        if dataset is None or not is_ours:
            return original(self, iterator=iterator, data_batch=data_batch)
        build_for(self, dataset)
        return None

    return _maybe_symbolic_build


def build_for(model: keras.Model, dataset: tf.distribute.DistributedDataset) -> None:
    """Create all variables of a model, its optimizers and its metrics, for a distributed dataset.

    Raises:
        ConfigError: the states that several workers have of a metric cannot be merged.
    """
    batch = tree.map_structure(_local_spec, dataset.element_spec)
    with model.distribute_strategy.scope(), noting_what_was_given(batch):
        model._symbolic_build(data_batch=batch)
    if model.distribute_strategy.num_replicas_in_sync > 1:
        merges_of(model)


def _local_spec(spec: tf.TypeSpec) -> tf.TypeSpec:
    """Return the shape and type of one replica's batch, which is all that Keras needs here."""
    return spec._value_specs[0] if hasattr(spec, "_value_specs") else spec


def _feed_epoch_iterator(base: Any) -> type[EpochIterator]:
    class FeedEpochIterator(base):  # type: ignore[misc]
        """Keras's epoch iterator, which asks the feed before each step whether there is one."""

        _reading: ReadPass | None = None
        _taken = 0

        def _enumerate_iterator(self) -> Iterator[tuple[int, int, Given]]:
            feed = feed_of_dataset(self._distributed_dataset)
            if feed is None:
                yield from super()._enumerate_iterator()
                return
            if self.steps_per_epoch:
                yield from self._steps_over_passes(feed)
                return
            feed.steps_at_once = self.steps_per_execution
            reading, iterator = feed.open_pass(), feed.iterator()
            step, complete = 0, False
            try:
                while steps := reading.steps_from(step, self.steps_per_execution):
                    yield step, step + steps - 1, self._block(iterator, steps)
                    step += steps
                complete = True
            finally:
                if not complete:
                    feed.abandon_pass()

        def _steps_over_passes(self, feed: TrainingFeed) -> Iterator[tuple[int, int, Given]]:
            """Take the steps of an epoch and continue the previous iterator, as Keras does for a repeated dataset."""
            for step in range(self.steps_per_epoch):
                while self._reading is None or not self._reading.has_step(self._taken):
                    self._reading, self._taken = feed.open_pass(), 0
                    if not self._reading.has_step(0) and feed.is_over:
                        self._interrupted_warning()
                        return
                self._taken += 1
                yield step, step, self._block(feed.iterator(), 1)
            if self._reading is not None and not self._reading.has_step(
                self._taken
            ):  # A pass that is read to its end is closed at once.
                self._reading = None

        def _block(self, iterator: tf.distribute.DistributedIterator, steps: int) -> Given:
            return iterator if self.steps_per_execution == 1 else Block(iterator, steps)

    return FeedEpochIterator


def _fit_with_callbacks(
    original: Callable[..., keras.callbacks.History], averages: bool
) -> Callable[..., keras.callbacks.History]:
    @functools.wraps(original)
    def fit(
        self: keras.Model, *args: object, callbacks: Callbacks | None = None, **kwargs: object
    ) -> keras.callbacks.History:
        feed = feed_of_dataset(kwargs["x"] if "x" in kwargs else next(iter(args), None))
        if feed is not None:
            check_synchronous(self)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            theirs = callbacks if isinstance(callbacks, list | tuple) else [callbacks] if callbacks else []
            strategy = self.distribute_strategy
            if keras_trainer._collective_all_reduce_multi_worker(strategy):
                theirs = written_by_chief(theirs, is_chief_of(strategy), keeps_state=False)
            ours = [SynchroniseState()] if averages else []
            callbacks = [*ours, EndWithStream(feed), *theirs]
        if feed is not None:
            count_real_rows_alone(self, feed.weighs_rows)
        for optimizer in optimizers_of(self).values():
            sum_gradients_first_in(optimizer)
        return original(self, *args, callbacks=callbacks, **kwargs)

    return fit


def _evaluate_real_rows(original: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(original)
    def evaluate(self: keras.Model, x: object = None, *args: object, **kwargs: object) -> object:
        feed = feed_of_dataset(x)
        if feed is not None:
            count_real_rows_alone(self, feed.weighs_rows)
        return original(self, x, *args, **kwargs)

    return evaluate


class SynchroniseState(keras.callbacks.Callback):  # type: ignore[misc]
    """Average the moving statistics of all replicas at the end of each epoch, before evaluation."""

    def on_test_begin(self, logs: Mapping[str, object] | None = None) -> None:
        """Average the statistics before ``fit`` evaluates."""
        synchronise_state(self.model)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Average the statistics before other callbacks use the model."""
        synchronise_state(self.model)


class EndWithStream(keras.callbacks.Callback):  # type: ignore[misc]
    """End ``fit`` when a stream of unknown length has no more passes; the last, empty epoch leaves no trace.

    Args:
        feed: the training feed; None if there is none.
    """

    def __init__(self, feed: TrainingFeed | None):
        super().__init__()
        self._feed = feed

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Check whether there was an epoch."""
        if self._feed is not None and self._feed.is_over:
            self.model.stop_training = True
            if logs is not None:
                logs.clear()


def synchronise_state(model: keras.Model) -> None:
    """Replace the floating non-trainable weights by their mean over all replicas.

    Every worker must call it at the same point; without a multi-worker strategy it does nothing.
    """
    strategy = model.distribute_strategy
    variables = [
        variable.value
        for variable in model.non_trainable_variables
        if keras.backend.is_float_dtype(variable.dtype)
    ]
    if variables and keras_trainer._collective_all_reduce_multi_worker(strategy):
        _averaging(strategy, model, variables)()


def _averaging(
    strategy: tf.distribute.Strategy, model: keras.Model, variables: list[tf.Variable]
) -> tf.types.experimental.PolymorphicFunction:
    """Return the compiled average of a model's state; it is created at first use and stored on the model."""
    known = getattr(model, "_tfspark_average_state", None)
    if known is not None:
        return known

    def average() -> None:
        context = tf.distribute.get_replica_context()
        means = context.all_reduce("MEAN", [tf.identity(variable) for variable in variables])
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def run() -> None:
        strategy.run(average)

    object.__setattr__(model, "_tfspark_average_state", run)
    return run
