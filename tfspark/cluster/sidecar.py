"""The driver's part of side-car evaluation: when weights arrive, feed the evaluator, while training goes on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

ABANDON_S = 10.0
POLL_S = 0.2


class SidecarEvaluator:
    """Evaluates one epoch after the other in a thread.

    Args:
        evaluate: evaluates one epoch, given its number and the name of the weights; runs in the thread.
    """

    def __init__(self, evaluate: Callable[[int, str], None]):
        self._evaluate = evaluate
        self._waiting: queue.Queue[tuple[int, str] | None] = queue.Queue()
        self._error: Exception | None = None
        self._num_done = 0
        self._thread = threading.Thread(target=self._run, name="tfspark-side-car", daemon=True)
        self._thread.start()

    def weights_arrived(self, epoch: int, name: str) -> None:
        """Note that the chief has sent the weights of an epoch."""
        self._waiting.put((epoch, name))

    def finish(self, timeout_s: float) -> bool:
        """Evaluate what is waiting, then end; return whether no evaluation took longer than that.

        Raises:
            Exception: what an evaluation raised.
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
        """End without what is waiting; the cluster has failed, so an evaluation under way ends with an error."""
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
