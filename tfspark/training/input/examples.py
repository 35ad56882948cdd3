"""Parse serialized ``tf.train.Example`` records with TensorFlow's C++ code, in tf.data. Runs in the trainer.

Used for records in a binary column of a DataFrame (``Columns(examples=...)``), and by workers that read TFRecord files
themselves (`tfspark.feed.files`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tfspark.errors import DataError
from tfspark.feed.arrays import pad_value
from tfspark.feed.columns import Column, Columns
from tfspark.training.input.elements import Tensors, as_declared_ragged
from tfspark.training.input.graph_errors import bytes_scope

KINDS = {"int64": tf.int64, "float": tf.float32, "bytes": tf.string}


@dataclass(frozen=True)
class Feature:
    """A feature of the Examples.

    Attributes:
        kind: ``int64``, ``float`` or ``bytes``.
        shape: shape of one row's tensor.
    """

    kind: str
    shape: tuple[int, ...]


def features_of_record(record: bytes, columns: Columns) -> dict[str, Feature]:
    """Return the kind and shape of each feature, taken from one record.

    A feature with exactly one value is a scalar, unless its column says otherwise.

    Raises:
        DataError: the record is not an Example, or a feature is missing.
    """
    try:
        found = tf.train.Example.FromString(record).features.feature
    except Exception as error:
        raise DataError(
            f"column {columns.examples!r} expected serialized tf.train.Example records, got {record[:20]!r}... "
            f"({error})"
        ) from None
    features = {column.name: _feature(column, found) for column in columns.all}
    label = columns.class_label
    if label is not None and columns.num_classes is not None:
        _check_is_class(label, features[label.name], columns.num_classes)
    for column in () if columns.weight is None else (columns.weight,):
        feature = features[column.name]
        if feature.kind == "bytes" or math.prod(feature.shape) != 1:
            raise DataError(
                f"weight column {column.name!r} has values of kind {feature.kind} and shape {list(feature.shape)} in "
                "the Examples, expected one number for each row; name another feature"
            )
    return features


def _check_is_class(label: Column, feature: Feature, num_classes: int) -> None:
    dtype = label.wanted_dtype
    if feature.kind != "int64" and (dtype is None or dtype.kind not in "biu"):
        raise DataError(
            f"label {label.name!r} is of kind {feature.kind} in the Examples, expected integer classes 0 to "
            f"{num_classes - 1}; declare an integer dtype, or leave num_classes out for a regression"
        )


def _feature(column: Column, found: Mapping[str, tf.train.Feature]) -> Feature:
    kind = found[column.name].WhichOneof("kind") if column.name in found else None
    if column.ragged is not None:
        return _ragged_feature(column, kind)
    if kind is None:
        raise DataError(
            f"column {column.name!r} is no feature of the first Example, which has {sorted(found)}; name the features "
            "as the records do"
        )
    values = getattr(found[column.name], kind).value
    is_raw = kind == "bytes_list" and column.dtype is not None
    count = len(values[0]) // tf.as_dtype(column.dtype).size if is_raw and values else len(values)
    shape = column.shape if column.shape is not None and column.decode is None else None
    own = () if count == 1 and not is_raw else (count,)
    return Feature(kind.removesuffix("_list"), own if shape is None else shape)


def _ragged_feature(column: Column, kind: str | None) -> Feature:
    """Return a ragged feature. Its first row may be empty; in that case its kind is taken from the declared dtype."""
    if kind is None and column.wanted_dtype is not None:
        kind = "float" if column.wanted_dtype.kind == "f" else "int64"
    if kind is None or (kind == "bytes_list" and column.dtype is not None):
        raise DataError(
            f"column {column.name!r} is {'empty' if kind is None else 'bytes'} in the first Example; expected a dtype "
            "beside ragged for numbers, and none for bytes, which cannot be decoded to numbers of unequal lengths"
        )
    kind = kind.removesuffix("_list")
    if column.ragged == "pad":
        pad_value(column, column.wanted_dtype or np.dtype(KINDS[kind].as_numpy_dtype))
    return Feature(kind, ())


def parse_examples(records: tf.Tensor, features: Mapping[str, Feature], columns: Columns) -> Tensors:
    """Parse records into tensors by column name.

    Shapes:
        records: ``(B,)`` strings.
        returns: ``(B, *shape)`` each; ragged where the column says so.
    """
    specs = {column.name: _parsing(column, features[column.name]) for column in columns.all}
    parsed = tf.io.parse_example(records, specs)
    rows = {
        column.name: _as_declared(parsed[column.name], column, features[column.name])
        for column in columns.all
    }
    label = columns.class_label
    if label is not None and columns.num_classes is not None:
        rows[label.name] = _checked_classes(rows[label.name], label.name, columns.num_classes)
    return rows


def _parsing(column: Column, feature: Feature) -> tf.io.FixedLenFeature | tf.io.RaggedFeature:
    dtype = KINDS[feature.kind]
    if column.ragged is not None:
        return tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
    is_raw = feature.kind == "bytes" and column.dtype is not None
    return tf.io.FixedLenFeature([] if is_raw or column.decode else feature.shape, dtype)


def _as_declared(
    values: tf.Tensor | tf.RaggedTensor, column: Column, feature: Feature
) -> tf.Tensor | tf.RaggedTensor:
    if column.ragged is not None:
        return as_declared_ragged(values.with_flat_values(_cast(values.flat_values, column)), column)
    if column.dtype is None:
        return values
    if values.dtype == tf.string:
        with tf.name_scope(bytes_scope(column.name)):
            values = tf.io.decode_raw(values, tf.as_dtype(column.dtype))
            return tf.reshape(values, [values.shape[0] or -1, *feature.shape])
    return tf.reshape(_cast(values, column), [values.shape[0] or -1, *feature.shape])


def _cast(values: tf.Tensor, column: Column) -> tf.Tensor:
    """Convert to the declared dtype; an integer that the dtype cannot hold is rejected."""
    if column.dtype is None or values.dtype == column.dtype:
        return values
    cast = tf.cast(values, column.dtype)
    if cast.dtype.is_floating:
        return cast
    text = f"column {column.name!r} holds values that the declared dtype {column.dtype} cannot; declare a wider; came"
    lost = tf.boolean_mask(values, tf.cast(cast, values.dtype) != values)
    with tf.control_dependencies(
        [tf.debugging.Assert(tf.equal(tf.size(lost), 0), [text, lost], summarize=8)]
    ):
        return tf.identity(cast)


def _checked_classes(labels: tf.Tensor, name: str, num_classes: int) -> tf.Tensor:
    text = (
        f"label {name!r} expected classes from 0 to {num_classes - 1}; correct the data or num_classes; came"
    )
    outside = tf.boolean_mask(labels, (labels < 0) | (labels >= tf.cast(num_classes, labels.dtype)))
    inside = tf.debugging.Assert(tf.equal(tf.size(outside), 0), [text, outside], summarize=8)
    with tf.control_dependencies([inside]):
        return tf.identity(labels)


def weights_of_examples(weights: tf.Tensor, rows: Tensors, columns: Columns) -> tf.Tensor:
    """Return each row's weight in the loss: its own times that of its class; padding keeps its weight.

    Shapes:
        weights: ``(B,)`` float32: 1, or -0.0 for padding.
        returns: ``(B,)`` float32.
    """
    if not columns.weighs_rows:
        return weights
    own = tf.ones_like(weights)
    if columns.weight is not None:
        own = _own_weights(rows[columns.weight.name], columns.weight.name)
    return tf.where(tf.equal(weights, 0), weights, own * _class_weights(rows, columns))


def _own_weights(values: tf.Tensor, name: str) -> tf.Tensor:
    text = f"weight column {name!r} expected finite numbers; filter such rows; came"
    own = tf.reshape(tf.cast(values, tf.float32), [-1])
    lost = tf.boolean_mask(own, ~tf.math.is_finite(own))
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(tf.size(lost), 0), [text, lost])]):
        return own + 0.0


def _class_weights(rows: Tensors, columns: Columns) -> tf.Tensor | float:
    label = columns.class_label
    if label is None or not columns.class_weights:
        return 1.0
    labels = rows[label.name]
    if labels.shape.rank == 2 and labels.shape[1] != 1:
        classes = tf.argmax(labels, axis=1)  # one-hot
    else:
        classes = tf.reshape(tf.cast(tf.round(tf.cast(labels, tf.float32)), tf.int64), [-1])
    weights = tf.ones_like(classes, tf.float32)
    for known, weight in columns.class_weights:
        weights = tf.where(classes == known, tf.constant(weight, tf.float32), weights)
    return weights
