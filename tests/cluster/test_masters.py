"""The same training on masters whose executors are separate processes: ``local-cluster`` and a standalone cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.driver import run_driver
from support.processes import last_json
from support.standalone import StandaloneCluster

PROGRAM = Path(__file__).with_name("train_and_tell.py")


def check_training(stdout: str, log_dir: Path) -> None:
    told = last_json(stdout)
    first, second = told["nodes"]["worker 0"], told["nodes"]["worker 1"]
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["iterations"] == second["iterations"] >= 2 * 4
    assert [a + b for a, b in zip(first["rows"], second["rows"], strict=True)] == [256, 256]
    assert len(told["history"]["loss"]) == 2
    assert told["metrics"]["accuracy"] == pytest.approx(
        round(told["metrics"]["accuracy"] * 256) / 256, abs=1e-6
    )
    assert (log_dir / "export/model.keras").is_file()


@pytest.mark.slow
def test_training_on_a_local_cluster_spans_its_executors(tmp_path: Path) -> None:
    result = run_driver("local-cluster[2,2,2048]", PROGRAM, str(tmp_path), timeout_s=300).check()
    check_training(result.stdout, tmp_path)


def test_training_submitted_to_a_standalone_cluster_spans_its_executors(
    standalone: StandaloneCluster, tmp_path: Path
) -> None:
    result = standalone.submit(PROGRAM, str(tmp_path), timeout_s=300).check()
    check_training(result.stdout, tmp_path)
