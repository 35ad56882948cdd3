"""What a trainer prints, on its way to the driver. Runs in the node task; no sockets."""

from __future__ import annotations

import codecs
import threading
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

TAIL_LINES = 100
LINE_BYTES = 16 << 10
"""A longer line becomes several."""
WAITING_CHARS = 32 << 20
"""What waits to be sent is bounded; what came first is left out, and a line says so."""
CALL_CHARS = 4 << 20
"""What one call takes: a call of the control plane holds 64 MB, and a character can be six bytes of JSON."""


class NodeLog:
    """Lines that wait to be sent, and the last ones for an error; thread-safe."""

    def __init__(self) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._waiting: deque[str] = deque()
        self._num_chars = 0
        self._num_left_out = 0
        self._lock = threading.Lock()

    def read(self, stream: BinaryIO) -> None:
        """Take every line of a stream until it ends."""
        for line in lines_of(stream):
            self.add(line)

    def add(self, line: str) -> None:
        """Take one line."""
        with self._lock:
            self.tail.append(line)
            self._waiting.append(line)
            self._num_chars += len(line) + 1
            while self._num_chars > WAITING_CHARS:
                self._num_chars -= len(self._waiting.popleft()) + 1
                self._num_left_out += 1

    def take(self, max_chars: int = CALL_CHARS) -> list[str]:
        """Return the lines to send next, and forget them; empty when none waits."""
        with self._lock:
            taken, left = [], max_chars
            if self._num_left_out:
                taken.append(
                    f"tfspark: {self._num_left_out} lines are left out here: they came faster than they travel"
                )
                self._num_left_out = 0
            while self._waiting and left > 0:
                line = self._waiting.popleft()
                self._num_chars -= len(line) + 1
                left -= len(line) + 1
                taken.append(line)
            return taken


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of a stream as text.

    Bytes that are no UTF-8 become U+FFFD. Of a progress bar, which returns to the start of its line, the last state
    is kept.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for raw in iter(lambda: stream.readline(LINE_BYTES), b""):
        # A long line may be cut within a character: its rest comes with the next piece.
        text = decoder.decode(raw, final=raw.endswith(b"\n"))
        yield text.rstrip().rpartition("\r")[2]
