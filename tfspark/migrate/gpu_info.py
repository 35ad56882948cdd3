"""TensorFlowOnSpark's ``gpu_info``: which GPUs of this machine are free. Called on executors.

A node of tfspark needs none of it: its trainer sees the GPUs that Spark gave its task.
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
    """Tell whether ``nvidia-smi`` finds a GPU on this machine."""
    try:
        return bool(_query("--query-gpu=index"))
    except (OSError, subprocess.SubprocessError):
        return False


def get_gpus(num_gpu: int = 1, worker_index: int = -1, format: str = AS_STRING) -> str | list[str]:
    """Return the indices of free GPUs: of those on which no process computes, told apart by their UUIDs.

    Args:
        num_gpu: how many.
        worker_index: number of this process among those on the machine, so that each takes others; -1: the first.
        format: `AS_STRING`, separated by commas as for ``CUDA_VISIBLE_DEVICES``, or `AS_LIST`.

    Raises:
        ReservationError: fewer are free.
    """
    busy = set(_query("--query-compute-apps=gpu_uuid"))
    gpus = [line.split(", ") for line in _query("--query-gpu=index,uuid")]
    free = [index for index, uuid in gpus if uuid not in busy]
    if len(free) < num_gpu:
        raise ReservationError(
            f"expected {num_gpu} free GPUs, {len(free)} of {len(gpus)} are; lower num_gpu, or let Spark assign GPUs "
            "with spark.task.resource.gpu.amount"
        )
    chosen = choose(free, num_gpu, max(worker_index, 0))
    return chosen if format == AS_LIST else ",".join(chosen)


def choose(free: Sequence[str], num_gpu: int, worker_index: int) -> list[str]:
    """Return `num_gpu` of the free GPUs, other ones for each worker.

    When there are fewer, workers before this one have theirs already: the last that are free are returned.
    """
    first = min(worker_index * num_gpu, len(free) - num_gpu)
    return list(free[first : first + num_gpu])


def _query(what: str) -> list[str]:
    command = ["nvidia-smi", what, "--format=csv,noheader"]
    output = subprocess.run(command, capture_output=True, check=True, text=True, timeout=QUERY_TIMEOUT_S)
    return [line.strip() for line in output.stdout.splitlines() if line.strip()]
