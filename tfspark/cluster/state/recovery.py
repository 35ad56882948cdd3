"""What a cluster needs to begin a new incarnation: its checkpoints, and how often it may. Runs on the driver."""

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
        budget: how often.
        directory: where checkpoints are kept; None: in a temporary directory, as long as the cluster lives.
        resume: the run directory of a run to go on from.

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
        """Return where an incarnation of so many nodes that have a part begins; None: at the beginning."""
        self.point = None if self.point is None else self.store.begin_at(self.point.redistributed(num_parts))
        return self.point

    def begin_anew(self) -> None:
        """Forget the checkpoints: another model is trained from now on."""
        self.point = None
        self.store.forget_all()

    def close(self) -> None:
        """Remove what was for this run of the program only."""
        self.store.drop_drafts()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def state_directory(run_directory: Path) -> Path:
    """Return where a run keeps the checkpoints of its state."""
    return run_directory / "checkpoints"
