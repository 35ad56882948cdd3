"""Continue an interrupted run, in a new run directory. Runs on the driver, before Spark starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfspark.cluster.state.checkpoint_store import RESIZED, Checkpoint, check_same_run, newest_in
from tfspark.cluster.state.recovery import state_directory
from tfspark.errors import ConfigError
from tfspark.experiment.config import Experiment

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Earlier:
    """The run to continue.

    Attributes:
        directory: its run directory, which does not change.
        checkpoint: its newest complete checkpoint.
    """

    directory: Path
    checkpoint: Checkpoint

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """Its events of the epochs that are not trained again; the last one if an epoch was trained twice."""
        # Imported here, because it imports matplotlib: mistakes should be reported before that.
        from tfspark.experiment.report import METRICS_FILE, read_events

        if not (self.directory / METRICS_FILE).is_file():
            return []
        last = {
            (event["event"], event["epoch"]): event
            for event in read_events(self.directory)
            if event.get("event") in ("epoch", "validation") and event["epoch"] <= self.checkpoint.passes
        }
        return list(last.values())


def config_of(run_directory: Path) -> Path:
    """Return the file with a run's configuration.

    Raises:
        ConfigError: there is none.
    """
    found = run_directory / CONFIG_FILE
    if not found.is_file():
        what = "a directory without it" if run_directory.is_dir() else "no directory"
        raise ConfigError(
            f"expected a run directory with {CONFIG_FILE} to resume from, {run_directory} is {what}; pass --resume the "
            "directory that the run printed, such as runs/<name>-<timestamp>"
        )
    return found


def find_earlier(run_directory: Path, experiment: Experiment) -> Earlier:
    """Return the run to continue, if the experiment can continue it.

    Raises:
        ConfigError: there is no run in this directory, it has no checkpoint, or it is a different training.
    """
    if not run_directory.is_dir():
        config_of(run_directory)
    checkpoint = newest_in(state_directory(run_directory.absolute()))
    check_same_run(
        checkpoint,
        {
            "workers": experiment.num_workers,
            "parameter servers": experiment.cluster.ps,
            "seed": experiment.seed,
            "rows per worker and step": experiment.local_batch_size,
        },
        RESIZED if experiment.cluster.is_elastic else (),
    )
    _check_epochs(checkpoint, run_directory, experiment.train.epochs)
    return Earlier(run_directory.absolute(), checkpoint)


def _check_epochs(checkpoint: Checkpoint, run_directory: Path, epochs: int) -> None:
    trained = checkpoint.passes
    if epochs < trained or (checkpoint.finished and epochs > trained):
        state = "has ended its training" if checkpoint.finished else "has trained"
        asked = f"at least {trained}" if epochs < trained else f"{trained}"
        raise ConfigError(
            f"expected train.epochs to be {asked}, because {run_directory} {state} with {trained}, got {epochs}; set "
            "it to that, or start a new run without --resume"
        )
