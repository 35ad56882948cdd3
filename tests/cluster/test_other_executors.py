"""Training on files when an executor is lost in mid-epoch and does not come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster.test_layout import NUM_ROWS, files
from support.driver import run_driver

__all__ = ["files"]

PROGRAM = Path(__file__).with_name("lose_for_good.py")
CONF = {"spark.sql.files.openCostInBytes": "1000", "spark.executor.cores": "1"}
"""Small files are cut by the cores, as otherwise those of 4 MB for each core and more."""


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param("parquet any as-they-come 2 2"),
        pytest.param("parquet any ordered 2 2", marks=pytest.mark.slow),
        pytest.param("parquet any as-they-come 3 2", marks=pytest.mark.slow),
        pytest.param("parquet any ordered 3 2", marks=pytest.mark.slow),
        pytest.param("parquet ranges as-they-come 2 2", marks=pytest.mark.slow),
        pytest.param("csv any as-they-come 2 2", marks=pytest.mark.slow),
        pytest.param("csv any ordered 3 2", marks=pytest.mark.slow),
        pytest.param("json any as-they-come 3 2", marks=pytest.mark.slow),
        pytest.param("tfrecord any as-they-come 2 2", marks=pytest.mark.slow),
        pytest.param("tfrecord any ordered 2 2", marks=pytest.mark.slow),
    ],
)
def test_each_row_is_trained_on_once_per_epoch_when_an_executor_does_not_come_back(
    files: Path, tmp_path: Path, cell: str
) -> None:
    """The weights count the rows."""
    kind, plan, order, workers, least = cell.split()
    (tmp_path / kind).symlink_to(files / kind)
    words = (str(tmp_path), kind, plan, order, workers, least)
    result = run_driver("local-cluster[4,1,1024]", PROGRAM, *words, conf=CONF, timeout_s=420).check()
    told = json.loads(result.stdout.splitlines()[-1])
    (before, after) = told["cuts"]
    assert (before != after) == (kind != "tfrecord"), "else nothing is tried here"
    (resumed,) = told["resumed"]
    assert (resumed["epoch"], resumed["step"] > 0, told["differ"]) == (1, True, [])
    assert told["weights"] == [[round(2 / 30, 4), NUM_ROWS]]
