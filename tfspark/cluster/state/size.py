"""How many nodes a cluster wants, and what changes when it goes on with fewer or with more. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from tfspark.errors import ConfigError
from tfspark.feed.reader import StreamSpec
from tfspark.protocol.roles import NodeSpec, plan_nodes

Kept = Literal["global_batch", "worker_batch"]

REPLACEMENT_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Size:
    """The size of a cluster.

    Attributes:
        wanted: nodes of all roles.
        least: with how many nodes training goes on when Spark has no room for more.
        num_ps: how many of them are parameter servers.
        eval_node: whether one is an evaluator.
        keeps: what stays when the number of workers changes: ``global_batch``, the rows of a step over all workers,
            or ``worker_batch``, the rows each of them has of it.
        replacement_timeout_s: how long to wait for room for all.
        on_driver: how many of them run on the driver's machine and need no slot.
    """

    wanted: int
    least: int
    num_ps: int = 0
    eval_node: bool = False
    keeps: Kept = "global_batch"
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

    def nodes(self, count: int) -> tuple[NodeSpec, ...]:
        """Return the plan of a cluster of `count` nodes; it is the workers that are fewer."""
        return plan_nodes(count, self.num_ps, self.eval_node)

    def fitted(self, spec: StreamSpec, num_workers: int) -> StreamSpec:
        """Return a stream of the whole cluster as so many workers read it.

        A global batch that does not divide among them is rounded to the nearest that does.
        """
        if self.keeps == "worker_batch":
            return replace(spec, num_readers=num_workers)
        rows = round(spec.batch_size * self.num_workers / num_workers)
        return replace(spec, num_readers=num_workers, batch_size=max(1, rows))


def sized(
    num_executors: int,
    min_executors: int | None,
    num_ps: int,
    eval_node: bool,
    keeps: Kept,
    replacement_timeout_s: float,
    max_restarts: int,
    driver_ps_nodes: bool,
) -> Size:
    """Return the size that the arguments of `TFCluster.run` ask for, of which `plan_nodes` can make a cluster.

    Raises:
        ConfigError: an argument is out of range.
    """
    least = num_executors if min_executors is None else min_executors
    fewest = num_ps + int(eval_node) + 1
    if not fewest <= least <= num_executors:
        raise ConfigError(
            f"expected min_executors between {fewest} (one worker beside num_ps={num_ps} and "
            f"{int(eval_node)} evaluator) and num_executors={num_executors}, got {least}"
        )
    if keeps not in get_args(Kept):
        raise ConfigError(f"expected resize_keeps to be 'global_batch' or 'worker_batch', got {keeps!r}")
    if least < num_executors and not max_restarts:
        raise ConfigError(
            f"expected max_restarts >= 1 with min_executors={least}, got 0: a cluster changes its size by starting "
            "again; raise max_restarts, or leave min_executors out"
        )
    on_driver = num_ps if driver_ps_nodes else 0
    return Size(num_executors, least, num_ps, eval_node, keeps, replacement_timeout_s, on_driver)


def dealt(rows: Sequence[int], num_nodes: int) -> tuple[int, ...]:
    """Deal the row counts of an epoch under way to another number of nodes: node 0 takes over those that are gone."""
    kept = [*rows[:num_nodes], *[0] * (num_nodes - len(rows))]
    return (kept[0] + sum(rows[num_nodes:]), *kept[1:])
