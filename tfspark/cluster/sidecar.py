"""The driver's part of sidecar evaluation: feed the evaluator when weights arrive, while training continues."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

ABANDON_S = 10.0
POLL_S = 0.2


class SidecarEvaluator:
    """Evaluates epochs one after another in a thread.

    Args:
        evaluate: evaluates one epoch; called in the thread with the epoch's number and the name of its weights.
    """

    def __init__(self, evaluate: Callable[[int, str], None]):
        self._evaluate = evaluate
        self._waiting: queue.Queue[tuple[int, str] | None] = queue.Queue()
        self._error: Exception | None = None
        self._num_done = 0
        self._thread = threading.Thread(target=self._run, name="tfspark-side-car", daemon=True)
        self._thread.start()

    def weights_arrived(self, epoch: int, name: str) -> None:
        """Record that the chief has sent the weights of an epoch."""
        self._waiting.put((epoch, name))

    def finish(self, timeout_s: float) -> bool:
        """Evaluate all waiting epochs, then end; return False if one evaluation took longer than `timeout_s`.

        Raises:
            Exception: the error that an evaluation raised.
        """
        self._waiting.put(None)
        before = -1
        while self._thread.is_alive() and before != self._num_done:
            before = self._num_done
            until = time.monotonic() + timeout_s
            while self._thread.is_alive() and before == self._num_done and time.monotonic() < until:
                self._thread.join(min(POLL_S, timeout_s))
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """End without evaluating the waiting epochs; the cluster has failed, so a running evaluation raises."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put(None)
        self._thread.join(ABANDON_S)

    def _run(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                self._evaluate(*item)
                self._num_done += 1
        except Exception as error:
            self._error = error
