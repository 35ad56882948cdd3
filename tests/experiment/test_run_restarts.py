"""``tfspark run`` continues after the loss of a process; ``tfspark run --resume`` continues an interrupted run."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment.runs import (
    BATCH,
    MODEL,
    NUM_ROWS,
    disturb_run,
    experiment,
    interrupt_run,
    kill_a_trainer,
    logged,
    run_directory,
    tfspark_resume,
    tfspark_run,
)
from support.disks import small_disk

from tfspark.cli import app

WRONG_CONFIGURATION = 2


SLOW_AT_FIRST = """

def callbacks(params):
    import time
    import keras

    class SlowAtFirst(keras.callbacks.Callback):
        def __init__(self, patience):
            super().__init__()
            self.patience, self.epochs = patience, 0

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1
            rate = float(self.model.optimizer.learning_rate.numpy())
            print(f"epoch {self.epochs} at rate {rate:g}, patience {self.patience}", flush=True)

        def on_train_begin(self, logs=None):
            # Attributes with an underscore are not part of the saved state.
            self._seconds = 0 if self.model.optimizer.iterations.numpy() else 0.08

        def on_train_batch_end(self, batch, logs=None):
            time.sleep(self._seconds)

    return [SlowAtFirst(params["patience"])]
"""
"""Before the run is resumed, an epoch takes longer than the interval between two meetings of the workers.

The callback prints its counter and its parameter.
"""


def events_of(run: Path, name: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == name]


def test_run_when_a_trainer_is_killed_continues_and_trains_every_epoch_once(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    config = experiment(epochs=8, executors=2)

    ended = disturb_run(tmp_path, config, logged(r"epoch [2-7]/8 +step \d"), kill_a_trainer)

    assert (ended.returncode, ended.survivors) == (0, []), ended.stdout + ended.stderr
    assert "restart 1: worker " in ended.stdout
    assert "killed by SIGKILL" in ended.stdout
    assert "all nodes are started again now" in ended.stdout
    run = run_directory(tmp_path)
    resumed = re.search(r"resumed: continues in epoch (\d)/8(?: after step (\d+))?", ended.stdout)
    assert resumed
    shown = re.findall(
        rf"epoch {resumed[1]}/8 +step (\d+)", (run / "run.log").read_text().split("resumed")[1]
    )
    assert all(int(step) > int(resumed[2] or 0) for step in shown), (
        "the numbers of the steps continue after the checkpoint"
    )
    results = json.loads((run / "results.json").read_text())
    assert results["restarts"] == len(events_of(run, "restart")) == len(events_of(run, "resumed")) == 1
    assert {event["epoch"] for event in events_of(run, "epoch")} == set(range(1, 9))
    assert {event["rows"] for event in events_of(run, "epoch")} == {NUM_ROWS}
    for node in results["nodes"].values():
        assert len(node["history"]["loss"]) == len(node["rows"]) == 8
    assert sum(sum(node["rows"]) for node in results["nodes"].values()) == 8 * NUM_ROWS


def test_run_when_interrupted_and_resumed_trains_the_remaining_steps(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL + SLOW_AT_FIRST)
    config = experiment(epochs=500) | {"checkpoint": {"every_seconds": 3600}}
    config["model"]["params"], config["train"]["learning_rate"] = {"patience": 2}, 0.002
    config["data"]["shuffle"] = True
    interrupted = interrupt_run(tmp_path, config, logged("epoch 2/.* step"), signal.SIGINT)
    assert interrupted.returncode == 128 + signal.SIGINT
    first = run_directory(tmp_path)
    kept = sorted(first.rglob("state-*/*"))
    manifests = [json.loads(path.read_text()) for path in kept if path.name == "manifest.json"]
    assert any(manifest["steps"] for manifest in manifests), (
        f"expected a checkpoint saved at the interrupt: {interrupted.stdout}"
    )
    epochs = events_of(first, "epoch")[-1]["epoch"] + 2

    # Spark must split the rows as before, although it has more cores now. Otherwise the epoch would start again.
    changes = [
        *(f"train.epochs={epochs}", "train.learning_rate=0.001", "model.params.patience=20"),
        "cluster.master=local[6]",
    ]
    settings = [word for change in changes for word in ("--set", change)]
    resumed = tfspark_resume(tmp_path, first, *settings).check()

    assert re.search(r"resumed: continues in epoch \d+/\d+ after step \d+", resumed.stdout), resumed.stdout
    (second,) = set((tmp_path / "runs").iterdir()) - {first}
    results = json.loads((second / "results.json").read_text())
    node = results["nodes"]["worker 0"]
    assert node["iterations"] == epochs * NUM_ROWS // BATCH
    assert node["rows"] == [NUM_ROWS] * epochs
    told = events_of(second, "epoch")
    assert [event["epoch"] for event in told] == list(range(1, epochs + 1))
    assert [event["loss"] for event in told] == node["history"]["loss"]
    assert results["resumed_from"] == str(first)
    assert "epoch 1 at rate 0.002, patience 2\n" in (first / "logs/worker-0.log").read_text()
    said = (second / "logs/worker-0.log").read_text()
    assert f"epoch {epochs} at rate 0.001, patience 20\n" in said, said
    assert "at rate 0.002" not in said
    assert sorted(first.rglob("state-*/*")) == kept, (
        "a resumed run must not remove the checkpoints of the earlier run"
    )

    again = tfspark_resume(tmp_path, second).check()

    assert f"resumed: all {epochs} epochs are trained" in again.stdout
    (third,) = set((tmp_path / "runs").iterdir()) - {first, second}
    digests = [
        json.loads((run / "results.json").read_text())["nodes"]["worker 0"]["weights_sha256"]
        for run in (second, third)
    ]
    assert digests[0] == digests[1]


def test_run_when_a_checkpoint_cannot_be_saved_warns_and_continues(tmp_path: Path) -> None:
    in_the_way = f"""
    import glob, os

    (run,) = glob.glob("{tmp_path}/runs/*")
    os.makedirs(run + "/checkpoints", exist_ok=True)
    open(run + "/checkpoints/.state-000001", "w").close()
    """
    (tmp_path / "model.py").write_text(
        MODEL.replace("import keras", in_the_way.strip() + "\n    import keras")
    )

    ended = tfspark_run(tmp_path, experiment(epochs=2)).check()

    run = run_directory(tmp_path)
    assert ended.stdout.count("warning: a checkpoint could not be kept (File exists: ") == 1
    assert [event["epoch"] for event in events_of(run, "epoch")] == [1, 2]
    assert len(events_of(run, "state_not_kept")) == 1
    assert len(list((run / "checkpoints").glob("state-*"))) == 2


FILLS_THE_DISK = """

def fill(folder):
    try:
        with open(folder + "/ballast", "ab", buffering=0) as ballast:
            while True:
                ballast.write(bytes(512))
    except OSError:
        print("full" * 2000, flush=True)


def callbacks(params):
    import keras

    class FillsTheDisk(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                fill(params["runs"])

    return [FillsTheDisk()]


def draw_epoch(model, epoch, directory):
    with open(f"{directory}/epoch-{epoch}.txt", "w") as picture:
        picture.write("a picture" * 1000)
"""


@contextlib.contextmanager
def staying_full(disk: Path) -> Iterator[None]:
    """Keep the disk full after the run has filled it: removing an incomplete checkpoint, for example, frees room."""
    over = threading.Event()
    ballast = disk / "ballast"

    def fill() -> None:
        while not over.wait(0.02):
            if ballast.exists():
                with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                    while file.write(bytes(512)):
                        pass

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_run_whose_disk_fills_up_trains_to_the_end_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL + FILLS_THE_DISK)
    config = experiment(epochs=4) | {"output": {"dir": str(tmp_path / "disk")}}
    config["data"] |= {"test": 0.2}
    config["model"]["params"] = {"runs": str(tmp_path / "disk")}

    with small_disk(tmp_path / "disk", "size=1m") as disk, staying_full(disk):
        ended = tfspark_run(tmp_path, config, "--worker-logs")
        (run,) = (tmp_path / "disk").glob("lost-*")
        kept = {path.relative_to(run).parts[0] for path in run.rglob("*")}

    said = ended.stdout + ended.stderr
    assert (ended.returncode, ended.survivors) == (WRONG_CONFIGURATION, ()), said
    no_room = "No space left on device"
    assert "epoch 4/4 " in ended.stdout, said
    assert f"a checkpoint could not be kept ({no_room}" in ended.stdout
    assert f"run.log lacks lines from here on: {no_room}" in ended.stdout
    for name in ("checkpoints/epoch-0004.keras", "pictures/epoch-4.txt"):
        assert f"{name} could not be kept: {no_room}" in said
    assert f"some results are missing in the run directory: {no_room}" in said
    assert "accuracy" in ended.stdout.split("epoch 4/4 ")[1], "the table of results is shown"
    assert (
        f"error: expected to write into the run directory {run}, the system said: {no_room}" in ended.stderr
    )
    assert {"config.yaml", "versions.json", "run.log", "metrics.jsonl", "checkpoints", "pictures"} <= kept


# --- refused before Spark starts -------------------------------------------------------------------

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Return a function that runs a command which is refused, and returns the message."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            app(["run", *arguments])
        err = capfd.readouterr().err
        assert ended.value.code == WRONG_CONFIGURATION, err
        assert err.startswith("error: expected ")
        assert not Path("runs").exists()
        return err

    return start


def write_earlier_run(passes: int = 3, finished: bool = False, seed: int = 42) -> Path:
    """Write the configuration and a checkpoint of an earlier run; return its directory."""
    state = Path("earlier/checkpoints/state-000003")
    state.mkdir(parents=True)
    Path("earlier/config.yaml").write_text(yaml.safe_dump(experiment(epochs=9), sort_keys=False))
    run = {"workers": 1, "parameter servers": 0, "seed": seed, "rows per worker and step": BATCH}
    manifest = {
        "format": 6, "passes": passes, "steps": 0, "call": 0, "finished": finished, "rows": [0], "used": {},
        "layout": {}, "sizes": {}, "batch_rows": 0,
        "run": run, "model": [], "files": {},
    }  # fmt: skip
    (state / "manifest.json").write_text(json.dumps(manifest))
    return Path("earlier")


def test_run_without_room_for_its_first_files_says_so(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    config = experiment(epochs=1) | {"output": {"dir": str(tmp_path / "disk")}}
    Path("experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with small_disk(tmp_path / "disk", "size=4k") as disk:
        (disk / "ballast").write_bytes(bytes(4096))
        err = refused("experiment.yaml")
    assert f"expected to write into the run directory {disk}/lost-" in err
    assert "No space left on device; make room there, or set output.dir" in err


def test_run_without_configuration_and_resume_says_what_to_type(refused: Refused) -> None:
    err = refused()
    assert "a YAML experiment or --resume with a run directory, got neither" in err
    assert "tfspark run experiment.yaml" in err


def test_resume_when_the_directory_is_not_there_says_so(refused: Refused) -> None:
    err = refused("--resume", "runs/nowhere")
    assert "config.yaml to resume from, runs/nowhere is no directory" in err
    assert "pass --resume the directory that the run printed" in err


def test_resume_when_the_directory_has_no_configuration_says_so(refused: Refused, tmp_path: Path) -> None:
    assert f"{tmp_path} is a directory without it" in refused("--resume", str(tmp_path))


@pytest.mark.parametrize("with_config", [False, True])
def test_resume_when_there_is_no_checkpoint_says_where_it_looked(refused: Refused, with_config: bool) -> None:
    Path("empty").mkdir()
    text = yaml.safe_dump(experiment(epochs=2), sort_keys=False)
    (Path("experiment.yaml") if with_config else Path("empty/config.yaml")).write_text(text)
    err = refused(*(["experiment.yaml"] if with_config else []), "--resume", "empty")
    assert f"a checkpoint state-NNNNNN to resume from in {Path.cwd()}/empty/checkpoints, found none" in err


def test_resume_when_a_file_of_the_checkpoint_is_missing_says_which(refused: Refused) -> None:
    manifest = write_earlier_run() / "checkpoints/state-000003/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "files": {"part-0000.npz": "0"}}))
    assert "state-000003: part-0000.npz is missing or damaged" in refused("--resume", "earlier")


@pytest.mark.parametrize(
    ("finished", "option", "parts"),
    [
        pytest.param(
            False, "train.epochs=2",
            ["train.epochs to be at least 3", "earlier has trained with 3, got 2", "a new run"], id="fewer epochs",
        ),
        pytest.param(
            True, "train.epochs=4",
            ["train.epochs to be 3", "earlier has ended its training with 3, got 4"],
            id="more epochs after the end of the training",
        ),
        pytest.param(False, "seed=7", ["seed 7, it has 42", "resume with the same"], id="new seed"),
        pytest.param(False, "data.batch_size=25", ["rows per worker and step 25, it has 20"], id="new batch size"),
        pytest.param(False, "cluster.executors=2", ["workers 2, it has 1"], id="more workers"),
    ],
)  # fmt: skip
def test_resume_when_the_training_is_different_says_what_differs(
    refused: Refused, finished: bool, option: str, parts: list[str]
) -> None:
    write_earlier_run(finished=finished)
    err = refused("--resume", "earlier", "--set", option)
    assert [part for part in parts if part not in err] == [], err
