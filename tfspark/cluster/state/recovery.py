"""What a cluster needs to start a new incarnation: its checkpoints and its restart budget. Runs on the driver."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from tfspark.cluster.state.checkpoint_store import Checkpoint, CheckpointStore, newest_in
from tfspark.cluster.state.restarts import RestartBudget
from tfspark.errors import ConfigError

MAX_RESTARTS = 3
RESTART_WINDOW_S = 3600.0


class Recovery:
    """See the module's docstring.

    Args:
        budget: how many restarts are allowed.
        directory: where checkpoints are kept; None: in a temporary directory for the lifetime of the cluster.
        resume: the run directory of the run to resume.

    Raises:
        ConfigError: `resume` has no checkpoint, or there is no room for temporary files.
    """

    def __init__(
        self,
        budget: RestartBudget,
        directory: Path | None,
        resume: Path | None,
    ):
        self.budget = budget
        self.point = None if resume is None else newest_in(state_directory(resume))
        self._temporary = _temporary_directory() if directory is None else None
        if self._temporary is not None:
            weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        place = self._temporary or state_directory(directory or Path())
        self.store = CheckpointStore(place, self.point)

    def begin_with(self, num_parts: int) -> Checkpoint | None:
        """Return the checkpoint for an incarnation with `num_parts` parts; None: start at the beginning."""
        self.point = None if self.point is None else self.store.begin_at(self.point.redistributed(num_parts))
        return self.point

    def begin_anew(self) -> None:
        """Forget the checkpoints: from now on, another model is trained."""
        self.point = None
        self.store.forget_all()

    def close(self) -> None:
        """Remove files that only this run of the program needed."""
        self.store.drop_drafts()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _temporary_directory() -> Path:
    """Make a directory for the checkpoints of a cluster without a run directory.

    Raises:
        ConfigError: no directory for temporary files has room.
    """
    try:
        return Path(tempfile.mkdtemp(prefix="tfspark-state-"))
    except OSError as error:
        raise ConfigError(
            f"expected a directory for temporary files, where restarts find the state of a training, the system said: "
            f"{error.strerror or error}; make room there, set TMPDIR, pass log_dir, or do without by max_restarts=0"
        ) from None


def state_directory(run_directory: Path) -> Path:
    """Return the directory where a run keeps the checkpoints of its state."""
    return run_directory / "checkpoints"
