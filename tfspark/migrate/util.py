"""TensorFlowOnSpark's ``util``: the environment of a process that runs TensorFlow by itself. Called on executors."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from tfspark.migrate import gpu_info


def single_node_env(num_gpus: int = 1, worker_index: int = -1, nodes: Sequence[str] = ()) -> None:
    """Set ``CUDA_VISIBLE_DEVICES`` for TensorFlow in this process; call it before TensorFlow is imported.

    Args:
        num_gpus: how many GPUs to use, if the machine has any.
        worker_index: number of this process among `nodes`.
        nodes: ``host:port`` of all processes; those on this host take different GPUs.
    """
    if num_gpus < 1 or not gpu_info.is_gpu_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu_info.get_gpus(num_gpus, _local_index(worker_index, nodes)))


def _local_index(worker_index: int, nodes: Sequence[str]) -> int:
    """Return the position of a process among those on its host; `worker_index` itself if `nodes` is empty."""
    if worker_index < 0 or not nodes:
        return worker_index
    host = nodes[worker_index].rpartition(":")[0]
    return sum(node.rpartition(":")[0] == host for node in nodes[:worker_index])


def get_ip_address() -> str:
    """Return the address of this machine for other machines; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): only chooses the route.
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostbyname(socket.gethostname())


def find_in_path(path: str, file: str) -> str | bool:
    """Return the first `file` below the directories of `path`, which are separated as in ``PATH``; else False."""
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder, file)
        if os.path.isfile(candidate):
            return candidate
    return False
