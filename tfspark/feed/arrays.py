"""Convert Arrow arrays to NumPy arrays, as declared in `tfspark.feed.columns`.

Used by the reader in the trainer. Pure: only Arrow and NumPy. The conversion is columnar: it creates views of buffers
and does not loop over rows. Exceptions are strings and rows of unequal lengths, which are objects in NumPy.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import DataError
from tfspark.feed.columns import Column, Columns
from tfspark.feed.structs import dense_row_bytes, images_to_numpy, is_image, is_vector, vectors_to_numpy
from tfspark.feed.values import (
    Array,
    RowOf,
    is_bytes,
    is_list,
    is_text,
    nested_to_numpy,
    objects,
    raw_values,
    refuse_nulls,
    text_problem,
    uniform_length,
)


def to_numpy(batch: pa.RecordBatch, columns: Columns) -> dict[str, Array]:
    """Convert the columns of a record batch.

    Args:
        batch: rows as Spark serves them.
        columns: the columns to convert.

    Returns:
        Column name -> array with the rows on the first axis: ``(n, *shape)``. Fixed-width values are views of the
        batch's memory if their type allows it. A column of variable length becomes ``(n,)`` objects, each of them the
        array of one row.

    Raises:
        DataError: a null, values of unequal lengths, a shape or a label that was not declared, or a type that cannot be
            fed. The message begins with the row's number within the batch: ``row 17:``.
    """
    arrays = {column.name: column_to_numpy(batch.column(column.name), column) for column in columns.sent}
    label = columns.class_label
    if label is not None and columns.num_classes is not None and columns.examples is None:
        _check_classes(arrays[label.name], label.name, columns.num_classes)
    return arrays


def rows_at_once(batch: pa.RecordBatch, columns: Columns, max_bytes: int) -> int:
    """Return how many rows of a batch to convert at once: at least 1, and below `max_bytes` when they are dense.

    The conversion can make rows larger, for example sparse vectors, and lists that are padded.
    """
    row_bytes = 0
    for column in columns.sent:
        row_bytes += dense_row_bytes(batch.column(column.name)) + 8 * (column.pad_to or 0)
    return int(max(1, min(batch.num_rows, max_bytes // max(row_bytes, 1))))


def column_to_numpy(array: pa.Array, column: Column) -> Array:
    """Convert one column; see `to_numpy`."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if column.decode is not None:
        return _files_to_numpy(array, column)
    if column.ragged is not None:
        return _ragged_to_numpy(array, column)
    values = _shaped(_dense_to_numpy(array, column), column)
    return _as_declared(values, column, int)


def row_weights(rows: dict[str, Array], columns: Columns, num_rows: int) -> npt.NDArray[np.float32]:
    """Remove the weight column from the rows; return each row's weight in the loss: its own times that of its class.

    Args:
        rows: the result of `to_numpy`.
        columns: which columns have weights; rows within Examples get their weights in tf.data.
        num_rows: number of rows.

    Returns:
        ``(num_rows,)`` float32; a class without a weight weighs 1.

    Raises:
        DataError: a weight is not a finite number, or a label is neither a class nor one-hot.
    """
    weights = np.ones(num_rows, np.float32)
    if columns.examples is not None:
        return weights
    if columns.weight is not None:
        weights = _own_weights(rows.pop(columns.weight.name), columns.weight.name)
    if columns.class_label is None or not columns.class_weights:
        return weights
    classes = _classes_of(rows[columns.class_label.name], columns.class_label.name)
    of_classes = np.ones(num_rows, np.float32)
    for label, weight in columns.class_weights:
        of_classes[classes == label] = weight
    return weights * of_classes


def _own_weights(values: Array, name: str) -> npt.NDArray[np.float32]:
    if values.dtype.kind not in "biuf" or math.prod(values.shape[1:]) != 1:
        raise DataError(
            f"row 0: weight column {name!r} has values of type {values.dtype.name} and shape {list(values.shape[1:])}, "
            "expected one number for each row; cast it, or name another column"
        )
    weights = values.reshape(len(values)).astype(np.float32)
    if not np.isfinite(weights).all():
        row = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise DataError(
            f"row {row}: weight column {name!r} is {weights[row]}, expected a finite number; filter such rows, or "
            "fill them with df.fillna"
        )
    return weights + np.float32(0)  # This turns -0.0, which marks padding, into 0.


def _classes_of(labels: Array, name: str) -> Array:
    """Return the class of each row from an integer or one-hot label, as Keras reads it for `class_weight`."""
    if labels.dtype.kind not in "biuf" or labels.ndim > 2:
        raise DataError(
            f"row 0: label {name!r} has {labels.dtype.name} values of shape {list(labels.shape[1:])}, "
            "expected one class for each row, an integer or one-hot, to weigh classes; leave class_weights out, or "
            "weigh rows by a column (weight=, data.weight)"
        )
    if labels.ndim == 1 or labels.shape[1] == 1:
        return np.asarray(np.round(labels.reshape(len(labels))), np.int64)
    outside = ((labels < 0) | (labels > 1)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"row {row}: label {name!r} is {labels[row].tolist()}, expected one-hot labels to weigh classes; leave "
            "class_weights out, or weigh rows by a column (weight=, data.weight)"
        )
    classes: Array = labels.argmax(axis=1)
    return classes


def _dense_to_numpy(array: pa.Array, column: Column) -> Array:
    if is_bytes(array.type):
        return _bytes_to_numpy(array, column)
    if is_vector(array.type) or is_image(array.type):
        refuse_nulls(array, column.name)
        convert = vectors_to_numpy if is_vector(array.type) else images_to_numpy
        return convert(array, column.name)
    return nested_to_numpy(array, column.name)


def _as_declared(values: Array, column: Column, row_of: RowOf) -> Array:
    """Convert to the declared dtype. An integer that the dtype cannot hold is rejected; a float is rounded."""
    wanted, name = column.wanted_dtype, column.name
    if values.dtype == object and column.scale is not None:
        raise DataError(f"row 0: column {name!r} holds strings, which cannot be scaled; leave scale out")
    if wanted is None or values.dtype == wanted:
        return values
    if values.dtype == object:
        raise DataError(f"row 0: {text_problem(name, wanted.name)}")
    with np.errstate(invalid="ignore"):
        cast = values.astype(wanted)
    if wanted.kind in "biu" and not np.array_equal(cast, values):
        changed = (cast != values).reshape(len(values), -1).any(axis=1)
        raise DataError(
            f"row {row_of(int(changed.argmax()))}: column {name!r} holds values that the declared dtype {wanted.name} "
            "cannot; declare a wider one, or float32"
        )
    return cast


# --- strings and binaries --------------------------------------------------------------------------


def _bytes_to_numpy(array: pa.Array, column: Column) -> Array:
    refuse_nulls(array, column.name)
    if column.wanted_dtype is None:
        return objects(array)
    if is_text(array.type):
        raise DataError(f"row 0: {text_problem(column.name, column.wanted_dtype.name)}")
    fix = f"declare Column({column.name!r}, dtype={column.dtype!r}, ragged='pad'), or "
    width = uniform_length(pc.binary_length(array), column.name, "bytes", int, fix)
    values, _ = raw_values(array, column.name, column.wanted_dtype)
    return values.reshape(len(array), width // column.wanted_dtype.itemsize)


def _files_to_numpy(array: pa.Array, column: Column) -> Array:
    if not is_bytes(array.type):
        raise DataError(
            f"row 0: column {column.name!r} has type {array.type}, expected binary image files to decode; images of "
            "spark.read.format('image') are decoded already: leave decode out"
        )
    refuse_nulls(array, column.name)
    return objects(array)


def _shaped(values: Array, column: Column) -> Array:
    if column.shape is None or values.shape[1:] == column.shape:
        return values
    found = math.prod(values.shape[1:])
    if len(values) and found != math.prod(column.shape):
        raise DataError(
            f"row 0: column {column.name!r} has {found} values per row, the declared shape {list(column.shape)} "
            f"needs {math.prod(column.shape)}; correct the shape or the data"
        )
    return values.reshape(len(values), *column.shape)


# --- arrays of unequal lengths ---------------------------------------------------------------------


def _ragged_to_numpy(array: pa.Array, column: Column) -> Array:
    """Convert lists, or raw values, of unequal lengths: pad them to `pad_to`, or return one array per row.

    Only the first axis of a row may vary.
    """
    values, offsets = _flat_values(array, column)
    values = _as_declared(values, column, _row_in(offsets))
    if column.ragged == "pad":
        fill = pad_value(column, values.dtype)
        if column.pad_to is not None:
            return _padded(values, offsets, column, fill)
    rows = np.empty(len(array), object)
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        rows[row] = values[start:end].copy()  # A view would hold the whole chunk in memory.
    return rows


def _flat_values(array: pa.Array, column: Column) -> tuple[Array, Array]:
    """Return the values of all rows in one array, ``(total, ...)``, and the rows' bounds in it, ``(n + 1,)``."""
    refuse_nulls(array, column.name)
    if is_bytes(array.type) and column.wanted_dtype is not None:
        return raw_values(array, column.name, column.wanted_dtype)
    if not is_list(array.type):
        raise DataError(
            f"row 0: column {column.name!r} has type {array.type}, expected arrays, or binaries with a dtype, to be "
            f"ragged; leave ragged={column.ragged!r} out"
        )
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return nested_to_numpy(array.flatten(), column.name, _row_in(offsets), inside=True), offsets


def _row_in(offsets: Array) -> RowOf:
    return lambda position: int(np.searchsorted(offsets, position, "right")) - 1


def pad_value(column: Column, dtype: np.dtype[np.generic]) -> Any:
    """Return the value that pads a column, as text or as a number of its type.

    Raises:
        DataError: the type cannot hold the value.
    """
    value, is_text = column.pad_value, dtype.kind == "O"
    if is_text:
        if isinstance(value, str | None):
            return (value or "").encode()
    elif not isinstance(value, str):
        fill = np.array(value or 0).astype(dtype)
        if dtype.kind == "f" or fill == (value or 0):
            return fill[()]
    expected = "a text" if is_text else f"a number that {dtype.name} can hold"
    raise DataError(f"row 0: column {column.name!r}: expected pad_value to be {expected}, got {value!r}")


def _padded(values: Array, offsets: Array, column: Column, fill: bytes | np.generic) -> Array:
    lengths, size = np.diff(offsets), column.pad_to or 0
    too_long = np.flatnonzero(lengths > size)
    if len(too_long):
        row = int(too_long[0])
        raise DataError(
            f"row {row}: column {column.name!r} has {lengths[row]} values, more than pad_to={size}; raise pad_to, or "
            f"cut the rows before feeding, for example with slice({column.name}, 1, {size})"
        )
    dense = np.full((len(lengths), size, *values.shape[1:]), fill, values.dtype)
    dense[np.arange(size) < lengths[:, None]] = values
    return dense


# --- labels ----------------------------------------------------------------------------------------


def _check_classes(labels: Array, name: str, num_classes: int) -> None:
    flat = labels.reshape(len(labels), -1)
    if flat.dtype.kind not in "iub":
        raise DataError(
            f"row 0: label {name!r} has type {flat.dtype.name}, expected integer classes 0 to {num_classes - 1}; "
            "cast it, or name the classes in data.label.classes"
        )
    outside = ((flat < 0) | (flat >= num_classes)).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"row {row}: label {name!r} is {flat[row].tolist()[0]}, expected a class from 0 to "
            f"{num_classes - 1}; correct the data or the number of classes"
        )
