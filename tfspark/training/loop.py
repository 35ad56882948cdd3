"""tfspark's own loop: trains the model a ``build_model`` function returns. Runs in the trainer.

The driver posts jobs (train, evaluate, close); every worker does the same jobs in the same order. Training
is Keras's ``fit`` on the fed dataset. Evaluation runs on a second copy of the model outside of the
strategy: each worker evaluates its own rows without padding and without waiting for others, and the
metrics' states, which are sums, are added up by the driver. So every row counts exactly once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from tfspark.cluster.wire import Json
from tfspark.feed.dataset import describe_stream, distributed_dataset, open_feed
from tfspark.training.build import (
    BuildModel,
    call_build_model,
    copy_optimizer,
    set_optimizer,
    weights_digest,
)
from tfspark.training.callbacks import make_callbacks
from tfspark.training.evaluation import LocalEvaluator
from tfspark.training.evaluator import run_evaluator
from tfspark.training.jobs import job_done, posted_jobs
from tfspark.training.keras_corrections import SynchroniseState
from tfspark.training.padding import LossOfRealRows, leave_padding_out_of_metrics
from tfspark.training.reporting import ReportProgress
from tfspark.training.saving import Checkpoints, ShareWeights, upload_model, upload_pictures

if TYPE_CHECKING:
    from tfspark.cluster.context import TFContext


def run_jobs(build_model: BuildModel, params: Any, context: TFContext) -> Json:
    """Do what the driver posts until it says close; return this node's summary."""
    if context.role == "evaluator":
        return run_evaluator(build_model, params, context)
    session = TrainingSession(build_model, params, context)
    summary: Json = {}
    for job in posted_jobs(context):
        if job["kind"] == "train":
            job_done(context, job, session.train(job))
        elif job["kind"] == "evaluate":
            job_done(context, job, session.test(job))
        elif job["kind"] == "close":
            summary = session.close(job)
    return summary


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
        leave_padding_out_of_metrics(self.model)
        self.local_model = call_build_model(build_model, params)
        set_optimizer(self.local_model, context.settings)
        self.rows: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.checkpoints = Checkpoints(context)
        self._dataset: Any = None
        self._described: Json = {}
        self._validations = 0
        self._evaluator = LocalEvaluator(self.local_model, context, context.num_workers)

    def train(self, job: Json) -> Json:
        """Fit for the job's epochs; return the history of this job."""
        feed = self._training_feed()
        feed.next_index = job["first_pass"]
        passes_before = len(feed.rows_per_pass)
        ours: list[keras.callbacks.Callback] = [SynchroniseState(), LossOfRealRows(self.context, feed)]
        if job["validation"]:
            ours.append(Validation(self))
        if job["side_car"]:
            ours.append(ShareWeights(self.context))
        ours.append(ReportProgress(self.context, feed.global_batch_size))
        ours.extend(make_callbacks(self.context.settings.get("callbacks") or {}))
        if self.context.hooks.callbacks is not None:
            ours.extend(self.context.hooks.callbacks(self.params))
        if self.context.hooks.draw_epoch is not None and self.context.is_chief:
            ours.append(DrawEpochs(self))
        ours.append(self.checkpoints)
        fitted = self.model.fit(
            self._dataset,
            epochs=job["first_pass"] + job["epochs"],
            initial_epoch=job["first_pass"],
            callbacks=ours,
            verbose=0,
            shuffle=False,
        )
        rows = feed.rows_per_pass[passes_before:]
        self.rows.extend(rows)
        history = {name: [float(v) for v in values] for name, values in fitted.history.items()}
        for name, values in history.items():
            self.history.setdefault(name, []).extend(values)
        return {"history": history, "rows": rows}

    def _training_feed(self) -> Any:
        """Return the feed of ``train``; its dataset is made once, and anew when other files are to be read."""
        described = describe_stream(self.context, "train")["description"]
        if self._dataset is None or described != self._described:
            self._dataset, self._described = distributed_dataset(self.context, "train"), described
        return self._dataset._tfspark_feed

    def evaluate(self, stream: str, index: int = 0, num_classes: int | None = None) -> dict[str, float]:
        """Evaluate all rows of one pass of a stream, together with the other workers."""
        self.copy_weights()
        feed = open_feed(self.context, stream)
        feed.next_index = index
        return self._evaluator.evaluate(feed, f"{stream}-{index}", num_classes)

    def test(self, job: Json) -> Json:
        """Evaluate a stream once; count predicted classes if the job asks for it."""
        results: Json = dict(self.evaluate(job["stream"], num_classes=job["num_classes"]))
        if self._evaluator.confusion_matrix is not None:
            results["confusion_matrix"] = self._evaluator.confusion_matrix
        if self._evaluator.roc is not None:
            results["roc"] = self._evaluator.roc
        draw, rows = self.context.hooks.draw, self._evaluator.first_rows
        if draw is not None and rows is not None and self.context.is_chief:
            upload_pictures(self.context, lambda folder: draw(self.local_model, *rows, folder))
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


class DrawEpochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Let the model module draw after every epoch, on the chief.

    It draws with the copy outside of the strategy: one worker alone may not predict with the distributed model, as
    that takes all of them.
    """

    def __init__(self, session: TrainingSession):
        super().__init__()
        self._session = session

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Draw, and send what was drawn."""
        session, draw = self._session, self._session.context.hooks.draw_epoch
        if draw is not None:
            session.copy_weights()
            upload_pictures(session.context, lambda folder: draw(session.local_model, epoch + 1, folder))


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
