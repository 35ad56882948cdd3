"""The autoencoders of ``models/autoencoder.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models import autoencoder

DENSE: dict[str, Any] = {"input_shape": [6], "hidden": [5], "code": 2}
TABLE = {**DENSE, "standardise": True, "mean": [1.0] * 6, "std": [2.0] * 6}
IMAGES: dict[str, Any] = {
    "architecture": "convolutional",
    "input_shape": [7, 10, 1],
    "filters": 2,
    "code": 3,
}
CASES: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "standardised": TABLE,
    "denoising": {**TABLE, "noise": 0.5, "dropout": 0.1, "weight_decay": 0.1},
    "variational": {**DENSE, "variational": True},
    "labelled": {**TABLE, "labels": True},
    "convolutional": IMAGES,
    "convolutional and variational": {**IMAGES, "variational": True, "noise": 0.1},
}


def rows_of(params: dict[str, Any], num_rows: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((num_rows, *params["input_shape"]), np.float32)


@pytest.mark.parametrize("params", CASES.values(), ids=list(CASES))
def test_model_when_trained_a_step_and_saved_predicts_the_same(
    params: dict[str, Any], tmp_path: Path
) -> None:
    model, x = autoencoder.build_model(params), rows_of(params)
    model.run_eagerly = True
    assert np.all(np.isfinite(model.train_on_batch(x, np.array([0, 1, 0, 1]), sample_weight=np.ones(4))))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert model(x).shape == x.shape
    np.testing.assert_allclose(again(x), model(x), rtol=1e-5, atol=1e-6)
    again.run_eagerly = True
    y = np.array([0, 1, 0, 1])
    assert again.test_on_batch(x, y) == pytest.approx(model.test_on_batch(x, y), rel=1e-4)


@pytest.mark.parametrize("params", CASES.values(), ids=list(CASES))
def test_loss_does_not_depend_on_a_row_of_weight_0(params: dict[str, Any]) -> None:
    model, x = autoencoder.build_model(params), rows_of(params)
    other = x.copy()
    other[2] = 1 - other[2]
    y, weights = np.array([0, 1, 0, 1]), np.array([1.0, 2.0, 0.0, 1.0], np.float32)
    first, second = (
        float(model.compute_loss(rows, y, model(rows), weights, training=False)) for rows in (x, other)
    )
    assert first == pytest.approx(second, rel=1e-6)


def test_variational_loss_when_code_is_normal_has_no_divergence() -> None:
    divergence = autoencoder.DivergenceFromNormal()
    assert float(divergence(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32))) == 0
    # Computed by hand for N(1, e): -1/2 (1 + 1 - 1 - e) = (e - 1) / 2, for each of two numbers.
    ones = np.ones((3, 2), np.float32)
    assert float(divergence(ones, ones)) == pytest.approx(np.e - 1, rel=1e-6)


def test_sample_when_training_has_the_mean_and_deviation_given() -> None:
    keras.utils.set_random_seed(0)
    mean, log_variance = np.full((20_000, 1), 3, np.float32), np.full((20_000, 1), np.log(4), np.float32)
    layer = autoencoder.Sample()
    drawn = layer([mean, log_variance], training=True).numpy()
    assert drawn.mean() == pytest.approx(3, abs=0.05)
    assert drawn.std() == pytest.approx(2, abs=0.05)
    np.testing.assert_array_equal(layer([mean, log_variance], training=False), mean)


def test_score_of_a_row_that_is_unlike_the_others_is_larger() -> None:
    keras.utils.set_random_seed(0)
    numbers = np.random.default_rng(0)
    x = (numbers.normal(size=(200, 1)) * np.arange(1, 7)).astype("float32")  # on a line
    statistics = {"mean": x.mean(axis=0).tolist(), "std": x.std(axis=0).tolist()}
    model = autoencoder.build_model({**TABLE, **statistics, "code": 1, "learning_rate": 0.01})
    model.fit(x, x, epochs=30, verbose=0)
    limit = autoencoder.threshold(model, x, quantile=0.95)
    assert np.mean(autoencoder.score(model, x) > limit) == pytest.approx(0.05, abs=0.011)
    off_the_line = numbers.normal(size=(50, 6)).astype("float32") * 5
    assert np.mean(autoencoder.score(model, off_the_line) > limit) > 0.9


def test_auc_of_the_metric_equals_auc_of_the_scores() -> None:
    numbers = np.random.default_rng(1)
    model, x = autoencoder.build_model({**TABLE, "labels": True}), numbers.normal(size=(300, 6)) * 2
    x, labels = x.astype("float32"), (np.abs(x).mean(axis=1) > 1.7).astype("int64")
    found = model.evaluate(x, labels, verbose=0, return_dict=True)["auc"]
    assert found == pytest.approx(autoencoder.auc_of(autoencoder.score(model, x), labels), abs=0.01)


@pytest.mark.parametrize(
    ("scores", "labels", "expected", "reason"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0, "all anomalies above"),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0, "all below"),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5, "ties count half"),
        ([1, 2, 3, 4], [0, 1, 0, 1], 0.75, "one pair of four is the wrong way round"),
    ],
)
def test_auc_of_when_scores_given_counts_pairs(
    scores: list[int], labels: list[int], expected: float, reason: str
) -> None:
    assert autoencoder.auc_of(np.array(scores), np.array(labels)) == expected, reason


@pytest.mark.parametrize("name", ["dense", "convolutional and variational"])
def test_export_saves_the_encoder_alone(name: str, tmp_path: Path) -> None:
    model, x = autoencoder.build_model(CASES[name]), rows_of(CASES[name])
    autoencoder.export(model, str(tmp_path))
    encoder = keras.models.load_model(tmp_path / "encoder.keras")
    encoded = model.encoder(x)
    expected = encoded[0] if model.is_variational else encoded
    np.testing.assert_allclose(encoder(x), expected, rtol=1e-5, atol=1e-6)


def test_adapt_when_standardised_finds_mean_and_deviation_of_each_value(spark: Any) -> None:
    df = spark.createDataFrame([([1.0, 5.0],), ([3.0, 5.0],)], "measures ARRAY<FLOAT>").repartition(2)
    params = autoencoder.adapt({"standardise": True}, df)
    assert params == {"standardise": True, "mean": [2.0, 5.0], "std": [1.0, 1.0]}
    assert autoencoder.adapt({}, df) == {}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"noize": 1}, "unknown model parameter 'noize': did you mean 'noise'"),
        ({"architecture": "deep"}, "architecture must be one of dense, convolutional"),
        ({**IMAGES, "input_shape": [3, 8, 1]}, "images of at least 4 x 4 pixels"),
        ({**IMAGES, "input_shape": [30]}, "images of at least 4 x 4 pixels"),
        ({**DENSE, "standardise": True}, "a mean and a std for each of the 6 values"),
        ({**DENSE, "hidden": [0]}, "hidden must be a list of whole numbers above 0"),
        ({**DENSE, "noise": -1}, "noise must be a number, 0 or more. Received: noise=-1"),
    ],
)
def test_build_model_when_parameter_wrong_says_what_it_must_be(params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        autoencoder.build_model(params)


def test_draw_writes_the_pictures_that_apply(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "table").mkdir()
    images = rows_of(IMAGES)
    autoencoder.draw(autoencoder.build_model(IMAGES), images, images, str(tmp_path / "images"))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "latent_space.png",
        "reconstructions.png",
    ]
    model = autoencoder.build_model(TABLE)
    autoencoder.draw(model, rows_of(TABLE), np.array([0, 1, 0, 1]), str(tmp_path / "table"))
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["errors.png", "latent_space.png"]
