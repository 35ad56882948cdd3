"""Counts of classified rows: steps return them, and the driver draws them as matrices and curves."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfspark.experiment.report import mean_area
from tfspark.training.class_counts import (
    MOST_CURVES,
    count_classes,
    kind_of_label,
    matrix_and_curves,
    num_counts,
)


def saying(num_units: int, loss: Any = None) -> keras.Model:
    """Return a model that returns its input as the scores of the classes."""
    inputs = keras.Input((num_units,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile("sgd", loss or "mse")
    return model


def counted(scores: Any, truth: Any, num_classes: int, loss: Any = None) -> tuple[Any, Any]:
    """Count rows in two batches, as workers do, and add up the counts; return the matrix and the curves."""
    scores, truth = np.asarray(scores, np.float32), np.asarray(truth)
    model = saying(scores.shape[1], loss)
    kind = kind_of_label(model, tf.constant(scores), tf.constant(truth), num_classes)
    assert kind
    parts = [(scores[:2], truth[:2]), (scores[2:], truth[2:])]
    counts = sum(
        count_classes(model, tuple(map(tf.constant, part)), num_classes, kind).numpy() for part in parts
    )
    assert counts.shape == (num_counts(num_classes, kind),)
    return matrix_and_curves(counts, num_classes, kind)


def test_matrix_has_a_row_for_each_true_class() -> None:
    matrix, curves = counted(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.3, 0.6], [0.7, 0.2, 0.1]], [0, 1, 2, 2], 3
    )
    assert matrix == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    # For class 2 there are four pairs of a row of the class and another row. All pairs are in the right order.
    assert [mean_area([curve]) for curve in curves] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("scores", "expected", "reason"),
    [
        ([[0.1], [0.2], [0.3], [0.4]], 1.0, "rows of class 1 have higher scores"),
        ([[0.4], [0.3], [0.2], [0.1]], 0.0, "rows of class 1 have lower scores"),
        ([[0.5], [0.5], [0.5], [0.5]], 0.5, "all scores are equal"),
        ([[0.1], [0.3], [0.2], [0.4]], 0.75, "one of four pairs is in the wrong order"),
    ],
)
def test_area_of_the_curve_of_one_unit_is_the_share_of_pairs_in_order(
    scores: Any, expected: float, reason: str
) -> None:
    _, (curve,) = counted(scores, [0, 0, 1, 1], 2)
    assert mean_area([curve]) == pytest.approx(expected), reason
    assert (curve[0], curve[-1]) == ([0, 0], [1, 1])


@pytest.mark.parametrize(
    ("scores", "num_classes", "loss", "expected"),
    [
        ([[-1], [1], [1], [-1]], 2, keras.losses.BinaryCrossentropy(from_logits=True), [[1, 1], [1, 1]]),
        (
            [[-3, -1], [2, 5], [9, 5], [3, 0]],
            2,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            [[0, 2], [2, 0]],
        ),
    ],
)
def test_matrix_of_logits_is_the_matrix_of_their_probabilities(
    scores: Any, num_classes: int, loss: Any, expected: Any
) -> None:
    assert counted(scores, [0, 0, 1, 1], num_classes, loss)[0] == expected


def test_area_of_the_curve_is_the_auc_of_keras() -> None:
    numbers = np.random.default_rng(0)
    truth = numbers.integers(0, 2, 2000)
    scores = 1 / (1 + np.exp(-(numbers.normal(size=2000) + 3 * truth)))
    _, (curve,) = counted(scores[:, None], truth, 2)
    auc = keras.metrics.AUC(num_thresholds=5000)
    auc.update_state(truth, scores)
    assert mean_area([curve]) == pytest.approx(float(auc.result()), abs=1e-3)


def test_curve_of_a_class_without_rows_is_empty() -> None:
    _, curves = counted([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 0, 1], 3)
    assert [bool(curve) for curve in curves] == [True, True, False]


def test_counts_include_rows_whose_score_is_nan() -> None:
    matrix, _ = counted([[np.nan], [0.5], [0.1]], [1, 0, 1], 2)
    assert sum(map(sum, matrix)) == 3


def test_counts_in_a_graph_have_a_known_length() -> None:
    model = saying(3)
    graph = tf.function(lambda x, y: count_classes(model, (x, y), 3)).get_concrete_function(
        tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64)
    )
    assert graph.output_shapes == (num_counts(3),)


def test_curves_of_too_many_classes_are_not_kept() -> None:
    n = MOST_CURVES + 1
    matrix, curves = counted(np.eye(n), np.arange(n), n)
    assert curves is None
    assert matrix == np.eye(n).tolist()


def test_matrix_of_one_hot_labels_is_the_matrix_of_integer_labels() -> None:
    scores = [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.3, 0.6], [0.7, 0.2, 0.1]]
    by_number = counted(scores, [0, 1, 2, 2], 3)
    assert counted(scores, np.eye(3)[[0, 1, 2, 2]], 3, "categorical_crossentropy") == by_number


@pytest.mark.parametrize("from_logits", [False, True])
def test_multi_label_rows_have_a_matrix_for_each_class(from_logits: bool) -> None:
    scores = np.array([[0.9, 0.5], [0.8, 0.1], [0.3, 0.6], [0.2, 0.4]])
    if from_logits:
        scores = np.log(scores / (1 - scores))
    truth = [[1, 1], [0, 0], [1, 1], [0, 1]]

    matrices, curves = counted(scores, truth, 2, keras.losses.BinaryCrossentropy(from_logits=from_logits))

    assert matrices == [[[1, 1], [1, 1]], [[1, 0], [1, 2]]]
    assert [mean_area([curve]) for curve in curves] == pytest.approx([0.75, 1])


def test_matrices_of_too_many_classes_are_kept_without_curves() -> None:
    n = MOST_CURVES + 1
    matrices, curves = counted(np.eye(n), np.eye(n), n, "binary_crossentropy")
    assert curves is None
    assert matrices == [[[n - 1, 0], [0, 1]]] * n


@pytest.mark.parametrize(
    ("loss", "units", "label_shape", "reason"),
    [
        ("mse", 3, (8, 3), "a forecast of as many numbers as there are classes"),
        ("sparse_categorical_crossentropy", 4, (8,), "outputs for a different number of classes"),
        ("binary_crossentropy", 3, (8, 4), "labels for a different number of classes"),
    ],
)
def test_kind_of_label_is_none_if_the_model_does_not_predict_the_classes(
    loss: str, units: int, label_shape: tuple[int, ...], reason: str
) -> None:
    model = keras.Sequential([keras.Input((units,)), keras.layers.Identity()])
    model.compile("sgd", loss)
    outputs, label = tf.zeros((8, units)), tf.zeros(label_shape, tf.int64)
    assert kind_of_label(model, outputs, label, 3) is None, reason
