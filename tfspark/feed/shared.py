"""Pass a chunk to a process on the same host in shared memory, instead of through a socket.

The memory is a memfd: it has no name, so nothing is left when its processes end, even if they are killed. The reader
opens it through ``/proc``; the kernel allows this only for processes of the same user.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pyarrow as pa

NAME = "tfspark-chunk"


@functools.cache
def shared_place() -> str:
    """Return a key that is equal for processes that can share memory: kernel, process namespace and user.

    Empty if there is no such memory (on other systems than Linux).
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
    """A table in shared memory. It exists until this is closed and no process has it mapped.

    Raises:
        OSError: there is no memory or file descriptor left.
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
        """Return the values by which another process finds it."""
        number = os.fstat(self._descriptor).st_ino
        return {"pid": os.getpid(), "descriptor": self._descriptor, "inode": number}

    def close(self) -> None:
        """Close it; the memory is freed when no process has it mapped."""
        os.close(self._descriptor)


def open_shared(found: dict[str, int]) -> pa.Table:
    """Map a table that another process shares; its values are not copied.

    Args:
        found: the result of `SharedChunk.to_json`.

    Raises:
        OSError: it cannot be opened, or the other process has closed it.
    """
    descriptor = os.open(f"/proc/{found['pid']}/fd/{found['descriptor']}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A descriptor's number is reused for other files. An inode number is not reused while the inode exists.
        if os.fstat(descriptor).st_ino != found["inode"]:
            raise FileNotFoundError("the chunk in shared memory was closed before it was opened")
        memory: pa.MemoryMappedFile = pa.memory_map(f"/proc/self/fd/{descriptor}", "r")
        return pa.ipc.open_stream(memory).read_all()
    finally:
        os.close(descriptor)
