"""Which columns are fed, and how an Arrow array becomes a NumPy array.

Made on the driver, sent to the trainers as JSON, used there by the reader. Pure: Arrow and NumPy only. The
path is columnar: buffers are viewed, never walked row by row (strings excepted: TensorFlow wants objects).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import ConfigError, DataError

Array = npt.NDArray[Any]

FLOAT = "float32"


@dataclass(frozen=True)
class Column:
    """One column of the DataFrame and the tensor it becomes.

    Attributes:
        name: the column's name.
        shape: shape of one row's value, without the batch axis; None: as the first row has it.
        dtype: NumPy dtype of the tensor as it is fed. For a binary column it says that the bytes are raw
            values of this type, little-endian. None: the column's own type; strings and binaries stay
            ``tf.string``.
        scale: divide by this in the trainer and feed float32; None: leave as it is.
    """

    name: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse values no tensor can have."""
        if self.shape is not None and any(size < 1 for size in self.shape):
            raise ConfigError(f"column {self.name!r}: expected a shape of sizes >= 1, got {list(self.shape)}")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale != 0):
            raise ConfigError(f"column {self.name!r}: expected a finite scale other than 0, got {self.scale}")
        if self.dtype is not None:
            _numpy_dtype(self.name, self.dtype)

    @property
    def wanted_dtype(self) -> np.dtype[Any] | None:
        """The declared dtype as NumPy's."""
        return None if self.dtype is None else _numpy_dtype(self.name, self.dtype)


@dataclass(frozen=True)
class Columns:
    """What is fed: features, label and the weight of each class.

    Attributes:
        features: at least one; a single one is fed as a tensor, several as a dict by name.
        label: None for a model that is its own target, such as an autoencoder with a custom step.
        num_classes: labels must be integers in [0, num_classes); None: not checked.
        class_weights: class -> weight of its rows in the loss; empty: 1 for all.
    """

    features: tuple[Column, ...]
    label: Column | None = None
    num_classes: int | None = None
    class_weights: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuse an empty or a doubled selection."""
        names = self.names
        if not self.features:
            raise ConfigError("expected at least one feature column, got none")
        if len(set(names)) != len(names):
            raise ConfigError(f"expected every column once, got {names}")

    @property
    def names(self) -> list[str]:
        """All column names, features first."""
        return [column.name for column in self.all]

    @property
    def all(self) -> tuple[Column, ...]:
        """All columns, features first."""
        return self.features if self.label is None else (*self.features, self.label)

    def to_json(self) -> dict[str, Any]:
        """Return a form that survives JSON."""
        return {
            "features": [vars(column) for column in self.features],
            "label": None if self.label is None else vars(self.label),
            "num_classes": self.num_classes,
            "class_weights": self.class_weights,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Columns:
        """Rebuild what `to_json` gave."""
        return cls(
            features=tuple(_column_from_json(item) for item in data["features"]),
            label=None if data["label"] is None else _column_from_json(data["label"]),
            num_classes=data["num_classes"],
            class_weights=tuple((int(c), float(w)) for c, w in data["class_weights"]),
        )


def check_columns(columns: Columns, available: Sequence[str]) -> None:
    """Refuse columns that the data does not have.

    Raises:
        ConfigError: a column is missing; the message names the nearest.
    """
    for name in columns.names:
        if name not in available:
            near = difflib.get_close_matches(name, available, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"expected a column {name!r}, the data has {sorted(available)}; {hint}name the feature and label "
                "columns as the data does"
            )


def to_numpy(batch: pa.RecordBatch, columns: Columns) -> dict[str, Array]:
    """Convert the columns of a record batch.

    Args:
        batch: rows as Spark serves them.
        columns: what to convert.

    Returns:
        Column name -> array with the rows on the first axis: ``(n, *shape)``. Fixed-width values are views
        of the batch's memory where their type permits.

    Raises:
        DataError: a null, values of unequal lengths, a shape or a label that was not declared, a type
            that cannot be fed. The message begins with the row's number within the batch: ``row 17:``.
    """
    arrays = {column.name: column_to_numpy(batch.column(column.name), column) for column in columns.all}
    if columns.label is not None and columns.num_classes is not None:
        _check_classes(arrays[columns.label.name], columns.label.name, columns.num_classes)
    return arrays


def column_to_numpy(array: pa.Array, column: Column) -> Array:
    """Convert one column; see `to_numpy`."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    is_bytes = _is_bytes(array.type)
    values = _bytes_to_numpy(array, column) if is_bytes else _nested_to_numpy(array, column.name)
    values = _shaped(values, column)
    wanted = column.wanted_dtype
    if wanted is not None and values.dtype != wanted and values.dtype != object:
        values = _cast(values, wanted, column.name)
    return values


def _cast(values: Array, wanted: np.dtype[Any], name: str) -> Array:
    """Convert to the declared type; a whole number that it cannot hold is refused, a float is rounded."""
    with np.errstate(invalid="ignore"):
        cast = values.astype(wanted)
    if wanted.kind in "biu" and not np.array_equal(cast, values):
        changed = (cast != values).reshape(len(values), -1).any(axis=1)
        row = int(changed.argmax())
        raise DataError(
            f"row {row}: column {name!r} holds values that the declared dtype {wanted.name} cannot; declare a wider "
            "one, or float32"
        )
    return cast


def row_weights(labels: Array, class_weights: tuple[tuple[int, float], ...]) -> npt.NDArray[np.float32]:
    """Return each row's weight in the loss, by its class.

    Args:
        labels: ``(n,)`` or ``(n, 1)`` integer classes.
        class_weights: class -> weight; classes not named weigh 1.

    Returns:
        ``(n,)`` float32.
    """
    flat = labels.reshape(len(labels)).astype(np.int64)
    weights = np.ones(len(flat), np.float32)
    for label, weight in class_weights:
        weights[flat == label] = weight
    return weights


def _column_from_json(data: Mapping[str, Any]) -> Column:
    shape = data["shape"]
    return Column(data["name"], None if shape is None else tuple(shape), data["dtype"], data["scale"])


def _numpy_dtype(name: str, dtype: str) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in "biuf":
        raise ConfigError(
            f"column {name!r}: expected a numeric dtype such as uint8, int64 or float32, got {dtype!r}"
        )
    return found


def _is_bytes(arrow_type: pa.DataType) -> bool:
    is_text = pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)
    is_binary = pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type)
    return bool(is_text or is_binary or pa.types.is_fixed_size_binary(arrow_type))


def _refuse_nulls(array: pa.Array, name: str, what: str = "is null", per_row: int = 1) -> None:
    """Refuse nulls in an array that has `per_row` entries for each row."""
    if array.null_count:
        row = pc.index(pc.is_null(array), True).as_py() // per_row
        raise DataError(
            f"row {row}: column {name!r} {what}; expected a value in every row; "
            f"drop such rows (df.dropna(subset=[{name!r}])) or fill them before feeding"
        )


def _bytes_to_numpy(array: pa.Array, column: Column) -> Array:
    _refuse_nulls(array, column.name)
    wanted = column.wanted_dtype
    if wanted is None:
        as_bytes = pc.cast(array, pa.large_binary())
        return np.array(as_bytes.to_pylist(), dtype=object)
    return _raw_to_numpy(pc.cast(array, pa.large_binary()), column, wanted)


def _raw_to_numpy(array: pa.Array, column: Column, dtype: np.dtype[Any]) -> Array:
    """View the concatenated raw values of a binary column as ``(n, values per row)``."""
    width = _uniform_length(pc.binary_length(array), column.name, "bytes")
    if width % dtype.itemsize:
        raise DataError(
            f"row 0: column {column.name!r} has {width} bytes per row, which is no multiple of the "
            f"{dtype.itemsize} bytes of a {dtype.name}; declare the dtype the bytes were written with"
        )
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    return data.view(dtype.newbyteorder("<")).reshape(len(array), width // dtype.itemsize)


def _nested_to_numpy(array: pa.Array, name: str) -> Array:
    """Flatten lists of lists of numbers into one dense array, checking that each level is regular."""
    sizes = [len(array)]
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or _is_fixed_list(array.type):
        per_row = math.prod(sizes[1:])
        _refuse_nulls(array, name, "is null" if len(sizes) == 1 else "holds a null array", per_row)
        sizes.append(_uniform_length(pc.list_value_length(array), name, "values", per_row))
        array = array.flatten()
    _refuse_null_values(array, name, sizes)
    return _primitive_to_numpy(array, name).reshape(sizes)


def _refuse_null_values(array: pa.Array, name: str, sizes: list[int]) -> None:
    if array.null_count and len(sizes) > 1:
        per_row = max(1, math.prod(sizes[1:]))
        row = pc.index(pc.is_null(array), True).as_py() // per_row
        raise DataError(
            f"row {row}: column {name!r} holds a null inside its array; expected numbers only; "
            "fill it before feeding, for example with transform(column, x -> coalesce(x, 0))"
        )
    _refuse_nulls(array, name)


def _is_fixed_list(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(arrow_type))


def _primitive_to_numpy(array: pa.Array, name: str) -> Array:
    kind = array.type
    if pa.types.is_decimal(kind):
        array, kind = pc.cast(array, pa.float64()), pa.float64()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DataError(
            f"row 0: column {name!r} has type {kind}, which cannot be fed; expected numbers, booleans, strings, "
            "binaries or arrays of numbers; cast it or select its parts before feeding"
        )
    values: Array = array.to_numpy(zero_copy_only=False)
    return values


def _uniform_length(lengths: pa.Array, name: str, unit: str, per_row: int = 1) -> int:
    if not len(lengths):
        return 0
    expected = lengths[0].as_py()
    irregular = pc.not_equal(lengths, expected)
    if pc.any(irregular).as_py():
        position = pc.index(irregular, True).as_py()
        raise DataError(
            f"row {position // per_row}: column {name!r} has {lengths[position].as_py()} {unit} where those before "
            f"have {expected}; expected arrays of one length; pad or filter them before feeding"
        )
    return int(expected)


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
