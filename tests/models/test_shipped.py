"""`find_shipped` finds the configurations and models that come with tfspark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfspark import shipped
from tfspark.errors import ConfigError
from tfspark.shipped import find_shipped


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package. It is not in a checkout, and contains the shipped files."""
    package = tmp_path / "site-packages" / "tfspark"
    (package / "_shipped" / "models").mkdir(parents=True)
    (package / "_shipped" / "models" / "rnn.py").touch()
    monkeypatch.setattr(shipped, "__file__", str(package / "shipped.py"))
    return package


def test_find_shipped_prefers_a_file_in_the_working_directory(elsewhere: Path) -> None:
    (elsewhere / "models").mkdir()
    (elsewhere / "models" / "cnn.py").touch()
    assert find_shipped("models/cnn.py").resolve() == elsewhere / "models" / "cnn.py"


def test_find_shipped_otherwise_takes_the_file_of_the_checkout(elsewhere: Path) -> None:
    found = find_shipped("models/cnn.py")
    assert found.is_file()
    assert elsewhere not in found.parents


def test_find_shipped_when_installed_takes_the_file_of_the_package(elsewhere: Path, wheel: Path) -> None:
    assert find_shipped("models/rnn.py") == wheel / "_shipped" / "models" / "rnn.py"


@pytest.mark.parametrize("path", ["models/nope.py", "configs/../models/nope.py", "pyproject.toml", "models"])
def test_find_shipped_when_missing_lists_what_is_shipped(elsewhere: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"these come with tfspark: .*configs/mnist_cnn\.yaml") as caught:
        find_shipped(path)
    assert "models/cnn.py" in str(caught.value)


def test_find_shipped_when_nothing_is_shipped_says_so(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "site-packages" / "tfspark" / "shipped.py"))
    with pytest.raises(ConfigError, match="these come with tfspark: nothing"):
        find_shipped("models/cnn.py")
