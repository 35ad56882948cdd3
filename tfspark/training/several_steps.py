"""``steps_per_execution``: take several steps in one call of a graph, with many workers. Runs in the trainer.

Keras asks within the graph whether there is another batch. It does so in a branch, and workers must not exchange data
in a branch. A tfspark feed knows in advance how many of the next steps there are, the same number on all workers. So
the graph is a plain loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import tensorflow as tf
from keras.src.backend.tensorflow import trainer as keras_trainer

if TYPE_CHECKING:
    import keras

    from tfspark.training.input.elements import Structure

StepFunction: TypeAlias = "Callable[[Structure], Structure]"
"""A step of one replica, from its batch to its logs or predictions."""


@dataclass(frozen=True)
class Block:
    """Steps that are taken in one call.

    Attributes:
        iterator: yields their batches.
        steps: number of steps, at least 1, the same on all workers.
    """

    iterator: tf.distribute.DistributedIterator
    steps: int


def run_blocks(original: Callable[..., Callable[..., Structure]]) -> Callable[..., Callable[..., Structure]]:
    """Correct Keras's `_make_function`: let the function that it returns accept a `Block`, too."""

    @functools.wraps(original)
    def make_function(self: keras.Model, step_function: StepFunction) -> Callable[..., Structure]:
        of_keras = original(self, step_function)
        if self.steps_per_execution == 1:
            return of_keras
        of_blocks = _block_function(self, step_function)

        def call(data: tf.distribute.DistributedIterator | Block) -> Structure:
            return of_blocks(data) if isinstance(data, Block) else of_keras(data)

        return call

    return make_function


def _block_function(model: keras.Model, step_function: StepFunction) -> Callable[[Block], Structure]:
    def one_step(data: Structure) -> Structure:
        outputs = model.distribute_strategy.run(step_function, args=(data,))
        return keras_trainer.reduce_per_replica(outputs, model.distribute_strategy, reduction="auto")

    if not model.run_eagerly:
        one_step = tf.function(
            one_step, autograph=False, reduce_retracing=True, jit_compile=model.jit_compile
        )
    one_step = model._autoconvert_optionals(one_step)

    def several_steps(iterator: tf.distribute.DistributedIterator, steps: tf.Tensor) -> Structure:
        for _ in tf.range(steps - 1):
            one_step(iterator.get_next())
        return one_step(iterator.get_next())  # As in Keras, return the logs after the last step.

    run = several_steps if model.run_eagerly else tf.function(several_steps, reduce_retracing=True)

    def call(block: Block) -> Structure:
        return run(block.iterator, tf.constant(block.steps))

    return call
