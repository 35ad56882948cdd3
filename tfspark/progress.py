"""Show the progress of a training: a bar in a notebook, lines elsewhere. Driver only; does not need IPython."""

from __future__ import annotations

import html
import importlib
import sys
import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from tfspark.errors import ConfigError

Verbose = Literal["auto", 0, 1]


class Shown(Protocol):
    """A display of progress."""

    def update(self, text: str, share: float | None, is_epoch: bool) -> None:
        """Show progress; `share`: of all rows of the training, None if unknown; `is_epoch`: an epoch has ended."""

    def end(self, text: str) -> None:
        """Show the outcome."""


class Lines:
    """A line for each epoch on standard error."""

    def update(self, text: str, share: float | None, is_epoch: bool) -> None:
        """Write a line at the end of an epoch."""
        del share
        if is_epoch:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def end(self, text: str) -> None:
        """Write nothing: the line of the last epoch is enough."""


class Nowhere:
    """Shows nothing."""

    def update(self, text: str, share: float | None, is_epoch: bool) -> None:
        """Do nothing."""

    def end(self, text: str) -> None:
        """Do nothing."""


class NotebookBar:
    """A bar below the cell; a line with the outcome replaces it at the end.

    Args:
        display: IPython's `display`.
    """

    def __init__(self, display: Any):
        self._handle = display(_Bar("starting", None), display_id=True)

    def update(self, text: str, share: float | None, is_epoch: bool) -> None:
        """Draw the bar again; may be called from any thread."""
        del is_epoch
        self._handle.update(_Bar(text, share))

    def end(self, text: str) -> None:
        """Replace the bar by a line."""
        self._handle.update(_Bar(text, 1.0, is_over=True))


class _Bar:
    """The bar as HTML for a notebook, and as text for a frontend without HTML."""

    def __init__(self, text: str, share: float | None, is_over: bool = False):
        self._text, self._share, self._is_over = text, share, is_over

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        text = f"<span>{html.escape(self._text)}</span>"
        if self._is_over:
            return f"<div>{text}</div>"
        filled = 0.0 if self._share is None else 100 * min(1.0, self._share)
        return (
            '<div><div style="display:inline-block;vertical-align:middle;width:180px;height:10px;margin-right:8px;'
            'border:1px solid #999;border-radius:2px"><div style="height:100%;background:#0072B2;'
            f'width:{filled:.1f}%"></div></div>{text}</div>'
        )


def where_to_show(verbose: Verbose) -> Shown:
    """Return the display of progress.

    Args:
        verbose: ``auto``: a bar in a notebook, lines on a terminal, else nothing; 1: lines where there is no notebook;
            0: nothing.

    Raises:
        ConfigError: `verbose` has a different value.
    """
    if verbose not in ("auto", 0, 1):
        raise ConfigError(f"expected verbose to be 'auto', 0 or 1, got {verbose!r}")
    if verbose == 0:
        return Nowhere()
    if _in_notebook():
        return NotebookBar(importlib.import_module("IPython.display").display)
    return Lines() if verbose == 1 or sys.stderr.isatty() else Nowhere()


def _in_notebook() -> bool:
    """Return whether a Jupyter kernel runs this program; imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class TrainingProgress:
    """Shows a cluster's events as progress; events come from several threads.

    Args:
        shown: the display.
        num_epochs: maximum number of epochs.

    Attributes:
        history: the result of the training; None: it has not returned, or ended by an exception.
    """

    def __init__(self, shown: Shown, num_epochs: int):
        self._shown = shown
        self._num_epochs = num_epochs
        self._lock = threading.Lock()
        self._first: int | None = None
        self._rows_per_epoch = 0
        self._last = ""
        self._seconds = 0.0
        self.history: dict[str, list[float]] | None = None

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """Show an event."""
        if event not in ("step", "epoch"):
            return
        with self._lock:
            if self._first is None:
                self._first = fields["epoch"]
            epoch = fields["epoch"] - self._first + 1
            is_epoch = event == "epoch"
            rows = fields.get("rows_fed") if is_epoch else fields["rows"]
            if is_epoch:
                self._rows_per_epoch = rows or fields["rows"]
                self._seconds += fields["seconds"]
            self._last = _numbers(fields["metrics"])
            rate = (rows or 0) / fields["seconds"] if fields["seconds"] else 0.0
            text = f"epoch {epoch}/{self._num_epochs}  {rate:,.0f} rows/s  {self._last}"
            self._shown.update(text.rstrip(), self._share(epoch, fields["rows"], is_epoch), is_epoch)

    def _share(self, epoch: int, rows: int, is_epoch: bool) -> float | None:
        if is_epoch:
            return epoch / self._num_epochs
        if not self._rows_per_epoch:
            return None if epoch == 1 else (epoch - 1) / self._num_epochs
        return (epoch - 1 + min(1.0, rows / self._rows_per_epoch)) / self._num_epochs

    def end(self) -> None:
        """Show the outcome."""
        history = self.history
        with self._lock:
            epochs = max((len(values) for values in (history or {}).values()), default=0)
            said = "broken off" if history is None else f"{epochs} epoch{'' if epochs == 1 else 's'}"
            self._shown.end(f"{said} in {self._seconds:.1f} s  {self._last}".rstrip())


def _numbers(metrics: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)
    )
