"""Train every feature of the table with plain Keras and with tfspark: the results are equal, or tfspark refuses it.

Each process trains many models, one after another, because starting TensorFlow takes longer than most trainings.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.environment import TESTS, python_path
from support.ports import free_ports
from support.processes import poll_until

from conformance.keras_examples import EXAMPLES, Covered
from conformance.page import EXAMPLES_PAGE, PAGE, examples_page, page
from conformance.table import EXAMPLES_OF_KERAS, FEATURES, Feature

SCRIPT = Path(__file__).with_name("trial.py")
DEADLINE_S = 1500.0
pytestmark = pytest.mark.timeout(2 * DEADLINE_S + 60)
PARTS = 6
"""Number of runs for the whole table: each run ends within minutes, so failures show early."""
QUICK = tuple(feature.name for feature in FEATURES if not feature.slow)
SLOW = tuple(feature.name for feature in FEATURES if feature.slow)
ON_SERVERS = tuple(feature.name for feature in FEATURES if feature.quick_on_servers)
KINDS = ["two workers", "parameter servers"]

Results = dict[str, dict[str, Any]]
"""Feature -> the result that a process printed."""


def commands(kind: str, names: Sequence[str]) -> list[list[str]]:
    """Return the arguments of `trial` for each process of a cluster."""
    if kind == "plain":
        return [["plain", *names]]
    if kind == "parameter servers":
        return [["servers", "1", *names]]
    ports = free_ports()[: 2 if kind == "two workers" else 1]
    return [["mirrored", str(rank), *ports, "--", *names] for rank in range(len(ports))]


Wanted = dict[str, tuple[str, ...]]
"""Kind of cluster -> the features to train."""


def trained(wanted: Wanted) -> dict[str, list[Results]]:
    """Train features in all kinds of clusters at the same time. Return each kind's results, one per process."""
    orders = {kind: commands(kind, names) for kind, names in wanted.items()}
    environment = {
        **os.environ, "PYTHONPATH": f"{python_path()}{os.pathsep}{TESTS}", "TF_CPP_MIN_LOG_LEVEL": "3"
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        # Files instead of pipes: a process would block on a full pipe, because nobody reads it before all have ended.
        logs = {
            kind: [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in orders[kind]] for kind in wanted
        }
        processes = [
            subprocess.Popen([sys.executable, str(SCRIPT), *order], stdout=log, stderr=log, env=environment)
            for kind in wanted
            for order, log in zip(orders[kind], logs[kind], strict=True)
        ]
        try:
            poll_until(lambda: are_over([process.poll() for process in processes]), DEADLINE_S)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return {kind: [results_in(log, names) for log in logs[kind]] for kind, names in wanted.items()}


def are_over(exit_codes: Sequence[int | None]) -> bool:
    """Return whether all processes have ended or one has failed; the others would wait for it until the deadline."""
    return None not in exit_codes or any(exit_codes)


@functools.cache
def quick() -> dict[str, list[Results]]:
    """Train the quick part of the table, once for all tests."""
    return trained({"plain": QUICK, "two workers": QUICK, "parameter servers": ON_SERVERS})


def results_in(log: Any, names: Sequence[str]) -> Results:
    """Return the result of each feature in a process's log; for a missing feature, the end of the log."""
    log.seek(0)
    lines = log.read().splitlines()
    said = [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]
    missing = {"error": "\n".join(["missing", *lines[-40:]])}
    return dict.fromkeys(names, missing) | {each["feature"]: each for each in said}


def check(
    feature: Feature, kind: str, expected: dict[str, Any], found: dict[str, Any], rank: int = 0
) -> None:
    """Compare the results that the table promises to be equal."""
    side = "servers" if kind == "parameter servers" else "synchronous"
    if side in feature.refused or (kind == "two workers" and "several" in feature.refused):
        assert "ConfigError: expected" in found.get("error", ""), found
        return
    assert "error" not in found, found["error"]
    if side in feature.not_compared:
        return
    assert "error" not in expected, expected["error"]
    if kind == "two workers" and "several" in feature.not_compared:
        assert not np.allclose(found["weights"], expected["weights"], rtol=1e-4), (
            "the results are equal: change the promise"
        )
        return
    assert np.isfinite(found["weights"]).all() or not np.isfinite(expected["weights"]).all()
    assert found["iterations"] == expected["iterations"]
    assert set(found["history"]) == set(expected["history"])
    if "weights" in feature.compare:
        close(found["weights"], expected["weights"], "weights")
    for part in set(feature.compare) & {"history", "tests"}:
        for name, value in expected[part].items():
            if part == "history" or not (
                feature.of_batches and name.endswith("loss") and kind == "two workers"
            ):
                close(found[part][name], value, f"{part}: {name}")
    if feature.chief_alone and rank > 0:
        assert found["written"] is None
    elif isinstance(expected["written"], str):
        assert found["written"] == expected["written"]
    elif expected["written"] is not None:
        close(found["written"], expected["written"], "written")


def close(found: Any, expected: Any, what: str) -> None:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    is_number = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), is_number, err_msg=what)
    size = float(np.abs(expected[is_number]).max(initial=0))
    np.testing.assert_allclose(
        found[is_number], expected[is_number], atol=1e-4 * (size + 1e-2), rtol=1e-4, err_msg=what
    )


@pytest.mark.parametrize("feature", [f for f in FEATURES if not f.slow], ids=lambda feature: feature.name)
def test_two_workers_train_as_plain_keras_does(feature: Feature) -> None:
    results = quick()
    for rank, found in enumerate(results["two workers"]):
        check(feature, "two workers", results["plain"][0][feature.name], found[feature.name], rank)


@pytest.mark.parametrize(
    "feature", [f for f in FEATURES if f.quick_on_servers], ids=lambda feature: feature.name
)
def test_worker_of_parameter_servers_trains_as_plain_keras_does(feature: Feature) -> None:
    results = quick()
    (found,) = results["parameter servers"]
    check(feature, "parameter servers", results["plain"][0][feature.name], found[feature.name])


def names_of(part: int) -> tuple[str, ...]:
    """Return the features of a part of the table. Each part has features of every group."""
    return tuple(feature.name for feature in FEATURES[part::PARTS])


@functools.cache
def plain(part: int) -> Results:
    """Train a part of the table with plain Keras, once for all kinds of clusters."""
    return trained({"plain": names_of(part)})["plain"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two workers", "one worker", "parameter servers"])
@pytest.mark.parametrize("part", range(PARTS))
def test_part_of_the_table_trains_as_plain_keras_does(part: int, kind: str) -> None:
    failed = {}
    names = names_of(part)
    results = trained({kind: names})[kind]
    for feature in FEATURES[part::PARTS]:
        for rank, found in enumerate(results):
            try:
                check(feature, kind, plain(part)[feature.name], found[feature.name], rank)
            except AssertionError as error:
                failed[feature.name] = str(error)[:600]
    assert failed == {}


def test_page_of_features_is_generated_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: PYTHONPATH=tests python -m conformance.page"


def test_page_of_keras_examples_is_generated_from_the_list_of_examples() -> None:
    assert EXAMPLES_PAGE.read_text(encoding="utf-8") == examples_page(), (
        "run: PYTHONPATH=tests python -m conformance.page"
    )


def test_rows_of_keras_examples_are_in_the_table() -> None:
    named = {
        row
        for examples in EXAMPLES.values()
        for example in examples.values()
        if isinstance(example, Covered)
        for row in example.rows
    }
    of_examples = {feature.name for feature in FEATURES if feature.group == EXAMPLES_OF_KERAS}

    assert named <= {feature.name for feature in FEATURES}
    assert of_examples <= named, "no example needs this row"


def test_names_of_features_are_unique() -> None:
    assert len({feature.name for feature in FEATURES}) == len(FEATURES)
