"""The wheel as users install it: shipped experiments run from any folder, and there is no top-level `models`."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parent.parent
RUN_DEADLINE_S = 480


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(target),
            str(ROOT),
        ],
        check=True,
        timeout=120,
        capture_output=True,
    )
    return next(target.glob("tfspark-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_wheel_installs_only_tfspark_and_the_modules_that_spark_looks_for(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"tfspark", "pyspark_tfrecord.py", "pyspark_tfrecords.py"}


@pytest.mark.slow
def test_shipped_experiment_when_run_from_another_folder_trains(
    installed: Path, tmp_path: Path, spark: SparkSession
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 784), np.uint8)
    rows = [(bytearray(image.tobytes()), int(label)) for label, image in enumerate(images)]
    frame = spark.createDataFrame(
        [(image, label % 10) for image, label in rows], "image binary, label bigint"
    )
    frame.write.format("tfrecord").mode("append").save(str(tmp_path / "digits"))
    command = [sys.executable, "-m", "tfspark.cli", "run", "configs/mnist_cnn.yaml"]
    changes = [
        f"data.path={tmp_path}/digits",
        "train.epochs=1",
        "cluster.executors=1",
        "cluster.master=local[2]",
    ]
    options = [item for change in changes for item in ("--set", change)]
    # `-P` and PYTHONPATH: Python imports the files of the wheel instead of those of this checkout.
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYSPARK_PYTHON": sys.executable}
    done = subprocess.run(
        [*command[:1], "-P", *command[1:], *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = next((tmp_path / "runs").glob("mnist_cnn-*/results.json"))
    assert '"accuracy"' in results.read_text()
    shipped = next((tmp_path / "runs").glob("mnist_cnn-*/config.yaml")).read_text()
    assert "module: models/cnn.py" in shipped
