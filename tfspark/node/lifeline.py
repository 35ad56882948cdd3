"""How a process that a node task starts dies with it, whatever kills that."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from typing import BinaryIO

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_writer(pipe: BinaryIO) -> None:
    """End this process when the last process that can write to a pipe has closed it, or has died.

    On Linux the kernel does it: a pipe can send its owner a signal when its other end closes, and that signal may be
    SIGKILL (``F_SETSIG`` in fcntl(2)). So it ends even when it is stopped, or when a C extension holds the GIL.
    Elsewhere a thread waits for the end of the pipe.

    Args:
        pipe: the reading end. Nothing more may be written to it.
    """
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([pipe], [], [], 0)[0]:  # It was closed before the kernel was asked to watch it.
            os._exit(0)
        return

    def watch() -> None:
        pipe.read(1)
        os._exit(0)

    threading.Thread(target=watch, name="tfspark-lifeline", daemon=True).start()
