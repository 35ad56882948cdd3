"""Bounds: of what grows with the length of a training, and of the wait for a driver that is gone."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pyarrow.flight as flight
import pytest
from cluster.planes import plane_of

from tfspark.cluster.control import KEPT_JOBS, KEPT_RESULTS
from tfspark.cluster.state.checkpoint_store import CheckpointStore
from tfspark.protocol.timing import UNREACHED_S
from tfspark.protocol.wire import ActionClient, new_secret
from tfspark.training.checkpointing import KEPT_EPOCHS, Progress


def test_jobs_arrive_in_their_order_although_the_driver_forgets_old_ones(tmp_path: Path) -> None:
    secret, posted = new_secret(), KEPT_JOBS + 10
    plane = plane_of(tmp_path, CheckpointStore(tmp_path, None), secret, [])
    try:
        with ActionClient(plane.location, secret) as client:
            for number in range(1, posted + 1):
                assert plane.post_job("train", call=number) == number
                if number > posted - 3 or number < 3:
                    job = client.call("next_job", after=number - 1)
                    assert (job["job"], job["call"]) == (number, number)
                    client.call("job_done", job=number, node=0, result=number)
            assert client.call("next_job", after=posted) == {"kind": "wait"}
            assert client.call("next_job", after=0)["job"] == posted - KEPT_JOBS + 1
        assert plane.job_results(posted) == {0: posted}
        assert plane.job_results(posted - KEPT_RESULTS - 1) == {}
    finally:
        plane.close()


def test_progress_keeps_all_epochs_of_the_current_training_and_the_last_epochs_before_it() -> None:
    progress = Progress()
    for call in range(0, 3 * KEPT_EPOCHS, 2):  # As micro-batches, each trained twice.
        progress.begin(call)
        for epoch in (call, call + 1):
            progress.add({"loss": float(epoch)}, rows=epoch)
        assert progress.of_call == {"history": {"loss": [call, call + 1]}, "rows": [call, call + 1]}
    last = 3 * KEPT_EPOCHS
    assert progress.history == {"loss": list(range(last - KEPT_EPOCHS - 2, last))}
    assert progress.rows == progress.history["loss"]

    progress.begin(last)
    for epoch in range(2 * KEPT_EPOCHS):
        progress.add({"loss": float(epoch)}, rows=epoch)
    assert len(progress.of_call["rows"]) == 2 * KEPT_EPOCHS


def test_last_report_to_a_driver_that_is_gone_is_given_up_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with (
        ActionClient(f"grpc://127.0.0.1:{port}", new_secret()) as client,
        pytest.raises(flight.FlightUnavailableError),
    ):
        client.call("node_ended", unreached_s=0.5)
    assert time.monotonic() - began < UNREACHED_S / 2
