"""Decide what to do after a loss, from values alone. No sockets, no Spark, no clock.

The table of all cases is in docs/architecture.md, section "After a loss".

The number of nodes of a restart depends on the room that Spark has after the pause: all wanted nodes, or after
``replacement_timeout`` at least ``min_executors``; see `preflight.room_for`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tfspark.cluster.state.size import Size
from tfspark.protocol.failures import FailureKind
from tfspark.protocol.roles import NodeSpec


@dataclass(frozen=True)
class Means:
    """What is available to continue with after a loss.

    Attributes:
        recovers: whether the state is saved, or the work can be repeated from the beginning.
        pause_s: seconds before the next restart; None: no restart is left.
        may_replace_workers: whether a worker beside parameter servers may be replaced while the others continue.
    """

    recovers: bool
    pause_s: float | None = None
    may_replace_workers: bool = False


@dataclass(frozen=True)
class Replace:
    """Start another trainer in the place of the lost one; the other nodes continue."""


@dataclass(frozen=True)
class Restart:
    """Start all nodes again from the newest checkpoint, after a pause."""

    pause_s: float


@dataclass(frozen=True)
class Resize:
    """Start the cluster again with more workers."""


@dataclass(frozen=True)
class Raise:
    """End the run with the error of the lost node.

    Attributes:
        is_exhausted: whether only the restart budget prevents a restart.
    """

    is_exhausted: bool = False


def decide(kinds: Collection[FailureKind], alone: NodeSpec | None, means: Means) -> Replace | Restart | Raise:
    """Return what to do after a loss; see the table in docs/architecture.md.

    Args:
        kinds: the kinds of all failures.
        alone: the one node whose trainer was lost while the others still train; None: the cluster has failed.
        means: what is available to continue with.
    """
    if not means.recovers:
        return Raise()  # Nothing was saved to continue from.
    if not all(kind.is_transient for kind in kinds):
        return Raise()  # Code, settings and rows do not change: a restart would fail in the same way.
    if means.pause_s is None:
        return Raise(is_exhausted=True)  # It happens again and again.
    if alone is not None and means.may_replace_workers and _is_replaceable(alone):
        return Replace()  # Only its own steps are missing, and other workers do them.
    return Restart(means.pause_s)  # All workers need each other, or the lost node had a part of the state.


def _is_replaceable(node: NodeSpec) -> bool:
    return node.role == "worker" and node.task_index > 0  # Worker 0 shares its task with the chief.


def decide_growth(size: Size, num_slots: int, room: int | None) -> Resize | None:
    """Return `Resize` if a cluster should grow between two epochs, else None.

    Args:
        size: the wanted size.
        num_slots: task slots that its nodes hold.
        room: slots available to nodes, including those they already hold; None: unknown.
    """
    is_whole = num_slots == size.wanted - size.on_driver
    return None if is_whole or room is None or room <= num_slots else Resize()
