"""What must hold for every family of models."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from models import autoencoder, cnn, gan, mlp, rnn, unet
from tfspark import parameters
from tfspark.experiment.config import load_config
from tfspark.experiment.modules import load_model_module

FAMILIES = [cnn, rnn, autoencoder, gan, mlp, unet]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_family_when_imported_needs_no_spark_and_one_file_of_tfspark(family: ModuleType) -> None:
    loaded = "sorted(name for name in sys.modules if name.startswith(('pyspark', 'tfspark')))"
    code = f"import sys, {family.__name__}; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tfspark', 'tfspark.parameters']"


def test_family_when_copied_with_parameters_beside_it_runs_without_tfspark(tmp_path: Path) -> None:
    # docs/models.md recommends this where tfspark is not installed.
    source = Path(cnn.__file__).read_text(encoding="utf-8")
    copy = source.replace("from tfspark.parameters import", "from parameters import")
    (tmp_path / "mine.py").write_text(copy, encoding="utf-8")
    shutil.copy(parameters.__file__, tmp_path)
    code = "import sys, mine; print(mine.build_model({'filters': 2}).compiled, 'tfspark' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True False"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_parameter_is_documented(family: ModuleType) -> None:
    text = family.Params.__doc__
    assert [name for name in family.Params.__dataclass_fields__ if f"\n        {name}: " not in text] == []


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiment_builds_its_model(path: Path) -> None:
    experiment = load_config(path)
    features = list(experiment.data.features.values())
    params = dict(experiment.model.params)
    if len(features) == 1 and features[0].shape is not None:
        params.setdefault("input_shape", list(features[0].shape))
    if "categories" in params:
        params["vocabulary"] = {name: ["E", "F"] for name in params["categories"]}
    if params.get("inputs") == "text":  # `adapt` would find these in the data
        params["vocabulary"] = ["good", "bad"]
    if params.get("standardise"):
        params.update(mean=[0.0] * 30, std=[1.0] * 30)
    assert load_model_module(experiment.model.module).build_model(params).compiled
