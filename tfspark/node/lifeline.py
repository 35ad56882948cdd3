"""Make a process that a node task starts end with that task, also if the task is killed."""

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
    """Let the kernel kill this process when its parent ends; only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_writer(pipe: BinaryIO) -> None:
    """End this process when the last process that can write to a pipe has closed it or has ended.

    On Linux the kernel does this: when the other end of a pipe closes, the pipe can send a signal to its owner, and
    this signal may be SIGKILL (``F_SETSIG`` in fcntl(2)). So the process ends even if it is stopped, or if a C
    extension holds the GIL. On other systems a thread waits for the end of the pipe.

    Args:
        pipe: the reading end. Nothing must be written to it from now on.
    """
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([pipe], [], [], 0)[0]:  # It was closed before the kernel began to watch it.
            os._exit(0)
        return

    def watch() -> None:
        pipe.read(1)
        os._exit(0)

    threading.Thread(target=watch, name="tfspark-lifeline", daemon=True).start()
