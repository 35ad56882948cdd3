"""Convert structs that have a meaning in Spark: vectors of Spark ML, and images of Spark's image source.

Used by `tfspark.feed.arrays` in the reader. Pure: only Arrow and NumPy, vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import DataError

Array = npt.NDArray[Any]

VECTOR_FIELDS = ("type", "size", "indices", "values")
IMAGE_FIELDS = ("origin", "height", "width", "nChannels", "mode", "data")
RGB_ORDER = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
"""Number of channels -> positions of red, green, blue and alpha. Spark stores them as OpenCV does, blue first."""
UINT8_MODES = (0, 16, 24)
"""OpenCV's CV_8UC1, CV_8UC3 and CV_8UC4."""


def is_vector(arrow_type: pa.DataType) -> bool:
    """Return whether this is the type in which Spark sends a `pyspark.ml.linalg.Vector`."""
    return _has_fields(arrow_type, VECTOR_FIELDS)


def is_image(arrow_type: pa.DataType) -> bool:
    """Return whether this is the type of a row of ``spark.read.format("image")``."""
    return _has_fields(arrow_type, IMAGE_FIELDS)


def _has_fields(arrow_type: pa.DataType, names: tuple[str, ...]) -> bool:
    return bool(pa.types.is_struct(arrow_type)) and tuple(field.name for field in arrow_type) == names


def vectors_to_numpy(array: pa.StructArray, name: str) -> Array:
    """Convert dense and sparse vectors to a dense array.

    Args:
        array: vectors without nulls.
        name: name of the column, for errors.

    Returns:
        ``(n, size)`` float64.

    Raises:
        DataError: vectors of unequal sizes.
    """
    kinds, sizes, indices, values = array.flatten()
    is_dense = kinds.to_numpy(zero_copy_only=False) == 1
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    size = _common_size(np.where(is_dense, lengths, pc.fill_null(sizes, 0).to_numpy()), name)
    flat = values.flatten().to_numpy()
    if is_dense.all():
        dense: Array = flat.reshape(len(array), size)
        return dense
    places = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places[~np.repeat(is_dense, lengths)] = indices.flatten().to_numpy()
    dense = np.zeros((len(array), size))
    dense[np.repeat(np.arange(len(array)), lengths), places] = flat
    return dense


def dense_row_bytes(array: pa.Array) -> int:
    """Return the bytes of one dense row of vectors; 0 for other types, which need as much memory as in Arrow.

    A sparse vector of 262,144 dimensions, as Spark's HashingTF makes, has about a hundred numbers. A chunk of them
    would become two thousand times larger.
    """
    if not is_vector(array.type):
        return 0
    return 8 * int(pc.max(array.field("size")).as_py() or 0)


def _common_size(sizes: Array, name: str) -> int:
    other = np.flatnonzero(sizes != sizes[:1])
    if len(other):
        raise DataError(
            f"row {other[0]}: column {name!r} has a vector of size {sizes[other[0]]} where those before have "
            f"{sizes[0]}; expected vectors of one size; assemble them of the same columns"
        )
    return int(sizes[0]) if len(sizes) else 0


def images_to_numpy(array: pa.StructArray, name: str) -> Array:
    """Convert Spark's images to RGB (or gray, or RGBA).

    Args:
        array: images without nulls.
        name: name of the column, for errors.

    Returns:
        ``(n, height, width, channels)`` uint8.

    Raises:
        DataError: Spark could not decode an image, or images differ in size.
    """
    origins, *fields, data = array.flatten()
    shapes = np.stack([pc.fill_null(field, -1).to_numpy() for field in fields[:3]], axis=1)
    modes = pc.fill_null(fields[3], -1).to_numpy()
    _refuse_undecoded(modes, origins, name)
    other = np.flatnonzero((shapes != shapes[:1]).any(axis=1))
    if len(other):
        raise DataError(
            f"row {other[0]}: column {name!r} has an image of {_size(shapes[other[0]])} where those before have "
            f"{_size(shapes[0])}; expected images of one size; resize them before feeding, or read the files with "
            f"spark.read.format('binaryFile') and feed Column('content', shape=..., decode='image', resize=True)"
        )
    shape = shapes[0].tolist() if len(shapes) else [0, 0, 1]
    pixels, _ = binary_buffers(data)
    return pixels.reshape(len(array), *shape)[..., RGB_ORDER[shape[2]]]


def binary_buffers(array: pa.Array) -> tuple[Array, Array]:
    """View a binary or string array without nulls as its bytes and the bounds of each row in them.

    Returns:
        ``(bytes,)`` uint8 and ``(n + 1,)`` int64.
    """
    if not len(array):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    array = pc.cast(array, pa.large_binary())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]


def _refuse_undecoded(modes: Array, origins: pa.Array, name: str) -> None:
    bad = np.flatnonzero(~np.isin(modes, UINT8_MODES))
    if len(bad):
        raise DataError(
            f"row {bad[0]}: column {name!r} has an image of mode {modes[bad[0]]} ({origins[int(bad[0])].as_py()}); "
            "expected 8 bits per channel (modes 0, 16, 24); Spark marks a file it could not decode by mode -1: read "
            "with .option('dropInvalid', True)"
        )


def _size(shape: Array) -> str:
    return " x ".join(map(str, shape))
