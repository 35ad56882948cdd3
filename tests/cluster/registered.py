"""Nodes that register with a `Registry`."""

from __future__ import annotations

from tfspark.cluster.state.policy import Means, Restart, decide
from tfspark.cluster.state.registry import Registry

VERSIONS = {"python": "3.11.9", "tensorflow": "2.21.0", "keras": "3.15.0", "tfspark": "0.1.0"}


TIMEOUT_S = 10.0


def register(registry: Registry, index: int, **versions: str | None) -> dict[str, object]:
    return registry.register(index, f"host-{index}", 7000 + index, {**VERSIONS, **versions})


def is_transient(registry: Registry) -> bool:
    """Return whether a restart follows the failures, while restarts are left."""
    return isinstance(decide(registry.kinds, None, Means(True, 0.0)), Restart)
