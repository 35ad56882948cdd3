"""One row as a record batch, for Spark tasks that return little to the driver."""

from __future__ import annotations

import struct

import pyarrow as pa


def one_row(schema: pa.Schema, *values: int | str) -> pa.RecordBatch:
    """Return a batch of one row.

    pyarrow imports pandas when it first converts a Python object. In a fresh Python worker of Spark this takes 0.3 s of
    CPU, often while TensorFlow is imported beside it, so the arrays are made of their bytes.

    Args:
        schema: columns of int64 and string.
        values: a value for each column.
    """
    arrays = [_array(field.type, value) for field, value in zip(schema, values, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(dtype: pa.DataType, value: int | str) -> pa.Array:
    if isinstance(value, int):
        parts = [struct.pack("<q", value)]
    else:
        text = value.encode()
        parts = [struct.pack("<ii", 0, len(text)), text]
    return pa.Array.from_buffers(dtype, 1, [None, *map(pa.py_buffer, parts)])
