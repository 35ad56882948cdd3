"""Find the trainers of this test run. A fork of a warm parent is not a descendant of the process that requested it."""

from __future__ import annotations

import os

import psutil

from support.environment import DRIVER_ID, TEST_ID
from support.processes import TRAINER, carries, command_line, marked_processes

WARM_PARENT = "tfspark.node.warm_parent"
SHARED = "0"
"""Owner of a warm parent that driver programs share."""


def trainers() -> dict[str, psutil.Process]:
    """Return node name, such as ``worker 1`` -> its trainer, for the running trainers of this test run."""
    return {line[3]: process for process, line in _running(TRAINER)}


def all_trainers() -> list[tuple[str, psutil.Process]]:
    """Return node names and trainers. An old trainer of an executor that ends slowly may be there beside a new one."""
    return [(line[3], process) for process, line in _running(TRAINER)]


def warm_parents() -> list[psutil.Process]:
    """Return the warm parents of this test run, except those that driver programs share.

    In a driver program, return only those of the program itself, not those of the tests' own session.
    """
    program = os.environ.get(DRIVER_ID, "")
    return [
        process
        for process, owner in _warm_parents()
        if owner != SHARED and (not program or carries(process, DRIVER_ID, program))
    ]


def shared_warm_parents() -> list[psutil.Process]:
    """Return the warm parents that driver programs of this test run share."""
    return [process for process, owner in _warm_parents() if owner == SHARED]


def _warm_parents() -> list[tuple[psutil.Process, str]]:
    """Return warm parents with their owners. Skip forks, which have the same command line until they are trainers."""
    found = _running(WARM_PARENT)
    pids = {process.pid for process, _ in found}
    return [(process, line[4]) for process, line in found if _parent_of(process) not in pids]


def _parent_of(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _running(module: str) -> list[tuple[psutil.Process, list[str]]]:
    found = []
    for process in marked_processes(TEST_ID, os.environ[TEST_ID]):
        line = command_line(process)
        if line[1:3] == ["-m", module]:
            found.append((process, line))
    return found


def node_task_of(trainer: psutil.Process) -> psutil.Process:
    """Return the process of a trainer's node task."""
    return psutil.Process(int(trainer.cmdline()[5].removeprefix("node-task=")))


def ports_of(trainer: psutil.Process) -> list[tuple[str, int]]:
    """Return the addresses to which a trainer's sockets are bound, listening or not."""
    return [(c.laddr.ip, c.laddr.port) for c in trainer.net_connections("tcp") if c.laddr and not c.raddr]
