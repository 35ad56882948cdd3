"""Report a run: curves, the confusion matrix, the final table.

Called on the driver at the end of a run, or later on its directory: reads ``metrics.jsonl`` and writes pictures
beside it. Imports neither Spark nor TensorFlow, and does not change matplotlib's global state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from tfspark.errors import DataError
from tfspark.experiment.plots import Curve, area_below, draw_confusion_matrix, draw_curves

Matrix = npt.NDArray[np.int64]

METRICS_FILE = "metrics.jsonl"
# Numbers of an epoch that are not metrics of the model.
_BOOKKEEPING = frozenset({"epoch", "seconds", "rows", "rows_per_s", "learning_rate", "time"})


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Read the events of a run, oldest first.

    Raises:
        DataError: a line other than the last is not a JSON object; the last may be cut off by a crash.
    """
    lines = (run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            events.append(event)
        elif line.strip() and number < len(lines):
            raise DataError(f"{run_dir / METRICS_FILE}:{number}: expected a JSON object, got {line[:80]!r}")
    return events


def epoch_curves(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Curve]]:
    """Collect the metrics of the epochs.

    Returns:
        Metric -> its curves, training first. If an epoch was trained again after a restart, its last attempt
        counts; values that are not finite are skipped.
    """
    epochs: dict[int, dict[str, float]] = {}
    for event in events:
        if event.get("event") in ("epoch", "validation"):
            epochs.setdefault(event["epoch"], {}).update(metrics_of(event))
    ordered = sorted(epochs.items())
    names = list(dict.fromkeys(name for _, metrics in ordered for name in metrics))
    return {
        metric: [
            _curve(label, name, ordered)
            for label, name in (("train", metric), ("validation", f"val_{metric}"))
            if name in names
        ]
        for metric in dict.fromkeys(name.removeprefix("val_") for name in names)
    }


def write_curves(run_dir: Path) -> list[Path]:
    """Draw ``<metric>.png`` for every metric of the run's epochs.

    Returns:
        The pictures; none for a run that finished no epoch.
    """
    curves = epoch_curves(read_events(run_dir))
    return [draw_curves(run_dir / f"{metric}.png", _title(metric), drawn) for metric, drawn in curves.items()]


def write_confusion_matrix(run_dir: Path, matrix: Matrix, class_names: Sequence[str]) -> Path:
    """Draw ``confusion_matrix.png``.

    Args:
        run_dir: the run directory.
        matrix: rows by their true and their predicted class.
        class_names: in the order of the matrix.

    Shapes:
        matrix: (classes, classes) integers; axis 0 true, axis 1 predicted.

    Raises:
        DataError: the matrix is not square, or the number of names differs.
    """
    n = len(class_names)
    if matrix.shape != (n, n):
        raise DataError(f"expected a matrix of {n} x {n} for {n} class names, got {matrix.shape}")
    return draw_confusion_matrix(run_dir / "confusion_matrix.png", matrix, class_names)


def class_scores(matrix: Matrix, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return each class's precision, recall and F1; 0 for a class that is never predicted or never true.

    Shapes:
        matrix: (classes, classes); axis 0 true, axis 1 predicted. For multi-label rows (classes, 2, 2).
    """
    if matrix.ndim == 2:
        right, predicted, true = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    else:
        right, predicted, true = matrix[:, 1, 1], matrix[:, :, 1].sum(axis=1), matrix[:, 1].sum(axis=1)
    precision = right / np.maximum(predicted, 1)
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(predicted + true, 1)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f)}
        for name, p, r, f in zip(class_names, precision, recall, f1, strict=True)
    }


def macro_scores(classes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the means over the classes, which all have the same weight."""
    return {
        f"{name}_macro": sum(scores[name] for scores in classes.values()) / len(classes)
        for name in ("precision", "recall", "f1")
    }


def mean_area(curves: Iterable[Sequence[Sequence[float]]]) -> float:
    """Return the mean of the areas under curves."""
    return float(np.mean([area_below(curve) for curve in curves]))


def final_table(
    train: Mapping[str, float],
    validation: Mapping[str, float] | None = None,
    test: Mapping[str, float] | None = None,
) -> Table:
    """Return a table with the last metrics side by side.

    Args:
        train: metric -> value on the training rows.
        validation: the same on the validation rows; None: there are none.
        test: the same on the test rows; None: there are none.
    """
    columns = {"train": train, "validation": validation, "test": test}
    given = {name: values for name, values in columns.items() if values is not None}
    table = Table(title="Result", title_justify="left")
    table.add_column("metric")
    for name in given:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(metric for values in given.values() for metric in values):
        table.add_row(metric, *(_number(values.get(metric)) for values in given.values()))
    return table


def single_numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Name each number of a metric with several values, such as F1 by class: ``f1[0]``, ``f1[1]``."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, list | tuple):
            inner = single_numbers({str(index): each for index, each in enumerate(value)})
            flat |= {
                f"{name}[{index.replace('[', '][', 1).removesuffix(']')}]": each
                for index, each in inner.items()
            }
        else:
            flat[name] = value
    return flat


def metrics_of(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the model's metrics in an event, without its numbers about the run."""
    return {
        name: float(value)
        for name, value in event.items()
        if name not in _BOOKKEEPING and isinstance(value, int | float) and math.isfinite(value)
    }


def _curve(label: str, name: str, epochs: Sequence[tuple[int, Mapping[str, float]]]) -> Curve:
    points = [(epoch, metrics[name]) for epoch, metrics in epochs if name in metrics]
    return Curve(label, tuple(epoch for epoch, _ in points), tuple(value for _, value in points))


def _title(metric: str) -> str:
    return metric.replace("_", " ").capitalize()


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
