"""Counts of classified rows, as steps return them and the driver draws them."""

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
    """A model that returns its input, as the scores of its classes."""
    inputs = keras.Input((num_units,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile("sgd", loss or "mse")
    return model


def counted(scores: Any, truth: Any, num_classes: int, loss: Any = None) -> tuple[Any, Any]:
    """Count in two batches, as workers do, and add up."""
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


def test_matrix_when_counted_in_batches_has_true_classes_down() -> None:
    matrix, curves = counted(
        [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.3, 0.6], [0.7, 0.2, 0.1]], [0, 1, 2, 2], 3
    )
    assert matrix == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]
    # Class 2: of four pairs of an own row and another, all are in the right order.
    assert [mean_area([curve]) for curve in curves] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("scores", "expected", "reason"),
    [
        ([[0.1], [0.2], [0.3], [0.4]], 1.0, "class 1 above"),
        ([[0.4], [0.3], [0.2], [0.1]], 0.0, "class 1 below"),
        ([[0.5], [0.5], [0.5], [0.5]], 0.5, "all alike"),
        ([[0.1], [0.3], [0.2], [0.4]], 0.75, "one pair of four is the wrong way round"),
    ],
)
def test_curve_when_one_unit_says_class_1_has_the_area_of_pairs_in_order(
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
def test_matrix_when_the_model_gives_logits_is_that_of_their_probabilities(
    scores: Any, num_classes: int, loss: Any, expected: Any
) -> None:
    assert counted(scores, [0, 0, 1, 1], num_classes, loss)[0] == expected


def test_curve_when_compared_with_keras_has_its_area() -> None:
    numbers = np.random.default_rng(0)
    truth = numbers.integers(0, 2, 2000)
    scores = 1 / (1 + np.exp(-(numbers.normal(size=2000) + 3 * truth)))
    _, (curve,) = counted(scores[:, None], truth, 2)
    auc = keras.metrics.AUC(num_thresholds=5000)
    auc.update_state(truth, scores)
    assert mean_area([curve]) == pytest.approx(float(auc.result()), abs=1e-3)


def test_curves_when_a_class_has_no_row_leave_it_empty() -> None:
    _, curves = counted([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 0, 1], 3)
    assert [bool(curve) for curve in curves] == [True, True, False]


def test_counts_when_a_score_is_not_a_number_still_add_up() -> None:
    matrix, _ = counted([[np.nan], [0.5], [0.1]], [1, 0, 1], 2)
    assert sum(map(sum, matrix)) == 3


def test_counts_when_in_a_graph_are_of_a_known_length() -> None:
    model = saying(3)
    graph = tf.function(lambda x, y: count_classes(model, (x, y), 3)).get_concrete_function(
        tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64)
    )
    assert graph.output_shapes == (num_counts(3),)


def test_curves_when_classes_are_too_many_are_not_kept() -> None:
    n = MOST_CURVES + 1
    matrix, curves = counted(np.eye(n), np.arange(n), n)
    assert curves is None
    assert matrix == np.eye(n).tolist()


def test_matrix_when_labels_are_rows_with_a_single_one_is_that_of_their_numbers() -> None:
    scores = [[0.9, 0.1, 0], [0.2, 0.8, 0], [0.1, 0.3, 0.6], [0.7, 0.2, 0.1]]
    by_number = counted(scores, [0, 1, 2, 2], 3)
    assert counted(scores, np.eye(3)[[0, 1, 2, 2]], 3, "categorical_crossentropy") == by_number


@pytest.mark.parametrize("from_logits", [False, True])
def test_matrices_when_a_row_may_be_of_several_classes_are_one_for_each_class(from_logits: bool) -> None:
    scores = np.array([[0.9, 0.5], [0.8, 0.1], [0.3, 0.6], [0.2, 0.4]])
    if from_logits:
        scores = np.log(scores / (1 - scores))
    truth = [[1, 1], [0, 0], [1, 1], [0, 1]]

    matrices, curves = counted(scores, truth, 2, keras.losses.BinaryCrossentropy(from_logits=from_logits))

    assert matrices == [[[1, 1], [1, 1]], [[1, 0], [1, 2]]]
    assert [mean_area([curve]) for curve in curves] == pytest.approx([0.75, 1])


def test_matrices_when_classes_are_many_are_kept_without_curves() -> None:
    n = MOST_CURVES + 1
    matrices, curves = counted(np.eye(n), np.eye(n), n, "binary_crossentropy")
    assert curves is None
    assert matrices == [[[n - 1, 0], [0, 1]]] * n


@pytest.mark.parametrize(
    ("loss", "units", "label_shape", "reason"),
    [
        ("mse", 3, (8, 3), "several numbers to forecast, as many as there are classes"),
        ("sparse_categorical_crossentropy", 4, (8,), "another number of classes"),
        ("binary_crossentropy", 3, (8, 4), "labels of another number of classes"),
    ],
)
def test_kind_of_label_when_the_model_predicts_no_such_classes_is_none(
    loss: str, units: int, label_shape: tuple[int, ...], reason: str
) -> None:
    model = keras.Sequential([keras.Input((units,)), keras.layers.Identity()])
    model.compile("sgd", loss)
    outputs, label = tf.zeros((8, units)), tf.zeros(label_shape, tf.int64)
    assert kind_of_label(model, outputs, label, 3) is None, reason
