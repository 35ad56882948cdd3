"""`tfspark predict` and `tfspark evaluate`: apply a trained model to the rows of a path. Driver only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfspark.errors import ConfigError
from tfspark.experiment.config import Cluster, Experiment, Source, load_config
from tfspark.experiment.config_schema import WINDOW
from tfspark.experiment.rows import cut_series, read_source, select_rows
from tfspark.experiment.session import spark_session
from tfspark.experiment.spark_errors import spark_errors_in_words
from tfspark.inference.evaluate import evaluate
from tfspark.inference.pictures import draw_rows
from tfspark.inference.predict import find_model, predict
from tfspark.inference.windows import WINDOW as ML_WINDOW
from tfspark.inference.windows import Windows, with_windows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CONFIG = "config.yaml"
FORMATS = ("parquet", "json", "csv", "orc", "tfrecord")


def predict_files(
    model: str,
    data: str,
    output: str,
    data_format: str | None,
    output_format: str,
    features: Sequence[str] | None,
    handle_invalid: str,
    cluster: Cluster | None,
) -> int:
    """Write the rows of a path with their predictions; return the number of rows.

    Args:
        model: a run directory, a ``.keras`` file or a SavedModel.
        data: path of the rows.
        output: directory to write; it must not exist.
        data_format: of the rows; None: that of the run, or parquet.
        output_format: one of `FORMATS`.
        features: columns that the model reads; None: those of the run.
        handle_invalid: as in `tfspark.predict`.
        cluster: Spark's master and settings; None: those of the run, or ``local[*]``.

    Raises:
        ConfigError: an input does not exist, or the output does.
    """
    if output_format not in FORMATS:
        raise ConfigError(
            f"expected --output-format to be one of {', '.join(FORMATS)}, got {output_format!r}"
        )
    if "://" not in output and Path(output).exists():
        raise ConfigError(f"expected to make {output}, but it exists; remove it, or choose another --output")
    find_model(model)  # Report a mistake before Spark starts.
    run = _experiment_of(model)
    with spark_session("predict", _cluster_of(run, cluster)) as spark, spark_errors_in_words():
        rows = _up_to_now(read_source(spark, _source_of(run, data, data_format)), run)
        made = predict(
            rows, model, features=list(features) if features else None, handle_invalid=handle_invalid
        )
        if run is not None and run.data.windows is not None:
            made = made.drop(WINDOW)
        write_rows(made, output, output_format)
        return _count(spark, output, output_format)


def _up_to_now(df: DataFrame, run: Experiment | None) -> DataFrame:
    """If the run cut windows, return each row with the window that ends with it, without rows that have none."""
    if run is None or run.data.windows is None:
        return df
    cut = run.data.windows
    own = Windows(cut.order, cut.groups, cut.columns, cut.columns[0], cut.steps, cut.horizon)
    found = with_windows(df, own).withColumnRenamed(ML_WINDOW, WINDOW)
    return found.where(found[WINDOW].isNotNull())


def _count(spark: SparkSession, output: str, output_format: str) -> int:
    reader = spark.read.format(output_format)
    if output_format == "csv":
        reader = reader.option("header", True).option("multiLine", True)
    return int(reader.load(output).count())


def write_rows(df: DataFrame, output: str, output_format: str) -> None:
    """Write rows; CSV files get arrays as JSON, and bytes in base64."""
    from pyspark.sql import functions as sf

    from tfspark.feed.spark_names import quoted
    from tfspark.tfrecord import register

    register(df.sparkSession)
    writer = df
    if output_format == "csv":
        columns = []
        for field in df.schema.fields:
            column, kind = df[quoted(field.name)], field.dataType.typeName()
            if kind == "binary":
                column = sf.base64(column)
            elif kind in ("array", "map", "struct", "udt"):
                column = sf.to_json(column)
            columns.append(column.alias(field.name))
        writer = df.select(*columns)
    writer.write.format(output_format).option("header", True).mode("error").save(output)


def evaluate_files(
    run: str, data: str, data_format: str | None, output: Path | None, cluster: Cluster | None
) -> tuple[dict[str, float], Path]:
    """Evaluate a run's model on the rows of a path: metrics and pictures, as for the run's own test rows.

    Args:
        run: the run directory.
        data: path of the rows, including the label.
        data_format: of the rows; None: that of the run.
        output: directory of the results; None: ``evaluation-1`` and so on in the run directory.
        cluster: Spark's master and settings; None: those of the run.

    Returns:
        The metrics, and the directory of the results.

    Raises:
        ConfigError: `run` is not a run directory, or has no exported model.
    """
    found, experiment = find_model(run), _experiment_of(run)
    if experiment is None or found.described is None:
        raise ConfigError(
            f"expected a run directory of tfspark run to evaluate, got {run!r}; it has config.yaml and export/"
        )
    described = found.described
    with spark_session("evaluate", _cluster_of(experiment, cluster)) as spark, spark_errors_in_words():
        rows = cut_series(read_source(spark, _source_of(experiment, data, data_format)), experiment.data)
        columns = replace(described.columns, class_weights=())
        classes = described.classes if not described.is_multi_label else ()
        selected = select_rows(rows, columns, tuple(classes))
        metrics = evaluate(selected, found.files, columns, len(described.classes) or None)
        pictures = draw_rows(selected, found.files, columns)
    place = output or _next(Path(run))
    numbers = write_results(place, metrics, [str(value) for value in described.classes])
    for name, picture in pictures.items():
        (place / "pictures").mkdir(exist_ok=True)
        (place / "pictures" / name).write_bytes(picture)
    return numbers, place


def write_results(place: Path, metrics: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
    """Write ``results.json``, and with classes the pictures of a run; return the single numbers."""
    import json

    from tfspark.experiment.plots import draw_roc
    from tfspark.experiment.report import (
        class_scores,
        macro_scores,
        mean_area,
        single_numbers,
        write_confusion_matrix,
    )

    found = dict(metrics)
    confusion, curves = found.pop("confusion_matrix", None), found.pop("roc", None) or []
    numbers: dict[str, float] = single_numbers(found)
    place.mkdir(parents=True, exist_ok=True)
    scores = None
    if confusion is not None:
        matrix = np.asarray(confusion, np.int64)
        scores = class_scores(matrix, classes)
        numbers.update(macro_scores(scores))
        if matrix.ndim == 2:
            write_confusion_matrix(place, matrix, classes)
    names = classes if len(curves) > 1 else [""]
    named = {name: curve for name, curve in zip(names, curves, strict=False) if curve}
    if named:
        numbers.setdefault("auc_macro" if len(curves) > 1 else "auc", mean_area(named.values()))
        draw_roc(place / "roc.png", named)
    results = {"test": numbers, "confusion_matrix": confusion, "classes": scores}
    (place / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return numbers


def _next(run: Path) -> Path:
    number = 1
    while (run / f"evaluation-{number}").exists():
        number += 1
    return run / f"evaluation-{number}"


def _experiment_of(model: str) -> Experiment | None:
    config = Path(model) / CONFIG
    return load_config(config) if config.is_file() else None


def _cluster_of(run: Experiment | None, given: Cluster | None) -> Cluster:
    if given is not None:
        return given
    return Cluster(master="local[*]") if run is None else run.cluster


def _source_of(run: Experiment | None, data: str, data_format: str | None) -> Source:
    if run is None or (data_format is not None and data_format != run.data.format):
        return Source.model_validate({"path": data, "format": data_format or "parquet"})
    own = run.data.source
    return own.model_copy(update={"path": data, "table": None, "sql": None})
