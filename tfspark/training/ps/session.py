"""The training loop of parameter servers: what Keras's ``fit`` and ``evaluate`` do, with asynchronous steps.

Runs in the chief's trainer. TensorFlow's `ClusterCoordinator` gives each step to whichever worker is free; the
worker takes its own next batch for it, and changes the variables on the parameter servers. An epoch ends when every
worker has said that it has no more rows and every step has returned.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.errors import ConfigError
from tfspark.protocol.values import Json
from tfspark.training.build import copy_optimizer
from tfspark.training.checkpointing import PartSender, fetch
from tfspark.training.class_counts import Kind, count_classes, kind_of_label, matrix_and_curves
from tfspark.training.evaluation import SHOWN_ROWS, is_dense, plain_logs
from tfspark.training.own_code import is_own
from tfspark.training.padding import count_real_rows_alone
from tfspark.training.ps.servers import CHIEF_DONE, barrier
from tfspark.training.ps.sharding import whole_values
from tfspark.training.ps.worker_feed import WorkerStream, open_stream
from tfspark.training.ps.worker_steps import StepResult, WorkerStep
from tfspark.training.session import TrainingSession
from tfspark.training.state import keep_rates_that_were_changed, restore

STEPS_PER_WORKER = 2
"""Steps under way per worker: one that runs, one that waits, so that no worker idles while results are looked at."""
CLOSE_TIMEOUT_S = 60.0
FETCH_AGAIN_S = 0.1
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InvalidArgumentError,
    tf.errors.UnavailableError,
)
"""What fetching a result may raise when its worker is gone, or is another by now that does not know of it."""


class ParameterServerSession(TrainingSession):
    """The chief's model, whose variables are on the parameter servers, and what was done with it."""

    def prepare(self) -> None:
        """Connect to the workers and see that the model can be trained this way."""
        refuse_unsupported(self.model)
        refuse_calls_of_callbacks(self.model)
        self._strategy = self.context.strategy
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._strategy)
        self._steps: dict[str, WorkerStep] = {}
        self._is_built = False
        self._number = 0
        self._confusion: list[Any] | None = None
        self._curves: list[list[list[float]]] | None = None
        self._first_rows: tuple[Any, Any] | None = None
        self._num_shown = 0

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
        keep_rates_that_were_changed(self.model, self.learning_rates, self.resumed.learning_rates)

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
            results = self._results(step, stream.name, epoch, lambda: not model.stop_training, total)
            for number, result in enumerate(results):
                callbacks.on_train_batch_begin(number)
                callbacks.on_train_batch_end(number, result.logs)
            self.rows_of_pass = total.rows
            logs = self._metrics(total)
            callbacks.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        if model.optimizer is not None:
            model.optimizer.finalize_variable_values(model.trainable_weights)
        callbacks.on_train_end(logs)

    def evaluate(self, stream: str, index: int = 0, num_classes: int | None = None) -> dict[str, Any]:
        """Evaluate all rows of one pass of a stream, on the workers."""
        opened = open_stream(self.context, stream)
        self._build(opened)
        self._confusion = self._curves = None
        shown = self._specs(opened)[:2]
        kind, count = self._kind(num_classes, *shown) if num_classes else None, None
        if num_classes and kind:
            count = functools.partial(count_classes, self.model, num_classes=num_classes, kind=kind)
        flat = tf.nest.flatten(shown) if self._num_shown and is_dense(shown) else []
        step = self._step(f"test {num_classes} {bool(flat)}", opened, self.model.test_step, count, flat)
        total = Total()
        parts: list[list[np.ndarray[Any, Any]]] = []
        for result in self._results(step, opened.name, index, lambda: True, total):
            self.context.activity.step_done()
            parts.append(result.shown)
            self._num_shown = max(self._num_shown - result.rows, 0)
        rows = [np.concatenate(part)[:SHOWN_ROWS] for part in zip(*parts, strict=True)]
        self._first_rows = tf.nest.pack_sequence_as(shown, rows) if rows else None
        if rows:
            self.copy_weights()  # The copy draws.
        if num_classes and kind:
            self._confusion, self._curves = matrix_and_curves(total.sums[-1], num_classes, kind)
        return self._metrics(total)

    def _kind(self, num_classes: int, features: Any, label: Any) -> Kind | None:
        """Return how labels say of which class a row is; None if the model does not predict these classes."""
        if self.model.loss is None:  # Nor can each such model be called.
            return None
        call = tf.function(lambda x: self.local_model(x, training=False), autograph=False)
        specs = tf.nest.map_structure(tf.type_spec_from_value, features)
        outputs = call.get_concrete_function(specs).structured_outputs
        return kind_of_label(self.local_model, outputs, label, num_classes)

    def test(self, job: Json) -> Json:
        """Evaluate as `TrainingSession.test` does; if there is something to draw, workers send some rows along."""
        self._num_shown = SHOWN_ROWS if self.context.hooks.draw is not None else 0
        return super().test(job)

    @property
    def confusion_matrix(self) -> list[Any] | None:
        """Counts of (true, predicted) class of the last evaluation, if it was asked for them."""
        return self._confusion

    @property
    def roc(self) -> list[list[list[float]]] | None:
        """Each class's curve of the last evaluation, if it was asked to count classes."""
        return self._curves

    @property
    def first_rows(self) -> tuple[Any, Any] | None:
        """Some features and labels of the last evaluation, which the workers sent along for `draw`."""
        return self._first_rows

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
        barrier(self.context, CHIEF_DONE, CLOSE_TIMEOUT_S)
        return summary

    # --- steps -------------------------------------------------------------------------------------

    def _step(
        self,
        name: str,
        stream: WorkerStream,
        step: Callable[[Any], Any],
        count: Callable[[Any], tf.Tensor] | None = None,
        shown: Sequence[tf.Tensor] = (),
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
                shown,
            )
        return self._steps[key]

    def _results(
        self, step: WorkerStep, stream: str, index: int, wanted: Callable[[], bool], total: Total
    ) -> Iterator[StepResult]:
        """Keep the workers busy until none has rows of the pass, or no more are wanted; yield what steps came to.

        `total` has them all, less what workers did that were lost: their rows were given to others.
        """
        ended: set[int] = set()
        workers = self.context.num_workers
        at_once = STEPS_PER_WORKER * workers
        with ThreadPoolExecutor(at_once, thread_name_prefix="tfspark-steps") as pool:
            while True:
                remote = [self._schedule(step, stream, index) for _ in range(at_once)]
                pending = {pool.submit(value.fetch): value for value in remote}
                while pending:
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        value = pending.pop(future)
                        fetched = self._fetched(future)
                        if fetched is None:
                            pending[pool.submit(fetch_again, value)] = value
                            continue
                        result = step.unpack(fetched)
                        if result.rows:
                            total.add(result)
                            yield result
                        else:
                            ended.add(result.reader)
                        if len(ended) < workers and wanted():
                            value = self._schedule(step, stream, index)
                            pending[pool.submit(value.fetch)] = value
                ended -= self._end_pass(stream, index, total, ended)
                if len(ended) == workers or not wanted():
                    return

    def _end_pass(self, stream: str, index: int, total: Total, ended: set[int]) -> set[int]:
        """Learn which workers were lost before the pass was over; leave what they did out of the sums."""
        seen = sorted(ended.union(total.parts))
        reply = self.context.control.call(
            "end_pass", stream=stream, index=index, seen=seen, ended=sorted(ended)
        )
        for reader in reply["lost"]:
            total.parts.pop(reader, None)
        return set(reply["lost"])

    def _schedule(self, step: WorkerStep, stream: str, index: int) -> Any:
        self._number += 1
        args = (
            tf.constant(stream),
            tf.constant(index, tf.int64),
            tf.constant(self._number, tf.int64),
            tf.constant(self._num_shown),
        )
        return self._coordinator.schedule(step.run, args=args)

    def _fetched(self, future: Future[Any]) -> Any | None:
        """Return what a step came to; None: its worker was lost before that was here, and another repeats the step.

        Raises:
            tf.errors.OpError: the coordinator has given up, for this error.
        """
        try:
            return future.result()
        except LOST:
            # Raises the error for which steps were cancelled. If the coordinator neither gives up nor repeats the step,
            # the driver finds that no step ends.
            self._coordinator.done()
            return None

    def _metrics(self, total: Total) -> dict[str, Any]:
        """Return the metrics over all steps; of logs that are no metrics, the mean over steps."""
        self.model.reset_metrics()
        for variable, value in zip(self.model.metrics_variables, total.sums, strict=False):
            variable.assign(value.astype(variable.dtype))
        results = plain_logs(self.model.get_metrics_result())
        means = {name: value / total.steps for name, value in total.logs.items()}
        return results if set(means) <= set(results) else means

    def _build(self, stream: WorkerStream) -> None:
        """Make the variables of both models before a step is traced: steps cannot."""
        if self._is_built:
            return
        specs = self._specs(stream)
        for model in (self.model, self.local_model):
            count_real_rows_alone(model, stream.weighs_rows)
        with self._strategy.scope():
            build_variables(self.model, specs)
        build_variables(self.local_model, specs)
        self._is_built = True

    def _specs(self, stream: WorkerStream) -> Any:
        """Return an element of a stream, of symbolic tensors."""
        element = tf.function(stream.to_element, autograph=False)
        return element.get_concrete_function(stream.signature).structured_outputs


def fetch_again(value: Any) -> Any:
    """Fetch what a step came to, a little later: it is done again elsewhere."""
    threading.Event().wait(FETCH_AGAIN_S)
    return value.fetch()


class Total:
    """Steps of one pass added up, those of each worker apart: some may be left out in the end."""

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}

    def add(self, result: StepResult) -> None:
        """Add one step."""
        self.parts.setdefault(result.reader, Part()).add(result)

    @property
    def steps(self) -> int:
        """How many."""
        return sum(part.steps for part in self.parts.values())

    @property
    def rows(self) -> int:
        """Rows of all batches."""
        return sum(part.rows for part in self.parts.values())

    @property
    def logs(self) -> dict[str, float]:
        """Name -> sum of what steps returned."""
        sums: Counter[str] = Counter()
        for part in self.parts.values():
            sums.update(part.logs)
        return dict(sums)

    @property
    def sums(self) -> list[np.ndarray[Any, Any]]:
        """States of metrics, and counts."""
        return [np.sum(values, axis=0) for values in zip(*(p.sums for p in self.parts.values()), strict=True)]


@dataclass
class Part:
    """Steps of one worker added up.

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
    """Make all variables of a model, those of a training step's own optimizers, too.

    As ``fit`` does, and by tracing a `train_step` of the model's own, or one that does not call the model.

    Args:
        model: a compiled model.
        specs: shapes and types of an element.
    """
    if type(model).call is not keras.Model.call:
        batch = tf.nest.map_structure(lambda s: keras.KerasTensor(tuple(s.shape), s.dtype.name), specs)
        model._symbolic_build(data_batch=batch)
        if not is_own(model, "train_step"):
            return

    def step(*element: Any) -> Any:
        return tf.distribute.get_strategy().run(model.train_step, args=(element,))

    tf.function(step, autograph=False).get_concrete_function(*specs)


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Return the optimizer a model was compiled with, and those of a training step of its own."""
    return [value for value in vars(model).values() if isinstance(value, keras.optimizers.Optimizer)]


def refuse_calls_of_callbacks(model: keras.Model) -> None:
    """Let what a callback may call, and what works in this process alone, say that it does not."""

    def refusing(name: str) -> Callable[..., None]:
        def refused(*args: Any, **kwargs: Any) -> None:
            raise ConfigError(
                f"expected callbacks that do not call model.{name}() under parameter servers: its variables are in "
                "other processes; call the model itself, model(x, training=False), or train synchronously (num_ps=0)"
            )

        return refused

    for name in ("predict", "evaluate", "fit"):
        setattr(model, name, refusing(name))


def refuse_unsupported(model: keras.Model) -> None:
    """Refuse what asynchronous steps cannot do.

    Raises:
        ConfigError: the model was compiled with it.
    """
    for each in optimizers_of(model):
        if each.gradient_accumulation_steps:
            raise ConfigError(
                "expected an optimizer without gradient_accumulation_steps under parameter servers, got "
                f"{each.gradient_accumulation_steps}: workers would add to each other's gradients; leave it out, or "
                "train synchronously (num_ps=0)"
            )
    if any(isinstance(each, keras.optimizers.LossScaleOptimizer) for each in optimizers_of(model)):
        raise ConfigError(
            "expected no LossScaleOptimizer (mixed_float16) under parameter servers: workers would change the scale "
            "under each other; use float32 or mixed_bfloat16, or train synchronously (num_ps=0)"
        )
    for each in optimizers_of(model):
        if each.use_ema and each.ema_overwrite_frequency:
            raise ConfigError(
                "expected an optimizer without ema_overwrite_frequency under parameter servers, got "
                f"{each.ema_overwrite_frequency}: workers would overwrite weights that others train; leave it out (the "
                "average is taken over at the end), or train synchronously (num_ps=0)"
            )
    if model.steps_per_execution > 1:
        raise ConfigError(
            f"expected a model compiled with steps_per_execution=1 under parameter servers, got "
            f"{model.steps_per_execution}: each step is given to whichever worker is free; leave it out, or train "
            "synchronously (num_ps=0)"
        )
    if model.run_eagerly:
        raise ConfigError(
            "expected a model compiled without run_eagerly=True under parameter servers, whose steps are graphs; leave "
            "it out"
        )
