"""Spark's own tuning over networks: what it leaves behind, and what it does with too few slots."""

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

from tfspark.errors import ReservationError
from tfspark.ml import Dense, DenseClassifier
from tfspark.ml.slots import FITS


@pytest.fixture
def accuracy(spark: Any) -> MulticlassClassificationEvaluator:
    return MulticlassClassificationEvaluator(metricName="accuracy")


@pytest.fixture(scope="module")
def blobs(spark: Any) -> Any:
    """Three clouds in the plane."""
    rng = np.random.default_rng(4)
    rows = [
        (
            Vectors.dense(4 * np.array([np.cos(2 * kind), np.sin(2 * kind)]) + rng.standard_normal(2)),
            float(kind),
        )
        for kind in rng.integers(0, 3, 150).tolist()
    ]
    return spark.createDataFrame(rows, ["x", "label"]).coalesce(1)


def cached(spark: Any) -> int:
    return int(spark.sparkContext._jsc.getPersistentRDDs().size())


# Spark leaves its own thread pool to Python's collector, which warns.
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
    before = cached(spark)
    validator = CrossValidator(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=accuracy, numFolds=2, parallelism=2, seed=1
    )
    model = validator.fit(blobs)
    gc.collect()

    assert model.avgMetrics[1] > 0.9 > model.avgMetrics[0]
    assert model.bestModel.stages[-1].getStepSize() == 0.05
    assert cached(spark) == before
    model.write().overwrite().save(str(tmp_path / "best"))
    loaded = CrossValidatorModel.load(str(tmp_path / "best"))
    assert loaded.transform(blobs).collect() == model.transform(blobs).collect()


def test_fit_when_another_holds_the_slots_is_refused(spark: Any, blobs: Any) -> None:
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
