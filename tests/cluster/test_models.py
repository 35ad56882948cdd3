"""Two workers train models that have their own training step, their own targets or several outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.incarnations import plain_keras
from pyspark.sql import SparkSession
from pyspark.sql import functions as sf

from tfspark import Column, Columns, TFCluster
from tfspark.experiment.modules import load_model_module
from tfspark.protocol.settings import Hooks

CASES: dict[str, dict[str, Any]] = {
    "gan": {
        "module": "models/gan.py",
        "params": {
            "input_shape": [4, 4, 1],
            "filters": 2,
            "latent": 3,
            "conditional": True,
            "num_classes": 3,
        },
        "label": Column("label"),
        "metrics": {"generator_loss", "discriminator_loss", "real_score", "fake_score"},
        "files": {"export/generator.keras", "pictures/epoch-0001.png", "pictures/samples.png"},
        "optimizers": ["optimizer", "discriminator_optimizer"],
    },
    "variational autoencoder": {
        "module": "models/autoencoder.py",
        "params": {"input_shape": [4, 4, 1], "hidden": [5], "code": 2, "variational": True},
        "label": None,
        "metrics": {"loss", "mse", "mae"},
        "files": {"export/encoder.keras", "pictures/reconstructions.png", "pictures/latent_space.png"},
        "optimizers": ["optimizer"],
    },
    "several classes of an image": {
        "module": "models/cnn.py",
        "params": {
            "architecture": "simple",
            "input_shape": [4, 4, 1],
            "filters": 2,
            "num_classes": 3,
            "multi_label": True,
        },
        "label": Column("classes", shape=(3,)),
        "metrics": {"loss", "accuracy", "auc", "f1"},
        "files": {"pictures/saliency.png"},
        "optimizers": ["optimizer"],
    },
    "a class at every step of a series": {
        "module": "models/rnn.py",
        "params": {
            "inputs": "series",
            "input_shape": [4, 4],
            "units": 2,
            "num_classes": 3,
            "per_step": True,
            "skip": False,
        },
        "shape": (4, 4),
        "label": Column("steps", shape=(4,)),
        "metrics": {"loss", "accuracy"},
        "files": set(),
        "optimizers": ["optimizer"],
    },
}


SLOW = ("variational autoencoder", "a class at every step of a series")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, case in CASES.items()
    ],
)
def test_model_with_its_own_steps_or_outputs_when_trained_by_two_workers_is_complete(
    case: dict[str, Any], spark: SparkSession, tmp_path: Path
) -> None:
    module = load_model_module(case["module"])
    pixels = sf.array(*[sf.rand(seed).cast("float") for seed in range(16)])
    # 50 rows in batches of 8: the last step is filled up with rows of weight 0.
    label = sf.col("id") % 3
    images = (
        spark.range(50)
        .select(
            pixels.alias("image"),
            label.alias("label"),
            sf.array(*[(label == number).cast("float") for number in range(3)]).alias("classes"),
            sf.array(label, sf.lit(0), sf.lit(2), sf.lit(-1)).alias("steps"),
        )
        .persist()
    )
    columns = Columns((Column("image", shape=case.get("shape", (4, 4, 1))),), case["label"])
    hooks = Hooks(export=module.export, draw=module.draw, draw_epoch=module.draw_epoch)
    with TFCluster.run(
        spark,
        module.build_model,
        case["params"],
        2,
        log_dir=str(tmp_path),
        hooks=hooks,
        checkpoint_every_epochs=1,
    ) as cluster:
        history = cluster.train(images, 1, columns=columns, batch_size=8)
        # Only one of the two workers, whichever asks first, has rows to draw.
        metrics = cluster.evaluate(images.limit(3), num_classes=case["params"].get("num_classes"))
        nodes = cluster.shutdown(export=["keras", "saved_model"])
    images.unpersist()
    matrices, curves = metrics.pop("confusion_matrix", None), metrics.pop("roc", None)
    if case["params"].get("multi_label"):
        # One for each of three classes; each of the rows 0 to 2 has a different class.
        assert np.sum(matrices, axis=2).tolist() == [[2, 1]] * 3
        assert [(curve[0], curve[-1]) for curve in curves] == [([0, 0], [1, 1])] * 3
    else:
        assert matrices is curves is None
    assert set(history) == set(metrics) == case["metrics"]
    assert nodes["worker 0"]["weights_sha256"] == nodes["worker 1"]["weights_sha256"]
    steps = nodes["worker 0"]["iterations"]
    assert steps >= 7
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert case["files"] | {"export/saved_model", "checkpoints/epoch-0001.keras"} <= files
    for saved in ("export/model.keras", "checkpoints/epoch-0001.keras"):
        assert steps_of(tmp_path / saved, case) == dict.fromkeys(case["optimizers"], steps)


def steps_of(path: Path, case: dict[str, Any]) -> dict[str, int]:
    """Load the model in a process with plain Keras and the model module only; return the steps of its optimizers."""
    name = Path(case["module"]).stem
    code = (
        f"import json, keras, models.{name}; model = keras.models.load_model({str(path)!r});"
        f"print(json.dumps({{n: int(getattr(model, n).iterations) for n in {case['optimizers']}}}))"
    )
    return plain_keras(code)
