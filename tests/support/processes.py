"""Start a program, wait for it until a deadline, and leave nothing of its tree behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from support.environment import DRIVER_ID, TEST_ID

T = TypeVar("T")
TRAINER = "tfspark.trainer"
POLL_S = 0.05
KILL_S = 10.0
_TAIL_CHARS = 6000


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        returncode: as `subprocess.Popen.returncode`; negative when a signal ended it.
        timed_out: whether it was killed at the deadline.
        survivors: processes of its tree that outlived it by the grace period and had to be killed.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    elapsed_s: float
    timed_out: bool
    survivors: tuple[str, ...]

    def check(self) -> Finished:
        """Return self when it ended with 0, in time, and left nothing; else fail with what it printed."""
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
    """Run a program in a session of its own; kill what is left of its tree at the end.

    Args:
        argv: the program and its arguments.
        env: its environment; ``mark`` is added.
        mark: name and value of a variable by which its descendants are found, re-parented ones included.
        cwd: its working directory; its output is kept there in files, since a surviving grandchild that holds
            a pipe would keep us waiting for its end.
        timeout_s: deadline for the program itself.
        grace_s: how long its descendants may take to follow it.
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


def _clear(process: subprocess.Popen[bytes], mark: tuple[str, str], grace_s: float) -> tuple[str, ...]:
    names = tuple(describe(p) for p in what_stays(lambda: marked_processes(*mark), grace_s))
    if process.poll() is None:
        # The whole group at once, and waited for here: psutil's wait would take the return code from Popen.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(KILL_S)
    kill_all(marked_processes(*mark), again=lambda: marked_processes(*mark))
    return names


def marked_processes(name: str, value: str) -> list[psutil.Process]:
    """Return this user's living processes whose environment carries ``name=value``, this one excepted.

    And the trainers that their node tasks have from a warm parent that programs share, which carries no program's mark.
    A trainer of this run that has lost its node task counts for every program: it should be gone.
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
    """Return the process number of a trainer's node task; 0 if that has ended."""
    named = [word for word in command_line(trainer) if word.startswith("node-task=")]
    pid = int(named[0].removeprefix("node-task=")) if named else 0
    return pid if psutil.pid_exists(pid) else 0


def is_alive(process: psutil.Process) -> bool:
    """Say whether it runs. A zombie does not: not every PID 1 (in a container, say) reaps orphans at once."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def carries(process: psutil.Process, name: str, value: str) -> bool:
    """Say whether it runs and started with ``name=value`` in its environment; False for strangers."""
    try:
        return process.environ().get(name) == value and is_alive(process)
    except (psutil.Error, OSError):
        return False


def command_line(process: psutil.Process) -> list[str]:
    """Return its program and arguments; nothing when it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def describe(process: psutil.Process) -> str:
    """Return pid, parent and command line in one line."""
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
    """Kill processes by pid until none is left, for `KILL_S` at most.

    Args:
        processes: what to kill first.
        again: looks for what was started in the meantime.
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
    """Wait until none of them runs, for ``timeout_s`` at most; return those that still do."""
    return what_stays(lambda: [p for p in processes if is_alive(p)], timeout_s)


def poll_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Ask until ``condition`` holds; return whether it did within ``timeout_s``.

    For states of other processes that announce nothing one could wait for.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def what_stays(look: Callable[[], list[T]], grace_s: float) -> list[T]:
    """Look until there is nothing, for ``grace_s`` at most; return what the last look saw.

    There is no look after one that saw nothing: it would meet what began in that moment and has a grace of
    its own, such as the ``rm`` that Spark's JVM starts when it collects a session.
    """
    deadline = time.monotonic() + grace_s
    while (seen := look()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return seen
