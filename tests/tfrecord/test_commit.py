"""The contents of a directory after a save, also if the commit fails at any step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from tfspark.errors import DataError
from tfspark.tfrecord import commit
from tfspark.tfrecord.commit import Job, abort_job, commit_job, open_output

OLD = {"part-00000-old.tfrecord": b"old", "year=2024/part-00001-old.tfrecord": b"old", "_SUCCESS": b""}


class Failing:
    """A file system whose n-th call of one action, such as a move or a removal, fails."""

    def __init__(self, action: str, number: int):
        self._inner, self._action, self._left = fs.LocalFileSystem(), action, number

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name != self._action:
            return method

        def counted(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise OSError("the store does not answer")
            return method(*arguments)

        return counted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in OLD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def written(folder: Path, overwrite: bool) -> tuple[Job, list[str]]:
    """Write the files of three tasks; return the job and the files' names."""
    job = Job(str(folder), "job-1", overwrite, "")
    names = [job.file_name(partition, 100 + partition) for partition in range(3)]
    for name in names:
        with open_output(job, name) as file:
            file.write(b"new")
    return job, names


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_commit_whose_move_fails_does_not_change_the_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, overwrite: bool
) -> None:
    job, names = written(folder, overwrite)
    monkeypatch.setattr(commit, "resolve", lambda path: (failing, path))
    failing = Failing("move", number)
    with pytest.raises(OSError, match="does not answer"):
        commit_job(job, names)
    abort_job(job)
    assert contents(folder) == OLD


def test_commit_without_the_file_of_a_task_does_not_change_the_directory_and_explains_why(
    folder: Path,
) -> None:
    job, names = written(folder, overwrite=True)
    (folder / "_temporary" / "job-1" / names[1]).unlink()
    with pytest.raises(
        DataError, match=r"3 files that tasks wrote, 1 are not there.*driver and all executors"
    ):
        commit_job(job, names)
    abort_job(job)
    assert contents(folder) == OLD


def test_commit_that_cannot_remove_an_old_file_keeps_all_new_files_and_writes_no_success_marker(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, names = written(folder, overwrite=True)
    monkeypatch.setattr(commit, "resolve", lambda path: (failing, path))
    failing = Failing("delete_file", 2)
    with pytest.raises(OSError, match="does not answer"):
        commit_job(job, names)
    abort_job(job)
    found = contents(folder)
    assert sum(content == b"new" for content in found.values()) == 3
    assert "_SUCCESS" not in found


@pytest.mark.parametrize("overwrite", [True, False])
def test_commit_replaces_old_files_or_adds_to_them(folder: Path, overwrite: bool) -> None:
    job, names = written(folder, overwrite)
    commit_job(job, names)
    found = contents(folder)
    assert sum(content == b"new" for content in found.values()) == 3
    assert sum(content == b"old" for content in found.values()) == (0 if overwrite else 2)
    assert "_SUCCESS" in found
    assert not (folder / "_temporary").exists()
