"""Load model modules, and send their functions to processes that do not have the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tfspark.cluster.program import registered_beside
from tfspark.errors import ConfigError
from tfspark.experiment.modules import load_model_module

GOOD = """
from __future__ import annotations
import dataclasses
import math

@dataclasses.dataclass(frozen=True)
class Params:
    width: float = 1.0

class Layer:
    def area(self, params: Params) -> float:
        return helper(params.width)

def helper(width):
    return math.pi * width

TABLE = {"area": lambda params: Layer().area(params)}

def build_model(params):
    return TABLE["area"](Params(**params))

def callbacks(params):
    return []
"""


@pytest.fixture
def module_file(tmp_path: Path) -> Path:
    path = tmp_path / "my model-2.py"
    path.write_text(GOOD)
    return path


def test_load_model_module_when_good_finds_its_functions(module_file: Path) -> None:
    module = load_model_module(module_file)
    assert module.build_model({"width": 2}) == pytest.approx(6.283, abs=1e-3)
    assert module.callbacks is not None
    assert module.features is None
    assert module.export is None
    assert module.path == module_file


def test_load_model_module_when_loaded_twice_keeps_both_apart(module_file: Path) -> None:
    first = load_model_module(module_file)
    module_file.write_text("def build_model(params):\n    return 'second'\n")
    second = load_model_module(module_file)
    assert first.name != second.name
    assert second.build_model({}) == "second"
    assert first.build_model({}) != "second"


@pytest.mark.parametrize(
    ("path", "params"),
    [("good", {"width": 1}), ("models/cnn.py", {"input_shape": (16, 16, 1), "num_classes": 3})],
)
def test_functions_when_unpickled_without_their_file_still_work(
    path: str, params: dict[str, object], module_file: Path, tmp_path: Path
) -> None:
    pickler = (
        "import sys, pyspark.cloudpickle as cp; from tfspark.experiment.modules import load_model_module;"
        "module = load_model_module(sys.argv[1]);"
        f"open('{tmp_path}/pickled', 'wb').write(cp.dumps((module, {params!r})))"
    )
    caller = (
        f"import pickle; module, params = pickle.load(open('{tmp_path}/pickled', 'rb'));"
        "print('built', module.build_model(params))"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-c", pickler, str(module_file) if path == "good" else path], check=True)
    module_file.unlink()
    result = subprocess.run(
        [sys.executable, "-c", caller], cwd=elsewhere, check=True, capture_output=True, text=True
    )
    assert result.stdout.startswith("built")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1", "expected a function build_model(params) that returns a compiled keras.Model, got none"),
        ("build_model = 3", "expected a function build_model(params), got int 3"),
        ("def build_model(): ...", "expected build_model(params), got build_model()"),
        ("def build_model(a, b): ...", "expected build_model(params), got build_model(a, b)"),
        ("def build_model(*, params): ...", "expected build_model(params), got build_model(*, params)"),
        (
            "def build_model(p): ...\ndef export(model): ...",
            "expected export(model, directory), got export(model)",
        ),
        ("def broken(:", "SyntaxError"),
        ("import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("def f():\n    raise KeyError('deep')\nf()", "line 2, in f"),
        ("raise SystemExit(3)", "it raised SystemExit"),
    ],
)
def test_load_model_module_when_bad_says_what_is_wrong(tmp_path: Path, source: str, expected: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    before = set(sys.modules)
    with pytest.raises(ConfigError) as caught:
        load_model_module(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "importlib" not in str(caught.value)
    assert not {name for name in set(sys.modules) - before if name.startswith("tfspark_model_")}


def test_load_model_module_when_not_python_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match=r"expected a Python file, whose name ends in \.py"):
        load_model_module(path)


def test_load_model_module_when_missing_lists_what_is_shipped() -> None:
    with pytest.raises(ConfigError, match=r"models/nn\.py: expected a file.*models/cnn\.py"):
        load_model_module("models/nn.py")


def test_registered_beside_when_a_module_registers_a_class_finds_it_by_its_name() -> None:
    module = load_model_module("models/gan.py")
    assert set(registered_beside(module.build_model)) == {"tfspark>GAN"}


def test_registered_beside_when_nothing_is_registered_is_empty(module_file: Path) -> None:
    assert registered_beside(load_model_module(module_file).build_model) == {}
