"""Run one experiment, from its configuration to its report. Runs on the driver; called by the command line."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from tfspark.cluster.inputs import FeedOptions, InputMode
from tfspark.cluster.layout import parallelism_of
from tfspark.cluster.preflight import check_settings
from tfspark.cluster.tfcluster import MOST_COUNTED_CLASSES, TFCluster
from tfspark.cluster.warm_up import warm_up_before_spark, warming_up
from tfspark.errors import ConfigError, TfsparkError, in_words
from tfspark.experiment.config import Experiment, resolved_yaml
from tfspark.experiment.console import RunConsole, format_metrics, rows_per_s
from tfspark.experiment.datasets import DATASETS, prepare
from tfspark.experiment.modules import ModelModule, load_model_module
from tfspark.experiment.plots import draw_roc
from tfspark.experiment.report import (
    class_scores,
    final_table,
    macro_scores,
    mean_area,
    single_numbers,
    write_confusion_matrix,
    write_curves,
)
from tfspark.experiment.resume import Earlier, find_earlier
from tfspark.experiment.rows import Rows, load_rows, path_exists
from tfspark.experiment.rundir import RunDirectory
from tfspark.experiment.session import is_submitted, spark_session
from tfspark.experiment.spark_errors import spark_errors_in_words
from tfspark.feed.described import MODULE, Described
from tfspark.feed.files import TFRecordFiles
from tfspark.greetings import without_greetings
from tfspark.protocol.roles import local_batch_size
from tfspark.protocol.settings import Hooks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SHUFFLE_BATCHES = 16
"""Each worker shuffles rows in a window of this many batches, differently in every epoch."""


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        directory: the run directory.
        train: metrics of the last epoch.
        validation: validation metrics of the last epoch; None: no validation rows.
        test: metrics on the test rows; None: no test rows.
        seconds: phase -> its duration.
    """

    directory: Path
    train: dict[str, float]
    validation: dict[str, float] | None
    test: dict[str, float] | None
    seconds: dict[str, float]


logger = logging.getLogger("tfspark")


@dataclass
class _Watch:
    """Converts the cluster's events to lines, metrics and curves."""

    console: RunConsole
    directory: RunDirectory
    keep_checkpoints: int
    seconds: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    tensorflow_up: set[str] = field(default_factory=set)
    pending: dict[int, dict[str, Any]] = field(default_factory=dict)
    restarts: int = 0
    warned_of: set[str] = field(default_factory=set)

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        handler = getattr(self, f"_on_{event}", None)
        if handler is None:
            return
        if "metrics" in fields:
            fields = {**fields, "metrics": single_numbers(fields["metrics"])}
        with self.tolerating_full_disk():
            handler(fields)

    @contextmanager
    def tolerating_full_disk(self) -> Iterator[None]:
        """Warn once about files that cannot be written, and continue: a full disk does not end a training."""
        try:
            yield
        except OSError as error:
            why = f"{error.strerror or error}: {self.directory.path}"
            if why not in self.warned_of:
                self.warned_of.add(why)
                logger.warning("some results are missing in the run directory: %s", why)

    def _on_reserved(self, fields: Mapping[str, Any]) -> None:
        self.seconds["reservation"] = fields["seconds"]
        self.console.line(f"{'reservation':<24} {fields['seconds']:6.1f} s  {fields['nodes']} nodes")

    def _on_tensorflow(self, fields: Mapping[str, Any]) -> None:
        self.seconds["tensorflow"] = max(fields["seconds"], self.seconds.get("tensorflow", 0.0))
        self.console.line(f"{'TensorFlow up':<24} {fields['seconds']:6.1f} s  {fields['node']}")

    def _on_step(self, fields: Mapping[str, Any]) -> None:
        self.console.step(fields)

    def _on_epoch(self, fields: Mapping[str, Any]) -> None:
        seconds = fields["seconds"]
        self.seconds[f"epoch {fields['epoch']}"] = seconds
        self.console.epoch(fields, fields["rows_fed"])
        self.directory.add_metrics(
            "epoch",
            epoch=fields["epoch"],
            seconds=seconds,
            rows=fields["rows_fed"],
            rows_per_s=rows_per_s(fields, fields["rows_fed"]),
            **fields["metrics"],
        )
        self.directory.add_scalars(fields["epoch"], fields["metrics"])

    def _on_validation(self, fields: Mapping[str, Any]) -> None:
        self.console.line(f"evaluated {fields['epoch']:<24}  {format_metrics(fields['metrics'])}")
        self.directory.add_metrics("validation", epoch=fields["epoch"], **fields["metrics"])
        self.directory.add_scalars(fields["epoch"], fields["metrics"])

    def _on_cache(self, fields: Mapping[str, Any]) -> None:
        kept = "later epochs are read from the nodes' disks"
        if fields["found"]:
            kept = "rows of an earlier training are read from the nodes' disks"
        lost = "not all workers could cache their rows (see their logs); later epochs are read from Spark"
        self.console.line(f"{'node cache':<24}           {kept if fields['kept'] else lost}")

    def _on_scan(self, fields: Mapping[str, Any]) -> None:
        self.console.note(
            f"rows are read by {fields['by']}" + (f": {fields['why']}" if fields["why"] else "")
        )

    def _on_checkpoint(self, fields: Mapping[str, Any]) -> None:
        kept = sorted((self.directory.path / "checkpoints").glob("epoch-*.keras"))
        for old in kept[: -self.keep_checkpoints]:
            old.unlink()

    def _on_restarting(self, fields: Mapping[str, Any]) -> None:
        self.restarts += 1
        self.console.restarting(self.restarts, fields["cause"], fields["pause_s"])
        self.directory.add_metrics("restart", **fields)

    def _on_sized(self, fields: Mapping[str, Any]) -> None:
        self.console.line(f"size{'':<25} {fields['workers']} of {fields['wanted']} workers")
        self.directory.add_metrics("sized", **fields)

    def _on_replacing(self, fields: Mapping[str, Any]) -> None:
        self.console.replacing(fields["node"], fields["cause"])
        self.directory.add_metrics("replacing", **fields)

    def _on_replaced(self, fields: Mapping[str, Any]) -> None:
        self.console.line(f"{'replaced':<24} {fields['seconds']:6.1f} s  {fields['node']}")
        self.directory.add_metrics("replaced", **fields)

    def _on_resumed(self, fields: Mapping[str, Any]) -> None:
        self.console.resumed(fields["epoch"], fields["step"])
        self.directory.add_metrics("resumed", **fields)

    def _on_state_not_kept(self, fields: Mapping[str, Any]) -> None:
        if (
            fields["why"] not in self.warned_of
        ):  # There is an event for every worker's part of every checkpoint.
            self.warned_of.add(fields["why"])
            self.console.state_not_kept(fields["why"])
            self.directory.add_metrics("state_not_kept", **fields)

    def _on_not_kept(self, fields: Mapping[str, Any]) -> None:
        self.directory.add_metrics("not_kept", **fields)

    def _on_rows_differ(self, fields: Mapping[str, Any]) -> None:
        self.console.rows_differ(**fields)
        self.directory.add_metrics("rows_differ", **fields)

    def _on_log(self, fields: Mapping[str, Any]) -> None:
        self.console.worker_lines(fields["node"], fields["lines"])


def run_experiment(
    experiment: Experiment,
    console: Console | None = None,
    show_worker_logs: bool = False,
    resume: Path | None = None,
) -> Outcome:
    """Train, evaluate, export and report an experiment.

    Args:
        experiment: the experiment.
        console: where the run is shown; None: standard output.
        show_worker_logs: print the workers' output.
        resume: run directory of an interrupted run to continue.

    Raises:
        ConfigError: a mistake that is found before anything starts.
        DataError: rows do not match their declaration.
        NodeFailedError: a node failed; the message includes its traceback and log.
    """
    console = console or Console()
    earlier = None if resume is None else find_earlier(resume, experiment)
    with without_greetings():  # The module may import TensorFlow.
        module = load_model_module(experiment.model.module)
    directory = RunDirectory(Path(experiment.output.dir), experiment.name)
    try:
        directory.write_text("config.yaml", resolved_yaml(experiment))
        directory.write_versions()
        if earlier is not None:
            directory.add_epochs(earlier.epochs)
        log = directory.open_log()
    except OSError as error:
        raise _cannot_write(directory.path, error) from None
    with log:
        shown = RunConsole(console, log, experiment.train.epochs, show_worker_logs)
        try:
            return _run(experiment, module, directory, shown, earlier)
        except (TfsparkError, KeyboardInterrupt) as error:
            shown.note(f"error: {in_words(error)}" if isinstance(error, TfsparkError) else "interrupted")
            raise


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"expected to write into the run directory {path}, the system said: {error.strerror}; make room there, or set "
        "output.dir to a directory on another disk"
    )


def _fetch_known_data(experiment: Experiment, spark: SparkSession, shown: RunConsole) -> None:
    """Prepare a data set of `DATASETS` if the experiment names its directory and the directory does not exist."""
    paths = [
        experiment.data.path,
        *(_split_path(s) for s in (experiment.data.validation, experiment.data.test)),
    ]
    for path in paths:
        parts = Path(path or "").parts
        known = [i for i in range(len(parts) - 1) if parts[i] == "data" and parts[i + 1] in DATASETS]
        if path is not None and known and not path_exists(path):
            name = parts[known[-1] + 1]
            with shown.phase(f"fetched {name}"):
                prepare(name, Path(*parts[: known[-1] + 1]), spark)


def _split_path(split: Any) -> str | None:
    return getattr(split, "path", None)


def _run(
    experiment: Experiment,
    module: ModelModule,
    directory: RunDirectory,
    shown: RunConsole,
    earlier: Earlier | None,
) -> Outcome:
    watch = _Watch(shown, directory, experiment.checkpoint.keep)
    began = time.monotonic()
    # TensorFlow is imported while Spark starts and while the data is prepared.
    num_warm = experiment.cluster.executors if experiment.cluster.warm else 0
    if num_warm and not is_submitted():
        warm_up_before_spark(experiment.cluster.master or "", experiment.cluster.spark)
    with spark_session(experiment.name, experiment.cluster) as spark:
        watch.seconds["session"] = time.monotonic() - began
        shown.line(
            f"{'Spark session':<24} {watch.seconds['session']:6.1f} s  {spark.conf.get('spark.master')}"
        )
        check_settings(spark)
        with spark_errors_in_words(), warming_up(spark, num_warm):
            _fetch_known_data(experiment, spark, shown)
            results = _train(experiment, module, directory, shown, watch, spark, earlier)
    outcome = _outcome(directory, results, watch)
    shown.table(final_table(outcome.train, outcome.validation, outcome.test))
    _report(experiment, directory, results, outcome, watch, earlier)
    shown.line(f"results in {directory.path}")
    return outcome


@dataclass
class _Results:
    history: dict[str, list[float]]
    test: dict[str, float] | None
    confusion: list[Any] | None
    curves: dict[str, list[list[float]]]
    class_names: tuple[str, ...]
    nodes: dict[str, Any]


def _cut_alike(spark: SparkSession, earlier: Earlier | None) -> None:
    """Make Spark cut files by one number of cores during the whole run: its current one, or that of the earlier run."""
    had = {} if earlier is None else earlier.checkpoint.layout.get("parallelism") or {}
    for name, value in (had or parallelism_of(spark)).items():
        spark.conf.set(name, value)


def _train(
    experiment: Experiment,
    module: ModelModule,
    directory: RunDirectory,
    shown: RunConsole,
    watch: _Watch,
    spark: SparkSession,
    earlier: Earlier | None,
) -> _Results:
    began = time.monotonic()
    _cut_alike(spark, earlier)
    rows = load_rows(spark, experiment)
    params = model_params(experiment, rows, module.parameters)
    if module.adapt is not None:
        params = module.adapt(params, rows.train)
    watch.seconds["data"] = time.monotonic() - began
    shown.line(f"{'data':<24} {watch.seconds['data']:6.1f} s")
    cluster = TFCluster.run(
        spark,
        module.build_model,
        params,
        **_settings(experiment, module, directory, watch),
        resume=None if earlier is None else str(earlier.directory),
    )
    with cluster, shown.live():
        history = _fit(cluster, experiment, rows)
        names = class_names(rows, params)
        test, confusion, curves = _test(cluster, rows, names, watch, shown)
        began = time.monotonic()
        nodes = cluster.shutdown(export=experiment.export.formats)
        watch.seconds["export and stop"] = time.monotonic() - began
        shown.line(f"{'export and stop':<24} {watch.seconds['export and stop']:6.1f} s")
    try:
        _keep_with_export(directory.path / "export", module, rows, names)
    except OSError as error:
        raise _cannot_write(directory.path, error) from None
    return _Results(history, test, confusion, curves, names, nodes)


def _keep_with_export(export: Path, module: ModelModule, rows: Rows, names: tuple[str, ...]) -> None:
    """Store the data that predictions need beside the exported model: columns, classes, the model module's source."""
    if not export.is_dir():
        return
    is_multi_label = bool(names) and not rows.class_names
    Described(rows.columns, rows.classes or names, is_multi_label).write(export)
    (export / MODULE).write_bytes(module.path.read_bytes())


def _settings(
    experiment: Experiment, module: ModelModule, directory: RunDirectory, watch: _Watch
) -> dict[str, Any]:
    cluster, train = experiment.cluster, experiment.train
    optimizer = train.optimizer
    return {
        "num_executors": cluster.executors,
        "num_ps": cluster.ps,
        "eval_node": cluster.evaluator,
        "input_mode": InputMode.TENSORFLOW if cluster.input_mode == "tensorflow" else InputMode.SPARK,
        "reservation_timeout": cluster.reservation_timeout_s,
        "feed_timeout": cluster.feed_timeout_s,
        "log_dir": str(directory.path),
        "seed": experiment.seed,
        "optimizer": None if optimizer is None else {"name": optimizer.name, **optimizer.arguments},
        "learning_rate": train.learning_rate,
        "schedule": None
        if train.schedule is None
        else {"name": train.schedule.name, **train.schedule.arguments},
        "mixed_precision": None if train.mixed_precision == "none" else train.mixed_precision,
        "callbacks": train.callbacks.model_dump(exclude_none=True),
        "checkpoint_every_epochs": experiment.checkpoint.every_epochs,
        "checkpoint_every_steps": experiment.checkpoint.every_steps,
        "checkpoint_every_seconds": experiment.checkpoint.every_seconds,
        "max_restarts": cluster.max_restarts,
        "restart_window": cluster.restart_window_s,
        "min_executors": cluster.min_executors,
        "resize_keeps": cluster.resize_keeps,
        "replacement_timeout": cluster.replacement_timeout_s,
        "tls": cluster.tls,
        "warm": cluster.warm,
        "allow_plaintext": cluster.allow_plaintext,
        "hooks": Hooks(module.features, module.callbacks, module.export, module.draw, module.draw_epoch),
        "observer": watch,
    }


def model_params(
    experiment: Experiment, rows: Rows, understood: Collection[str] | None = None
) -> dict[str, Any]:
    """Return ``model.params`` with ``input_shape``, ``num_classes`` and so on from the data section.

    Args:
        experiment: the experiment.
        rows: its rows.
        understood: names of the module's parameters; None: unknown.

    Raises:
        ConfigError: ``model.params`` has a different value.
    """
    params = dict(experiment.model.params)
    features = rows.columns.features
    known: dict[str, Any] = {}
    if len(features) == 1 and features[0].shape is not None:
        known["input_shape"] = list(features[0].shape)
    if rows.columns.num_classes is not None:
        known["num_classes"] = rows.columns.num_classes
    windows = experiment.data.windows
    if windows is not None and understood is not None:
        of_series = {"horizon": windows.horizon, "targets": windows.num_targets}
        known |= {key: value for key, value in of_series.items() if key in understood}
    for key, value in known.items():
        if params.setdefault(key, value) != value:
            raise ConfigError(
                f"expected model.params.{key} to be {value}, as in the data section, got {params[key]}; leave it out"
            )
    return params


def _fit(cluster: TFCluster, experiment: Experiment, rows: Rows) -> dict[str, list[float]]:
    data, train = experiment.data, experiment.train
    # The window of an ordered training is that of all workers together.
    workers = 1 if data.ordered else experiment.cluster.num_workers
    window = SHUFFLE_BATCHES * local_batch_size(data.batch_size, workers)
    if experiment.cluster.input_mode == "tensorflow":
        files = TFRecordFiles(str(data.path), rows.columns, window if data.shuffle else 0)
        return cluster.train(
            files, train.epochs, batch_size=data.batch_size, validation=rows.validation, verbose=0
        )
    return cluster.train(
        rows.train,
        train.epochs,
        columns=rows.columns,
        batch_size=data.batch_size,
        validation=rows.validation,
        feeding=FeedOptions(
            ordered=data.ordered,
            shuffle_rows=window if data.shuffle else 0,
            cache=data.cache,
            cache_bytes=data.cache_bytes,
            scan=data.scan,
        ),
        verbose=0,
    )


def class_names(rows: Rows, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes: those of the data, or numbers for a multi-label column."""
    label = rows.columns.class_label
    if rows.class_names or label is None or rows.columns.examples is not None:
        return rows.class_names
    is_array = rows.train.schema[label.name].dataType.typeName() == "array"
    return tuple(str(number) for number in range(params.get("num_classes", 0))) if is_array else ()


def _test(
    cluster: TFCluster, rows: Rows, names: tuple[str, ...], watch: _Watch, shown: RunConsole
) -> tuple[dict[str, float] | None, list[Any] | None, dict[str, list[list[float]]]]:
    if rows.test is None:
        return None, None, {}
    began = time.monotonic()
    counted = len(names) if 0 < len(names) <= MOST_COUNTED_CLASSES else None
    if names and counted is None:
        shown.line(f"no confusion matrix: {len(names)} classes are more than {MOST_COUNTED_CLASSES}")
    metrics: dict[str, Any] = cluster.evaluate(rows.test, num_classes=counted)
    confusion, curves = metrics.pop("confusion_matrix", None), metrics.pop("roc", None) or []
    metrics = single_numbers(metrics)
    if confusion is not None:
        metrics.update(macro_scores(class_scores(np.asarray(confusion), names)))
    # A single curve has no name: it belongs to the model's own AUC, or to the second of two classes.
    of_curves = names if len(curves) > 1 else ("",)
    named = {name: curve for name, curve in zip(of_curves, curves, strict=False) if curve}
    if named:
        metrics.setdefault("auc_macro" if len(curves) > 1 else "auc", mean_area(named.values()))
    watch.seconds["test"] = time.monotonic() - began
    shown.line(f"{'test':<24} {watch.seconds['test']:6.1f} s")
    return metrics, confusion, named


def _outcome(directory: RunDirectory, results: _Results, watch: _Watch) -> Outcome:
    side_car = results.nodes.get("evaluator 0") or {"history": {}}
    last = single_numbers(
        {name: values[-1] for name, values in {**results.history, **side_car["history"]}.items()}
    )
    train = {name: value for name, value in last.items() if not name.startswith("val_")}
    validation = {name[4:]: value for name, value in last.items() if name.startswith("val_")} or None
    return Outcome(directory.path, train, validation, results.test, watch.seconds)


def _report(
    experiment: Experiment,
    directory: RunDirectory,
    results: _Results,
    outcome: Outcome,
    watch: _Watch,
    earlier: Earlier | None,
) -> None:
    """Write the results of the run.

    Raises:
        ConfigError: there is no room for ``results.json``.
    """
    matrix = None if results.confusion is None else np.asarray(results.confusion, np.int64)
    with watch.tolerating_full_disk():
        if results.test is not None:
            directory.add_metrics("test", **results.test)
        write_curves(directory.path)
        if matrix is not None and matrix.ndim == 2:
            write_confusion_matrix(directory.path, matrix, results.class_names)
        if results.curves:
            draw_roc(directory.path / "roc.png", results.curves)
    found = {
        "name": experiment.name,
        "train": _finite(outcome.train),
        "validation": None if outcome.validation is None else _finite(outcome.validation),
        "test": None if results.test is None else _finite(results.test),
        "confusion_matrix": results.confusion,
        "classes": None if matrix is None else class_scores(matrix, results.class_names),
        "seconds": watch.seconds,
        "restarts": watch.restarts,
        "resumed_from": None if earlier is None else str(earlier.directory),
        "nodes": results.nodes,
    }
    try:
        directory.write_json("results.json", found)
    except OSError as error:
        raise _cannot_write(directory.path, error) from None


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
