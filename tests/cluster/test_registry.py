"""What the driver knows about its nodes, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cluster.registered import TIMEOUT_S, VERSIONS, is_transient, register
from support.clock import Clock

from tfspark.cluster.state.registry import MOVES, NodeState, Registry, count_roles, describe_mismatch
from tfspark.cluster.state.restarts import RestartBudget
from tfspark.errors import DataError, NodeFailedError, ReservationError, in_words
from tfspark.protocol.failures import FailureKind
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.timing import LOST_PEER_SETTLE_S, REPLACEMENT_S

TRAINER_TIMEOUT_S = 40.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    """Two workers, both registered."""
    registry = new_registry(clock)
    for index in range(2):
        assert register(registry, index) == {"action": "go", "attempt": 1}
    return registry


def new_registry(clock: Clock) -> Registry:
    return Registry(
        plan_nodes(2), TIMEOUT_S, VERSIONS, TRAINER_TIMEOUT_S, clock, RestartBudget(5, 1000.0, clock)
    )


def test_missing_when_one_has_registered_names_the_other(clock: Clock) -> None:
    registry = new_registry(clock)
    register(registry, 0)

    assert registry.missing() == ["worker 1"]


def test_addresses_when_all_have_registered_are_known(registry: Registry) -> None:
    assert registry.missing() == []
    assert registry.addresses() == {0: "host-0:7000", 1: "host-1:7001"}


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [
        pytest.param("python", "3.12.1", "python 3.12.1, the driver has 3.11.9", id="python's minor number"),
        pytest.param("tensorflow", "2.16.2", "tensorflow 2.16.2, the driver has 2.21.0", id="tensorflow"),
        pytest.param("keras", None, "keras is missing, the driver has 3.15.0", id="not installed there"),
    ],
)
def test_register_when_versions_differ_names_both(
    clock: Clock, name: str, found: str | None, said: str
) -> None:
    registry = new_registry(clock)

    assert register(registry, 1, **{name: found}) == {"action": "stop"}

    assert registry.check()
    error = registry.error()
    assert isinstance(error, ReservationError)
    assert "worker 1 on host-1" in str(error)
    assert said in str(error)
    assert "install the same major.minor versions" in str(error)


def test_describe_mismatch_when_only_patch_levels_differ_is_empty() -> None:
    assert describe_mismatch(VERSIONS, {**VERSIONS, "python": "3.11.2", "keras": "3.15.7"}) == ""


def test_describe_mismatch_when_the_driver_lacks_a_package_does_not_compare_it() -> None:
    assert describe_mismatch({**VERSIONS, "tensorflow": None}, VERSIONS) == ""


def test_register_when_the_node_has_registered_before_means_that_it_was_lost(registry: Registry) -> None:
    assert register(registry, 1) == {"action": "stop"}

    assert not registry.check(), "more reports may still explain why it ended"
    error = after_settling(registry)
    assert isinstance(error, NodeFailedError)
    assert (error.node, error.host) == ("worker 1", "host-1")
    assert "the process that ran it was killed" in error.cause


def test_register_by_the_same_task_again_gets_the_same_answer(registry: Registry, clock: Clock) -> None:
    """The first answer was lost on its way."""
    registry.may_replace_workers = True
    first = registry.register(1, "host-1", 7100, VERSIONS, "2", "task b")
    assert first == {"action": "go", "attempt": 2, "port": 7001}
    clock.now += 1
    assert registry.register(1, "host-1", 7100, VERSIONS, "2", "task b") == first
    assert registry.register(1, "host-1", 7200, VERSIONS, "3", "task c")["attempt"] == 3
    assert registry.register(0, "host-0", 7100, VERSIONS, "2", "task d") == {"action": "stop"}
    assert registry.failed


def test_register_of_a_replacement_gets_the_port_that_the_remaining_nodes_know(
    registry: Registry, clock: Clock
) -> None:
    registry.may_replace_workers = True
    clock.now += 5

    assert register(registry, 1) == {"action": "go", "attempt": 2, "port": 7001}
    assert registry.heartbeat(1, 1), "the earlier attempt must stop"
    assert not registry.heartbeat(1, 2)
    clock.now += 3
    assert registry.replacement_up(1) == 3
    assert not registry.check()


def test_register_of_a_replacement_on_a_different_host_is_a_loss(registry: Registry) -> None:
    registry.may_replace_workers = True

    assert registry.register(1, "host-2", 7005, VERSIONS) == {"action": "stop"}
    assert registry.failed


def test_replacement_that_does_not_come_up_is_a_loss(registry: Registry, clock: Clock) -> None:
    registry.may_replace_workers = True
    assert registry.replace(1, 1) == 2
    for _ in range(round(REPLACEMENT_S / 5)):
        assert not registry.check()
        clock.now += 5
        assert not registry.heartbeat(0, 1)
        assert not registry.heartbeat(1, 2)
    clock.now += 1
    registry.check()

    error = after_settling(registry)
    assert "another was not up after 120 s" in str(error)
    assert is_transient(registry)


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(
            lambda r: r.trainer_failed(1, "ValueError", "", FailureKind.EXCEPTION),
            id="it reported an exception",
        ),
        pytest.param(
            lambda r: r.trainer_failed(0, "ValueError", "", FailureKind.EXCEPTION), id="another node failed"
        ),
        pytest.param(lambda r: r.trainer_ended(1, None), id="it had returned"),
        pytest.param(lambda r: setattr(r, "stopping", True), id="the cluster stops"),
        pytest.param(lambda r: setattr(r, "_budget", RestartBudget(0, 1.0)), id="no restarts are left"),
    ],
)
def test_trainer_that_ends_is_not_replaced(registry: Registry, before: Callable[[Registry], None]) -> None:
    registry.may_replace_workers = True
    before(registry)
    assert registry.replace(1, 1) == 0


def test_register_when_stopping_is_refused_without_a_failure(registry: Registry) -> None:
    registry.stopping = True

    assert register(registry, 1) == {"action": "stop"}
    assert not registry.failed


def test_check_when_a_node_is_silent_says_for_how_long(registry: Registry, clock: Clock) -> None:
    clock.now += TIMEOUT_S - 1
    assert registry.heartbeat(0, 1) is False
    assert not registry.check()
    clock.now += 2

    registry.check()

    error = after_settling(registry)
    assert isinstance(error, NodeFailedError)
    assert error.node == "worker 1"
    assert "no heartbeat for 10 s" in error.cause


def test_check_when_a_node_has_ended_does_not_wait_for_its_heartbeat(
    registry: Registry, clock: Clock
) -> None:
    for index in range(2):
        registry.trainer_ended(index, {"loss": 0.5})
        registry.node_ended(index, 1, "", [])
    clock.now += 10 * TIMEOUT_S

    assert not registry.check()
    assert registry.all_ended
    assert registry.all_succeeded("worker")


def test_heartbeat_when_a_peer_has_failed_tells_to_stop(registry: Registry) -> None:
    registry.trainer_failed(0, "ValueError: no", "Traceback ...", FailureKind.EXCEPTION)

    assert registry.heartbeat(1, 1) is True


def test_heartbeat_of_another_attempt_is_told_to_stop(registry: Registry) -> None:
    assert registry.heartbeat(1, 7) is True


def test_node_ended_of_another_attempt_is_refused(registry: Registry) -> None:
    registry.node_ended(1, 7, "killed by SIGKILL", [])

    assert not registry.failed


def test_node_ended_when_stopping_is_no_failure(registry: Registry) -> None:
    registry.stopping = True

    registry.node_ended(1, 1, "its trainer process was killed by SIGTERM", [])

    assert not registry.failed


def test_error_when_the_failed_node_has_ended_is_returned_at_once_with_its_log(registry: Registry) -> None:
    registry.trainer_failed(1, "ValueError: no", "Traceback: the user's code", FailureKind.EXCEPTION)
    registry.node_ended(1, 1, "its trainer process exited with code 1", ["line 1", "line 2"])

    assert registry.check()
    error = registry.error()
    assert isinstance(error, NodeFailedError)
    assert error.cause == "ValueError: no"
    assert error.log_tail == ("line 1", "line 2")
    assert "Traceback: the user's code" in str(error)


def test_error_when_peers_fail_first_in_a_collective_is_the_killed_node(
    registry: Registry, clock: Clock
) -> None:
    registry.trainer_failed(0, "UnavailableError: peer is gone", "Traceback", FailureKind.COLLECTIVE)
    registry.node_ended(0, 1, "its trainer process exited with code 1", [])
    assert not registry.check(), "a lost peer explains it and may still be reported"
    clock.now += 0.5
    registry.node_ended(1, 1, "its trainer process was killed by SIGKILL", ["last words"])

    error = after_settling(registry)
    assert isinstance(error, NodeFailedError)
    assert error.node == "worker 1"
    assert "SIGKILL" in error.cause
    assert error.log_tail == ("last words",)


def test_error_is_the_collective_error_when_nothing_else_explains_it(registry: Registry) -> None:
    registry.trainer_failed(0, "UnavailableError: peer is gone", "Traceback", FailureKind.COLLECTIVE)

    assert "UnavailableError" in str(after_settling(registry))


def test_error_when_two_nodes_fail_independently_is_the_first(registry: Registry, clock: Clock) -> None:
    registry.trainer_failed(1, "ValueError: first", "Traceback", FailureKind.EXCEPTION)
    clock.now += 0.1
    registry.trainer_failed(0, "ValueError: second", "Traceback", FailureKind.EXCEPTION)

    assert "ValueError: first" in str(after_settling(registry))


def test_error_when_rows_are_not_as_declared_is_a_data_error(registry: Registry) -> None:
    registry.trainer_failed(0, "partition 2, row 7: column 'x' is null", "Traceback", FailureKind.DATA)

    error = after_settling(registry)
    assert isinstance(error, DataError)
    assert str(error) == "partition 2, row 7: column 'x' is null"


def test_error_of_the_whole_cluster_is_returned_as_it_is(registry: Registry) -> None:
    registry.fail_cluster(ReservationError("the Spark job failed"))

    assert registry.check()
    assert str(registry.error()) == "the Spark job failed"
    assert not is_transient(registry)


def test_transient_error_of_the_cluster_is_transient_unless_a_node_fails_permanently(
    registry: Registry,
) -> None:
    registry.fail_cluster(ReservationError("rows have moved"), transient=True)
    assert registry.check()
    assert is_transient(registry)
    registry.trainer_failed(0, "ValueError: wrong", "Traceback", FailureKind.EXCEPTION)
    assert not is_transient(registry)


def test_late_messages_change_nothing(registry: Registry) -> None:
    registry.trainer_failed(0, "ValueError: no", "Traceback", FailureKind.EXCEPTION)
    registry.trainer_ended(0, {"loss": 0.5})
    assert registry.nodes[0].state is NodeState.FAILED
    assert not registry.all_succeeded("worker")

    registry.node_ended(0, 1, "its trainer process exited with code 1", [])
    registry.trainer_failed(0, "KeyError: late", "Traceback", FailureKind.EXCEPTION)
    assert registry.nodes[0].state is NodeState.ENDED
    assert "ValueError: no" in str(registry.error())


def test_every_state_but_the_last_leads_to_the_end() -> None:
    assert {state for state, following in MOVES.items() if not following} == {NodeState.ENDED}
    assert all(NodeState.ENDED in MOVES[state] for state in NodeState if state is not NodeState.ENDED)


def test_count_roles_when_mixed_counts_each() -> None:
    counts = count_roles(plan_nodes(4, num_ps=1, eval_node=True))
    assert counts == {"worker": 2, "ps": 1, "evaluator": 1, "chief": 1}


def after_settling(registry: Registry) -> Exception:
    """Let time pass until the registry has settled the cause; return the error."""
    clock = registry._clock
    assert isinstance(clock, Clock)
    for _ in range(1 + round(LOST_PEER_SETTLE_S)):
        clock.now += 1.0
        for index in registry.nodes:
            registry.heartbeat(index, 1)
        if registry.check():
            return registry.error()
    raise AssertionError(f"no error after {LOST_PEER_SETTLE_S} s")


def test_silent_node_is_blamed_when_another_node_misses_a_peer(registry: Registry, clock: Clock) -> None:
    """Its host is gone. Nobody reports this, and the timeout of heartbeats is much longer."""
    registry.heartbeat(1, 1)
    registry.trainer_failed(0, "UnavailableError: a peer is gone", "", FailureKind.COLLECTIVE)
    for _ in range(4):
        assert not registry.check()
        clock.now += 1.0
        registry.heartbeat(0, 1)
    assert registry.check()
    error = registry.error()
    assert isinstance(error, NodeFailedError)
    assert error.node == "worker 1"
    assert "no heartbeat for 3 s" in error.cause


def test_node_that_is_silent_since_it_was_told_to_stop_is_not_blamed(
    registry: Registry, clock: Clock
) -> None:
    registry.trainer_failed(0, "UnavailableError: a peer is gone", "", FailureKind.COLLECTIVE)
    assert registry.heartbeat(1, 1), "told to stop"
    clock.now += 4.5
    assert registry.check()
    assert "UnavailableError" in str(registry.error())


def test_trainer_that_becomes_silent_is_lost_although_its_node_sends_heartbeats(
    registry: Registry, clock: Clock
) -> None:
    for index in (0, 1):
        registry.trainer_alive(index, 0, "idle")
    for _ in range(5):
        clock.now += TIMEOUT_S - 1
        registry.trainer_alive(0, 0, "idle")
        for index in (0, 1):
            registry.heartbeat(index, 1)
        registry.check()

    error = registry.error()
    assert isinstance(error, NodeFailedError)
    assert error.node == "worker 1"
    assert "not heard of for 45 s" in error.cause
    assert is_transient(registry)


def test_silent_trainer_is_blamed_when_another_trainer_misses_a_peer(
    registry: Registry, clock: Clock
) -> None:
    for index in (0, 1):
        registry.trainer_alive(index, 0, "idle")
    clock.now += 8.0
    registry.trainer_alive(0, 0, "idle")
    registry.trainer_failed(0, "UnavailableError: a peer is gone", "", FailureKind.COLLECTIVE)
    registry.check()

    error = registry.error()
    assert isinstance(error, NodeFailedError)
    assert error.node == "worker 1"


def test_failure_is_transient_only_if_the_users_code_did_not_raise(registry: Registry) -> None:
    registry.task_failed(0, "its executor was lost")
    assert is_transient(registry)
    registry.trainer_failed(1, "ValueError: no", "", FailureKind.EXCEPTION)
    assert not is_transient(registry)


def beat_for(registry: Registry, clock: Clock, seconds: float, *pulses: tuple[int, str]) -> None:
    """Let both trainers report the same for `seconds`."""
    until = clock.now + seconds
    while clock.now < until:
        for index, (steps, state) in enumerate(pulses):
            registry.heartbeat(index, 1)
            registry.trainer_alive(index, steps, state)
        registry.check()
        clock.now += 1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((3, "busy"), (3, "waiting"), id="one waits for rows"),
        pytest.param((3, "idle"), (3, "idle"), id="nothing to do"),
    ],
)
def test_trainers_are_not_stalled_while_one_waits_or_is_idle(
    registry: Registry, clock: Clock, first: tuple[int, str], second: tuple[int, str]
) -> None:
    beat_for(registry, clock, 3 * TRAINER_TIMEOUT_S, first, second)

    assert not registry.failed
    assert not registry.wants_stacks


def test_trainers_are_not_stalled_while_one_ends_steps(registry: Registry, clock: Clock) -> None:
    for steps in range(6):
        beat_for(registry, clock, TRAINER_TIMEOUT_S / 2, (3, "busy"), (steps, "busy"))

    assert not registry.failed


def test_trainers_that_end_no_step_are_asked_for_their_stacks_and_lost(
    registry: Registry, clock: Clock
) -> None:
    beat_for(registry, clock, TRAINER_TIMEOUT_S + 2, (3, "busy"), (2, "busy"))
    assert registry.wants_stacks
    assert not registry.failed
    beat_for(registry, clock, 4, (3, "busy"), (2, "busy"))
    for index in (0, 1):
        registry.node_ended(index, 1, "", [f"stacks of {index}"])

    error = after_settling(registry)
    assert isinstance(error, NodeFailedError)
    assert "no trainer ended a step for 4" in error.cause
    assert "raise feed_timeout" in error.cause
    assert "stacks of 0" in in_words(error)
    assert "stacks of 1" in in_words(error)
    assert is_transient(registry)


def test_trainers_that_end_a_step_after_all_are_not_lost(registry: Registry, clock: Clock) -> None:
    beat_for(registry, clock, TRAINER_TIMEOUT_S + 2, (3, "busy"), (3, "busy"))
    assert registry.wants_stacks
    beat_for(registry, clock, 5, (4, "busy"), (4, "busy"))

    assert not registry.wants_stacks
    assert not registry.failed
