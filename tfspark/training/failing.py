"""How a trainer reports the exception that ends it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def noting_what_was_given(element: Any) -> Iterator[None]:
    """Add to an error of a model what the model was given: its features and label, with types and shapes.

    Args:
        element: specs of ``(features, label, weight)``.
    """
    try:
        yield
    except Exception as error:
        features, label = element[:2]
        note = f"The model was given features {_words(features)} and label {_words(label)}."
        if isinstance(features, Mapping):
            note += (
                " Several feature columns are a dictionary: name the model's inputs as the columns, make one array "
                f"column of them (in Spark: array({', '.join(features)})), or write a function features(batch)."
            )
        error.add_note(note)
        raise


def _words(specs: Any) -> str:
    """Write specs as ``float32 (batch, 28, 28)``."""
    if isinstance(specs, Mapping):
        return "{" + ", ".join(f"{name!r}: {_words(spec)}" for name, spec in specs.items()) + "}"
    if isinstance(specs, list | tuple):
        return "[" + ", ".join(map(_words, specs)) + "]"
    dtype = getattr(specs.dtype, "name", specs.dtype)
    return f"{dtype} ({', '.join(['batch', *('any' if size is None else str(size) for size in specs.shape[1:])])})"
