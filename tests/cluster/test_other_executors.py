"""Training on files when an executor is lost in mid-epoch and does not come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster.file_rows import FORMATS, NUM_ROWS, files
from cluster.programs import ALL_EXECUTORS_FIRST
from support.driver import run_driver
from support.standalone import StandaloneCluster

__all__ = ["files"]

PROGRAM = Path(__file__).with_name("lose_for_good.py")
CONF = {"spark.sql.files.openCostInBytes": "1000", "spark.executor.cores": "1"}
"""Small files are cut by the cores, as otherwise those of 4 MB for each core and more."""
CELLS = ("files:as-they-come:2:2", "files:ordered:2:2", "files:as-they-come:3:2", "files:ordered:2:1")
"""Each loses one of the executors, of which there are six at first; the last two go on with a worker fewer."""
DEADLINE_S = 900.0


def check(stdout: str, kind: str, cells: tuple[str, ...]) -> None:
    """Check that each training went on in its epoch, and that its weights count each row once for each epoch."""
    told = json.loads(stdout.splitlines()[-1])
    assert [one["cell"] for one in told] == list(cells)
    for one in told:
        before, after = one["cuts"]
        assert (before != after) == (kind != "tfrecord"), "else nothing is tried here"
        (resumed,) = one["resumed"]
        assert (resumed["epoch"], resumed["step"] > 0, one["differ"]) == (1, True, []), one
        *_, wanted, least = one["cell"].split(":")
        most = int(wanted)
        # With another executor, which a standalone master may start, there may be room for all workers again.
        sizes = [[most, most - 1], *([[most, most]] if one["came_back"] else [])]
        assert one["workers"] in ([[]] if wanted == least else sizes), one
        assert one["weights"] == [[2.0, NUM_ROWS]], one["cell"]


def lose_on_local_cluster(place: Path, kind: str, executors: int, cells: tuple[str, ...]) -> None:
    master = f"local-cluster[{executors},1,1024]"
    words = (str(place), kind, "executor", *cells)
    result = run_driver(master, PROGRAM, *words, conf=CONF, timeout_s=DEADLINE_S).check()
    check(result.stdout, kind, cells)


def test_each_row_is_trained_on_once_per_epoch_when_an_executor_does_not_come_back(
    files: Path, tmp_path: Path
) -> None:
    """One worker, since two are shown in `test_layout`; the executor is really lost here."""
    (tmp_path / "parquet").symlink_to(files / "parquet")
    lose_on_local_cluster(tmp_path, "parquet", 3, ("files:as-they-come:1:1",))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [*FORMATS, "ranges", "numbers"])
def test_each_row_is_trained_on_once_per_epoch_when_executors_are_lost_one_after_the_other(
    files: Path, tmp_path: Path, kind: str
) -> None:
    kind, cells = kind_and_cells(kind)
    (tmp_path / kind).symlink_to(files / kind)
    lose_on_local_cluster(tmp_path, kind, 6, cells)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", [*FORMATS, "ranges", "numbers"])
def test_each_row_is_trained_on_once_per_epoch_when_worker_daemons_are_lost_one_after_the_other(
    files: Path, tmp_path: Path, kind: str
) -> None:
    kind, cells = kind_and_cells(kind)
    (tmp_path / kind).symlink_to(files / kind)
    with StandaloneCluster(tmp_path / "cluster", num_workers=6, cores=1, memory="1g") as cluster:
        words = (str(tmp_path), kind, "daemon", *cells)
        conf = CONF | ALL_EXECUTORS_FIRST
        result = cluster.submit(PROGRAM, *words, timeout_s=DEADLINE_S, conf=conf).check()
    check(result.stdout, kind, cells)


def kind_and_cells(rows: str) -> tuple[str, tuple[str, ...]]:
    """Return the format of the files, and the cells: of these files, or of what Spark makes of their rows."""
    if rows in FORMATS:
        return rows, CELLS
    return "parquet", tuple(cell.replace("files", rows) for cell in CELLS)
