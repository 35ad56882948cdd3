"""Programs as users start them: by the path of an interpreter, from any directory, behind a proxy."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.environment import OWN_WARM_PARENT, bare_environment
from support.processes import run_to_end

from tfspark.driver_python import module_paths, python_advice
from tfspark.node.environment import trainer_environment

CONFIG = json.dumps({"cluster": {"worker": ["10.0.0.1:4", "[fd00::2]:5"], "ps": ["node-3:6"]}})


@pytest.mark.parametrize(
    ("inherited", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1,10.0.0.1,fd00::2,node-3"),
        ({"no_proxy": "a, b"}, "a,b,localhost,127.0.0.1,::1,10.0.0.1,fd00::2,node-3"),
        ({"NO_PROXY": "10.0.0.1"}, "10.0.0.1,localhost,127.0.0.1,::1,fd00::2,node-3"),
        ({"no_grpc_proxy": "g", "no_proxy": "a"}, "g,localhost,127.0.0.1,::1,10.0.0.1,fd00::2,node-3"),
    ],
)
def test_trainers_reach_each_other_without_a_proxy(inherited: Mapping[str, str], expected: str) -> None:
    proxies = {"http_proxy": "http://proxy:80", "https_proxy": "http://proxy:80"}
    found = trainer_environment({**proxies, **inherited}, CONFIG, "/scratch", [])
    assert found["no_grpc_proxy"] == expected
    assert proxies.items() <= found.items(), "the user's own downloads need them"


@pytest.mark.parametrize("config", [CONFIG, ""])
def test_trainer_environment_replaces_variables_that_are_set_for_other_programs(config: str) -> None:
    others = {
        "KERAS_BACKEND": "jax",
        "TF_CONFIG": "another cluster's",
        "TMPDIR": "/tmp",
        "MINE": "1",
        "PYTHONIOENCODING": "ascii",
    }
    found = trainer_environment(others, config, "/scratch", ["", "/a"], ["/b", "/a"])
    assert (found["KERAS_BACKEND"], found["TMPDIR"], found["MINE"]) == ("tensorflow", "/scratch", "1")
    assert found["PYTHONPATH"] == f"/a{os.pathsep}/b"
    assert found["PYTHONIOENCODING"] == "utf-8"
    assert found.get("TF_CONFIG") == (config or None)


def test_module_paths_are_absolute_and_leave_out_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "net.zip").touch()
    monkeypatch.chdir(tmp_path)
    installed = [os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(pytest.__file__))]
    found = module_paths(["", "src", str(tmp_path / "net.zip"), "/not/there", *installed])
    assert found == [str(tmp_path), str(tmp_path / "src"), str(tmp_path / "net.zip")]


def test_advice_is_given_when_executors_run_a_different_python() -> None:
    assert "set PYSPARK_PYTHON" in python_advice("ModuleNotFoundError: No module named 'tfspark'")
    assert "set PYSPARK_PYTHON" in python_advice('Cannot run program "python3": error=2')
    assert python_advice("No module named 'mynet'") == ""


PROGRAM = """
import numpy as np
from pyspark.sql import SparkSession

from mynet.net import build_model
from tfspark import Column, TFCluster

spark = SparkSession.builder.master("local[3]").config("spark.ui.enabled", "false").getOrCreate()
print("workers' Python before:", spark.sparkContext.pythonExec)
columns = ["petal width (cm)", "a.b", "x`y", "AB", "ab"]
numbers = spark.range(64).toDF("id")
df = numbers.selectExpr(*[f"float(id % {n + 2}) AS column_{n}" for n in range(5)], "float(id % 2) AS label")
df = df.toDF(*columns, "label")
with TFCluster.run(spark, build_model, np.int64(len(columns)), num_executors=np.int64(2), seed=np.int64(1)) as cluster:
    features = [Column(name, shape=(np.int64(1),), scale=np.float32(2)) for name in columns]
    told = cluster.train(df, 1, features=features, batch_size=np.int64(16), validation=df)
    expected = np.mean([(sum(i % (n + 2) for n in range(5)) / 2 - i % 2) ** 2 for i in range(64)])
    assert abs(told["loss"][0] - expected) < 1e-4 * expected, (told, expected)
    assert abs(told["val_loss"][0] - expected) < 1e-4 * expected, (told, expected)
    cluster.shutdown()
rng = np.random.default_rng(0)
x, y = rng.normal(size=(48, 4, 3)).astype("float32"), rng.normal(size=48).astype("float32")
pairs = spark.sparkContext.parallelize([(x[i], y[i]) for i in range(48)], 3)
with TFCluster.run(spark, build_model, 0, 1) as cluster:
    told = cluster.train(pairs, 1, features=["_1"], label="_2", batch_size=16)
    expected = np.mean((x.sum((1, 2)) - y) ** 2)
    assert abs(told["loss"][0] - expected) < 1e-4 * expected, (told, expected)
    cluster.shutdown()
spark.stop()
print("DONE")
"""
NET = """
from mynet.layers_of_mine import same


def build_model(number):
    import keras

    if number:
        inputs = [keras.Input((1,), name=f"in{n}") for n in range(number)]
        names = ["petal width (cm)", "a.b", "x`y", "AB", "ab"]
        joined = keras.layers.Concatenate()(inputs)
        given = dict(zip(names, inputs))
    else:
        given = keras.Input((4, 3))
        joined = keras.layers.Flatten()(given)
    output = keras.layers.Dense(1, kernel_initializer="ones")(same(joined))
    model = keras.Model(given, output)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model
"""
LAYERS = """
def same(x):
    import keras

    return keras.layers.Identity()(x)
"""


@pytest.mark.slow
def test_program_that_is_started_by_interpreter_path_from_another_directory_behind_a_proxy_trains(
    tmp_path: Path,
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "mynet", elsewhere, tmp_path / ".keras"):
        folder.mkdir(parents=True)
    (project / "train.py").write_text(PROGRAM)
    (project / "mynet" / "__init__.py").touch()
    (project / "mynet" / "net.py").write_text(NET)
    (project / "mynet" / "layers_of_mine.py").write_text(LAYERS)
    (tmp_path / ".keras" / "keras.json").write_text(json.dumps({"backend": "torch"}))
    names = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    proxies = dict.fromkeys(names, "http://127.0.0.1:9")  # Nobody listens there.
    environment = bare_environment(tmp_path, **proxies, KERAS_BACKEND="jax", TF_CONFIG=CONFIG)
    finished = run_to_end(
        [sys.executable, str(project / "train.py")],
        env=environment,
        mark=("HOME", str(tmp_path)),
        cwd=elsewhere,
        timeout_s=400,
    ).check()
    assert "workers' Python before: python3" in finished.stdout
    assert "DONE" in finished.stdout
    assert "[Stage" not in finished.stdout.partition("before:")[2] + finished.stderr


TEXT_PROGRAM = """
import sys

from pyspark.sql import SparkSession

from tfspark import Column, InputMode, TFCluster
from tfspark.errors import DataError


def build_model(params):
    import keras

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def exits(args, ctx):
    sys.exit(args)


spark = SparkSession.builder.getOrCreate()
df = spark.range(40).selectExpr("string(id / 2) AS price", "string(id) AS text", "double(id) AS age", "id AS label")
for features, label, words in (
    ([Column("price", shape=(1,))], "label", "column 'price' is text (string), where the model"),
    ([Column("age", shape=(1,))], "text", "column 'text' is text (string), where the model"),
    ([Column("price", dtype="float32")], "label", "column 'price' is text (string), which cannot be fed as float32"),
    ([Column("price", scale=255)], "label", "column 'price' is text (string), which cannot be fed as float32"),
):
    try:
        with TFCluster.run(spark, build_model, None, 1, max_restarts=0) as cluster:
            cluster.train(df, 1, features=features, label=label, batch_size=20)
    except DataError as error:
        assert str(error).startswith(words), error
    else:
        raise AssertionError(f"expected: {words}")
with TFCluster.run(spark, exits, 0, 1, input_mode=InputMode.TENSORFLOW) as cluster:
    assert cluster.shutdown() == {"worker 0": None}
print("DONE")
"""


@pytest.mark.slow
def test_text_for_a_model_of_numbers_names_the_column_and_an_exit_with_0_is_a_normal_end() -> None:
    from support.driver import run_driver

    result: Any = run_driver(
        "local[2]", textwrap.dedent(TEXT_PROGRAM), env=OWN_WARM_PARENT, timeout_s=400
    ).check()
    assert "DONE" in result.stdout
