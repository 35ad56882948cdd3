"""What a fit has left beside the model: history, metrics, time. Driver only."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

WIDTH, HEIGHT, MARGIN = 260, 90, 4
COLORS = ("#0072B2", "#D55E00")


@dataclass(frozen=True)
class TrainingSummary:
    """The summary of a fit.

    Attributes:
        history: metric -> its value after each epoch; those of validation rows begin with ``val_``.
        seconds: how long the fit took, cluster and all.
        startSeconds: of these, until the nodes were up.
        logDir: where the workers' logs are; None: they were not kept.
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
        """Epochs that were trained."""
        return max((len(values) for values in self.history.values()), default=0)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def _repr_html_(self) -> str:
        """Draw the curves for a notebook."""
        names = [name for name in self.history if not name.startswith("val_")]
        pictures = "".join(_curve(name, self.history) for name in names)
        return f"<div>{self.totalIterations} epochs in {self.seconds:.1f} s<br>{pictures}</div>"


def _curve(name: str, history: Mapping[str, list[float]]) -> str:
    """Return an SVG of a metric by epoch, with that of the validation rows."""
    lines = [list(history[own]) for own in (name, f"val_{name}") if history.get(own)]
    numbers = [value for line in lines for value in line if value == value]
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    span = (high - low) or 1.0
    drawn = ""
    for color, line in zip(COLORS, lines, strict=False):
        step = (WIDTH - 2 * MARGIN) / max(1, len(line) - 1)
        points = " ".join(
            f"{MARGIN + index * step:.1f},{HEIGHT - MARGIN - (value - low) / span * (HEIGHT - 2 * MARGIN):.1f}"
            for index, value in enumerate(line)
            if value == value
        )
        drawn += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
    title = f"{html.escape(name)} {lines[0][-1]:.4g}" if lines else html.escape(name)
    return (
        f'<figure style="display:inline-block;margin:4px"><figcaption>{title}</figcaption>'
        f'<svg width="{WIDTH}" height="{HEIGHT}">{drawn}</svg></figure>'
    )
