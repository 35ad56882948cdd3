"""The driver's store of checkpoints, and the budget of restarts: no Spark, no TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pytest
from support.errors import raises

from tfspark.cluster.state.checkpoint_store import (
    Checkpoint,
    CheckpointStore,
    check_same_run,
    newest_in,
    write_part,
)
from tfspark.cluster.state.restarts import LONGEST_PAUSE_S, SECOND_PAUSE_S, RestartBudget
from tfspark.errors import ConfigError


def header(passes: int, steps: int, rank: int, used: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Return the header that a node sends with its part."""
    return {
        "passes": passes,
        "steps": steps,
        "rank": rank,
        "of": 2,
        "used": used,
        "rows": sum(end - first for intervals in used.values() for first, end in intervals),
        "facts": {"progress": {"call": 0, "finished": False}, "model": [{"path": "dense/kernel"}]},
    }


def upload(data: bytes) -> list[pa.RecordBatch]:
    """Return the upload of one file."""
    return [pa.record_batch([pa.array([""]), pa.array([data], pa.binary())], names=["path", "data"])]


def save(
    store: CheckpointStore,
    passes: int,
    steps: int,
    *used: dict[str, list[list[int]]],
    sizes: Mapping[int, int] = MappingProxyType({}),
) -> Checkpoint | None:
    """Store the parts of both workers; return the checkpoint, if it is complete."""
    kept = None
    for rank, rows in enumerate(used or ({}, {})):
        told = header(passes, steps, rank, rows)
        part = store.place(told)
        kept = store.add(told, part, write_part(part, upload(f"{passes} {steps} {rank}".encode())), sizes, {})
    return kept


def new_store(path: Path, resumed: Checkpoint | None = None) -> CheckpointStore:
    store = CheckpointStore(path, resumed)
    store.run = {"seed": 3}
    return store


def test_checkpoint_exists_only_when_all_its_parts_have_arrived(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    told = header(0, 4, 0, {"0": [[0, 8]]})
    part = store.place(told)
    assert store.add(told, part, write_part(part, upload(b"weights")), {}, {}) is None
    assert store.newest() is None
    assert [path.name for path in tmp_path.glob("state-*")] == []


def test_checkpoint_when_loaded_is_what_was_saved(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    kept = save(store, 0, 4, {"0": [[0, 8]]}, {"0": [[8, 12]], "2": [[0, 4]]})
    assert kept is not None
    assert kept == newest_in(tmp_path)
    assert (kept.passes, kept.steps, kept.call, kept.finished) == (0, 4, 0, False)
    assert (kept.used, kept.rows) == ({0: [[0, 12]], 2: [[0, 4]]}, (8, 8))
    assert [store.file(part).read_bytes() for part in kept.parts] == [b"0 4 0", b"0 4 1"]


def test_ledger_of_a_resumed_pass_holds_the_rows_that_were_used_before(tmp_path: Path) -> None:
    save(new_store(tmp_path), 1, 4, {"0": [[0, 8]]}, {"0": [[8, 16]]})
    store = new_store(tmp_path, newest_in(tmp_path))
    kept = save(store, 1, 6, {"0": [[16, 18]]}, {"1": [[0, 2]]})
    assert kept is not None
    assert (kept.used, kept.rows) == ({0: [[0, 18]], 1: [[0, 2]]}, (10, 10))
    later = save(store, 2, 1, {"0": [[4, 8]]}, {})
    assert later is not None
    assert (later.used, later.rows) == ({0: [[4, 8]]}, (4, 0))


@pytest.mark.parametrize(
    ("rows_of_first", "rows_of_second", "batch_rows", "used"),
    [
        pytest.param(64, 64, 64, [[0, 6]], id="replayed: its steps record all rows again"),
        pytest.param(
            64, 48, 0, [[0, 4], [5, 6]], id="steps of a different size continue with the rows that are left"
        ),
        pytest.param(0, 0, 0, [[0, 4], [5, 6]], id="rows as they come"),
    ],
)
def test_checkpoint_says_whether_steps_by_position_can_replay_it(
    tmp_path: Path, rows_of_first: int, rows_of_second: int, batch_rows: int, used: Any
) -> None:
    store = new_store(tmp_path)
    store.batch_rows = rows_of_first
    first = save(store, 1, 4, {"0": [[0, 4]]}, {})
    assert first is not None
    assert first.batch_rows == rows_of_first
    store.begin_at(first)
    store.batch_rows = rows_of_second
    is_replayed = first.can_be_replayed(rows_of_second)
    assert is_replayed == bool(batch_rows)
    second = save(store, 1, 6, {"0": [[0, 6] if is_replayed else [5, 6]]}, {})
    assert second is not None
    assert (second.batch_rows, second.used[0], second.rows[0]) == (batch_rows, used, 6 if is_replayed else 5)
    store.begin_at(second)
    assert second.can_be_replayed(64) == is_replayed


def test_fully_trained_partitions_are_known_in_a_resumed_run_and_forgotten_in_the_next_pass(
    tmp_path: Path,
) -> None:
    sizes = {0: 16, 1: 9, 3: 4, 4: 0}
    save(
        new_store(tmp_path),
        1,
        4,
        {"0": [[0, 8]], "1": [[0, 8]]},
        {"0": [[8, 16]], "2": [[0, 4]]},
        sizes=sizes,
    )
    before = newest_in(tmp_path)
    assert before.fully_trained == {0: 16}
    store = new_store(tmp_path, before)
    kept = save(store, 1, 6, {"1": [[8, 9]]}, {"2": [[4, 5]]}, sizes={2: 5})
    assert kept is not None
    assert kept.fully_trained == {0: 16, 1: 9, 2: 5}
    later = save(store, 2, 1, {"2": [[0, 5]]}, {}, sizes={})
    assert later is not None
    assert later.fully_trained == {}


def test_resumed_run_reads_parts_of_the_run_before_and_does_not_remove_them(tmp_path: Path) -> None:
    before = save(new_store(tmp_path / "before"), 1, 0)
    assert before is not None
    store = new_store(tmp_path / "after", before)
    assert store.file(before.parts[1]).read_bytes() == b"1 0 1"
    names = [kept.path.name for passes in range(2, 5) if (kept := save(store, passes, 0))]
    assert names == ["state-000002", "state-000003", "state-000004"]
    assert (before.path / "part-0000.npz").is_file()
    with raises(ValueError, "expected a part of a checkpoint that is kept", "../before"):
        store.file("../before/state-000001/part-0000.npz")


def test_two_checkpoints_are_kept_and_a_later_run_continues_their_numbers(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for passes in range(1, 5):
        save(store, passes, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-000003", "state-000004"]
    save(new_store(tmp_path), 1, 0)
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "state-000005"


def test_newest_checkpoint_between_two_epochs_is_kept_too_also_when_its_run_is_resumed(
    tmp_path: Path,
) -> None:
    store = new_store(tmp_path)
    save(store, 1, 0)
    for steps in range(1, 5):
        save(store, 1, steps)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["state-000001", "state-000004", "state-000005"]
    resumed = new_store(tmp_path / "other", newest_in(tmp_path))
    for each in (store, resumed):
        whole = each.newest_whole()
        assert whole is not None
        assert (whole.passes, whole.steps, whole.path.name) == (1, 0, "state-000001")
        assert each.newest() == whole
    assert save(resumed, 1, 1) is not None
    only_within = new_store(tmp_path / "third")
    save(only_within, 0, 3)
    assert only_within.newest_whole() is None


@pytest.mark.parametrize("damage", ["truncated part", "no part", "truncated manifest", "foreign manifest"])
def test_checkpoint_before_is_used_when_the_newest_is_damaged(tmp_path: Path, damage: str) -> None:
    store = new_store(tmp_path)
    before, last = save(store, 1, 0), save(store, 2, 0)
    assert before is not None
    assert last is not None
    part, manifest = last.path / "part-0001.npz", last.path / "manifest.json"
    if damage == "truncated part":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "no part":
        part.unlink()
    elif damage == "truncated manifest":
        manifest.write_text(manifest.read_text()[:-9])
    else:
        manifest.write_text('{"format": 3, "weights": "elsewhere"}')
    assert newest_in(tmp_path) == before
    assert store.newest() == before


def test_resuming_where_there_is_no_checkpoint_says_what_was_found(tmp_path: Path) -> None:
    with raises(
        ConfigError, "expected a checkpoint state-NNNNNN", str(tmp_path), "found none", "max_restarts"
    ):
        newest_in(tmp_path)
    kept = save(new_store(tmp_path), 1, 0)
    assert kept is not None
    (kept.path / "part-0000.npz").unlink()
    with raises(ConfigError, "state-000001: part-0000.npz is missing or damaged"):
        newest_in(tmp_path)


def test_checkpoint_of_a_different_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    kept = save(new_store(tmp_path), 1, 0)
    assert kept is not None
    check_same_run(kept, {"seed": 3})
    with raises(ConfigError, "seed 4, it has 3", "resume with the same, or start anew"):
        check_same_run(kept, {"seed": 4})


def test_part_of_an_earlier_incarnation_completes_no_checkpoint(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    told = [header(1, 0, rank, {}) for rank in (0, 1)]
    late = store.place(told[0])
    digest = write_part(late, upload(b"late"))
    store.newest()  # A new incarnation begins.
    other = store.place(told[1])
    assert store.add(told[0], late, digest, {}, {}) is None
    assert store.add(told[1], other, write_part(other, upload(b"new")), {}, {}) is None
    store.drop_drafts()
    assert list(tmp_path.iterdir()) == []


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    kept = save(new_store(tmp_path), 1, 2, {"0": [[0, 1]]}, {})
    assert kept is not None
    manifest = json.loads((kept.path / "manifest.json").read_text())
    assert manifest["format"] == 6
    assert manifest["run"] == {"seed": 3}
    assert set(manifest["files"]) == {"part-0000.npz", "part-0001.npz"}


def test_budget_allows_restarts_after_growing_pauses_and_more_when_the_window_has_passed() -> None:
    now = [0.0]
    budget = RestartBudget(3, 100.0, clock=lambda: now[0])
    assert [budget.spend() for _ in range(4)] == [0.0, SECOND_PAUSE_S, 2 * SECOND_PAUSE_S, None]
    now[0] = 101.0
    assert budget.spend() == 0.0


def test_pause_has_a_maximum_and_a_budget_of_0_allows_no_restart() -> None:
    assert RestartBudget(99, 1e9).spend() == 0.0
    budget = RestartBudget(99, 1e9)
    assert [budget.spend() for _ in range(12)][-1] == LONGEST_PAUSE_S
    assert RestartBudget(0, 100.0).spend() is None
