"""Kinds of failures: as trainers report them, and as the driver concludes them."""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """Why a node ended too early."""

    EXCEPTION = "exception"
    """The user's code raised an exception."""
    DATA = "data"
    """Rows do not match their declaration (`DataError`)."""
    CONFIG = "config"
    """A setting is wrong (`ConfigError`)."""
    COLLECTIVE = "collective"
    """TensorFlow lost a peer; most likely a consequence of another node's failure."""
    KILLED = "killed"
    """The process ended without a report."""
    LOST = "lost"
    """The process, its host or the network connection is lost."""
    STALLED = "stalled"
    """No step ended for too long."""

    @property
    def is_transient(self) -> bool:
        """Whether a restart may help: no program, setting or row was wrong."""
        return self in (
            FailureKind.COLLECTIVE,
            FailureKind.KILLED,
            FailureKind.LOST,
            FailureKind.STALLED,
        )
