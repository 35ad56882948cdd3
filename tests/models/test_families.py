"""What the families of models have in common."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

from models import autoencoder, cnn, gan, rnn

FAMILIES = [cnn, rnn, autoencoder, gan]
CHECKS = ("param", "whole", "at_least_0", "above_0", "fraction", "choice", "flag", "shape", "read_params",
          "_unknown", "_is_whole", "_is_number", "_are")  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_check_of_parameters_when_in_several_files_is_the_same(name: str) -> None:
    # Each file stands alone, so that it can be copied; what they repeat must not drift apart.
    sources = {inspect.getsource(getattr(family, name)) for family in FAMILIES if hasattr(family, name)}
    assert len(sources) == 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_family_when_imported_needs_neither_spark_nor_tfspark(family: ModuleType) -> None:
    code = f"import sys, {family.__name__}; print({{'pyspark', 'tfspark'}} & {{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_parameter_when_declared_is_documented(family: ModuleType) -> None:
    text = family.Params.__doc__
    assert [name for name in family.Params.__dataclass_fields__ if f"\n        {name}: " not in text] == []
