"""Start a program, wait for it until a deadline, and end its whole process tree."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from support.environment import DRIVER_ID, TEST_ID

T = TypeVar("T")
TRAINER = "tfspark.trainer"
POLL_S = 0.05
KILL_S = 10.0
_TAIL_CHARS = 6000


@dataclass(frozen=True)
class Finished:
    """The outcome of a program.

    Attributes:
        returncode: as `subprocess.Popen.returncode`; negative if a signal ended it.
        timed_out: whether it was killed at the deadline.
        survivors: processes of its tree that still ran after the grace period and were killed.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    elapsed_s: float
    timed_out: bool
    survivors: tuple[str, ...]

    def check(self) -> Finished:
        """Return self if it ended with 0, in time, and left no process; else fail with its output."""
        problems = []
        if self.timed_out:
            problems.append(f"was killed at its deadline after {self.elapsed_s:.1f} s")
        elif self.returncode:
            problems.append(f"ended with {self.returncode}")
        if self.survivors:
            problems.append("left processes behind: " + "; ".join(self.survivors))
        if problems:
            raise AssertionError(
                f"{' '.join(self.argv)}\n{' and '.join(problems)}\n"
                f"--- stdout ---\n{self.stdout[-_TAIL_CHARS:]}\n--- stderr ---\n{self.stderr[-_TAIL_CHARS:]}"
            )
        return self


def run_to_end(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    mark: tuple[str, str],
    cwd: Path,
    timeout_s: float,
    grace_s: float = 10.0,
) -> Finished:
    """Run a program in its own session; kill the rest of its process tree at the end.

    Args:
        argv: the program and its arguments.
        env: its environment; ``mark`` is added.
        mark: name and value of a variable by which its descendants are found, including re-parented ones.
        cwd: its working directory. Its output goes to files there: if it went to a pipe, a surviving grandchild would
            keep the pipe open, and the wait for its end would block.
        timeout_s: deadline for the program itself.
        grace_s: seconds for its descendants to end after it.
    """
    out, err = cwd / "stdout", cwd / "stderr"
    start = time.monotonic()
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            argv,
            env={**env, mark[0]: mark[1]},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            start_new_session=True,
        )
    timed_out = False
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        elapsed_s = time.monotonic() - start
        survivors = _clear(process, mark, grace_s=0.0 if process.poll() is None else grace_s)
    return Finished(
        tuple(argv),
        process.returncode,
        out.read_text(errors="replace"),
        err.read_text(errors="replace"),
        elapsed_s,
        timed_out,
        () if timed_out else survivors,
    )


def last_json(printed: str) -> Any:
    """Return the JSON in the last line that a program printed."""
    return json.loads(printed.splitlines()[-1])


def json_of_python(*arguments: str, timeout_s: float) -> Any:
    """Run Python with the given arguments; return the JSON that it prints last, or fail with the end of its stderr."""
    argv = [sys.executable, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-_TAIL_CHARS:]
    return last_json(done.stdout)


def _clear(process: subprocess.Popen[bytes], mark: tuple[str, str], grace_s: float) -> tuple[str, ...]:
    names = tuple(describe(p) for p in what_stays(lambda: marked_processes(*mark), grace_s))
    if process.poll() is None:
        # Kill the whole group, and wait here: psutil's wait would take the return code, and Popen would not get it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(KILL_S)
    kill_all(marked_processes(*mark), again=lambda: marked_processes(*mark))
    return names


def marked_processes(name: str, value: str) -> list[psutil.Process]:
    """Return this user's running processes with ``name=value`` in their environment, except this one.

    Also return the trainers of these processes' node tasks that were forked by a shared warm parent: such a trainer
    does not have the mark. A trainer of this run whose node task has ended counts for every program, because it should
    have ended, too.
    """
    marked = [p for p in psutil.process_iter() if p.pid != os.getpid() and carries(p, name, value)]
    pids = {process.pid for process in marked}
    return marked + [
        p for p in _forks_of_shared_parents() if p.pid not in pids and _node_task(p) in (0, *pids)
    ]


def _forks_of_shared_parents() -> list[psutil.Process]:
    run = os.environ.get(TEST_ID, "")
    trainers = [p for p in psutil.process_iter() if command_line(p)[1:3] == ["-m", TRAINER]]
    return [p for p in trainers if run and carries(p, TEST_ID, run) and not _has(p, DRIVER_ID)]


def _has(process: psutil.Process, name: str) -> bool:
    try:
        return name in process.environ()
    except (psutil.Error, OSError):
        return True


def _node_task(trainer: psutil.Process) -> int:
    """Return the process id of a trainer's node task; 0 if that has ended."""
    named = [word for word in command_line(trainer) if word.startswith("node-task=")]
    pid = int(named[0].removeprefix("node-task=")) if named else 0
    return pid if psutil.pid_exists(pid) else 0


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs. A zombie does not: PID 1 of a container, for example, may reap orphans late."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def carries(process: psutil.Process, name: str, value: str) -> bool:
    """Return whether a process runs and started with ``name=value`` in its environment; False if it is unreadable."""
    try:
        return process.environ().get(name) == value and is_alive(process)
    except (psutil.Error, OSError):
        return False


def command_line(process: psutil.Process) -> list[str]:
    """Return the program and arguments of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def describe(process: psutil.Process) -> str:
    """Return a line with the pid, the parent's pid and the command line of a process."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return f"pid {process.pid} (ended, never waited for): {process.name()}"
        line = " ".join(process.cmdline())
        return f"pid {process.pid} (parent {process.ppid()}): {line[:300]}"
    except psutil.Error:
        return f"pid {process.pid} (gone)"


def kill_all(
    processes: Iterable[psutil.Process], *, again: Callable[[], list[psutil.Process]] | None = None
) -> None:
    """Kill processes by pid until none is left, for at most `KILL_S` seconds.

    Args:
        processes: the processes to kill first.
        again: returns the processes to kill next, such as processes that were started meanwhile.
    """
    deadline = time.monotonic() + KILL_S
    left = list(processes)
    while left:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until_ended(left, deadline - time.monotonic())
        left = again() if again else [p for p in left if is_alive(p)]
        if left and time.monotonic() > deadline:
            raise AssertionError(f"still alive {KILL_S:g} s after SIGKILL: {[describe(p) for p in left]}")


def wait_until_ended(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until none of the processes runs, for at most ``timeout_s``; return those that still run."""
    return what_stays(lambda: [p for p in processes if is_alive(p)], timeout_s)


def poll_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll until ``condition`` holds; return whether it did within ``timeout_s``.

    Use it for the state of other processes if there is no event to wait for.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def what_stays(look: Callable[[], list[T]], grace_s: float) -> list[T]:
    """Poll until the result is empty, for at most ``grace_s``; return the last result.

    Stop at the first empty result. A later poll could find a process that has just started and needs its own grace
    period, such as the ``rm`` that Spark's JVM starts when it collects a session.
    """
    deadline = time.monotonic() + grace_s
    while (seen := look()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return seen
