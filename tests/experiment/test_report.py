"""Curves, the confusion matrix and the final table."""

from __future__ import annotations

import io
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tfspark.errors import DataError
from tfspark.experiment.plots import draw_roc
from tfspark.experiment.report import (
    class_scores,
    epoch_curves,
    final_table,
    macro_scores,
    mean_area,
    read_events,
    write_confusion_matrix,
    write_curves,
)


def epoch(number: int, **metrics: float) -> dict[str, object]:
    return {
        "event": "epoch",
        "epoch": number,
        "time": 1e9,
        "seconds": 1.0,
        "rows": 9,
        "rows_per_s": 9.0,
        **metrics,
    }


def write_events(run_dir: Path, *events: dict[str, object]) -> Path:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return run_dir


def size_of_png(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", header[16:])
    return width, height


def test_write_curves_when_validated_draws_one_picture_per_metric(tmp_path: Path) -> None:
    events = [epoch(n, loss=1 / n, accuracy=0.5, val_loss=2 / n, val_accuracy=0.4) for n in (1, 2, 3)]
    pictures = write_curves(write_events(tmp_path, *events, {"event": "test", "loss": 1.0}))
    assert [picture.name for picture in pictures] == ["loss.png", "accuracy.png"]
    assert all(size_of_png(picture) > (600, 400) for picture in pictures)


@pytest.mark.parametrize("epochs", [1, 2, 200])
def test_write_curves_when_epochs_few_or_many_draws(tmp_path: Path, epochs: int) -> None:
    events = [epoch(n, loss=1 / n) for n in range(1, epochs + 1)]
    assert len(write_curves(write_events(tmp_path, *events))) == 1


def test_write_curves_when_no_epoch_finished_draws_nothing(tmp_path: Path) -> None:
    assert write_curves(write_events(tmp_path, {"event": "start"})) == []


def test_write_curves_when_the_loss_is_never_finite_draws_nothing(tmp_path: Path) -> None:
    assert write_curves(write_events(tmp_path, epoch(1, loss=math.nan), epoch(2, loss=math.inf))) == []


def test_epoch_curves_when_epoch_repeated_after_restart_takes_the_last_attempt() -> None:
    curves = epoch_curves([epoch(1, loss=3), epoch(2, loss=9), epoch(2, loss=2)])
    assert [(c.label, c.epochs, c.values) for c in curves["loss"]] == [("train", (1, 2), (3, 2))]


def test_epoch_curves_when_validated_every_other_epoch_leaves_gaps() -> None:
    curves = epoch_curves([epoch(1, loss=3), epoch(2, loss=2, val_loss=4)])
    assert [(c.label, c.epochs) for c in curves["loss"]] == [("train", (1, 2)), ("validation", (2,))]


def test_epoch_curves_when_an_evaluator_validates_joins_its_events() -> None:
    curves = epoch_curves([epoch(1, loss=3), {"event": "validation", "epoch": 1, "time": 1.0, "val_loss": 4}])
    assert [(c.label, c.values) for c in curves["loss"]] == [("train", (3,)), ("validation", (4,))]


def test_read_events_when_last_line_cut_off_keeps_the_others(tmp_path: Path) -> None:
    write_events(tmp_path, epoch(1, loss=1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "ep')
    assert len(read_events(tmp_path)) == 1


@pytest.mark.parametrize("line", ["{nonsense", "3"])
def test_read_events_when_a_line_is_damaged_names_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"event": "epoch"}}\n{line}\n{{"event": "test"}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: expected a JSON object"):
        read_events(tmp_path)


def test_class_scores_when_a_class_is_never_predicted_are_0() -> None:
    matrix = np.array([[8, 2, 0], [4, 6, 0], [5, 5, 0]])
    scores = class_scores(matrix, ["a", "b", "c"])
    assert scores["a"] == pytest.approx({"precision": 8 / 17, "recall": 0.8, "f1": 16 / 27})
    assert scores["c"] == {"precision": 0, "recall": 0, "f1": 0}
    assert macro_scores(scores)["recall_macro"] == pytest.approx(1.4 / 3)


def test_class_scores_when_rows_have_several_classes_are_computed_for_each_class_alone() -> None:
    scores = class_scores(np.array([[[5, 1], [2, 4]], [[9, 0], [3, 0]]]), ["a", "b"])
    assert scores["a"] == pytest.approx({"precision": 4 / 5, "recall": 4 / 6, "f1": 8 / 11})
    assert scores["b"] == {"precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize("num_classes", [1, 3, 20])
def test_draw_roc_when_classes_few_or_many_draws_a_picture_of_bounded_size(
    tmp_path: Path, num_classes: int
) -> None:
    curve = [[0, 0], [0.1, 0.8], [1, 1]]
    path = draw_roc(tmp_path / "roc.png", {f"class {i}": curve for i in range(num_classes)})
    assert (400, 400) < size_of_png(path) < (1_000, 1_000)


def test_mean_area_of_two_curves_is_the_mean_of_their_areas() -> None:
    assert mean_area([[[0, 0], [0, 1], [1, 1]], [[0, 0], [1, 1]]]) == 0.75


@pytest.mark.parametrize("num_classes", [1, 2, 10, 50, 200])
def test_write_confusion_matrix_when_classes_few_or_many_draws_a_picture_of_bounded_size(
    tmp_path: Path, num_classes: int
) -> None:
    matrix = np.random.default_rng(0).integers(0, 1000, (num_classes, num_classes))
    path = write_confusion_matrix(tmp_path, matrix, [f"class {i}" for i in range(num_classes)])
    assert path == tmp_path / "confusion_matrix.png"
    assert max(size_of_png(path)) < 2_000


def test_write_confusion_matrix_when_a_class_or_all_rows_are_missing_draws(tmp_path: Path) -> None:
    write_confusion_matrix(tmp_path, np.array([[3, 0], [0, 0]]), ["a", "b"])
    write_confusion_matrix(tmp_path, np.zeros((2, 2), np.int64), ["a", "b"])


def test_write_confusion_matrix_when_the_number_of_names_differs_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a matrix of 3 x 3 for 3 class names, got"):
        write_confusion_matrix(tmp_path, np.zeros((2, 2), np.int64), ["a", "b", "c"])


def test_final_table_when_no_validation_leaves_its_column_out() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(final_table({"loss": 0.25, "accuracy": 0.9}, None, {"accuracy": 0.875}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert [word in text for word in ("train", "validation", "test", "0.2500", "0.8750", "-")] == [
        True, False, True, True, True, True,
    ]  # fmt: skip


def test_import_of_report_imports_neither_pyplot_nor_tensorflow_nor_spark() -> None:
    code = (
        "import sys, tfspark.experiment.report;"
        "print([name for name in ('matplotlib.pyplot', 'tensorflow', 'pyspark') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_epoch_curves_when_the_evaluator_is_an_epoch_behind_hold_what_it_has_validated() -> None:
    events = [
        {"event": "epoch", "epoch": 1, "loss": 0.9},
        {"event": "epoch", "epoch": 2, "loss": 0.5},
        {"event": "validation", "epoch": 1, "val_loss": 0.8},
    ]
    train, validation = epoch_curves(events)["loss"]
    assert train.values == (0.9, 0.5)
    assert (validation.epochs, validation.values) == ((1,), (0.8,))
