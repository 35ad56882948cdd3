"""tfspark's own loop: trains the model a ``build_model`` function returns. Runs in the trainer.

The driver posts jobs (train, evaluate, close); every worker does the same jobs in the same order. Training
is Keras's ``fit`` on the fed dataset. Evaluation runs on a second copy of the model outside of the
strategy: each worker evaluates its own rows without padding and without waiting for others, and the
metrics' states, which are sums, are added up by the driver. So every row counts exactly once.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.cluster.wire import Json
from tfspark.errors import ConfigError, DeadlineError
from tfspark.feed.dataset import distributed_dataset, local_dataset, open_feed
from tfspark.training.callbacks import make_callbacks
from tfspark.training.keras_corrections import SynchroniseState
from tfspark.training.reporting import ReportProgress
from tfspark.training.saving import Checkpoints, ShareWeights, upload_model

if TYPE_CHECKING:
    from tfspark.cluster.context import TFContext

BuildModel = Callable[..., keras.Model]


def run_jobs(build_model: BuildModel, params: Any, context: TFContext) -> Json:
    """Do what the driver posts until it says close; return this node's summary."""
    if context.role == "evaluator":
        from tfspark.training.evaluator import run_evaluator

        return run_evaluator(build_model, params, context)
    session = TrainingSession(build_model, params, context)
    done = 0
    while True:
        job = context.control.call("next_job", after=done)
        if job["kind"] == "wait":
            continue
        if job["kind"] == "close":
            return session.close(job)
        done = job["job"]
        if job["kind"] == "side_car":
            continue
        result = session.train(job) if job["kind"] == "train" else session.test(job)
        context.control.call("job_done", job=done, node=context.node.index, result=result)


class TrainingSession:
    """One worker's model and what was done with it.

    Args:
        build_model: the user's function.
        params: its argument.
        context: the node.
    """

    def __init__(self, build_model: BuildModel, params: Any, context: TFContext):
        self.context = context
        self.params = params
        keras.utils.set_random_seed(context.seed)
        with context.strategy.scope():
            self.model = call_build_model(build_model, params)
            set_optimizer(self.model, context.settings)
        self.local_model = call_build_model(build_model, params)
        set_optimizer(self.local_model, context.settings)
        self.rows: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.checkpoints = Checkpoints(context)
        self._validations = 0
        self._evaluator = LocalEvaluator(self.local_model, context, context.num_workers)

    def train(self, job: Json) -> Json:
        """Fit for the job's epochs; return the history of this job."""
        dataset = distributed_dataset(self.context, "train")
        feed = dataset._tfspark_feed
        feed.next_index = job["first_pass"]
        ours: list[keras.callbacks.Callback] = [SynchroniseState()]
        if job["validation"]:
            ours.append(Validation(self))
        if job["side_car"]:
            ours.append(ShareWeights(self.context))
        ours.append(ReportProgress(self.context, feed.global_batch_size))
        ours.extend(make_callbacks(self.context.settings.get("callbacks") or {}))
        if self.context.hooks.callbacks is not None:
            ours.extend(self.context.hooks.callbacks(self.params))
        ours.append(self.checkpoints)
        fitted = self.model.fit(
            dataset,
            epochs=job["first_pass"] + job["epochs"],
            initial_epoch=job["first_pass"],
            callbacks=ours,
            verbose=0,
            shuffle=False,
        )
        self.rows = list(feed.rows_per_pass)
        history = {name: [float(v) for v in values] for name, values in fitted.history.items()}
        for name, values in history.items():
            self.history.setdefault(name, []).extend(values)
        return {"history": history, "rows": self.rows}

    def evaluate(self, stream: str, index: int = 0, num_classes: int | None = None) -> dict[str, float]:
        """Evaluate all rows of one pass of a stream, together with the other workers."""
        self.copy_weights()
        feed = open_feed(self.context, stream)
        feed.next_index = index
        return self._evaluator.evaluate(local_dataset(feed), f"{stream}-{index}", num_classes)

    def test(self, job: Json) -> Json:
        """Evaluate a stream once; count predicted classes if the job asks for it."""
        results: Json = dict(self.evaluate(job["stream"], num_classes=job["num_classes"]))
        if job["num_classes"]:
            results["confusion_matrix"] = self._evaluator.confusion_matrix
        return results

    def validate(self) -> dict[str, float]:
        """Evaluate the next pass of the stream ``validation``."""
        self._validations += 1
        return self.evaluate("validation", self._validations - 1)

    def copy_weights(self) -> None:
        """Bring the copy outside of the strategy up to date."""
        self.local_model.set_weights(self.model.get_weights())

    def close(self, job: Json) -> Json:
        """Export if asked to, and say what became of the model."""
        if job["export"] and self.context.is_chief:
            self.copy_weights()
            copy_optimizer(self.model, self.local_model)
            upload_model(self.context, self.local_model, "export", tuple(job["export"]))
        return {
            "history": self.history,
            "rows": self.rows,
            "iterations": int(self.model.optimizer.iterations.numpy()) if self.model.optimizer else 0,
            "weights_sha256": weights_digest(self.model),
        }


class Validation(keras.callbacks.Callback):  # type: ignore[misc]
    """Evaluate the validation rows after each epoch and add ``val_*`` to the epoch's logs."""

    def __init__(self, session: TrainingSession):
        super().__init__()
        self._session = session

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Evaluate; the callbacks after this one see the results."""
        if self.model.stop_training:
            return  # Stopped within the epoch: the driver feeds no validation rows to it.
        results = self._session.validate()
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in results.items()})


class LocalEvaluator:
    """Evaluates a model that belongs to no strategy on this rank's rows, together with the other ranks.

    Metric states must be sums over rows, as those of Keras are (and as ``tf.distribute`` assumes too).

    Args:
        model: a compiled model.
        context: the node.
        num_ranks: how many ranks evaluate together.
    """

    def __init__(self, model: keras.Model, context: TFContext, num_ranks: int):
        self._model = model
        self._context = context
        self._num_ranks = num_ranks
        self._step = tf.function(model.test_step, reduce_retracing=True)
        self.confusion_matrix: list[list[int]] = []

    def evaluate(
        self, dataset: tf.data.Dataset, key: str, num_classes: int | None = None
    ) -> dict[str, float]:
        """Return the metrics over all ranks' rows.

        Args:
            dataset: this rank's rows.
            key: names this evaluation, alike on all ranks.
            num_classes: keep the counts of (true, predicted) class in `confusion_matrix`, too.
        """
        model = self._model
        # The metrics' variables come into being with the first batch, which this rank may not have.
        self._step(_zeros_of(dataset))
        model.reset_metrics()
        counts = np.zeros((num_classes or 0, num_classes or 0))
        for element in dataset:
            self._step(element)
            if num_classes:
                np.add.at(counts, self._classes(element, num_classes), 1)
        states = [np.asarray(variable.numpy(), np.float64) for variable in model.metrics_variables]
        *total, counts = sum_over_ranks(self._context, key, [*states, counts], self._num_ranks)
        self.confusion_matrix = np.asarray(counts, np.int64).tolist()
        for variable, value in zip(model.metrics_variables, total, strict=True):
            variable.assign(np.asarray(value).astype(variable.numpy().dtype))
        return {name: float(value) for name, value in model.get_metrics_result().items()}

    def _classes(self, element: Any, num_classes: int) -> tuple[Any, Any]:
        """Return the true and the predicted class of each row; one output of one unit is a yes or no."""
        x, y = element[:2]
        outputs = np.asarray(self._model(x, training=False))
        if outputs.shape[-1] == 1 and num_classes == 2:
            return np.asarray(y).reshape(-1).astype(int), (outputs.reshape(-1) > 0.5).astype(int)
        return np.asarray(y).reshape(-1).astype(int), outputs.argmax(-1).reshape(-1)


def _zeros_of(dataset: tf.data.Dataset) -> Any:
    """One element of zeros of the dataset's shapes."""

    def zeros(spec: tf.TensorSpec) -> tf.Tensor:
        shape = [1 if size is None else size for size in spec.shape]
        return tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)

    return tf.nest.map_structure(zeros, dataset.element_spec)


def sum_over_ranks(
    context: TFContext, key: str, values: list[np.ndarray[Any, Any]], num_ranks: int
) -> list[Any]:
    """Add up arrays of all ranks through the driver."""
    timeout_s = float(context.settings["feed_timeout_s"])
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        reply = context.control.call(
            "sum",
            key=key,
            rank=context.task_index,
            of=num_ranks,
            values=[value.tolist() for value in values],
        )
        if reply["status"] == "ok":
            return list(reply["values"])
    raise DeadlineError(
        f"waited feed_timeout_s={timeout_s:g} s for the other workers to evaluate {key!r}; see their logs, or "
        "raise feed_timeout_s"
    )


def call_build_model(build_model: BuildModel, params: Any) -> keras.Model:
    """Call the user's function and check what it returns.

    Raises:
        ConfigError: it returned something else than a compiled model.
    """
    takes_params = len(inspect.signature(build_model).parameters) > 0
    model = build_model(params) if takes_params else build_model()
    name = getattr(build_model, "__name__", "build_model")
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"expected {name} to return a compiled keras.Model, it returned {type(model).__name__}; end it with "
            "'return model'"
        )
    if not model.compiled:
        raise ConfigError(
            f"expected {name} to return a compiled keras.Model, the model is not compiled; call "
            "model.compile(optimizer=..., loss=..., metrics=[...]) before returning it"
        )
    return model


def set_optimizer(model: keras.Model, settings: Json) -> None:
    """Replace the model's optimizer or its learning rate as the settings say; else leave it.

    Raises:
        ConfigError: Keras does not know the optimizer or one of its arguments.
    """
    wanted, rate = settings.get("optimizer"), settings.get("learning_rate")
    if wanted is not None:
        config = dict(wanted)
        name = config.pop("name")
        try:
            optimizer = keras.optimizers.get({"class_name": name, "config": config})
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"expected a Keras optimizer and its arguments, got {wanted}: {error}"
            ) from None
        compiled = {**model.get_compile_config(), "optimizer": keras.optimizers.serialize(optimizer)}
        model.compile_from_config(compiled)
    if rate is not None:
        model.optimizer.learning_rate = rate


def copy_optimizer(source: keras.Model, target: keras.Model) -> None:
    """Give `target` the state of `source`'s optimizer, so that a saved model can be trained further."""
    if source.optimizer is None or not source.optimizer.built:
        return
    target.optimizer.build(target.trainable_variables)
    for variable, value in zip(target.optimizer.variables, source.optimizer.variables, strict=True):
        variable.assign(keras.ops.convert_to_numpy(value))


def weights_digest(model: keras.Model) -> str:
    """Return a checksum over all weights: equal on two workers exactly when the weights are."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
