"""One Spark job in its own thread; another thread can wait for it and cancel it."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tfspark.cluster.interrupts import OUR_JOBS

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession

CANCEL_TIMEOUT_S = 10.0
CANCEL_AGAIN_S = 0.5


class SparkJob:
    """Collects a small DataFrame or RDD in the background.

    Args:
        spark: the session.
        make: returns what to collect; runs in the thread, because planning may run Spark stages.
        description: text shown in Spark's UI.
        on_error: called with the exception when the job fails without being cancelled.
        on_end: called when the job is over, for any reason.
    """

    def __init__(
        self,
        spark: SparkSession,
        make: Callable[[], DataFrame | RDD[Any]],
        description: str,
        on_error: Callable[[Exception], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ):
        self._make = make
        self._spark = spark
        self._tag = f"tfspark-{uuid.uuid4().hex}"
        self._description = description
        self._on_error = on_error
        self._on_end = on_end
        self._over = False
        self._cancelled = False
        self._rows: list[Any] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=description.replace(" ", "-"), daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._mark()
            self._rows = self._make().collect()
        except Exception as raised:
            error = _error_of_python(raised)
            self._error = error
            if self._on_error is not None and not self._cancelled:
                self._on_error(error)
        finally:
            self._over = True
            if self._on_end is not None:
                self._on_end()

    def _mark(self) -> None:
        """Tag the job, so that another thread can cancel it. A classic session's own tags only work for its thread.

        The thread of a cancelled task is not interrupted. If Spark is interrupted while it starts a Python worker, it
        takes this for that worker's timeout and ends every Python worker of the executor, also those of nodes. Python
        tasks end without an interrupt: ours when they are told to stop, all others after
        `spark.python.task.killTimeout`.
        """
        if self._is_classic:
            self._spark.sparkContext.setInterruptOnCancel(False)
            self._spark.sparkContext.setJobDescription(self._description)
            self._spark.sparkContext.addJobTag(self._tag)
            self._spark.sparkContext.addJobTag(OUR_JOBS)
        else:
            self._spark.addTag(self._tag)

    def _interrupt(self) -> None:
        if self._is_classic:
            self._spark.sparkContext.cancelJobsWithTag(self._tag)
        else:
            self._spark.interruptTag(self._tag)

    @property
    def _is_classic(self) -> bool:
        return hasattr(self._spark, "_jsparkSession")

    @property
    def ended(self) -> bool:
        """Whether the job is over, for any reason."""
        return self._over

    def result(self) -> list[Any]:
        """Return the rows of a job that has ended, or raise the error from Spark."""
        if self._error is not None:
            raise self._error
        return self._rows

    def join(self, timeout_s: float) -> None:
        """Wait until the job has ended."""
        self._thread.join(timeout_s)

    def cancel(self) -> None:
        """Cancel the job if it still runs; return when its thread has ended."""
        if self.ended:
            return
        self._cancelled = True
        until = time.monotonic() + CANCEL_TIMEOUT_S
        while not self.ended and time.monotonic() < until:
            # No effect while the job is being planned, or when Spark is gone, as after a signal; then the job ends by
            # itself.
            with contextlib.suppress(Exception):
                self._interrupt()
            self._thread.join(CANCEL_AGAIN_S)


def _error_of_python(error: Exception) -> Exception:
    """Return the error of a task's Python code if Spark raised one of the JVM for it, as before 4.3 for RDDs."""
    from pyspark.errors import PythonException

    java = getattr(error, "java_exception", None)
    cause = None if java is None else java.getCause()
    if cause is None or cause.getClass().getSimpleName() != "PythonException":
        return error
    told: Exception = PythonException(
        f"An exception was thrown from the Python worker:\n{cause.getMessage()}"
    )
    return told


def without_java_stack(message: str) -> str:
    """Return a Spark error message without the lines of the JVM's stack."""
    lines = message.splitlines()
    return "\n".join(line for line in lines if not re.match(r"\s+(at |\.\.\. \d+ more)", line)).strip()
