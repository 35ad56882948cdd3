"""Full disks, at each file that the driver writes: the message names the file, and the run continues if it can."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from experiment.runs import MODEL, experiment
from pyspark.sql import SparkSession
from rich.console import Console
from support.disks import small_disk
from support.errors import raises
from support.rows import df_with_partitions
from typer.testing import CliRunner

from tfspark import InputMode, TFCluster
from tfspark.cli import app
from tfspark.errors import ConfigError, TfsparkError
from tfspark.experiment.console import RunConsole
from tfspark.experiment.run import _Watch
from tfspark.experiment.rundir import RunDirectory
from tfspark.experiment.use import write_results

NO_ROOM = "No space left on device"


@pytest.mark.parametrize(
    ("room", "said"),
    [
        # The root directory of the disk takes one inode.
        pytest.param("nr_inodes=1", "expected to make the run directory", id="run directory"),
        pytest.param("nr_inodes=2", "expected to write into the run directory", id="config.yaml"),
        pytest.param("nr_inodes=3", "expected to write into the run directory", id="versions.json"),
        pytest.param("nr_inodes=4", "expected to write into the run directory", id="run.log"),
    ],
)
def test_run_without_room_for_its_first_files_is_refused_before_spark_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    Path("e.yaml").write_text(json.dumps(experiment(1) | {"output": {"dir": str(tmp_path / "disk")}}))
    with small_disk(tmp_path / "disk", room) as disk:
        ended = CliRunner().invoke(app, ["run", "e.yaml"])
        written = sorted(path.name for path in disk.rglob("*") if path.is_file() and path.stat().st_size)
    assert ended.exit_code == 2, ended.output
    assert said in ended.output
    assert NO_ROOM in ended.output
    assert written == ["config.yaml", "versions.json"][: max(0, int(room[-1]) - 2)]


def watch_of(directory: RunDirectory) -> _Watch:
    return _Watch(RunConsole(Console(file=io.StringIO()), io.StringIO(), 3), directory, 3)


EPOCH: dict[str, Any] = {"seconds": 1.0, "rows_fed": 20, "steps": 1, "rows": 20, "metrics": {"loss": 0.5}}


def test_curves_on_a_full_disk_give_one_warning_and_continue_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = RunDirectory(tmp_path, "x")
    watch = watch_of(directory)
    with (
        small_disk(directory.path / "tensorboard", "size=4k") as disk,
        caplog.at_level(logging.WARNING, "tfspark"),
    ):
        (disk / "ballast").write_bytes(bytes(4096))
        for epoch in (1, 2):
            watch("epoch", {**EPOCH, "epoch": epoch})
        (disk / "ballast").unlink()
        watch("epoch", {**EPOCH, "epoch": 3})
        (curves,) = disk.glob("events.*")
        assert curves.stat().st_size > 0
    assert caplog.text.count(f"some results are missing in the run directory: {NO_ROOM}") == 1
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_logs_of_nodes_on_a_full_disk_give_one_warning_and_still_reach_the_observer(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []

    def observer(event: str, fields: Any) -> None:
        lines.extend(fields["lines"] if event == "log" else ())

    with small_disk(tmp_path / "logs", "size=4k") as disk, caplog.at_level(logging.WARNING, "tfspark"):
        (disk / "ballast").write_bytes(bytes(4096))
        cluster = TFCluster.run(
            spark,
            speak,
            None,
            input_mode=InputMode.TENSORFLOW,
            log_dir=str(tmp_path),
            observer=observer,
        )
        assert cluster.shutdown() == {"worker 0": "spoken"}
    assert f"lines of worker 0 could not be kept in {disk}: {NO_ROOM}" in caplog.text
    assert caplog.text.count("could not be kept") == 1
    assert "line 99" in lines


def speak(args: Any, ctx: Any) -> str:
    """Print 100 lines."""
    del args, ctx
    for number in range(100):
        os.write(1, f"line {number}\n".encode())
    return "spoken"


def wide(params: Any) -> keras.Model:
    """Return a model of about 800 KB."""
    import keras

    del params
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(50_000, use_bias=False), keras.layers.Dense(2, use_bias=False)]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize(
    "formats",
    [["keras"], pytest.param(["saved_model"], marks=pytest.mark.slow)],
    ids=lambda formats: formats[0],
)
def test_export_on_a_full_disk_raises_an_error_that_names_the_directory_and_leaves_no_file(
    spark: SparkSession, tmp_path: Path, formats: list[str]
) -> None:
    with small_disk(tmp_path / "disk", "size=400k") as disk:
        cluster = TFCluster.run(spark, wide, None, log_dir=str(disk), max_restarts=0)
        cluster.train(df_with_partitions(spark, [32]), features=["features"])
        with pytest.raises(TfsparkError) as told:
            cluster.shutdown(export=formats)
        left = [path for path in disk.rglob("*") if path.is_file() and "logs" not in path.parts]
    assert str(told.value).startswith(
        f"expected to keep export in the run directory {disk}, the driver's system said: {NO_ROOM}"
    )
    assert left == []


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda place: write_results(place, {"loss": 0.5}, []), id="results of an evaluation"),
        pytest.param(lambda place: RunDirectory(place, "x").add_metrics("epoch", loss=0.5), id="metrics"),
    ],
)
def test_command_on_a_full_disk_prints_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any]
) -> None:
    with small_disk(tmp_path / "disk", "nr_inodes=1") as disk:
        monkeypatch.setattr("tfspark.experiment.use.evaluate_files", lambda *given: write(disk))
        ended = CliRunner().invoke(app, ["evaluate", "run", "--data", "rows"])
    assert ended.exit_code in (1, 2), ended.output
    assert NO_ROOM in ended.output


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, NO_ROOM), OSError(5, "EIO")]
)
def test_run_whose_output_cannot_be_written_continues_and_keeps_its_log(error: OSError) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    log = io.StringIO()
    shown = RunConsole(Console(file=Gone()), log, 3)
    shown.line("one")
    shown.step({**EPOCH, "epoch": 1})
    shown.line("two")
    assert [line.partition(" ")[2] for line in log.getvalue().splitlines()][::2] == ["one", "two"]


def test_cluster_without_room_for_temporary_files_is_refused(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", "nr_inodes=1") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        with raises(ConfigError, "expected a directory for temporary files", NO_ROOM, "pass log_dir"):
            TFCluster.run(spark, lambda args: None, {}, 1, warm=False)
