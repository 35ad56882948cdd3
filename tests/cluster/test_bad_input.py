"""A wrong row, setting or function is reported in one clear error, and nothing stays behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.incarnations import Events
from cluster.programs import dense, fit_as_users_do, no_model, say, uncompiled
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from support.driver import run_driver
from support.environment import python_path
from support.errors import raises
from support.rows import df_with_partitions

from tfspark import InputMode, TFCluster
from tfspark.errors import ConfigError, DataError, NodeFailedError, ReservationError, TfsparkError
from tfspark.node.task import installed_versions
from tfspark.protocol.settings import Hooks

RAISED_S = 5.0
"""Seconds from an exception in the user's code to the error on the driver, as the project promises."""
SLACK_S = 3.0
"""Additional seconds for a loaded machine."""


# --- refused before anything starts ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        pytest.param(
            {"num_executors": 2, "num_ps": 2},
            ["num_ps=2", "leaves 0", "set num_executors to 3 or more"],
            id="parameter servers only",
        ),
        pytest.param(
            {"num_executors": 1, "eval_node": True}, ["at least one worker", "2 or more"], id="no worker left"
        ),
        pytest.param(
            {"num_executors": 2, "eval_node": True}, ["expected log_dir"], id="an evaluator without log_dir"
        ),
        pytest.param({"hooks": Hooks(draw_epoch=print)}, ["expected log_dir"], id="pictures without log_dir"),
    ],
)
def test_run_when_arguments_disagree_says_which(
    spark: SparkSession, arguments: dict[str, Any], parts: list[str]
) -> None:
    with raises(ConfigError, *parts):
        TFCluster.run(spark, dense, **{"tf_args": {}, **arguments})


def test_run_when_the_function_takes_three_arguments_says_what_it_may_take(spark: SparkSession) -> None:
    with raises(ConfigError, "main_fun(args, ctx)", "build_model(params)", "(args, ctx, extra)"):
        TFCluster.run(spark, lambda args, ctx, extra: None)


def test_run_when_arguments_cannot_be_pickled_says_so(spark: SparkSession) -> None:
    with raises(ConfigError, "can be pickled", "inside the function"):
        TFCluster.run(spark, dense, {"session": spark})


def test_run_when_slots_are_too_few_says_so_within_seconds(spark: SparkSession) -> None:
    began = time.monotonic()
    with raises(ReservationError, "expected 5 task slots", "Spark has 4", "local[5]", "lower num_executors"):
        TFCluster.run(spark, dense, {}, 4)
    assert time.monotonic() - began < RAISED_S + SLACK_S


def test_run_when_allocation_is_dynamic_is_refused() -> None:
    said = error_of_run("local[4]", {"spark.dynamicAllocation.enabled": "true"})
    assert said.startswith("ConfigError expected spark.dynamicAllocation.enabled=false, it is true")
    assert "set it to false" in said


# --- refused by train(), while the cluster runs ----------------------------------------------------


def test_train_when_arguments_are_wrong_says_so_and_the_cluster_still_runs(spark: SparkSession) -> None:
    rows = df_with_partitions(spark, [8])
    with TFCluster.run(spark, say, "hello", 2) as cluster:
        with raises(ConfigError, "expected a column 'feature'", "did you mean 'features'?"):
            cluster.train(rows, features=["feature"])
        with raises(ConfigError, "expected a column 'lable'", "did you mean 'label'?"):
            cluster.train(rows, features=["features"], label="lable")
        with raises(ConfigError, "divides among 2 workers, got 33", "use 32 or 34"):
            cluster.train(rows, batch_size=33)
        with raises(ConfigError, "num_epochs >= 1, got 0"):
            cluster.train(rows, 0)
        with raises(ConfigError, "expected a Spark DataFrame or an RDD", "got list"):
            cluster.train([1, 2])  # type: ignore[arg-type]
        with raises(ConfigError, "build_model and trained before evaluate()"):
            cluster.evaluate(rows)
        with raises(ConfigError, "expected no export with a main_fun", "ctx.export(model)"):
            cluster.shutdown(export=["keras"])
        assert cluster.shutdown()["worker 1"] == {"said": "hello", "workers": 2}


def test_train_when_there_are_no_rows_says_so_and_the_cluster_can_still_train(spark: SparkSession) -> None:
    rows = df_with_partitions(spark, [8, 8])
    none = rows.where("id < 0")
    with TFCluster.run(spark, dense, {}, 2) as cluster:
        with raises(DataError, "expected rows to feed", "has none"):
            cluster.train(none, features=["features"])
        for _ in range(2):
            with raises(DataError, "expected rows to feed", "has none"):
                cluster.train(none, features=["features"])
            with raises(DataError, "expected validation rows", "has none", "leave validation= out"):
                cluster.train(rows, 2, features=["features"], validation=none)
            history = cluster.train(rows, 2, features=["features"], validation=rows)
            assert len(history["val_loss"]) == 2
        nodes = cluster.shutdown()
    assert sum(nodes["worker 0"]["rows"] + nodes["worker 1"]["rows"]) == 4 * 16


def test_columns_with_types_that_differ_from_the_training_are_refused_before_any_row_is_fed(
    spark: SparkSession,
) -> None:
    rows = df_with_partitions(spark, [8, 8]).withColumn("number", sf.col("id") / 16)
    text = rows.withColumn("number", sf.col("number").cast("string"))
    with TFCluster.run(spark, dense, {}, 1) as cluster:
        with raises(
            DataError, "expected column 'number' as in the rows trained on, double, got string", "cast"
        ):
            cluster.train(rows, features=["number"], validation=text)
        with raises(DataError, "expected column 'features' as in", "array<float>, got array<string>"):
            cluster.train(
                rows, features=["features"], validation=text.withColumn("features", sf.array("number"))
            )
        cluster.train(rows, features=["features"], validation=rows)
        with raises(DataError, "expected column 'label' as in the rows trained on, bigint, got string"):
            cluster.evaluate(rows.withColumn("label", sf.col("label").cast("string")))
        assert cluster.evaluate(rows)["loss"] > 0
        cluster.shutdown()


@pytest.mark.parametrize("broken", ["the training", "the evaluation", "no rows for several epochs"])
def test_call_after_a_call_that_was_broken_off_says_so_at_once(spark: SparkSession, broken: str) -> None:
    rows = df_with_partitions(spark, [40, 40])
    bad = rows.withColumn("label", sf.expr("if(id = 79, raise_error('no such label'), label)"))
    with TFCluster.run(spark, dense, {}, 2) as cluster:
        cluster.train(rows, features=["features"])
        break_off: dict[str, Callable[[], Any]] = {
            "the training": lambda: cluster.train(bad, 2, features=["features"]),
            "the evaluation": lambda: cluster.evaluate(bad),
            "no rows for several epochs": lambda: cluster.train(
                rows.where("id < 0"), 2, features=["features"]
            ),
        }
        with pytest.raises((PySparkException, DataError)):
            break_off[broken]()
        began = time.monotonic()
        with raises(TfsparkError, "an earlier call was broken off by ", "run another"):
            cluster.train(rows, features=["features"])
        with raises(TfsparkError, "an earlier call was broken off by "):
            cluster.evaluate(rows)
        assert time.monotonic() - began < 30
        cluster.stop()


def test_train_on_a_dataframe_in_tensorflow_mode_says_what_to_pass(spark: SparkSession) -> None:
    with (
        TFCluster.run(spark, say, None, input_mode=InputMode.TENSORFLOW) as cluster,
        raises(ConfigError, "expected TFRecordFiles", "got DataFrame", "InputMode.SPARK"),
    ):
        cluster.train(df_with_partitions(spark, [8]))


# --- rows that are not what was declared -----------------------------------------------------------


def row_37(column: str, value: str) -> Callable[[DataFrame], DataFrame]:
    """Replace the value of row 37."""
    return lambda df: df.withColumn(column, sf.expr(f"case when id = 37 then {value} else {column} end"))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        pytest.param(
            row_37("features", "null"),
            ["partition 1, row 7", "column 'features' is null", "expected a value", "dropna"],
            id="a null",
        ),
        pytest.param(
            row_37("features", "transform(features, x -> if(x > 0, null, x))"),
            ["partition 1, row 7", "'features' holds a null inside its array", "coalesce"],
            id="a null in an array",
        ),
        pytest.param(
            row_37("features", "slice(features, 1, 3)"),
            [
                "partition 1",
                "'features' has 3 values",
                "have 4",
                "expected arrays of one length",
                "pad or filter",
            ],
            id="unequal lengths",
        ),
        pytest.param(
            row_37("label", "bigint(7)"),
            ["partition 1, row 7", "label 'label' is 7", "expected a class from 0 to 1", "number of classes"],
            id="a label out of range",
        ),
        pytest.param(
            lambda df: df.withColumn("label", sf.col("label").cast("string")),
            ["label 'label'", "expected integer classes 0 to 1"],
            id="labels that are text",
        ),
        pytest.param(
            lambda df: df.withColumn("features", sf.struct("features", "label")),
            ["column 'features' has type struct<", "expected no struct", "df.select('features.features',"],
            id="a struct",
        ),
        pytest.param(
            lambda df: df.where("id < 0"),
            ["expected rows to feed", "has none", "check its path and filters"],
            id="no rows",
        ),
    ],
)
def test_train_when_rows_are_not_as_declared_names_the_row(
    spark: SparkSession, change: Callable[[DataFrame], DataFrame], parts: list[str]
) -> None:
    rows = change(df_with_partitions(spark, [30, 30]))
    with raises(DataError, *parts), TFCluster.run(spark, dense, {}) as cluster:
        cluster.train(rows, 2, features=["features"], num_classes=2)


# --- the user's functions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build_model", "parts"),
    [
        pytest.param(
            no_model,
            ["expected no_model to return a compiled keras.Model", "str", "return model"],
            id="a string",
        ),
        pytest.param(uncompiled, ["the model is not compiled", "model.compile("], id="not compiled"),
    ],
)
def test_build_model_when_it_returns_no_compiled_model_says_so(
    spark: SparkSession, build_model: Callable[..., Any], parts: list[str]
) -> None:
    with (
        raises(NodeFailedError, "worker 0 on 127.0.0.1", *parts),
        TFCluster.run(spark, build_model, {}) as cluster,
    ):
        cluster.train(df_with_partitions(spark, [8]), features=["features"])


def test_main_fun_when_it_returns_an_object_says_what_it_can_return(spark: SparkSession) -> None:
    cluster = TFCluster.run(spark, say, "return an object")
    with raises(NodeFailedError, "cannot travel to the driver", "expected JSON", "ctx.export"):
        cluster.shutdown()


def test_main_fun_when_it_wants_more_epochs_than_are_fed_says_how_many_are_fed(spark: SparkSession) -> None:
    rows = df_with_partitions(spark, [40]).select("features", "label")
    cluster = TFCluster.run(spark, fit_as_users_do, {"epochs": 2})
    cluster.train(rows, 1)
    with raises(NodeFailedError, "epoch 2 of 'train' was asked for", "fed 1", "num_epochs=2"):
        cluster.shutdown()


def test_main_fun_when_one_of_two_workers_raises_fails_on_the_driver_within_seconds(
    spark: SparkSession,
) -> None:
    events = Events()
    rows = df_with_partitions(spark, [8])
    with (
        pytest.raises(NodeFailedError) as caught,
        TFCluster.run(spark, say, "fail on worker 1", 2, observer=events) as cluster,
    ):
        cluster.train(rows, features=["features"])
    raised_after_s = time.time() - events.of("raised")[0]["at"]

    error = caught.value
    assert (error.node, error.host) == ("worker 1", "127.0.0.1")
    assert error.cause == "ValueError: the dog ate row 7"
    assert "in say" in error.remote_traceback
    assert "the last words of worker 1" in error.log_tail
    assert all(part in str(error) for part in (error.cause, error.remote_traceback[:40], "last words"))
    # This includes the end of the `with` block, which ends the other worker.
    assert raised_after_s < RAISED_S + SLACK_S, f"{raised_after_s:.1f} s"


# --- the cluster cannot be reserved ----------------------------------------------------------------


def test_run_when_another_job_holds_the_slots_names_the_missing_node(
    spark: SparkSession, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    holder = hold_slots(spark, 3, release)
    try:
        with raises(ReservationError, "reserved 1 of 2 nodes after 4 s", "missing worker", "other jobs hold"):
            TFCluster.run(spark, say, None, 2, reservation_timeout=4.0)
    finally:
        release.touch()
        holder.join(30)


def hold_slots(spark: SparkSession, count: int, release: Path) -> Any:
    """Run a job of `count` tasks that ends when a file appears; return its thread when all tasks run."""
    import threading

    started = release.parent / "started"
    started.mkdir()

    def hold(batches: Iterator[Any]) -> Iterator[Any]:
        import os

        (started / str(os.getpid())).touch()
        while not release.exists():
            time.sleep(0.05)
        yield from batches

    job = spark.range(0, count, 1, count).mapInArrow(hold, "id bigint")
    thread = threading.Thread(target=job.collect)
    thread.start()
    deadline = time.monotonic() + 30
    while len(list(started.iterdir())) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return thread


RUN = """
    from pyspark.sql import SparkSession
    from cluster.programs import say
    from tfspark import TFCluster

    spark = SparkSession.builder.getOrCreate()
    try:
        TFCluster.run(spark, say, None, 2, warm=False)  # No trainer is started.
    except Exception as error:
        print(type(error).__name__, error)
    spark.stop()
"""


def error_of_run(master: str, conf: dict[str, str]) -> str:
    """Start a cluster in a separate driver; return the error."""
    return run_driver(master, RUN, timeout_s=180, conf=conf).check().stdout.splitlines()[-1]


def test_run_when_executors_have_a_different_tensorflow_names_both_versions(tmp_path: Path) -> None:
    fake = tmp_path / "tensorflow-1.15.5.dist-info"
    fake.mkdir()
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorflow\nVersion: 1.15.5\n")
    path = f"{tmp_path}:{python_path()}"

    said = error_of_run("local-cluster[2,2,1024]", {"spark.executorEnv.PYTHONPATH": path})

    assert said.startswith("ReservationError worker ")
    assert f"tensorflow 1.15.5, the driver has {installed_versions()['tensorflow']}" in said
    assert "install the same major.minor versions on every executor" in said
