"""TensorFlowOnSpark's ``gpu_info``: find the free GPUs of this machine. Called on executors.

A node of tfspark does not need this: its trainer sees the GPUs that Spark assigned to its task.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tfspark.errors import ReservationError

if TYPE_CHECKING:
    from collections.abc import Sequence

AS_STRING = "string"
AS_LIST = "list"
QUERY_TIMEOUT_S = 30.0


def is_gpu_available() -> bool:
    """Return whether ``nvidia-smi`` finds a GPU on this machine."""
    try:
        return bool(_query("--query-gpu=index"))
    except (OSError, subprocess.SubprocessError):
        return False


def get_gpus(num_gpu: int = 1, worker_index: int = -1, format: str = AS_STRING) -> str | list[str]:
    """Return the indices of free GPUs: those on which no process computes, identified by their UUIDs.

    Args:
        num_gpu: number of GPUs.
        worker_index: number of this process among those on the machine, so that each takes different GPUs; -1: take
            the first ones.
        format: `AS_STRING`, separated by commas as for ``CUDA_VISIBLE_DEVICES``, or `AS_LIST`.

    Raises:
        ReservationError: fewer GPUs are free.
    """
    busy = set(_query("--query-compute-apps=gpu_uuid"))
    gpus = [line.split(", ") for line in _query("--query-gpu=index,uuid")]
    free = [index for index, uuid in gpus if uuid not in busy]
    if len(free) < num_gpu:
        raise ReservationError(
            f"expected {num_gpu} free GPUs, got {len(free)} of {len(gpus)}; lower num_gpu, or let Spark assign GPUs "
            "with spark.task.resource.gpu.amount"
        )
    chosen = choose(free, num_gpu, max(worker_index, 0))
    return chosen if format == AS_LIST else ",".join(chosen)


def choose(free: Sequence[str], num_gpu: int, worker_index: int) -> list[str]:
    """Return `num_gpu` of the free GPUs, different ones for each worker.

    If there are too few for this worker's number, earlier workers already use theirs: return the last free ones.
    """
    first = min(worker_index * num_gpu, len(free) - num_gpu)
    return list(free[first : first + num_gpu])


def _query(what: str) -> list[str]:
    command = ["nvidia-smi", what, "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, check=True, text=True, timeout=QUERY_TIMEOUT_S)
    return [line.strip() for line in output.stdout.splitlines() if line.strip()]
