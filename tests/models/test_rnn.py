"""The recurrent networks of ``models/rnn.py``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models import rnn

WORDS = ("the", "good", "bad", "film", "dont")
TEXTS = np.array(["Good, good film!", "<br />A bad film; don't", "the film", ""], object)
SMALL: dict[str, Any] = {"units": 3, "embedding": 4, "dropout": 0.1}
TEXT = {**SMALL, "inputs": "text", "vocabulary": WORDS, "vocabulary_size": 10}
TOKENS = {**SMALL, "inputs": "tokens", "input_shape": [5], "vocabulary_size": 10}
SERIES = {**SMALL, "inputs": "series", "input_shape": [6, 2], "mean": [10.0, -1.0], "std": [2.0, 1.0]}

NUMBERS = np.random.default_rng(0)
IDS = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0], [1, 1, 1, 1, 0]], np.int32)
WINDOWS = NUMBERS.normal(10, 2, (4, 6, 2)).astype("float32")

CASES: list[tuple[str, dict[str, Any], Any, Any, tuple[int, ...]]] = [
    ("text, two classes", TEXT, TEXTS, np.array([1, 0, 1, 0]), (4, 1)),
    ("text, more classes", {**TEXT, "num_classes": 3}, TEXTS, np.array([1, 0, 2, 0]), (4, 3)),
    (
        "text, the last state",
        {**TEXT, "pooling": "last", "skip": False},
        TEXTS,
        np.array([1, 0, 1, 0]),
        (4, 1),
    ),
    ("text, the maximum", {**TEXT, "pooling": "max", "layers": 2}, TEXTS, np.array([1, 0, 1, 0]), (4, 1)),
    ("numbered words", {**TOKENS, "num_classes": 3}, IDS, np.array([1, 0, 2, 0]), (4, 3)),
    (
        "a class for every word",
        {**TOKENS, "num_classes": 3, "per_step": True, "skip": False},
        IDS,
        np.where(IDS, IDS % 3, -1),
        (4, 5, 3),
    ),
    ("a class of a series", {**SERIES, "num_classes": 2}, WINDOWS, np.array([1, 0, 1, 0]), (4, 1)),
    ("the next value", {**SERIES, "task": "forecast"}, WINDOWS, WINDOWS[:, 0, :1], (4, 1)),
    (
        "three steps of two variables",
        {**SERIES, "task": "forecast", "horizon": 3, "targets": 2, "per_window": True},
        WINDOWS,
        WINDOWS[:, :3].reshape(4, 6),
        (4, 6),
    ),
    (
        "a value at every step",
        {**SERIES, "task": "forecast", "per_step": True, "skip": False},
        WINDOWS,
        WINDOWS[:, :, 0],
        (4, 6),
    ),
]


@pytest.mark.parametrize(
    ("params", "x", "y", "shape"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_model_when_trained_a_step_and_saved_predicts_the_same(
    params: dict[str, Any], x: Any, y: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = rnn.build_model(params)
    weights = np.array([1.0, 1.0, 0.0, 1.0], np.float32)
    model.run_eagerly = True
    assert np.isfinite(model.train_on_batch(*tensors(x, y), sample_weight=weights)[0])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    said = model(tensors(x, y)[0]).numpy()
    assert said.shape == shape
    np.testing.assert_allclose(again(tensors(x, y)[0]), said, rtol=1e-5, atol=1e-6)


def tensors(x: Any, y: Any) -> tuple[Any, Any]:
    return keras.ops.convert_to_tensor(x, "string" if x.dtype == object else None), np.asarray(y)


@pytest.mark.parametrize(
    ("params", "x", "y", "shape"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_loss_does_not_depend_on_a_row_of_weight_0(
    params: dict[str, Any], x: Any, y: Any, shape: tuple[int, ...]
) -> None:
    model = rnn.build_model({**params, "dropout": 0.0})
    model.run_eagerly = True
    other_y = y.copy()
    other_y[2] = np.where(other_y[2] < 0, -1, 1 - other_y[2] % 2)
    weights = np.array([1.0, 1.0, 0.0, 1.0], np.float32)
    first, second = (
        model.test_on_batch(*tensors(x, labels), sample_weight=weights)[0] for labels in (y, other_y)
    )
    assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize(("cell", "bidirectional"), list(itertools.product(["lstm", "gru"], [True, False])))
def test_build_model_uses_the_chosen_cell(cell: str, bidirectional: bool) -> None:
    model = rnn.build_model({**TEXT, "cell": cell, "bidirectional": bidirectional, "layers": 2})
    kind = keras.layers.LSTM if cell == "lstm" else keras.layers.GRU
    found = [layer.forward_layer if bidirectional else layer for layer in model.layers if is_recurrent(layer)]
    assert [type(layer) for layer in found] == [kind, kind]


def is_recurrent(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Bidirectional | keras.layers.RNN)


def test_model_when_a_text_is_padded_predicts_the_same() -> None:
    model = rnn.build_model({**TEXT, "pooling": "max"})
    alone, beside = (model(keras.ops.convert_to_tensor(texts, "string")) for texts in (TEXTS[2:3], TEXTS))
    np.testing.assert_allclose(alone[0], beside[2], rtol=1e-5)


def test_adapt_when_on_spark_counts_the_words_as_plain_python_does(spark: Any) -> None:
    texts = [str(text) for text in TEXTS] + ["Über <b>die</b> FILM-Musik… 3½ £5", "don’t don't"]
    df = spark.createDataFrame([(text, 0) for text in texts], "text STRING, label INT").repartition(3)
    params = rnn.adapt({"vocabulary_size": 12}, df)
    assert params["vocabulary"] == rnn.vocabulary_of(texts, 12)
    assert params["vocabulary"][:3] == ["film", "dont", "good"]
    assert len(params["vocabulary"]) == 10


def test_adapt_when_series_finds_mean_and_deviation_of_each_variable(spark: Any) -> None:
    rows = [([1.0, 10.0, 3.0, 10.0], [0.0]), ([5.0, 10.0, 7.0, 10.0], [0.0])]
    df = spark.createDataFrame(rows, "window ARRAY<FLOAT>, target ARRAY<FLOAT>")
    params = rnn.adapt({"inputs": "series", "input_shape": [2, 2]}, df)
    assert params["mean"] == pytest.approx([4.0, 10.0])
    assert params["std"] == pytest.approx([np.std([1, 3, 5, 7]), 1.0])


def test_adapt_when_everything_is_given_changes_nothing(spark: Any) -> None:
    df = spark.createDataFrame([("a", 0)], "text STRING, label INT")
    assert rnn.adapt({"vocabulary": ["x"]}, df) == {"vocabulary": ["x"]}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"cel": "gru"}, "unknown model parameter 'cel': did you mean 'cell'"),
        ({**TEXT, "cell": "rnn"}, "cell must be one of lstm, gru. Received: cell='rnn'"),
        ({}, "inputs: text needs a vocabulary"),
        ({"inputs": "tokens"}, r"tokens need input_shape: \[steps\]"),
        ({"inputs": "series", "input_shape": [3]}, r"series need input_shape: \[steps, variables\]"),
        ({**SERIES, "mean": [1.0]}, "mean and std need one value per variable"),
        ({**SERIES, "std": [0.0, 1.0]}, "std must be a list of numbers above 0"),
        ({**SERIES, "task": "forecast", "targets": 3}, "targets cannot be more than the variables"),
        ({**TEXT, "task": "forecast"}, "task: forecast goes with inputs: series"),
        ({**TOKENS, "per_step": True}, "per_step goes with skip: false"),
        ({**TEXT, "units": 0}, "units must be a whole number, 1 or more. Received: units=0"),
        ({**TEXT, "vocabulary": "abc"}, "vocabulary must be a list of words"),
    ],
)
def test_build_model_when_parameter_wrong_says_what_it_must_be(params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        rnn.build_model(params)


def test_callbacks_when_decay_is_given_reduce_the_learning_rate() -> None:
    model = rnn.build_model({**TOKENS, "decay": 0.5, "learning_rate": 0.01})
    made = rnn.callbacks({**TOKENS, "decay": 0.5})
    model.fit(IDS, np.zeros(4), epochs=3, verbose=0, callbacks=made)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0025)
    assert rnn.callbacks(TOKENS) == []


def test_occlusion_when_one_word_decides_names_it() -> None:
    model = rnn.build_model({**TEXT, "dropout": 0.0, "length": 8})
    texts = keras.ops.convert_to_tensor(["good film", "bad film", "the good", "the bad"] * 8, "string")
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy")
    model.fit(texts, np.array([1, 0, 1, 0] * 8), epochs=20, verbose=0)
    importance = dict(rnn.occlusion(model, "the good film"))
    assert max(importance, key=lambda word: importance[word]) == "good"


def test_draw_writes_the_pictures_of_the_task(tmp_path: Path) -> None:
    rnn.draw(rnn.build_model(TEXT), TEXTS, np.zeros(4), str(tmp_path))
    rnn.draw(rnn.build_model({**SERIES, "task": "forecast"}), WINDOWS, WINDOWS[:, 0, :1], str(tmp_path))
    tagged = {**SERIES, "per_step": True, "skip": False, "num_classes": 3}
    rnn.draw(rnn.build_model(tagged), WINDOWS, np.zeros((4, 6), int) - 1, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecast.png", "occlusion.png", "steps.png"]


@pytest.mark.parametrize("name", ["three steps of two variables", "a value at every step"])
def test_draw_when_several_steps_are_forecast_writes_a_picture(name: str, tmp_path: Path) -> None:
    params, x, y, _ = next(case[1:] for case in CASES if case[0] == name)
    rnn.draw(rnn.build_model(params), x, y, str(tmp_path))
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")
