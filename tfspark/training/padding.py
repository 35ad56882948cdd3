"""Keep the rows that only fill up a batch out of an epoch's training metrics. Runs in the trainer.

Rows of weight 0 add nothing to loss and gradient. But Keras gives unweighted metrics every row, and divides the
epoch's loss by all of them. Here unweighted metrics get a weight of 0 or 1 for each row, which changes nothing for
rows that count, and the epoch's loss is set in proportion to the rows that count. (Exact, but for regularisation
losses, which are no sums over rows.)
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfspark.training.evaluation import sum_over_ranks

if TYPE_CHECKING:
    from tfspark.cluster.context import TFContext


def leave_padding_out_of_metrics(model: keras.Model) -> None:
    """Let the model's unweighted metrics count only rows whose weight is not 0."""
    metrics = model._compile_metrics
    if metrics is None:
        return
    mask: list[tf.Tensor] = []
    update_state = metrics.update_state

    def masked(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if not metrics.built:
            metrics.build(y_true, y_pred)
            for metric in filter(None, metrics._flat_metrics):
                _mask_metric(metric, mask)
        mask[:] = [] if sample_weight is None else [tf.cast(tf.not_equal(sample_weight, 0), tf.float32)]
        return update_state(y_true, y_pred, sample_weight=sample_weight)

    metrics.update_state = masked


def _mask_metric(metric: keras.metrics.Metric, mask: list[tf.Tensor]) -> None:
    update_state = metric.update_state
    if "sample_weight" not in inspect.signature(update_state).parameters:
        return

    def masked(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        weight = mask[0] if mask and sample_weight is None else sample_weight
        return update_state(y_true, y_pred, sample_weight=weight)

    metric.update_state = masked


class LossOfRealRows(keras.callbacks.Callback):  # type: ignore[misc]
    """Set an epoch's loss, and that of each output, in proportion to its real rows; must precede callbacks that look.

    A model with a training step of its own weighs its rows itself.

    Args:
        context: the node.
        feed: what is trained on: knows its rows, and the rows of a step over all workers.
    """

    def __init__(self, context: TFContext, feed: Any):
        super().__init__()
        self._context = context
        self._feed = feed

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Correct the loss, unless the epoch was broken off."""
        if logs is None or "loss" not in logs or self.model.stop_training:
            return
        if type(self.model).train_step is not keras.Model.train_step:
            return
        # What the loss was divided by: steps of an epoch that was resumed by fewer workers are not all of one size.
        counted = float(sum(part.numpy() for part in _parts(self.model._loss_tracker.count)))
        rows = [np.array(self._feed.rows_of_pass), np.array(counted)]
        total, divisor = sum_over_ranks(self._context, f"rows-{epoch}", rows, self._context.num_workers)
        of_outputs = self.model._compile_loss.metrics if self.model._compile_loss else []
        for name in ("loss", *(metric.name for metric in of_outputs)):
            logs[name] *= divisor / total


def _parts(variable: Any) -> tuple[Any, ...]:
    """Return this node's components of a variable, one per device."""
    value = variable.value
    return value.values if isinstance(value, tf.distribute.DistributedValues) else (value,)
