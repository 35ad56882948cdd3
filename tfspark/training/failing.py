"""How a trainer reports the exception that ends it."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from tfspark.errors import ConfigError, DataError
from tfspark.protocol.failures import FailureKind

if TYPE_CHECKING:
    import tensorflow as tf

Specs: TypeAlias = "tf.TypeSpec | list[Specs] | tuple[Specs, ...] | Mapping[str, Specs]"
"""Types and shapes of features or labels."""

REMOVAL_S = 2.0
"""Time that Spark has to remove a directory after it has removed a file in it."""
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


def describe(error: BaseException, scratch_dir: str = "") -> dict[str, str]:
    """Return the fields of the control plane's ``trainer_failed``: ``cause``, ``traceback`` and ``kind``.

    Args:
        error: the exception.
        scratch_dir: the trainer's directory for temporary files. Spark removes it when it ends the executor, so a
            trainer without it was about to be lost, whatever it raised.
    """
    lines = traceback.format_exception(error)
    if scratch_dir and _lacks_files(error, scratch_dir):
        cause = f"its directory {scratch_dir} was removed, as Spark does when it ends an executor: {_cause(error)}"
        return {"cause": cause, "traceback": "".join(lines), "kind": FailureKind.LOST}
    return {"cause": _cause(error), "traceback": "".join(lines), "kind": _kind(error)}


def _lacks_files(error: BaseException, scratch_dir: str) -> bool:
    """Return whether the directory is gone, or goes: its files are removed first."""
    until = time.monotonic() + (REMOVAL_S if _is_about_file_in(scratch_dir, error) else 0.0)
    while os.path.isdir(scratch_dir):
        if time.monotonic() >= until:
            return False
        time.sleep(REMOVAL_S / 20)
    return True


def _is_about_file_in(directory: str, error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, FileNotFoundError) and str(error.filename).startswith(directory):
            return True
        error = error.__cause__ or error.__context__
    return False


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
def noting_what_was_given(element: Sequence[Specs]) -> Iterator[None]:
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


def _words(specs: Specs) -> str:
    """Write specs as ``float32 (batch, 28, 28)``."""
    if isinstance(specs, Mapping):
        return "{" + ", ".join(f"{name!r}: {_words(spec)}" for name, spec in specs.items()) + "}"
    if isinstance(specs, list | tuple):
        return "[" + ", ".join(map(_words, specs)) + "]"
    dtype = getattr(specs.dtype, "name", specs.dtype)
    if getattr(specs.shape, "rank", 0) is None:
        return f"{dtype} of any shape"
    return f"{dtype} ({', '.join(['batch', *('any' if size is None else str(size) for size in specs.shape[1:])])})"
