"""Find or start the warm parent of an executor: a process that has imported TensorFlow and forks trainers.

Runs in node tasks and in short tasks that start the warm parent early. Imports only light modules of tfspark, so that
such a task costs almost nothing.

There is one warm parent for each executor and environment. `tfspark.node.lending` has warm parents that several
executors share. The name of its socket says for whom it is. The socket is a Unix socket in Linux's abstract namespace.
It needs no file (so a full or read-only disk does not matter, and no path is too long), it ends with the process, and
only one process can bind it. Each side asks the kernel for the user of the other side (``SO_PEERCRED``), and rejects
any other user.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

from tfspark.node.environment import shared_environment

MAX_FRAME_BYTES = 16 << 20
ATTEMPTS = 3
BACKLOG = 128
TENSORFLOW_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly")
PACKAGES = ("tensorflow", "keras", "pyarrow", "numpy", "tfspark")
LENT = "lent"
"""Last word of the command line of a warm parent that several Python daemons share."""

TRAINER_MODULE = "tfspark.trainer"


class ColdError(Exception):
    """A trainer cannot be forked from a warm parent, and is started cold instead; the message is the reason."""


class OtherModulesError(ColdError):
    """A trainer cannot be forked from this warm parent, because its own imports would find other modules."""


@dataclass(frozen=True)
class WantedParent:
    """The description of a warm parent, for processes that want a trainer from it.

    Attributes:
        name: name of its socket.
        owner: number of the process with which it ends; 0: it ends after a while without requests.
        environment: the environment it is started with.
        is_lent: whether other Python daemons use it, too. In that case a fork first checks its modules.
    """

    name: str
    owner: int
    environment: Mapping[str, str] = field(repr=False)
    is_lent: bool = False


def installed_versions() -> dict[str, str | None]:
    """Return the versions that driver and nodes must share, without importing the packages."""
    tensorflow = next((v for name in TENSORFLOW_DISTRIBUTIONS if (v := _version(name))), None)
    return {
        "python": platform.python_version(),
        "tensorflow": tensorflow,
        "keras": _version("keras"),
        "tfspark": _version("tfspark"),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def trainer_command(name: str, port: int, node_task: int) -> list[str]:
    """Return the command line of a trainer; a fork of the warm parent shows the same one.

    Args:
        name: name of the node.
        port: descriptor of the socket that holds the port of TensorFlow's server.
        node_task: number of the node task's process.
    """
    return [sys.executable, "-m", TRAINER_MODULE, name, f"port={port}", f"node-task={node_task}"]


def node_task_of_this_trainer() -> int:
    """Return the process number of the node task, from this trainer's command line: a fork is not its child."""
    try:
        line = Path("/proc/self/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:  # On other systems than Linux it was not forked.
        return os.getppid()
    return int(next(word for word in line if word.startswith("node-task=")).partition("=")[2])


def prepare(wanted: WantedParent) -> None:
    """Start a warm parent if there is none; it imports TensorFlow while this process continues.

    Raises:
        ColdError: a warm parent is not possible here.
    """
    connect(wanted).close()


def connect(wanted: WantedParent) -> socket.socket:
    """Connect to a warm parent, and start it if there is none; it answers when it has imported TensorFlow.

    Raises:
        ColdError: a warm parent is not possible here.
    """
    try:
        for _ in range(ATTEMPTS):
            client = _client(wanted.name)
            if client is not None:
                return client
            _start(wanted)
    except OSError as error:
        raise ColdError(f"the warm parent can't be reached: {error}") from error
    raise ColdError(f"the warm parent ended {ATTEMPTS} times while it was started")


def check_platform() -> None:
    """Raise a `ColdError` if a warm parent is not possible here."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        raise ColdError(f"forking needs Linux 5.3 or newer, this is {platform.platform()}")


def own_parent() -> WantedParent:
    """Return the warm parent that only this executor uses.

    Raises:
        ColdError: a warm parent is not possible here.
    """
    check_platform()
    owner, environment = owner_of_this_process(), shared_environment(os.environ, sys.path)
    return WantedParent(socket_name(owner, environment, sys.path), owner, environment)


def owner_of_this_process() -> int:
    """Return the process with which the warm parent ends: the one from which Spark starts its Python workers.

    That process lives as long as the executor does. In a driver, which runs parameter servers, it is the driver.
    """
    from pyspark import TaskContext

    return os.getppid() if TaskContext.get() is not None else os.getpid()


def socket_name(owner: int, environment: Mapping[str, str], path: Sequence[str]) -> str:
    """Return the name of a warm parent's socket; it identifies user, executor, code and environment."""
    identity = {
        "user": os.getuid(),
        # Containers with the host's network share abstract names, but not process numbers.
        "processes": os.readlink("/proc/self/ns/pid"),
        "owner": [owner, started_at(owner)],
        "python": sys.executable,
        "versions": installed_versions(),
        "packages": [spec.origin if (spec := util.find_spec(name)) else None for name in PACKAGES],
        "path": list(path),
        "environment": sorted(environment.items()),
    }
    return named(identity)


def named(identity: Mapping[str, object]) -> str:
    """Return the socket name of the warm parent with this identity."""
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return f"\0tfspark-warm-{digest[:32]}"


def started_at(pid: int) -> str:
    """Return a process's start time in the kernel's ticks; with its number it identifies the process.

    Raises:
        OSError: there is no such process.
    """
    return (
        Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    )


def _client(name: str) -> socket.socket | None:
    """Connect; return None if nobody listens there.

    Raises:
        ColdError: another user's process listens.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(name)
    except ConnectionRefusedError:
        client.close()
        return None
    except BaseException:
        client.close()
        raise
    if peer_user(client) != os.getuid():
        client.close()
        raise ColdError("its socket's name is taken by another user's process")
    return client


def peer_user(connection: socket.socket) -> int:
    """Return the user number of the process at the other end, from the kernel."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _start(wanted: WantedParent) -> None:
    """Bind the name and pass the socket to a new warm parent; other node tasks can connect to it meanwhile.

    The shell starts it in the background, so it is not a child of this process: Python workers end, but it stays.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(wanted.name)
        except OSError:
            return  # Another node task was faster.
        listener.listen(BACKLOG)
        arguments = [str(listener.fileno()), str(wanted.owner), wanted.name[1:], *([LENT] * wanted.is_lent)]
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-m", "tfspark.node.warm_parent", *arguments],
            check=True,
            env=dict(wanted.environment),
            # Its users run elsewhere, perhaps with a terminal that this process does not have.
            cwd="/" if wanted.is_lent else None,
            # A Ctrl-C at the terminal of the driver is for the driver, which ends its trainers in order.
            start_new_session=wanted.is_lent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
        )


def send(connection: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    """Send a JSON value and open files."""
    body = json.dumps(message).encode()
    header = struct.pack("<Q", len(body))
    if descriptors:
        socket.send_fds(connection, [header], list(descriptors))
    else:
        connection.sendall(header)
    connection.sendall(body)


def receive(connection: socket.socket, max_descriptors: int = 0) -> tuple[Any, list[int]]:
    """Receive a message of `send`: the value, and the descriptors of the files in this process.

    Raises:
        EOFError: the other side closed the connection.
        ValueError: this is not a message of `send`.
    """
    header, descriptors, _, _ = socket.recv_fds(connection, 8, max_descriptors, socket.MSG_CMSG_CLOEXEC)
    try:
        header += _exactly(connection, 8 - len(header)) if header else b""
        if not header:
            raise EOFError("the connection was closed")
        (size,) = struct.unpack("<Q", header)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"expected a message of at most {MAX_FRAME_BYTES} bytes, got {size}")
        return json.loads(_exactly(connection, size)), list(descriptors)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError("the connection was closed in the middle of a message")
        parts += part
    return bytes(parts)
