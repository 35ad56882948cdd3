"""Hide TensorFlow's start messages: the lines that its C++ code writes to standard error during the import."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

GREETING = re.compile(
    rb"[IWE]\d{4} .*|\d{4}-\d\d-\d\d [\d:.]+: [IWE] .*|WARNING: All log messages before absl.*"
    rb"|To enable the following instructions.*"
)
"""A line of TensorFlow's log. No setting can silence the lines that are written before its log is set up."""


@contextmanager
def without_greetings() -> Iterator[None]:
    """Hide TensorFlow's log lines within the block, which imports it; show all lines if the block fails.

    Other lines on standard error are delayed until the end of the block. Harmless if TensorFlow was imported before.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        imported = False
        try:
            yield
            imported = True
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            kept.seek(0)
            with open(2, "wb", closefd=False) as shown:
                shown.writelines(line for line in kept if not (imported and GREETING.match(line)))
