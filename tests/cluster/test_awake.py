"""A clock that stands still while the process is stopped."""

from __future__ import annotations

import pytest
from cluster.registered import TIMEOUT_S, VERSIONS, register
from support.clock import Clock

from tfspark.cluster.awake import AwakeClock
from tfspark.cluster.state.registry import Registry
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.timing import AWAKE_S


def test_awake_clock_counts_the_time_between_frequent_reads_and_little_of_a_pause() -> None:
    clock = Clock()
    awake = AwakeClock(clock)
    for _ in range(10):
        clock.now += 1.0
        awake()
    assert awake() == pytest.approx(10.0)
    clock.now += 400.0
    assert awake() == pytest.approx(10.0 + AWAKE_S)


def test_nodes_are_lost_when_they_stay_silent_and_not_when_the_driver_was_stopped() -> None:
    clock = Clock()
    registry = Registry(plan_nodes(2), TIMEOUT_S, VERSIONS, clock=AwakeClock(clock))
    for index in range(2):
        register(registry, index)
    clock.now += 40.0
    assert not registry.check()
    for _ in range(int(TIMEOUT_S)):
        clock.now += 1.0
        registry.heartbeat(0, 1)
        registry.check()
    clock.now += 2.0
    registry.check()
    assert registry.failed
    assert "no heartbeat for 10 s" in str(registry.error())
