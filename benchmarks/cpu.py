"""Measure the CPU seconds of a command, including all processes that it starts, even re-parented ones.

    python benchmarks/cpu.py scripts/test tests/migrate -n 0

Linux only: orphans, such as warm parents and their trainers, become children of this program (prctl(2),
``PR_SET_CHILD_SUBREAPER``), so that the kernel adds up their time, too. It waits for them, for at most a minute.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
ORPHANS_S = 60.0


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        sys.exit(f"expected Linux: {os.strerror(ctypes.get_errno())}")
    began = time.monotonic()
    code = subprocess.run(sys.argv[1:], check=False).returncode
    elapsed = time.monotonic() - began
    left = await_orphans()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{elapsed:.1f} s, CPU {used.ru_utime + used.ru_stime:.1f} s{left}", file=sys.stderr)
    sys.exit(code)


def await_orphans() -> str:
    """Wait for the processes that the command has left; print those that do not end."""
    until = time.monotonic() + ORPHANS_S
    while time.monotonic() < until:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ""
        if pid == 0:
            time.sleep(0.1)
    return ", and processes that do not end are not counted"


if __name__ == "__main__":
    main()
