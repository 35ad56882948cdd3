"""The trainer process of a node, seen from its node task: forked by the warm parent, or started cold.

In both cases, orders arrive on standard input, which stays open as the lifeline. The process inherits no open files
except standard input, its output and the port's socket. Each attempt has a new process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from tfspark.node import warm
from tfspark.node.lending import Process, lent_parent, soft_limits
from tfspark.node.warm import ColdError, OtherModulesError, WantedParent, own_parent
from tfspark.protocol.timing import STOP_GRACE_S

FORK_TIMEOUT_S = 120.0
"""Time that a warm parent has to fork: it may first have to import TensorFlow, perhaps on a busy machine."""
STATUS_TIMEOUT_S = 5.0
"""Time that a warm parent has to report how a trainer ended."""


@dataclass(frozen=True)
class Orders:
    """Everything that is needed to start a trainer.

    Attributes:
        name: name of its node, shown by ``ps``.
        environment: variables of this trainer, in addition to those of the node task.
        port: the socket that holds the port of its TensorFlow server.
        frames: the data for its standard input.
    """

    name: str
    environment: Mapping[str, str]
    port: socket.socket
    frames: tuple[bytes, ...] = field(repr=False)


class _Process(Protocol):
    """A requested process; ``returncode`` is None while it runs, or if it is unknown how it ended."""

    @property
    def returncode(self) -> int | None:
        """As `subprocess.Popen.returncode`."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it has ended."""

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""


class Trainer:
    """A trainer process of one attempt.

    Args:
        orders: the orders it starts with.
        is_warm: whether it may be forked from the warm parent.
        say: called with a line for the node's log.
        driver: the driver of a local master's application, which may have started a warm parent.
    """

    def __init__(
        self, orders: Orders, is_warm: bool, say: Callable[[str], None], driver: Process | None = None
    ):
        self._orders = orders
        self._say = say
        self._lifeline = -1
        output, self._output = os.pipe()
        self.output = os.fdopen(output, "rb")
        self._process: _Process
        if not is_warm:
            self._start_cold()
            return
        try:
            self._start_warm(lent_parent(driver) or own_parent())
        except ColdError as error:
            self._start_cold(error)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it has ended."""
        try:
            return self._process.wait(timeout_s)
        except OtherModulesError as error:
            self._start_with_other_modules(error)
        except ColdError as error:
            self._start_cold(error)
        return False

    @property
    def failure(self) -> str:
        """Describe how an ended process failed; empty if it returned 0."""
        return _describe_exit(self._process.returncode)

    def send_signal(self, number: int) -> None:
        """Send a signal if it runs."""
        self._process.send_signal(number)

    def end(self) -> None:
        """Make sure that it has ended: close its lifeline, and then kill it."""
        self._close_lifeline()
        with contextlib.suppress(ColdError):  # It was never forked.
            if not self._process.wait(STOP_GRACE_S):
                self._process.send_signal(signal.SIGKILL)
                self._process.wait(STATUS_TIMEOUT_S)
        os.close(self._output)

    def _start_warm(self, parent: WantedParent) -> None:
        self._process = self._started(partial(_Forked, parent))

    def _start_with_other_modules(self, reason: OtherModulesError) -> None:
        """Switch to a warm parent that has the same module path as this node."""
        self._say(f"tfspark: {self._orders.name} has a warm parent for its executor alone: {reason}")
        self._close_lifeline()
        try:
            self._start_warm(own_parent())
        except ColdError as error:
            self._start_cold(error)

    def _start_cold(self, reason: ColdError | None = None) -> None:
        if reason is not None:
            self._say(f"tfspark: {self._orders.name} starts without a warm parent: {reason}")
        self._close_lifeline()
        self._process = self._started(_Cold)

    def _started(self, start: Callable[[Orders, int, int, Callable[[], None]], _Process]) -> _Process:
        stdin, self._lifeline = os.pipe()
        try:
            return start(self._orders, stdin, self._output, self._give_orders)
        finally:
            os.close(stdin)

    def _give_orders(self) -> None:
        """Write the orders in a thread: they may be larger than a pipe, and heartbeats must continue meanwhile."""
        if self._lifeline < 0:  # It was ended before the fork: its standard input is closed.
            return
        arguments = (os.dup(self._lifeline), self._orders.frames)
        threading.Thread(target=_write, args=arguments, name="tfspark-node-orders", daemon=True).start()

    def _close_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class _Cold:
    """A new interpreter."""

    def __init__(self, orders: Orders, stdin: int, output: int, give_orders: Callable[[], None]):
        self._process = subprocess.Popen(
            warm.trainer_command(orders.name, orders.port.fileno(), os.getpid()),
            stdin=stdin,
            stdout=output,
            stderr=output,
            pass_fds=(orders.port.fileno(),),
            env=dict(orders.environment),
        )
        give_orders()

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def wait(self, timeout_s: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode is not None

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


class _Forked:
    """A fork of the warm parent, which may still have to import TensorFlow.

    The fork reports that it runs, and waits for this process's answer before it does anything. So there are never two
    trainers with the same orders, whichever of the three processes is killed or stopped, at any moment.

    Raises:
        ColdError: there can be no warm parent; `wait` raises it if the warm parent is gone or refuses.
        OtherModulesError: `wait` raises it if the warm parent has other modules than this node would import.
    """

    def __init__(
        self, parent: WantedParent, orders: Orders, stdin: int, output: int, give_orders: Callable[[], None]
    ):
        self.returncode: int | None = None
        self._give_orders = give_orders
        self._pidfd = -1
        self._has_ended = False
        self._said: int | None = None
        self._until = time.monotonic() + FORK_TIMEOUT_S
        self._connection: socket.socket | None = warm.connect(parent)
        request = {
            "name": orders.name,
            "node_task": os.getpid(),
            "environment": dict(orders.environment),
            "directory": os.getcwd(),
            "path": orders.environment["PYTHONPATH"].split(os.pathsep),
            "python": sys.executable,
            "limits": soft_limits(),
            "owner": warm.owner_of_this_process(),
        }
        self._connection.settimeout(STATUS_TIMEOUT_S)
        try:
            warm.send(self._connection, request, (stdin, output, orders.port.fileno()))
        except OSError as error:
            self._connection.close()
            raise ColdError(f"the warm parent does not listen: {error}") from error

    def wait(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not self._has_ended:
            ready = self._ready(until - time.monotonic())
            if not ready:
                break
            if self._connection is not None and self._connection.fileno() in ready:
                self._hear(self._connection)
            elif self._pidfd in ready:
                self._learn_how_it_ended()
        if self._pidfd < 0 and time.monotonic() > self._until:
            self._end()
            raise ColdError(f"it did not answer within {FORK_TIMEOUT_S:g} s")
        return self._has_ended

    def send_signal(self, number: int) -> None:
        if self._pidfd >= 0 and not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _ready(self, timeout_s: float) -> set[int]:
        poll = select.poll()
        for descriptor in (self._pidfd, self._connection.fileno() if self._connection else -1):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll(max(0.0, timeout_s) * 1000)}

    def _hear(self, connection: socket.socket) -> None:
        """Handle messages of the warm parent or the trainer."""
        try:
            message, descriptors = warm.receive(connection, max_descriptors=1)
        except (OSError, EOFError, ValueError):
            connection.close()
            self._connection = None
            if self._pidfd < 0:
                self._end()
                raise ColdError("it ended before it had forked") from None
            return
        if descriptors:
            self._pidfd = descriptors[0]
            with contextlib.suppress(OSError):  # The fork has ended meanwhile; its pidfd shows that.
                warm.send(connection, {})
            self._give_orders()
        self._said = message.get("exits", self._said)
        if "returncode" in message:
            self.returncode = message["returncode"]
            self._end()
        if others := message.get("others"):
            self._end()
            raise OtherModulesError(f"here its imports would find others by the names {others}")
        if reason := message.get("refused") or message.get("cold"):
            self.send_signal(signal.SIGKILL)
            self._end()
            raise ColdError(reason)

    def _learn_how_it_ended(self) -> None:
        """Read the last messages about a trainer that has ended."""
        until = time.monotonic() + STATUS_TIMEOUT_S
        while self._connection is not None and not self._has_ended:
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                break
            self._hear(self._connection)
        if not self._has_ended:
            self.returncode = self._said
            self._end()

    def _end(self) -> None:
        self._has_ended = True
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _describe_exit(code: int | None) -> str:
    """Describe how a trainer process ended; empty if it returned 0.

    Args:
        code: as in `subprocess.Popen.returncode`; None if unknown.
    """
    if code is None:
        return "its trainer process ended, and the warm parent that knew how is gone"
    if code >= 0:
        return f"its trainer process exited with code {code} without reporting an error" if code else ""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = "; the kernel does so when memory runs out" if code == -signal.SIGKILL else ""
    return f"its trainer process was killed by {name}{hint}"


def _write(descriptor: int, frames: tuple[bytes, ...]) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as stream:  # It died at once.
        _write_frames(stream, *frames)


def _write_frames(stream: Any, *frames: bytes) -> None:
    """Write length-prefixed byte strings and flush."""
    for frame in frames:
        stream.write(struct.pack("<Q", len(frame)))
        stream.write(frame)
    stream.flush()


def read_frame(stream: Any) -> bytes:
    """Read one frame of `write_frames`."""
    (length,) = struct.unpack("<Q", stream.read(8))
    frame: bytes = stream.read(length)
    return frame
