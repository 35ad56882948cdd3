"""Convert Arrow values, and nested lists of them, to dense NumPy arrays: numbers, strings, times.

Used by `tfspark.feed.arrays` in the reader. Pure: only Arrow and NumPy. An error begins with the row: ``row 17:``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import DataError
from tfspark.feed.spark_names import quoted
from tfspark.feed.structs import binary_buffers

Array = npt.NDArray[Any]
RowOf = Callable[[int], int]
"""Maps the position of a value to its row."""


def nested_to_numpy(array: pa.Array, name: str, row_of: RowOf = int, inside: bool = False) -> Array:
    """Flatten nested lists into one dense array; check that each level has lists of one length.

    Args:
        array: numbers or strings, or nested lists of them.
        name: name of the column, for errors.
        row_of: maps an entry of the array to its row.
        inside: whether the entries are parts of the rows' arrays instead of whole rows.
    """
    sizes = [len(array)]
    while is_list(array.type):
        in_row, is_first = _divided(row_of, math.prod(sizes[1:])), len(sizes) == 1 and not inside
        refuse_nulls(array, name, "is null" if is_first else "holds a null array", in_row)
        fix = (
            f"declare Column({name!r}, ragged='pad'), or "
            if is_first
            else "only a row's first axis may vary: "
        )
        sizes.append(uniform_length(pc.list_value_length(array), name, "values", in_row, fix))
        array = array.flatten()
    in_row = _divided(row_of, math.prod(sizes[1:]))
    if inside or len(sizes) > 1:
        _refuse_null_values(array, name, in_row)
    refuse_nulls(array, name)
    return _primitive_to_numpy(array, name).reshape(sizes)


def _divided(row_of: RowOf, entries: int) -> RowOf:
    return lambda position: row_of(position // max(entries, 1))


def is_list(arrow_type: pa.DataType) -> bool:
    """Return whether each entry is a list of any kind."""
    types = pa.types
    is_plain = types.is_list(arrow_type) or types.is_large_list(arrow_type)
    return bool(is_plain or types.is_fixed_size_list(arrow_type))


def refuse_nulls(array: pa.Array, name: str, what: str = "is null", row_of: RowOf = int) -> None:
    """Raise a DataError that names the row of the first null, if there is a null."""
    if array.null_count:
        row = row_of(pc.index(pc.is_null(array), True).as_py())
        raise DataError(
            f"row {row}: column {name!r} {what}; expected a value in every row; "
            f"drop such rows (df.dropna(subset=[{name!r}])) or fill them before feeding"
        )


def _refuse_null_values(array: pa.Array, name: str, row_of: RowOf) -> None:
    if array.null_count:
        row = row_of(pc.index(pc.is_null(array), True).as_py())
        raise DataError(
            f"row {row}: column {name!r} holds a null inside its array; expected values only; "
            "fill it before feeding, for example with transform(column, x -> coalesce(x, 0))"
        )


def _primitive_to_numpy(array: pa.Array, name: str) -> Array:
    """Convert numbers, booleans, strings, decimals or times without nulls."""
    kind = array.type
    if is_bytes(kind):
        return objects(array)
    if pa.types.is_decimal(kind):
        array = pc.cast(array, pa.float64())
    elif pa.types.is_date32(kind):
        array = array.view(pa.int32())
    elif pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_time64(kind):
        array = pc.divide(array.view(pa.int64()).cast(pa.float64(), safe=False), _UNITS_PER_SECOND[kind.unit])
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(f"row 0: column {name!r} has type {kind}, which cannot be fed; {_advice(kind, name)}")
    values: Array = array.to_numpy(zero_copy_only=False)
    return values


_UNITS_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def _advice(kind: pa.DataType, name: str) -> str:
    if pa.types.is_map(kind):
        return f"expected no map; select what is under its keys, for example df[{name!r}]['key']"
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"value", "metadata"}:
        return (  # So Spark sends a variant.
            f"expected no variant; take a value out of it, for example variant_get({name}, '$.a', 'double') in SQL, or "
            "if it is a struct, select its fields"
        )
    if pa.types.is_struct(kind):
        fields = ", ".join(f"'{_spelled(name)}.{_spelled(field.name)}'" for field in list(kind)[:3])
        return f"expected no struct; select its fields instead, for example df.select({fields})"
    return (
        "expected numbers, booleans, strings, binaries, dates, timestamps, vectors, images, or arrays of such values; "
        "cast it or select its parts before feeding"
    )


def _spelled(name: str) -> str:
    """Return a name as it is written in Spark: with backticks if it holds more than letters and digits."""
    return name if name.isidentifier() and name.isascii() else quoted(name)


def uniform_length(lengths: pa.Array, name: str, unit: str, row_of: RowOf, fix: str) -> int:
    """Return the common length of all entries; `fix` is the first advice in the error."""
    if not len(lengths):
        return 0
    expected = lengths[0].as_py()
    irregular = pc.not_equal(lengths, expected)
    if pc.any(irregular).as_py():
        position = pc.index(irregular, True).as_py()
        raise DataError(
            f"row {row_of(position)}: column {name!r} has {lengths[position].as_py()} {unit} where those before "
            f"have {expected}; expected arrays of one length; {fix}pad or filter them before feeding"
        )
    return int(expected)


def is_bytes(arrow_type: pa.DataType) -> bool:
    """Return whether these are strings or binaries."""
    is_text = pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)
    is_binary = pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type)
    return bool(is_text or is_binary or pa.types.is_fixed_size_binary(arrow_type))


def is_text(arrow_type: pa.DataType) -> bool:
    """Return whether these are strings, not binaries."""
    return bool(pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type))


def text_problem(name: str, dtype: str) -> str:
    """Return the message for a text column that was declared as numbers: its bytes are not values."""
    return (
        f"column {name!r} is text (string), which cannot be fed as {dtype}; parse it in Spark before feeding, for "
        f"example df.withColumn({name!r}, df[{name!r}].cast('double')), or cast it to 'binary' if its bytes are raw "
        "values; leave dtype and scale out to feed the text"
    )


def objects(array: pa.Array) -> Array:
    """Return strings and binaries in the form TensorFlow needs: an array of bytes objects."""
    return np.array(pc.cast(array, pa.large_binary()).to_pylist(), dtype=object)


def raw_values(array: pa.Array, name: str, dtype: np.dtype[np.generic]) -> tuple[Array, Array]:
    """View all bytes of a binary column as one array of values; return it and the bounds of each row in it."""
    if is_text(array.type):
        raise DataError(f"row 0: {text_problem(name, dtype.name)}")
    data, offsets = binary_buffers(array)
    broken = np.flatnonzero(np.diff(offsets) % dtype.itemsize)
    if len(broken):
        row = int(broken[0])
        raise DataError(
            f"row {row}: column {name!r} has {offsets[row + 1] - offsets[row]} bytes, which is no multiple of the "
            f"{dtype.itemsize} bytes of a {dtype.name}; declare the dtype the bytes were written with"
        )
    return data.view(dtype.newbyteorder("<")), offsets // dtype.itemsize
