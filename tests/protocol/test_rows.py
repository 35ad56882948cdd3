"""One row for Spark, made without pandas."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tfspark.protocol.rows import one_row

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))  # No half of a surrogate pair: it has no UTF-8.


@given(number=st.integers(-(2**63), 2**63 - 1), text=TEXTS)
def test_row_has_the_values_that_it_was_made_of(number: int, text: str) -> None:
    batch = one_row(SCHEMA, number, text)
    batch.validate(full=True)
    assert batch.to_pylist() == [{"number": number, "text": text}]


def test_row_is_made_and_read_without_an_import_of_pandas() -> None:
    program = """
        import sys
        import pyarrow as pa
        from tfspark.feed.stream import encode_sample
        from tfspark.protocol.rows import one_row
        row = one_row(pa.schema([("number", pa.int64()), ("text", pa.string())]), 3, "three")
        encode_sample(row)
        print("pandas" in sys.modules, row.column(0)[0].as_py())
    """
    lines = "\n".join(line.strip() for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "3"]
