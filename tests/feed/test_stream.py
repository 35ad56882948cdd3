"""The row that a stream shows its readers first."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tfspark.feed.stream import decode_sample, first_row

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))  # No half of a surrogate pair: it has no UTF-8.
ROWS = st.lists(
    st.fixed_dictionaries({"number": st.integers(-(2**63), 2**63 - 1), "text": TEXTS}), max_size=3
)


@given(batches=st.lists(ROWS, max_size=3))
def test_first_row_of_a_partition_is_the_first_of_any_batch(batches: list[list[dict[str, object]]]) -> None:
    shown = list(first_row(pa.RecordBatch.from_pylist(rows, SCHEMA) for rows in batches))
    for row in shown:
        row.validate(full=True)
    samples = [decode_sample(row.column(0)[0].as_py()).to_pylist() for row in shown]
    assert samples == [[row] for rows in batches for row in rows][:1]


def test_first_row_is_encoded_without_an_import_of_pandas() -> None:
    program = """
        import sys
        import pyarrow as pa
        from tfspark.feed.stream import first_row
        numbers = pa.Array.from_buffers(pa.int64(), 2, [None, pa.py_buffer(bytes(16))])
        (row,) = first_row(iter([pa.RecordBatch.from_arrays([numbers], ["number"])]))
        print("pandas" in sys.modules, row.num_rows)
    """
    lines = "\n".join(line.strip() for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]
