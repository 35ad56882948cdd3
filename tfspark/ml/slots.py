"""Count the task slots of this program's fits, to reject parallel fits that would wait for each other's slots."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tfspark.cluster.preflight import count_slots
from tfspark.errors import ReservationError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class FitsUnderWay:
    """The nodes of running fits, by Spark application."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}

    def held(self, spark: SparkSession) -> int:
        """Return the number of slots that they hold."""
        with self._lock:
            return self._held.get(str(spark.conf.get("spark.app.id", "")), 0)

    @contextmanager
    def hold(self, spark: SparkSession, num_nodes: int) -> Iterator[None]:
        """Count the nodes of a fit while the block runs.

        Raises:
            ReservationError: other fits hold slots that this one needs; it would wait for them, and they for rows.
        """
        application = str(spark.conf.get("spark.app.id", ""))
        with self._lock:
            held = self._held.get(application, 0)
            slots = count_slots(spark) if held else None
            if slots is not None and held + num_nodes + 1 > slots:
                raise ReservationError(
                    f"expected {num_nodes + 1} free task slots for a fit (numWorkers={num_nodes} and one to feed "
                    f"them), but Spark has {slots}, and other running fits hold {held} of them; lower parallelism of "
                    "CrossValidator or TrainValidationSplit, or numWorkers, or give Spark more cores"
                )
            self._held[application] = held + num_nodes
        try:
            yield
        finally:
            with self._lock:
                self._held[application] -= num_nodes


FITS = FitsUnderWay()
"""The running fits of this process, in all threads of a CrossValidator."""
