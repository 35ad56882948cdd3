"""Kinds of failures: what trainers report, and what the driver concludes."""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """Why a node ended before its time."""

    EXCEPTION = "exception"
    """The user's code raised."""
    DATA = "data"
    """Rows are not as declared (`DataError`)."""
    CONFIG = "config"
    """A setting is wrong (`ConfigError`)."""
    COLLECTIVE = "collective"
    """TensorFlow lost a peer: most likely a consequence of another node's failure."""
    KILLED = "killed"
    """The process ended without a report."""
    LOST = "lost"
    """The process, its host or the network to it is gone."""
    STALLED = "stalled"
    """No step ended for too long."""

    @property
    def is_transient(self) -> bool:
        """Whether another start may help: no program, setting or row was wrong."""
        return self in (
            FailureKind.COLLECTIVE,
            FailureKind.KILLED,
            FailureKind.LOST,
            FailureKind.STALLED,
        )
