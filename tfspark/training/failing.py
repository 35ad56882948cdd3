"""How a trainer reports the exception that ends it."""

from __future__ import annotations

import traceback

from tfspark.errors import ConfigError, DataError
from tfspark.protocol.failures import FailureKind

COLLECTIVE_ERRORS = (
    "UnavailableError",
    "AbortedError",
    "CancelledError",
    "InternalError",
    "PSUnavailableError",
)
"""TensorFlow errors that usually mean that a peer is lost."""
NETWORK_ERRORS = ("FlightUnavailableError", "FlightTimedOutError", "FlightCancelledError")
"""Errors of tfspark's own calls that mean that the driver could not be reached."""


def describe(error: BaseException) -> dict[str, str]:
    """Return the fields of the control plane's ``trainer_failed``: ``cause``, ``traceback`` and ``kind``."""
    lines = traceback.format_exception(error)
    return {"cause": _cause(error), "traceback": "".join(lines), "kind": _kind(error)}


def _cause(error: BaseException) -> str:
    if isinstance(error, ConfigError | DataError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _kind(error: BaseException) -> FailureKind:
    """Return the kind of an error: bad data, wrong settings, a lost peer, or the user's code."""
    if isinstance(error, DataError):
        return FailureKind.DATA
    if isinstance(error, ConfigError):
        return FailureKind.CONFIG
    chain = f"{type(error).__name__} {error}"
    if type(error).__name__ in COLLECTIVE_ERRORS:
        return FailureKind.COLLECTIVE
    if any(name in chain for name in NETWORK_ERRORS):
        return FailureKind.LOST
    return FailureKind.DATA if "tfspark.errors.DataError" in chain else FailureKind.EXCEPTION
