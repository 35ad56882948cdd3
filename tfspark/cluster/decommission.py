"""Ask Spark which executors it is about to take away, if Spark is configured to say so. Runs on the driver."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tfspark.cluster.control import ControlPlane
from tfspark.cluster.preflight import is_on, jvm_context

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject
    from pyspark.sql import SparkSession

POLL_S = 2.0
JOIN_TIMEOUT_S = 10.0


class DecommissionWatch:
    """Asks Spark which of the nodes' executors are being decommissioned, for example spot machines of a cloud.

    It runs only with ``spark.decommission.enabled``. It does not run on Spark Connect, where the driver's JVM cannot be
    asked.

    Args:
        spark: the session.
        control: knows the nodes' executors; the watch marks nodes there that will be lost, perhaps more than once.
    """

    def __init__(self, spark: SparkSession, control: ControlPlane):
        self._spark = spark
        self._control = control
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

    def _watch(self, scheduler: JavaObject) -> None:
        while not self._over.wait(POLL_S):
            executors = self._control.read(lambda state: state.registry.executors())
            for node, executor in executors.items():
                if executor and scheduler.getExecutorDecommissionState(executor).isDefined():
                    self._control.mark_preempted(node, f"Spark decommissions its executor {executor}")
