"""The warm parent of an executor: it has imported TensorFlow, runs nothing, and forks trainers for node tasks.

Started by `tfspark.node.warm`; it ends with its owner (usually the executor), or after `IDLE_S` without a request. It
imports no user code, runs no TensorFlow operation, opens no gRPC connection and lists no GPU, so a fork of it is as
good as a new process after the same imports. A fork is safe only while no other thread of the process holds a lock. So
it checks its threads before each fork, and refuses if there is one that it does not know.

A trainer does not need its warm parent once it runs: it has its own connection to its node task, and the kernel ends it
with that task (`tfspark.node.lifeline`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from zipimport import zipimporter

from tfspark.node.lending import MissedModules, known_entries, modules_found, other_modules, set_soft_limits
from tfspark.node.warm import LENT, TRAINER_MODULE, peer_user, receive, send, trainer_command

IDLE_S = 600.0
"""Seconds without a trainer and without a request, after which it ends: it holds about 250 MB."""
REQUEST_TIMEOUT_S = 10.0
"""Seconds that a node task has to send its request after it has connected."""
HARMLESS_THREADS = ("jemalloc_bg_thd",)
"""pyarrow's jemalloc returns memory in the background; its own fork handlers take its locks (jemalloc(3))."""
MODULES = (
    "tensorflow",
    "keras",
    "multiprocessing.queues",
    "pyarrow.flight",
    "pyarrow.pandas_compat",
    "pyspark.cloudpickle",
    TRAINER_MODULE,
    "tfspark.training.loop",
    "tfspark.training.strategies",
    "tfspark.training.keras_corrections",
    "tfspark.training.input.dataset",
    "tfspark.feed.files",
    "tfspark.training.input.row_feed",
)
AT_THE_START = ("sitecustomize", "usercustomize")
"""Modules that the interpreter looks for before all others."""


@dataclass(frozen=True)
class _Trainer:
    """A forked process: its number, a file that shows its end, and the connection to its node task."""

    pid: int
    pidfd: int
    connection: socket.socket


def main() -> None:
    """Serve on the inherited socket until the owner ends."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the driver only.
    try:
        owner = os.pidfd_open(int(sys.argv[2])) if int(sys.argv[2]) else None
    except ProcessLookupError:
        return
    if sys.argv[4:] == [LENT]:
        del sys.path[0]  # The directory it was started in: none of its trainers'.
        missed = MissedModules()
        sys.meta_path.append(missed)
        why_cold = _why_cold()
        sys.meta_path.remove(missed)
        names = {name.partition(".")[0] for name in (*sys.modules, *missed.names, *AT_THE_START)}
        WarmParent(listener, owner, why_cold, modules_found(names, sys.path)).serve()
    else:
        WarmParent(listener, owner, _why_cold()).serve()


def _why_cold() -> str:
    """Import what trainers need; return why they cannot be forked from this process, empty if they can."""
    # A site's own startup code may start threads. In that case the imports would be useless.
    if strange := _strange_threads():
        return f"the interpreter starts with threads of its own ({', '.join(strange)})"
    gc.disable()  # It would scan all imports a dozen times: a fifth of the time.
    try:
        for name in MODULES:
            importlib.import_module(name)
    except BaseException:
        return f"its imports failed:\n{traceback.format_exc()}"
    finally:
        gc.enable()
    # OpenBLAS ends its threads before a fork and starts them again when needed: let it end them now.
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    gc.collect()
    gc.freeze()  # Frozen objects are not written to, so their pages stay shared.
    return ""


def _strange_threads() -> list[str]:
    """Return the names of this process's threads that a fork might not survive, as the kernel lists them."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # It has just ended.
            if int(task.name) != os.getpid():
                names.append((task / "comm").read_text(encoding="utf-8", errors="replace").strip())
    return sorted(name for name in names if name not in HARMLESS_THREADS)


class WarmParent:
    """Forks trainers for node tasks that connect.

    Args:
        listener: the listening socket.
        owner: pidfd of the process with which this one ends; None: it ends with no other process.
        why_cold: the reason why no trainer can be forked; empty if one can.
        modules: where the imported modules were found, and those that were not found. A trainer must find the same;
            None: its module path is always the same as that of its trainers.
    """

    def __init__(
        self,
        listener: socket.socket,
        owner: int | None,
        why_cold: str,
        modules: Mapping[str, list[str]] | None = None,
    ):
        self._listener = listener
        self._why_cold = why_cold
        self._modules = modules
        self._is_owned = owner is not None
        self._owners: dict[int, int] = {}
        self._trainers: set[_Trainer] = set()
        self._poll = select.poll()  # An epoll would be shared with the trainers.
        self._answers: dict[int, Callable[[], None]] = {}
        if owner is not None:
            self._end_with(0, owner)
        self._await(listener.fileno(), select.POLLIN, self._accept)
        self._is_over = False

    def serve(self) -> None:
        """Answer requests until the owner ends, or until there were none for a while."""
        asked = time.monotonic()
        while not self._is_over:
            ready = self._poll.poll(max(0.0, asked + IDLE_S - time.monotonic()) * 1000 + 1)
            for descriptor, _ in ready:
                if descriptor in self._answers:  # The one before may have ended it.
                    self._answers[descriptor]()
            if ready or self._trainers:
                asked = time.monotonic()
            elif time.monotonic() >= asked + IDLE_S:
                self._end()

    def _await(self, descriptor: int, event: int, answer: Callable[[], None]) -> None:
        self._poll.register(descriptor, event)
        self._answers[descriptor] = answer

    def _ignore(self, descriptor: int) -> None:
        if self._answers.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def _end(self) -> None:
        self._is_over = True

    def _end_with(self, pid: int, pidfd: int) -> None:
        self._owners[pid] = pidfd
        self._await(pidfd, select.POLLIN, self._end)

    def _adopt_by(self, pid: int) -> None:
        """Also end with the Python daemon of an executor, if there is an owner: it may end before the driver does."""
        if self._is_owned and pid not in self._owners:
            with contextlib.suppress(ProcessLookupError):
                self._end_with(pid, os.pidfd_open(pid))

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            connection.settimeout(REQUEST_TIMEOUT_S)
            if peer_user(connection) != os.getuid():
                raise PermissionError("another user's process")
            request, descriptors = receive(connection, max_descriptors=3)
        except (OSError, EOFError, ValueError):  # Also a task that only wanted this process to be started.
            connection.close()
            return
        self._fork(request, descriptors, connection)
        for descriptor in descriptors:
            os.close(descriptor)

    def _fork(self, request: Any, descriptors: list[int], connection: socket.socket) -> None:
        strange = _strange_threads()
        reason = self._why_cold or (f"it has threads ({', '.join(strange)})" if strange else "")
        if reason:
            with contextlib.suppress(OSError):
                send(connection, {"refused": reason})
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            self._become_trainer(request, descriptors, connection)
        self._adopt_by(int(request["owner"]))
        trainer = _Trainer(pid, os.pidfd_open(pid), connection)
        self._trainers.add(trainer)
        self._await(trainer.pidfd, select.POLLIN, lambda: self._reap(trainer))
        # Watch only for its end: what the node task sends is for the trainer.
        self._await(connection.fileno(), select.POLLHUP, lambda: self._abandon(trainer))

    def _become_trainer(self, request: Any, descriptors: list[int], connection: socket.socket) -> NoReturn:
        """Turn this fork into the trainer of a node. Never return into the parent's code."""
        code = 1
        try:
            for trainer in self._trainers:
                os.close(trainer.pidfd)
                trainer.connection.close()
            for owner in self._owners.values():
                os.close(owner)
            self._listener.close()
            code = self._run(request, descriptors, connection)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # The node task learns the exit code from here if the warm parent is gone.
            with contextlib.suppress(OSError):
                send(connection, {"exits": code})
            os._exit(code)

    def _run(self, request: Any, descriptors: list[int], connection: socket.socket) -> int:
        if self._modules is not None:
            os.chdir(request["directory"])  # Entries may be relative: Spark's executors have ".".
            path = [request["directory"], *request["path"]]
            if others := other_modules(self._modules, path):
                send(connection, {"others": others})
                return 0
            request["path"] = known_entries(request["path"], sys.path)
            set_soft_limits(request["limits"])
        return _run_forked(request, descriptors, connection)

    def _reap(self, trainer: _Trainer) -> None:
        """Report to the node task how its trainer ended."""
        _, status = os.waitpid(trainer.pid, 0)
        with contextlib.suppress(OSError):
            send(trainer.connection, {"returncode": os.waitstatus_to_exitcode(status)})
        self._forget(trainer)

    def _abandon(self, trainer: _Trainer) -> None:
        """End a trainer whose node task is gone; the kernel also does so, unless the trainer closed its lifeline."""
        self._ignore(trainer.connection.fileno())
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(trainer.pidfd, signal.SIGKILL)

    def _forget(self, trainer: _Trainer) -> None:
        self._trainers.discard(trainer)
        self._ignore(trainer.pidfd)
        self._ignore(trainer.connection.fileno())
        os.close(trainer.pidfd)
        trainer.connection.close()


def _run_forked(request: Any, descriptors: list[int], connection: socket.socket) -> int:
    """Run as a trainer in a fork of the warm parent, like `python -m tfspark.trainer`; return the exit code.

    Args:
        request: ``name`` of the node, ``node_task`` (its process number), its ``environment``, working ``directory``,
            ``path`` of modules, ``python``, soft ``limits`` and ``owner`` (the parent of the node task's process).
        descriptors: standard input, standard output and the port's socket.
        connection: to the node task.
    """
    orders, output, port = descriptors
    for number, descriptor in ((0, orders), (1, output), (2, output)):
        os.dup2(descriptor, number)
    os.close(orders)
    os.close(output)
    # From here on only this process and its node task matter. It does nothing until the node task has answered.
    connection.settimeout(None)
    send(connection, {"pid": os.getpid()}, [pidfd := os.pidfd_open(os.getpid())])
    os.close(pidfd)
    receive(connection)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # The shell ignores it for background processes.
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    sys.path[:] = [request["directory"], *request["path"]]
    sys.executable = request["python"]
    command = trainer_command(request["name"], port, request["node_task"])
    sys.argv = [str(sys.modules[TRAINER_MODULE].__file__), *command[3:]]
    _show_as(command)
    _forget_modules_not_found()
    tempfile.tempdir = None  # The imports set it, from the warm parent's TMPDIR.
    import numpy as np

    np.random.seed()
    from tfspark.trainer import main as run_trainer

    return run_trainer(sys.stdin.buffer, port, connection)


def _forget_modules_not_found() -> None:
    """Let the next imports look for files that are new since this process started.

    `importlib.invalidate_caches` reads a zip archive again for each package in it, which takes 0.2 s for Spark's own.
    The entries for packages are dropped first, so it is read once.
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimporter) and finder.prefix:
            del sys.path_importer_cache[path]
    importlib.invalidate_caches()


def _show_as(command_line: list[str]) -> None:
    """Let ``ps`` show a command line for this process, cut to the space of the current one."""
    stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    start, end = int(stat[45]), int(stat[46])  # arg_start and arg_end, fields 48 and 49 of proc_pid_stat(5)
    text = os.fsencode("\0".join(command_line))[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    main()
