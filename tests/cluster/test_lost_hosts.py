"""A standalone cluster loses a worker daemon, or the network to a host, in mid-epoch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster.programs import ALL_EXECUTORS_FIRST
from support.network import Network, namespaces, network_refused, set_link
from support.processes import last_json, poll_until
from support.standalone import StandaloneCluster

PROGRAM = Path(__file__).with_name("lose_and_tell.py")
DEADLINE_S = 480.0
TWO_EXECUTORS = {"spark.executor.cores": "2", "spark.cores.max": "4"}
"""Two executors use all cores of the application, so a third worker daemon is idle until one is lost."""
SPARK_NOTICES = {
    "spark.network.timeout": "20s",
    "spark.network.timeoutInterval": "5s",
    "spark.executor.heartbeatInterval": "4s",
}
"""Spark itself removes a silent executor after 20 s; the default is 120 s."""


def check(stdout: str) -> dict[str, Any]:
    """Check that training continued once, and ended as if nothing had been lost; return the program's results."""
    told: dict[str, Any] = last_json(stdout)
    (cause,) = told["causes"]
    assert cause.startswith("worker 1 on ")
    assert [event["epoch"] for event in told["resumed"]] == [1]
    assert told["undisturbed"]["rows"] == [640, 640]
    assert told["trained"] == told["undisturbed"]
    assert told["left"] == []
    return told


@pytest.mark.slow
def test_training_when_a_worker_daemon_is_stopped_goes_on_with_another(tmp_path: Path) -> None:
    conf = TWO_EXECUTORS | ALL_EXECUTORS_FIRST
    with StandaloneCluster(tmp_path, num_workers=3) as cluster:
        result = cluster.submit(PROGRAM, "daemon", timeout_s=DEADLINE_S, conf=conf).check()
        stopped = [daemon for daemon in cluster.daemons[1:] if daemon.process.poll() is not None]
    check(result.stdout)
    assert len(stopped) == 1


@pytest.mark.slow
def test_training_without_a_replacement_for_a_worker_goes_on_with_fewer_until_there_is_one(
    tmp_path: Path,
) -> None:
    shrunk = tmp_path / "shrunk"
    with (
        StandaloneCluster(tmp_path / "cluster") as cluster,
        ThreadPoolExecutor(1) as beside,
    ):
        submitted = beside.submit(
            cluster.submit, PROGRAM, "shrink", str(shrunk), timeout_s=DEADLINE_S, conf=ALL_EXECUTORS_FIRST
        )
        poll_until(lambda: submitted.done() or shrunk.exists(), DEADLINE_S)
        cluster.start_worker()
        result = submitted.result().check()
    told = last_json(result.stdout)
    assert told["sized"] == [2, 1, 2]
    assert told["restarts"] == 1
    assert told["trained"]["rows"] == [640] * told["epochs"]
    assert len(told["trained"]["history"]["loss"]) == told["epochs"]


@pytest.fixture
def network() -> Iterator[Network]:
    """Create the host of a driver and the hosts of two workers."""
    if why := network_refused():
        pytest.skip(f"needs root and network namespaces; {why}")
    with Network(3) as network:
        yield network
    left = [name for name in namespaces() if name.startswith(network.switch.removesuffix("-switch"))]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("restored_after_s", "conf"),
    [
        pytest.param(18, {}, id="it comes back while nodes are started again"),
        pytest.param(3600, SPARK_NOTICES, id="it stays cut off until the end"),
    ],
)
def test_training_goes_on_as_before_when_a_host_is_cut_off(
    restored_after_s: int, conf: dict[str, str], network: Network, tmp_path: Path
) -> None:
    """The processes on the cut-off host end by themselves, and Spark starts the new nodes on the second host."""
    with StandaloneCluster(tmp_path, cores=3, hosts=network.hosts) as cluster:
        result = cluster.submit(
            PROGRAM,
            *("link", network.switch, str(restored_after_s)),
            timeout_s=DEADLINE_S,
            conf=ALL_EXECUTORS_FIRST | conf,
        ).check()
    told = check(result.stdout)
    # After the timeout of the heartbeat, or sooner if the collective operation of worker 0 failed first.
    assert re.search("no heartbeat for [38] s", told["causes"][0])


def test_hosts_of_a_network_reach_each_other_until_a_link_is_cut(network: Network) -> None:
    def reaches(source: int, target: int, within_s: int = 30) -> bool:
        words = ["timeout", f"{within_s}", "bash", "-c", f"echo > /dev/tcp/{network.hosts[target].address}/9"]
        done = subprocess.run([*network.hosts[source].enter, *words], capture_output=True, check=False)
        return b"refused" in done.stderr  # The host answers that nobody listens there.

    assert reaches(0, 1)
    assert reaches(1, 2)
    set_link(network.switch, network.hosts[1].address, "down")
    assert not reaches(0, 1, within_s=2)
    assert reaches(0, 2)
    set_link(network.switch, network.hosts[1].address, "up")
    assert poll_until(lambda: reaches(0, 1, within_s=2), 60)
