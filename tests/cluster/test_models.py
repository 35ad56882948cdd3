"""Models with a training step of their own, or that are their own target, trained by two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cluster.lives import plain_keras
from pyspark.sql import SparkSession
from pyspark.sql import functions as sf

from tfspark import Column, Columns, TFCluster
from tfspark.cluster.context import Hooks
from tfspark.experiment.modules import load_model_module

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
        "label": "label",
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
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_model_of_its_own_kind_when_trained_by_two_workers_is_whole(
    case: dict[str, Any], spark: SparkSession, tmp_path: Path
) -> None:
    module = load_model_module(case["module"])
    pixels = sf.array(*[sf.rand(seed).cast("float") for seed in range(16)])
    # 50 rows by 8: the last step is filled up with rows of weight 0.
    images = spark.range(50).select(pixels.alias("image"), (sf.col("id") % 3).alias("label")).persist()
    columns = Columns((Column("image", shape=(4, 4, 1)),), case["label"] and Column(case["label"]))
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
        metrics = cluster.evaluate(images.limit(3))
        nodes = cluster.shutdown(export=["keras", "saved_model"])
    images.unpersist()
    assert set(history) == set(metrics) == case["metrics"]
    assert nodes["worker 0"]["weights_sha256"] == nodes["worker 1"]["weights_sha256"]
    steps = nodes["worker 0"]["iterations"]
    assert steps >= 7
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert case["files"] | {"export/saved_model", "checkpoints/epoch-0001.keras"} <= files
    for saved in ("export/model.keras", "checkpoints/epoch-0001.keras"):
        assert steps_of(tmp_path / saved, case) == dict.fromkeys(case["optimizers"], steps)


def steps_of(path: Path, case: dict[str, Any]) -> dict[str, int]:
    """Load the model in a process that knows plain Keras and the module only; return its optimizers' steps."""
    name = Path(case["module"]).stem
    code = (
        f"import json, keras, models.{name}; model = keras.models.load_model({str(path)!r});"
        f"print(json.dumps({{n: int(getattr(model, n).iterations) for n in {case['optimizers']}}}))"
    )
    return plain_keras(code)
