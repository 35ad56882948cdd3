"""Count how rows were classified, as sums over rows that steps and workers can add up. Runs in trainers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

if TYPE_CHECKING:
    from tfspark.training.input.elements import Structure

BINS = 400
LARGEST_LOGIT = 14.0
"""Largest logit of the bins of equal width into which a class's probability is sorted; its probability is 0.9999992."""
YES = 0.5
"""With several classes per row, a class is predicted from this probability on."""
MOST_CURVES = 20
"""Maximum number of classes for which a ROC is stored: more curves could not be distinguished."""


Kind = Literal["index", "one_hot", "several"]
"""How a label encodes the class of a row: as a number, as a one-hot row, or as a yes or no for each class."""
Matrix = list[list[int]] | list[list[list[int]]]
"""Counts of rows by true and predicted class, or, where a row may be of several classes, one such matrix per class."""


def kind_of_label(model: keras.Model, outputs: Any, label: Any, num_classes: int) -> Kind | None:
    """Return how to read labels; None if the model does not predict these classes.

    Args:
        model: a compiled model; its loss says what a label of several numbers means.
        outputs: its predictions; only the shape is used.
        label: labels of some rows; only the shape is used.
        num_classes: 2 or more.
    """
    if not (tf.is_tensor(outputs) and tf.is_tensor(label)) or outputs.shape.rank != 2:
        return None
    units = outputs.shape[-1]
    if label.shape.rank == 1 or label.shape[1:] == (1,):
        return "index" if units == num_classes or (num_classes, units) == (2, 1) else None
    loss = str(getattr(model.loss, "name", getattr(model.loss, "__name__", model.loss)))
    if label.shape[1:] != (num_classes,) or units != num_classes or not loss.endswith("crossentropy"):
        return None
    return "several" if loss.startswith("binary") else "one_hot"


def num_counts(num_classes: int, kind: Kind = "index") -> int:
    """Return the length of the result of `count_classes`."""
    table = 4 * num_classes if kind == "several" else num_classes**2
    return table + (2 * BINS * num_classes if num_classes <= MOST_CURVES else 0)


def count_classes(
    model: keras.Model, element: Sequence[Structure], num_classes: int, kind: Kind = "index"
) -> tf.Tensor:
    """Count the rows of a batch by true and predicted class, then by the score of each class.

    Args:
        model: returns a probability (or, if its loss says so, a logit) for each class, or only for class 1 of two.
        element: features and labels: 0 to `num_classes - 1`, or `num_classes` zeros and ones.
        num_classes: 2 or more.
        kind: how to read the labels.

    Shapes:
        returns: (num_counts,) float64.
    """
    scores = _probabilities(model, model(element[0], training=False), kind)
    if scores.shape[-1] == 1:
        scores = tf.concat([1 - scores, scores], -1)
    if kind == "index":
        truth = tf.one_hot(tf.reshape(tf.cast(element[1], tf.int64), [-1]), num_classes, dtype=tf.int32)
    else:
        truth = tf.cast(tf.cast(element[1], tf.float32) > YES, tf.int32)
    if kind == "several":
        cells = 4 * tf.range(num_classes) + 2 * truth + tf.cast(scores >= YES, tf.int32)
        table = tf.math.bincount(
            tf.reshape(cells, [-1]), minlength=4 * num_classes, maxlength=4 * num_classes
        )
    else:
        table = tf.math.confusion_matrix(tf.argmax(truth, -1), tf.argmax(scores, -1), num_classes)
    parts = [table] if num_classes > MOST_CURVES else [table, _histograms(truth, scores, num_classes)]
    counts = tf.concat([tf.cast(tf.reshape(part, [-1]), tf.float64) for part in parts], 0)
    return tf.ensure_shape(
        counts, [num_counts(num_classes, kind)]
    )  # a graph does not know how many bins there are


def matrix_and_curves(
    counts: npt.NDArray[np.float64], num_classes: int, kind: Kind = "index"
) -> tuple[Matrix, list[list[list[float]]] | None]:
    """Return the confusion matrix, and the ROC of each class against all others; for two classes, only of class 1.

    A curve is a list of (false positive rate, true positive rate) by falling threshold. It is empty for a class of
    which no row, or every row, is a member.

    Shapes:
        matrix: (num_classes, num_classes), axis 0 true, axis 1 predicted; (num_classes, 2, 2) for labels with several
            classes: whether a row is of the class, and whether it was predicted with 0.5 or more.
    """
    shape = (num_classes, 2, 2) if kind == "several" else (num_classes, num_classes)
    size = math.prod(shape)
    matrix = np.asarray(counts[:size], np.int64).reshape(shape).tolist()
    if num_classes > MOST_CURVES:
        return matrix, None
    histograms = counts[size:].reshape(num_classes, 2, BINS)
    first = 1 if num_classes == 2 and kind != "several" else 0
    return matrix, [_curve(*pair) for pair in histograms[first:]]


def _probabilities(model: keras.Model, outputs: tf.Tensor, kind: Kind) -> tf.Tensor:
    outputs = tf.cast(outputs, tf.float32)
    if not getattr(model.loss, "from_logits", False):
        return outputs
    return tf.sigmoid(outputs) if outputs.shape[-1] == 1 or kind == "several" else tf.nn.softmax(outputs)


def _histograms(truth: tf.Tensor, scores: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Count rows by class, by membership in it (`truth`), and by the bin of the score: `(num_classes * 2 * BINS,)`."""
    scores = tf.clip_by_value(tf.cast(scores, tf.float64), 1e-7, 1 - 1e-7)
    logits = (tf.math.log(scores) - tf.math.log1p(-scores)) / LARGEST_LOGIT  # in (-1.2, 1.2)
    bins = tf.clip_by_value(tf.cast(tf.floor((logits + 1) / 2 * BINS), tf.int32), 0, BINS - 1)
    cells = (2 * tf.range(num_classes) + truth) * BINS + bins
    size = 2 * BINS * num_classes
    return tf.math.bincount(tf.reshape(cells, [-1]), minlength=size, maxlength=size)


def _curve(others: npt.NDArray[np.float64], own: npt.NDArray[np.float64]) -> list[list[float]]:
    if not (others.sum() and own.sum()):
        return []
    used = np.flatnonzero(others + own)[::-1]
    rates = [np.concatenate([[0.0], np.cumsum(side[used]) / side.sum()]) for side in (others, own)]
    points: list[list[float]] = np.stack(rates, axis=1).tolist()
    return points
