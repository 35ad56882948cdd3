"""The driver's book of nodes: who registered, who lives, who failed and why. No sockets, no Spark."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfspark.errors import DataError, NodeFailedError, ReservationError, TfsparkError
from tfspark.protocol.activity import IDLE, WAITS
from tfspark.protocol.roles import NodeSpec

Json = dict[str, Any]

SETTLE_S = 1.5
"""How long after the first failure report others may still come in that explain it better."""
LOST_PEER_S = 3.0
"""Silence that makes a node the one whom another's failed collective operation misses: its host is gone."""
LOST_PEER_SETTLE_S = LOST_PEER_S + 1.0
"""How long that may take to be seen, when nothing is reported but failed collective operations."""


STACKS_S = 2.5
"""How long trainers have to show what they do before one of them is failed."""
LEAVE_GRACE_S = 20.0
"""How long a node that is told to end waits for a checkpoint: less than the 30 s that Kubernetes gives a pod."""
SILENT_PEER_S = 6.0
"""Silence that makes a trainer the one whom another's failed collective operation misses."""
REPLACEMENT_S = 120.0
"""How long a trainer that replaces another may take to come up."""
TASK_AGAIN = "Spark started its task again: the process that ran it was killed"
LEFT_EARLY = "its trainer process exited with code 0 before its function had returned, as os._exit(0) does"
TRANSIENT = ("collective", "killed", "lost", "stalled")
"""Kinds of failures after which starting again may help."""


@dataclass
class Failure:
    """Why a node ended before its time.

    Attributes:
        node: its name.
        host: where it ran.
        cause: one line.
        traceback: of the trainer, when it left one.
        log_tail: the last lines of the trainer.
        kind: ``exception`` of user code, ``data`` (a DataError), ``config`` (a ConfigError), ``collective``
            (TensorFlow lost a peer: likely a consequence of another node's failure), ``killed``, ``lost``,
            ``stalled``.
        at: when it was reported, monotonic seconds.
    """

    node: str
    host: str
    cause: str
    traceback: str
    kind: str
    at: float
    log_tail: tuple[str, ...] = ()

    def to_error(self) -> TfsparkError:
        """Return the exception the driver raises."""
        if self.kind == "data":
            return DataError(self.cause)
        if self.kind == "config":  # The message says it all; traceback and log would be tfspark's own.
            return NodeFailedError(self.node, self.host, self.cause)
        return NodeFailedError(self.node, self.host, self.cause, self.traceback, self.log_tail)


@dataclass
class Node:
    """What is known of one node."""

    spec: NodeSpec
    attempt: int = 0
    host: str = ""
    address: str = ""
    executor: str = ""
    task: str = ""
    reply: Json = field(default_factory=dict)
    stops: bool = False
    leaving: str = ""
    leaves_at: float = 0.0
    versions: Json = field(default_factory=dict)
    heard: float = 0.0
    replaced_at: float = 0.0
    trainer_heard: float = 0.0
    steps: int = 0
    state: str = IDLE
    moved: float = 0.0
    ended: bool = False
    result: Any = None
    succeeded: bool = False
    failure: Failure | None = None


class Registry:
    """All nodes of one cluster.

    Args:
        nodes: the plan.
        heartbeat_timeout_s: silence after which a node is lost.
        versions: the driver's own, which every node must match.
        trainer_timeout_s: silence after which a trainer whose node lives is lost, and time in which trainers must
            end a step: longer, since one may only be busy.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        nodes: Sequence[NodeSpec],
        heartbeat_timeout_s: float,
        versions: Mapping[str, str | None],
        trainer_timeout_s: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.nodes = {spec.index: Node(spec) for spec in nodes}
        self.stopping = False
        self.failed = False
        """Whether anything failed."""
        self.wants_stacks = False
        """Whether trainers are to show what they do."""
        self.replaces: Callable[[NodeSpec], bool] = lambda node: False
        """Whether a node that was lost is replaced while the others go on; asking counts as doing."""
        self._stalled_at = 0.0
        self._timeout_s = heartbeat_timeout_s
        self._versions = dict(versions)
        self._trainer_timeout_s = trainer_timeout_s
        self._clock = clock
        self._fatal: Exception | None = None
        self._fatal_is_transient = False

    # --- what nodes say ----------------------------------------------------------------------------

    def register(
        self,
        index: int,
        host: str,
        port: int,
        versions: Mapping[str, str | None],
        executor: str = "",
        task: str = "",
    ) -> Json:
        """Take in a node; reply with its attempt number, the fencing token of all it says later.

        A registration by another `task` means that Spark started the node's task anew: its first life was lost. If the
        node is replaced, its TensorFlow server must have the address that the others know: the reply has its port. The
        same task may register again, since its answer was lost: it gets the same.
        """
        node = self.nodes[index]
        if self.stopping:
            return {"action": "stop"}
        if not (task and task == node.task):
            node.reply = self._taken_in(node, host, port, versions, executor)
            node.task = task
        return node.reply

    def _taken_in(
        self, node: Node, host: str, port: int, versions: Mapping[str, str | None], executor: str
    ) -> Json:
        index = node.spec.index
        if node.attempt and host == node.host and (attempt := self.replace(index, node.attempt)):
            node.executor, node.leaving = executor, ""
            return {"action": "go", "attempt": attempt, "port": int(node.address.rpartition(":")[2])}
        if node.attempt:
            self._fail(node, "lost", TASK_AGAIN)
            return {"action": "stop"}
        wrong = describe_mismatch(self._versions, versions)
        if wrong:
            self.fail_cluster(ReservationError(f"{node.spec.name} on {host}: {wrong}"))
            return {"action": "stop"}
        node.attempt, node.host, node.address = 1, host, f"{host}:{port}"
        node.executor, node.heard = executor, self._clock()
        return {"action": "go", "attempt": node.attempt}

    def replace(self, index: int, attempt: int) -> int:
        """Let another trainer take the place of a node's, which was killed; return its attempt, or 0: none shall."""
        node = self.nodes[index]
        wanted = attempt == node.attempt and not (
            node.ended or node.succeeded or self.stopping or self.failed
        )
        if not wanted or not self.replaces(node.spec):
            return 0
        node.attempt += 1
        node.replaced_at = node.heard = self._clock()
        node.trainer_heard, node.state = 0.0, IDLE
        return node.attempt

    def is_replaced(self, index: int) -> float:
        """Note that a node's new trainer is up; return the seconds since the one before was lost."""
        node = self.nodes[index]
        now, since = self._clock(), node.replaced_at
        node.replaced_at = 0.0
        for other in self.nodes.values():  # Who had no rows left waited for it.
            other.moved = now
        return now - since

    def heartbeat(self, index: int, attempt: int) -> bool:
        """Hear a node; return whether it shall stop."""
        node = self.nodes[index]
        if attempt != node.attempt:
            return True
        node.heard = self._clock()
        node.stops = self.stopping or self.failed
        return node.stops

    def leave(self, index: int, cause: str) -> None:
        """Note that a node will be lost soon; it is let go after the next checkpoint, or when it cannot wait longer."""
        node = self.nodes[index]
        if not node.leaving:
            node.leaving, node.leaves_at = cause, self._clock() + LEAVE_GRACE_S

    def let_go(self) -> None:
        """Let those go that are about to be lost."""
        for node in self.nodes.values():
            if node.leaving:
                self._fail(node, "lost", node.leaving)

    def trainer_alive(self, index: int, steps: int, state: str) -> None:
        """Hear a node's trainer: the steps it has done, and its `Pulse`."""
        node = self.nodes[index]
        node.trainer_heard = self._clock()
        if state == WAITS or (steps, state) != (node.steps, node.state):
            node.moved = node.trainer_heard
        node.steps, node.state = steps, state

    def trainer_ended(self, index: int, result: Any) -> None:
        """Note that the node's trainer returned."""
        node = self.nodes[index]
        node.succeeded, node.result = True, result

    def trainer_failed(self, index: int, cause: str, traceback: str, kind: str) -> None:
        """Note the exception that ended the node's trainer."""
        self._fail(self.nodes[index], kind, cause, traceback)

    def node_ended(self, index: int, attempt: int, cause: str, log_tail: Sequence[str]) -> None:
        """Note that the node task is over; `cause` is empty when its trainer ended in order."""
        node = self.nodes[index]
        if attempt != node.attempt:
            return
        if not cause and not (node.succeeded or node.stops or self.failed):
            cause = LEFT_EARLY
        if cause and not self.stopping:
            self._fail(node, "killed", cause)
        node.ended = True
        if node.failure is not None:
            node.failure.log_tail = tuple(log_tail)

    def task_failed(self, index: int, cause: str) -> None:
        """Note that Spark gave the node's task up: it does not start it again."""
        node = self.nodes[index]
        self._fail(node, "killed", cause)
        node.ended = True

    def fail_cluster(self, error: Exception, transient: bool = False) -> None:
        """Note a failure that belongs to no node; `transient`: it may not happen again."""
        if self._fatal is None and not self.stopping:
            self._fatal, self.failed = error, True
            self._fatal_is_transient = transient

    # --- what the driver asks ----------------------------------------------------------------------

    def check(self) -> bool:
        """Look for nodes that went silent; return whether the failure can be told by now."""
        now = self._clock()
        peer_missed = any(failure.kind == "collective" for failure in self._failures())
        for node in self.nodes.values():
            silent_s = now - node.heard
            is_missed = peer_missed and not node.stops and silent_s > LOST_PEER_S
            if node.attempt and not node.ended and (is_missed or silent_s > self._timeout_s):
                silence = f"no heartbeat for {LOST_PEER_S if is_missed else self._timeout_s:g} s"
                self._fail(node, "lost", f"{silence}: its executor or host is gone, or the network is cut")
            if node.leaving and now > node.leaves_at:
                self._fail(node, "lost", node.leaving)
            if node.trainer_heard and not node.ended and not node.succeeded:
                self._check_trainer(node, now, peer_missed)
            if node.replaced_at and not node.ended and now - node.replaced_at > REPLACEMENT_S:
                self._fail(
                    node, "lost", f"its trainer was lost, and another was not up after {REPLACEMENT_S:g} s"
                )
        self._check_steps(now)
        if self._fatal is not None:
            return True
        failures = self._failures()
        if not failures:
            return False
        nothing_else = all(failure.kind == "collective" for failure in failures)
        if now - failures[0].at > (LOST_PEER_SETTLE_S if nothing_else else SETTLE_S):
            return True
        # A node that has ended of itself explains collective operations that failed, whichever was reported first.
        return any(f.kind != "collective" and self._node_named(f.node).ended for f in failures)

    def _check_trainer(self, node: Node, now: float, peer_missed: bool) -> None:
        """Fail a node whose trainer went silent; sooner if another trainer misses a peer."""
        silent_s = now - node.trainer_heard
        if silent_s > (SILENT_PEER_S if peer_missed else self._trainer_timeout_s):
            silence = f"its trainer process was not heard of for {silent_s:.0f} s, though its node was"
            self._fail(node, "lost", f"{silence}: it was stopped, or it hangs")

    def _check_steps(self, now: float) -> None:
        """Fail all trainers when none gets on, after they have been asked what they do."""
        at_work = [node for node in self.nodes.values() if node.state != IDLE and not node.ended]
        is_joined = any(node.replaced_at for node in self.nodes.values())  # That has a deadline of its own.
        last = now if is_joined else max((node.moved for node in at_work), default=now)
        self.wants_stacks = now - last > self._trainer_timeout_s
        if not self.wants_stacks:
            self._stalled_at = now
        elif now - self._stalled_at > STACKS_S:
            cause = f"no trainer ended a step for {now - last:.0f} s, though none waited for rows"
            advice = "see below what their threads did, and raise feed_timeout if a step may take that long"
            for node in at_work:
                self._fail(node, "stalled", f"{cause}; {advice}")

    def error(self) -> Exception:
        """Return the failure that explains the others best: the first that no lost peer explains."""
        if self._fatal is not None:
            return self._fatal
        failures = self._failures()
        explains = min(failures, key=lambda f: (f.kind == "collective", f.at))
        error = explains.to_error()
        for other in failures:
            if other.kind == explains.kind == "stalled" and other is not explains:
                error.add_note(str(other.to_error()))
        return error

    @property
    def is_transient(self) -> bool:
        """Whether what `error` tells may not happen again: a process or a host was lost, no program was wrong."""
        if self._fatal is not None and not self._fatal_is_transient:
            return False
        return all(failure.kind in TRANSIENT for failure in self._failures())

    def missing(self) -> list[str]:
        """Names of the nodes that have not registered."""
        return [node.spec.name for node in self.nodes.values() if not node.attempt]

    @property
    def all_ended(self) -> bool:
        """Whether every node that ever registered is over."""
        return all(node.ended or not node.attempt for node in self.nodes.values())

    def all_succeeded(self, role: str) -> bool:
        """Whether every trainer of a role returned."""
        return all(node.succeeded for node in self.nodes.values() if node.spec.role == role)

    def addresses(self) -> dict[int, str]:
        """Node index -> address of its TensorFlow server."""
        return {index: node.address for index, node in self.nodes.items()}

    def _failures(self) -> list[Failure]:
        found = [node.failure for node in self.nodes.values() if node.failure is not None]
        return sorted(found, key=lambda failure: failure.at)

    def _node_named(self, name: str) -> Node:
        return next(node for node in self.nodes.values() if node.spec.name == name)

    def _fail(self, node: Node, kind: str, cause: str, traceback: str = "") -> None:
        if node.failure is None and not node.ended:
            self.failed = True
            node.failure = Failure(
                node.spec.name, node.host or "an unknown host", cause, traceback, kind, self._clock()
            )


def describe_mismatch(expected: Mapping[str, str | None], found: Mapping[str, str | None]) -> str:
    """Say which versions differ between driver and node; empty when all agree.

    Python and TensorFlow must agree in major and minor number: code is pickled by one and run by the
    other. A version the driver does not have is not compared.
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
    """Role -> number of nodes."""
    return dict(Counter(node.role for node in nodes))
