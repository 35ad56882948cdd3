"""What the driver knows about its nodes: which have registered, which are up, which failed and why. Pure state."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tfspark.cluster.state.policy import Means, Replace, decide
from tfspark.cluster.state.restarts import RestartBudget
from tfspark.errors import DataError, NodeFailedError, ReservationError, TfsparkError
from tfspark.protocol.activity import IDLE, WAITING
from tfspark.protocol.failures import FailureKind
from tfspark.protocol.roles import NodeSpec
from tfspark.protocol.timing import (
    LOST_PEER_S,
    LOST_PEER_SETTLE_S,
    PREEMPTION_GRACE_S,
    REPLACEMENT_S,
    SETTLE_S,
    SILENT_PEER_S,
    STACKS_S,
)
from tfspark.protocol.values import Json

TASK_AGAIN = "Spark started its task again: the process that ran it was killed"
LEFT_EARLY = "its trainer process exited with code 0 before its function had returned, as os._exit(0) does"


@dataclass
class Failure:
    """Why a node ended too early.

    Attributes:
        node: its name.
        host: where it ran.
        cause: one line.
        traceback: of the trainer, when it left one.
        log_tail: the last lines of the trainer.
        kind: the kind of the failure.
        at: when it was reported, monotonic seconds.
    """

    node: str
    host: str
    cause: str
    traceback: str
    kind: FailureKind
    at: float
    log_tail: tuple[str, ...] = ()

    def to_error(self) -> TfsparkError:
        """Return the exception that the driver raises."""
        if self.kind == FailureKind.DATA:
            return DataError(self.cause)
        if (
            self.kind == FailureKind.CONFIG
        ):  # The message is enough; traceback and log would only show tfspark's own code.
            return NodeFailedError(self.node, self.host, self.cause)
        return NodeFailedError(self.node, self.host, self.cause, self.traceback, self.log_tail)


class NodeState(Enum):
    """State of a node. A message that would cause a move that is not in `MOVES` is late, and changes nothing."""

    PLANNED = "planned"
    """Its task has not registered."""
    UP = "up"
    """It has registered; its trainer runs or is about to start."""
    REPLACING = "replacing"
    """Its trainer was lost, and another is starting in its place."""
    RETURNED = "returned"
    """Its trainer has returned; the node task is about to end."""
    FAILED = "failed"
    """It has failed; the node task may still be there."""
    ENDED = "ended"
    """The node task is over."""


MOVES = {
    NodeState.PLANNED: {NodeState.UP, NodeState.FAILED, NodeState.ENDED},
    NodeState.UP: {NodeState.REPLACING, NodeState.RETURNED, NodeState.FAILED, NodeState.ENDED},
    NodeState.REPLACING: {
        NodeState.UP,
        NodeState.REPLACING,
        NodeState.RETURNED,
        NodeState.FAILED,
        NodeState.ENDED,
    },
    NodeState.RETURNED: {NodeState.FAILED, NodeState.ENDED},
    NodeState.FAILED: {NodeState.ENDED},
    NodeState.ENDED: set[NodeState](),
}
"""State -> states that may follow."""


@dataclass(frozen=True)
class PreemptionNotice:
    """A notice that a node will be taken away soon.

    Attributes:
        cause: who gave the notice.
        until: how long the node waits for a checkpoint, monotonic seconds.
    """

    cause: str
    until: float


@dataclass
class Node:
    """The state of one node.

    Attributes:
        attempt: 1, or higher after a replacement; messages of an earlier attempt are rejected. 0: not registered.
        executor: Spark's number of its executor.
        task: the name that its Spark task gave itself.
        reply: the reply to its registration, which the task may ask for again.
        told_to_stop: whether a heartbeat was answered with stop.
        notice: set if it will be taken away soon.
        heard_at: time of the last heartbeat, monotonic seconds.
        lost_at: time at which the trainer that is being replaced was lost.
        trainer_heard_at: time of the trainer's last message; 0: none yet.
        activity: what its trainer does; see `tfspark.protocol.activity`.
        progressed_at: when its activity or number of steps last changed, or when it last waited for another process.
        has_returned: whether its trainer has returned; `result` is the returned value.
    """

    spec: NodeSpec
    state: NodeState = NodeState.PLANNED
    attempt: int = 0
    host: str = ""
    address: str = ""
    executor: str = ""
    task: str = ""
    reply: Json = field(default_factory=dict)
    told_to_stop: bool = False
    notice: PreemptionNotice | None = None
    heard_at: float = 0.0
    lost_at: float = 0.0
    trainer_heard_at: float = 0.0
    steps: int = 0
    activity: str = IDLE
    progressed_at: float = 0.0
    has_returned: bool = False
    result: object = None
    failure: Failure | None = None

    def move(self, state: NodeState) -> bool:
        """Enter a state if `MOVES` allows it; return whether it did."""
        may_follow = state in MOVES[self.state]
        if may_follow:
            self.state = state
        return may_follow

    @property
    def is_there(self) -> bool:
        """Whether its task has registered and still runs."""
        return self.state not in (NodeState.PLANNED, NodeState.ENDED)


class Registry:
    """All nodes of one cluster.

    Args:
        nodes: the planned nodes.
        heartbeat_timeout_s: seconds of silence after which a node is lost.
        versions: the driver's versions, which every node must match.
        trainer_timeout_s: seconds of silence after which a trainer is lost although its node is up, and seconds within
            which trainers must end a step. It is longer than the heartbeat timeout: a silent trainer may be busy.
        clock: monotonic seconds.
        budget: the restarts that are left; None: no node is replaced.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        heartbeat_timeout_s: float,
        versions: Mapping[str, str | None],
        trainer_timeout_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        budget: RestartBudget | None = None,
    ):
        self.nodes = {spec.index: Node(spec) for spec in nodes}
        self.stopping = False
        self.failed = False
        """Whether anything failed."""
        self.wants_stacks = False
        """Whether trainers should send the stacks of their threads."""
        self.may_replace_workers = False
        """Whether a worker beside parameter servers may be replaced while the others train on."""
        self._budget = budget
        self._stalled_at = 0.0
        self._timeout_s = heartbeat_timeout_s
        self._versions = dict(versions)
        self._trainer_timeout_s = trainer_timeout_s
        self._clock = clock
        self._fatal: Exception | None = None
        self._fatal_kind = FailureKind.EXCEPTION

    # --- messages of nodes ----------------------------------------------------------------------------

    def register(
        self,
        index: int,
        host: str,
        port: int,
        versions: Mapping[str, str | None],
        executor: str = "",
        task: str = "",
    ) -> Json:
        """Register a node; reply with its attempt number, which it must send with every later message.

        If another `task` registers for the same node, Spark has started the node's task again: the first attempt was
        lost. If the node is replaced, its TensorFlow server must have the address that the other nodes know, so the
        reply has the port. If the same task registers again because the reply was lost, it gets the same reply.
        """
        node = self.nodes[index]
        if self.stopping:
            return {"action": "stop"}
        if not (task and task == node.task):
            node.reply = self._admit(node, host, port, versions, executor)
            node.task = task
        return node.reply

    def _admit(
        self, node: Node, host: str, port: int, versions: Mapping[str, str | None], executor: str
    ) -> Json:
        index = node.spec.index
        if node.attempt and host == node.host and (attempt := self.replace(index, node.attempt)):
            node.executor, node.notice = executor, None
            return {"action": "go", "attempt": attempt, "port": int(node.address.rpartition(":")[2])}
        if node.state is not NodeState.PLANNED:
            self._fail(node, FailureKind.LOST, TASK_AGAIN)
            return {"action": "stop"}
        wrong = describe_mismatch(self._versions, versions)
        if wrong:
            self.fail_cluster(ReservationError(f"{node.spec.name} on {host}: {wrong}"))
            return {"action": "stop"}
        node.move(NodeState.UP)
        node.attempt, node.host, node.address = 1, host, f"{host}:{port}"
        node.executor, node.heard_at = executor, self._clock()
        return {"action": "go", "attempt": node.attempt}

    def replace(self, index: int, attempt: int) -> int:
        """Replace a node's trainer that was killed; return the new attempt, or 0 if it must not be replaced."""
        node = self.nodes[index]
        is_current = attempt == node.attempt and node.state in (NodeState.UP, NodeState.REPLACING)
        if self._budget is None or not is_current or self.stopping or self.failed:
            return 0
        means = Means(True, self._budget.next_pause_s, self.may_replace_workers)
        if not isinstance(decide([FailureKind.KILLED], node.spec, means), Replace):
            return 0
        self._budget.spend()
        node.move(NodeState.REPLACING)
        node.attempt += 1
        node.lost_at = node.heard_at = self._clock()
        node.trainer_heard_at, node.activity = 0.0, IDLE
        return node.attempt

    def replacement_up(self, index: int) -> float | None:
        """Record that a node's TensorFlow is up; return the seconds since its earlier trainer was lost, or None."""
        node = self.nodes[index]
        if node.state is not NodeState.REPLACING:
            return None
        node.move(NodeState.UP)
        now = self._clock()
        for other in self.nodes.values():  # Workers without rows have waited for it.
            other.progressed_at = now
        return now - node.lost_at

    def heartbeat(self, index: int, attempt: int) -> bool:
        """Record a heartbeat; return whether the node should stop."""
        node = self.nodes[index]
        if attempt != node.attempt:
            return True
        node.heard_at = self._clock()
        node.told_to_stop = self.stopping or self.failed
        return node.told_to_stop

    def mark_preempted(self, index: int, cause: str) -> None:
        """Record that a node will be lost soon; it counts as lost after the next checkpoint or the grace period."""
        node = self.nodes[index]
        if node.notice is None:
            node.notice = PreemptionNotice(cause, self._clock() + PREEMPTION_GRACE_S)

    def release_preempted(self) -> None:
        """Mark the nodes that will be taken away as lost: the state is saved now."""
        for node in self.nodes.values():
            if node.notice is not None:
                self._fail(node, FailureKind.LOST, node.notice.cause)

    def trainer_alive(self, index: int, steps: int, activity: str) -> None:
        """Record how many steps a node's trainer has done, and its activity; see `Activity`."""
        node = self.nodes[index]
        node.trainer_heard_at = self._clock()
        if activity == WAITING or (steps, activity) != (node.steps, node.activity):
            node.progressed_at = node.trainer_heard_at
        node.steps, node.activity = steps, activity

    def trainer_ended(self, index: int, result: object) -> None:
        """Record that the node's trainer returned."""
        node = self.nodes[index]
        if node.move(NodeState.RETURNED):
            node.has_returned, node.result = True, result

    def trainer_failed(self, index: int, cause: str, traceback: str, kind: FailureKind) -> None:
        """Record the exception that ended the node's trainer."""
        self._fail(self.nodes[index], kind, cause, traceback)

    def node_ended(self, index: int, attempt: int, cause: str, log_tail: Sequence[str]) -> None:
        """Record that the node task is over; `cause` is empty when its trainer ended without an error."""
        node = self.nodes[index]
        if attempt != node.attempt:
            return
        if not cause and not (node.has_returned or node.told_to_stop or self.failed):
            cause = LEFT_EARLY
        if cause and not self.stopping:
            self._fail(node, FailureKind.KILLED, cause)
        node.move(NodeState.ENDED)
        if node.failure is not None:
            node.failure.log_tail = tuple(log_tail)

    def task_failed(self, index: int, cause: str) -> None:
        """Record that Spark gave up the node's task and will not start it again."""
        node = self.nodes[index]
        self._fail(node, FailureKind.KILLED, cause)
        node.move(NodeState.ENDED)

    def fail_cluster(self, error: Exception, transient: bool = False) -> None:
        """Record a failure that belongs to no node; `transient`: another start may succeed."""
        if self._fatal is None and not self.stopping:
            self._fatal, self.failed = error, True
            self._fatal_kind = FailureKind.LOST if transient else FailureKind.EXCEPTION

    def stop(self) -> None:
        """Tell all nodes to stop, in the replies to their calls."""
        self.stopping = True

    # --- questions of the driver ----------------------------------------------------------------------

    def check(self) -> bool:
        """Look for silent nodes; return whether the cluster has failed and the failure to report is known."""
        now = self._clock()
        peer_missed = any(failure.kind == FailureKind.COLLECTIVE for failure in self._failures())
        for node in self.nodes.values():
            silent_s = now - node.heard_at
            is_missed = peer_missed and not node.told_to_stop and silent_s > LOST_PEER_S
            if node.is_there and (is_missed or silent_s > self._timeout_s):
                silence = f"no heartbeat for {LOST_PEER_S if is_missed else self._timeout_s:g} s"
                self._fail(
                    node, FailureKind.LOST, f"{silence}: its executor or host is gone, or the network is cut"
                )
            if node.notice is not None and now > node.notice.until:
                self._fail(node, FailureKind.LOST, node.notice.cause)
            if node.trainer_heard_at and node.state in (NodeState.UP, NodeState.REPLACING):
                self._check_trainer(node, now, peer_missed)
            if node.state is NodeState.REPLACING and now - node.lost_at > REPLACEMENT_S:
                self._fail(
                    node,
                    FailureKind.LOST,
                    f"its trainer was lost, and another was not up after {REPLACEMENT_S:g} s",
                )
        self._check_steps(now)
        if self._fatal is not None:
            return True
        failures = self._failures()
        if not failures:
            return False
        nothing_else = all(failure.kind == FailureKind.COLLECTIVE for failure in failures)
        if now - failures[0].at > (LOST_PEER_SETTLE_S if nothing_else else SETTLE_S):
            return True
        # The end of a node explains failed collective operations, whichever was reported first.
        explaining = (self._node_named(f.node) for f in failures if f.kind is not FailureKind.COLLECTIVE)
        return any(node.state is NodeState.ENDED for node in explaining)

    def _check_trainer(self, node: Node, now: float, peer_missed: bool) -> None:
        """Fail a node whose trainer is silent; wait less if another trainer has reported a lost peer."""
        silent_s = now - node.trainer_heard_at
        if silent_s > (SILENT_PEER_S if peer_missed else self._trainer_timeout_s):
            silence = f"its trainer process was not heard of for {silent_s:.0f} s, though its node was"
            self._fail(node, FailureKind.LOST, f"{silence}: it was stopped, or it hangs")

    def _check_steps(self, now: float) -> None:
        """Fail all trainers if none makes progress; first ask them for the stacks of their threads."""
        nodes = self.nodes.values()
        at_work = [node for node in nodes if node.activity != IDLE and node.state is not NodeState.ENDED]
        is_replacing = any(
            node.state is NodeState.REPLACING for node in nodes
        )  # A replacement has its own deadline.
        last = now if is_replacing else max((node.progressed_at for node in at_work), default=now)
        self.wants_stacks = now - last > self._trainer_timeout_s
        if not self.wants_stacks:
            self._stalled_at = now
        elif now - self._stalled_at > STACKS_S:
            cause = f"no trainer ended a step for {now - last:.0f} s, though none waited for rows"
            advice = "see below what their threads did, and raise feed_timeout if a step may take that long"
            for node in at_work:
                self._fail(node, FailureKind.STALLED, f"{cause}; {advice}")

    def error(self) -> Exception:
        """Return the failure that best explains the others: the first one that a lost peer does not explain."""
        if self._fatal is not None:
            return self._fatal
        failures = self._failures()
        explains = min(failures, key=lambda f: (f.kind == FailureKind.COLLECTIVE, f.at))
        error = explains.to_error()
        for other in failures:
            if other.kind == explains.kind == FailureKind.STALLED and other is not explains:
                error.add_note(str(other.to_error()))
        return error

    @property
    def kinds(self) -> list[FailureKind]:
        """The kinds of all failures: first that of the whole cluster, then those of nodes in order of their reports."""
        of_nodes = [failure.kind for failure in self._failures()]
        return of_nodes if self._fatal is None else [self._fatal_kind, *of_nodes]

    def missing(self) -> list[str]:
        """Names of the nodes that have not registered."""
        return [node.spec.name for node in self.nodes.values() if node.state is NodeState.PLANNED]

    @property
    def all_ended(self) -> bool:
        """Whether every node that registered is over."""
        return not any(node.is_there for node in self.nodes.values())

    def all_succeeded(self, role: str) -> bool:
        """Whether every trainer of a role returned without an error."""
        return all(node.has_returned for node in self.nodes.values() if node.spec.role == role)

    def results(self) -> dict[str, object]:
        """Return name of a node -> the value that its trainer returned."""
        return {node.spec.name: node.result for node in self.nodes.values()}

    def hosts(self) -> dict[str, str]:
        """Return name of a node -> its host; empty if it has not registered."""
        return {node.spec.name: node.host for node in self.nodes.values()}

    def executors(self) -> dict[int, str]:
        """Return node index -> Spark's number of its executor; empty if it has not registered."""
        return {index: node.executor for index, node in self.nodes.items()}

    def addresses(self) -> dict[int, str]:
        """Return node index -> address of its TensorFlow server."""
        return {index: node.address for index, node in self.nodes.items()}

    def _failures(self) -> list[Failure]:
        found = [node.failure for node in self.nodes.values() if node.failure is not None]
        return sorted(found, key=lambda failure: failure.at)

    def _node_named(self, name: str) -> Node:
        return next(node for node in self.nodes.values() if node.spec.name == name)

    def _fail(self, node: Node, kind: FailureKind, cause: str, traceback: str = "") -> None:
        if node.move(NodeState.FAILED):
            self.failed = True
            node.failure = Failure(
                node.spec.name, node.host or "an unknown host", cause, traceback, kind, self._clock()
            )


def describe_mismatch(expected: Mapping[str, str | None], found: Mapping[str, str | None]) -> str:
    """Return which versions differ between driver and node; empty if all agree.

    Python and TensorFlow must agree in major and minor version, because one pickles code and the other runs it. A
    version that the driver does not have is not compared.
    """
    wrong = [
        f"{name} {found.get(name) or 'is missing'}, the driver has {version}"
        for name, version in expected.items()
        if version is not None and _minor(version) != _minor(found.get(name))
    ]
    if not wrong:
        return ""
    return (
        f"expected the driver's versions, found {'; '.join(wrong)}; install the same major.minor versions on "
        "every executor, or point spark.pyspark.python to an environment that has them"
    )


def _minor(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])


def count_roles(nodes: Sequence[NodeSpec]) -> dict[str, int]:
    """Return role -> number of nodes."""
    return dict(Counter(node.role for node in nodes))
