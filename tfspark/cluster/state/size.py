"""How many nodes a cluster wants, and what changes when it goes on with fewer or with more. Pure arithmetic."""

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
        wanted: nodes of all roles.
        least: with how many nodes training goes on when Spark has no room for more.
        num_ps: how many of them are parameter servers.
        eval_node: whether one is an evaluator.
        preserves: what stays when the number of workers changes: ``global_batch``, the rows of a step over all workers,
            or ``worker_batch``, the rows each of them has of it.
        replacement_timeout_s: how long to wait for room for all.
        on_driver: how many of them run on the driver's machine and need no slot.
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
        """Reject a size that no cluster can have.

        Args:
            restarts: how often the cluster may be started again.

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
        """Return the plan of a cluster of `count` nodes; it is the workers that are fewer."""
        return plan_nodes(count, self.num_ps, self.eval_node)

    def for_workers(self, spec: StreamSpec, num_workers: int) -> StreamSpec:
        """Return a stream of the whole cluster as so many workers read it.

        A global batch that does not divide among them is rounded to the nearest that does.
        """
        if self.preserves == "worker_batch":
            return replace(spec, num_readers=num_workers)
        rows = round(spec.batch_size * self.num_workers / num_workers)
        return replace(spec, num_readers=num_workers, batch_size=max(1, rows))


def redistribute(rows: Sequence[int], num_nodes: int) -> tuple[int, ...]:
    """Deal the row counts of an epoch under way to another number of nodes: node 0 takes over those that are gone."""
    kept = [*rows[:num_nodes], *[0] * (num_nodes - len(rows))]
    return (kept[0] + sum(rows[num_nodes:]), *kept[1:])
