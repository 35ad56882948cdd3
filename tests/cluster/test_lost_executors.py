"""Training on files when an executor is lost in mid-epoch and does not come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster.file_rows import FORMATS, NUM_ROWS, files
from cluster.programs import ALL_EXECUTORS_FIRST
from support.driver import run_driver
from support.processes import last_json
from support.standalone import StandaloneCluster

__all__ = ["files"]

PROGRAM = Path(__file__).with_name("lose_executors.py")
CONF = {"spark.sql.files.openCostInBytes": "1000", "spark.executor.cores": "1"}
"""Let Spark cut small files by the number of cores, as it cuts files of at least 4 MB for each core."""
CELLS = ("files:as-they-come:2:2", "files:ordered:2:2", "files:as-they-come:3:2", "files:ordered:2:1")
"""There are six executors at first. Each training loses one; the last two continue with one worker fewer."""
DEADLINE_S = 900.0


def check(stdout: str, kind: str, cells: tuple[str, ...]) -> None:
    """Check that each training continued in its epoch, and that its weights count each row once for each epoch."""
    told = last_json(stdout)
    assert [one["cell"] for one in told] == list(cells)
    for one in told:
        before, after = one["cuts"]
        assert (before != after) == (kind != "tfrecord"), "otherwise this test shows nothing"
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
    """Train with one worker, because `test_layout` trains with two; here the executor is really lost."""
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
    """Return the format of the files, and the cells: with these files, or with what Spark makes from their rows."""
    if rows in FORMATS:
        return rows, CELLS
    return "parquet", tuple(cell.replace("files", rows) for cell in CELLS)
