"""The order of clocks that depend on each other, each with its reason."""

from __future__ import annotations

import pytest

from tfspark.protocol import timing as t


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        pytest.param(
            t.LONG_POLL_S, t.CALL_TIMEOUT_S / 10, id="a call outlasts what its server may hold it for"
        ),
        pytest.param(
            t.UNREACHED_S, t.HEARTBEAT_TIMEOUT_S, id="a reset connection is tried again, no node is lost"
        ),
        pytest.param(t.HEARTBEAT_S, t.AWAKE_S, id="the clock of a driver that gets heartbeats loses no time"),
        pytest.param(t.AWAKE_S, t.LOST_PEER_S, id="a driver that was stopped blames no node"),
        pytest.param(
            2 * t.HEARTBEAT_S, t.LOST_PEER_S, id="a node misses more than one heartbeat before it is blamed"
        ),
        pytest.param(
            2 * t.TRAINER_HEARTBEAT_S,
            t.SILENT_PEER_S,
            id="a trainer misses more than one report before it is blamed",
        ),
        pytest.param(
            t.SILENT_PEER_S, t.TRAINER_SILENCE_S, id="a trainer is blamed sooner if another misses a peer"
        ),
        pytest.param(
            t.LOST_PEER_S, t.HEARTBEAT_TIMEOUT_S, id="a node is blamed sooner if another misses a peer"
        ),
        pytest.param(t.HEARTBEAT_S, t.SETTLE_S, id="a heartbeat may bring what explains a failure better"),
        pytest.param(
            t.LOST_PEER_S, t.LOST_PEER_SETTLE_S, id="a silent node is found before others are blamed"
        ),
        pytest.param(t.SETTLE_S, t.EXPLAIN_S, id="a node's failure is known before Spark's error is raised"),
        pytest.param(
            2 * t.HEARTBEAT_S, t.STACKS_S, id="two heartbeats carry the request for stacks and the reply"
        ),
        pytest.param(
            t.HEARTBEAT_TIMEOUT_S,
            t.DRIVER_SILENCE_S,
            id="nodes wait longer for their driver than it waits for them",
        ),
        pytest.param(t.CALL_TIMEOUT_S, t.DRIVER_SILENCE_S, id="one lost answer of the driver ends no node"),
        pytest.param(
            3 * t.HEARTBEAT_S, t.SOURCE_SILENCE_S, id="a feed task sends several heartbeats before it is lost"
        ),
        pytest.param(
            t.SOURCE_SILENCE_S, t.SOURCE_UNREACHED_S, id="the driver first says whether a source is lost"
        ),
        pytest.param(t.HEARTBEAT_S + t.STOP_GRACE_S, t.STOP_TIMEOUT_S, id="nodes can end in order"),
        pytest.param(t.STOP_GRACE_S + t.LAST_WORDS_S, t.STOP_TIMEOUT_S, id="nodes can report their end"),
        pytest.param(t.PREEMPTION_GRACE_S, 30.0, id="Kubernetes ends a pod after 30 s"),
        pytest.param(
            t.HEARTBEAT_TIMEOUT_S, t.REPLACEMENT_S, id="a trainer may import TensorFlow on a loaded machine"
        ),
    ],
)
def test_clocks_keep_their_order(shorter: float, longer: float) -> None:
    assert shorter < longer
