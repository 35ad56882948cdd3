"""Find the trainers of a benchmark on a local master. Forks of a warm parent are not descendants of the driver."""

from __future__ import annotations

import contextlib

import psutil

TRAINER = "tfspark.trainer"
WARM_PARENT = "tfspark.node.warm_parent"


def trainers() -> dict[str, psutil.Process]:
    """Return node name, such as ``worker 1`` -> its trainer."""
    return {line[3]: process for process, line in _of_this_benchmark() if TRAINER in line}


def warm_parents() -> list[psutil.Process]:
    """Return the warm parents."""
    return [process for process, line in _of_this_benchmark() if WARM_PARENT in line]


def node_tasks() -> set[int]:
    """Return the process ids of the node tasks that currently have a trainer."""
    return {_node_task(line) for _, line in _of_this_benchmark() if TRAINER in line}


def all_processes() -> list[psutil.Process]:
    """Return this driver, all its descendants, the trainers and the warm parents."""
    me = psutil.Process()
    below = [me, *me.children(recursive=True)]
    return list(
        {process.pid: process for process in [*below, *(p for p, _ in _of_this_benchmark())]}.values()
    )


def pss(process: psutil.Process) -> int:
    """Return the bytes of a process's memory, with only its part of shared pages (proportional set size)."""
    return int(process.memory_full_info().pss)


def _of_this_benchmark() -> list[tuple[psutil.Process, list[str]]]:
    """Return trainers and warm parents with their command lines, if they belong to this process or a descendant."""
    found, me = [], psutil.Process()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, IndexError, ValueError):
            line = process.cmdline()
            if line[1] == "-m" and line[2] in (TRAINER, WARM_PARENT):
                above = int(line[4]) if WARM_PARENT in line else _node_task(line)
                if above == me.pid or me in psutil.Process(above).parents():
                    found.append((process, line))
    return found


def _node_task(line: list[str]) -> int:
    return int(line[5].removeprefix("node-task="))
