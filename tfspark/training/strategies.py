"""The ``tf.distribute`` strategy of a node, from its role and ``TF_CONFIG``. Runs in the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from tfspark.training.keras_corrections import apply_corrections
from tfspark.training.servers import connect

if TYPE_CHECKING:
    from tfspark.cluster.context import TFContext


def make_strategy(context: TFContext) -> tf.distribute.Strategy:
    """Create the strategy and make sure that it spans the cluster.

    Raises:
        RuntimeError: the strategy sees other replicas than the cluster has workers times devices, as when
            ``TF_CONFIG`` is missing and every worker would train a model of its own.
    """
    if context.role == "chief":
        return connect(context)
    apply_corrections()
    if context.role != "worker":
        return tf.distribute.get_strategy()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    local = len(strategy.extended.worker_devices)
    expected = context.num_workers * local
    if strategy.num_replicas_in_sync != expected:
        raise RuntimeError(
            f"expected {expected} replicas in sync ({context.num_workers} workers of {local} devices), the "
            f"strategy has {strategy.num_replicas_in_sync}; give every worker the same number of GPUs, and do "
            "not change TF_CONFIG in main_fun"
        )
    return strategy
