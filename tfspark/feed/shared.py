"""Hand a chunk to a process of the same host in shared memory, instead of through a socket.

The memory is a memfd: it has no name anywhere, so nothing of it is left when its processes end, whoever is killed. The
reader opens it through ``/proc``, which the kernel allows to processes of the same user alone.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

NAME = "tfspark-chunk"


@functools.cache
def shared_place() -> str:
    """Return what two processes have in common that can share memory: kernel, numbers of processes, user.

    Empty where there is no such memory (another system than Linux).
    """
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return (
            f"{kernel} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
            if hasattr(os, "memfd_create")
            else ""
        )
    except OSError:
        return ""


class SharedChunk:
    """A table in shared memory, as long as this is not closed and whoever has mapped it holds it.

    Raises:
        OSError: there is no memory, or no file descriptor, left.
    """

    def __init__(self, table: pa.Table):
        self._descriptor = os.memfd_create(NAME, os.MFD_CLOEXEC)
        try:
            with (
                pa.OSFile(f"/proc/self/fd/{self._descriptor}", "wb") as file,
                pa.ipc.new_stream(file, table.schema) as writer,
            ):
                writer.write_table(table)
        except BaseException:
            self.close()
            raise

    def to_json(self) -> dict[str, int]:
        """Return how another process finds it."""
        number = os.fstat(self._descriptor).st_ino
        return {"pid": os.getpid(), "descriptor": self._descriptor, "inode": number}

    def close(self) -> None:
        """Let it go: it is gone when nobody has it mapped."""
        os.close(self._descriptor)


def open_shared(found: dict[str, int]) -> pa.Table:
    """Map what another process shares; its values are not copied.

    Args:
        found: what `SharedChunk.to_json` gave.

    Raises:
        OSError: it cannot be opened, or the process that shared it has let it go.
    """
    descriptor = os.open(f"/proc/{found['pid']}/fd/{found['descriptor']}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The number of a descriptor is given again to another file; that of a file's inode is not, while it is there.
        if os.fstat(descriptor).st_ino != found["inode"]:
            raise FileNotFoundError("the chunk in shared memory was let go before it was opened")
        memory: Any = pa.memory_map(f"/proc/self/fd/{descriptor}", "r")
        return pa.ipc.open_stream(memory).read_all()
    finally:
        os.close(descriptor)
