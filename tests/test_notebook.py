"""A notebook shows a progress bar and the curves of a history; a terminal shows lines."""

from __future__ import annotations

import re
import sys
import types
from typing import Any
from xml.etree import ElementTree

import pytest

from tfspark.errors import ConfigError
from tfspark.history import History
from tfspark.progress import Lines, NotebookBar, Nowhere, TrainingProgress, where_to_show


class Display:
    """A fake of IPython's `display` and of the handle that it returns."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def __call__(self, what: Any, display_id: bool) -> Display:
        assert display_id
        self.shown.append(what)
        return self

    def update(self, what: Any) -> None:
        self.shown.append(what)


def steps(epoch: int, rows: int, seconds: float, **metrics: Any) -> dict[str, Any]:
    return {"epoch": epoch, "rows": rows, "seconds": seconds, "metrics": metrics}


def report_two_epochs(progress: TrainingProgress) -> None:
    """Report two epochs of 100 rows."""
    progress("reserved", {"nodes": 2})
    progress("step", steps(1, 50, 0.5, loss=0.9))
    progress("epoch", {**steps(1, 112, 1.0, loss=0.8, counts=[1, 2]), "rows_fed": 100})
    progress("step", steps(2, 50, 0.25, loss=0.5))
    progress("epoch", {**steps(2, 112, 0.5, loss=0.4, val_loss=0.45), "rows_fed": 100})


def test_notebook_shows_a_bar_that_grows_and_leaves_a_line() -> None:
    display = Display()
    progress = TrainingProgress(NotebookBar(display), 2)
    report_two_epochs(progress)
    progress.history = {"loss": [0.8, 0.4]}
    progress.end()

    assert [repr(shown) for shown in display.shown] == [
        "starting",
        "epoch 1/2  100 rows/s  loss 0.9",
        "epoch 1/2  100 rows/s  loss 0.8",
        "epoch 2/2  200 rows/s  loss 0.5",
        "epoch 2/2  200 rows/s  loss 0.4  val_loss 0.45",
        "2 epochs in 1.5 s  loss 0.4  val_loss 0.45",
    ]
    drawn = [shown._repr_html_() for shown in display.shown]
    filled = [re.search(r"width:(\d+\.\d)%", each) for each in drawn]
    assert [each and each[1] for each in filled] == ["0.0", "0.0", "50.0", "75.0", "100.0", None]
    for each in drawn:
        ElementTree.fromstring(each)


def test_progress_of_an_interrupted_training_says_so() -> None:
    display = Display()
    progress = TrainingProgress(NotebookBar(display), 5)
    progress("step", steps(1, 50, 0.5, loss=0.9))
    progress.end()
    assert repr(display.shown[-1]) == "broken off in 0.0 s  loss 0.9"


def test_terminal_gets_a_line_for_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TrainingProgress(Lines(), 2)
    report_two_epochs(progress)
    progress.end()
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/2  100 rows/s  loss 0.8",
        "epoch 2/2  200 rows/s  loss 0.4  val_loss 0.45",
    ]


@pytest.mark.parametrize(
    ("verbose", "in_kernel", "is_terminal", "expected"),
    [
        ("auto", True, False, NotebookBar),
        (1, True, False, NotebookBar),
        (0, True, True, Nowhere),
        ("auto", False, True, Lines),
        ("auto", False, False, Nowhere),
        (1, False, False, Lines),
        (0, False, True, Nowhere),
    ],
)
def test_progress_is_shown_in_the_notebook_in_lines_or_nowhere(
    monkeypatch: pytest.MonkeyPatch, verbose: Any, in_kernel: bool, is_terminal: bool, expected: type
) -> None:
    shell = types.SimpleNamespace(**({"kernel": object()} if in_kernel else {}))
    ipython = types.ModuleType("IPython")
    of_display = types.ModuleType("IPython.display")
    monkeypatch.setattr(ipython, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr(of_display, "display", Display(), raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", of_display)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert isinstance(where_to_show(verbose), expected)


def test_verbose_when_wrong_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected verbose to be 'auto', 0 or 1, got 2"):
        where_to_show(2)  # type: ignore[arg-type]


def test_history_draws_each_metric_together_with_its_validation_metric() -> None:
    history = History(
        {
            "loss": [3.0, float("nan"), 1.0, 0.5],
            "a<b": [0.1],
            "val_loss": [3.5, 3.0, 2.0, 1.5],
            "counts": [[1, 2]],  # type: ignore[list-item]
            "val_alone": [1.0, 2.0],
        }
    )
    page = history._repr_html_()
    figures = ElementTree.fromstring(page.replace("&ensp;", " ")).findall("figure")
    titles = ["".join(figure.find("figcaption").itertext()) for figure in figures]  # type: ignore[union-attr]
    assert titles == ["loss 0.5 val_loss 1.5", "a<b 0.1", "val_alone 2"]
    svg = "{http://www.w3.org/2000/svg}"
    kinds = [[each.tag.removeprefix(svg) for each in figure.iter()] for figure in figures]
    assert [kind.count("polyline") for kind in kinds] == [2, 0, 1]  # A single value is drawn as a point.
    assert [kind.count("circle") for kind in kinds] == [1, 1, 0]
    assert dict(history)["loss"][0] == 3.0


def test_empty_history_draws_nothing() -> None:
    assert History()._repr_html_() == "<div></div>"
