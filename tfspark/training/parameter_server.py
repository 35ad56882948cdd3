"""The training loop of parameter servers: what Keras's ``fit`` and ``evaluate`` do, with asynchronous steps.

Runs in the chief's trainer. TensorFlow's `ClusterCoordinator` gives each step to whichever worker is free; the
worker takes its own next batch for it, and changes the variables on the parameter servers. An epoch ends when every
worker has said that it has no more rows and every step has returned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.cluster.wire import Json
from tfspark.errors import ConfigError
from tfspark.feed.worker_feed import WorkerStream, open_stream
from tfspark.training.build import copy_optimizer
from tfspark.training.checkpointing import PartSender, fetch
from tfspark.training.loop import TrainingSession
from tfspark.training.servers import CHIEF_DONE, meet
from tfspark.training.sharding import whole_values
from tfspark.training.state import restore
from tfspark.training.worker_steps import StepResult, WorkerStep

STEPS_PER_WORKER = 2
"""Steps under way per worker: one that runs, one that waits, so that no worker idles while results are looked at."""
CLOSE_TIMEOUT_S = 60.0


class ParameterServerSession(TrainingSession):
    """The chief's model, whose variables are on the parameter servers, and what was done with it."""

    def prepare(self) -> None:
        """Connect to the workers and see that the model can be trained this way."""
        refuse_unsupported(self.model)
        self._strategy = self.context.strategy
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._strategy)
        self._steps: dict[str, WorkerStep] = {}
        self._is_built = False
        self._number = 0
        self._confusion: list[list[int]] | None = None

    def train(self, job: Json) -> Json:
        """Train for the job's epochs; return the history of this job."""
        stream = open_stream(self.context, "train")
        self._build(stream)
        if self.begin(job):
            return self.progress.of_call
        callbacks = keras.callbacks.CallbackList(
            self.callbacks(job, stream.batch_size),
            add_history=True,
            add_progbar=False,
            model=self.model,
            epochs=job["first_pass"] + job["epochs"],
            verbose=0,
            steps=None,
        )
        self._fit(stream, callbacks, range(job["first_pass"], job["first_pass"] + job["epochs"]))
        self.finish(job)
        return self.progress.of_call

    rows_of_pass = 0

    def make_sender(self) -> PartSender:
        """Return what sends checkpoints; the chief's part is all of them."""
        return PartSender(self.context, 1, 0)

    def resume(self, job: Json) -> None:
        """Go back to a checkpoint, which is one of whole passes."""
        self.build()
        self.resumed, self.progress = fetch(self.context, job, 0)
        restore(self.model, self.resumed.shared, self.resumed.own)

    def build(self) -> None:
        """Make all variables."""
        self._build(open_stream(self.context, "train"))
        self.model.optimizer.build(self.model.trainable_variables)

    def _fit(self, stream: WorkerStream, callbacks: keras.callbacks.CallbackList, epochs: range) -> None:
        """Do what ``fit`` does."""
        model, logs = self.model, None
        step = self._step("train", stream, model.train_step)
        model.stop_training = False
        callbacks.on_train_begin()
        for epoch in epochs:
            callbacks.on_epoch_begin(epoch)
            total = Total()
            for result in self._results(step, stream.name, epoch, lambda: not model.stop_training):
                callbacks.on_train_batch_begin(total.steps)
                total.add(result)
                callbacks.on_train_batch_end(total.steps - 1, result.logs)
            self.rows_of_pass = total.rows
            logs = self._metrics(total)
            callbacks.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        if model.optimizer is not None:
            model.optimizer.finalize_variable_values(model.trainable_weights)
        callbacks.on_train_end(logs)

    def evaluate(self, stream: str, index: int = 0, num_classes: int | None = None) -> dict[str, float]:
        """Evaluate all rows of one pass of a stream, on the workers."""
        opened = open_stream(self.context, stream)
        self._build(opened)
        if self.model.loss is None:  # It predicts no label.
            num_classes = None
        count = functools.partial(self._count_classes, num_classes) if num_classes else None
        step = self._step(f"test {num_classes}", opened, self.model.test_step, count)
        total = Total()
        for result in self._results(step, opened.name, index, lambda: True):
            total.add(result)
            self.context.pulse.beat()
        if num_classes:
            self._confusion = np.asarray(total.sums.pop(), np.int64).tolist()
        return self._metrics(total)

    @property
    def confusion_matrix(self) -> list[list[int]] | None:
        """Counts of (true, predicted) class of the last evaluation, if it was asked for them."""
        return self._confusion

    roc = None
    first_rows = None
    """Rows are on the workers: pictures of an evaluation are not drawn."""

    def to_save(self) -> keras.Model:
        """Return the copy, brought up to date: its tables are whole."""
        return self.to_export()

    def to_export(self) -> keras.Model:
        """Return the copy, which belongs to no strategy, brought up to date."""
        self.copy_weights()
        copy_optimizer(self.local_model, self.model, whole_values)
        return self.local_model

    def copy_weights(self) -> None:
        """Bring the copy outside of the strategy up to date; its tables are whole."""
        self.local_model.set_weights(whole_values(self.model.weights))

    def close(self, job: Json) -> Json:
        """Export if asked to, say what became of the model, and let the servers go."""
        summary = super().close(job)
        meet(self.context, CHIEF_DONE, CLOSE_TIMEOUT_S)
        return summary

    # --- steps -------------------------------------------------------------------------------------

    def _step(
        self,
        name: str,
        stream: WorkerStream,
        step: Callable[[Any], Any],
        count: Callable[[Any], tf.Tensor] | None = None,
    ) -> WorkerStep:
        """Return the graph of a step, made once."""
        key = f"{name} {stream.look}"  # Files of a later training may look otherwise.
        if key not in self._steps:
            seeds = [v for v in self.model.non_trainable_variables if v.name == "seed_generator_state"]
            self._steps[key] = WorkerStep(
                self._strategy,
                stream,
                step,
                self.model.metrics_variables,
                seeds,
                count,
            )
        return self._steps[key]

    def _results(
        self, step: WorkerStep, stream: str, index: int, wanted: Callable[[], bool]
    ) -> Iterator[StepResult]:
        """Keep the workers busy until none has rows of the pass, or no more are wanted; yield what steps came to."""
        ended: set[int] = set()
        at_once = STEPS_PER_WORKER * self.context.num_workers
        with ThreadPoolExecutor(at_once, thread_name_prefix="tfspark-steps") as pool:
            pending = {pool.submit(self._schedule(step, stream, index).fetch) for _ in range(at_once)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    result = step.unpack(self._fetched(future))
                    if result.rows:
                        yield result
                    else:
                        ended.add(result.rank)
                    if len(ended) < self.context.num_workers and wanted():
                        pending.add(pool.submit(self._schedule(step, stream, index).fetch))

    def _schedule(self, step: WorkerStep, stream: str, index: int) -> Any:
        self._number += 1
        args = (tf.constant(stream), tf.constant(index, tf.int64), tf.constant(self._number, tf.int64))
        return self._coordinator.schedule(step.run, args=args)

    def _fetched(self, future: Future[Any]) -> np.ndarray[Any, Any]:
        try:
            vector: np.ndarray[Any, Any] = future.result()
        except tf.errors.CancelledError:
            self._coordinator.join()  # Raises the error for which this step was cancelled.
            raise
        return vector

    def _metrics(self, total: Total) -> dict[str, float]:
        """Return the metrics over all steps; of logs that are no metrics, the mean over steps."""
        self.model.reset_metrics()
        for variable, value in zip(self.model.metrics_variables, total.sums, strict=False):
            variable.assign(value.astype(variable.dtype))
        results = {name: float(value) for name, value in self.model.get_metrics_result().items()}
        means = {name: value / total.steps for name, value in total.logs.items()}
        return results if set(means) <= set(results) else means

    def _count_classes(self, num_classes: int, element: Any) -> tf.Tensor:
        """Count the rows of a batch by true class (down) and predicted class (across)."""
        outputs = self.model(element[0], training=False)
        truth = tf.cast(tf.reshape(element[1], [-1]), tf.int64)
        if outputs.shape[-1] == 1 and num_classes == 2:
            predicted = tf.cast(tf.reshape(outputs, [-1]) > 0.5, tf.int64)
        else:
            predicted = tf.reshape(tf.argmax(outputs, -1), [-1])
        return tf.math.confusion_matrix(truth, predicted, num_classes)

    def _build(self, stream: WorkerStream) -> None:
        """Make the variables of both models before a step is traced: steps cannot."""
        if self._is_built:
            return
        element = tf.function(stream.to_element, autograph=False)
        specs = element.get_concrete_function(stream.signature).structured_outputs
        with self._strategy.scope():
            build_variables(self.model, specs)
        build_variables(self.local_model, specs)
        self._is_built = True


@dataclass
class Total:
    """Steps added up.

    Attributes:
        steps: how many.
        rows: of all batches.
        logs: name -> sum of what steps returned.
        sums: states of metrics, and counts.
    """

    steps: int = 0
    rows: int = 0
    logs: dict[str, float] = field(default_factory=dict)
    sums: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def add(self, result: StepResult) -> None:
        """Add one step."""
        self.sums = (
            [a + b for a, b in zip(self.sums, result.sums, strict=True)] if self.steps else result.sums
        )
        self.steps += 1
        self.rows += result.rows
        for name, value in result.logs.items():
            self.logs[name] = self.logs.get(name, 0.0) + value


def build_variables(model: keras.Model, specs: Any) -> None:
    """Make all variables of a model: as ``fit`` does, or by tracing a `train_step` that does not call the model.

    Args:
        model: a compiled model.
        specs: shapes and types of an element.
    """
    if type(model).call is not keras.Model.call:
        batch = tf.nest.map_structure(lambda s: keras.KerasTensor(tuple(s.shape), s.dtype.name), specs)
        model._symbolic_build(data_batch=batch)
        return

    def step(*element: Any) -> Any:
        return tf.distribute.get_strategy().run(model.train_step, args=(element,))

    tf.function(step, autograph=False).get_concrete_function(*specs)


def refuse_unsupported(model: keras.Model) -> None:
    """Refuse what asynchronous steps cannot do.

    Raises:
        ConfigError: the model was compiled with it.
    """
    optimizer = model.optimizer
    if getattr(optimizer, "gradient_accumulation_steps", None):
        raise ConfigError(
            "expected an optimizer without gradient_accumulation_steps under parameter servers, got "
            f"{optimizer.gradient_accumulation_steps}: workers would add to each other's gradients; leave it out, or "
            "train synchronously (num_ps=0)"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ConfigError(
            "expected no LossScaleOptimizer (mixed_float16) under parameter servers: workers would change the scale "
            "under each other; use float32 or mixed_bfloat16, or train synchronously (num_ps=0)"
        )
    if model.run_eagerly:
        raise ConfigError(
            "expected a model compiled without run_eagerly=True under parameter servers, whose steps are graphs; leave "
            "it out"
        )
