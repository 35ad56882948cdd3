"""Ctrl-C in the driver's program: it must not end the nodes, which a program may still shut down in order."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from py4j.protocol import Py4JError

OUR_JOBS = "tfspark"
"""Tag of all Spark jobs that tfspark starts and cancels itself."""
CANCEL_S = 5.0
CANCEL_AGAIN_S = 0.2
HOLD_S = 10.0
"""An interrupt waits at most this long for the answer of a call to the JVM."""


def spare_our_jobs() -> None:
    """Keep Ctrl-C from the jobs of tfspark, and from the connections to the JVM on which they wait.

    PySpark's handler of SIGINT cancels all jobs of the context. Nodes are jobs, too, so a program that catches the
    `KeyboardInterrupt` could neither shut its cluster down nor export. It is replaced by one that cancels the other
    jobs. A handler that is not PySpark's stays, such as that of a notebook.

    Whatever the handler, a `KeyboardInterrupt` that is raised within a call to the JVM lets Py4J close the connections
    of all threads. It then repeats the calls that were waiting, so nodes would be started a second time. So an
    interrupt is held back until the call has its answer; jobs are cancelled, so this is soon. If there is no answer
    within `HOLD_S`, or at a second interrupt, the call is given up: only its own connection is closed.
    """
    from pyspark import SparkContext

    if threading.current_thread() is not threading.main_thread():
        return
    if str(getattr(signal.getsignal(signal.SIGINT), "__module__", "")).startswith("pyspark."):
        signal.signal(signal.SIGINT, _interrupt)
    gateway = SparkContext._gateway
    client = None if gateway is None else gateway._gateway_client
    if client is not None and "send_command" not in vars(client):
        client.send_command = _Uninterrupted(client.send_command)


class _GivenUpError(Exception):
    """Raised within a call to the JVM to end it. Py4J closes the connection of this thread, and no other."""


class _Uninterrupted:
    """A Py4J client's ``send_command`` that holds an interrupt back until the JVM has answered.

    A second interrupt is not held back, and the first no longer than `HOLD_S`.
    """

    def __init__(self, send: Callable[..., object]):
        self._send = send

    def __call__(self, *args: object, **kwargs: object) -> object:
        if threading.current_thread() is not threading.main_thread():
            return self._send(*args, **kwargs)
        before = signal.getsignal(signal.SIGINT)
        if not callable(before):  # Ignored, or not set from Python.
            return self._send(*args, **kwargs)
        answered = threading.Event()
        held: list[FrameType | None] = []

        def hold(number: int, frame: FrameType | None) -> None:
            held.append(frame)
            if len(held) > 1:
                raise _GivenUpError
            _beside(_cancel_until, answered)
            _beside(_repeat_without, answered)

        signal.signal(signal.SIGINT, hold)
        answer: object = None
        try:
            try:
                answer = self._send(*args, **kwargs)
            finally:
                signal.signal(signal.SIGINT, before)
        except _GivenUpError:  # Raised before or after Py4J's wait for the answer.
            signal.signal(signal.SIGINT, before)
        finally:
            answered.set()
            if held:
                before(signal.SIGINT, held[0])
            if len(held) > 1:  # The call was given up, and the handler has not raised.
                raise KeyboardInterrupt
        return answer


def _beside(work: Callable[..., None], *args: object) -> threading.Thread:
    """Start work in a thread of its own: it has a connection of its own, and a JVM may be silent."""
    thread = threading.Thread(target=work, args=args, name="tfspark-interrupt", daemon=True)
    thread.start()
    return thread


def _cancel_until(answered: threading.Event) -> None:
    """Cancel the jobs of the program until the JVM has answered: a job may start after the interrupt."""
    _cancel_other_jobs()
    while not answered.wait(CANCEL_AGAIN_S):
        _cancel_other_jobs()


def _repeat_without(answered: threading.Event) -> None:
    """Repeat the interrupt while there is no answer within `HOLD_S`, as from a call that has started no job."""
    while not answered.wait(HOLD_S):
        os.kill(os.getpid(), signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Cancel the jobs of the program itself."""
    del number, frame
    _beside(_cancel_other_jobs).join(CANCEL_S)
    raise KeyboardInterrupt


def _cancel_other_jobs() -> None:
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    with contextlib.suppress(Py4JError, AttributeError, OSError):  # Spark is gone, or there is none.
        spark = context._jsc.sc()
        tracker = spark.statusTracker()
        for job in set(tracker.getActiveJobIds()) - set(tracker.getJobIdsForTag(OUR_JOBS)):
            spark.cancelJob(job)
