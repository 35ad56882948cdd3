"""The training loop with parameter servers: Keras's ``fit`` and ``evaluate`` with asynchronous steps.

Runs in the chief's trainer. TensorFlow's `ClusterCoordinator` gives each step to a free worker. The worker takes its
own next batch and changes the variables on the parameter servers. An epoch ends when every worker has reported that it
has no more rows and every step has returned.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfspark.errors import ConfigError
from tfspark.feed.reader import broken_off
from tfspark.protocol.values import Json
from tfspark.training.build import copy_optimizer
from tfspark.training.checkpointing import PartSender, fetch
from tfspark.training.class_counts import Kind, Matrix, count_classes, kind_of_label, matrix_and_curves
from tfspark.training.evaluation import SHOWN_ROWS, Figure, is_dense, plain_logs
from tfspark.training.failing import noting_what_was_given
from tfspark.training.input.elements import Element, Structure
from tfspark.training.metric_states import merged, merges_of
from tfspark.training.own_code import is_own
from tfspark.training.padding import count_real_rows_alone
from tfspark.training.ps.servers import CHIEF_DONE, barrier
from tfspark.training.ps.sharding import whole_values
from tfspark.training.ps.worker_feed import WorkerStream, open_stream
from tfspark.training.ps.worker_steps import Fetched, Step, StepResult, WorkerStep
from tfspark.training.session import TrainingSession
from tfspark.training.state import keep_rates_that_were_changed, optimizers_of, restore

STEPS_PER_WORKER = 2
"""Number of scheduled steps per worker: one runs and one waits, so that workers stay busy while results are read."""
CLOSE_TIMEOUT_S = 60.0
FETCH_AGAIN_S = 0.1
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InvalidArgumentError,
    tf.errors.UnavailableError,
)
"""Errors that fetching a result may raise if its worker is lost, or is a replacement that does not know it."""


class ParameterServerSession(TrainingSession):
    """The chief's model, whose variables are on the parameter servers, and its progress."""

    def prepare(self) -> None:
        """Connect to the workers, and check that the model can be trained this way."""
        refuse_unsupported(self.model)
        _refuse_calls_of_callbacks(self.model)
        self._strategy = self.context.strategy
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._strategy)
        self._steps: dict[str, WorkerStep] = {}
        self._is_built = False
        self._number = 0
        self._confusion: Matrix | None = None
        self._curves: list[list[list[float]]] | None = None
        self._first_rows: tuple[object, object] | None = None
        self._num_shown = 0

    def train(self, job: Json) -> Json:
        """Train for the job's epochs; return their history."""
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
        """Return the sender of checkpoints; the chief has the only part."""
        return PartSender(self.context, 1, 0)

    def resume(self, job: Json) -> None:
        """Return to a checkpoint; it has complete passes only."""
        self.build()
        self.resumed, self.progress = fetch(self.context, job, 0)
        restore(self.model, self.resumed.shared, self.resumed.own)
        keep_rates_that_were_changed(self.model, self.learning_rates, self.resumed.learning_rates)

    def build(self) -> None:
        """Create all variables."""
        self._build(open_stream(self.context, "train"))
        self.model.optimizer.build(self.model.trainable_variables)

    def _fit(self, stream: WorkerStream, callbacks: keras.callbacks.CallbackList, epochs: range) -> None:
        """Train as ``fit`` does."""
        model, logs = self.model, None
        step = self._step("train", stream, model.train_step)
        model.stop_training = False
        callbacks.on_train_begin()
        for epoch in epochs:
            callbacks.on_epoch_begin(epoch)
            total = Total(merges_of(model))
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

    def evaluate(self, stream: str, index: int = 0, num_classes: int | None = None) -> dict[str, Figure]:
        """Evaluate all rows of one pass of a stream on the workers."""
        opened = open_stream(self.context, stream)
        self._build(opened)
        self._confusion = self._curves = None
        shown = self._specs(opened)[:2]
        kind, count = self._kind(num_classes, *shown) if num_classes else None, None
        if num_classes and kind:
            count = functools.partial(count_classes, self.model, num_classes=num_classes, kind=kind)
        flat = tf.nest.flatten(shown) if self._num_shown and is_dense(shown) else []
        step = self._step(f"test {num_classes} {bool(flat)}", opened, self.model.test_step, count, flat)
        total = Total(merges_of(self.model))
        parts: list[list[npt.NDArray[np.generic]]] = []
        for result in self._results(step, opened.name, index, lambda: True, total):
            self.context.activity.step_done()
            parts.append(result.shown)
            self._num_shown = max(self._num_shown - result.rows, 0)
        rows = [np.concatenate(part)[:SHOWN_ROWS] for part in zip(*parts, strict=True)]
        self._first_rows = tf.nest.pack_sequence_as(shown, rows) if rows else None
        if rows:
            self.copy_weights()  # The copy is used to draw.
        if num_classes and kind:
            self._confusion, self._curves = matrix_and_curves(total.sums[-1], num_classes, kind)
        return self._metrics(total)

    def _kind(self, num_classes: int, features: Structure, label: Structure) -> Kind | None:
        """Return how to read labels; None if the model does not predict these classes."""
        if self.model.loss is None:  # Such a model may not be callable, either.
            return None
        call = tf.function(lambda x: self.local_model(x, training=False), autograph=False)
        specs = tf.nest.map_structure(tf.type_spec_from_value, features)
        outputs = call.get_concrete_function(specs).structured_outputs
        return kind_of_label(self.local_model, outputs, label, num_classes)

    def test(self, job: Json) -> Json:
        """Evaluate as `TrainingSession.test` does; if there is something to draw, workers also return some rows."""
        self._num_shown = SHOWN_ROWS if self.context.hooks.draw is not None else 0
        return super().test(job)

    @property
    def confusion_matrix(self) -> Matrix | None:
        """Counts of (true, predicted) class of the last evaluation, if it counted them."""
        return self._confusion

    @property
    def roc(self) -> list[list[list[float]]] | None:
        """The curve of each class in the last evaluation, if it counted classes."""
        return self._curves

    @property
    def first_rows(self) -> tuple[object, object] | None:
        """Some features and labels of the last evaluation, which the workers returned for `draw`."""
        return self._first_rows

    def to_save(self) -> keras.Model:
        """Return the updated copy; its tables are not divided."""
        return self.to_export()

    def to_export(self) -> keras.Model:
        """Return the updated copy, which belongs to no strategy."""
        self.copy_weights()
        copy_optimizer(self.local_model, self.model, whole_values)
        return self.local_model

    def copy_weights(self) -> None:
        """Update the copy outside of the strategy; its tables are not divided."""
        self.local_model.set_weights(whole_values(self.model.weights))

    def close(self, job: Json) -> Json:
        """Export if the job asks for it, return the summary of the model, and release the servers."""
        summary = super().close(job)
        barrier(self.context, CHIEF_DONE, CLOSE_TIMEOUT_S)
        return summary

    # --- steps -------------------------------------------------------------------------------------

    def _step(
        self,
        name: str,
        stream: WorkerStream,
        step: Step,
        count: Callable[[Element], tf.Tensor] | None = None,
        shown: Sequence[tf.Tensor] = (),
    ) -> WorkerStep:
        """Return the graph of a step, created once."""
        key = f"{name} {stream.look}"  # Files of a later training may have other shapes.
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
        """Keep the workers busy until none has rows of the pass, or no more are wanted; yield the steps' results.

        `total` sums up all results, except those of lost workers: other workers get their rows.
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
                            pending[pool.submit(_fetch_again, value)] = value
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
        """Ask which workers were lost before the pass was over; remove their results from the sums.

        Raises:
            BrokenOffError: the driver feeds no more.
        """
        seen = sorted(ended.union(total.parts))
        reply = self.context.control.call(
            "end_pass", stream=stream, index=index, seen=seen, ended=sorted(ended)
        )
        if "broken_off" in reply:
            raise broken_off(stream, reply["broken_off"])
        for reader in reply["lost"]:
            total.parts.pop(reader, None)
        return set(reply["lost"])

    def _schedule(self, step: WorkerStep, stream: str, index: int) -> tf.distribute.coordinator.RemoteValue:
        self._number += 1
        args = (
            tf.constant(stream),
            tf.constant(index, tf.int64),
            tf.constant(self._number, tf.int64),
            tf.constant(self._num_shown),
        )
        return self._coordinator.schedule(step.run, args=args)

    def _fetched(self, future: Future[Fetched]) -> Fetched | None:
        """Return the step's result, or None if its worker was lost first; another worker then repeats the step.

        Raises:
            tf.errors.OpError: the error for which the coordinator has given up.
        """
        try:
            return future.result()
        except LOST:
            # Raise the error that cancelled the steps. If the coordinator neither gives up nor repeats the step, the
            # driver detects that no step ends.
            self._coordinator.done()
            return None

    def _metrics(self, total: Total) -> dict[str, Figure]:
        """Return the metrics over all steps; for other logs beside them, the mean over steps."""
        self.model.reset_metrics()
        for variable, value in zip(self.model.metrics_variables, total.sums, strict=False):
            variable.assign(value.astype(variable.dtype))
        results = plain_logs(self.model.get_metrics_result())
        means: dict[str, Figure] = {name: value / total.steps for name, value in total.logs.items()}
        return (
            results
            if set(means) <= set(results)
            else {name: results.get(name, means[name]) for name in means}
        )

    def _build(self, stream: WorkerStream) -> None:
        """Create the variables of both models before a step is traced, because steps cannot."""
        if self._is_built:
            return
        specs = self._specs(stream)
        for model in (self.model, self.local_model):
            count_real_rows_alone(model, stream.weighs_rows)
        with self._strategy.scope():
            _build_variables(self.model, specs)
        _build_variables(self.local_model, specs)
        self._is_built = True

    def _specs(self, stream: WorkerStream) -> Element:
        """Return an element of a stream as symbolic tensors."""
        element = tf.function(stream.to_element, autograph=False)
        specs: Element = element.get_concrete_function(stream.signature).structured_outputs
        return specs


def _fetch_again(value: tf.distribute.coordinator.RemoteValue) -> Fetched:
    """Fetch a step's result later, after another worker has repeated the step."""
    threading.Event().wait(FETCH_AGAIN_S)
    fetched: Fetched = value.fetch()
    return fetched


class Total:
    """Sum of the steps of one pass, separate for each worker, because lost workers may be removed at the end.

    Args:
        merges: what merges two states of each metric variable; see `merges_of`.
    """

    def __init__(self, merges: Sequence[np.ufunc]) -> None:
        self.parts: dict[int, Part] = {}
        self._merges = merges

    def add(self, result: StepResult) -> None:
        """Add one step."""
        self.parts.setdefault(result.reader, Part(self._merges)).add(result)

    @property
    def steps(self) -> int:
        """How many."""
        return sum(part.steps for part in self.parts.values())

    @property
    def rows(self) -> int:
        """Number of rows of all batches."""
        return sum(part.rows for part in self.parts.values())

    @property
    def logs(self) -> dict[str, float]:
        """Name -> sum of the steps' logs."""
        sums: Counter[str] = Counter()
        for part in self.parts.values():
            sums.update(part.logs)
        return dict(sums)

    @property
    def sums(self) -> list[npt.NDArray[np.float64]]:
        """Metric states and counts."""
        parts = [part.sums for part in self.parts.values()]
        return merged(parts, self._merges) if parts else []


@dataclass
class Part:
    """Sum of the steps of one worker.

    Attributes:
        merges: what merges two states of each metric variable.
        steps: number of steps.
        rows: number of rows of all batches.
        logs: name -> sum of the steps' logs.
        sums: metric states and counts.
    """

    merges: Sequence[np.ufunc]
    steps: int = 0
    rows: int = 0
    logs: dict[str, float] = field(default_factory=dict)
    sums: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(self, result: StepResult) -> None:
        """Add one step."""
        self.sums = merged([self.sums, result.sums], self.merges) if self.steps else result.sums
        self.steps += 1
        self.rows += result.rows
        for name, value in result.logs.items():
            self.logs[name] = self.logs.get(name, 0.0) + value


def _build_variables(model: keras.Model, specs: Element) -> None:
    """Create all variables of a model, also those of the optimizers of its own training step.

    This is done as in ``fit``, or by tracing a `train_step` that the model overrides or that does not call the model.

    Args:
        model: a compiled model.
        specs: shapes and types of an element.
    """
    with noting_what_was_given(specs):
        _build_traced(model, specs)


def _build_traced(model: keras.Model, specs: Element) -> None:
    if type(model).call is not keras.Model.call:
        batch = tf.nest.map_structure(lambda s: keras.KerasTensor(tuple(s.shape), s.dtype.name), specs)
        model._symbolic_build(data_batch=batch)
        if not is_own(model, "train_step"):
            return

    def step(*element: Structure) -> Structure:
        return tf.distribute.get_strategy().run(model.train_step, args=(element,))

    try:
        tf.function(step, autograph=False).get_concrete_function(*specs)
    except RuntimeError as error:
        if "`merge_call` called while defining a new graph" not in str(error):
            raise
        raise ConfigError(
            "expected a train_step that applies gradients outside of branches (tf.cond, if) and of a tf.function of "
            "its own under parameter servers; apply them in each step, or train synchronously (num_ps=0)"
        ) from error


def _refuse_calls_of_callbacks(model: keras.Model) -> None:
    """Let methods that work in this process only raise an error when a callback calls them."""

    def refusing(name: str) -> Callable[..., None]:
        def refused(*args: object, **kwargs: object) -> None:
            raise ConfigError(
                f"expected callbacks that do not call model.{name}() under parameter servers: its variables are in "
                "other processes; call the model itself, model(x, training=False), or train synchronously (num_ps=0)"
            )

        return refused

    for name in ("predict", "evaluate", "fit"):
        setattr(model, name, refusing(name))


def refuse_unsupported(model: keras.Model) -> None:
    """Reject settings that asynchronous steps do not support.

    Raises:
        ConfigError: the model was compiled with such a setting.
    """
    for each in optimizers_of(model).values():
        if each.gradient_accumulation_steps:
            raise ConfigError(
                "expected an optimizer without gradient_accumulation_steps under parameter servers, got "
                f"{each.gradient_accumulation_steps}: workers would add to each other's gradients; leave it out, or "
                "train synchronously (num_ps=0)"
            )
    if any(isinstance(each, keras.optimizers.LossScaleOptimizer) for each in optimizers_of(model).values()):
        raise ConfigError(
            "expected no LossScaleOptimizer (mixed_float16) under parameter servers: workers would change the scale "
            "under each other; use float32 or mixed_bfloat16, or train synchronously (num_ps=0)"
        )
    for each in optimizers_of(model).values():
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
