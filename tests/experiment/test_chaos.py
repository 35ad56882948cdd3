"""``tfspark chaos`` injects faults and compares each run with a run without faults."""

from __future__ import annotations

import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiment.runs import environment
from support.environment import DRIVER_ID
from support.processes import Finished, run_to_end
from support.standalone import StandaloneCluster

import tfspark.submit
from tfspark.chaos import CHAOS, FAULTS, Run, judged

DEADLINE_S = 560.0
REFERENCE = Run("w1", [1280, 1280], [], "", 10.0)


def chaos(directory: Path, *arguments: str) -> Finished:
    words = [sys.executable, "-m", "tfspark.cli", "chaos", *arguments]
    mark = (DRIVER_ID, uuid.uuid4().hex)
    return run_to_end(words, env=environment(), mark=mark, cwd=directory, timeout_s=DEADLINE_S)


def survived(ended: Finished) -> list[str]:
    """Return the names of the faults that ended as expected."""
    lines = [line.split() for line in ended.stdout.splitlines()]
    return [words[1] for words in lines if words[:1] == ["ok"]]


def test_faults_on_separate_executors_end_as_expected(tmp_path: Path) -> None:
    ended = chaos(tmp_path, "exception", "executor", "--master", "local-cluster[3,1,1024]").check()

    assert survived(ended) == ["exception", "executor"]
    assert f"{CHAOS}: an exception in the model's code" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "2 of 2 faults ended as expected"


@pytest.mark.slow
def test_faults_under_spark_submit_end_as_expected(standalone: StandaloneCluster) -> None:
    script = Path(tfspark.submit.__file__)
    ended = standalone.submit(script, "chaos", "kill", "executor", timeout_s=DEADLINE_S).check()

    assert survived(ended) == ["kill", "executor"]
    assert "2 of 2 faults ended as expected" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ["earthquake"], ["expected faults of exception, exit, kill", "got earthquake"], id="unknown"
        ),
        pytest.param(["executor"], ["separate executors", "--master local-cluster[2,2,1024]"], id="local"),
    ],
)
def test_faults_that_cannot_be_tried_are_refused(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    ended = chaos(tmp_path, *arguments)

    assert ended.returncode == 2
    assert all(word in ended.stderr for word in words), ended.stderr


@pytest.mark.parametrize(
    ("fault", "changes", "wrong"),
    [
        pytest.param("kill", {"restarts": ["x"]}, "", id="survived"),
        pytest.param(
            "kill", {"restarts": ["x"], "weights": "w2"}, "the weights differ", id="the weights differ"
        ),
        pytest.param("kill", {"restarts": ["x"], "rows": [1280, 1216]}, "rows per epoch", id="fewer rows"),
        pytest.param("kill", {}, "expected 1 restarts, got 0", id="no restart"),
        pytest.param("kill", {"restarts": ["x"], "error": "it fell over"}, "it fell over", id="failed run"),
        pytest.param("slow", {"restarts": ["x"]}, "expected 0 restarts, got 1", id="unnecessary restart"),
        pytest.param("exception", {"error": f"RuntimeError: {CHAOS}"}, "", id="error names the exception"),
        pytest.param("exception", {}, "names the exception, got none", id="no error"),
        pytest.param(
            "exception", {"error": "another"}, "names the exception, got another", id="different error"
        ),
    ],
)
def test_outcome_says_what_is_wrong(fault: str, changes: dict[str, Any], wrong: str) -> None:
    outcome = judged(fault, replace(REFERENCE, **changes), REFERENCE)

    assert (wrong in outcome.wrong) if wrong else (outcome.wrong == "")


def test_documentation_names_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text()

    assert [name for name in FAULTS if f"`{name}`" not in page] == []
