"""One step of training or evaluation, as a graph that any worker can run. The chief of parameter servers builds it.

The variables that steps share (weights, optimizer, moving statistics) are on the parameter servers. The state of a
single step is not: metric states start at zero in each step and are returned with its result, and the chief adds them
up. Random numbers are drawn from the step's number. So concurrent steps cannot overwrite each other's sums, and a step
that is repeated counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.tensorflow import core as keras_core
from tensorflow.python.distribute.ps_values import DistributedTable
from tensorflow.python.framework import ops
from tensorflow.python.framework.func_graph import FuncGraph

from tfspark.feed.reader import WEIGHT
from tfspark.training.input.elements import Element, Structure
from tfspark.training.ps.worker_feed import WorkerStream, pull

Variables = Sequence[keras.Variable]
Step = Callable[[Element], Mapping[str, Structure]]
"""Takes an element, ``(features, label, weight)``; returns logs: ``model.train_step`` or ``model.test_step``."""
Fetched = tuple[npt.NDArray[np.float64], list[npt.NDArray[np.generic]]]
"""What a step returns to the chief: its vector, and some of its rows."""


class LocalState(keras.StatelessScope):  # type: ignore[misc]
    """Let a step use its own values for some variables; other variables are read and written as usual.

    Args:
        values: variable -> its initial value.
    """

    def __init__(self, values: Sequence[tuple[keras.Variable, tf.Tensor]]):
        super().__init__(values, collect_losses=True, initialize_variables=False)

    def get_current_value(self, variable: keras.Variable) -> tf.Tensor | tf.Variable:
        """Return the step's own value, or that of the variable."""
        return self.state_mapping.get(id(variable), variable._value)

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        """Assign a value."""
        variable, value = update
        if id(variable) in self.state_mapping:
            self.state_mapping[id(variable)] = value
        else:
            variable._direct_assign(value)


def make_additions_atomic() -> None:
    """Make ``variable.assign_add`` one operation on the server of the variable, as for `tf.Variable`.

    Keras reads, adds and assigns. If two workers count ``optimizer.iterations`` at the same time, one count would be
    lost.
    """

    original = keras_core.Variable.assign_add

    def assign_add(self: keras.Variable, value: tf.Tensor) -> tf.Tensor | tf.Variable:
        scope = get_stateless_scope()
        is_shared = isinstance(scope, LocalState) and id(self) not in scope.state_mapping
        if scope is None or is_shared:
            return self._value.assign_add(tf.cast(value, self._value.dtype))
        return original(self, value)

    def assign_sub(self: keras.Variable, value: tf.Tensor) -> tf.Tensor | tf.Variable:
        return self.assign_add(-tf.convert_to_tensor(value))

    keras_core.Variable.assign_add = assign_add
    keras_core.Variable.assign_sub = assign_sub


def find_tables_from_branches() -> None:
    """Let a step look up words, for example for TextVectorization, in its worker's copy of the table.

    When TensorFlow calls a graph, it inserts the right copy of the table, but not in a branch of a `tf.cond`, where the
    step is. There, the table must be taken from the outer graph.
    """
    own_handle = DistributedTable.resource_handle.fget

    def resource_handle(self: DistributedTable) -> tf.Tensor:
        graph = ops.get_default_graph()
        while isinstance(getattr(graph, "outer_graph", None), FuncGraph):
            graph = graph.outer_graph
        if not isinstance(graph, FuncGraph):
            return own_handle(self)
        with graph.as_default():
            return own_handle(self)

    DistributedTable.resource_handle = property(resource_handle)


@dataclass(frozen=True)
class StepResult:
    """The result of one scheduled step.

    Attributes:
        reader: the reader number of the worker that ran it.
        rows: number of rows of its batch; 0: the worker has no more.
        logs: the logs of the step.
        sums: what it adds to the metrics' variables, then its counts.
        shown: its first features and labels as a flat list, if the step returns rows.
    """

    reader: int
    rows: int
    logs: dict[str, float]
    sums: list[npt.NDArray[np.float64]]
    shown: list[npt.NDArray[np.generic]]


class WorkerStep:
    """A graph that takes the next batch of the worker it runs on, and makes one step.

    Args:
        strategy: the parameter server strategy.
        stream: the stream of batches; other streams with an equal `look` can be used, too.
        step: the function of one step.
        state: variables whose changes are returned: those of the model's metrics.
        seeds: states of random generators.
        count: returns further sums over steps: a tensor, given an element.
        shown: features and labels as a flat list of symbolic tensors, if some rows are to be returned.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        stream: WorkerStream,
        step: Step,
        state: Variables,
        seeds: Variables,
        count: Callable[[Element], tf.Tensor] | None = None,
        shown: Sequence[tf.Tensor] = (),
    ):
        self._strategy = strategy
        self._stream = stream
        self._step = step
        self._state = list(state)
        self._seeds = list(seeds)
        self._count = count
        self._shown = shown
        self._names: list[str] = []
        self._shapes: list[tuple[int, ...]] = []
        self.run = tf.function(self._run, autograph=False)

    def unpack(self, results: Fetched) -> StepResult:
        """Unpack the result of `run`."""
        result, shown = results
        if len(result) == 1:
            return StepResult(int(result[0]), 0, {}, [], [])
        reader, rows, *_ = result
        end = 2 + len(self._names)
        logs = dict(zip(self._names, map(float, result[2:end]), strict=True))
        sums = []
        for shape in self._shapes:
            size = int(np.prod(shape))
            sums.append(result[end : end + size].reshape(shape))
            end += size
        return StepResult(int(reader), int(rows), logs, sums, shown)

    def _run(
        self, stream: tf.Tensor, index: tf.Tensor, number: tf.Tensor, num_shown: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return one vector of float64, so that one message has everything: reader, rows, logs and sums.

        In addition, return the first `num_shown` rows of the batch, if the step returns rows.
        """
        has_batch, reader, batch = pull(self._stream.signature, stream, index)
        made, shown = tf.cond(
            has_batch,
            lambda: self._strategy.run(self._make, args=(batch, number, num_shown)),
            lambda: (tf.zeros([0], tf.float64), [_no_rows(like) for like in self._shown]),
        )
        return tf.concat([[tf.cast(reader, tf.float64)], made], 0), shown

    def _make(
        self, batch: dict[str, tf.Tensor], number: tf.Tensor, num_shown: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        element = self._stream.to_element(batch)
        zeros = [(variable, tf.zeros(variable.shape, variable.dtype)) for variable in self._state]
        seeds = [(variable, _seed_of_step(variable, number)) for variable in self._seeds]
        with LocalState([*zeros, *seeds]) as scope:
            logs = {name: _scalar(value) for name, value in _flat(self._step(element)).items()}
            sums = [scope.get_current_value(variable) for variable in self._state]
        if self._count is not None:
            sums.append(self._count(element))
        self._names, self._shapes = list(logs), [tuple(value.shape) for value in sums]
        parts = [tf.shape(batch[WEIGHT])[0], *logs.values(), *sums]
        vector = tf.concat([tf.reshape(tf.cast(part, tf.float64), [-1]) for part in parts], 0)
        return vector, [part[:num_shown] for part in tf.nest.flatten(element[:2])] if self._shown else []


def _no_rows(like: tf.Tensor) -> tf.Tensor:
    return tf.zeros([0, *(size or 0 for size in like.shape[1:])], like.dtype)


def _seed_of_step(variable: keras.Variable, number: tf.Tensor) -> tf.Tensor:
    """Return the generator's state for a step: (seed + number of the step, 0); Keras increases the second number."""
    first = tf.cast(variable._value[0], tf.int64) + number
    return tf.cast(tf.stack([first, 0]), variable.dtype)


def _flat(logs: Mapping[str, Structure]) -> dict[str, Structure]:
    """Return flat logs: the entries of a metric that returns a dict are put among the others, as in Keras."""
    flat: dict[str, Structure] = {}
    for name, value in logs.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {name: value}
    return flat


def _scalar(value: Structure) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(tf.convert_to_tensor(value), tf.float64))
