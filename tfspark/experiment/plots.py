"""Draw the pictures of a report with matplotlib's objects only: no pyplot, no display, no global state.

Called by `tfspark.experiment.report`, which provides the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Blue and orange of Okabe and Ito, which readers with colour-blindness can distinguish.
COLORS = {"train": "#0072B2", "validation": "#D55E00"}
DOTS_PER_INCH = 120
FEW_EPOCHS = 40  # up to this number, single points can be distinguished
LEAST_FONT = 5.5  # points
LONGEST_NAME = 24  # characters
CHARACTER = 0.62  # width of a character, as a share of the font's size


@dataclass(frozen=True)
class Curve:
    """A metric over the epochs.

    Attributes:
        label: ``train`` or ``validation``.
        epochs: 1-based, ascending.
        values: one for each epoch.
    """

    label: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


def draw_curves(path: Path, title: str, curves: Sequence[Curve]) -> Path:
    """Draw one metric's curves and save them as PNG."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        _draw_curve(axes, curve)
    _set_epochs(axes, curves)
    axes.set_xlabel("epoch")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return _save(figure, path)


def draw_confusion_matrix(path: Path, matrix: npt.NDArray[np.int64], class_names: Sequence[str]) -> Path:
    """Draw a confusion matrix and save it as PNG.

    The colour is the share of the true class; the cell shows the count if there is room for it.
    """
    n = len(class_names)
    side = min(max(0.5 * n, 3.5), 12.0)
    cell = 72 * side / n  # in points, as font sizes are
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, cax=axes.inset_axes((1.03, 0, 0.04, 1)), label="share of the true class")
    _write_counts(axes, matrix, shares, cell)
    _name_classes(axes, class_names, cell)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(_accuracy(matrix), loc="left", fontweight="bold")
    return _save(figure, path)


def draw_roc(path: Path, curves: Mapping[str, Sequence[Sequence[float]]]) -> Path:
    """Draw receiver operating characteristics and save them as PNG.

    Args:
        path: the file to write.
        curves: class -> its (false, true) positive rates, ascending; the name of a single curve is not shown.
    """
    figure = Figure(figsize=(4.6, 4.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linestyle="--", linewidth=1)
    areas = {name: area_below(points) for name, points in curves.items()}
    for index, (name, points) in enumerate(curves.items()):
        color = (
            COLORS["train"]
            if len(curves) == 1
            else colormaps["tab10" if len(curves) <= 10 else "tab20"](index)
        )
        label = f"{_short(name)}  {areas[name]:.4f}"
        axes.plot(*np.transpose(points), color=color, linewidth=1.8, label=label)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    mean = f"AUC {np.mean(list(areas.values())):.4f}"
    axes.set_title(
        mean if len(curves) == 1 else f"{mean}, mean of the classes", loc="left", fontweight="bold"
    )
    if len(curves) > 1:
        axes.legend(
            frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), title="class, against all others"
        )
    axes.set_aspect("equal")
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def area_below(points: Sequence[Sequence[float]]) -> float:
    """Return the area under a curve of (x, y) points, by trapezoids."""
    x, y = np.transpose(points)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _draw_curve(axes: Axes, curve: Curve) -> None:
    marker = "o" if len(curve.epochs) <= FEW_EPOCHS else ""
    axes.plot(
        curve.epochs,
        curve.values,
        marker=marker,
        markersize=4 if len(curve.epochs) > 1 else 8,
        linewidth=1.8,
        color=COLORS.get(curve.label),
        label=curve.label,
    )


def _set_epochs(axes: Axes, curves: Sequence[Curve]) -> None:
    """Show whole epochs on the axis, even if there is only one."""
    epochs = [epoch for curve in curves for epoch in curve.epochs]
    if epochs:
        margin = max(0.5, 0.02 * (max(epochs) - min(epochs)))
        axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _write_counts(
    axes: Axes, matrix: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], cell: float
) -> None:
    """Write the counts above 0, unless they would be too small to read."""
    size = min(13.0, 0.8 * cell / (CHARACTER * max(len(str(matrix.max())), 2)))
    if size < LEAST_FONT:
        return
    for row, column in np.argwhere(matrix):
        color = "white" if shares[row, column] > 0.5 else "#222222"
        count = str(matrix[row, column])
        axes.text(column, row, count, ha="center", va="center", color=color, fontsize=size)


def _name_classes(axes: Axes, class_names: Sequence[str], cell: float) -> None:
    """Name the classes beside their cells; if there are too many, only every second, every third and so on."""
    n = len(class_names)
    size = min(10.0, max(0.8 * cell, 7.0))
    step = math.ceil(1.2 * size / cell)
    short = [_short(name) for name in class_names]
    is_wide = CHARACTER * size * max(map(len, short)) > 0.9 * cell * step
    axes.set_xticks(range(0, n, step), short[::step], fontsize=size, rotation=90 if is_wide else 0)
    axes.set_yticks(range(0, n, step), short[::step], fontsize=size)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if step == 1:
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.6)
        axes.tick_params(which="minor", length=0)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _accuracy(matrix: npt.NDArray[np.int64]) -> str:
    rows = int(matrix.sum())
    if rows == 0:
        return "No rows"
    return f"Accuracy {np.trace(matrix) / rows:.4f} on {rows:,} rows"


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.15)
    return path
