"""Plain values: the values that JSON can hold."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

Json = dict[str, Any]


def plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, and a path as text; for ``json.dumps(..., default=plain)``.

    Raises:
        TypeError: the value is of another type, which JSON cannot hold.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"expected numbers, text, lists and dicts, got {type(value).__name__} {value!r}")
