"""Show a run: a line per phase, a progress bar on a terminal, and the same as plain lines in a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class RunConsole:
    """Shows a run; thread-safe, because events come from several nodes.

    Args:
        console: where the run is shown.
        log: the plain log file.
        num_epochs: maximum number of epochs.
        show_worker_logs: print every line that the workers write.
    """

    def __init__(self, console: Console, log: TextIO, num_epochs: int, show_worker_logs: bool = False):
        self._console = console
        self._log = log
        self._num_epochs = num_epochs
        self._show_worker_logs = show_worker_logs
        self._rows_per_epoch: int | None = None
        self._lock = threading.Lock()
        self._bar: TaskID | None = None
        self._lacks_lines = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the progress bar while the cluster works."""
        with self._progress:
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Print the duration of a phase at its end."""
        began = time.monotonic()
        yield
        self.line(f"{name:<24} {time.monotonic() - began:6.1f} s")

    def line(self, text: str) -> None:
        """Print a line, here and in the log."""
        with self._lock:
            self._show(text, highlight=False, soft_wrap=True)
            self._write(text)

    def table(self, table: Any) -> None:
        """Print a table, but do not log it."""
        with self._lock:
            self._show(table)

    def note(self, text: str) -> None:
        """Write a line only to the log: it is shown elsewhere."""
        with self._lock:
            self._write(text)

    def step(self, fields: Mapping[str, Any]) -> None:
        """Move the progress bar."""
        rate = rows_per_s(fields, fields["rows"])
        text = (
            f"epoch {fields['epoch']}/{self._num_epochs}  step {fields['steps']}  {rate:,.0f} rows/s  "
            f"{format_metrics(fields['metrics'])}"
        )
        with self._lock:
            self._write(text)
            if self._bar is None:
                self._bar = self._progress.add_task(text, total=self._rows_per_epoch)
            done = min(fields["rows"], self._rows_per_epoch or 0)
            self._progress.update(self._bar, description=text, completed=done, total=self._rows_per_epoch)

    def epoch(self, fields: Mapping[str, Any], rows: int) -> None:
        """Print an epoch's line."""
        self._rows_per_epoch = rows
        self.line(
            f"epoch {fields['epoch']}/{self._num_epochs}{'':<11} {fields['seconds']:6.1f} s  "
            f"{rows_per_s(fields, rows):,.0f} rows/s  {format_metrics(fields['metrics'])}"
        )

    def restarting(self, number: int, cause: str, pause_s: float) -> None:
        """Report that a node was lost."""
        when = f"in {pause_s:g} s" if pause_s else "now"
        self.line(f"restart {number}: {cause}; all nodes are started again {when}")

    def replacing(self, node: str, cause: str) -> None:
        """Report that a worker of parameter servers was lost."""
        self.line(f"{node} is replaced, the others continue: {cause}")

    def resumed(self, epoch: int, step: int) -> None:
        """Report where training continues."""
        if epoch > self._num_epochs:
            self.line(f"resumed: all {self._num_epochs} epochs are trained")
        else:
            self.line(
                f"resumed: continues in epoch {epoch}/{self._num_epochs}" + f" after step {step}" * (step > 0)
            )

    def rows_differ(self, epoch: int, step: int, why: str) -> None:
        """Report why an epoch cannot be continued in its middle."""
        self.line(
            f"epoch {epoch} starts again, it cannot continue after step {step}: {why}; some rows would be trained on "
            "twice and others never"
        )

    def state_not_kept(self, why: str) -> None:
        """Warn that a checkpoint is missing."""
        self.line(
            f"warning: a checkpoint could not be kept ({why}); training continues, but a loss would take it back to an "
            "older checkpoint; free space there"
        )

    def worker_lines(self, node: str, lines: list[str]) -> None:
        """Print a worker's output, if `show_worker_logs` is set."""
        if self._show_worker_logs:
            for text in lines:
                self.line(f"[{node}] {text}")

    def _write(self, text: str) -> None:
        try:
            self._log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            self._log.flush()
        except OSError as error:  # A full disk does not end the training.
            if not self._lacks_lines:
                self._lacks_lines = True
                self._show(f"warning: run.log lacks lines from here on: {error.strerror}")

    def _show(self, shown: Any, **how: Any) -> None:
        """Print. A reader that has gone (`tfspark run ... | head`) does not end the training, nor does a full disk."""
        try:
            self._console.print(shown, markup=False, **how)
        except (OSError, SystemExit):  # Rich raises SystemExit if its reader has gone.
            self._console.quiet = True


def rows_per_s(fields: Mapping[str, Any], rows: int) -> float:
    """Return the speed of an epoch that has trained `rows` rows; those trained before a loss do not count."""
    return float((rows - fields.get("rows_before", 0)) / fields["seconds"]) if fields["seconds"] else 0.0


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics as one line, with the loss first."""
    ordered = sorted(metrics.items(), key=lambda item: (item[0].startswith("val_"), item[0] != "loss"))
    return "  ".join(f"{name} {value:.4f}" for name, value in ordered)
