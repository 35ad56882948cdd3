"""Collect what a trainer prints, to send it to the driver. Runs in the node task; no sockets."""

from __future__ import annotations

import codecs
import threading
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

TAIL_LINES = 100
LINE_BYTES = 16 << 10
"""A longer line is split."""
WAITING_CHARS = 32 << 20
"""Maximum size of the waiting lines. The oldest ones are dropped, and a line says so."""
CALL_CHARS = 4 << 20
"""Characters per call: a call to the control plane holds 64 MB, and JSON may need six bytes per character."""


class NodeLog:
    """The lines that wait to be sent, and the last ones for an error; thread-safe."""

    def __init__(self) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._waiting: deque[str] = deque()
        self._num_chars = 0
        self._num_left_out = 0
        self._lock = threading.Lock()

    def read(self, stream: BinaryIO) -> None:
        """Read every line of a stream until it ends."""
        for line in lines_of(stream):
            self.add(line)

    def add(self, line: str) -> None:
        """Add one line."""
        with self._lock:
            self.tail.append(line)
            self._waiting.append(line)
            self._num_chars += len(line) + 1
            while self._num_chars > WAITING_CHARS:
                self._num_chars -= len(self._waiting.popleft()) + 1
                self._num_left_out += 1

    def take(self, max_chars: int = CALL_CHARS) -> list[str]:
        """Return and remove the lines to send next; empty if there are none."""
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

    Bytes that are not UTF-8 become U+FFFD. For a progress bar, which overwrites its line, the last state is kept.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for raw in iter(lambda: stream.readline(LINE_BYTES), b""):
        # A long line may be split within a character; the rest of it is in the next piece.
        text = decoder.decode(raw, final=raw.endswith(b"\n"))
        yield text.rstrip().rpartition("\r")[2]
