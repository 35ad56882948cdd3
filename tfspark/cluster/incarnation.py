"""One incarnation of a cluster: its servers on the driver, its nodes on the executors, its secret.

After a failure the cluster starts a new incarnation. The two share nothing except what the driver knows. The new one
has a new secret and new addresses, so calls from processes that the old one left behind are rejected.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tfspark.cluster.awake import AwakeClock
from tfspark.cluster.control import ControlPlane, Observer
from tfspark.cluster.decommission import DecommissionWatch
from tfspark.cluster.feeder import Feeder
from tfspark.cluster.options import ClusterOptions
from tfspark.cluster.preflight import driver_addresses
from tfspark.cluster.python_tasks import python_tasks
from tfspark.cluster.sparkjob import CANCEL_TIMEOUT_S, SparkJob, without_java_stack
from tfspark.cluster.state.checkpoint_store import CheckpointStore
from tfspark.cluster.state.driver_state import DriverState
from tfspark.cluster.state.registry import Registry
from tfspark.cluster.state.restarts import RestartBudget
from tfspark.cluster.warm_up import driver_of_local_executor
from tfspark.driver_python import python_advice
from tfspark.errors import DeadlineError, ReservationError, TfsparkError
from tfspark.node.task import NodeTask
from tfspark.node.warm import installed_versions
from tfspark.protocol.failures import FailureKind
from tfspark.protocol.roles import NodeSpec
from tfspark.protocol.settings import TrainerSettings
from tfspark.protocol.timing import EXPLAIN_S, STOP_TIMEOUT_S, TOLD_S, TRAINER_SILENCE_S
from tfspark.protocol.wire import new_secret

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class DriverNode:
    """A node on the driver's machine. It runs in a thread of the driver's program instead of a Spark task.

    Args:
        task: the function that a Spark task would run; `node` is its first node.
        node: which node it is.
    """

    def __init__(self, task: NodeTask, node: NodeSpec):
        name = f"tfspark-{node.name.replace(' ', '-')}"
        self._thread = threading.Thread(target=task, args=(0,), name=name, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until the node has ended."""
        self._thread.join(timeout_s)

    def cancel(self) -> None:
        """Wait once more: only the node itself can end its work."""
        self._thread.join(CANCEL_TIMEOUT_S)


class Incarnation:
    """See the module's docstring.

    Args:
        spark: the session.
        nodes: the planned nodes.
        options: of the cluster; this incarnation may have fewer nodes than they say.
        settings: sent to the trainers.
        code: the user's function and its arguments, pickled.
        observer: called with (event, fields).
        store: holds the checkpoints of the training state.
        budget: the restarts that are left; None: restarts are off.
        ended: returns whether all of the given nodes have ended a job.
    """

    def __init__(
        self,
        spark: SparkSession,
        nodes: tuple[NodeSpec, ...],
        options: ClusterOptions,
        settings: TrainerSettings,
        code: bytes,
        observer: Observer,
        store: CheckpointStore | None,
        budget: RestartBudget | None,
        ended: Callable[[int, Sequence[NodeSpec]], bool],
    ):
        self._spark = spark
        self._nodes = nodes
        self._code = code
        self._options = options
        self._settings = settings
        self._observer = observer
        self.secret = new_secret(options.tls)
        self._jobs: list[SparkJob | DriverNode] = []
        self.is_over = False
        self._has_stopped = self._is_closed = False
        self._close_lock = threading.Lock()
        self._closing = threading.Timer(TOLD_S, self.close)
        self._closing.daemon = True
        # Shorter than the timeout of the feed, so that the error names the silent trainer, not those that wait for it.
        trainer_timeout_s = max(options.feed_timeout / 2, TRAINER_SILENCE_S)
        clock = AwakeClock()
        registry = Registry(
            nodes, options.heartbeat_timeout, installed_versions(), trainer_timeout_s, clock, budget=budget
        )
        self.control = ControlPlane(
            driver_addresses(spark),
            self.secret,
            nodes,
            registry,
            observer,
            options.run_directory,
            options.master_node,
            options.independent,
            options.all_at_once,
            store,
            options.checkpoint_every_seconds,
            clock,
        )
        self._decommissions = DecommissionWatch(spark, self.control)
        size, num_workers = options.size, self.control.num_workers
        self.feeder = Feeder(
            spark, self.control, self.secret, ended, lambda spec: size.for_workers(spec, num_workers)
        )

    def launch(self, timeout_s: float) -> None:
        """Start the nodes and wait until all have registered.

        Raises:
            ReservationError: a node is missing at the deadline.
            TfsparkError: a node failed.
        """
        began = time.monotonic()
        if self._settings.saves_state:
            self._decommissions.start()
        for role in ("worker", "ps", "evaluator"):
            group = [node for node in self._nodes if node.role == role]
            if role == "ps" and self._options.driver_ps_nodes:
                self._jobs.extend(DriverNode(self._task(node.index), node) for node in group)
            elif group:
                self._jobs.append(self._start_nodes(role, group))
        if not self._options.all_at_once:
            return
        try:
            self.control.wait(lambda state: not state.registry.missing(), timeout_s, "the nodes to register")
        except DeadlineError:
            missing = self.missing()
            raise ReservationError(
                f"reserved {len(self._nodes) - len(missing)} of {len(self._nodes)} nodes after {timeout_s:g} s; "
                f"missing {', '.join(missing)}; see whether other jobs hold the slots, raise "
                "reservation_timeout, or lower num_executors"
            ) from None
        self._observer("reserved", {"seconds": time.monotonic() - began, "nodes": len(self._nodes)})

    def missing(self) -> list[str]:
        """Return the names of the nodes that have not registered."""
        return self.control.read(lambda state: state.registry.missing())

    def failure_kinds(self) -> list[FailureKind]:
        """Return the kinds of all failures; see `Registry.kinds`."""
        return self.control.read(lambda state: state.registry.kinds)

    def stop(self, is_last: bool = True) -> None:
        """Stop it now, in any state; harmless if it has already ended. It can be called again after an interrupt.

        Args:
            is_last: whether to `close` it at once. Otherwise it is closed after `TOLD_S`.
        """
        if not self._has_stopped:
            self._stop()
            if not is_last:
                self._closing.start()
        if is_last:
            self.close()

    def close(self) -> None:
        """Close the control plane, once the incarnation has stopped; return when it is closed."""
        self._closing.cancel()
        with self._close_lock:
            if not self._is_closed:
                self.control.close()
                self._is_closed = True

    def _stop(self) -> None:
        self.is_over = True
        self._decommissions.stop()
        self.control.update(lambda state: state.registry.stop())
        self.feeder.close_all()
        until = time.monotonic() + STOP_TIMEOUT_S
        for job in self._jobs:
            job.join(max(0.0, until - time.monotonic()))
        for job in self._jobs:
            job.cancel()
        self._has_stopped = True

    def failure_behind(self, error: Exception) -> Exception | None:
        """Return the node failure that explains an error; None if no node has failed.

        When an executor is lost, the Spark job that feeds may fail before the driver knows that a node was lost.
        """
        return self.control.wait_for_failure(0.0 if isinstance(error, TfsparkError) else EXPLAIN_S)

    def _start_nodes(self, role: str, group: Sequence[NodeSpec]) -> SparkJob:
        task, count = self._task(group[0].index), len(group)
        return SparkJob(
            self._spark,
            lambda: python_tasks(self._spark, task, count),
            f"tfspark {role} nodes",
            lambda error: self._spark_failed(role, group[0].index, error),
        )

    def _task(self, first_index: int) -> NodeTask:
        return NodeTask(
            self.control.location,
            self.secret,
            self._nodes,
            first_index,
            self._settings,
            self._code,
            self._options.warm,
            self._options.module_paths,
            self._options.tensorboard_dir,
            driver_of_local_executor(self._spark),
        )

    def _spark_failed(self, role: str, first_index: int, error: Exception) -> None:
        """Record that Spark gave up a job of nodes: blame the node whose task failed, if it was up."""
        message = without_java_stack(str(error))
        failed = re.search(r"Task (\d+) in stage .*?most recent failure: (.*)", message)

        def note(state: DriverState) -> None:
            index = first_index + int(failed.group(1)) if failed else -1
            if failed and state.registry.nodes[index].attempt:
                cause = f"its Spark task failed or was killed: {failed.group(2)}"
                state.registry.task_failed(index, cause)
                return
            failure = ReservationError(
                f"the Spark job of the {role} nodes failed: {message}{python_advice(message)}"
            )
            state.registry.fail_cluster(failure)

        self.control.update(note)
