"""Data feeds, inference through the cluster, roles and extras of TensorFlowOnSpark; without TensorFlow."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster.programs import dense
from migrate.rows import (
    collect,
    describe_context,
    evaluate_for_ever,
    fails_at_row,
    return_at_once,
    squares,
    take_some,
)
from pyspark.sql import Row, SparkSession
from support.errors import raises

from tfspark import InputMode, TFCluster, TFNode, TFParallel, TFRecordFiles
from tfspark.errors import ConfigError, DataError, NodeFailedError, ReservationError
from tfspark.feed.columns import Column, Columns

SPARK = TFCluster.InputMode.SPARK


# --- inference -------------------------------------------------------------------------------------


def test_inference_when_partitions_are_uneven_returns_one_result_per_row_in_order(
    spark: SparkSession,
) -> None:
    sc = spark.sparkContext
    rows = sc.parallelize(range(100), 2).union(sc.parallelize([], 2)).union(sc.parallelize(range(7), 3))
    with TFCluster.run(sc, squares, {}, 2, 0, False, SPARK) as cluster:
        results = cluster.inference(rows)
        assert results.glom().map(len).collect() == rows.glom().map(len).collect()
        assert results.collect() == [row * row for row in [*range(100), *range(7)]]
        assert results.map(lambda x: x + 1).take(3) == [1, 2, 5]
        nodes = cluster.shutdown()
    assert sum(nodes.values()) >= 2 * 107, "every row of both actions, at least"


def test_inference_of_a_dataframe_in_another_queue_feeds_rows(spark: SparkSession) -> None:
    def names(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(False, "images")
        while not feed.should_stop():
            feed.batch_results([(row.id, row["name"], np.full(2, row[0])) for row in feed.next_batch(3)])

    df = spark.range(0, 10, 1, 2).selectExpr("id", "concat('n', id) as name")
    queues = ["input", "output", "error", "images"]
    with TFCluster.run(spark, names, None, 1, input_mode=SPARK, queues=queues) as cluster:
        results = cluster.inference(df, 60, "images").collect()

    assert [result[:2] for result in results] == [(i, f"n{i}") for i in range(10)]
    assert [result[2].tolist() for result in results] == [[i, i] for i in range(10)]


def test_inference_when_map_fun_returns_too_few_results_says_so_in_time(spark: SparkSession) -> None:
    def forgets(args: Any, ctx: Any) -> None:
        feed = ctx.get_data_feed(False)
        while not feed.should_stop():
            feed.batch_results(feed.next_batch(10)[:-1])

    rows = spark.sparkContext.parallelize(range(20), 1)
    with (
        raises(Exception, "partition 0: 18 results for 20 rows", "feed_timeout=10 s", "batch_results()"),
        TFCluster.run(spark, forgets, None, 1, input_mode=SPARK) as cluster,
    ):
        cluster.inference(rows, feed_timeout=10).collect()


def test_inference_when_map_fun_returns_too_many_results_says_so(spark: SparkSession) -> None:
    rows = spark.sparkContext.parallelize(range(20), 1)
    with TFCluster.run(spark, squares, {"more": [0]}, 1, input_mode=SPARK) as cluster:
        with raises(Exception, "partition 0: expected one result per row", "ended before"):
            cluster.inference(rows).collect()
        with raises(DataError, "expected one result for each row", "more than next_batch() gave"):
            cluster.shutdown()


def test_inference_when_a_worker_fails_ends_the_job_and_names_the_cause(spark: SparkSession) -> None:
    rows = spark.sparkContext.parallelize(range(20), 2)
    began = time.monotonic()
    with TFCluster.run(spark, fails_at_row, 13, 1, input_mode=SPARK) as cluster:
        with raises(Exception, "expected one result per row"):
            cluster.inference(rows).collect()
        with raises(NodeFailedError, "ValueError: row 13 is no good"):
            cluster.shutdown()
    assert time.monotonic() - began < 60, "the job ends before the timeout of the feed"


def test_inference_when_no_worker_takes_rows_ends(spark: SparkSession) -> None:
    rows = spark.sparkContext.parallelize(range(20), 2)
    with TFCluster.run(spark, return_at_once, None, 1, input_mode=SPARK) as cluster:
        with raises(Exception, "expected one result per row", "ended before"):
            cluster.inference(rows).collect()
        cluster.shutdown()


# --- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param([([i, i + 1], i) for i in range(60)], id="tuples"),
        pytest.param([Row(image=[i], name=str(i)) for i in range(60)], id="Rows"),
        pytest.param([{"x": float(i)} for i in range(60)], id="dicts"),
        pytest.param([f"line {i}" for i in range(60)], id="text"),
    ],
)
def test_train_on_an_rdd_that_is_read_to_its_end_feeds_every_item_in_every_epoch(
    spark: SparkSession, elements: list[Any]
) -> None:
    sc = spark.sparkContext
    # A trainer returns its rows as JSON, in which a Row is a list.
    expected = sorted(json.dumps(element) for element in elements * 2)
    with TFCluster.run(sc, collect, None, 2, 0, input_mode=SPARK) as cluster:
        assert cluster.train(sc.parallelize(elements, 3), 2) == {}
        nodes = cluster.shutdown(None, 5)

    rows = [*nodes["worker 0"], *nodes["worker 1"]]
    assert sorted(json.dumps(row) for row in rows) == expected


def test_train_when_a_worker_terminates_the_other_gets_the_rest(spark: SparkSession) -> None:
    sc = spark.sparkContext
    with TFCluster.run(sc, collect, [20, 10_000], 2, 0, input_mode=SPARK) as cluster:
        cluster.train(sc.parallelize(range(1000), 4), 2)
        nodes = cluster.shutdown()

    assert len(nodes["worker 0"]) == 21
    # Rows that worker 0 has fetched in advance are not fed again: its queue, its current chunk, one partition at most.
    assert 2000 - 21 - 6 * 32 - 250 <= len(nodes["worker 1"]) <= 2000 - 21


@pytest.mark.parametrize(
    ("map_fun", "args"),
    [
        pytest.param(collect, [5, 5], id="all terminate"),
        pytest.param(take_some, 5, id="all return"),
        pytest.param(return_at_once, None, id="none reads"),
    ],
)
def test_train_when_no_worker_wants_more_returns_at_once(
    spark: SparkSession, map_fun: Any, args: Any
) -> None:
    sc = spark.sparkContext
    with TFCluster.run(sc, map_fun, args, 2, 0, input_mode=SPARK) as cluster:
        cluster.train(sc.parallelize(range(100_000), 8), 50)
        cluster.shutdown()


def test_train_on_a_dataframe_without_a_label_gives_rows_in_its_order(spark: SparkSession) -> None:
    df = spark.range(0, 6, 1, 1).selectExpr("id as y_", "array(id) as x")
    with TFCluster.run(spark, collect, None, 1) as cluster:
        cluster.train(df)
        rows = cluster.shutdown()["worker 0"]
    assert rows == [[i, [i]] for i in range(6)]


def test_train_without_num_epochs_feeds_an_rdd_ten_times(spark: SparkSession) -> None:
    sc = spark.sparkContext
    with TFCluster.run(sc, collect, None, 1) as cluster:
        cluster.train(sc.parallelize(range(3), 1))
        assert sorted(cluster.shutdown()["worker 0"]) == sorted([0, 1, 2] * 10)


# --- wrong calls -----------------------------------------------------------------------------------


def test_calls_that_do_not_fit_the_cluster_are_refused(spark: SparkSession) -> None:
    sc = spark.sparkContext
    rows = sc.parallelize(range(10), 1)
    files = TFRecordFiles("/nowhere", Columns((Column("x"),)))
    with TFCluster.run(sc, collect, None, 1, 0, input_mode=SPARK) as cluster:
        with raises(
            ConfigError, "expected qname to be one of ['input', 'output']", "got 'inputs'", "queues="
        ):
            cluster.train(rows, 1, 600, "inputs")
        with raises(ConfigError, "expected qname", "got 'error'"):
            cluster.inference(rows, qname="error")
        with raises(ConfigError, "expected an RDD or a DataFrame to infer, got list"):
            cluster.inference([1, 2])  # type: ignore[arg-type]
        cluster.train(rows, 1)
        with raises(
            ConfigError, "not used before for inference()", "this one was for train()", "run another"
        ):
            cluster.inference(rows)
        with raises(ConfigError, "expected a Spark DataFrame or an RDD", "TFRecordFiles"):
            cluster.train(files, 1)
        cluster.shutdown()


def test_inference_on_a_cluster_that_reads_files_or_has_a_build_model_is_refused(spark: SparkSession) -> None:
    rows = spark.sparkContext.parallelize(range(10), 1)
    with (
        TFCluster.run(spark, return_at_once, None, 1, input_mode=InputMode.TENSORFLOW) as cluster,
        raises(ConfigError, "expected InputMode.SPARK for inference()"),
    ):
        cluster.inference(rows)
    cluster = TFCluster.run(spark, dense, {}, 1)
    try:
        with raises(ConfigError, "expected a cluster started with main_fun(args, ctx)", "tfspark.predict"):
            cluster.inference(rows)
    finally:
        cluster.stop()


def test_run_when_arguments_of_tensorflowonspark_are_wrong_says_so(spark: SparkSession) -> None:
    with raises(ConfigError, "expected master_node='chief'", "got 'boss'"):
        TFCluster.run(spark, describe_context, None, 1, master_node="boss")
    with raises(ConfigError, "map_fn(args, ctx)"):
        TFParallel.run(spark, lambda args: None, None, 1)
    with raises(ReservationError, "expected 5 task slots"):
        TFParallel.run(spark, describe_context, None, 5)


def test_train_when_an_element_cannot_be_fed_names_it(spark: SparkSession) -> None:
    rows = spark.sparkContext.parallelize(range(4), 1).map(lambda i: complex(i))
    with (
        raises(Exception, "partition 0, row 0 or after", "numbers, text, bytes", "complex"),
        TFCluster.run(spark, collect, None, 1, input_mode=SPARK) as cluster,
    ):
        cluster.train(rows, 1)


def test_dataset_when_the_label_is_not_known_says_how_to_name_it(spark: SparkSession) -> None:
    def fits(args: Any, ctx: Any) -> None:
        from tfspark.training.input.dataset import distributed_dataset

        distributed_dataset(ctx, "train", ctx.strategy)

    rows = spark.sparkContext.parallelize([([1.0], 2)], 1)
    with (
        raises(NodeFailedError, "expected to know the label", "features= and label=", "get_data_feed()"),
        TFCluster.run(spark, fits, None, 1, input_mode=SPARK) as cluster,
    ):
        cluster.train(rows, 1)


def test_functions_of_tfnode_when_called_wrongly_say_so() -> None:
    with raises(ConfigError, "expected DataFeed(ctx.mgr, ...)", "got dict"):
        TFNode.DataFeed({})  # type: ignore[arg-type]
    with raises(ConfigError, "got start_cluster_server()", "ctx.strategy"):
        TFNode.start_cluster_server(None)
    with raises(ConfigError, "expected a Keras model, got object", "ctx.export_saved_model(model"):
        TFNode.export_saved_model(object(), "/tmp/x", "serve", {})


# --- roles and extras ------------------------------------------------------------------------------


def test_context_with_a_master_node_has_the_attributes_that_programs_use(spark: SparkSession) -> None:
    with TFCluster.run(
        spark.sparkContext, describe_context, ["prog", "--x"], 3, 0, master_node="chief"
    ) as cluster:
        nodes = cluster.shutdown()

    told = [nodes[f"worker {i}"] for i in range(3)]
    assert [node["who"] for node in told] == [
        ["chief", 0, 0, 0, 3], ["worker", 0, 1, 1, 3], ["worker", 1, 2, 2, 3],
    ]  # fmt: skip
    assert told[0]["jobs"] == {"chief": 1, "worker": 2}
    assert told[0]["argv"] == ["prog", "--x"]
    assert told[0]["default_fs"] == "file://"
    assert told[0]["working_dir"] == os.getcwd()
    assert told[0]["paths"] == [f"file://{os.getcwd()}/a", "file:///b", "s3a://c/d"]
    assert told[0]["has_socket"]
    assert told[0]["has_config"]


@pytest.mark.parametrize(
    ("num_executors", "use_barrier"),
    [
        pytest.param(3, True, id="all at once"),
        pytest.param(6, False, id="more than there are slots, one after the other"),
    ],
)
def test_parallel_run_gives_each_process_its_number_and_no_cluster(
    spark: SparkSession, tmp_path: Path, num_executors: int, use_barrier: bool
) -> None:
    folder = str(tmp_path)

    def note(args: Any, ctx: Any) -> None:
        told = describe_context(args, ctx)
        Path(folder, str(ctx.worker_num)).write_text(json.dumps(told))

    TFParallel.run(spark.sparkContext, note, {}, num_executors, use_barrier)

    told = [json.loads((tmp_path / str(i)).read_text()) for i in range(num_executors)]
    assert [node["who"][2:] for node in told] == [[i, i, num_executors] for i in range(num_executors)]
    assert not any(node["has_config"] for node in told)
    assert len({node["pid"] for node in told}) == num_executors


@pytest.mark.slow
def test_parallel_run_waits_for_a_process_that_holds_the_interpreter_lock(spark: SparkSession) -> None:
    """No thread of this process can report that it is alive; unpickling gigabytes has the same effect."""

    def hold(args: Any, ctx: Any) -> None:
        import ctypes

        ctypes.PyDLL(None).sleep(20)

    TFParallel.run(spark, hold, None, 1)


def test_parallel_run_when_one_process_fails_raises_its_error(spark: SparkSession) -> None:
    def fail(args: Any, ctx: Any) -> None:
        raise ValueError(f"no luck on {ctx.worker_num}")

    with raises(NodeFailedError, "ValueError: no luck on"):
        TFParallel.run(spark, fail, {}, 2)


def test_evaluator_that_never_returns_is_ended_after_the_grace_period(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfspark.cluster.tfcluster.EVALUATOR_GRACE_S", 1.0)
    cluster = TFCluster.run(spark, evaluate_for_ever, None, 2, 0, eval_node=True)
    with cluster:
        assert cluster.shutdown(grace_secs=1) == {"worker 0": "worker", "evaluator 0": None}


def test_tensorboard_when_asked_for_answers_until_the_cluster_ends(
    spark: SparkSession, tmp_path: Path
) -> None:
    with TFCluster.run(spark, collect, None, 1, 0, True, SPARK, str(tmp_path)) as cluster:
        url = cluster.tensorboard_url()
        assert url is not None
        assert "<title>TensorBoard" in read_page(url, timeout_s=120)
        cluster.shutdown()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_tensorboard_url_when_not_asked_for_is_none(spark: SparkSession) -> None:
    with TFCluster.run(spark, return_at_once, None, 1) as cluster:
        assert cluster.tensorboard_url() is None
        cluster.shutdown()


def read_page(url: str, timeout_s: float) -> str:
    """Return the text of a page as soon as the server answers."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
