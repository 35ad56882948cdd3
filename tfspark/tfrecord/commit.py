"""Write files so that readers see all of them or none.

Tasks write below ``<path>/_temporary/<job>``, which listings ignore; the driver moves the files of the
successful attempts into place and writes ``_SUCCESS``. A job that fails does not change the directory, except that a
task which still runs at that time may leave its temporary file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from tfspark.errors import DataError
from tfspark.tfrecord.files import GZIP, resolve

_TEMPORARY = "_temporary"


@dataclass(frozen=True)
class Job:
    """One save of a DataFrame.

    Attributes:
        path: the directory to save to.
        job_id: a unique name.
        overwrite: whether the old contents are removed on commit.
        compression: ``"gzip"`` or ``""``.
    """

    path: str
    job_id: str
    overwrite: bool
    compression: str

    @property
    def temporary(self) -> str:
        """The directory to which tasks write."""
        return f"{self.path.rstrip('/')}/{_TEMPORARY}/{self.job_id}"

    def file_name(self, partition: int, attempt: int) -> str:
        """Return the file name for one task attempt, relative to the job's temporary directory."""
        suffix = ".tfrecord.gz" if self.compression else ".tfrecord"
        return f"{attempt}/part-{partition:05d}-{self.job_id}{suffix}"


def open_output(job: Job, name: str) -> Any:
    """Create a task's file and return its stream."""
    system, inner = resolve(f"{job.temporary}/{name}")
    system.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    return system.open_output_stream(inner, compression=GZIP if job.compression else None)


def commit_job(job: Job, names: Sequence[str]) -> None:
    """Publish the files of the successful attempts; old files are removed when all new ones are in place.

    Raises:
        DataError: a file of a task is missing.
        OSError: the file system cannot move or remove a file.
    """
    system, root = resolve(job.path)
    _, temporary = resolve(job.temporary)
    _check_written(job, system, [f"{temporary}/{name}" for name in names])
    system.create_dir(root, recursive=True)
    old = _contents(system, root) if job.overwrite else []
    old.sort(
        key=lambda info: info.base_name != "_SUCCESS"
    )  # First remove _SUCCESS: the rest may be interrupted.
    _move_all(system, {f"{temporary}/{name}": f"{root}/{name.rsplit('/', 1)[1]}" for name in names})
    for info in old:
        _remove(system, info)
    abort_job(job)
    with system.open_output_stream(f"{root}/_SUCCESS"):
        pass


def _check_written(job: Job, system: Any, paths: list[str]) -> None:
    missing = [info.path for info in system.get_file_info(paths) if info.type != fs.FileType.File]
    if missing:
        raise DataError(
            f"expected {len(paths)} files that tasks wrote, {len(missing)} are not there, for example {missing[0]}; "
            f"nothing was changed; save to a directory that the driver and all executors share; {job.path} seems to be "
            "on each machine's own disk"
        )


def _move_all(system: Any, moves: Mapping[str, str]) -> None:
    """Move all files or none."""
    done: list[str] = []
    try:
        for source, target in moves.items():
            system.move(source, target)
            done.append(target)
    except BaseException:
        for target in done:
            with contextlib.suppress(OSError):  # The first error already describes the problem.
                system.delete_file(target)
        raise


def abort_job(job: Job) -> None:
    """Remove the files that the tasks of the job wrote, but not those of other jobs in the same directory."""
    system, temporary = resolve(job.temporary)
    parent = temporary.rsplit("/", 1)[0]
    if system.get_file_info(temporary).type == fs.FileType.Directory:
        system.delete_dir(temporary)
    is_there = system.get_file_info(parent).type == fs.FileType.Directory
    if is_there and not system.get_file_info(fs.FileSelector(parent)):
        system.delete_dir(parent)


def _contents(system: Any, root: str) -> list[Any]:
    """Return the contents of a directory, without temporary files."""
    return [info for info in system.get_file_info(fs.FileSelector(root)) if info.base_name != _TEMPORARY]


def _remove(system: Any, info: Any) -> None:
    if info.type == fs.FileType.Directory:
        system.delete_dir(info.path)
    else:
        system.delete_file(info.path)
