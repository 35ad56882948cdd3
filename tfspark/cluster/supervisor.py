"""The lives of a cluster, one after the other: brought up, and up again when a node is lost. Runs on the driver."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from tfspark.cluster import preflight
from tfspark.cluster.control import ControlPlane, Observer
from tfspark.cluster.feeder import Feeder
from tfspark.cluster.incarnation import Incarnation
from tfspark.cluster.options import ClusterOptions
from tfspark.cluster.preflight import room_for
from tfspark.cluster.state.recovery import Recovery
from tfspark.cluster.state.registry import Registry
from tfspark.errors import ReservationError
from tfspark.protocol.roles import NodeSpec
from tfspark.protocol.settings import TrainerSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")

REGISTERED_S = 30.0
"""How long the nodes of a cluster that may have fewer are waited for at least: Spark may take a lost host for there."""


class Work(Protocol):
    """What a cluster does, as far as its supervisor must know it."""

    @property
    def feed_slots(self) -> int:
        """Task slots that must stay free for the tasks that feed."""

    @property
    def may_replace_workers(self) -> bool:
        """Whether a worker of parameter servers may be replaced alone."""

    def take_over(self, earlier: Incarnation) -> None:
        """Go on with the work of an earlier incarnation in the current one."""


class _TooSmallError(Exception):
    """The cluster is smaller than it should be, and Spark has room for more of it."""


class Supervisor:
    """See the module's docstring; `now` is the life that is, of which the other properties speak.

    Args:
        spark: the session.
        options: of the cluster.
        settings: what the trainers are told.
        num_nodes: how many of its nodes there is room for at first.
        code: the user's function and its arguments, pickled.
        observer: called with (event, fields).
        recovery: what a restart needs; None: the first failure is the end.

    Attributes:
        current: the incarnation that is up; the properties below read from it.
        nodes: its plan.
        work: what the cluster does; set before it is launched.
    """

    def __init__(
        self,
        spark: SparkSession,
        options: ClusterOptions,
        settings: TrainerSettings,
        num_nodes: int,
        code: bytes,
        observer: Observer,
        recovery: Recovery | None,
    ):
        self._spark = spark
        self.work: Work
        self._options = options
        self._size = options.size
        self._settings = settings
        self._code = code
        self._observer = observer
        self._recovery = recovery
        self._is_up = False
        self.stopped = False
        self._begin_with(num_nodes)
        # A program may end without `shutdown`, or stop Spark before: what it has started ends with it all the same.
        atexit.register(self.stop)

    def surviving(self, work: Callable[[], T]) -> T:
        """Do some work with the cluster; when a node is lost, do it again in a new life from the newest checkpoint.

        Raises:
            TfsparkError: a node failed for good, or too often.
        """
        while True:
            try:
                self._bring_up()
                return work()
            except _TooSmallError:
                self._end()
            except Exception as error:
                self._pause_after(error)

    def check_for_good(self) -> None:
        """Raise if the cluster has failed, and no new life may follow, which the work under way or the next begins."""
        life = self.current
        try:
            life.control.check()
        except Exception:
            if self._recovery is None or not life.registry.is_transient:
                raise

    def stop(self) -> None:
        """End the cluster now, in whatever state it is; harmless when it has ended."""
        if self.stopped:
            return
        self.stopped = True
        atexit.unregister(self.stop)
        self.current.stop()
        if self._recovery is not None:
            self._recovery.close()

    def can_grow(self) -> bool:
        """Whether there are fewer nodes than wanted, and Spark has room for more by now."""
        if self.num_slots == self._size.wanted - self._size.on_driver:
            return False
        return (preflight.count_slots(self._spark) or 0) - self.work.feed_slots > self.num_slots

    def grow(self) -> None:
        """Leave the work, to do it again in a larger life."""
        raise _TooSmallError

    # --- from one to the next ----------------------------------------------------------------------

    def _begin_with(self, num_nodes: int) -> None:
        """Begin a new life with so many nodes."""
        self.nodes = self._size.nodes(num_nodes)
        self.current = Incarnation(
            self._spark,
            self.nodes,
            self._options,
            self._settings,
            self._code,
            self._observer,
            None if self._recovery is None else self._recovery.store,
            self.have_ended,
        )

    def _end(self) -> None:
        self._is_up = False
        self.current.stop()

    def _pause_after(self, error: Exception) -> None:
        """Wait a little before the new life; raise the error if there shall be none."""
        if self._recovery is None or self.stopped:
            raise error
        cause = self.current.failure_behind(error)
        if cause is None or not self.registry.is_transient:
            raise error
        budget = self._recovery.budget
        pause_s = budget.spend()
        if pause_s is None:
            cause.add_note(
                f"max_restarts={budget.most} within {budget.window_s:g} s are used up; raise max_restarts, or resume "
                "from the run directory"
            )
            raise cause
        self._observer("restarting", {"cause": str(cause).splitlines()[0], "pause_s": pause_s})
        self._end()
        time.sleep(pause_s)

    def _bring_up(self) -> None:
        """Launch the cluster if it is not up; after a failure a new life takes over from the one before."""
        if self._is_up:
            return
        earlier = self.current
        if earlier.is_over:
            self._begin_with(
                room_for(self._spark, self._size, self.work.feed_slots, self._replacement_timeout_s)
            )
        self._launch()
        if self.chief is not None:
            job = self.control.post_job("build")
            timeout_s = self._options.reservation_timeout
            self.control.wait(lambda: self.have_trained(job), timeout_s, "the chief to build the model")
        if earlier.is_over:
            self.work.take_over(earlier)
        self.registry.replaces = self._replaces
        self._is_up = True

    def _launch(self) -> None:
        """Start this life's nodes; if some do not come, with fewer of them, as far as that is allowed."""
        until = time.monotonic() + self._options.reservation_timeout
        while True:
            left_s = until - time.monotonic()
            try:
                self.current.launch(min(left_s, max(self._replacement_timeout_s, REGISTERED_S)))
                break
            except ReservationError:
                missing = self.registry.missing()
                came = sum(node.role != "chief" and node.name not in missing for node in self.nodes)
                if not self._size.is_elastic or self.registry.failed or time.monotonic() > until:
                    raise
                self.current.stop()
                self._begin_with(max(came, self._size.least))
        if self._size.is_elastic:
            self._observer("sized", {"workers": len(self.workers), "wanted": self._size.num_workers})

    @property
    def _replacement_timeout_s(self) -> float:
        longest = self._options.reservation_timeout
        return min(longest, self._size.replacement_timeout_s) if self._size.is_elastic else longest

    def _replaces(self, node: NodeSpec) -> bool:
        """Whether a node that was lost is replaced while the others go on; takes one restart of the budget.

        A worker of parameter servers is: its steps are taken again by others. Worker 0 shares its task with the chief.
        """
        is_such = self.chief is not None and node.role == "worker" and node.task_index > 0
        if not is_such or self._recovery is None or self.control.feeding_over:
            return False
        return self.work.may_replace_workers and self._recovery.budget.spend() is not None

    # --- the life that is --------------------------------------------------------------------------

    @property
    def control(self) -> ControlPlane:
        """The driver's server."""
        return self.current.control

    @property
    def feeder(self) -> Feeder:
        """What feeds the nodes."""
        return self.current.feeder

    @property
    def registry(self) -> Registry:
        """The book of nodes."""
        return self.current.registry

    @property
    def workers(self) -> list[NodeSpec]:
        """Those that train."""
        return [node for node in self.nodes if node.role == "worker"]

    @property
    def evaluators(self) -> list[NodeSpec]:
        """Those that evaluate beside them."""
        return [node for node in self.nodes if node.role == "evaluator"]

    @property
    def chief(self) -> NodeSpec | None:
        """Who coordinates the parameter servers, if there are any."""
        return next((node for node in self.nodes if node.role == "chief"), None)

    @property
    def num_slots(self) -> int:
        """Task slots the nodes hold: one each, but the chief shares that of worker 0."""
        return sum(node.role != "chief" for node in self.nodes) - self._size.on_driver

    def have_trained(self, job: int) -> bool:
        """Whether every worker has ended the job, perhaps early."""
        return self.have_ended(job, self.workers)

    def have_ended(self, job: int, nodes: Sequence[NodeSpec]) -> bool:
        """Whether these nodes have ended the job; a `main_fun` ends it by returning, and a chief for its workers."""
        if self._settings.runs_main_fun:
            return self.registry.all_succeeded("worker")
        results = self.control.job_results(job)
        return all((self._chief_of(node) or node).index in results for node in nodes)

    def _chief_of(self, node: NodeSpec) -> NodeSpec | None:
        return self.chief if node.role == "worker" else None
