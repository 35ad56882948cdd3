"""Experiments from YAML files and ``--set`` options, and the messages when these are wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfspark.errors import ConfigError
from tfspark.experiment.config import Experiment, Source, load_config, resolved_yaml
from tfspark.experiment.config_schema import OPTIMIZERS
from tfspark.experiment.yaml_source import Dumper, parse_document

MINIMAL = """\
name: digits
model: {module: models/cnn.py}
data:
  format: parquet
  path: rows
  features: {image: {}}
  label: {column: label, classes: 10}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes the text of an experiment to ``x.yaml`` in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> Path:
        Path("x.yaml").write_text(text, encoding="utf-8")
        return Path("x.yaml")

    return write_text


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_load_config_takes_names_for_columns_without_settings(write: Write) -> None:
    path = write(MINIMAL)
    by_names = load_config(path, ["data.features=[a, b]", "data.label=y"])
    by_mappings = load_config(path, ["data.features={a: {}, b: {}}", "data.label={column: y}"])
    assert by_names == by_mappings
    assert list(by_names.data.features) == ["a", "b"]
    assert list(load_config(path, ["data.features=a"]).data.features) == ["a"]


def test_load_config_when_minimal_fills_in_defaults(write: Write) -> None:
    experiment = load_config(write(MINIMAL))
    assert experiment.seed == 42
    assert experiment.data.batch_size == 64
    assert experiment.cluster.master is None
    assert experiment.train.callbacks.terminate_on_nan
    assert experiment.train.callbacks.early_stopping is None
    assert experiment.export.formats == ("keras", "saved_model")


def test_set_option_overrides_yaml_and_default(write: Write) -> None:
    path = write(MINIMAL + "train: {epochs: 3}\n")
    experiment = load_config(path, ["train.epochs=5", "checkpoint.keep=1", "train.epochs=7"])
    assert (experiment.train.epochs, experiment.checkpoint.keep) == (7, 1)


@pytest.mark.parametrize(
    ("option", "read", "expected", "reason"),
    [
        (
            "train.learning_rate=1e-3",
            lambda e: e.train.learning_rate,
            1e-3,
            "YAML 1.2: a number without a dot",
        ),
        ("model.params.note=no", lambda e: e.model.params, {"note": "no"}, "YAML 1.2: no is a word"),
        ("model.params.size=010", lambda e: e.model.params, {"size": 10}, "YAML 1.2: no octal numbers"),
        ("model.params.at=12:30", lambda e: e.model.params, {"at": "12:30"}, "YAML 1.2: no sexagesimals"),
        ("model.params.a.b=[1, x]", lambda e: e.model.params, {"a": {"b": [1, "x"]}}, "nested free keys"),
        (
            "cluster.spark.spark.executor.memory=4g",
            lambda e: e.cluster.spark,
            {"spark.executor.memory": "4g"},
            "names of Spark settings have dots",
        ),
        ("cluster.spark.spark.x=true", lambda e: e.cluster.spark, {"spark.x": "true"}, "Spark's spelling"),
        ("data.options.a.b=2", lambda e: e.data.options, {"a.b": "2"}, "reader options have dots too"),
        ("cluster.master=", lambda e: e.cluster.master, None, "an empty value is null"),
        ('cluster.master=""', lambda e: e.cluster.master, None, "an empty text is null"),
        ("train.optimizer=sgd", lambda e: e.train.optimizer.name, "sgd", "a name stands for the mapping"),
        (
            "train.optimizer={name: sgd, momentum: 0.9}",
            lambda e: e.train.optimizer.arguments,
            {"momentum": 0.9},
            "the other keys are arguments",
        ),
        (
            "train.callbacks.early_stopping.monitor=loss",
            lambda e: e.train.callbacks.early_stopping.patience,
            3,
            "a section that was absent",
        ),
        ("train.class_weights={0: 2}", lambda e: e.train.class_weights, {0: 2.0}, "labels may be numbers"),
        ("train.class_weights=balanced", lambda e: e.train.class_weights, "balanced", "or the word"),
        ("data.label.classes=infer", lambda e: e.data.label.classes, "infer", "classes found by Spark"),
        ("data.label.classes=[a, b]", lambda e: e.data.label.classes, ("a", "b"), "classes by name"),
        ("data.label.classes=[3, 5]", lambda e: e.data.label.classes, (3, 5), "classes by number"),
        ("data.label=null", lambda e: e.data.label, None, "an autoencoder has no label"),
        ("data.label={column: [a, b]}", lambda e: e.data.label.columns, ("a", "b"), "several outputs"),
        ("data.weight=importance", lambda e: e.data.weight, "importance", "a weight for each row"),
        ("data.examples=byteArray", lambda e: e.data.examples, "byteArray", "records as bytes"),
        (
            "data.features.x={ragged: pad, pad_to: 5, pad_value: -1}",
            lambda e: (e.data.features["x"].pad_to, e.data.features["x"].pad_value),
            (5, -1),
            "rows of unequal lengths",
        ),
        (
            "data.features.x={ragged: pad, pad_value: <pad>}",
            lambda e: e.data.features["x"].pad_value,
            "<pad>",
            "lists of texts of unequal lengths",
        ),
        (
            "data.features.x={decode: image, shape: [8, 8, 3], resize: true}",
            lambda e: e.data.features["x"].resize,
            True,
            "image files",
        ),
        (
            "data.features.x=",
            lambda e: e.data.features["x"].shape,
            None,
            "a column without settings",
        ),
    ],
)
def test_set_parses_its_value_as_yaml(
    write: Write, option: str, read: Callable[[Experiment], object], expected: object, reason: str
) -> None:
    assert read(load_config(write(MINIMAL), [option])) == expected, reason


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nane: x", "x.yaml:8: nane: unknown key; expected one of name, seed, model,"),
        ("epochs: 3", "x.yaml:8: epochs: unknown key; did you mean train.epochs?"),
        ("train: {epoch: 3}", "x.yaml:8: train.epoch: unknown key; did you mean train.epochs?"),
        ("train: {epochs: 0}", "x.yaml:8: train.epochs: expected a whole number, 1 or more; got 0"),
        ("train: {epochs: 1.5}", "x.yaml:8: train.epochs: expected a whole number, 1 or more; got 1.5"),
        ("train: {epochs: true}", "x.yaml:8: train.epochs: expected a whole number, 1 or more; got true"),
        (
            "train: {epochs: '3'}",
            "x.yaml:8: train.epochs: expected a whole number, 1 or more; got the text '3'",
        ),
        (
            "train:\n  epochs:",
            "x.yaml:9: train.epochs: expected a whole number, 1 or more; got nothing (null)",
        ),
        ("train: 3", "x.yaml:8: train: expected a mapping; got 3"),
        ("train: {optimizer: adm}", "x.yaml:8: train.optimizer: expected one of adadelta, adafactor"),
        (
            "train: {class_weights: {0: -1}}",
            "x.yaml:8: train.class_weights.0: expected balanced, or a mapping",
        ),
        ("train: {class_weights: {10: 1}}", "x.yaml:8: train.class_weights: expected labels among"),
        ("train: {callbacks: {early_stopping: {}}}", "expected a metric of the training rows"),
        ("train: {learning_rate: 1, optimizer: {name: sgd, learning_rate: 2}}", "expected one learning rate"),
        (
            "train: {learning_rate: 1, schedule: {name: cosine_decay}}",
            "train.schedule: expected no schedule beside",
        ),
        ("train: {schedule: {name: cosine}}", "train.schedule.name: expected one of cosine_decay, "),
        ("train: {mixed_precision: half}", "train.mixed_precision: expected none, float16 or bfloat16"),
        ("cluster: {master: locl}", "x.yaml:8: cluster.master: expected a Spark master: local[4],"),
        ("cluster: {executors: 2, ps: 2}", "x.yaml:8: cluster.executors: expected more than 2"),
        (
            "cluster: {executors: 3}",
            "x.yaml:3: data.batch_size: expected a global batch_size that divides among 3",
        ),
        ("cluster: {executors: 3}", "use 63 or 66"),
        ("cluster: {input_mode: tensorflow}", "tensorflow reads only TFRecord files at a path"),
        (
            "cluster: {feed_timeout_s: 0}",
            "cluster.feed_timeout_s: expected a number of seconds above 0; got 0",
        ),
        (
            "cluster: {spark: {spark: {a: 1}}}",
            "cluster.spark.spark: expected a mapping: name -> text, number",
        ),
        ("export: {formats: [onnx]}", "x.yaml:8: export.formats.0: expected a list of keras and saved_model"),
        ("name: again", "x.yaml:8: name: given twice, first on line 1; keep one of the two"),
        ("seed: 4294967296", "x.yaml:8: seed: expected a whole number in [0, 2**32); got 4294967296"),
    ],
)
def test_load_config_when_key_wrong_names_line_key_and_what_was_expected(
    write: Write, line: str, expected: str
) -> None:
    assert expected in problems(write(MINIMAL + line + "\n"))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("data.table=t", "data: expected exactly one of path, table and sql, got path and table"),
        ("data.path=null", "data: expected exactly one of path, table and sql, got none"),
        ("data.format=null", "data.path: expected a format, too"),
        ("data.validation={table: t, format: csv}", "data.validation.format: expected only with a path"),
        ("data.validation={path: v, foo: 1}", "data.validation.foo: unknown key"),
        ("data.validation=1.0", "data.validation: expected a fraction of the rows in [0, 1)"),
        ("data={}", "data.features: missing: expected a mapping with at least one column"),
        ("data.features={}", "data.features: expected a mapping with at least one column"),
        ("data.features=[a, a]", "or a list of different column names; got ['a', 'a']"),
        ("data.features=[a, 1]", "or a list of different column names; got ['a', 1]"),
        ("data.features=[a, label]", "data.label.column: expected a column that is not among the features"),
        ("data.label=[a]", "data.label: expected a mapping with a column, or a column's name; got ['a']"),
        (
            "data.features.image.shape=[28, 0]",
            "data.features.image.shape.1: expected a list of whole numbers",
        ),
        ("data.features.image.dtype=uint9", "data.features.image.dtype: expected one of bool, int8"),
        (
            "data.features.image.scael=2",
            "data.features.image.scael: unknown key; did you mean data.features.image.sc",
        ),
        (
            "data.features.image={scale: 2, dtype: bool}",
            "data.features.image.scale: expected a dtype of numbers",
        ),
        ("data.label.column=image", "data.label.column: expected a column that is not among the features"),
        (
            "data.label.column=[a, image]",
            "data.label.column: expected a column that is not among the features",
        ),
        ("data.weight=image", "data.weight: expected a column that is neither a feature nor a label"),
        ("data.label.column=[a, b]", "data.label.classes: expected nothing, since there are 2 labels"),
        ("data.label.column=[]", "data.label.column: expected a column's name, or a list of names"),
        ("data.features.image={ragged: some}", "data.features.image.ragged: expected pad or ragged"),
        (
            "data.features.image={pad_to: 3}",
            "data.features.image.pad_to: expected pad_to only beside ragged pad",
        ),
        (
            "data.features.image={ragged: pad, shape: [3]}",
            "data.features.image.shape: expected no shape beside ragged",
        ),
        (
            "data.features.image={decode: image}",
            "data.features.image.decode: expected the shape [height, width, channels] beside decode image",
        ),
        ("data.label.classes=1", "data.label.classes: expected a whole number, 2 or more; a list"),
        ("data.label.classes=[1, a]", "data.label.classes"),
        (
            "data.label.classes=[a, b, a]",
            "data.label.classes: expected every class once, got 'a' more than once",
        ),
        ("train.epochs", "--set train.epochs: expected key=value with a dotted key"),
        ("train..epochs=3", "--set train..epochs=3: expected key=value with a dotted key"),
        ("train.epochs=[3", "--set train.epochs=[3: expected a YAML value after '='"),
        ("name.x=3", "--set name.x=3: name is 'digits' and has no keys of its own; set name itself"),
        (
            "train.epochs=ten",
            "--set train.epochs=ten: train.epochs: expected a whole number, 1 or more; got the text",
        ),
    ],
)
def test_set_when_wrong_names_the_option(write: Write, option: str, expected: str) -> None:
    message = problems(write(MINIMAL), option)
    assert expected in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ("{executors: 3, ps: 1}", "data.ordered: expected false with cluster.ps=1"),
        ("{input_mode: tensorflow}", "data.ordered: expected false under input_mode tensorflow"),
    ],
)
def test_ordered_rows_are_refused_where_steps_have_no_order(
    write: Write, cluster: str, expected: str
) -> None:
    assert expected in problems(write(f"{MINIMAL}cluster: {cluster}\n"), "data.ordered=true")


def test_load_config_lists_all_problems_in_the_order_of_the_file(write: Write) -> None:
    text = MINIMAL.replace("digits", "two words") + "cluster: {executors: 3, ps: 3}\ntrain: {epochs: 0}\n"
    lines = problems(write(text), "seed=-1").splitlines()
    assert lines[0] == "4 problems in x.yaml:"
    assert [line.split(": ")[1] for line in lines[1:4]] == ["name", "cluster.executors", "train.epochs"]
    assert lines[4].startswith("  --set seed=-1: seed:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "x.yaml:1: expected a mapping with keys such as name, model and data, got an empty file"),
        ("- a", "got a list"),
        ("x", "got the value 'x'"),
        ("a: [", "x.yaml:1, column 5: bad YAML"),
        ("a: b: c", "x.yaml:1, column 5: bad YAML: mapping values are not allowed here"),
        ("a:\n\t- b", "x.yaml:2, column 1: bad YAML"),
        ("a: &x {b: *x}", "bad YAML: the anchor contains itself"),
        ("name: !!python/object:os.system x", "bad YAML: could not determine a constructor"),
        ("? [a]\n: b", "bad YAML: a key must be a word or a number"),
        ("a: 1\n---\nb: 2", "x.yaml:2, column 1: bad YAML: expected a single document"),
        ("\x00", "bad YAML: unacceptable character"),
    ],
)
def test_load_config_when_not_a_yaml_mapping_says_where(write: Write, text: str, expected: str) -> None:
    assert expected in problems(write(text))


def test_load_config_when_not_utf8_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"name: \xff")
    assert "expected UTF-8 text" in problems(path)


def test_load_config_when_file_missing_lists_what_is_shipped() -> None:
    message = problems(Path("configs/mnist_cn.yaml"))
    assert "configs/mnist_cn.yaml: expected a file, got no such file" in message
    assert "configs/mnist_cnn.yaml" in message


def test_load_config_when_merge_key_used_merges(write: Write) -> None:
    text = MINIMAL + "cluster:\n  <<: &base {executors: 2}\n  ps: 0\n"
    assert load_config(write(text)).cluster.executors == 2


@pytest.mark.parametrize("path", ["rows", "rows/*.parquet", "rows/{a,b}"])
def test_load_config_when_data_is_local_makes_its_path_absolute(
    write: Write, tmp_path: Path, path: str
) -> None:
    (tmp_path / "rows").mkdir()
    experiment = load_config(write(MINIMAL), [f"data.path='{path}'", "data.test.path=rows"])
    assert experiment.data.path == str(tmp_path / path)
    assert isinstance(experiment.data.test, Source)
    assert experiment.data.test.path == str(tmp_path / "rows")


@pytest.mark.parametrize("path", ["rows", "*.parquet", "s3://bucket/rows", "/nowhere/rows"])
def test_load_config_when_data_is_not_local_leaves_its_path_to_spark(write: Write, path: str) -> None:
    assert load_config(write(MINIMAL), [f"data.path='{path}'"]).data.path == path


def test_source_of_test_rows_inherits_format_and_schema_from_data(write: Write) -> None:
    experiment = load_config(
        write(MINIMAL), ["data.schema=a INT", "data.test={path: t}", "data.validation=0.25"]
    )
    source = experiment.data.test_source
    assert source is not None
    assert (source.format, source.path, source.schema_ddl) == ("parquet", "t", "a INT")
    assert experiment.data.source.path == "rows"
    assert (experiment.data.validation_fraction, experiment.data.test_fraction) == (0.25, 0.0)
    assert experiment.data.has_validation
    assert experiment.data.validation_source is None


def test_local_batch_size_when_some_nodes_do_not_train_counts_workers_only(write: Write) -> None:
    experiment = load_config(write(MINIMAL), ["cluster={executors: 4, ps: 1, evaluator: true}"])
    assert (experiment.num_workers, experiment.local_batch_size) == (2, 32)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.optimizer={name: sgd, momentum: 0.9}", "train.learning_rate=1e-5"],
        ["train.class_weights={0: 2, 9: 0.5}", "data.label.classes=[0, 9]"],
        ["data.validation={sql: SELECT 1}", "data.test=0.2"],
        [
            "cluster.spark.spark.a=1",
            "cluster.master=local[4]",
            "model.params={no: 'yes', x: '1e-3', y: '010'}",
        ],
        ["data.features.image={shape: [2, 3], dtype: uint8, scale: 255}", "data.schema=image BINARY"],
    ],
)
def test_resolved_yaml_when_loaded_again_is_the_same_experiment(write: Write, overrides: list[str]) -> None:
    experiment = load_config(write(MINIMAL), overrides)
    assert load_config(write(resolved_yaml(experiment))) == experiment


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.dictionaries(st.text(), SCALARS | st.lists(SCALARS)))
def test_yaml_when_written_and_read_keeps_every_value(values: dict[str, object]) -> None:
    import yaml

    text = yaml.dump({"model": values}, Dumper=Dumper, allow_unicode=True)
    read = parse_document(text, "x.yaml").values["model"]
    assert read == values
    assert {key: type(value) for key, value in read.items()} == {
        key: type(value) for key, value in values.items()
    }


def test_keras_knows_every_optimizer_of_the_schema() -> None:
    assert all(keras.optimizers.get(name) is not None for name in OPTIMIZERS)


def test_import_of_config_imports_neither_spark_nor_tensorflow() -> None:
    code = (
        "import sys, tfspark.experiment.config;"
        "print([name for name in ('pyspark', 'tensorflow', 'keras', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["configs/mnist_cnn.yaml", "configs/mnist_full.yaml"])
def test_shipped_config_when_loaded_from_another_directory_is_valid(name: str, write: Write) -> None:
    assert load_config(name).model.module == "models/cnn.py"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("data.test=0.2", "data.test: expected a separate source under input_mode tensorflow, got 0.2"),
        ("data.validation=0.1", "data.validation: expected a separate source under input_mode tensorflow"),
        ("data.label.classes=[a, b]", "only Spark can number labels"),
        ("data.label.classes=infer", "only Spark can number labels"),
    ],
)
def test_load_config_when_workers_read_files_refuses_what_only_spark_can_do(
    write: Write, option: str, said: str
) -> None:
    path = write(MINIMAL.replace("parquet", "tfrecord") + "cluster: {input_mode: tensorflow}")
    assert said in problems(path, option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "data.label.classes=infer",
            "data.label.classes: expected the number of classes, or nothing, together",
        ),
        (
            "train.class_weights=balanced",
            "train.class_weights: expected a mapping together with data.examples",
        ),
        ("cluster.input_mode=tensorflow", "data.examples: expected nothing under input_mode tensorflow"),
    ],
)
def test_load_config_with_columns_inside_examples_refuses_settings_for_which_spark_needs_columns(
    write: Write, option: str, said: str
) -> None:
    path = write(MINIMAL.replace("parquet", "tfrecord").replace("  path", "  examples: byteArray\n  path"))
    assert said in problems(path, option)


def test_load_config_with_an_evaluator_refuses_callbacks_that_monitor_validation_metrics(
    write: Write,
) -> None:
    callbacks = "train: {callbacks: {early_stopping: {monitor: val_loss}}}"
    path = write(f"{MINIMAL}cluster: {{evaluator: true, executors: 3}}\n{callbacks}")
    assert "because with an evaluator callbacks do not get validation metrics" in problems(
        path, "data.validation=0.1"
    )
