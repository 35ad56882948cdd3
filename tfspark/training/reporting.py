"""How a trainer reports its progress to the driver."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras

from tfspark.training.evaluation import plain_logs

if TYPE_CHECKING:
    from tfspark.protocol.values import Json
    from tfspark.training.input.dataset import Feed
    from tfspark.training.node_context import NodeContext

STEP_INTERVAL_S = 0.5


class ReportProgress(keras.callbacks.Callback):  # type: ignore[misc]
    """Report steps (twice a second) and epochs, on the chief only; record every step in the node's `Activity`.

    Args:
        context: the node.
        batch_size: rows of a step over all workers.
        feed: the training feed, if its steps are counted: a resumed epoch starts with the steps done before.
    """

    def __init__(self, context: NodeContext, batch_size: int, feed: Feed | None = None):
        super().__init__()
        self._context = context
        self._batch_size = batch_size
        self._feed = feed
        self._reported = 0.0
        self._began = 0.0
        self._epoch = 0
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Start the epoch's timer."""
        self._began, self._epoch, self._steps = time.monotonic(), epoch, 0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, object] | None = None) -> None:
        """Report the progress within the epoch."""
        self._steps += 1
        self._context.activity.step_done()
        now = time.monotonic()
        if self._context.is_chief and now - self._reported >= STEP_INTERVAL_S:
            self._reported = now
            self._context.report("step", **self._progress(logs), epoch=self._epoch + 1)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, object] | None = None) -> None:
        """Report the epoch's metrics."""
        if self._context.is_chief:
            self._context.report("epoch", **self._progress(logs), epoch=epoch + 1)

    def _progress(self, logs: Mapping[str, object] | None) -> Json:
        """Return the progress within the epoch; its timer started at `rows_before`, 0 unless it was resumed."""
        before = self._feed.first_step_of_pass if self._feed is not None else 0
        return {
            "steps": before + self._steps,
            "rows": (before + self._steps) * self._batch_size,
            "rows_before": before * self._batch_size,
            "seconds": time.monotonic() - self._began,
            "metrics": plain_logs(logs or {}),
        }
