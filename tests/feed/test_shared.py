"""Chunks in shared memory: another process can read them, and they end with the processes that hold them."""

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


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_chunk_can_be_read_by_another_process_of_the_user() -> None:
    rows = table()
    chunk = SharedChunk(rows)
    told = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(chunk.to_json())], capture_output=True, text=True, check=True
    )
    chunk.close()
    assert json.loads(told.stdout) == [shared_place(), rows.to_pydict()]


def test_mapped_chunk_can_be_read_after_its_owner_has_closed_it_and_leaves_no_descriptor() -> None:
    before = num_descriptors()
    rows = table()
    chunk = SharedChunk(rows)
    mapped = open_shared(chunk.to_json())
    chunk.close()
    assert mapped.equals(rows)
    del mapped
    assert num_descriptors() == before


def test_closed_chunk_is_not_mistaken_for_a_later_chunk_with_the_same_descriptor() -> None:
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


def test_open_shared_does_not_copy_the_chunk() -> None:
    rows = pa.table({"x": pa.array(range(1_000_000))})
    chunk = SharedChunk(rows)
    before = pa.total_allocated_bytes()
    mapped = open_shared(chunk.to_json())
    assert mapped.num_rows == 1_000_000
    assert pa.total_allocated_bytes() - before < 100_000
    chunk.close()
