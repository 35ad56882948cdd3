"""TensorFlow's start-up messages (greetings) are hidden, and all other lines are shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORTS = """
from tfspark.greetings import without_greetings
with without_greetings():
    import tensorflow
    {then}
print("imported")
"""


def stderr_of(folder: Path, module: str, then: str = "pass") -> tuple[int, str]:
    """Run a program that imports a fake TensorFlow; return its exit code and its standard error."""
    (folder / "tensorflow.py").write_text(module)
    program = f"import sys; sys.path.insert(0, {str(folder)!r})" + IMPORTS.format(then=then)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    return ended.returncode, ended.stderr


GREETINGS = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1795888643.443115    8227 port.cc:153] oneDNN custom operations are on.\n"
    "2026-01-01 10:00:00.123456: I tensorflow/core/platform/cpu_feature_guard.cc:210] This TensorFlow binary is\n"
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow\n"
)


def test_import_hides_greetings_and_shows_other_lines(tmp_path: Path) -> None:
    module = f"import os; os.write(2, {GREETINGS.encode()!r} + b'a warning of yours\\n')"
    assert stderr_of(tmp_path, module) == (0, "a warning of yours\n")


@pytest.mark.parametrize(
    ("module", "then"),
    [
        (f"import os; os.write(2, {GREETINGS.encode()!r}); raise ImportError('no such library')", "pass"),
        (f"import os; os.write(2, {GREETINGS.encode()!r})", "raise RuntimeError('no such library')"),
    ],
    ids=["TensorFlow cannot be imported", "code after the import fails"],
)
def test_import_that_fails_shows_all_lines(tmp_path: Path, module: str, then: str) -> None:
    code, shown = stderr_of(tmp_path, module, then)
    assert code == 1
    assert shown.startswith(GREETINGS)
    assert shown.endswith("no such library\n")


def test_import_of_real_tensorflow_prints_nothing(tmp_path: Path) -> None:
    program = (
        "import keras; keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).save('m.keras')\n"
        "import os; os._exit(0)"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120, capture_output=True
    )
    loads = "from tfspark.inference.model_files import load, read_model; load(read_model('m.keras'))"
    ended = subprocess.run(
        [sys.executable, "-c", loads], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stderr == ""
