"""One worker's model: train what a ``build_model`` function returns. Runs in the trainer.

Training is Keras's ``fit`` on the fed dataset. Evaluation runs on a second copy of the model outside of the strategy:
each worker evaluates its own rows without padding and without waiting for others. The driver adds up the metric states,
which are sums. So every row counts exactly once.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import keras

from tfspark.errors import BrokenOffError
from tfspark.feed.ledger import Used
from tfspark.feed.stream import Start
from tfspark.protocol.settings import TrainerSettings
from tfspark.protocol.values import Json
from tfspark.training import state
from tfspark.training.build import (
    BuildModel,
    call_build_model,
    check_synchronous,
    copy_optimizer,
    named_as_alone,
    set_optimizer,
    set_precision,
    weights_digest,
)
from tfspark.training.callbacks import make_callbacks
from tfspark.training.checkpointing import (
    PartSender,
    Progress,
    Resumed,
    ResumeEpoch,
    StateCheckpoints,
    fetch,
    start_of,
)
from tfspark.training.chief_callbacks import written_by_chief
from tfspark.training.evaluation import Figure, LocalEvaluator, plain_logs
from tfspark.training.feeding import TrainingFeed, feed_of_dataset
from tfspark.training.input.dataset import Feed, describe_stream, distributed_dataset, open_feed
from tfspark.training.keras_corrections import SynchroniseState, build_for, synchronise_state
from tfspark.training.padding import count_real_rows_alone
from tfspark.training.reporting import ReportProgress
from tfspark.training.saving import Checkpoints, ShareWeights, upload_model, upload_pictures

if TYPE_CHECKING:
    import tensorflow as tf

    from tfspark.training.class_counts import Matrix
    from tfspark.training.context import TrainingContext


class TrainingSession:
    """One worker's model and its progress.

    Args:
        build_model: the user's function.
        params: its argument.
        context: the node.
    """

    def __init__(self, build_model: BuildModel, params: object, context: TrainingContext):
        self.context = context
        self.params = params
        self._build_model = build_model
        keras.utils.set_random_seed(context.seed)
        set_precision(context.settings)
        with context.strategy.scope(), named_as_alone():
            self.model = call_build_model(build_model, params)
            set_optimizer(self.model, context.settings)
        keras.utils.set_random_seed(context.seed)  # Constants that the function draws are the same in both.
        self.local_model = call_build_model(build_model, params)
        set_optimizer(self.local_model, context.settings)
        self.progress = Progress()
        self.resumed: Resumed | None = None
        self.callback_settings: Json = {}
        self.learning_rates = state.learning_rates(self.model)
        self._start: tuple[int, Start] = (0, Start())
        self._sender = self.make_sender()
        self.checkpoints = Checkpoints(context, self.to_save)
        self._dataset: tf.distribute.DistributedDataset | None = None
        self._described: Json = {}
        self._validations = 0
        self.prepare()

    def prepare(self) -> None:
        """Create what `train` and `evaluate` need."""
        check_synchronous(self.model)
        self._evaluator = LocalEvaluator(self.local_model, self.context, self.context.num_workers)

    def train(self, job: Json) -> Json:
        """Fit for the job's epochs; return their history, including earlier incarnations of the cluster."""
        feed = self._training_feed()
        feed.next_index = job["first_pass"]
        counted = feed if isinstance(feed, Feed) else None
        if counted is not None:
            counted.start = self._start
        if not self.begin(job):
            try:
                self.model.fit(
                    self._dataset,
                    epochs=job["first_pass"] + job["epochs"],
                    initial_epoch=job["first_pass"],
                    callbacks=[SynchroniseState(), *self.callbacks(job, feed.global_batch_size, counted)],
                    verbose=0,
                    shuffle=False,
                )
            except BrokenOffError:  # On all workers at the same step.
                synchronise_state(self.model)
                raise
            self.finish(job)
        return self.progress.of_call

    def begin(self, job: Json) -> bool:
        """Begin a training, or continue it from a checkpoint; return whether it had already ended."""
        if job["call"] != self.progress.call:
            self.resumed = None
        self.progress.begin(job["call"])
        return self.progress.finished

    def finish(self, job: Json) -> None:
        """Save the state after a training, because callbacks may have restored the best weights."""
        self.progress.finished = True
        self.save(job["first_pass"] + job["epochs"], 0, [], {})
        self._sender.finish()

    @property
    def rows_of_pass(self) -> int:
        """Number of rows that this node had of the last pass over the training rows."""
        return self._training_feed().rows_of_pass

    # --- checkpoints of the state ------------------------------------------------------------------

    def make_sender(self) -> PartSender:
        """Return the sender of this node's parts of checkpoints."""
        return PartSender(self.context, self.context.num_workers, self.context.node.task_index)

    def save(
        self,
        passes: int,
        steps: int,
        callbacks: list[keras.callbacks.Callback],
        used: Used,
        logs: Mapping[str, object] | None = None,
    ) -> None:
        """Save the current state, after `passes` complete passes and `steps` steps of the next one.

        Args:
            passes: number of complete passes.
            steps: number of steps after them.
            callbacks: those whose counts are saved.
            used: the rows of these steps, see `tfspark.feed.ledger`.
            logs: of the last of these steps.
        """
        if not self.context.settings.saves_state:
            return
        arrays = state.capture(self.model, self.context.is_chief)
        plain, of_callbacks = state.capture_callbacks(callbacks, self.callback_settings)
        facts: Json = {"passes": passes, "steps": steps, "progress": copy.deepcopy(vars(self.progress))}
        if self.context.is_chief:
            facts |= {
                "callbacks": plain,
                "model": state.describe(self.model),
                "learning_rates": self.learning_rates,
                "logs": plain_logs(logs or {}),
            }
            arrays |= of_callbacks
        self._sender.send(arrays, facts, used)

    def resume(self, job: Json) -> None:
        """Return to a checkpoint, in a new incarnation of the cluster."""
        rank = self.context.node.task_index
        begun = time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="tfspark-fetch") as beside:
            fetching = beside.submit(fetch, self.context, job, rank)
            self.build()
            build_s = time.monotonic() - begun
            self.resumed, self.progress = fetching.result()
        state.restore(self.model, self.resumed.shared, self.resumed.own)
        state.keep_rates_that_were_changed(self.model, self.learning_rates, self.resumed.learning_rates)
        self._start = (job["passes"], start_of(job, rank)) if job["steps"] else (0, Start())
        self.context.report("restored", build_s=build_s, seconds=time.monotonic() - begun)

    def _average_restored(self) -> None:
        """Average the workers' state if it was restored in the middle of an epoch, whose end has not averaged it."""
        if self.resumed is not None and self.resumed.steps:
            synchronise_state(self.model)

    def build(self) -> None:
        """Create all variables, as ``fit`` does."""
        self._training_feed()
        build_for(self.model, self._dataset)

    def _training_feed(self) -> TrainingFeed:
        """Return the feed of ``train``; its dataset is created once, and again when other files are to be read."""
        described = describe_stream(self.context, self.context.stream("train"))["description"]
        if self._dataset is None or described != self._described:
            self._dataset, self._described = (
                distributed_dataset(self.context, self.context.stream("train"), self.context.strategy),
                described,
            )
        feed = feed_of_dataset(self._dataset)
        assert feed is not None
        count_real_rows_alone(self.model, feed.weighs_rows)
        return feed

    def callbacks(
        self, job: Json, step_rows: int, feed: Feed | None = None
    ) -> list[keras.callbacks.Callback]:
        """Create the callbacks of a training, in the order in which they add to the logs and read them."""
        ours: list[keras.callbacks.Callback] = [ResumeEpoch(self)]
        if job["validation"]:
            ours.append(Validation(self, ours))
        if job["side_car"]:
            ours.append(ShareWeights(self.context, self.to_save))
        ours.append(ReportProgress(self.context, step_rows, feed))
        ours.extend(make_callbacks(self.context.settings.callbacks))
        if self.context.hooks.callbacks is not None:
            theirs = self.context.hooks.callbacks(self.params)
            ours.extend(written_by_chief(theirs, self.context.is_chief, keeps_state=True))
        if self.context.hooks.draw_epoch is not None and self.context.is_chief:
            ours.append(DrawEpochs(self))
        ours.append(self.checkpoints)
        return [*ours, StateCheckpoints(self, ours, feed)]

    def evaluate(self, stream: str, index: int = 0, num_classes: int | None = None) -> dict[str, Figure]:
        """Evaluate all rows of one pass of a stream, together with the other workers."""
        self.copy_weights()
        feed = open_feed(self.context, stream)
        feed.next_index = index
        return self._evaluator.evaluate(feed, f"{stream}-{index}", num_classes)

    def test(self, job: Json) -> Json:
        """Evaluate a stream once; count predicted classes if the job asks for them."""
        self._average_restored()
        results: Json = dict(self.evaluate(job["stream"], num_classes=job["num_classes"]))
        if self.confusion_matrix is not None:
            results["confusion_matrix"] = self.confusion_matrix
        if self.roc is not None:
            results["roc"] = self.roc
        draw, rows = self.context.hooks.draw, self.first_rows
        if draw is not None and rows is not None:
            upload_pictures(self.context, lambda folder: draw(self.local_model, *rows, folder))
        return results

    @property
    def confusion_matrix(self) -> Matrix | None:
        """Counts of (true, predicted) class of the last evaluation, if it counted them."""
        return self._evaluator.confusion_matrix

    @property
    def roc(self) -> list[list[list[float]]] | None:
        """Curves of the last evaluation: the model's own if it has an AUC metric, otherwise one for each class."""
        return self._evaluator.roc

    @property
    def first_rows(self) -> tuple[object, object] | None:
        """Some features and labels of the last evaluation, on the worker that had most of its rows."""
        return self._evaluator.first_rows

    def validate(self) -> dict[str, Figure]:
        """Evaluate the next pass of the stream ``validation``."""
        self._validations += 1
        return self.evaluate(self.context.stream("validation"), self._validations - 1)

    def copy_weights(self) -> None:
        """Update the copy outside of the strategy."""
        if len(self.local_model.weights) != len(self.model.weights):
            build_for(self.local_model, self._dataset)  # Its layers create their variables from the data.
        self.local_model.set_weights(self.model.get_weights())

    def to_save(self) -> keras.Model:
        """Return the model for a checkpoint."""
        return self.model

    def to_export(self) -> keras.Model:
        """Return the model for an export: the updated copy, which belongs to no strategy."""
        self.copy_weights()
        copy_optimizer(self.local_model, self.model)
        return self.local_model

    def renewed(self, job: Json) -> TrainingSession:
        """Drop this model; return a session for another one in the same process."""
        if (feed := feed_of_dataset(self._dataset)) is not None:
            feed.end()
        self.context.settings = TrainerSettings.from_json(job["settings"])
        keras.utils.clear_session()
        return type(self)(self._build_model, job["params"], self.context)

    def close(self, job: Json) -> Json:
        """Export if the job asks for it; return the summary of the model."""
        self._sender.finish()
        return self.export(job["export"])

    def export(self, formats: Sequence[str]) -> Json:
        """Export to the given formats; return the summary of the model."""
        self._average_restored()
        if formats and self.context.is_chief:
            upload_model(self.context, self.to_export(), "export", tuple(formats))
        return {
            "history": self.progress.history,
            "rows": self.progress.rows,
            "iterations": int(self.model.optimizer.iterations.numpy()) if self.model.optimizer else 0,
            "weights_sha256": weights_digest(self.model),
        }


class DrawEpochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Let the model module draw after every epoch, on the chief.

    It draws with the copy outside of the strategy, because one worker cannot predict alone with the distributed model.
    """

    def __init__(self, session: TrainingSession):
        super().__init__()
        self._session = session

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Draw, and send the pictures."""
        session, draw = self._session, self._session.context.hooks.draw_epoch
        if draw is not None:
            session.copy_weights()
            upload_pictures(session.context, lambda folder: draw(session.local_model, epoch + 1, folder))


class Validation(keras.callbacks.Callback):  # type: ignore[misc]
    """Evaluate the validation rows after each epoch and add ``val_*`` to the epoch's logs.

    Args:
        session: whose model it is.
        callbacks: callbacks of the training. They are called when an evaluation begins and ends; `SwapEMAWeights`, for
            example, changes the weights for it.
    """

    def __init__(self, session: TrainingSession, callbacks: Sequence[keras.callbacks.Callback]):
        super().__init__()
        self._session = session
        self._callbacks = callbacks

    def on_epoch_end(self, epoch: int, logs: dict[str, object] | None = None) -> None:
        """Evaluate; the callbacks after this one see the results."""
        if self.model.stop_training:
            return  # It stopped within the epoch, so the driver feeds no validation rows.
        for callback in self._callbacks:
            callback.on_test_begin()
        results = self._session.validate()
        for callback in self._callbacks:
            callback.on_test_end(results)
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in results.items()})
