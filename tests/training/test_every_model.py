"""Every architecture of ``models/`` trains under both strategies, and predicts the same after saving and loading."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.environment import python_path
from support.ports import free_ports
from training.every_model import BATCH, CASES, CNN, STEPS

SCRIPT = Path(__file__).with_name("every_model.py")
DEADLINE_S = 560.0
GROUPS = [
    ["resnet18", "resnet34", "resnet50"],
    ["resnet20", "resnet32", "resnet56"],
    [name for name in CNN if not name.startswith("resnet")],
    [name for name in CASES if name not in CNN],
]
"""Cases that share processes: starting TensorFlow takes longer than most cases."""
GROUP_OF = {name: tuple(group) for group in GROUPS for name in group}


@functools.cache
def trained(strategy: str, names: tuple[str, ...]) -> list[dict[str, dict[str, Any]]]:
    """Train some cases; return the results of each process: case -> result."""
    # Files instead of pipes: the second process would block on a full pipe while the test waits for the first one.
    ports = free_ports()
    kinds = [["mirrored", str(i), *ports] for i in range(2)] if strategy == "mirrored" else [["servers"]]
    environment = {**os.environ, "PYTHONPATH": python_path(), "TF_CPP_MIN_LOG_LEVEL": "3"}
    until = time.monotonic() + DEADLINE_S
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in kinds]
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), *kind, *names], stdout=log, stderr=log, env=environment
            )
            for kind, log in zip(kinds, logs, strict=True)
        ]
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):  # The results then lack cases.
                for process in processes:
                    process.wait(max(until - time.monotonic(), 0))
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [results_in(log, names) for log in logs]


def results_in(log: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the result of each case in a process's log; for a missing case, the end of the log."""
    log.seek(0)
    lines = log.read().splitlines()
    said = [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]
    missing = {"missing": "\n".join(lines[-40:])}
    return dict.fromkeys(names, missing) | {result["case"]: result for result in said}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_model_trains_under_synchronous_workers_and_is_saved_complete(case: str) -> None:
    first, second = (said[case] for said in trained("mirrored", GROUP_OF[case]))
    check(first)
    check(second)
    assert first["weights"] == second["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_model_trains_under_parameter_servers_and_is_saved_complete(case: str) -> None:
    (said,) = trained("servers", GROUP_OF[case])
    check(said[case])
    assert said[case]["rows"] == [STEPS * BATCH]


def check(said: dict[str, Any]) -> None:
    """Check that a model was trained, and that the model loaded from its file predicts the same."""
    assert "missing" not in said, said["missing"]
    assert said["logs"]
    assert all(map(math.isfinite, said["logs"].values())), said["logs"]
    assert said["moved"]
    assert said["finite"]
    assert said["apart"] < 1e-5
    assert set(said["iterations"]) == {STEPS}
