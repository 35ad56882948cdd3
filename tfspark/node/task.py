"""The node task: an ordinary Spark task that runs for the lifetime of its node.

Runs in Spark's Python worker on an executor; imports no TensorFlow. It registers with the control plane and starts the
trainer (a separate process that runs TensorFlow, see `tfspark.node.launch`). It sends the trainer's log and heartbeats
to the driver, and ends the trainer when the driver says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.flight as flight

from tfspark.node import warm
from tfspark.node.environment import trainer_environment
from tfspark.node.launch import Orders, Trainer
from tfspark.node.lending import Process, lent_parent
from tfspark.node.log import NodeLog
from tfspark.node.tensorboard import TensorBoard
from tfspark.node.warm import ColdError, installed_versions, own_parent
from tfspark.protocol.roles import NodeSpec
from tfspark.protocol.settings import TrainerSettings
from tfspark.protocol.timing import DRIVER_SILENCE_S, HEARTBEAT_S, LAST_WORDS_S, STOP_GRACE_S
from tfspark.protocol.values import Json
from tfspark.protocol.wire import ActionClient, Secret, local_address_towards

POLL_S = 0.1
RECEIVED_SIGTERM = "its Spark worker process received SIGTERM"
SHOW_STACKS = signal.SIGUSR1
"""Signal that makes a trainer write the stacks of all its threads to its log, whatever it is doing."""


@dataclass(frozen=True)
class WarmUp:
    """A short task that starts the warm parent of its executor, for nodes that start there later."""

    def __call__(self, number: int) -> None:
        """Start it and return at once."""
        with contextlib.suppress(ColdError):  # The node will report the reason.
            warm.prepare(lent_parent(None) or own_parent())


@dataclass(frozen=True)
class NodeTask:
    """Everything that a node task needs; Spark calls it with the number of its task.

    Attributes:
        location: address of the control plane.
        secret: the cluster's secret.
        nodes: the plan of all nodes.
        first_index: number of the first node of this Spark job.
        settings: sent to the trainer.
        code: the user's function and its arguments, pickled by the driver; only the trainer unpickles it.
        warm: whether trainers are forked from a warm parent.
        module_paths: directories in which the driver's program finds its own modules.
        tensorboard_dir: directory for TensorBoard beside the chief; None: TensorBoard does not run.
        driver: the driver of a local master's application, which has started a warm parent for it; None: another
            master.
    """

    location: str
    secret: Secret = field(repr=False)
    nodes: tuple[NodeSpec, ...]
    first_index: int
    settings: TrainerSettings
    code: bytes = field(repr=False)
    warm: bool
    module_paths: tuple[str, ...]
    tensorboard_dir: str | None
    driver: Process | None = None

    def __call__(self, number: int) -> None:
        """Run a node to its end."""
        spec, saves_state = self.nodes[self.first_index + number], self.settings.saves_state
        with ActionClient(self.location, self.secret) as control, _sigterm_noted(saves_state) as sigterm:
            self._run_with_chief(spec, control, sigterm)

    def _run_with_chief(self, spec: NodeSpec, control: ActionClient, sigterm: threading.Event) -> None:
        """Run the node; for worker 0, also run the chief, which coordinates parameter servers, if there is one."""
        chiefs = [node for node in self.nodes if node.role == "chief"]
        if spec.name != "worker 0" or not chiefs:
            _Node(self, spec, control, sigterm).run()
            return
        with ThreadPoolExecutor(1, thread_name_prefix="tfspark-chief-node") as beside:
            chief = beside.submit(_Node(self, chiefs[0], control, sigterm).run)
            _Node(self, spec, control, sigterm).run()
            chief.result()


class _Node:
    """One attempt of a node."""

    def __init__(self, task: NodeTask, spec: NodeSpec, control: ActionClient, sigterm: threading.Event):
        self._task = task
        self._spec = spec
        self._control = control
        self._sigterm = sigterm
        self._host = local_address_towards(task.location)
        self._attempt = 0
        self._log = NodeLog()

    def run(self) -> None:
        with contextlib.ExitStack() as held, self._tensorboard():
            port = held.enter_context(_reserved_port())
            reply = self._control.call(
                "register",
                task=uuid.uuid4().hex,
                node=self._spec.index,
                host=self._host,
                port=port.getsockname()[1],
                versions=installed_versions(),
                executor=executor_id(),
            )
            if reply["action"] == "stop":
                return
            self._attempt = reply["attempt"]
            cause = ""
            if "port" in reply:
                try:
                    port = held.enter_context(_reserved_port(reply["port"]))
                except OSError as error:
                    cause = f"port {reply['port']}, at which the others know it, is not free again: {error}"
            config = None if cause else self._assignment()
            if config is not None:
                cause = self._supervise(config, port)
                while cause and self._is_replaced(cause):
                    cause = self._supervise(config, port)
        self._say_ended(cause)

    def _is_replaced(self, cause: str) -> bool:
        """Report to the driver that the trainer was killed; return whether another one replaces it."""
        try:
            reply = self._control.call(
                "trainer_lost",
                attempts=1,
                timeout_s=5.0,
                node=self._spec.index,
                attempt=self._attempt,
                cause=cause,
            )
        except flight.FlightError:
            return False
        self._attempt = reply["attempt"] or self._attempt
        return bool(reply["attempt"])

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[None]:
        """Run TensorBoard beside the chief if requested, and report its address to the driver."""
        log_dir = self._task.tensorboard_dir
        if log_dir is None or self._spec.index != 0:
            yield
            return
        with TensorBoard(log_dir, self._host) as board:
            fields = {"url": board.url}
            self._control.call("report", node=self._spec.index, event="tensorboard", fields=fields)
            yield

    def _assignment(self) -> str | None:
        """Wait until all nodes have registered; the driver sets the deadline and says when to stop."""
        while True:
            reply = self._control.call("assignment", node=self._spec.index, attempt=self._attempt)
            if reply["action"] == "stop":
                return None
            if reply["action"] == "go":
                return str(reply["tf_config"])

    def _supervise(self, config: str, port: socket.socket) -> str:
        """Run the trainer to its end; return what went wrong, empty if nothing did."""
        with _scratch_directory() as scratch:
            trainer = Trainer(
                self._orders(config, port, scratch), self._task.warm, self._log.add, self._task.driver
            )
            reader = threading.Thread(
                target=self._read_log, args=(trainer,), name="tfspark-node-log", daemon=True
            )
            reader.start()
            try:
                told_to_stop = self._watch(trainer)
            finally:
                trainer.end()
                reader.join(STOP_GRACE_S)
        return "" if told_to_stop else trainer.failure

    def _orders(self, config: str, port: socket.socket, scratch: str) -> Orders:
        header = {
            "location": self._task.location,
            "secret": vars(self._task.secret),
            "node": vars(self._spec),
            "nodes": [vars(node) for node in self._task.nodes],
            "attempt": self._attempt,
            "host": self._host,
            "settings": self._task.settings.to_json(),
            "scratch_dir": scratch,
            "lasting_dir": _spark_directory(),
        }
        frames = (json.dumps(header).encode(), self._task.code)
        return Orders(self._spec.name, self._environment(config, scratch), port, frames)

    def _environment(self, config: str, scratch: str) -> dict[str, str]:
        environment = trainer_environment(os.environ, config, scratch, sys.path, self._task.module_paths)
        # Variables are in a parameter server's memory, and the chief only schedules, so neither needs GPU memory.
        gpus = "-1" if self._spec.role in ("ps", "chief") else _assigned_gpus()
        return environment if gpus is None else {**environment, "CUDA_VISIBLE_DEVICES": gpus}

    def _watch(self, trainer: Trainer) -> bool:
        """Wait for the trainer's end, with a heartbeat every second; return whether the driver said stop."""
        heard = next_beat = time.monotonic()
        stacks_shown = False
        while True:
            if trainer.wait(POLL_S):
                return False
            now = time.monotonic()
            if now < next_beat:
                continue
            next_beat = now + HEARTBEAT_S
            try:
                reply = self._beat()
                if reply["stop"]:
                    return True
                if reply["stacks"] and not stacks_shown:
                    trainer.send_signal(SHOW_STACKS)
                    stacks_shown = True
                heard = now
            except flight.FlightError:
                if now - heard > DRIVER_SILENCE_S:
                    return True

    def _beat(self) -> Json:
        return self._control.call(
            "heartbeat",
            timeout_s=5.0,
            node=self._spec.index,
            attempt=self._attempt,
            log=self._log.take(),
            preempted=RECEIVED_SIGTERM if self._sigterm.is_set() else "",
        )

    def _say_ended(self, cause: str) -> None:
        try:
            while lines := self._log.take():
                self._control.call(
                    "heartbeat",
                    timeout_s=5.0,
                    unreached_s=LAST_WORDS_S,
                    node=self._spec.index,
                    attempt=self._attempt,
                    log=lines,
                )
            self._control.call(
                "node_ended",
                timeout_s=5.0,
                unreached_s=LAST_WORDS_S,
                node=self._spec.index,
                attempt=self._attempt,
                cause=cause,
                log=[],
                log_tail=list(self._log.tail),
            )
        except flight.FlightError:
            return  # The driver is gone, so nobody receives the report.

    def _read_log(self, trainer: Trainer) -> None:
        with trainer.output as stream:
            self._log.read(stream)


@contextlib.contextmanager
def _sigterm_noted(waits: bool) -> Iterator[threading.Event]:
    """Record a SIGTERM in the block instead of ending at once, so that the state can be saved first.

    Args:
        waits: whether there is a state to save.

    Yields:
        An event that a SIGTERM sets.
    """
    received = threading.Event()
    if not waits or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def executor_id() -> str:
    """Return Spark's number of this executor, from the command line of its process; empty if there is none."""
    process = os.getpid()
    while process > 1:
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""  # Not Linux.
        if "--executor-id" in command:
            return command[command.index("--executor-id") + 1]
        process = int(status.partition("PPid:")[2].split()[0])
    return ""


def _reserved_port(number: int = 0) -> socket.socket:
    """Bind a free port, without listening, for the trainer's TensorFlow server to share and take over.

    Args:
        number: the port; 0: any free port.

    TensorFlow binds with SO_REUSEPORT when ``TF_GRPC_REUSE_PORT`` is set. So this process holds the port until
    TensorFlow listens on it, and no other process can take it in between.
    """
    port = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if number:  # Connections of its earlier owner may still be closing.
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        port.bind(("", number))
    except OSError:
        port.close()
        raise
    return port


def _scratch_directory() -> tempfile.TemporaryDirectory[str]:
    """Create the trainer's scratch directory below Spark's own, which Spark removes with the application.

    So no files are left even if this process and the trainer are both killed.
    """
    return tempfile.TemporaryDirectory(
        prefix="tfspark-trainer-", dir=_spark_directory() or None, ignore_cleanup_errors=True
    )


def _spark_directory() -> str:
    """Return the executor's directory for temporary files; empty if there is none."""
    directory = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
    return directory if os.path.isdir(directory) else ""


def _assigned_gpus() -> str | None:
    """Return the addresses of the GPUs that Spark gave to this task; None if it was not asked for any."""
    from pyspark import TaskContext

    task = TaskContext.get()
    resources = task.resources() if task is not None else {}
    return ",".join(resources["gpu"].addresses) if "gpu" in resources else None
