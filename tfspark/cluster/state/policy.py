"""What follows a loss: one decision, made from values alone. No sockets, no Spark, no clock.

The table of all cases is in docs/architecture.md, section "After a loss".

With how many nodes a restart begins follows from the room that Spark has when the pause is over: all that are wanted,
or after ``replacement_timeout`` at least ``min_executors``; see `preflight.room_for`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tfspark.cluster.state.size import Size
from tfspark.protocol.failures import FailureKind
from tfspark.protocol.roles import NodeSpec


@dataclass(frozen=True)
class Means:
    """What there is to go on with after a loss.

    Attributes:
        recovers: whether the state is saved, or the work can be done again from the beginning.
        pause_s: seconds before the next restart; None: no restart is left.
        may_replace_workers: whether a worker beside parameter servers may be replaced while the others train on.
    """

    recovers: bool
    pause_s: float | None = None
    may_replace_workers: bool = False


@dataclass(frozen=True)
class Replace:
    """Another trainer takes the place of the one that was lost; the others go on."""


@dataclass(frozen=True)
class Restart:
    """All nodes start again from the newest checkpoint, after a pause."""

    pause_s: float


@dataclass(frozen=True)
class Resize:
    """The cluster starts again with more workers."""


@dataclass(frozen=True)
class Raise:
    """The run ends with the error of what was lost.

    Attributes:
        is_exhausted: whether it would have been restarted if there were a restart left.
    """

    is_exhausted: bool = False


def decide(kinds: Collection[FailureKind], alone: NodeSpec | None, means: Means) -> Replace | Restart | Raise:
    """Return what follows a loss; see the table in the module's docstring.

    Args:
        kinds: of all failures.
        alone: the one node whose trainer was lost while the others still train; None: the cluster has failed.
        means: what there is to go on with.
    """
    if not means.recovers:
        return Raise()  # Nothing was saved to go on from.
    if not all(kind.is_transient for kind in kinds):
        return Raise()  # Code, settings and rows stay as they are: another start fails the same way.
    if means.pause_s is None:
        return Raise(is_exhausted=True)  # It does not happen once, but again and again.
    if alone is not None and means.may_replace_workers and _is_replaceable(alone):
        return Replace()  # Only its own steps are missing, and others take them.
    return Restart(means.pause_s)  # All workers need each other, or what was lost holds a part of the state.


def _is_replaceable(node: NodeSpec) -> bool:
    return node.role == "worker" and node.task_index > 0  # Worker 0 shares its task with the chief.


def decide_growth(size: Size, num_slots: int, room: int | None) -> Resize | None:
    """Return whether a cluster grows between two epochs.

    Args:
        size: what is wanted.
        num_slots: task slots that its nodes hold.
        room: slots that there are for nodes, those that they hold included; None: not known.
    """
    is_whole = num_slots == size.wanted - size.on_driver
    return None if is_whole or room is None or room <= num_slots else Resize()
