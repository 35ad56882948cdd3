"""What a user sees when ``tfspark run`` fails: an exit code and a message, but no traceback."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment.runs import run_directory, tfspark_run
from pyspark.sql import SparkSession

from tfspark.cli import app
from tfspark.tfrecord import register

WRONG_CONFIGURATION, RUN_FAILED = 2, 1

MODEL = """
def build_model(params):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    {before_return}
    return {returned}
"""
GOOD_MODEL = MODEL.format(before_return="pass", returned="model")

RED_OR_BLUE = "IF(id = 7, 'red', 'blue')"
BLUE_OR_GREEN = {"column": "label", "classes": ["blue", "green"]}

Config = dict[str, Any]
Fail = Callable[..., tuple[int, str]]


def experiment(x: str = "array(1.0F, 2.0F)", y: str = "id % 2", **sections: Config) -> Config:
    """Return an experiment on ten rows; `x` and `y` are the SQL expressions of their columns."""
    return {
        "name": "wrong",
        "model": {"module": "model.py"},
        "data": {
            "sql": f"SELECT {x} AS features, {y} AS label FROM range(0, 10, 1, 1)",
            "features": {"features": {}},
            "label": {"column": "label", "classes": 2},
            "batch_size": 4,
            "shuffle": False,
            **sections.pop("data", {}),
        },
        "cluster": {"master": "local[4]"},
        "train": {"epochs": 1},
        **sections,
    }


@pytest.fixture
def fail(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Fail:
    """Return a function that runs an experiment on the tests' session and returns exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "tfspark.experiment.run.spark_session", lambda name, cluster: contextlib.nullcontext(spark)
    )

    def run(config: Config, model: str = GOOD_MODEL) -> tuple[int, str]:
        Path("model.py").write_text(model)
        Path("experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        with pytest.raises(SystemExit) as ended:
            app(["run", "experiment.yaml"])
        err = capfd.readouterr().err

        return int(ended.value.code or 0), err

    return run


def check_message(err: str, *parts: str) -> None:
    """Check that the error is one message that contains all parts, without a traceback."""
    message = err[err.index("error: ") :]
    assert [part for part in parts if part not in message] == [], err
    assert "Traceback" not in err, err
    assert "JVM stacktrace" not in err, err
    assert len(message.splitlines()) <= 4, err


# --- refused before the training -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        pytest.param(
            experiment(data={"sql": None, "path": "nowhere", "format": "parquet"}),
            ["expected files at data path 'nowhere', there are none", "working directory", "correct data.path"],
            id="no such path",
        ),
        pytest.param(
            experiment(data={"sql": "SELECT * FROM nowhere"}),
            ["expected Spark to read 'SELECT * FROM nowhere'", "`nowhere` cannot be found"],
            id="no such table",
        ),
        pytest.param(
            experiment(data={"features": {"featuers": {}}}),
            ["expected a column 'featuers'", "did you mean 'features'?"],
            id="no such feature",
        ),
        pytest.param(
            experiment(data={"label": {"column": "lable", "classes": 2}}),
            ["expected a column 'lable'", "did you mean 'label'?"],
            id="no such label",
        ),
        pytest.param(
            experiment(output={"dir": "experiment.yaml"}),
            ["expected to make the run directory", "Not a directory", "set output.dir"],
            id="output below a file",
        ),
        pytest.param(
            experiment(output={"dir": "/proc/runs"}),
            ["expected to make the run directory /proc/runs/wrong-", "a directory that you may write to"],
            id="output not writable",
        ),
    ],
)  # fmt: skip
def test_run_when_the_configuration_does_not_fit_says_what_to_change(
    fail: Fail, config: Config, parts: list[str]
) -> None:
    code, err = fail(config)
    assert code == WRONG_CONFIGURATION
    check_message(err, *parts)


def test_run_when_the_module_has_no_build_model_says_what_it_needs(fail: Fail) -> None:
    code, err = fail(experiment(), "def build(params): ...")
    assert code == WRONG_CONFIGURATION
    check_message(err, "model.py", "expected a function build_model(params)", "got none")
    assert not Path("runs").exists()


def test_run_when_slots_are_too_few_says_how_many_are_needed(fail: Fail) -> None:
    code, err = fail(experiment(cluster={"master": "local[4]", "executors": 4}))
    assert code == RUN_FAILED
    check_message(err, "expected 5 task slots", "Spark has 4", "use --master local[5] or more")


def test_run_when_a_key_is_misspelt_says_so_without_starting_spark(tmp_path: Path) -> None:
    config = (
        yaml.safe_dump(experiment()).replace("batch_size", "batch_sise").replace("epochs: 1", "epochs: x")
    )
    lines = config.splitlines()
    ended = tfspark_run(tmp_path, config)
    assert ended.returncode == WRONG_CONFIGURATION
    key, value = (1 + next(i for i, line in enumerate(lines) if word in line) for word in ("sise", ": x"))
    check_message(
        ended.stderr,
        "2 problems in experiment.yaml",
        f"experiment.yaml:{key}: data.batch_sise: unknown key; did you mean data.batch_size?",
        f"experiment.yaml:{value}: train.epochs: expected a whole number, 1 or more; got the text 'x'",
    )
    assert ended.stderr.startswith("error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "value", "parts"),
    [
        pytest.param(
            "spark.dynamicAllocation.enabled", "true",
            ["expected spark.dynamicAllocation.enabled=false, it is true", "set it to false"],
            id="dynamic allocation",
        ),
        pytest.param(
            "spark.driver.memory", "lots",
            ["expected Spark to start with master local[4]", "see cluster.master and cluster.spark"],
            id="a value that Spark rejects",
        ),
    ],
)  # fmt: skip
def test_run_when_a_spark_setting_is_wrong_says_which(
    tmp_path: Path, setting: str, value: str, parts: list[str]
) -> None:
    (tmp_path / "model.py").write_text(GOOD_MODEL)
    config = experiment(cluster={"master": "local[4]", "spark": {setting: value}})
    ended = tfspark_run(tmp_path, config)
    assert ended.returncode == WRONG_CONFIGURATION
    assert ended.survivors == ()
    check_message(ended.stderr, *parts)


# --- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        pytest.param(
            experiment(x="IF(id = 7, null, array(1.0F, 2.0F))"),
            ["partition 0, row 7", "column 'features' is null", "dropna"],
            id="a null",
        ),
        pytest.param(
            experiment(x="IF(id = 7, array(1.0F), array(1.0F, 2.0F))"),
            ["partition 0", "column 'features'", "expected arrays of one length", "pad or filter"],
            id="unequal lengths",
        ),
        pytest.param(
            experiment(y="id"),
            ["partition 0, row 2", "label 'label' is 2", "expected a class from 0 to 1; correct the data"],
            id="a label out of range",
        ),
        pytest.param(
            experiment(y=RED_OR_BLUE, data={"label": BLUE_OR_GREEN}),
            ["expected Spark to compute", "label 'label' is 'red'", "the 2 classes blue, green", "data.label.classes"],
            id="a text that is no class",
        ),
        pytest.param(
            experiment(y=RED_OR_BLUE, data={"label": BLUE_OR_GREEN, "test": 0.5}),
            ["expected Spark to compute", "label 'label' is 'red'", "correct the data or data.label.classes"],
            id="a text that is no class, found while the rows are split",
        ),
        pytest.param(
            experiment(y="id div 100", data={"label": {"column": "label", "classes": "infer"}}),
            ["expected 2 to 10000 different labels in column 'label', found 1", "data.label.classes"],
            id="one class only",
        ),
        pytest.param(
            experiment(data={"sql": "SELECT array(1F) AS features, 1 AS label WHERE false"}),
            ["expected rows to feed", "has none", "check its path and filters"],
            id="no rows",
        ),
        pytest.param(
            experiment(x="array(1.0F, float(1 div (id - 7)))"),
            ["expected Spark to compute the rows", "DIVIDE_BY_ZERO"],
            id="rows that Spark cannot compute",
        ),
    ],
)  # fmt: skip
def test_run_when_rows_are_not_as_declared_names_them(fail: Fail, config: Config, parts: list[str]) -> None:
    code, err = fail(config)
    assert code == RUN_FAILED
    check_message(err, *parts)
    assert "error: " + parts[0] in (run_directory(Path()) / "run.log").read_text()


def test_run_when_a_file_is_damaged_names_it(spark: SparkSession, fail: Fail, tmp_path: Path) -> None:
    register(spark)
    spark.range(10).selectExpr("array(1F, 2F) AS features", "id % 2 AS label").coalesce(1).write.format(
        "tfrecord"
    ).mode("append").save(str(tmp_path / "rows"))
    (file,) = (tmp_path / "rows").glob("part-*")
    content = bytearray(file.read_bytes())
    content[20] ^= 255
    file.write_bytes(content)
    source = {
        "sql": None,
        "format": "tfrecord",
        "path": "rows",
        "schema": "features ARRAY<FLOAT>, label LONG",
    }

    code, err = fail(experiment(data=source))

    assert code == RUN_FAILED
    check_message(err, file.name, "byte 0", "mode=")


# --- the model module ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        pytest.param(
            MODEL.format(before_return="pass", returned="'a model'"),
            [
                "worker 0 on 127.0.0.1",
                "expected build_model to return a compiled keras.Model, it returned str",
            ],
            id="no model",
        ),
        pytest.param(
            MODEL.format(before_return="pass", returned="keras.Sequential([keras.Input((2,))])"),
            ["worker 0 on 127.0.0.1", "the model is not compiled", "call model.compile("],
            id="not compiled",
        ),
    ],
)
def test_run_when_build_model_returns_no_compiled_model_says_so(
    fail: Fail, model: str, parts: list[str]
) -> None:
    code, err = fail(experiment(), model)
    assert code == RUN_FAILED
    check_message(err, *parts)


def test_run_when_build_model_raises_shows_the_line_and_keeps_the_log(fail: Fail) -> None:
    model = MODEL.format(before_return="raise KeyError('units')", returned="model")
    code, err = fail(experiment(), model)
    assert code == RUN_FAILED
    message = err[err.index("error: ") :]
    assert message.startswith("error: worker 0 on 127.0.0.1 failed: KeyError: 'units'\n")
    assert "in build_model\n    raise KeyError('units')" in message
    assert "KeyError: 'units'" in (run_directory(Path()) / "logs/worker-0.log").read_text()


def test_run_when_the_model_of_an_epoch_cannot_be_saved_says_which_and_why_and_continues(
    fail: Fail, tmp_path: Path
) -> None:
    in_the_way = "import glob; open(glob.glob(params['runs'] + '/*')[0] + '/checkpoints', 'w').close()"
    model = MODEL.format(before_return=in_the_way, returned="model")
    params = {"runs": str(tmp_path / "runs")}
    code, err = fail(experiment(model={"module": "model.py", "params": params}), model)
    assert code == 0, err
    directory = run_directory(Path())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (lost,) = [line for line in lines if line["event"] == "not_kept"]
    assert lost["name"] == "checkpoints/epoch-0001.keras"
    assert lost["why"].startswith("Not a directory: ")
    assert (directory / "export" / "model.keras").is_file()
