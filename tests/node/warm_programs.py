"""What the trainers of `test_warm` run, found by name on executors."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any


def look(args: Any, ctx: Any) -> dict[str, Any]:
    """Say what a forked trainer could have wrong."""
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
    """Say the same, and go on when the file `args` is there."""
    seen = look(args, ctx)
    ctx.report("waiting", **seen)
    import time

    until = time.monotonic() + 120
    while not Path(args).exists() and time.monotonic() < until:
        time.sleep(0.05)
    return seen


def sets_a_variable(args: Any, ctx: Any) -> list[Any]:
    """As many programs do: set a variable first, then import TensorFlow, which reads it then."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    return uses_onednn(args, ctx)


def uses_onednn(args: Any, ctx: Any) -> list[Any]:
    """Tell whether TensorFlow computes with oneDNN, which is decided when it is imported."""
    from tensorflow.python.util import _pywrap_util_port

    return [_pywrap_util_port.IsMklEnabled(), os.getppid()]


def sets_a_variable_late(args: Any, ctx: Any) -> int:
    """Set it after TensorFlow has run: no process could begin again from here."""
    import tensorflow as tf

    float(tf.constant(1.0) + 1.0)
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    return os.getppid()


def exits(args: int, ctx: Any) -> None:
    """End the process without a word."""
    os._exit(args)


def prints(args: Any, ctx: Any) -> str:
    """Print what is hard to carry: many lines, one that never ends, bytes that are no text."""
    sys.stdout.buffer.write(b"bad \xff\xfe bytes\n" + "█\n".encode() * 2)
    sys.stdout.buffer.write(b"".join(b"\r%d/500 [==>  ]" % i for i in range(501)) + b"\n")
    sys.stdout.buffer.write("é".encode() * (1 << 20) + b"\n")
    for number in range(30_000):
        sys.stdout.write(f"line {number}\n")
    sys.stdout.write("the last line\n")
    return "printed"
