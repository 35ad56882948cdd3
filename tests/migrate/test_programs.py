"""Programs like the examples of TensorFlowOnSpark, with only their imports changed, on real clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from migrate import digits
from support.driver import run_driver
from support.standalone import StandaloneCluster

HERE = Path(__file__).resolve().parent
LOCAL_CLUSTER = "local-cluster[2,2,2048]"
TIMEOUT_S = 900.0
"""For a busy machine. On an idle machine the programs take one to two minutes."""
pytestmark = pytest.mark.timeout(1200)


def printed(output: str, key: str) -> Any:
    """Return the JSON that a program printed after the word `key`."""
    line = next(line for line in output.splitlines() if line.startswith(f"{key} "))
    return json.loads(line.removeprefix(f"{key} "))


def images(tmp_path: Path, sizes: list[int]) -> list[str]:
    digits.write_csv(tmp_path / "csv", sizes)
    return ["--images_labels", str(tmp_path / "csv"), "--export_dir", str(tmp_path / "export")]


def check_mnist_spark(nodes: Any, least_rows: int) -> None:
    workers = [nodes["worker 0"], nodes["worker 1"]]
    assert [worker["who"] for worker in workers] == [["chief", 0, 2, 0], ["worker", 0, 2, 1]]
    assert workers[0]["cluster"] == {"chief": 1, "worker": 1}
    assert workers[0]["weights"] == workers[1]["weights"], "trained together"
    assert workers[0]["iterations"] == workers[1]["iterations"]
    assert min(worker["rows"] for worker in workers) >= least_rows
    assert workers[0]["accuracy"][-1] > 0.9


def test_mnist_spark_when_it_stops_at_nine_tenths_of_the_rows_trains_together_and_exports(
    tmp_path: Path,
) -> None:
    arguments = [*images(tmp_path, [400, 100, 300]), "--rows", "800"]

    ended = run_driver(LOCAL_CLUSTER, HERE / "mnist_spark.py", *arguments, timeout_s=TIMEOUT_S).check()

    check_mnist_spark(printed(ended.stdout, "NODES"), 360)
    assert (tmp_path / "export" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_mnist_spark_when_uneven_rows_are_read_to_the_end_does_not_hang(
    standalone: StandaloneCluster, tmp_path: Path
) -> None:
    arguments = [*images(tmp_path, [300, 0, 37]), "--epochs", "1", "--to_the_end"]

    ended = standalone.submit(HERE / "mnist_spark.py", *arguments, timeout_s=TIMEOUT_S).check()

    nodes = printed(ended.stdout, "NODES")
    check_mnist_spark(nodes, 337 // 2)
    assert nodes["worker 0"]["rows"] == nodes["worker 1"]["rows"], "the shorter share is filled up"


@pytest.mark.slow
@pytest.mark.parametrize("on", [LOCAL_CLUSTER, "standalone"])
def test_mnist_others_have_the_expected_results(
    request: pytest.FixtureRequest, tmp_path: Path, on: str
) -> None:
    paths = ["--tfrecords", str(tmp_path / "tfrecords"), "--output", str(tmp_path / "predictions")]
    arguments = [*images(tmp_path, [250, 150]), *paths]
    script = HERE / "mnist_others.py"

    if on == "standalone":
        cluster = request.getfixturevalue("standalone")
        ended = cluster.submit(script, *arguments, timeout_s=TIMEOUT_S).check()
    else:
        ended = run_driver(on, script, *arguments, timeout_s=TIMEOUT_S).check()

    found = printed(ended.stdout, "TOLD")
    assert found["loaded"] == [True, False, [["image", "array<bigint>"], ["label", "bigint"]], 400]
    for what in ("transformed", "parallel", "inferred"):
        count, accuracy = found[what]
        assert (what, count) == (what, 400)
        assert accuracy > 0.9, (what, found["trained"])
    assert found["inferred in order"]
    assert sum(found["inferred by"].values()) == 400
    files = found["from files"]
    assert [files[f"worker {i}"]["who"] for i in range(2)] == ["chief:0", "worker:0"]
    assert files["worker 0"]["loss"] == files["worker 1"]["loss"]


def test_streaming_when_the_worker_has_enough_rows_ends_the_stream() -> None:
    ended = run_driver("local[3]", HERE / "streaming.py", timeout_s=TIMEOUT_S).check()
    assert sorted(printed(ended.stdout, "ROWS")) == list(range(21))
