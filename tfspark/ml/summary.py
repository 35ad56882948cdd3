"""The summary of a fit: history, metrics, time. Driver only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tfspark.history import History


@dataclass(frozen=True)
class TrainingSummary:
    """The summary of a fit.

    Attributes:
        history: metric -> its value after each epoch; those of validation rows begin with ``val_``.
        seconds: duration of the fit, including the start and end of the cluster.
        startSeconds: the part of it until the nodes were up.
        logDir: directory of the workers' logs; None: they were not kept.
    """

    history: Mapping[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    startSeconds: float = 0.0
    logDir: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last epoch."""
        return {name: values[-1] for name, values in self.history.items() if values}

    @property
    def objectiveHistory(self) -> list[float]:
        """The loss after each epoch."""
        return list(self.history.get("loss", []))

    @property
    def totalIterations(self) -> int:
        """Number of trained epochs."""
        return max((len(values) for values in self.history.values()), default=0)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """Draw the curves for a notebook."""
        curves = History(self.history)._repr_html_()
        return f"<div>{self.totalIterations} epochs in {self.seconds:.1f} s{curves}</div>"
