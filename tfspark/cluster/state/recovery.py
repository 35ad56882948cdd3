"""What a cluster needs to start a new incarnation: its checkpoints and its restart budget. Runs on the driver."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from tfspark.cluster.state.checkpoint_store import Checkpoint, CheckpointStore, newest_in
from tfspark.cluster.state.restarts import RestartBudget

MAX_RESTARTS = 3
RESTART_WINDOW_S = 3600.0


class Recovery:
    """See the module's docstring.

    Args:
        budget: how many restarts are allowed.
        directory: where checkpoints are kept; None: in a temporary directory for the lifetime of the cluster.
        resume: the run directory of the run to resume.

    Raises:
        ConfigError: `resume` has no checkpoint.
    """

    def __init__(
        self,
        budget: RestartBudget,
        directory: Path | None,
        resume: Path | None,
    ):
        self.budget = budget
        self.point = None if resume is None else newest_in(state_directory(resume))
        self._temporary = Path(tempfile.mkdtemp(prefix="tfspark-state-")) if directory is None else None
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


def state_directory(run_directory: Path) -> Path:
    """Return the directory where a run keeps the checkpoints of its state."""
    return run_directory / "checkpoints"
