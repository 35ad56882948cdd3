"""Update parts of the documentation that are generated from the code, each between two marks of its page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def renewed(page: str, begin: str, end: str, made: str) -> str:
    """Return a page with the part between two marks replaced by `made`."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{made.rstrip()}\n\n{end}{rest.split(end)[1]}"


def renew_pages(renew: Callable[[str], str]) -> None:
    """Update the pages that the command line names."""
    for argument in sys.argv[1:]:
        path = Path(argument)
        path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
