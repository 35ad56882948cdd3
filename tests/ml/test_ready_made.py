"""Ready-made estimators on real clusters: they learn, predict like Spark's own, and can be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    ClusteringEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import IDF, PCA, HashingTF, Tokenizer
from pyspark.ml.linalg import Vectors

from tfspark.errors import ConfigError, DataError
from tfspark.ml import (
    CNN,
    GAN,
    RNN,
    Autoencoder,
    CNNClassifier,
    Dense,
    DenseClassifier,
    DenseRegressor,
    ImageFeature,
    KerasModel,
    RNNClassifier,
    RNNRegressor,
)

TRAINING = {"maxIter": 8, "batchSize": 16, "stepSize": 0.02}


@pytest.fixture(scope="module")
def squares(spark: Any) -> Any:
    """Vectors of 64 pixels from 0 to 16: a bright square above (class 0), below (1) or nowhere (2)."""
    rng = np.random.default_rng(1)
    rows = []
    for index in range(120):
        image = rng.uniform(0, 4, (8, 8))
        kind = index % 3
        if kind < 2:
            image[4 * kind + 1 : 4 * kind + 3, 2:6] += 12
        rows.append((Vectors.dense(image.reshape(-1)), float(kind)))
    return spark.createDataFrame(rows, ["features", "label"]).coalesce(1).cache()


@pytest.fixture(scope="module")
def reviews(spark: Any) -> Any:
    """Short texts of two classes. Each text contains one of the three words that mark its class."""
    rng = np.random.default_rng(2)
    words = [["good", "fine", "lovely"], ["bad", "awful", "poor"]]
    rows = []
    for index in range(120):
        filler = [f"w{number}" for number in rng.integers(0, 30, 5)]
        text = " ".join([*filler[:3], str(rng.choice(words[index % 2])).title() + "!", *filler[3:]])
        rows.append((text, float(index % 2)))
    return spark.createDataFrame(rows, ["text", "label"]).coalesce(1).cache()


def round_trip(model: KerasModel, df: Any, place: Path) -> None:
    """Save and load a model. The loaded model must predict exactly the same."""
    model.write().overwrite().save(str(place))
    loaded = type(model).load(str(place))
    assert loaded.explainParams() == model.explainParams()
    assert loaded.transform(df).collect() == model.transform(df).collect()


def test_cnn_written_as_in_the_tutorials_classifies_images(squares: Any, tmp_path: Path) -> None:
    images = ImageFeature(inputCol="features", outputCol="raw_image", numPixels=64)
    assert np.array(images.transform(squares).first()["raw_image"]).shape == (8, 8, 1)
    cnn = CNN(
        layers=[
            CNN.Convolution(4, kernelSize=3, activation="relu"),
            CNN.MaxPooling(kernelSize=2, strides=2),
            CNN.Dense(3, activation="softmax"),
        ],
        inputCol="raw_image",
        outputCol="prediction",
        rawPrediction=False,
        **TRAINING,
    )
    pipeline = Pipeline(stages=[images, cnn]).fit(squares)

    made = pipeline.transform(squares)
    assert "rawPrediction" not in made.columns
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(made) > 0.9
    model = pipeline.stages[-1]
    metrics = model.evaluate(images.transform(squares))
    assert metrics["accuracy"] == pytest.approx(
        MulticlassClassificationEvaluator(metricName="accuracy").evaluate(made)
    )
    assert np.sum(metrics["confusion_matrix"]) == 120
    round_trip(model, images.transform(squares), tmp_path / "cnn")


@pytest.mark.slow
def test_cnn_classifier_without_layers_takes_vectors_as_square_images(squares: Any, tmp_path: Path) -> None:
    model = CNNClassifier(modelParams={"filters": 4, "dropout": 0.0}, **TRAINING).fit(squares)
    made = model.transform(squares)
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(made) > 0.9
    assert made.schema["prediction"].dataType.simpleString() == "double"
    round_trip(model, squares, tmp_path / "cnn")
    with pytest.raises(ConfigError, match=r"set inputShape=\[height, width, channels\]"):
        CNNClassifier().fit(squares.limit(1).selectExpr("array(1d, 2d, 3d) AS features", "label"))


def test_terms_of_262144_dimensions_are_read_sparse_by_dense_and_recurrent_networks(
    reviews: Any, tmp_path: Path
) -> None:
    terms = Pipeline(
        stages=[
            Tokenizer(inputCol="text", outputCol="words"),
            HashingTF(inputCol="words", outputCol="counts"),
            IDF(inputCol="counts", outputCol="features"),
        ]
    )
    rows = terms.fit(reviews).transform(reviews).cache()
    assert rows.first()["features"].size == 262_144
    dense = DenseClassifier(layers=[Dense(4, "relu"), Dense(1, "sigmoid")], **TRAINING).fit(rows)
    made = dense.transform(rows)
    assert BinaryClassificationEvaluator().evaluate(made) > 0.95
    assert made.first()["probability"].size == 2
    round_trip(dense, rows, tmp_path / "dense")

    recurrent = RNN(
        layers=[RNN.LSTM(8), RNN.Dense(1, activation="sigmoid")],
        embeddingSize=4,
        **{**TRAINING, "maxIter": 4},
    )
    model = recurrent.fit(rows)
    assert model.summary.metrics["loss"] < 0.7
    assert model.transform(rows).count() == 120
    rows.unpersist()


@pytest.mark.slow
def test_rnn_classifier_reads_raw_text_and_words(reviews: Any, tmp_path: Path) -> None:
    model = RNNClassifier(
        inputCol="text", modelParams={"units": 8, "dropout": 0.0}, embeddingSize=8, textLength=8, **TRAINING
    ).fit(reviews)
    assert BinaryClassificationEvaluator().evaluate(model.transform(reviews)) > 0.95
    round_trip(model, reviews, tmp_path / "rnn")
    words = Tokenizer(inputCol="text", outputCol="words").transform(reviews)
    of_words = RNN(inputCol="words", layers=[RNN.GRU(8)], embeddingSize=8, **{**TRAINING, "maxIter": 2}).fit(
        words
    )
    made = of_words.transform(words)
    assert made.columns == ["text", "label", "words", "prediction", "probability", "rawPrediction"]
    assert of_words.transform(words.limit(0)).count() == 0


def test_dense_regressor_learns_large_numbers(spark: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    numbers = rng.uniform(-1, 1, (200, 2))
    rows = [(Vectors.dense(pair), float(1000 + 300 * pair[0] - 200 * pair[1])) for pair in numbers]
    df = spark.createDataFrame(rows, ["features", "label"]).coalesce(1).cache()
    model = DenseRegressor(layers=[Dense(16, "relu")], **{**TRAINING, "maxIter": 20}).fit(df)
    assert RegressionEvaluator(metricName="r2").evaluate(model.transform(df)) > 0.95
    assert model.evaluate(df)["rmse"] == pytest.approx(
        RegressionEvaluator(metricName="rmse").evaluate(model.transform(df)), rel=1e-4
    )
    round_trip(model, df, tmp_path / "regressor")


def test_rnn_regressor_cuts_its_windows_and_keeps_every_row(spark: Any, tmp_path: Path) -> None:
    rows = [
        (name, step, float(50 + 20 * np.sin(step / 3 + shift)))
        for name, shift in (("a", 0.0), ("b", 1.0))
        for step in range(80)
    ]
    df = spark.createDataFrame(rows, "name string, step int, value double").coalesce(1).cache()
    forecaster = RNNRegressor(
        orderCol="step",
        groupCols=["name"],
        labelCol="value",
        steps=6,
        horizon=2,
        modelParams={"units": 8},
        **TRAINING,
    )
    model = forecaster.fit(df)
    made = model.transform(df).collect()
    assert len(made) == 160
    assert [row["prediction"] is None for row in made if row["name"] == "a"][:7] == [True] * 5 + [False] * 2
    ahead = {(row["name"], row["step"]): row["value"] for row in made}
    errors = [
        row["prediction"][0] - ahead[row["name"], row["step"] + 1]
        for row in made
        if row["prediction"] is not None and row["step"] < 79
    ]
    assert np.sqrt(np.mean(np.square(errors))) < 10
    round_trip(model, df, tmp_path / "forecast")
    assert model.copy().setHandleInvalid("skip").transform(df).count() == 150
    with pytest.raises(ConfigError, match="expected orderCol together with steps"):
        RNNRegressor(steps=3)


def test_autoencoder_after_pca_gives_codes_that_kmeans_can_cluster(squares: Any, tmp_path: Path) -> None:
    reduced = PCA(k=6, inputCol="features", outputCol="pca").fit(squares).transform(squares).cache()
    model = Autoencoder(
        inputCol="pca", layers=[Dense(8, "relu"), Dense(2)], **{**TRAINING, "maxIter": 15}
    ).fit(reduced)
    made = model.transform(reduced)
    first = made.first()
    assert (first["code"].size, first["reconstruction"].size) == (2, 6)
    assert made.selectExpr("avg(error)").first()[0] < 1
    clusters = KMeans(k=3, featuresCol="code", predictionCol="cluster", seed=1).fit(made).transform(made)
    assert ClusteringEvaluator(featuresCol="code", predictionCol="cluster").evaluate(clusters) > 0.3
    round_trip(model, reduced, tmp_path / "autoencoder")
    reduced.unpersist()
    with pytest.raises(ConfigError, match="expected either layers or codeSize"):
        Autoencoder(layers=[Dense(2)], codeSize=3)


def test_gan_makes_the_same_images_from_the_same_seed(squares: Any, tmp_path: Path) -> None:
    model = GAN(labelCol="label", modelParams={"filters": 4, "latent": 4}, maxIter=1, batchSize=16).fit(
        squares
    )
    rows = model.sample(5, seed=3).collect()
    assert [row["label"] for row in rows] == [0.0, 1.0, 2.0, 0.0, 1.0]
    images = np.array([row["image"] for row in rows])
    assert images.shape == (5, 8, 8, 1)
    assert 1 < images.max() <= 17  # in the units of the rows
    model.save(str(tmp_path / "gan"))
    again = type(model).load(str(tmp_path / "gan")).sample(5, seed=3).collect()
    assert again == rows


def test_layers_and_params_that_do_not_fit_are_refused_when_set(squares: Any) -> None:
    for make, words in [
        (lambda: CNN.MaxPooling(kernel=2), "expected an argument of MaxPooling, got 'kernel'"),
        (lambda: Dense(), "expected units in Dense"),
        (
            lambda: DenseClassifier(layers=[Dense(3, "softmax")], classes=["a", "b"]),
            "a last layer for 2 classes",
        ),
        (lambda: DenseClassifier(layers=["Dense"]), "expected a layer such as Dense"),
        (
            lambda: CNNClassifier(layers=[Dense(3)], architecture="lenet"),
            "expected either layers or architecture",
        ),
        (lambda: ImageFeature(numPixels=10), "which is no square"),
        (lambda: DenseClassifier(regParam=-1), "expected a number from 0, got -1"),
    ]:
        with pytest.raises((ConfigError, ValueError), match=words):
            make()
    five = DenseClassifier(layers=[Dense(5, "softmax")])
    with pytest.raises(ConfigError, match="expected a last layer for 3 classes"):
        five.fit(squares)
    broken = squares.selectExpr("features", "label - 0.5 AS label")
    with pytest.raises(
        DataError, match=r"expected labels 0, 1, ..., k-1 in column 'label', got values from -0.5 to 1.5"
    ):
        DenseClassifier().fit(broken)
