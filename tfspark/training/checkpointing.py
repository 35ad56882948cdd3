"""Save checkpoints of the training state during training, and return to one. Runs in the trainer.

A checkpoint has a *position*, which is a number of complete passes over the training rows and of steps in the next one,
and each node's state at that position (see `state`). Every node sends its part to the driver. The driver keeps the
checkpoint when it has all parts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from tfspark.feed.ledger import Used, num_rows
from tfspark.feed.stream import Start
from tfspark.protocol.values import Json
from tfspark.training import state
from tfspark.training.evaluation import Figure, plain_logs

if TYPE_CHECKING:
    from tfspark.training.input.dataset import Feed
    from tfspark.training.node_context import NodeContext
    from tfspark.training.session import TrainingSession

UPLOAD_TIMEOUT_S = 600.0
KEPT_EPOCHS = 10_000
"""Number of epochs kept of earlier trainings. Each micro-batch of a stream is a training."""


@dataclass
class Progress:
    """What a node has done so far, over all incarnations of its cluster.

    Attributes:
        epochs: metric -> value, for each epoch; the metrics of two ``train()`` calls may differ. Contains all epochs of
            the current training, and the last `KEPT_EPOCHS` before it.
        rows: this node's rows of each epoch.
        call: number of the first pass of the current ``train()``.
        epochs_before: number of epochs before it.
        finished: whether that training has ended.
    """

    epochs: list[dict[str, Figure]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    call: int = 0
    epochs_before: int = 0
    finished: bool = False

    def begin(self, call: int) -> None:
        """Begin a training, or continue it if it was begun before."""
        if call != self.call:
            del self.epochs[:-KEPT_EPOCHS], self.rows[:-KEPT_EPOCHS]
            self.call, self.epochs_before, self.finished = call, len(self.epochs), False

    def add(self, logs: Mapping[str, object], rows: int) -> None:
        """Add an epoch."""
        self.epochs.append(plain_logs(logs))
        self.rows.append(rows)

    @property
    def history(self) -> dict[str, list[Figure]]:
        """Return metric -> its value in each epoch that has it."""
        return _by_metric(self.epochs)

    @property
    def of_call(self) -> Json:
        """Return the history and the rows of the current training."""
        first = self.epochs_before
        return {"history": _by_metric(self.epochs[first:]), "rows": self.rows[first:]}


def _by_metric(epochs: Sequence[Mapping[str, Figure]]) -> dict[str, list[Figure]]:
    history: dict[str, list[Figure]] = {}
    for epoch in epochs:
        for name, value in epoch.items():
            history.setdefault(name, []).append(value)
    return history


class StateCheckpoints(keras.callbacks.Callback):  # type: ignore[misc]
    """Save the state after each epoch, at intervals of steps or seconds, and when a node is about to be lost.

    It also restores the counts of the other callbacks, which are saved with the model. So it must be the last callback.

    Args:
        session: the session of this training.
        others: the callbacks before this one.
        feed: the training feed, if its steps are counted; None: save only after complete epochs.
    """

    def __init__(
        self, session: TrainingSession, others: list[keras.callbacks.Callback], feed: Feed | None = None
    ):
        super().__init__()
        self._session = session
        self._others = others
        self._feed = feed
        settings = session.context.settings
        self._every = settings.checkpoint_every_steps if feed is not None else 0
        self._meets = feed is not None and bool(self._every or settings.checkpoint_every_seconds)
        self._epoch = self._steps = self._meetings = self._begun = 0
        self._next_meeting = 1

    def on_train_begin(self, logs: Mapping[str, object] | None = None) -> None:
        """Restore the counts of the other callbacks."""
        self._session.callback_settings = state.settings_of(self._others)
        resumed = self._session.resumed
        if resumed is not None:
            state.restore_callbacks(self._others, resumed.callbacks, resumed.shared)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Record the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, object] | None = None) -> None:
        """Record the first of the steps that run in one call."""
        self._begun = batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, object] | None = None) -> None:
        """Save if it is time, after the last of the steps that run in one call."""
        if self._feed is None or not self._meets:
            return
        before = self._feed.first_step_of_pass + self._begun
        steps = self._feed.first_step_of_pass + batch + 1
        due = bool(self._every) and steps // self._every > before // self._every
        self._steps += 1
        if self._steps == self._next_meeting:
            due |= self._meet()
            # Join the ledger's entries for each step now and then, because they would grow.
            self._feed.used(steps)
        if due:
            self._session.save(self._epoch, steps, self._others, self._feed.used(steps), logs)

    def _meet(self) -> bool:
        """Meet the other workers, which are at the same step; return whether this step is saved."""
        context, decision = self._session.context, {"status": "wait"}
        # No deadline here: a worker that does not arrive ends no step, and the driver detects that.
        while decision["status"] == "wait":
            decision = context.control.call("arrive", number=self._meetings, rank=context.node.task_index)
        self._meetings += 1
        self._next_meeting += int(decision["steps"])
        return bool(decision["save"])

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Record the epoch and save."""
        if logs:
            self._session.progress.add(logs, self._session.rows_of_pass)
            self._session.save(epoch + 1, 0, self._others, {})


class ResumeEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Continue the metrics of an interrupted epoch. It must be the first callback, because others read the logs.

    Args:
        session: the session of this training.
    """

    def __init__(self, session: TrainingSession):
        super().__init__()
        self._session = session
        self._logs: Json = {}

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Restore the metrics."""
        resumed, self._session.resumed = self._session.resumed, None
        if resumed is None or not resumed.steps:
            return
        self._logs = resumed.logs
        if resumed.own:
            state.restore_metrics(self.model, resumed.own)

    def on_epoch_end(self, epoch: int, logs: dict[str, object] | None = None) -> None:
        """Give the epoch its logs if no step was left to train: ``fit`` has none then."""
        saved, self._logs = self._logs, {}
        if saved and logs is not None and not logs:
            logs.update(self.model._get_metrics_result_or_logs(saved))


@dataclass
class Resumed:
    """The state that a node gets from a checkpoint.

    Attributes:
        passes: number of complete passes that were trained.
        steps: number of steps in the next pass.
        shared: the chief's arrays.
        own: this node's arrays; empty if the node did not exist when the checkpoint was saved.
        callbacks: the counts of each callback.
        learning_rates: the optimizers' learning rates at the beginning.
        logs: those of the last step, within an epoch.
    """

    passes: int
    steps: int
    shared: state.Arrays
    own: state.Arrays
    callbacks: Json
    learning_rates: dict[str, float]
    logs: Json


class PartSender:
    """Send this node's parts of checkpoints to the driver, in the background, one at a time.

    Args:
        context: the node.
        num_nodes: number of nodes that have a part.
        rank: this node's number among them.
    """

    def __init__(self, context: NodeContext, num_nodes: int, rank: int):
        self._context = context
        self._num_nodes = num_nodes
        self._rank = rank
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tfspark-checkpoint")
        self._sending: Future[None] | None = None

    def send(self, arrays: state.Arrays, facts: Json, used: Used) -> None:
        """Send a part, after the previous one has arrived.

        Raises:
            pyarrow.flight.FlightError: the driver could not store the previous part.
        """
        self.finish()
        header = {
            "passes": facts["passes"],
            "steps": facts["steps"],
            "rank": self._rank,
            "of": self._num_nodes,
            "used": used,
            "rows": num_rows(used),
            # Facts that only nodes need are in the part itself.
            "facts": {**facts, "progress": {key: facts["progress"][key] for key in ("call", "finished")}},
        }
        self._sending = self._pool.submit(self._send, arrays, facts, header)

    def finish(self) -> None:
        """Wait until the last part has arrived."""
        sending, self._sending = self._sending, None
        if sending is not None:
            with self._context.activity.waiting():
                sending.result()

    def _send(self, arrays: state.Arrays, facts: Json, header: Json) -> None:
        from tfspark.training.saving import UPLOAD_SCHEMA, chunks_of

        handle, name = tempfile.mkstemp(".npz", "part-", self._context.scratch_dir)
        os.close(handle)
        try:
            state.write_part(Path(name), arrays, facts)
            self._context.control.put(
                {"part": header}, UPLOAD_SCHEMA, lambda: chunks_of(Path(name)), UPLOAD_TIMEOUT_S
            )
        finally:
            os.unlink(name)


def fetch(context: NodeContext, job: Json, rank: int) -> tuple[Resumed, Progress]:
    """Fetch this node's state from a checkpoint. The chief also takes over the state of nodes that no longer exist.

    Args:
        context: the node.
        job: the driver's job: ``parts``, names of the parts by rank; ``passes`` and ``steps``.
        rank: this node's number.
    """
    shared, facts = _fetched(context, job["parts"][0])
    own = (shared, facts) if rank == 0 else ({}, {})
    if 0 < rank < len(job["parts"]):
        own = _fetched(context, job["parts"][rank])
    progress = Progress(**{**facts["progress"], **({"rows": own[1]["progress"]["rows"]} if own[1] else {})})
    if not own[1]:
        progress.rows = [0] * len(progress.rows)
    for gone in job["parts"][context.num_workers :] if rank == 0 else ():
        arrays, of_gone = _fetched(context, gone)
        own = state.with_metrics_of(own[0], arrays), own[1]
        progress.rows = [
            mine + its for mine, its in zip(progress.rows, of_gone["progress"]["rows"], strict=True)
        ]
    resumed = Resumed(
        job["passes"],
        job["steps"],
        shared,
        own[0],
        facts["callbacks"],
        facts["learning_rates"],
        facts["logs"],
    )
    return resumed, progress


def start_of(job: Json, rank: int) -> Start:
    """Return where this node begins in the interrupted pass."""
    return Start(job["steps"], 0 if job["replays"] else job["rows"][rank], job["replays"])


def _fetched(context: NodeContext, name: str) -> tuple[state.Arrays, Json]:
    path = Path(context.scratch_dir, "checkpoint.npz")
    context.download(name, path, "part")
    try:
        return state.read_part(path)
    finally:
        path.unlink()
