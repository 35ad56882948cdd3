"""The control plane: a Flight server in the driver that nodes, trainers and feed tasks call.

It holds the `DriverState` (which nodes are up, which tasks have rows) and the list of jobs (what the trainers do next).
One lock guards both. Other modules get the state only in the functions that they pass to `update`, `read` and `wait`.
These run under the lock, so they do not wait, and call neither Spark nor the observer. A call that waits for something
is answered after at most `LONG_POLL_S`; the caller repeats it until its own deadline.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from tfspark.cluster.state.checkpoint_store import Checkpoint, CheckpointStore, write_part
from tfspark.cluster.state.driver_state import DriverState
from tfspark.cluster.state.registry import TASK_AGAIN, Registry, count_roles
from tfspark.cluster.state.save_schedule import SaveSchedule
from tfspark.cluster.uploads import file_batches, read_to_the_end, receive_files, remove, safe_parts
from tfspark.errors import DeadlineError, TfsparkError
from tfspark.feed.directory import FeedDirectory
from tfspark.feed.offers import Offers
from tfspark.protocol.failures import FailureKind
from tfspark.protocol.roles import NodeSpec, reader_number, tf_config
from tfspark.protocol.timing import LONG_POLL_S
from tfspark.protocol.values import Json
from tfspark.protocol.wire import ActionServer, Secret, uploaded

EXTRAS = ("checkpoints", "pictures")
"""Folders of the run directory. Training continues, and the model can be exported, if they cannot be written."""
CHECK_S = 0.2
"""Seconds between two looks for silent nodes during a wait; a node that falls silent wakes nobody."""
KEPT_SUMS = 4
KEPT_RESULTS = 64
"""Number of jobs whose results are kept: a sidecar evaluator may be this many jobs behind."""
KEPT_JOBS = 1024
"""Number of jobs kept. A caller that asks for an older job gets the oldest one that is left."""
SAVE_LAST_S = 5.0
"""Seconds that an interrupted program waits for a last checkpoint before it ends."""

Observer = Callable[[str, Json], None]
T = TypeVar("T")


class ControlPlane(ActionServer):
    """The driver's server; see the module's docstring.

    Args:
        addresses: the address to listen on, and the one executors reach it by, as Spark's driver uses them.
        secret: the cluster's secret.
        nodes: the planned nodes.
        registry: the state of the nodes.
        observer: called with (event, fields) for events that a user may want to see.
        artifact_dir: directory for the chief's uploads; None rejects them.
        master_node: name of worker 0's task type in ``TF_CONFIG``; None: ``worker``.
        independent: nodes get no ``TF_CONFIG``; each runs TensorFlow on its own.
        all_at_once: no node starts before all have registered.
        store: holds the checkpoints of the training state; None rejects them.
        save_every_s: seconds between two checkpoints within an epoch; 0: whenever the workers ask for one.
        clock: seconds, used to measure silence.
    """

    def __init__(
        self,
        addresses: tuple[str, str],
        secret: Secret,
        nodes: tuple[NodeSpec, ...],
        registry: Registry,
        observer: Observer,
        artifact_dir: Path | None,
        master_node: str | None = None,
        independent: bool = False,
        all_at_once: bool = True,
        store: CheckpointStore | None = None,
        save_every_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._state = DriverState(registry, FeedDirectory(clock), Offers(clock))
        self._nodes = nodes
        self._names = {node.index: node.name for node in nodes}
        self._told = observer
        self._artifact_dir = artifact_dir
        self._store = store
        self._save_schedule = SaveSchedule(save_every_s)
        self._num_saved = 0
        self.num_workers = count_roles(nodes)["worker"]
        self._master_node = master_node
        self._independent = independent
        self._all_at_once = all_at_once
        self._jobs: deque[Json] = deque(maxlen=KEPT_JOBS)
        self._num_jobs = 0
        self._done: dict[tuple[int, int], Json] = {}
        self._sums: dict[str, dict[int, Any]] = {}
        # Entered by itself: Ctrl-C in a condition's own `__enter__`, which is written in Python, leaves it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        super().__init__(addresses[0], secret, reached_by=addresses[1])

    # --- the driver's side -------------------------------------------------------------------------

    def update(self, change: Callable[[DriverState], T]) -> T:
        """Call `change` under the lock, wake all waiting calls, and return its result."""
        with self._lock:
            value = change(self._state)
            self._changed.notify_all()
            return value

    def read(self, look: Callable[[DriverState], T]) -> T:
        """Call `look` under the lock and return its result. No waiting call is woken."""
        with self._lock:
            return look(self._state)

    def wait(self, reached: Callable[[DriverState], bool], timeout_s: float, what: str) -> None:
        """Wait until `reached` is true; raise as soon as the cluster has failed. `reached` runs under the lock.

        Raises:
            DeadlineError: `timeout_s` passed; the message names `what`.
            TfsparkError: a node failed meanwhile.
        """
        until = time.monotonic() + timeout_s

        def reach(state: DriverState) -> None:
            while not reached(state):
                self._raise_failure(state)
                if time.monotonic() >= until and not state.registry.failed:
                    raise DeadlineError(f"waited {timeout_s:g} s for {what}")
                self._changed.wait_for(lambda: reached(state), CHECK_S)

        try:
            self.read(reach)
        except KeyboardInterrupt:
            self.read(self._save_last)
            raise

    def _save_last(self, state: DriverState) -> None:
        """Let an interrupted training save its state while rows still arrive, so that it can be resumed later."""
        if self._save_schedule.in_use:
            self._save_schedule.save_soon()
            saved = self._num_saved
            self._changed.wait_for(lambda: self._num_saved > saved or state.must_stop, SAVE_LAST_S)

    def check(self) -> None:
        """Raise if the cluster has failed."""
        self.read(self._raise_failure)

    def wait_for_failure(self, timeout_s: float) -> Exception | None:
        """Wait until a node has failed, at most `timeout_s` seconds; return the error, None if no node has failed."""
        until = time.monotonic() + timeout_s

        def failure(state: DriverState) -> Exception | None:
            while not (state.registry.failed or state.registry.check()) and time.monotonic() < until:
                self._changed.wait_for(lambda: state.registry.failed, CHECK_S)
            return state.registry.error() if state.registry.failed else None

        return self.read(failure)

    @staticmethod
    def _raise_failure(state: DriverState) -> None:
        if state.registry.check():
            raise state.registry.error()

    def post_job(self, kind: str, **fields: object) -> int:
        """Post the next job for the trainers; return its number."""

        def post(_: DriverState) -> int:
            self._num_jobs += 1
            self._jobs.append({"job": self._num_jobs, "kind": kind, **fields})
            for key in [key for key in self._done if key[0] < self._num_jobs - KEPT_RESULTS]:
                del self._done[key]
            return self._num_jobs

        return self.update(post)

    @property
    def has_chief(self) -> bool:
        """Whether a chief coordinates the workers' steps. It does if there are parameter servers."""
        return any(node.role == "chief" for node in self._nodes)

    def job_results(self, job: int) -> dict[int, Json]:
        """Return node index -> result of a job, for the nodes that have finished it."""
        return self.read(lambda _: {node: value for (done, node), value in self._done.items() if done == job})

    def _observer(self, event: str, fields: Json) -> None:
        """Call the observer; an exception in it fails the run, but not the caller, which only reports."""
        try:
            self._told(event, fields)
        except BaseException as error:  # Also SystemExit: this is a thread of the server.
            failure = error if isinstance(error, TfsparkError) else observer_failed(event, error)
            self.update(lambda state: state.registry.fail_cluster(failure))

    # --- nodes -------------------------------------------------------------------------------------

    def on_register(self, request: Json) -> Json:
        """Register a node."""
        node = request["node"]

        def register(state: DriverState) -> tuple[Json, bool]:
            before = state.registry.nodes[node].attempt
            reply = state.registry.register(
                node,
                request["host"],
                request["port"],
                request["versions"],
                request.get("executor", ""),
                request.get("task", ""),
            )
            is_new = before < reply.get("attempt", 0)
            if is_new and before:
                self._lose_reader(state, node)
            return reply, is_new

        reply, is_new = self.update(register)
        if is_new:
            name = self._names[node]
            self._observer("registered", {"node": name, "host": request["host"], "port": request["port"]})
            if reply["attempt"] > 1:
                self._observer("replacing", {"node": name, "cause": TASK_AGAIN})
        return reply

    def on_trainer_lost(self, request: Json) -> Json:
        """Record that a node's trainer was killed; reply whether the node should start another one."""
        node, cause = request["node"], request["cause"]

        def replace(state: DriverState) -> int:
            attempt = state.registry.replace(node, request["attempt"])
            if attempt:
                self._lose_reader(state, node)
            return attempt

        attempt = self.update(replace)
        if attempt:
            self._observer("replacing", {"node": self._names[node], "cause": cause})
        return {"attempt": attempt}

    def _lose_reader(self, state: DriverState, node: int) -> None:
        """Record that the rows read by a worker's previous attempt are lost."""
        entry = state.registry.nodes[node]
        state.directory.lose_reader(reader_number(self._nodes, entry.spec, entry.attempt - 1))

    def on_assignment(self, request: Json) -> Json:
        """Give a registered node its ``TF_CONFIG`` once all have registered."""

        def assign(state: DriverState) -> Json:
            self._changed.wait_for(lambda: self._reserved(state) or state.must_stop, LONG_POLL_S)
            stop = state.registry.heartbeat(request["node"], request["attempt"])
            if stop or not self._reserved(state):
                return {"action": "stop" if stop else "wait"}
            return {"action": "go", "tf_config": self._tf_config(state, request["node"])}

        return self.read(assign)

    def _reserved(self, state: DriverState) -> bool:
        return not self._all_at_once or not state.registry.missing()

    def _tf_config(self, state: DriverState, node: int) -> str:
        if self._independent:
            return ""
        spec = state.registry.nodes[node].spec
        return tf_config(self._nodes, state.registry.addresses(), spec, self._master_node)

    def mark_preempted(self, node: int, cause: str) -> None:
        """Record that a node will be lost soon: the state is saved first, then the node counts as lost."""

        def note(state: DriverState) -> None:
            state.registry.mark_preempted(node, cause)
            self._save_schedule.save_soon()

        self.update(note)

    def on_heartbeat(self, request: Json) -> Json:
        """Record a heartbeat and new log lines; reply whether to stop, and whether to show the trainer's stacks."""
        if request.get("preempted"):
            self.mark_preempted(request["node"], request["preempted"])

        def beat(state: DriverState) -> Json:
            stop = state.registry.heartbeat(request["node"], request["attempt"])
            return {"stop": stop, "stacks": state.registry.wants_stacks}

        # Nobody waits for a heartbeat, so no waiting call is woken: there may be a thousand heartbeats a second.
        reply = self.read(beat)
        self._log(request)
        return reply

    def on_node_ended(self, request: Json) -> Json:
        """Record that a node's task is over, and its last log lines."""
        self._log(request)
        self.update(
            lambda state: state.registry.node_ended(
                request["node"], request["attempt"], request["cause"], request["log_tail"]
            )
        )
        return {}

    def _log(self, request: Json) -> None:
        if request["log"]:
            self._observer("log", {"node": self._names[request["node"]], "lines": request["log"]})

    # --- trainers ----------------------------------------------------------------------------------

    def on_trainer_alive(self, request: Json) -> Json:
        """Record that a trainer is alive, and its progress."""
        node, steps, activity = request["node"], request["steps"], request["activity"]
        # As a heartbeat, it wakes no waiting call.
        self.read(lambda state: state.registry.trainer_alive(node, steps, activity))
        return {}

    def on_trainer_ended(self, request: Json) -> Json:
        """Record the value a trainer returned; it reads no more rows."""

        def ended(state: DriverState) -> None:
            node = state.registry.nodes[request["node"]].spec
            if node.role == "worker":
                state.drop_reader(node.task_index)
            state.registry.trainer_ended(request["node"], request["result"])

        self.update(ended)
        return {}

    def on_trainer_failed(self, request: Json) -> Json:
        """Record the exception that ended a trainer."""
        self.update(
            lambda state: state.registry.trainer_failed(
                request["node"], request["cause"], request["traceback"], FailureKind(request["kind"])
            )
        )
        return {}

    def on_report(self, request: Json) -> Json:
        """Pass a trainer's progress on to the observer."""
        if self._is_stopping():
            return {}  # To a trainer, an aborted feed looks like the end of an epoch.
        name = self._names[request["node"]]
        if request["event"] == "tensorflow":
            seconds = self.update(lambda state: state.registry.replacement_up(request["node"]))
            if seconds is not None:
                self._observer("replaced", {"node": name, "seconds": seconds})
        self._observer(request["event"], {"node": name, **request["fields"]})
        return {}

    def _is_stopping(self) -> bool:
        return self.read(lambda state: state.registry.stopping)

    def on_next_job(self, request: Json) -> Json:
        """Return the job that follows the one a trainer has done."""
        after = request["after"]

        def next_job(state: DriverState) -> Json:
            self._changed.wait_for(lambda: self._num_jobs > after or state.must_stop, LONG_POLL_S)
            if self._num_jobs <= after:
                return {"kind": "wait"}
            return self._jobs[max(0, after - (self._num_jobs - len(self._jobs)))]

        return self.read(next_job)

    def on_job_done(self, request: Json) -> Json:
        """Record a trainer's result of a job."""
        key = (request["job"], request["node"])
        self.update(lambda _: self._done.__setitem__(key, request["result"]))
        return {}

    def on_sum(self, request: Json) -> Json:
        """Add up arrays of all ranks, such as the states of metrics.

        The caller repeats the call until every rank has sent its part; each rank's part counts once. A repeated call
        may leave out ``values`` if they have already arrived. The newest sums are kept, so that a caller whose reply
        was lost can ask once more.
        """
        key, rank = request["key"], request["rank"]
        with self._lock:
            parts = self._sums.setdefault(key, {})
            if request["values"] is not None:
                parts[rank] = request["values"]
            elif rank not in parts:
                return {"status": "again"}
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: len(parts) == request["of"], LONG_POLL_S):
                return {"status": "wait"}
            ended = [other for other, of in self._sums.items() if len(of) == request["of"]]
            for old in ended[:-KEPT_SUMS]:
                del self._sums[old]
            total = [
                np.sum([np.asarray(part[i], np.float64) for part in parts.values()], axis=0).tolist()
                for i in range(len(parts[rank]))
            ]
            return {"status": "ok", "values": total}

    def on_arrive(self, request: Json) -> Json:
        """See `SaveSchedule.arrive`; a worker waits here for the other workers."""

        def arrive() -> Json | None:
            return self._save_schedule.arrive(request["number"], request["rank"], self.num_workers)

        self.update(lambda _: arrive())
        with self._lock:
            decision = self._changed.wait_for(arrive, LONG_POLL_S)
        return {"status": "ok", **decision} if decision else {"status": "wait"}

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Receive an upload as (path, bytes) rows: a part of a checkpoint, or files for the run directory."""
        del context, writer
        header = json.loads(descriptor.command)
        if "part" in header:
            self._take_part(header["part"], reader)
            return
        name = header["name"]
        if self._artifact_dir is None:
            raise ValueError("this cluster keeps no artifacts; pass log_dir to TFCluster.run")
        batches = uploaded(reader)
        try:
            receive_files(batches, self._artifact_dir, name)
        except OSError as error:
            if error.errno is None or safe_parts(name)[0] not in EXTRAS:
                self._cannot_keep(name, error)
                raise
            read_to_the_end(batches)
            self._observer("not_kept", {"name": name, "why": f"{error.strerror}: {self._artifact_dir}"})
        self.update(lambda _: None)

    def remove_artifact(self, name: str) -> None:
        """Remove an upload that is no longer needed, and its folder if that is empty then."""
        if self._artifact_dir is not None:
            with contextlib.suppress(OSError):
                path = self._artifact_dir.joinpath(*safe_parts(name))
                remove(path)
                path.parent.rmdir()

    def _take_part(self, header: Json, reader: flight.MetadataRecordBatchReader) -> None:
        """Store a part of a checkpoint; if the disk cannot hold it, report that and let training continue."""
        store = self._store
        if store is None:
            raise ValueError("this cluster keeps no checkpoints of its state")
        batches = uploaded(reader)
        try:
            part = self.update(lambda _: store.place(header))
            aside = part.with_suffix(f".{uuid.uuid4().hex}")  # A part may arrive twice at once: see `put`.
            digest = write_part(aside, batches)
            aside.rename(part)
            kept = self.update(lambda state: self._add_part(state, store, header, part, digest))
            if kept is not None:
                self._observer(
                    "state", {"epoch": kept.passes + 1, "step": kept.steps, "path": str(kept.path)}
                )
        except OSError as error:
            if error.errno is None:
                raise  # The trainer is gone; that is detected elsewhere.
            if self._is_stopping():
                return  # The next incarnation has removed this part.
            self.update(lambda _: store.drop(header))
            read_to_the_end(batches)
            self._observer("state_not_kept", {"why": f"{error.strerror}: {store.directory}"})

    def _add_part(
        self, state: DriverState, store: CheckpointStore, header: Json, part: Path, digest: str
    ) -> Checkpoint | None:
        if state.registry.stopping:
            return None  # Its epoch may be one whose feed was aborted: see `on_report`.
        passes, name = header["passes"], state.train_stream
        sizes, layout = state.directory.sizes(name, passes), state.directory.layout(name, passes)
        kept = store.add(header, part, digest, sizes, layout)
        if kept is not None:
            self._num_saved += 1
            state.registry.release_preempted()
        return kept

    def _cannot_keep(self, name: str, error: OSError) -> None:
        """Fail the cluster because a disk of the driver cannot be written; the trainer's error would not name it."""
        if error.errno is None:
            return  # The trainer is gone; that is detected elsewhere.
        failure = TfsparkError(
            f"expected to keep {name} in the run directory {self._artifact_dir}, the driver's system said: "
            f"{error.strerror}; make room there, or choose another directory"
        )
        self.update(lambda state: state.registry.fail_cluster(failure))

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.RecordBatchStream:
        """Send a file that was uploaded before."""
        del context
        file = self._uploaded(json.loads(ticket.ticket))
        schema = pa.schema([("data", pa.binary())])
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, file_batches(file, schema)))

    def _uploaded(self, ticket: Json) -> Path:
        if "part" in ticket and self._store is not None:
            store = self._store
            return self.update(lambda _: store.file(ticket["part"]))
        if self._artifact_dir is None:
            raise ValueError("this cluster keeps no artifacts; pass log_dir to TFCluster.run")
        return self._artifact_dir.joinpath(*safe_parts(ticket["artifact"]))

    # --- the feed ----------------------------------------------------------------------------------

    def on_source_up(self, request: Json) -> Json:
        """See `FeedDirectory.source_up`."""

        def source_up(state: DriverState) -> Json:
            reply = state.directory.source_up(**request)
            if reply.get("moved"):
                state.registry.fail_cluster(
                    _rows_moved(request["partition"], request["stream"]), transient=True
                )
            if reply["action"] == "wait":
                self._changed.wait(LONG_POLL_S)
            return reply

        return self.update(source_up)

    def on_offer_sample(self, request: Json) -> Json:
        """See `FeedDirectory.offer_sample`."""
        return self.update(lambda state: state.directory.offer_sample(**request))

    def on_source_alive(self, request: Json) -> Json:
        """See `FeedDirectory.source_alive`; when the cluster has failed, the source is told to stop."""
        source = request["source"]

        def alive(state: DriverState) -> Json:
            is_offer = source in state.offers
            reply = state.offers.alive(source) if is_offer else state.directory.source_alive(**request)
            steps = sum(node.steps for node in state.registry.nodes.values())
            return {
                "stop": reply["stop"] or state.must_stop,
                "moves": reply.get("pulls", 0) + steps,
                "lost": reply.get("lost", []),
            }

        return self.read(alive)

    def on_source_there(self, request: Json) -> Json:
        """See `FeedDirectory.source_there`."""
        return self.read(lambda state: state.directory.source_there(**request))

    def on_source_failed(self, request: Json) -> Json:
        """See `FeedDirectory.source_failed`."""
        return self.update(lambda state: state.directory.source_failed(**request))

    def on_partition_done(self, request: Json) -> Json:
        """See `FeedDirectory.partition_done`."""
        return self.update(lambda state: state.directory.partition_done(**request))

    def on_describe(self, request: Json) -> Json:
        """See `FeedDirectory.describe`."""
        return self._poll(lambda state: state.directory.describe(**request))

    def on_lease(self, request: Json) -> Json:
        """See `FeedDirectory.lease`; a reader that already holds leases gets its answer without waiting."""
        wait_s = 0.0 if request["held"] else LONG_POLL_S

        def lease(state: DriverState) -> Json:
            reply = state.directory.lease(**request)
            if request.get("found") is not None:
                self._changed.notify_all()  # The driver waits for what readers have found.
            return reply

        return self._poll(lease, wait_s)

    def on_release(self, request: Json) -> Json:
        """See `FeedDirectory.release`."""
        return self.update(lambda state: state.directory.release(**request))

    def on_next_rows(self, request: Json) -> Json:
        """Reply what a reader of rows does next: read a pass, compute a partition's results, or end."""
        stream, rank = request["stream"], request["rank"]

        def ask(state: DriverState) -> Json:
            offer = state.offers.take(stream, rank, request["host"], request["held"])
            if offer is not None:
                return offer
            if state.directory.has_pass(stream, request["index"]):
                return {"status": "pass", "description": state.directory.describe_rows(stream)}
            over = state.feeding_over or state.must_stop
            return {"status": "end" if over else "wait", "most_rows": state.directory.most_rows(stream)}

        return self._poll(ask)

    def on_leave(self, request: Json) -> Json:
        """Record that a reader wants no more rows of a stream."""

        def leave(state: DriverState) -> None:
            state.directory.cut_short(**request)
            state.directory.leave(request["rank"], request["stream"])
            state.offers.drop(request["rank"])

        self.update(leave)
        return {}

    def on_offer_partition(self, request: Json) -> Json:
        """See `Offers.offer`."""
        return self.update(lambda state: state.offers.offer(**request))

    def on_await_reader(self, request: Json) -> Json:
        """Record that an offer still waits, and wait for its reader."""

        def await_reader(state: DriverState) -> Json:
            self._changed.wait_for(
                lambda: state.offers.alive(**request)["taken"] or not state.has_reader, LONG_POLL_S
            )
            reply = state.offers.alive(**request)
            return {**reply, "stop": reply["stop"] or not state.has_reader}

        return self.read(await_reader)

    def on_partition_inferred(self, request: Json) -> Json:
        """See `Offers.done`."""
        return self.update(lambda state: state.offers.done(request["offer"]))

    def on_end_pass(self, request: Json) -> Json:
        """See `FeedDirectory.end_pass`."""
        return self.update(lambda state: state.directory.end_pass(**request))

    def on_agree(self, request: Json) -> Json:
        """See `FeedDirectory.agree`; a reader that has ended waits here until another reader changes the agreement."""

        def agree(state: DriverState) -> Json:
            reply = state.directory.agree(**request)
            self._changed.notify_all()
            known = max(reply["steps"], request["steps"])

            def has_news() -> bool:
                now = state.directory.agree(**request)
                return now["final"] or now["closed"] or now["steps"] > known or state.must_stop

            if request["ended"] and not reply["final"] and reply["steps"] <= request["steps"]:
                self._changed.wait_for(has_news, LONG_POLL_S)
            return state.directory.agree(**request)

        return self.read(agree)

    def _poll(self, ask: Callable[[DriverState], Json], wait_s: float = LONG_POLL_S) -> Json:
        """Call `ask` until its reply is not ``wait``, for at most `wait_s` seconds.

        It is called once per change only, because a call may itself change the state.
        """

        def poll(state: DriverState) -> Json:
            until = time.monotonic() + wait_s
            while (reply := ask(state))["status"] == "wait" and not state.must_stop:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return reply

        return self.read(poll)


def observer_failed(event: str, error: BaseException) -> TfsparkError:
    """Return the error that reports what an observer raised."""
    failure = TfsparkError(
        f"expected the observer to return when it is told of {event!r}, it raised {type(error).__name__}: {error}; "
        "correct it: observer(event, fields) is called for every event, each with fields of its own"
    )
    failure.__cause__ = error
    return failure


def _rows_moved(partition: int, stream: str) -> TfsparkError:
    """Return the error for a partition that cannot be served again from the row where its first attempt ended."""
    return TfsparkError(
        f"expected Spark to compute partition {partition} of {stream!r} again with its rows in the same places, since "
        "a part of it was trained on before its task was lost; after a shuffle they are in the order in which they "
        "arrive: add sortWithinPartitions(...) by a unique column, or write the rows to files first"
    )
