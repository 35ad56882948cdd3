"""`KerasEstimator` and `KerasModel` work like those of Spark ML: Params, fit, transform, save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors
from support.driver import run_driver

from tfspark.errors import ConfigError, DataError
from tfspark.ml import DenseClassifier, KerasEstimator, KerasModel


def flowers(params: dict[str, Any]) -> Any:
    """Return a model that predicts one of three classes from four numbers."""
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.BatchNormalization(momentum=0.8),
            layers.Dense(params["units"], "relu"),
            layers.Dense(3, "softmax"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.05),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="weighted")],
    )
    return model


@pytest.fixture(scope="module")
def iris(spark: Any) -> Any:
    """150 rows: four numbers near the mean of one of Fisher's three species, and the name of the species."""
    kinds = {
        "setosa": [5.01, 3.43, 1.46, 0.25],
        "versicolor": [5.94, 2.77, 4.26, 1.33],
        "virginica": [6.59, 2.97, 5.55, 2.03],
    }
    rng = np.random.default_rng(0)
    rows = []
    for index in range(150):
        kind = list(kinds)[index % 3]
        numbers = (np.array(kinds[kind]) + 0.25 * rng.standard_normal(4)).tolist()
        rows.append((*numbers, kind, index % 5 == 0, 1.0 + index % 2))
    names = "a double, b double, c double, d double, kind string, held boolean, weight double"
    return spark.createDataFrame(rows, names).coalesce(2).cache()


@pytest.fixture(scope="module")
def fitted(iris: Any) -> PipelineModel:
    assembler = VectorAssembler(inputCols=["a", "b", "c", "d"], outputCol="features")
    estimator = KerasEstimator(
        build_model=flowers,
        modelParams={"units": 16},
        labelCol="kind",
        weightCol="weight",
        validationIndicatorCol="held",
        numWorkers=2,
        maxIter=15,
        batchSize=16,
        stepSize=0.05,
        seed=3,
    )
    return Pipeline(stages=[assembler, estimator]).fit(iris)


def test_fitted_model_predicts_names_of_classes_and_has_a_summary(fitted: PipelineModel, iris: Any) -> None:
    model = fitted.stages[-1]
    assert model.classes == ["setosa", "versicolor", "virginica"]
    assert model.numClasses == 3
    assert model.summary.totalIterations == 15
    assert {"loss", "accuracy", "val_accuracy", "weighted"} <= set(model.summary.history)
    # The loss of batches of eight rows is noisy: in some runs that of the last epoch is above that of the first.
    assert min(model.summary.objectiveHistory) < model.summary.objectiveHistory[0]
    assert 0 < model.summary.startSeconds < model.summary.seconds
    assert "<svg" in model._repr_html_()

    made = fitted.transform(iris)
    assert made.columns == [*iris.columns, "features", "prediction", "probability", "rawPrediction"]
    rows = made.collect()
    assert [row["a"] for row in rows] == [row["a"] for row in iris.collect()]
    assert sum(row["prediction"] == row["kind"] for row in rows) > 135
    chances = np.array([row["probability"].toArray() for row in rows])
    raw = np.exp([row["rawPrediction"].toArray() for row in rows])
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(raw / raw.sum(axis=1, keepdims=True), chances, atol=1e-6)


def test_pipeline_when_saved_predicts_exactly_the_same_in_another_process(
    fitted: PipelineModel, iris: Any, tmp_path: Path
) -> None:
    place = str(tmp_path / "pipeline")
    fitted.write().overwrite().save(place)
    fitted.write().overwrite().save(place)
    assert (next(Path(place, "stages").glob("1_*")) / "model.keras").is_file()
    iris.write.parquet(str(tmp_path / "rows"))
    code = """
    import sys
    from pyspark.ml import PipelineModel
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    model = PipelineModel.load(sys.argv[1])
    rows = spark.read.parquet(sys.argv[2]).coalesce(1).sort("a", "b", "c", "d")
    print(model.transform(rows).selectExpr(sys.argv[3]).first()[0])
    print(model.stages[-1].summary.totalIterations)
    spark.stop()
    """
    parquet = str(tmp_path / "rows")
    digest = "sha2(to_json(collect_list(struct(probability, prediction))), 256)"
    there = run_driver("local[2]", code, place, parquet, digest, timeout_s=300).check().stdout.split()

    read = iris.sparkSession.read.parquet(parquet).coalesce(1).sort("a", "b", "c", "d")
    here = fitted.transform(read).selectExpr(digest).first()[0]
    assert there[-2:] == [here, "15"]


def test_estimator_when_saved_and_copied_keeps_its_params_and_code(spark: Any, tmp_path: Path) -> None:
    estimator = KerasEstimator(build_model=flowers, inputCol="x", maxIter=3, modelParams={"units": 2})
    changed = estimator.copy({estimator.maxIter: 5, estimator.modelParams: {"units": 4}})
    assert (estimator.getMaxIter(), changed.getMaxIter(), changed.getFeaturesCol()) == (3, 5, "x")
    assert changed.getModelBuilder() is flowers

    changed.write().overwrite().save(str(tmp_path / "estimator"))
    loaded = KerasEstimator.load(str(tmp_path / "estimator"))
    assert loaded.uid == changed.uid
    assert loaded.getModelParams() == {"units": 4}
    assert loaded.getModelBuilder().__name__ == "flowers"
    with pytest.raises(ConfigError, match="expected a KerasModel at"):
        KerasModel.load(str(tmp_path / "estimator"))


def test_model_of_a_newer_version_is_refused(spark: Any, fitted: PipelineModel, tmp_path: Path) -> None:
    fitted.stages[-1].save(str(tmp_path / "model"))
    metadata = spark.read.text(str(tmp_path / "model" / "metadata")).first()[0]
    newer = metadata.replace('"tfsparkFormat":1', '"tfsparkFormat":7')
    spark.createDataFrame([(newer,)], ["value"]).coalesce(1).write.mode("overwrite").text(
        str(tmp_path / "model" / "metadata")
    )
    with pytest.raises(ConfigError, match="has format 7: a newer tfspark has saved it"):
        KerasModel.load(str(tmp_path / "model"))


def test_params_when_explained_or_set_wrong_say_what_they_expect() -> None:
    estimator = KerasEstimator(build_model=flowers)
    explained = estimator.explainParams()
    assert "maxIter: epochs: passes over the rows, 1 or more (default: 10)" in explained
    assert estimator.setBlockSize(64).getBatchSize() == 64
    assert estimator.setInputCol("v").getFeaturesCol() == "v"
    for params, words in [
        ({"maxIter": 0}, "Param maxIter of KerasEstimator: expected a whole number, 1 or more, got 0"),
        ({"stepSize": -1}, "Param stepSize of KerasEstimator: expected a number above 0, got -1"),
        ({"handleInvalid": "keeep"}, "did you mean 'keep'"),
        ({"maxIters": 3}, "got 'maxIters'; did you mean 'maxIter'"),
        ({"inputCol": "a", "featuresCol": "b"}, "expected featuresCol once"),
        ({"classes": ["a", "a"]}, "at least 2 different texts"),
        ({"modelBuilder": 3}, "expected a function build_model"),
    ]:
        with pytest.raises(ConfigError, match=words):
            KerasEstimator(**params)
    with pytest.raises(ConfigError, match="expected modelBuilder, got none"):
        KerasEstimator()._plan(None)


def test_fit_when_rows_are_not_as_declared_says_so_before_it_starts(spark: Any) -> None:
    df = spark.createDataFrame([(Vectors.dense([1.0, 2.0]), "x", 0.5)], ["features", "kind", "half"])
    estimator = KerasEstimator(build_model=flowers, modelParams={"units": 2}, labelCol="kind")
    for params, error, words in [
        ({"featuresCol": "featurs"}, ConfigError, "did you mean 'features'"),
        ({}, DataError, "expected 2 to 10,000 different labels in column 'kind', found \\['x'\\]"),
        ({"labelCol": "half", "validationIndicatorCol": "kind"}, ConfigError, "expected true and false"),
        ({"numWorkers": 3, "batchSize": 32}, ConfigError, "set it to 33"),
        ({"labelCol": "half", "inputShape": [3]}, ConfigError, "for inputShape=\\[3\\]"),
    ]:
        with pytest.raises(error, match=words):
            estimator.copy().setParams(**params).fit(df)
    wide = spark.createDataFrame([(Vectors.sparse(262_144, {3: 1.0}), 1.0)], ["features", "half"])
    with pytest.raises(ConfigError, match="expected vectors of at most 65,536 dimensions"):
        estimator.copy().setLabelCol("half").fit(wide)


def houses(params: dict[str, Any]) -> Any:
    """Return a model with two named inputs."""
    import keras

    size, place = keras.Input((1,), name="size"), keras.Input((2,), name="place")
    both = keras.layers.Concatenate()([size, place])
    model = keras.Model({"size": size, "place": place}, keras.layers.Dense(1)(both))
    model.compile(keras.optimizers.Adam(params["rate"]), "mse")
    return model


def test_several_columns_feed_the_inputs_of_the_same_names(spark: Any, tmp_path: Path) -> None:
    rows = [
        (float(i % 7), [float(i % 3), float(i % 5)], 2.0 * (i % 7) - (i % 3) + (i % 5)) for i in range(210)
    ]
    df = spark.createDataFrame(rows, "size double, place array<float>, price double").coalesce(1)
    estimator = KerasEstimator(
        build_model=houses,
        modelParams={"rate": 0.05},
        inputCols=["size", "place"],
        labelCol="price",
        maxIter=30,
        batchSize=30,
    )
    model = estimator.fit(df)
    made = model.transform(df)
    assert made.columns == ["size", "place", "price", "prediction"]
    assert max(abs(row["price"] - row["prediction"]) for row in made.collect()) < 0.5
    model.write().overwrite().save(str(tmp_path / "model"))
    assert KerasModel.load(str(tmp_path / "model")).transform(df).collect() == made.collect()
    with pytest.raises(ConfigError, match="expected the features column 'place'"):
        model.transform(df.drop("place"))


def test_same_seed_and_rows_give_the_same_model_for_any_number_of_workers(iris: Any) -> None:
    network = DenseClassifier(
        inputCols=["a", "b", "c", "d"],
        labelCol="kind",
        maxIter=3,
        batchSize=16,
        seed=3,
        standardization=False,
    )
    rows = iris.repartition(7, "a", "b").persist()
    counted = rows.count()
    first, again, alone, other = (
        network.copy({network.numWorkers: workers, network.seed: seed}).fit(rows)
        for workers, seed in ((2, 3), (2, 3), (1, 3), (2, 4))
    )
    rows.unpersist()
    assert counted == 150
    assert again.summary.history == first.summary.history != other.summary.history
    for mine, same, single in zip(*(m.keras().get_weights() for m in (first, again, alone)), strict=True):
        np.testing.assert_array_equal(mine, same)
        np.testing.assert_allclose(mine, single, rtol=1e-4, atol=1e-5)


def test_dense_classifier_takes_columns_of_numbers_and_keeps_rows_with_nulls(
    iris: Any, tmp_path: Path
) -> None:
    names = ["a", "b", "c", "d"]
    network = DenseClassifier(inputCols=names, labelCol="kind", maxIter=12, batchSize=15, stepSize=0.02)
    model = network.fit(iris)
    holey = iris.selectExpr("a", "if(held, null, b) AS b", "c", "d", "kind")
    made = model.transform(iris)
    assert made.columns == [*iris.columns, "prediction", "probability", "rawPrediction"]
    assert made.where("prediction = kind").count() > 135
    kept = model.copy({model.handleInvalid: "keep"}).transform(holey)
    assert kept.where("prediction IS NULL").count() == holey.where("b IS NULL").count() == 30
    model.write().overwrite().save(str(tmp_path / "model"))
    assert KerasModel.load(str(tmp_path / "model")).transform(iris).collect() == made.collect()
    with pytest.raises(ConfigError, match="expected either inputCols or featuresCol"):
        network.copy().setFeaturesCol("x")
    with pytest.raises(ConfigError, match="column 'kind' is string"):
        DenseClassifier(inputCols=["a", "kind"], labelCol="kind").fit(iris)
