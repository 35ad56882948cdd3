"""Ask Spark which executors it is about to take away, if Spark is configured to say so. Runs on the driver."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfspark.cluster.preflight import is_on, jvm_context
from tfspark.cluster.state.registry import Registry

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

POLL_S = 2.0
JOIN_TIMEOUT_S = 10.0


class DecommissionWatch:
    """Asks Spark which of the nodes' executors are being decommissioned, for example spot machines of a cloud.

    It runs only with ``spark.decommission.enabled``. It does not run on Spark Connect, where the driver's JVM cannot be
    asked.

    Args:
        registry: the nodes, and their executors.
        mark_preempted: called with the node that will be lost, and the reason; may be called more than once.
    """

    def __init__(self, spark: SparkSession, registry: Registry, mark_preempted: Callable[[int, str], None]):
        self._spark = spark
        self._registry = registry
        self._mark_preempted = mark_preempted
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the watch if Spark can be asked."""
        context = jvm_context(self._spark)
        if context is None or not is_on(self._spark, "spark.decommission.enabled"):
            return
        self._thread = threading.Thread(
            target=self._watch, args=(context.taskScheduler(),), name="tfspark-decommission"
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop the watch; harmless if it was not started."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(JOIN_TIMEOUT_S)

    def _watch(self, scheduler: Any) -> None:
        while not self._over.wait(POLL_S):
            for node in list(self._registry.nodes.values()):
                if node.executor and scheduler.getExecutorDecommissionState(node.executor).isDefined():
                    self._mark_preempted(node.spec.index, f"Spark decommissions its executor {node.executor}")
