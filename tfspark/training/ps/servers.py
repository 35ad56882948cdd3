"""TensorFlow's servers for parameter server training. Workers and parameter servers run them in their trainers."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import tensorflow as tf

from tfspark.errors import DeadlineError
from tfspark.protocol.values import Json
from tfspark.training.jobs import posted_jobs
from tfspark.training.ps.sharding import look_up_on_servers
from tfspark.training.ps.worker_feed import WorkerFeed
from tfspark.training.ps.worker_steps import find_tables_from_branches, make_additions_atomic

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext

SERVERS_UP = "servers-up"
CHIEF_DONE = "chief-done"


def serve(context: NodeContext) -> Json:
    """Serve the chief's steps or variables until the driver's job ``close``, and until the chief has finished.

    Returns:
        For a worker, ``rows``: the number of rows it trained on in each epoch. For a parameter server, nothing.
    """
    feed = WorkerFeed(context) if context.role == "worker" else None
    server = _start_server(context)
    context.report("tensorflow", seconds=context.age_s)
    # A replacement joins a cluster that is already up: the coordinator finds it.
    if context.attempt == 1:
        barrier(context, SERVERS_UP, context.settings.feed_timeout_s)
    for job in posted_jobs(context):
        del job  # The chief does the jobs.
    barrier(context, CHIEF_DONE, float("inf"))  # The driver's shutdown has the deadline.
    del server
    if feed is None:
        return {}
    feed.close()
    return {"rows": feed.rows}


def _start_server(context: NodeContext) -> tf.distribute.Server:
    """Start this node's TensorFlow server, with enough threads for all workers that may wait in it."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    config = tf.compat.v1.ConfigProto(
        inter_op_parallelism_threads=max(os.cpu_count() or 1, context.num_workers + 1)
    )
    server = tf.distribute.Server(
        resolver.cluster_spec(), context.role, context.task_index, protocol="grpc", config=config
    )
    context.release_port()
    return server


def connect(context: NodeContext) -> tf.distribute.Strategy:
    """Wait until all servers are up, and connect to them as their chief.

    Raises:
        DeadlineError: a server did not start within ``feed_timeout_s``.
        RuntimeError: the workers have several GPUs.
    """
    barrier(context, SERVERS_UP, context.settings.feed_timeout_s)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    make_additions_atomic()
    find_tables_from_branches()
    look_up_on_servers(sum(node.role == "ps" for node in context.nodes))
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    if strategy.num_replicas_in_sync > 1:
        raise RuntimeError(
            f"expected one GPU per worker under parameter servers, found {strategy.num_replicas_in_sync}; set "
            "spark.task.resource.gpu.amount to 1 and use more workers"
        )
    return strategy


def barrier(context: NodeContext, place: str, timeout_s: float) -> None:
    """Wait until chief, workers and parameter servers have all reached this place.

    Raises:
        DeadlineError: a node did not reach it in time.
    """
    members = sum(node.role != "evaluator" for node in context.nodes)
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        reply = context.control.call("sum", key=place, rank=context.node.index, of=members, values=[])
        if reply["status"] == "ok":
            return
    raise DeadlineError(
        f"waited feed_timeout_s={timeout_s:g} s for all nodes at {place!r}; see their logs, or raise feed_timeout_s"
    )
