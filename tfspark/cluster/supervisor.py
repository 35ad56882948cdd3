"""Start the incarnations of a cluster, one after another: the first, and a new one after a loss. Runs on the driver.

`tfspark.cluster.state.policy` decides what to do after a loss.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from tfspark.cluster import preflight
from tfspark.cluster.control import ControlPlane, Observer
from tfspark.cluster.feeder import Feeder
from tfspark.cluster.incarnation import Incarnation
from tfspark.cluster.options import ClusterOptions
from tfspark.cluster.preflight import room_for
from tfspark.cluster.state.driver_state import DriverState
from tfspark.cluster.state.policy import Means, Raise, Restart, decide, decide_growth
from tfspark.cluster.state.recovery import Recovery
from tfspark.errors import ReservationError
from tfspark.protocol.roles import NodeSpec, stream_name
from tfspark.protocol.settings import TrainerSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = TypeVar("T")

REGISTERED_S = 30.0
"""Minimum seconds to wait for nodes if fewer may be enough: Spark may still count the slots of a lost host."""


class Work(Protocol):
    """The part of a cluster's work that its supervisor must know."""

    @property
    def feed_slots(self) -> int:
        """Task slots that must stay free for the tasks that feed."""

    @property
    def may_replace_workers(self) -> bool:
        """Whether a worker beside parameter servers may be replaced alone."""

    def take_over(self, earlier: Incarnation) -> None:
        """Continue the work of an earlier incarnation in the current one."""


class _ResizeError(Exception):
    """Interrupts the work, to do the rest with more workers."""


class Supervisor:
    """Keeps a cluster up while it works.

    Args:
        spark: the session.
        options: of the cluster.
        settings: sent to the trainers.
        num_nodes: number of nodes for which there is room at first.
        code: the user's function and its arguments, pickled.
        observer: called with (event, fields).
        recovery: what a restart needs; None: the first failure ends the run.

    Attributes:
        current: the incarnation that is up; the properties below read from it.
        nodes: the planned nodes.
        work: what the cluster does; set before the launch.
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
        self._was_up: Incarnation | None = None  # The last one that was up, until another continues its work.
        self._ended: list[Incarnation] = []
        self._stopped = threading.Event()
        self._begin_with(num_nodes)
        # A program may end without `shutdown`, or stop Spark first. The processes it started must end in that case,
        # too.
        atexit.register(self.stop)

    def surviving(self, work: Callable[[], T]) -> T:
        """Do some work with the cluster. After a loss, repeat it in a new incarnation from the newest checkpoint.

        Raises:
            TfsparkError: a failure that a restart cannot repair, or too many failures.
        """
        while True:
            try:
                self._bring_up()
                return work()
            except _ResizeError:
                self._end()
            except Exception as error:
                self._recover_from(error)

    def check_for_good(self) -> None:
        """Raise if the cluster has failed and no new incarnation will follow, for the current or the next work."""
        failed = self.current
        try:
            failed.control.check()
        except Exception:
            if isinstance(decide(failed.failure_kinds(), None, self._means), Raise):
                raise

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Stop the cluster now, in any state; harmless if it has ended."""
        if self.stopped:
            return
        self._stopped.set()
        atexit.unregister(self.stop)
        self.current.stop()
        for ended in self._ended:
            ended.close()
        if self._recovery is not None:
            self._recovery.close()

    def begin_anew(self, code: bytes, settings: TrainerSettings) -> None:
        """Let the current incarnation and later ones train another model."""
        self._code, self._settings = code, settings
        self._name_streams()
        if self._recovery is not None:
            recovery = self._recovery
            self.control.update(lambda _: recovery.begin_anew())

    def _name_streams(self) -> None:
        def name(state: DriverState) -> None:
            state.train_stream = stream_name("train", self._settings.generation)

        self.control.update(name)

    def resize_if_possible(self, ready: Callable[[], bool]) -> None:
        """Interrupt the work, to do the rest with more workers, if some are missing and Spark has room for them.

        Args:
            ready: waits until the work can be interrupted; returns whether any work is left then.
        """
        if not self._size.is_elastic:
            return  # Asked after each epoch: Spark is not asked for its slots then.
        slots = preflight.count_slots(self._spark)
        room = None if slots is None else slots - self.work.feed_slots
        if decide_growth(self._size, self.num_slots, room) is not None and ready():
            raise _ResizeError

    # --- from one incarnation to the next ----------------------------------------------------------------------

    def _begin_with(self, num_nodes: int) -> None:
        """Create a new incarnation of `num_nodes` nodes."""
        self.nodes = self._size.nodes(num_nodes)
        self.current = Incarnation(
            self._spark,
            self.nodes,
            self._options,
            self._settings,
            self._code,
            self._observer,
            None if self._recovery is None else self._recovery.store,
            None if self._recovery is None else self._recovery.budget,
            self.have_ended,
        )
        self._name_streams()

    def _end(self) -> None:
        if self._is_up:
            self._was_up = self.current
        self._is_up = False
        self.current.stop(is_last=False)
        self._ended.append(self.current)

    @property
    def _means(self) -> Means:
        recovery = self._recovery
        return Means(False) if recovery is None else Means(True, recovery.budget.next_pause_s)

    def _recover_from(self, error: Exception) -> None:
        """End a failed incarnation and wait until the next may start; raise the error if there is none."""
        if self._recovery is None or self.stopped:
            raise error
        cause = self.current.failure_behind(error)
        if cause is None:
            raise error
        decision = decide(self.current.failure_kinds(), None, self._means)
        budget = self._recovery.budget
        if isinstance(decision, Raise) and decision.is_exhausted:
            cause.add_note(
                f"restart budget exhausted: max_restarts={budget.most} within restart_window={budget.window_s:g} s; "
                "raise max_restarts, or resume from the run directory"
            )
            raise cause
        if not isinstance(decision, Restart):
            raise error
        budget.spend()
        self._observer("restarting", {"cause": str(cause).splitlines()[0], "pause_s": decision.pause_s})
        self._end()
        if self._stopped.wait(decision.pause_s):
            raise cause

    def _bring_up(self) -> None:
        """Launch the cluster if it is not up; after a loss, the work continues what the earlier incarnation did."""
        if self._is_up:
            return
        is_again = self.current.is_over
        if is_again:
            self.current.stop(is_last=False)  # To its end, if that was interrupted.
            self._begin_with(
                room_for(self._spark, self._size, self.work.feed_slots, self._replacement_timeout_s)
            )
        try:
            self._launch()
            if self.chief is not None:
                job = self.control.post_job("build")
                timeout_s = self._options.reservation_timeout
                self.control.wait(lambda _: self.have_trained(job), timeout_s, "the chief to build the model")
            if is_again:
                # An incarnation that was lost before it was up has no work to continue.
                self.work.take_over(self._was_up or self.current)
            self.control.update(self._permit_replacements)
        except KeyboardInterrupt:
            self._end()  # Nodes cannot be launched a second time.
            raise
        self._is_up, self._was_up = True, None

    def _launch(self) -> None:
        """Start the nodes. If some do not register, start fewer, if that is allowed."""
        until = time.monotonic() + self._options.reservation_timeout
        while True:
            left_s = until - time.monotonic()
            try:
                self.current.launch(min(left_s, max(self._replacement_timeout_s, REGISTERED_S)))
                break
            except ReservationError:
                missing = self.current.missing()
                came = sum(node.role != "chief" and node.name not in missing for node in self.nodes)
                if not self._size.is_elastic or self.has_failed or time.monotonic() > until:
                    raise
                self.current.stop()
                self._begin_with(max(came, self._size.least))
        if self._size.is_elastic:
            self._observer("sized", {"workers": len(self.workers), "wanted": self._size.num_workers})

    @property
    def _replacement_timeout_s(self) -> float:
        longest = self._options.reservation_timeout
        return min(longest, self._size.replacement_timeout_s) if self._size.is_elastic else longest

    def _permit_replacements(self, state: DriverState) -> None:
        state.registry.may_replace_workers = self.chief is not None and self.work.may_replace_workers

    # --- the incarnation that is up ----------------------------------------------------------------

    @property
    def control(self) -> ControlPlane:
        """The driver's server."""
        return self.current.control

    @property
    def feeder(self) -> Feeder:
        """Feeds the nodes."""
        return self.current.feeder

    @property
    def has_failed(self) -> bool:
        """Whether anything failed in this incarnation."""
        return self.control.read(lambda state: state.registry.failed)

    @property
    def workers(self) -> list[NodeSpec]:
        """The nodes that train."""
        return [node for node in self.nodes if node.role == "worker"]

    @property
    def evaluators(self) -> list[NodeSpec]:
        """The nodes that evaluate while the workers train."""
        return [node for node in self.nodes if node.role == "evaluator"]

    @property
    def chief(self) -> NodeSpec | None:
        """The node that coordinates the parameter servers, if there are any."""
        return next((node for node in self.nodes if node.role == "chief"), None)

    @property
    def num_slots(self) -> int:
        """Task slots that the nodes hold: one each, but the chief shares the slot of worker 0."""
        return sum(node.role != "chief" for node in self.nodes) - self._size.on_driver

    def have_trained(self, job: int) -> bool:
        """Return whether every worker has ended the job, perhaps early."""
        return self.have_ended(job, self.workers)

    def have_ended(self, job: int, nodes: Sequence[NodeSpec]) -> bool:
        """Return whether these nodes have ended the job.

        A `main_fun` ends a job by returning. A chief ends it for its workers.
        """
        if self._settings.runs_main_fun:
            return self.control.read(lambda state: state.registry.all_succeeded("worker"))
        results = self.control.job_results(job)
        return all((self._chief_of(node) or node).index in results for node in nodes)

    def _chief_of(self, node: NodeSpec) -> NodeSpec | None:
        return self.chief if node.role == "worker" else None
