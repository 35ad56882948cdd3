"""Functions for the trainers of `test_warm`; executors find them by name."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any


def look(args: Any, ctx: Any) -> dict[str, Any]:
    """Return facts that could be wrong in a forked trainer."""
    import numpy as np

    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    kinds = sorted({os.readlink(link).partition(":")[0] for link in links if link.exists()})
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "command": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")[1:4],
        "name": sys.argv[1],
        "task": os.environ["TF_CONFIG"],
        "scratch": [os.environ["TMPDIR"], tempfile.gettempdir()],
        "drawn": [random.random(), float(np.random.rand())],
        "files": [kind for kind in kinds if kind not in ("pipe", "socket", "anon_inode")],
        "variable": os.environ.get("TF_OF_THE_TEST"),
        "directory": [os.getcwd(), sys.path[0]],
    }


def look_and_wait(args: Any, ctx: Any) -> dict[str, Any]:
    """Return the same, and continue when the file `args` exists."""
    seen = look(args, ctx)
    ctx.report("waiting", **seen)
    import time

    until = time.monotonic() + 120
    while not Path(args).exists() and time.monotonic() < until:
        time.sleep(0.05)
    return seen


def sets_a_variable(args: str, ctx: Any) -> list[Any]:
    """Set a variable first, as many programs do, then import TensorFlow, which reads it during the import."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = args
    return uses_onednn(args, ctx)


def uses_onednn(args: Any, ctx: Any) -> list[Any]:
    """Return whether TensorFlow computes with oneDNN, which is decided during the import.

    Where nothing is set, it depends on the CPU.
    """
    from tensorflow.python.util import _pywrap_util_port

    return [_pywrap_util_port.IsMklEnabled(), os.getppid()]


def sets_a_variable_late(args: Any, ctx: Any) -> int:
    """Set the variable after TensorFlow has run: then a cold start is no longer possible."""
    import tensorflow as tf

    float(tf.constant(1.0) + 1.0)
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    return os.getppid()


def exits(args: int, ctx: Any) -> None:
    """End the process without a report."""
    os._exit(args)


def prints(args: Any, ctx: Any) -> str:
    """Print output that is difficult to forward: many lines, a line without an end, bytes that are not text."""
    sys.stdout.buffer.write(b"bad \xff\xfe bytes\n" + "█\n".encode() * 2)
    sys.stdout.buffer.write(b"".join(b"\r%d/500 [==>  ]" % i for i in range(501)) + b"\n")
    sys.stdout.buffer.write("é".encode() * (1 << 20) + b"\n")
    for number in range(30_000):
        sys.stdout.write(f"line {number}\n")
    sys.stdout.write("the last line\n")
    return "printed"
