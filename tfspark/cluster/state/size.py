"""How many nodes a cluster wants, and what changes when it continues with fewer or more. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from tfspark.errors import ConfigError
from tfspark.feed.stream import StreamSpec
from tfspark.protocol.roles import NodeSpec, plan_nodes

Preserved = Literal["global_batch", "worker_batch"]

REPLACEMENT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Size:
    """The size of a cluster.

    Attributes:
        wanted: number of nodes of all roles.
        least: number of nodes with which training continues when Spark has no room for more.
        num_ps: number of parameter servers among them.
        eval_node: whether one of them is an evaluator.
        preserves: what stays the same when the number of workers changes: ``global_batch``, the rows of a step over all
            workers, or ``worker_batch``, the rows per worker.
        replacement_timeout_s: seconds to wait until Spark has room for all wanted nodes.
        on_driver: number of nodes that run on the driver's machine and need no slot.
    """

    wanted: int
    least: int
    num_ps: int = 0
    eval_node: bool = False
    preserves: Preserved = "global_batch"
    replacement_timeout_s: float = REPLACEMENT_TIMEOUT_S
    on_driver: int = 0

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.least < self.wanted

    @property
    def num_workers(self) -> int:
        """Workers of the whole cluster."""
        return self.wanted - self.num_ps - int(self.eval_node)

    def check(self, restarts: int) -> None:
        """Reject an impossible size.

        Args:
            restarts: number of times the cluster may be restarted.

        Raises:
            ConfigError: an argument of `TFCluster.run` is out of range.
        """
        fewest = self.num_ps + int(self.eval_node) + 1
        if not fewest <= self.least <= self.wanted:
            raise ConfigError(
                f"expected min_executors between {fewest} (one worker beside num_ps={self.num_ps} and "
                f"{int(self.eval_node)} evaluator) and num_executors={self.wanted}, got {self.least}"
            )
        if self.preserves not in get_args(Preserved):
            raise ConfigError(
                f"expected resize_keeps to be 'global_batch' or 'worker_batch', got {self.preserves!r}"
            )
        if self.is_elastic and not restarts:
            raise ConfigError(
                f"expected max_restarts >= 1 with min_executors={self.least}, got 0: a cluster changes its size by "
                "starting again; raise max_restarts, or leave min_executors out"
            )

    def nodes(self, count: int) -> tuple[NodeSpec, ...]:
        """Return the plan of a cluster of `count` nodes; only the number of workers becomes smaller."""
        return plan_nodes(count, self.num_ps, self.eval_node)

    def for_workers(self, spec: StreamSpec, num_workers: int) -> StreamSpec:
        """Return the stream of the whole cluster as `num_workers` workers read it.

        A global batch that cannot be divided equally is rounded to the nearest one that can.
        """
        if self.preserves == "worker_batch":
            return replace(spec, num_readers=num_workers)
        rows = round(spec.batch_size * self.num_workers / num_workers)
        return replace(spec, num_readers=num_workers, batch_size=max(1, rows))


def redistribute(rows: Sequence[int], num_nodes: int) -> tuple[int, ...]:
    """Redistribute the row counts of the current epoch to `num_nodes` nodes; node 0 takes those of removed nodes."""
    kept = [*rows[:num_nodes], *[0] * (num_nodes - len(rows))]
    return (kept[0] + sum(rows[num_nodes:]), *kept[1:])
