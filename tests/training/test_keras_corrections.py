"""Keras 3 under two real workers trains with the corrections, and still fails without any one of them.

If a test named ``..._upstream_still_...`` fails, Keras has corrected that fault: remove the correction from
`tfspark.training.keras_corrections`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.environment import python_path
from support.ports import free_ports

SCRIPT = Path(__file__).with_name("two_workers.py")
STEPS = 5 + 7 + 4
DEADLINE_S = 240
ALL = ("reduce", "build", "epochs", "state", "gradients")


def fit_on_two_workers(*left_out: str) -> list[dict[str, object]]:
    """Run both workers; return their results. If one fails, the other one fails, too, because it has lost its peer."""
    ports = free_ports()
    environment = {**os.environ, "PYTHONPATH": python_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(index), *ports, *left_out],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=DEADLINE_S)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


@pytest.fixture(scope="module")
def corrected() -> list[dict[str, object]]:
    return fit_on_two_workers()


def test_corrected_fit_trains_epochs_of_different_lengths(corrected: list[dict[str, object]]) -> None:
    assert [worker["error"] for worker in corrected] == [None, None]
    assert [worker["epochs"] for worker in corrected] == [3, 3]


def test_optimizer_iterations_of_a_corrected_fit_equal_the_steps(corrected: list[dict[str, object]]) -> None:
    assert [worker["iterations"] for worker in corrected] == [STEPS, STEPS]


def test_weights_of_a_corrected_fit_are_identical_on_both_workers(corrected: list[dict[str, object]]) -> None:
    first, second = corrected
    assert first["trained"] == second["trained"]
    assert first["state"] == second["state"]


@pytest.mark.parametrize("fault", ["reduce", "build", "gradients"])
def test_fit_without_correction_upstream_still_fails(fault: str) -> None:
    errors = [worker["error"] for worker in fit_on_two_workers(fault)]
    assert errors, "neither worker printed a result"
    assert all(error is not None for error in errors)


def test_epochs_without_correction_upstream_still_miscounts() -> None:
    workers = fit_on_two_workers("epochs")
    assert [worker["iterations"] for worker in workers] != [STEPS, STEPS]


def test_batch_normalization_without_correction_upstream_still_differs_between_workers() -> None:
    first, second = fit_on_two_workers("state")
    assert first["trained"] == second["trained"]
    assert first["state"] != second["state"]


def test_present_faults_of_the_installed_keras_are_all_known() -> None:
    code = "from tfspark.training.keras_corrections import present_faults; print(sorted(present_faults()))"
    environment = {**os.environ, "PYTHONPATH": python_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == str(sorted(ALL))
