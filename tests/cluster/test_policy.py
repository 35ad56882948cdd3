"""What the driver decides after a failure, as a table: kind of failure x lost node x what the driver may do."""

from __future__ import annotations

import pytest

from tfspark.cluster.state.policy import (
    Means,
    Raise,
    Replace,
    Resize,
    Restart,
    decide,
    decide_growth,
)
from tfspark.cluster.state.size import Size
from tfspark.protocol.failures import FailureKind
from tfspark.protocol.roles import NodeSpec

WORKER_0, WORKER_1 = NodeSpec(0, "worker", 0), NodeSpec(1, "worker", 1)
SERVER, CHIEF, EVALUATOR = NodeSpec(2, "ps", 0), NodeSpec(3, "chief", 0), NodeSpec(4, "evaluator", 0)

OFF = Means(recovers=False)
FIRST, LATER, EXHAUSTED = Means(True, 0.0), Means(True, 4.0), Means(True, None)
REPLACES = Means(True, 0.0, may_replace_workers=True)
REPLACES_NO_MORE = Means(True, None, may_replace_workers=True)

KILLED, LOST, STALLED = [FailureKind.KILLED], [FailureKind.LOST], [FailureKind.STALLED]
CODE, ROWS, SETTINGS = [FailureKind.EXCEPTION], [FailureKind.DATA], [FailureKind.CONFIG]
PEER = [FailureKind.COLLECTIVE]


@pytest.mark.parametrize(
    ("kinds", "alone", "means", "decision"),
    [
        pytest.param(KILLED, None, OFF, Raise(), id="restarts are off"),
        pytest.param(KILLED, WORKER_1, OFF, Raise(), id="restarts are off, one worker of parameter servers"),
        pytest.param(CODE, None, FIRST, Raise(), id="the user's code fails again"),
        pytest.param(ROWS, None, FIRST, Raise(), id="wrong rows stay wrong"),
        pytest.param(SETTINGS, None, FIRST, Raise(), id="wrong settings stay wrong"),
        pytest.param(
            [*PEER, *CODE], None, FIRST, Raise(), id="code, beside a failure that a lost peer explains"
        ),
        pytest.param(CODE, None, EXHAUSTED, Raise(), id="code, with no restart left"),
        pytest.param(KILLED, None, FIRST, Restart(0.0), id="a process was killed, the first time"),
        pytest.param(LOST, None, FIRST, Restart(0.0), id="a host is gone"),
        pytest.param(STALLED, None, FIRST, Restart(0.0), id="no step ended"),
        pytest.param(PEER, None, FIRST, Restart(0.0), id="a collective operation failed, and nothing else"),
        pytest.param(
            [*KILLED, *PEER], None, FIRST, Restart(0.0), id="a process was killed, and its peers failed"
        ),
        pytest.param(KILLED, None, LATER, Restart(4.0), id="again within the window: after a pause"),
        pytest.param(KILLED, None, EXHAUSTED, Raise(is_exhausted=True), id="too often within the window"),
        pytest.param([], None, EXHAUSTED, Raise(is_exhausted=True), id="of an unknown kind, too often"),
        pytest.param(KILLED, WORKER_1, REPLACES, Replace(), id="a worker beside parameter servers"),
        pytest.param(KILLED, WORKER_0, REPLACES, Restart(0.0), id="worker 0, whose task holds the chief"),
        pytest.param(KILLED, CHIEF, REPLACES, Restart(0.0), id="the chief"),
        pytest.param(KILLED, SERVER, REPLACES, Restart(0.0), id="a parameter server, which holds weights"),
        pytest.param(KILLED, EVALUATOR, REPLACES, Restart(0.0), id="an evaluator"),
        pytest.param(KILLED, WORKER_1, FIRST, Restart(0.0), id="a worker whose rows nobody can serve again"),
        pytest.param(KILLED, WORKER_1, REPLACES_NO_MORE, Raise(is_exhausted=True), id="a worker, too often"),
        pytest.param(CODE, WORKER_1, REPLACES, Raise(), id="a worker whose code raised"),
    ],
)
def test_decision_follows_the_table(
    kinds: list[FailureKind], alone: NodeSpec | None, means: Means, decision: Raise | Replace | Restart
) -> None:
    assert decide(kinds, alone, means) == decision


@pytest.mark.parametrize(
    ("size", "num_slots", "room", "decision"),
    [
        pytest.param(Size(4, 2), 2, 4, Resize(), id="room for all"),
        pytest.param(Size(4, 2), 2, 3, Resize(), id="room for one more"),
        pytest.param(Size(4, 2), 2, 2, None, id="no room"),
        pytest.param(Size(4, 2), 3, 2, None, id="less room than it holds: Spark has lost an executor"),
        pytest.param(Size(4, 2), 4, 9, None, id="it has all workers"),
        pytest.param(Size(4, 4), 4, 9, None, id="its size is fixed"),
        pytest.param(
            Size(4, 2, num_ps=1, on_driver=1), 3, 9, None, id="all workers, with a server on the driver"
        ),
        pytest.param(Size(4, 2), 2, None, None, id="Spark Connect: the room is not known"),
    ],
)
def test_decision_to_grow_follows_the_table(
    size: Size, num_slots: int, room: int | None, decision: Resize | None
) -> None:
    assert decide_growth(size, num_slots, room) == decision


@pytest.mark.parametrize("kind", list(FailureKind))
def test_every_kind_of_failure_leads_to_a_restart_or_is_raised(kind: FailureKind) -> None:
    expected = Restart(0.0) if kind.is_transient else Raise()
    assert decide([kind], None, FIRST) == expected
