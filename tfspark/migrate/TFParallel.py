"""TensorFlowOnSpark's ``TFParallel``: independent TensorFlow processes, one per node. Called on the driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfspark.cluster.inputs import session_of
from tfspark.cluster.program import is_main_fun
from tfspark.cluster.tfcluster import TFCluster
from tfspark.errors import ConfigError

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession


def run(
    sc: SparkContext | SparkSession,
    map_fn: Callable[[Any, Any], Any],
    tf_args: Any,
    num_executors: int,
    use_barrier: bool = True,
) -> None:
    """Run ``map_fn(tf_args, ctx)`` in `num_executors` fresh, independent processes.

    Divide the work by ``ctx.worker_num`` and ``ctx.num_workers``; there is no ``TF_CONFIG``. Returns when all processes
    have returned.

    Args:
        sc: the SparkContext or the session.
        map_fn: the function, called once on each node.
        tf_args: its first argument.
        num_executors: number of processes.
        use_barrier: start them only when there is a slot for each; False: start each one when a slot is free.

    Raises:
        ConfigError: `map_fn` does not take two arguments, or cannot be pickled.
        ReservationError: too few slots.
        NodeFailedError: `map_fn` raised on a node, or a process died; the others are ended.
    """
    if not is_main_fun(map_fn):
        raise ConfigError("expected a function map_fn(args, ctx), got one without the argument ctx; add it")
    cluster = TFCluster.run_independently(session_of(sc), map_fn, tf_args, num_executors, use_barrier)
    cluster.shutdown(timeout=-1)
