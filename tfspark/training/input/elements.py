"""Convert a batch of the feed to a Keras element ``(features, label, weight)``, in tf.data. Runs in the trainer.

The feed returns dense arrays. A column of variable length enters tf.data as two arrays, the values of all rows and the
rows' lengths, and becomes one tensor again there. Images are decoded and Examples parsed there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfspark.feed.arrays import pad_value
from tfspark.feed.batching import Rows, row_shape
from tfspark.feed.columns import Column, Columns
from tfspark.feed.reader import WEIGHT
from tfspark.training.input.graph_errors import image_scope

T = TypeVar("T")
LENGTHS = "/lengths"
"""Suffix of the component that holds the row lengths of a column."""

Tensors = dict[str, tf.Tensor | tf.RaggedTensor]
"""Column -> values of a batch."""
Structure: TypeAlias = (
    "tf.Tensor | tf.RaggedTensor | tf.SparseTensor | Sequence[Structure] | Mapping[str, Structure]"
)
"""Features or labels as Keras takes them: a tensor, or tensors in tuples, lists and dictionaries."""
Element = tuple[Structure, Structure, tf.Tensor]
"""What a step of Keras takes: features, label, and the weight of each row, ``(B,)``."""
FeaturesHook = Callable[[Tensors], Structure]
"""The ``features(batch)`` of a model module."""


def flattened(batch: Rows, columns: Columns) -> Rows:
    """Split every column of variable length into values and lengths."""
    flat = dict(batch)
    for column in columns.sent:
        if column.is_variable:
            rows = batch[column.name]
            flat[column.name] = np.concatenate(rows.tolist())
            flat[column.name + LENGTHS] = np.fromiter(map(len, rows), np.int64, len(rows))
    return flat


def signature(sample: Rows, columns: Columns, batch_size: int | None) -> dict[str, tf.TensorSpec]:
    """Return the tf.data signature of `flattened` batches.

    Args:
        sample: one row.
        columns: the columns that are fed.
        batch_size: rows of every batch; None: it varies.
    """
    variable = {column.name for column in columns.sent if column.is_variable}
    specs = {}
    for name, values in sample.items():
        if name in variable:
            specs[name] = tf.TensorSpec(row_shape(values), _tensor_dtype(values[0]))
            specs[name + LENGTHS] = tf.TensorSpec((batch_size,), tf.int64)
        else:
            specs[name] = tf.TensorSpec((batch_size, *values.shape[1:]), _tensor_dtype(values))
    return specs


def _tensor_dtype(values: npt.NDArray[Any]) -> tf.DType:
    return tf.string if values.dtype == object else tf.as_dtype(values.dtype)


def joined(batch: Tensors, columns: Columns) -> Tensors:
    """Undo `flattened`: return padded dense tensors, or ragged ones."""
    whole = {name: values for name, values in batch.items() if not name.endswith(LENGTHS)}
    for column in columns.sent:
        if column.is_variable:
            lengths = batch[column.name + LENGTHS]
            rows = tf.RaggedTensor.from_row_lengths(batch[column.name], lengths, validate=False)
            whole[column.name] = as_declared_ragged(rows, column)
    return whole


def as_declared_ragged(rows: tf.RaggedTensor, column: Column) -> tf.Tensor | tf.RaggedTensor:
    """Return a ragged tensor unchanged, or padded to the longest row or to ``pad_to``."""
    if column.ragged != "pad":
        return rows
    dtype = np.dtype(object) if rows.dtype == tf.string else np.dtype(rows.dtype.as_numpy_dtype)
    fill = tf.constant(pad_value(column, dtype), rows.dtype)
    if column.pad_to is None:
        return rows.to_tensor(fill)
    longest = tf.reduce_max(rows.row_lengths())
    text = f"column {column.name!r} has a row of more values than pad_to={column.pad_to}; raise pad_to; came"
    with tf.control_dependencies([tf.debugging.Assert(longest <= column.pad_to, [text, longest])]):
        return tf.identity(rows.to_tensor(fill, shape=[None, column.pad_to]))


def without_autograph(function: Callable[..., T]) -> Callable[..., T]:
    """Return one of our own functions for tf.data, which has no Python loops or conditions over tensors.

    AutoGraph would rewrite it first, with all that it calls, which takes longer than to build its graph.
    """
    unconverted: Callable[..., T] = tf.autograph.experimental.do_not_convert(function)
    return unconverted


def with_autograph(hook: FeaturesHook | None) -> FeaturesHook | None:
    """Return a user's function for use within one of our own: AutoGraph rewrites it as it does elsewhere."""
    if hook is None:
        return None
    autograph = tf.__internal__.autograph
    converted: FeaturesHook = autograph.tf_convert(hook, autograph.control_status_ctx())
    return converted


def to_element(batch: Tensors, columns: Columns, features_hook: FeaturesHook | None = None) -> Element:
    """Convert a batch by column name to ``(features, label, weight)`` for Keras."""
    features = {column.name: _finished(batch[column.name], column) for column in columns.features}
    labels = {column.name: _finished(batch[column.name], column) for column in columns.labels}
    x = as_tuples(features_hook(features)) if features_hook is not None else _alone_or_dict(features)
    return x, _alone_or_dict(labels) if labels else x, batch[WEIGHT]


def as_tuples(structure: Structure) -> Structure:
    """Return a structure of tensors with tuples instead of lists: tf.data would make one tensor of a list."""
    if isinstance(structure, Mapping):
        return {name: as_tuples(value) for name, value in structure.items()}
    return tuple(map(as_tuples, structure)) if isinstance(structure, list | tuple) else structure


def _alone_or_dict(tensors: Tensors) -> Structure:
    return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def _finished(values: tf.Tensor, column: Column) -> tf.Tensor:
    if column.decode is not None:
        values = _decoded(values, column)
    return values if column.scale is None else tf.cast(values, tf.float32) / column.scale


def _decoded(files: tf.Tensor, column: Column) -> tf.Tensor:
    """Decode image files, several at a time.

    Shapes:
        files: ``(B,)`` strings.
        returns: ``(B, height, width, channels)`` uint8.
    """
    shape = column.shape or ()

    def decode(file: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(file, channels=shape[-1], expand_animations=False)
        return _resized(image, shape) if column.resize else _checked(image, column)

    with tf.name_scope(image_scope(column.name)):
        return tf.map_fn(decode, files, fn_output_signature=tf.TensorSpec(shape, tf.uint8))


def _resized(image: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Resize bilinearly, with antialiasing if the image becomes smaller; an image of the wanted size is not changed."""
    image.set_shape([None, None, shape[-1]])
    fits = tf.reduce_all(tf.shape(image) == shape)
    other = lambda: tf.image.resize(image, shape[:2], antialias=True)  # noqa: E731
    resized = tf.cond(fits, lambda: tf.cast(image, tf.float32), other)
    return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), shape)


def _checked(image: tf.Tensor, column: Column) -> tf.Tensor:
    expected = (
        f"column {column.name!r} expected images of shape {list(column.shape or ())}; declare resize=True, or resize "
        "them before feeding; came"
    )
    fits = tf.debugging.Assert(tf.reduce_all(tf.shape(image) == column.shape), [expected, tf.shape(image)])
    with tf.control_dependencies([fits]):
        return tf.ensure_shape(tf.identity(image), column.shape)
