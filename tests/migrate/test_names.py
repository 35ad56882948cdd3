"""The names of TensorFlowOnSpark that need no cluster."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark.sql import Row, SparkSession
from support.errors import raises

import tfspark
from tfspark import TFCluster, TFNode, compat, dfutil, gpu_info, pipeline, util
from tfspark.errors import ConfigError, ReservationError
from tfspark.migrate.saved_model import tensor_names
from tfspark.training.on_import import take_broken_steps


def test_names_of_tensorflowonspark_can_be_imported() -> None:
    from tfspark.pipeline import TFEstimator, TFModel

    assert pipeline.TFEstimator is TFEstimator
    assert pipeline.TFModel is TFModel
    assert [int(TFCluster.InputMode.TENSORFLOW), int(TFCluster.InputMode.SPARK)] == [0, 1]
    assert tfspark.InputMode is TFCluster.InputMode
    assert callable(compat.export_saved_model)


def test_import_of_tfspark_imports_neither_spark_nor_tensorflow_nor_pipeline() -> None:
    code = (
        "import sys, tfspark; from tfspark import TFNode; "
        "print([m for m in ('pyspark', 'tensorflow', 'tfspark.migrate.pipeline') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    ("default_fs", "path", "expected"),
    [
        pytest.param("hdfs://nn:8020", "hdfs://other/a", "hdfs://other/a", id="with a scheme"),
        pytest.param("hdfs://nn:8020", "gs://bucket/a", "gs://bucket/a", id="with any scheme"),
        pytest.param("hdfs://nn:8020", "/a", "hdfs://nn:8020/a", id="absolute"),
        pytest.param("hdfs://nn:8020", "a/b", "hdfs://nn:8020/user/me/a/b", id="relative to the home"),
        pytest.param("viewfs://x", "a", "viewfs://x/user/me/a", id="viewfs has homes, too"),
        pytest.param("file://", "/a", "file:///a", id="absolute on disk"),
        pytest.param("file:///", "a", "file:///home/me/a", id="relative to the driver's directory"),
        pytest.param("s3a://bucket", "a", "s3a://bucket/a", id="no homes: relative to the root"),
    ],
)
def test_hdfs_path_resolves_a_path_as_hadoop_does(
    monkeypatch: pytest.MonkeyPatch, default_fs: str, path: str, expected: str
) -> None:
    monkeypatch.setenv("LOGNAME", "me")
    context = SimpleNamespace(defaultFS=default_fs, working_dir="/home/me")
    assert TFNode.hdfs_path(context, path) == expected


def test_hdfs_path_of_a_user_without_a_name_takes_hadoop_user_name_or_says_to_set_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr("getpass.getuser", unknown)
    monkeypatch.delenv("HADOOP_USER_NAME", raising=False)
    context = SimpleNamespace(defaultFS="hdfs://nn", working_dir="/")
    with raises(ConfigError, "to have a name", "set HADOOP_USER_NAME"):
        TFNode.hdfs_path(context, "a")
    monkeypatch.setenv("HADOOP_USER_NAME", "me")
    assert TFNode.hdfs_path(context, "a") == "hdfs://nn/user/me/a"


# --- pipeline --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"a": 1}, id="a dict"),
        pytest.param(argparse.Namespace(a=1), id="a Namespace of argparse"),
        pytest.param(pipeline.Namespace({"a": 1}), id="a Namespace"),
    ],
)
def test_namespace_made_from_names_has_them(given: object) -> None:
    made = pipeline.Namespace(given)
    assert (made.a, "a" in made, list(made), repr(made)) == (1, True, ["a"], "Namespace(a=1)")  # type: ignore[attr-defined]
    assert made == pipeline.Namespace({"a": 1})


def test_namespace_made_from_a_command_line_keeps_it() -> None:
    made = pipeline.Namespace(["prog", "--x"])
    assert (made.argv, list(made), "--x" in made) == (["prog", "--x"], ["prog", "--x"], True)
    with pytest.raises(ConfigError, match="got int"):
        pipeline.Namespace(7)


def test_params_when_set_override_the_arguments(spark: SparkSession) -> None:
    estimator = pipeline.TFEstimator(print, {"batch_size": 1, "own": 2})
    estimator.setBatchSize(64).setClusterSize(3).setInputMapping({"x": "x"}).setMasterNode(None)
    estimator.setInputMode(TFCluster.InputMode.SPARK).setNumPS(0).setDriverPSNodes(False).setTensorboard(True)

    merged = estimator.merge_args_params()

    assert (merged.batch_size, merged.own, merged.cluster_size, merged.epochs) == (64, 2, 3, 1)  # type: ignore[attr-defined]
    assert (estimator.getBatchSize(), estimator.getMasterNode(), estimator.getGraceSecs()) == (64, None, 30)
    assert (estimator.getSteps(), estimator.getReaders(), estimator.getProtocol()) == (1000, 1, "grpc")
    with pytest.raises(ConfigError, match=r"expected InputMode\.SPARK"):
        estimator.setInputMode(TFCluster.InputMode.TENSORFLOW)
    with pytest.raises(TypeError, match="expected a dict, got list"):
        estimator.setInputMapping(["x"])


def test_estimator_and_model_when_not_set_up_say_what_is_missing(spark: SparkSession) -> None:
    df = spark.range(1)
    with pytest.raises(ConfigError, match="expected no export_fn"):
        pipeline.TFEstimator(print, {}, print)
    with pytest.raises(ConfigError, match=r"setInputMapping\(\{column: tensor\}\)"):
        pipeline.TFEstimator(print, {}).fit(df)
    with pytest.raises(ConfigError, match=r"export_dir=None.*setExportDir\(\)"):
        pipeline.TFModel({}).transform(df)


def test_tensor_names_when_there_is_only_one_tensor_accept_any_name() -> None:
    assert tensor_names(["dense_1"], ["output_0"], "output") == ["output_0"]
    assert tensor_names(["b", "a"], ["a", "b", "c"], "input") == ["b", "a"]
    with pytest.raises(
        ConfigError, match=r"expected output tensors \['x'\], got a signature with \['a', 'b'\]"
    ):
        tensor_names(["x"], ["b", "a"], "output")


# --- dfutil ----------------------------------------------------------------------------------------


def test_dfutil_when_rows_are_saved_and_loaded_keeps_them(spark: SparkSession, tmp_path: Path) -> None:
    row = Row(array=[1, 2], blob=bytearray(b"ab"), number=7, real=0.5, text="x", words=["a", "b"])
    df = spark.createDataFrame(
        [row, row],
        "array array<long>, blob binary, number long, real double, text string, words array<string>",
    )
    path = str(tmp_path / "records")

    dfutil.saveAsTFRecords(df, path)
    loaded = dfutil.loadTFRecords(spark.sparkContext, path, binary_features=["blob"])

    assert dfutil.isLoadedDF(loaded)
    assert not dfutil.isLoadedDF(loaded.limit(1))
    assert loaded.schema == df.schema
    assert loaded.collect() == [row, row]
    with pytest.raises(ConfigError, match="expected a new output_dir"):
        dfutil.saveAsTFRecords(df, path)


def test_examples_made_and_read_in_an_rdd_keep_the_rows(spark: SparkSession) -> None:
    df = spark.createDataFrame([Row(a=[1, 2], b=bytearray(b"x"), c="y", d=1.5)])

    examples = df.rdd.mapPartitions(dfutil.toTFExample(df.dtypes))
    rows = examples.mapPartitions(lambda records: dfutil.fromTFExample(records, ["b"])).collect()

    assert rows == [Row(a=[1, 2], b=bytearray(b"x"), c="y", d=1.5)]
    example = examples.collect()[0][0]
    schema = dfutil.infer_schema(example, ["b"])
    assert schema.simpleString() == "struct<a:array<bigint>,b:binary,c:string,d:double>"


# --- gpu_info, util --------------------------------------------------------------------------------

NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=index) printf '0\\n1\\n2\\n' ;;
  --query-gpu=index,uuid) printf '0, GPU-a\\n1, GPU-b\\n2, GPU-c\\n' ;;
  --query-compute-apps=gpu_uuid) printf 'GPU-b\\n' ;;
esac
"""


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs. The second one is busy."""
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_get_gpus_when_one_is_busy_gives_the_others(three_gpus: None) -> None:
    assert gpu_info.is_gpu_available()
    assert gpu_info.get_gpus(2) == "0,2"
    assert gpu_info.get_gpus(1, 1, gpu_info.AS_LIST) == ["2"]
    with pytest.raises(ReservationError, match="expected 3 free GPUs, got 2 of 3"):
        gpu_info.get_gpus(3)


def test_single_node_env_when_two_processes_share_a_host_takes_different_gpus(
    three_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unset")
    util.single_node_env(1, 2, ["a:1", "b:1", "a:2"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2", "the second process on its host"
    util.single_node_env(0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_single_node_env_when_there_is_no_gpu_hides_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    util.single_node_env()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_find_in_path_finds_a_file_in_the_second_folder(tmp_path: Path) -> None:
    (tmp_path / "tool").touch()
    assert util.find_in_path(f"/nowhere{os.pathsep}{tmp_path}", "tool") == str(tmp_path / "tool")
    assert util.find_in_path("/nowhere", "tool") is False
    assert util.get_ip_address().count(".") == 3


def test_fit_rounds_steps_per_epoch_up_to_a_whole_number() -> None:
    class Model:
        def fit(self, **arguments: object) -> dict[str, object]:
            return arguments

    take_broken_steps(SimpleNamespace(Model=Model))

    assert Model().fit(steps_per_epoch=42.2, epochs=3) == {"steps_per_epoch": 43, "epochs": 3}
    assert Model().fit(steps_per_epoch=None) == {"steps_per_epoch": None}
