"""Find the datasets of the benchmarks, and tell the user how to get a missing one."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prepared(place: str) -> Path:
    """Return a directory below ``data/``, or end the program with advice."""
    path, name = ROOT / "data" / place, Path(place).parts[0]
    if not path.is_dir():
        sys.exit(f"expected the data set {name} in {path}, it is not there; run: scripts/prepare_data {name}")
    return path
