"""The ``tf.distribute`` strategy of a node, from its role and ``TF_CONFIG``. Runs in the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.distribute import multi_worker_util
from tensorflow.python.eager import context as eager

from tfspark.training.keras_corrections import apply_corrections
from tfspark.training.ps.servers import connect

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext


def make_strategy(context: NodeContext) -> tf.distribute.Strategy:
    """Create the strategy, and check that it spans the cluster.

    Raises:
        RuntimeError: the strategy's number of replicas is not workers times devices, for example because ``TF_CONFIG``
            is missing and every worker would train its own model.
    """
    if context.role == "chief":
        return connect(context)
    apply_corrections()
    if context.role != "worker":
        return tf.distribute.get_strategy()
    if context.num_workers > 1:
        _let_workers_pause(context.settings.heartbeat_timeout_s)
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


def _let_workers_pause(timeout_s: float) -> None:
    """Let a worker be silent for as long as its node may.

    By default, TensorFlow's coordination service treats a task as lost after 10 s, for example while its host swaps or
    is migrated. The strategy configures the service when it is created, unless that was done before. This configuration
    differs only in the time.
    """
    spec = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec()
    jobs = [job for job in ("chief", "worker") if job in spec.jobs]
    if not jobs:
        return  # There is no TF_CONFIG; `make_strategy` reports that.
    eager.context().configure_coordination_service(
        service_type="standalone",
        service_leader=multi_worker_util.coordination_leader(spec),
        heartbeat_timeout_in_ms=int(timeout_s * 1000),
        coordinated_jobs=[CoordinatedJob(name=job, num_tasks=spec.num_tasks(job)) for job in jobs],
    )
