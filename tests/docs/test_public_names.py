"""The public names of `tfspark` are the names on the page of its Python API."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import tfspark

PAGE = Path(__file__).parents[2] / "docs" / "python-api.md"
HEAVY = ("pyspark", "pyarrow", "tensorflow", "keras", "numpy")


def test_public_names_are_on_the_page_and_can_be_imported() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("\n## Names\n")[2]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(tfspark.__all__)
    assert [name for name in tfspark.__all__ if getattr(tfspark, name) is None] == []


def test_import_of_tfspark_imports_no_heavy_package() -> None:
    code = f"import sys, tfspark; print([name for name in {HEAVY} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
