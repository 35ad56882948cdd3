"""Write files so that readers see all of them or none.

Tasks write below ``<path>/_temporary/<job>``, which listings ignore; the driver moves the files of the
successful attempts into place and writes ``_SUCCESS``. A job that fails leaves the directory as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from tfspark.tfrecord.files import GZIP, resolve

_TEMPORARY = "_temporary"


@dataclass(frozen=True)
class Job:
    """One save of a DataFrame.

    Attributes:
        path: the directory to save to.
        job_id: a unique name.
        overwrite: whether what was there is removed on commit.
        compression: ``"gzip"`` or ``""``.
    """

    path: str
    job_id: str
    overwrite: bool
    compression: str

    @property
    def temporary(self) -> str:
        """The directory that tasks write to."""
        return f"{self.path.rstrip('/')}/{_TEMPORARY}/{self.job_id}"

    def file_name(self, partition: int, attempt: int) -> str:
        """Name the file of one task attempt, relative to the job's temporary directory."""
        suffix = ".tfrecord.gz" if self.compression else ".tfrecord"
        return f"{attempt}/part-{partition:05d}-{self.job_id}{suffix}"


def open_output(job: Job, name: str) -> Any:
    """Create a task's file and return its stream."""
    system, inner = resolve(f"{job.temporary}/{name}")
    system.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    return system.open_output_stream(inner, compression=GZIP if job.compression else None)


def commit_job(job: Job, names: Sequence[str]) -> None:
    """Publish the files of the successful attempts."""
    system, root = resolve(job.path)
    _, temporary = resolve(job.temporary)
    system.create_dir(root, recursive=True)
    if job.overwrite:
        _clear(system, root)
    for name in names:
        system.move(f"{temporary}/{name}", f"{root}/{name.rsplit('/', 1)[1]}")
    abort_job(job)
    with system.open_output_stream(f"{root}/_SUCCESS"):
        pass


def abort_job(job: Job) -> None:
    """Remove what the tasks of the job wrote; other jobs that write to the same place are left alone."""
    system, temporary = resolve(job.temporary)
    parent = temporary.rsplit("/", 1)[0]
    if system.get_file_info(temporary).type == fs.FileType.Directory:
        system.delete_dir(temporary)
    is_there = system.get_file_info(parent).type == fs.FileType.Directory
    if is_there and not system.get_file_info(fs.FileSelector(parent)):
        system.delete_dir(parent)


def _clear(system: Any, root: str) -> None:
    """Remove everything in a directory but the temporary files."""
    for info in system.get_file_info(fs.FileSelector(root)):
        if info.base_name == _TEMPORARY:
            continue
        if info.type == fs.FileType.Directory:
            system.delete_dir(info.path)
        else:
            system.delete_file(info.path)
