"""Every architecture of ``models/`` under both strategies: it trains, is saved and loaded, and predicts the same."""

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
"""Cases that share processes: to start TensorFlow takes longer than most of them."""
GROUP_OF = {name: tuple(group) for group in GROUPS for name in group}


@functools.cache
def trained(strategy: str, names: tuple[str, ...]) -> list[dict[str, dict[str, Any]]]:
    """Train some cases; return what each process said of each case."""
    # Files, not pipes: nobody reads the second while the first is waited for.
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
            with contextlib.suppress(subprocess.TimeoutExpired):  # Told below, by what is missing.
                for process in processes:
                    process.wait(max(until - time.monotonic(), 0))
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [results_in(log, names) for log in logs]


def results_in(log: Any, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a process said of each case; of one that is missing, how its log ends."""
    log.seek(0)
    lines = log.read().splitlines()
    said = [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")]
    missing = {"missing": "\n".join(lines[-40:])}
    return dict.fromkeys(names, missing) | {result["case"]: result for result in said}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_model_under_synchronous_workers_trains_and_is_saved_whole(case: str) -> None:
    first, second = (said[case] for said in trained("mirrored", GROUP_OF[case]))
    check(first)
    check(second)
    assert first["weights"] == second["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_model_under_parameter_servers_trains_and_is_saved_whole(case: str) -> None:
    (said,) = trained("servers", GROUP_OF[case])
    check(said[case])
    assert said[case]["rows"] == [STEPS * BATCH]


def check(said: dict[str, Any]) -> None:
    """See that a model was trained, and that the one loaded from its file is the same."""
    assert "missing" not in said, said["missing"]
    assert said["logs"]
    assert all(map(math.isfinite, said["logs"].values())), said["logs"]
    assert said["moved"]
    assert said["finite"]
    assert said["apart"] < 1e-5
    assert set(said["iterations"]) == {STEPS}
