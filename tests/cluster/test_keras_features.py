"""Features of Keras on a real cluster: weights of rows, callbacks that write, validation in a `main_fun`.

`tests/conformance` compares what each feature computes with plain Keras; here the rows come from Spark.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.incarnations import leaving_nothing, plain_keras
from cluster.keras_programs import fits_by_steps, fits_with_validation, weighted_model, writers
from pyspark.sql import DataFrame, SparkSession
from support.environment import TESTS
from support.leaks import Owned

from tfspark import Feeding, TFCluster
from tfspark.errors import ConfigError
from tfspark.protocol.settings import Hooks

ROWS, BATCH, EPOCHS = 48, 16, 2
CLASS_WEIGHTS = {0: 1.0, 2: 3.0}

PLAIN = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from cluster.keras_programs import weighted_model
rows = np.load(sys.argv[2])
model = weighted_model({})
weights = rows["w"] * np.array([1.0, 1.0, 3.0])[rows["y"].argmax(1)]
history = model.fit(rows["x"], rows["y"], sample_weight=weights, batch_size=16, epochs=2, shuffle=False, verbose=0)
tests = model.evaluate(rows["x"], rows["y"], sample_weight=rows["w"], verbose=0, return_dict=True)
as_list = lambda value: np.asarray(value, float).tolist()
print(json.dumps({
    "history": {name: as_list(value) for name, value in history.history.items()},
    "tests": {name: as_list(value) for name, value in tests.items()},
}))
"""


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    return {
        "x": x,
        "y": np.eye(3, dtype=np.float32)[x[:, :3].argmax(1)],
        "w": rng.choice([0.0, 0.5, 1.0, 4.0], ROWS).astype(np.float32),
    }


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    made = arrays()
    data = [(made["x"][i].tolist(), made["y"][i].tolist(), float(made["w"][i])) for i in range(ROWS)]
    return spark.createDataFrame(data, "x array<float>, label array<float>, w float").coalesce(1).persist()


@pytest.fixture(scope="module")
def trained(
    spark: SparkSession, owned: Owned, rows: DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Let two workers train on weighted rows, with callbacks that write files."""
    folder = tmp_path_factory.mktemp("written")
    refused = {}
    with leaving_nothing(spark, owned):
        cluster = TFCluster.run(
            spark, weighted_model, {"folder": str(folder)}, 2, hooks=Hooks(callbacks=writers), max_restarts=0
        )
        with cluster:
            for weight in ("ww", "text"):
                with pytest.raises(ConfigError) as caught:
                    cluster.train(rows.selectExpr("*", "'1' AS text"), weight=weight, label="label")
                refused[weight] = str(caught.value)
            history = cluster.train(
                rows, EPOCHS, features=["x"], weight="w", class_weights=CLASS_WEIGHTS, batch_size=BATCH,
                feeding=Feeding(ordered=True), validation=rows,
            )  # fmt: skip
            tests = cluster.evaluate(rows)
            cluster.shutdown()
    return {"history": history, "tests": tests, "folder": folder, "refused": refused}


def test_weight_of_a_row_is_its_weight_column_times_the_weight_of_its_class(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays())
    plain = plain_keras(PLAIN, TESTS, tmp_path / "rows.npz")

    for name, values in plain["history"].items():
        np.testing.assert_allclose(trained["history"][name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    for name, value in plain["tests"].items():
        np.testing.assert_allclose(trained["tests"][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(trained["history"][f"val_{name}"][-1], value, rtol=1e-4, atol=1e-5)


def test_weight_column_that_is_missing_or_has_no_numbers_is_refused(trained: dict[str, Any]) -> None:
    assert "expected a column 'ww'" in trained["refused"]["ww"]
    assert "expected numbers in the weight column 'text' (weight=, data.weight)" in trained["refused"]["text"]


def test_callbacks_write_their_files_once(trained: dict[str, Any]) -> None:
    folder = trained["folder"]
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + EPOCHS
    assert len(list((folder / "board" / "train").iterdir())) == 1
    assert (folder / "best.keras").stat().st_size > 0
    assert json.loads((folder / "backup" / "training_metadata.json").read_text())["epoch"] == EPOCHS
    assert sorted(path.name for path in (folder / "backup").iterdir()) == [
        "latest.weights.h5",
        "training_metadata.json",
    ]


def test_main_fun_validates_on_rows_of_spark_and_continues_from_the_backup_of_the_chief(
    spark: SparkSession, rows: DataFrame, tmp_path: Path
) -> None:
    args = {"folder": str(tmp_path / "backup")}
    with TFCluster.run(spark, fits_with_validation, args, 2) as cluster:
        cluster.train(
            rows,
            2,
            features=["x"],
            weight="w",
            batch_size=BATCH,
            validation=rows,
            feeding=Feeding(ordered=True),
        )
        told = cluster.shutdown()

    assert told["worker 0"] == told["worker 1"]
    (loss,), (val_loss,), steps = told["worker 0"]["first"]
    assert steps == ROWS // BATCH
    (later,), (val_later,), steps = told["worker 0"]["second"]
    assert steps == 2 * ROWS // BATCH, "the second fit begins with the second epoch"
    assert later < loss
    assert val_later < val_loss < loss


@pytest.mark.parametrize(
    ("epochs", "steps", "passes"),
    [
        pytest.param(3, 4, 3, id="an epoch is a pass"),
        pytest.param(4, 2, 2, id="a pass is two epochs"),
        pytest.param(2, 6, 3, id="an epoch is a pass and a half"),
    ],
)
def test_steps_per_epoch_continue_over_the_rows_of_all_passes(
    spark: SparkSession, epochs: int, steps: int, passes: int
) -> None:
    df = spark.range(64).selectExpr("array(id) AS x", "float(0) AS label").coalesce(1)
    with TFCluster.run(spark, fits_by_steps, {"epochs": epochs, "steps": steps}, 2) as cluster:
        cluster.train(df, passes, batch_size=16, feeding=Feeding(ordered=True))
        nodes = cluster.shutdown(timeout=120)
    assert nodes["worker 0"] == {"iterations": epochs * steps, "epochs": epochs, "counts": [float(passes)]}
