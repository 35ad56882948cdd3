"""Chunks in shared memory: read by another process, gone with the processes that hold them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest

from tfspark.feed.shared import SharedChunk, open_shared, shared_place

READ = """
import json, sys
from tfspark.feed.shared import open_shared, shared_place
found = json.loads(sys.argv[1])
print(json.dumps([shared_place(), open_shared(found).to_pydict()]))
"""


def table(rows: int = 100) -> pa.Table:
    ids = list(range(rows))
    return pa.table({"id": ids, "x": [[i / 2] * (i % 3) for i in ids], "text": [str(i) for i in ids]})


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_chunk_is_read_by_another_process_of_the_user() -> None:
    rows = table()
    chunk = SharedChunk(rows)
    told = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(chunk.to_json())], capture_output=True, text=True, check=True
    )
    chunk.close()
    assert json.loads(told.stdout) == [shared_place(), rows.to_pydict()]


def test_chunk_that_is_mapped_stays_when_its_owner_lets_it_go_and_takes_no_descriptor_after_that() -> None:
    before = held()
    rows = table()
    chunk = SharedChunk(rows)
    mapped = open_shared(chunk.to_json())
    chunk.close()
    assert mapped.equals(rows)
    del mapped
    assert held() == before


def test_chunk_that_was_let_go_is_not_mistaken_for_what_has_its_descriptor_now() -> None:
    first = SharedChunk(table())
    found = first.to_json()
    first.close()
    with pytest.raises(OSError, match="No such file"):
        open_shared(found)
    second = SharedChunk(table(5))
    assert second.to_json()["descriptor"] == found["descriptor"]
    with pytest.raises(FileNotFoundError, match="closed before it was opened"):
        open_shared(found)
    second.close()


def test_chunk_is_not_copied_when_it_is_opened() -> None:
    rows = pa.table({"x": pa.array(range(1_000_000))})
    chunk = SharedChunk(rows)
    before = pa.total_allocated_bytes()
    mapped = open_shared(chunk.to_json())
    assert mapped.num_rows == 1_000_000
    assert pa.total_allocated_bytes() - before < 100_000
    chunk.close()
