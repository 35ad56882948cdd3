"""A second model on a running cluster trains as on a new cluster, also when a process is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from cluster.incarnations import Events
from cluster.programs import dense, with_state
from cluster.strikes import Strike, kill
from cluster.trained import BATCH, ROWS
from pyspark.sql import SparkSession
from support.rows import df_with_partitions

from tfspark import Feeding, TFCluster
from tfspark.errors import ConfigError

FIRST, SECOND = {"num_classes": 2}, {"num_classes": 3}


def idle(args: Any, ctx: Any) -> None:
    """Do nothing: a `main_fun`."""


def train(cluster: TFCluster, rows: Any, batch_size: int = BATCH) -> dict[str, list[float]]:
    feeding = Feeding(ordered=True, shuffle_rows=2 * batch_size)
    return cluster.train(
        rows, 2, features=["features"], batch_size=batch_size, feeding=feeding, validation=rows.limit(50)
    )


def second_of_two(spark: SparkSession, folder: Path, observer: Events) -> tuple[Any, ...]:
    """Train a model, then a second one; return the results of the second."""
    rows = df_with_partitions(spark, ROWS)
    with TFCluster.run(
        spark,
        with_state,
        FIRST,
        2,
        log_dir=str(folder),
        observer=observer,
        checkpoint_every_steps=3,
    ) as cluster:
        train(cluster, rows)
        first = cluster.export("keras")
        assert keras.saving.load_model(folder / "export" / "model.keras").layers[-1].units == 2
        cluster.begin_anew(SECOND, seed=7, learning_rate=0.02, optimizer={"name": "adam"})
        history = train(cluster, rows, 32)
        metrics = cluster.evaluate(rows)
        nodes = cluster.shutdown(export=["keras"])
    model = keras.saving.load_model(folder / "export" / "model.keras")
    assert model.layers[-1].units == 3
    assert first["worker 0"]["weights_sha256"] == first["worker 1"]["weights_sha256"]
    return history, metrics, [nodes[name] for name in ("worker 0", "worker 1")]


@pytest.fixture(scope="module")
def alone(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Train the second model on a new cluster."""
    rows = df_with_partitions(spark, ROWS)
    settings: dict[str, Any] = {"seed": 7, "learning_rate": 0.02, "optimizer": {"name": "adam"}}
    folder = tmp_path_factory.mktemp("alone")
    with TFCluster.run(spark, with_state, SECOND, 2, log_dir=str(folder), **settings) as cluster:
        history = train(cluster, rows, 32)
        metrics = cluster.evaluate(rows)
        nodes = cluster.shutdown()
    return history, metrics, [nodes[name] for name in ("worker 0", "worker 1")]


def assert_alike(found: Any, expected: Any) -> None:
    """Compare results. Floats are almost equal, because an evaluation adds up rows in order of arrival."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5)
    else:
        assert found == expected


def test_second_model_on_a_cluster_trains_as_on_a_new_cluster(
    spark: SparkSession, alone: tuple[Any, ...], tmp_path: Path
) -> None:
    events = Events()
    assert_alike(second_of_two(spark, tmp_path, events), alone)
    assert len(events.of("reserved")) == 1


def test_second_model_on_a_cluster_trains_the_same_when_a_process_is_lost(
    spark: SparkSession, alone: tuple[Any, ...], tmp_path: Path
) -> None:
    observer = Strike(kill(), "fed", stream="train@1")
    assert_alike(second_of_two(spark, tmp_path, observer), alone)
    assert len(observer.of("reserved")) == 2


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (idle, {}, "a main_fun, parameter servers or an evaluator"),
        (dense, {"layers": object()}, "tf_args: .* give plain values"),
    ],
    ids=["a main_fun", "an argument that JSON cannot hold"],
)
def test_begin_anew_when_it_is_impossible_is_refused(
    spark: SparkSession,
    function: Callable[..., Any],
    arguments: dict[str, Any],
    expected: str,
) -> None:
    cluster = TFCluster.run(spark, function, {}, 1)
    try:
        with pytest.raises(ConfigError, match=expected):
            cluster.begin_anew(arguments)
    finally:
        cluster.stop()
