"""Ctrl-C in the driver's program: it must not end the nodes, which a program may still shut down in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

from py4j.protocol import Py4JError

OUR_JOBS = "tfspark"
"""Tag of all Spark jobs that tfspark starts and cancels itself."""
CANCEL_S = 5.0


def spare_our_jobs() -> None:
    """Replace PySpark's handler of SIGINT by one that leaves tfspark's own jobs alone.

    PySpark's handler cancels all jobs of the context. Nodes are jobs, too, so a program that catches the
    `KeyboardInterrupt` could neither shut its cluster down nor export. Any other handler stays, such as that of a
    notebook.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_pysparks = str(getattr(handler, "__module__", "")).startswith("pyspark.")
    if is_pysparks and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Cancel the jobs of the program itself."""
    del number, frame
    # A thread of its own has a connection of its own: that of this thread may be in the middle of a call.
    cancelling = threading.Thread(target=_cancel_other_jobs, name="tfspark-interrupt", daemon=True)
    cancelling.start()
    cancelling.join(CANCEL_S)
    raise KeyboardInterrupt


def _cancel_other_jobs() -> None:
    from pyspark import SparkContext

    context: Any = SparkContext._active_spark_context
    with contextlib.suppress(Py4JError, AttributeError, OSError):  # Spark is gone, or there is none.
        spark = context._jsc.sc()
        tracker = spark.statusTracker()
        for job in set(tracker.getActiveJobIds()) - set(tracker.getJobIdsForTag(OUR_JOBS)):
            spark.cancelJob(job)
