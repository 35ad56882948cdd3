"""Spark's own tuning with networks: it leaves nothing behind, and says so if there are too few slots."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import OneVsRest
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import StandardScaler
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder
from support.processes import poll_until

from tfspark.cluster.tfcluster import TFCluster
from tfspark.errors import ConfigError, ReservationError
from tfspark.ml import Dense, DenseClassifier
from tfspark.ml.slots import FITS


@pytest.fixture
def accuracy(spark: Any) -> MulticlassClassificationEvaluator:
    return MulticlassClassificationEvaluator(metricName="accuracy")


@pytest.fixture(scope="module")
def blobs(spark: Any) -> Any:
    """Points in the plane, in three groups."""
    rng = np.random.default_rng(4)
    rows = [
        (
            Vectors.dense(4 * np.array([np.cos(2 * kind), np.sin(2 * kind)]) + rng.standard_normal(2)),
            float(kind),
        )
        for kind in rng.integers(0, 3, 150).tolist()
    ]
    return spark.createDataFrame(rows, ["x", "label"]).coalesce(1)


def num_cached_rdds(spark: Any) -> int:
    return int(spark.sparkContext._jsc.getPersistentRDDs().size())


# Spark does not close its thread pool. Python's garbage collector does, with a warning.
@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_cross_validator_over_a_pipeline_finds_the_better_network_and_leaves_nothing(
    spark: Any, blobs: Any, accuracy: Any, tmp_path: Path
) -> None:
    network = DenseClassifier(maxIter=3, batchSize=16, stepSize=0.05)
    pipeline = Pipeline(stages=[StandardScaler(inputCol="x", outputCol="features"), network])
    grid = (
        ParamGridBuilder()
        .addGrid(network.layers, [[Dense(16, "relu")]])
        .addGrid(network.stepSize, [1e-6, 0.05])
        .build()
    )
    before = num_cached_rdds(spark)
    validator = CrossValidator(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=accuracy, numFolds=2, parallelism=2, seed=1
    )
    model = validator.fit(blobs)
    gc.collect()

    assert model.avgMetrics[1] > 0.9 > model.avgMetrics[0]
    assert model.bestModel.stages[-1].getStepSize() == 0.05
    assert num_cached_rdds(spark) == before
    model.write().overwrite().save(str(tmp_path / "best"))
    loaded = CrossValidatorModel.load(str(tmp_path / "best"))
    assert loaded.transform(blobs).collect() == model.transform(blobs).collect()


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with the number of nodes of each cluster that was started."""
    started: list[int] = []
    run = TFCluster.run

    def counted(*arguments: Any, **settings: Any) -> TFCluster:
        started.append(settings["num_executors"])
        return run(*arguments, **settings)

    monkeypatch.setattr(TFCluster, "run", counted)
    return started


def weights(model: Any) -> list[Any]:
    return [array.tolist() for array in model.keras().get_weights()]


def test_settings_of_a_grid_train_on_one_cluster_with_the_same_result_as_alone(
    spark: Any, blobs: Any, clusters: list[int]
) -> None:
    network = DenseClassifier(featuresCol="x", maxIter=2, batchSize=16, seed=3)
    split = blobs.withColumn("held", blobs["label"] == 2.0)
    held = {network.validationIndicatorCol: "held"}
    grid: list[dict[Any, Any]] = [
        {network.stepSize: 0.05},
        {network.layers: [Dense(8, "relu"), Dense(4)], network.maxIter: 3, network.optimizer: "sgd"},
        {network.seed: 4, network.regParam: 0.01, network.batchSize: 30},
        {network.stepSize: 0.05},
    ]
    found = dict(network.copy(held).fitMultiple(split, grid))
    assert sorted(found) == [0, 1, 2, 3]
    assert clusters == [1]
    assert weights(found[0]) == weights(found[3]) != weights(found[2])
    assert [found[place].summary.totalIterations for place in range(4)] == [2, 3, 2, 2]
    assert {"loss", "val_loss"} <= set(found[3].summary.history)
    for place in (1, 2, 3):
        alone = network.copy({**held, **grid[place]}).fit(split)
        assert weights(alone) == weights(found[place])
        assert alone.summary.history == found[place].summary.history
    assert clusters == [1, 1, 1, 1]
    assert FITS.held(spark) == 0


def test_settings_that_need_a_different_number_of_nodes_get_a_new_cluster(
    spark: Any, blobs: Any, clusters: list[int]
) -> None:
    network = DenseClassifier(featuresCol="x", maxIter=1, batchSize=16)
    models = network.fitMultiple(blobs, [{network.numWorkers: 1}, {network.numWorkers: 2}])
    assert [place for place, _ in models] == [0, 1]
    assert clusters == [1, 2]
    assert FITS.held(spark) == 0


def test_iterator_of_models_that_is_dropped_early_leaves_no_cluster(
    spark: Any, blobs: Any, clusters: list[int]
) -> None:
    network = DenseClassifier(featuresCol="x", maxIter=1, batchSize=16)
    models = network.fitMultiple(blobs, [{}, {}, {}])
    assert next(models)[0] == 0
    assert FITS.held(spark) == 1
    del models
    gc.collect()
    assert FITS.held(spark) == 0
    assert clusters == [1]


def test_fit_that_fails_leaves_no_cluster(spark: Any, blobs: Any) -> None:
    network = DenseClassifier(featuresCol="x", maxIter=1, batchSize=16)
    models = network.fitMultiple(blobs, [{}, {network.labelCol: "lable"}, {}])
    next(models)
    with pytest.raises(ConfigError, match="label"):
        next(models)
    assert FITS.held(spark) == 0
    assert next(models)[0] == 2
    assert FITS.held(spark) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_cross_validator_of_three_folds_and_four_settings_leaves_nothing(
    spark: Any, blobs: Any, accuracy: Any, clusters: list[int]
) -> None:
    network = DenseClassifier(featuresCol="x", maxIter=2, batchSize=16, numWorkers=2)
    grid = (
        ParamGridBuilder()
        .addGrid(network.stepSize, [1e-6, 0.05])
        .addGrid(network.regParam, [0.0, 0.01])
        .build()
    )
    before = num_cached_rdds(spark)
    model = CrossValidator(
        estimator=network, estimatorParamMaps=grid, evaluator=accuracy, numFolds=3, seed=1
    ).fit(blobs)
    gc.collect()
    assert model.bestModel.getStepSize() == 0.05
    assert num_cached_rdds(spark) == before
    assert FITS.held(spark) == 0
    assert clusters == [2, 2, 2, 2]  # One for each fold, and one for the best setting.


def test_fit_when_another_fit_holds_the_slots_is_refused(spark: Any, blobs: Any) -> None:
    network = DenseClassifier(featuresCol="x", maxIter=2, batchSize=16, numWorkers=2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(network.fit, blobs)
        assert poll_until(lambda: FITS.held(spark) == 2, 60)
        with pytest.raises(ReservationError, match=r"expected 3 free task slots .* lower parallelism"):
            network.fit(blobs)
        assert first.result(300).summary.totalIterations == 2
    assert FITS.held(spark) == 0


@pytest.mark.slow
def test_one_vs_rest_trains_a_network_for_each_class(blobs: Any, accuracy: Any) -> None:
    network = DenseClassifier(
        featuresCol="x", layers=[Dense(8, "relu")], maxIter=3, batchSize=16, stepSize=0.05
    )
    model = OneVsRest(classifier=network, featuresCol="x").fit(blobs)
    assert len(model.models) == 3
    assert accuracy.evaluate(model.transform(blobs)) > 0.9
