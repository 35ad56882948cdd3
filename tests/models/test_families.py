"""What the families of models have in common."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from models import autoencoder, cnn, gan, mlp, rnn, unet
from tfspark.experiment.config import load_config
from tfspark.experiment.modules import load_model_module

FAMILIES = [cnn, rnn, autoencoder, gan, mlp, unet]
CHECKS = ("param", "whole", "at_least_0", "above_0", "fraction", "choice", "flag", "shape", "read_params",
          "_unknown", "_is_whole", "_is_number", "_are", "_is_text")  # fmt: skip


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


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_when_shipped_builds_its_model(path: Path) -> None:
    experiment = load_config(path)
    features = list(experiment.data.features.values())
    params = dict(experiment.model.params)
    if len(features) == 1 and features[0].shape is not None:
        params.setdefault("input_shape", list(features[0].shape))
    if "categories" in params:
        params["vocabulary"] = {name: ["E", "F"] for name in params["categories"]}
    if params.get("inputs") == "text":  # what `adapt` finds in the data
        params["vocabulary"] = ["good", "bad"]
    if params.get("standardise"):
        params.update(mean=[0.0] * 30, std=[1.0] * 30)
    assert load_model_module(experiment.model.module).build_model(params).compiled
