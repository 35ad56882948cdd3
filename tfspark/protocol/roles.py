"""Roles and numbers of the nodes: pure arithmetic on the numbers passed to `TFCluster.run`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tfspark.errors import ConfigError

Role = Literal["worker", "ps", "evaluator", "chief"]


@dataclass(frozen=True)
class NodeSpec:
    """One node of the cluster.

    Attributes:
        index: position among all nodes, 0-based; node 0 is worker 0, the chief.
        role: TensorFlow's task type.
        task_index: position among the nodes of the same role, 0-based.
    """

    index: int
    role: Role
    task_index: int

    @property
    def name(self) -> str:
        """The node's name in messages, for example ``worker 1``."""
        return f"{self.role} {self.task_index}"


def stream_name(name: str, generation: int) -> str:
    """Return the full name of a stream, after `generation` other models were trained on the cluster.

    The name differs for each model, so that late calls for an earlier model's stream are not taken for this one's.
    """
    return f"{name}@{generation}" if generation else name


def plan_nodes(num_executors: int, num_ps: int = 0, eval_node: bool = False) -> tuple[NodeSpec, ...]:
    """Divide `num_executors` nodes into roles: `num_ps` ps, at most one evaluator, the rest workers.

    With parameter servers there is one more node: the chief, which coordinates them. It needs few resources and no
    slot, and runs in the task of worker 0.

    Raises:
        ConfigError: no node is left for a worker.
    """
    if num_executors < 1 or num_ps < 0:
        raise ConfigError(
            f"expected num_executors >= 1 and num_ps >= 0, got num_executors={num_executors}, num_ps={num_ps}"
        )
    counts: dict[Role, int] = {
        "worker": num_executors - num_ps - int(eval_node),
        "ps": num_ps,
        "evaluator": int(eval_node),
        "chief": int(num_ps > 0),
    }
    if counts["worker"] < 1:
        raise ConfigError(
            f"expected at least one worker among the nodes, but num_executors={num_executors} less "
            f"num_ps={num_ps} and {counts['evaluator']} evaluator leaves {counts['worker']}; "
            f"set num_executors to {num_ps + counts['evaluator'] + 1} or more"
        )
    roles = [(role, i) for role, count in counts.items() for i in range(count)]
    return tuple(NodeSpec(index, role, i) for index, (role, i) in enumerate(roles))


def task_of(node: NodeSpec, master_node: str | None) -> tuple[str, int]:
    """Return TensorFlow's task type and index of a node; `master_node` may replace the type of worker 0."""
    if master_node is None or node.role != "worker":
        return node.role, node.task_index
    return (master_node, 0) if node.task_index == 0 else ("worker", node.task_index - 1)


def reader_number(nodes: Sequence[NodeSpec], node: NodeSpec, attempt: int) -> int:
    """Return a node's number as a reader of the feed: from its position in its role, and different for every attempt.

    Args:
        nodes: all nodes.
        node: the node.
        attempt: number of its start, from 1.
    """
    of_role = sum(other.role == node.role for other in nodes)
    return node.task_index + (attempt - 1) * of_role


def tf_config(
    nodes: Sequence[NodeSpec], addresses: Mapping[int, str], me: NodeSpec, master_node: str | None = None
) -> str:
    """Compose ``TF_CONFIG`` for one node.

    Args:
        nodes: all nodes.
        addresses: node index -> ``host:port`` of its TensorFlow server.
        me: the node that gets the result.
        master_node: name of worker 0's task type; None: ``worker``.

    Returns:
        JSON as TensorFlow's `TFConfigClusterResolver` reads it. The evaluator is not part of its cluster, as
        TensorFlow requires.
    """
    cluster: dict[str, list[str]] = {}
    for node in nodes:
        if node.role != "evaluator":
            cluster.setdefault(task_of(node, master_node)[0], []).append(addresses[node.index])
    job_name, task_index = task_of(me, master_node)
    return json.dumps({"cluster": cluster, "task": {"type": job_name, "index": task_index}})


def local_batch_size(global_batch_size: int, num_workers: int) -> int:
    """Return the number of rows per worker and step.

    Raises:
        ConfigError: the global batch cannot be divided equally among the workers.
    """
    if global_batch_size < num_workers or global_batch_size % num_workers:
        below = global_batch_size // num_workers * num_workers
        options = [str(n) for n in (below, below + num_workers) if n > 0]
        raise ConfigError(
            f"expected a global batch_size that divides among {num_workers} workers, got {global_batch_size}; "
            f"use {' or '.join(options)}"
        )
    return global_batch_size // num_workers
