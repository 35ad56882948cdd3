"""Give an optimizer the gradient of the whole batch, as in one process. Runs in the trainer.

In Keras, each replica passes its own gradient to the optimizer. The gradients are added up last, after clipping, so
each replica clips its own gradient. In addition, Keras changes each variable by a ``merge_call``, which TensorFlow does
not allow in a branch of a graph: gradient accumulation, ``ema_overwrite_frequency`` and constraints fail. Here the
gradients are added up first. Then the whole step of the optimizer runs on each device as if there were no strategy:
within TensorFlow's `UpdateContext`, every variable is the device's own component. All devices take the same step.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer
from tensorflow.python.distribute import distribute_lib, distribute_utils

from tfspark.training.own_code import MIRRORED, Gradient, are_sums, by_share, is_in_a_branch

Pairs: TypeAlias = "Iterable[tuple[Gradient | None, keras.Variable]]"

ALONE = (
    "_apply_weight_decay",
    "_overwrite_model_variables_with_average_value",
    "_backend_increment_gradient_accumulators",
)
"""Methods whose plain versions in `BaseOptimizer` run on one device."""

_summed = threading.local()


def sum_gradients_first() -> None:
    """Change Keras's optimizers; called once per trainer."""
    for name in ALONE:
        setattr(TFOptimizer, name, _plain_if_alone(getattr(TFOptimizer, name), getattr(BaseOptimizer, name)))
    TFOptimizer._backend_update_step = _plain_if_alone(TFOptimizer._backend_update_step, _update_step)
    TFOptimizer._all_reduce_sum_gradients = _unless_summed(TFOptimizer._all_reduce_sum_gradients)
    scaling = keras.optimizers.LossScaleOptimizer
    scaling._tf_apply = _plain_if_alone(scaling._tf_apply, scaling._common_apply)
    scaling.apply = _of_sums(scaling.apply)
    BaseOptimizer.apply = _of_sums(BaseOptimizer.apply)


def _is_alone() -> bool:
    return tf.distribute.in_cross_replica_context() and distribute_lib.get_update_replica_id() is not None


def _plain_if_alone(distributed: Callable[..., None], plain: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(distributed)
    def method(self: TFOptimizer, *args: object) -> None:
        return (plain if _is_alone() else distributed)(self, *args)

    return method


def _update_step(
    self: TFOptimizer,
    grads: Sequence[Gradient],
    trainable_variables: Sequence[keras.Variable],
    learning_rate: tf.Tensor,
) -> None:
    for gradient, variable in zip(grads, trainable_variables, strict=True):
        value = getattr(variable, "value", variable)
        own = value._get() if isinstance(value, tf.distribute.DistributedValues) else value
        self.update_step(gradient, own, learning_rate)


def _unless_summed(original: Callable[..., Pairs]) -> Callable[..., Pairs]:
    @functools.wraps(original)
    def _all_reduce_sum_gradients(self: TFOptimizer, grads_and_vars: Pairs) -> Pairs:
        return grads_and_vars if getattr(_summed, "is_on", False) else original(self, grads_and_vars)

    return _all_reduce_sum_gradients


def sum_gradients_first_in(optimizer: BaseOptimizer) -> None:
    """Let a user's optimizer that has its own ``apply`` or ``apply_gradients`` get sums there; harmless if repeated."""
    for kind in type(optimizer).__mro__:
        if kind.__module__.startswith("keras."):
            return  # From here on, all ends in the ``apply`` that was changed.
        for name, change in _CHANGES.items():
            original = vars(kind).get(name)
            if original is not None and not hasattr(original, "_tfspark_sums"):
                changed = change(original)
                changed._tfspark_sums = True
                setattr(kind, name, changed)


def _of_sums(original: Callable[..., None]) -> Callable[..., None]:
    """Let ``apply`` first add up the replicas' gradients."""

    @functools.wraps(original)
    def apply(
        self: BaseOptimizer,
        grads: Sequence[Gradient | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        _with_sums(self, grads, trainable_variables, functools.partial(original, self))

    return apply


def _of_summed_pairs(original: Callable[..., object]) -> Callable[..., keras.Variable]:
    """Let ``apply_gradients`` first add up the replicas' gradients."""

    @functools.wraps(original)
    def apply_gradients(self: BaseOptimizer, grads_and_vars: Pairs) -> keras.Variable:
        grads, variables = zip(*grads_and_vars, strict=True)
        _with_sums(self, grads, variables, lambda *given: original(self, zip(*given, strict=True)))
        return self._iterations

    return apply_gradients


_CHANGES: dict[str, Callable[..., Any]] = {"apply": _of_sums, "apply_gradients": _of_summed_pairs}


def _with_sums(
    optimizer: BaseOptimizer,
    grads: Sequence[Gradient | None],
    trainable_variables: Sequence[keras.Variable] | None,
    apply: Callable[[Sequence[Gradient | None], Sequence[keras.Variable] | None], object],
) -> None:
    """Call a function with the sums of all replicas' gradients, on each device as if there were no strategy."""
    context = tf.distribute.get_replica_context()
    is_shared = context is not None and isinstance(context.strategy, MIRRORED)
    if not is_shared or getattr(_summed, "is_on", False) or not len(grads):
        apply(grads, trainable_variables)
        return
    if trainable_variables is None:
        trainable_variables = optimizer._trainable_variables
    variables = list(trainable_variables)
    if not optimizer.built:
        optimizer.build(variables)
    is_alone = context.strategy.num_replicas_in_sync == 1
    if is_alone or are_sums():
        summed = list(grads)
    else:
        adding = getattr(optimizer, "inner_optimizer", optimizer)
        pairs = adding._all_reduce_sum_gradients(zip(by_share(grads), variables, strict=True))
        summed = [gradient for gradient, _ in pairs]
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        _apply_in_place(apply, summed, variables)
        return

    def on_each_device(
        strategy: tf.distribute.Strategy, gradients: Sequence[tf.distribute.DistributedValues]
    ) -> None:
        for index, device in enumerate(strategy.extended.worker_devices):
            own = distribute_utils.select_replica(index, gradients)
            with tf.device(device), distribute_lib.UpdateContext(index):
                apply(own, variables)

    if is_alone or (is_in_a_branch() and len(context.strategy.extended.worker_devices) == 1):
        # Nothing to merge: the sums are known, the device is alone. In a branch, TensorFlow has no `merge_call`.
        distribute_lib.ReplicaContextBase._merge_call(context, on_each_device, (summed,), {})
    else:
        context.merge_call(on_each_device, args=(summed,))


def _apply_in_place(
    apply: Callable[[Sequence[Gradient], Sequence[keras.Variable]], object],
    grads: Sequence[Gradient],
    variables: Sequence[keras.Variable],
) -> None:
    """Apply the sums where replicas need no ``merge_call``: on GPUs, compiled by XLA."""
    _summed.is_on = True
    try:
        apply(grads, variables)
    finally:
        _summed.is_on = False
