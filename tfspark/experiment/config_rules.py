"""Rules between the keys of an experiment: each is a function of the sections that it checks.

`tfspark.experiment.config_schema` applies them to a whole experiment. If some sections are invalid,
`tfspark.experiment.config` applies them to the valid ones, so that one run reports all mistakes. Pure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tfspark.errors import ConfigError
from tfspark.feed.columns import option_problems
from tfspark.protocol.roles import local_batch_size

if TYPE_CHECKING:
    from tfspark.experiment.config_schema import Cluster, Data, Source, Train

Broken = tuple[tuple[str, ...], str]
"""The key that breaks a rule, and the message: what was expected, and what it got."""


class BrokenRulesError(ValueError):
    """Rules between keys that an experiment breaks."""

    def __init__(self, broken: list[Broken]):
        """Store the broken rules, and build the message from them."""
        self.broken = broken
        super().__init__("; ".join(f"{'.'.join(key)}: {text}" for key, text in broken))


def broken_rules(sections: Mapping[str, Any]) -> list[Broken]:
    """Apply every rule whose sections are given.

    Args:
        sections: name of a section -> the valid section.

    Returns:
        The broken rules, in the order of `RULES`.
    """
    broken: list[Broken] = []
    for rule in RULES:
        wanted = list(inspect.signature(rule).parameters)
        if all(name in sections for name in wanted):
            broken.extend(rule(**{name: sections[name] for name in wanted}))
    return broken


def sources(data: Data) -> Iterator[Broken]:
    """Every set of rows has exactly one source, and only the keys that belong to it."""
    yield from _source(("data",), data, data)
    for name in ("validation", "test"):
        split = getattr(data, name)
        if not isinstance(split, float):
            yield from _source(("data", name), split, data)


def fractions(data: Data) -> Iterator[Broken]:
    """Some rows remain to train on."""
    if data.validation_fraction + data.test_fraction >= 1:
        yield (
            ("data", "test"),
            "expected validation and test to be less than 1 together, so that rows are left to train on; got "
            f"{data.validation_fraction} + {data.test_fraction}",
        )


def label_is_no_feature(data: Data) -> Iterator[Broken]:
    """No label is a feature."""
    for column in data.label.columns if data.label is not None else ():
        if column in data.features:
            yield (
                ("data", "label", "column"),
                f"expected a column that is not among the features, got {column!r}, which is a feature: the "
                "model would see the answer; remove it from data.features",
            )


def weight_is_of_its_own(data: Data) -> Iterator[Broken]:
    """The weight is neither a feature nor a label."""
    labels = data.label.columns if data.label is not None else ()
    if data.weight is not None and data.weight in (*data.features, *labels):
        yield (
            ("data", "weight"),
            f"expected a column that is neither a feature nor a label, got {data.weight!r}; name another, or add a "
            "copy of it under another name",
        )


def classes_are_distinct(data: Data) -> Iterator[Broken]:
    """A list of classes has each class once."""
    classes = data.label.classes if data.label else None
    if isinstance(classes, tuple) and len(set(classes)) < len(classes):
        twice = next(value for value in classes if classes.count(value) > 1)
        yield ("data", "label", "classes"), f"expected every class once, got {twice!r} more than once"


def classes_of_one_label(data: Data) -> Iterator[Broken]:
    """Classes need a single label; and Spark cannot read the labels inside of serialized Examples."""
    if data.label is None or data.label.classes is None:
        return
    key = ("data", "label", "classes")
    if len(data.label.columns) > 1:
        yield key, f"expected nothing, since there are {len(data.label.columns)} labels; leave it out"
    elif data.examples is not None and not isinstance(data.label.classes, int):
        yield (
            key,
            "expected the number of classes, or nothing, together with data.examples: Spark does not read the content "
            "of the records; store labels as 0 to n-1",
        )


def windows_are_fed(data: Data) -> Iterator[Broken]:
    """If series are cut into windows, only the windows are fed."""
    if data.windows is None:
        return
    wrong = [name for name in data.features if name != "window"]
    if wrong:
        yield (
            ("data", "features"),
            f"expected only window, which data.windows creates, got {', '.join(wrong)}; leave features out",
        )
    label = None if data.label is None else data.label.column
    if label not in (None, "target"):
        yield (
            ("data", "label", "column"),
            f"expected target, which data.windows creates, got {label!r}; leave label out",
        )
    if data.label is not None and data.label.classes is not None:
        yield (
            ("data", "label", "classes"),
            "expected nothing: the targets of data.windows are numbers; leave it out",
        )
    for name in ("weight", "examples"):
        if getattr(data, name) is not None:
            yield ("data", name), "expected nothing beside data.windows, which creates new rows; leave it out"


def windows_are_cut_by_spark(data: Data, cluster: Cluster) -> Iterator[Broken]:
    """Workers that read files themselves cannot cut series."""
    if data.windows is not None and cluster.input_mode == "tensorflow":
        yield (
            ("data", "windows"),
            "expected nothing under input_mode tensorflow, where Spark reads no rows; set cluster.input_mode to spark",
        )


def column_options(data: Data) -> Iterator[Broken]:
    """The options of each column agree."""
    for column, feature in data.features.items():
        for name, problem in option_problems(dict(feature)).items():
            yield ("data", "features", column, name), problem


def scaled_numbers(data: Data) -> Iterator[Broken]:
    """Booleans are not scaled."""
    for column, feature in data.features.items():
        if feature.scale is not None and feature.dtype == "bool":
            yield (
                ("data", "features", column, "scale"),
                "expected a dtype of numbers to scale, got dtype bool",
            )


def some_worker(cluster: Cluster) -> Iterator[Broken]:
    """At least one node trains."""
    if cluster.num_workers < 1:
        others = cluster.ps + int(cluster.evaluator)
        yield (
            ("cluster", "executors"),
            f"expected more than {others}, for {cluster.ps} parameter servers, {int(cluster.evaluator)} "
            f"evaluator and at least 1 worker; got {cluster.executors}; set it to {others + 1} or more",
        )


def room_to_shrink(cluster: Cluster) -> Iterator[Broken]:
    """A cluster of `min_executors` nodes can train, and can be started again."""
    least, fewest = cluster.min_executors, cluster.ps + int(cluster.evaluator) + 1
    if least is None or cluster.num_workers < 1:
        return
    if not fewest <= least <= cluster.executors:
        yield (
            ("cluster", "min_executors"),
            f"expected between {fewest} (1 worker, {cluster.ps} parameter servers, {int(cluster.evaluator)} evaluator) "
            f"and cluster.executors, {cluster.executors}; got {least}",
        )
    if least < cluster.executors and not cluster.max_restarts:
        yield (
            ("cluster", "max_restarts"),
            f"expected at least 1 with min_executors {least}: a cluster changes its size by a restart; got 0",
        )


def batch_divides(data: Data, cluster: Cluster) -> Iterator[Broken]:
    """Every worker takes the same share of the global batch."""
    if cluster.num_workers < 1:
        return
    try:
        local_batch_size(data.batch_size, cluster.num_workers)
    except ConfigError as error:
        yield ("data", "batch_size"), str(error)


def tensorflow_reads_tfrecord(data: Data, cluster: Cluster) -> Iterator[Broken]:
    """Workers that read files themselves read TFRecord; Spark feeds the rows to evaluate, from any source."""
    if cluster.input_mode != "tensorflow":
        return
    if data.path is None or data.format not in ("tfrecord", "tfrecords"):
        came = f"format {data.format!r}" if data.path else "a table or a query"
        yield (
            ("cluster", "input_mode"),
            "expected spark, because tensorflow reads only TFRecord files at a path; "
            f"got tensorflow with {came}; set it to spark, or write the data as tfrecord",
        )


def tensorflow_divides_nothing(data: Data, cluster: Cluster) -> Iterator[Broken]:
    """Workers that read files themselves train on all rows of the files, unchanged."""
    if cluster.input_mode != "tensorflow":
        return
    if data.examples is not None:
        yield (
            ("data", "examples"),
            "expected nothing under input_mode tensorflow, where all records are Examples; leave it out",
        )
    fix = "set cluster.input_mode to spark, or"
    for key, fraction in (("validation", data.validation_fraction), ("test", data.test_fraction)):
        if fraction:
            yield (
                ("data", key),
                f"expected a separate source under input_mode tensorflow, got {fraction}; {fix} name a path",
            )
    if data.label is not None and not isinstance(data.label.classes, int | None):
        yield (
            ("data", "label", "classes"),
            "expected the number of classes, or nothing, under input_mode tensorflow: only Spark can number "
            f"labels; {fix} store labels as 0 to n-1",
        )


def monitored_rows(data: Data, train: Train, cluster: Cluster) -> Iterator[Broken]:
    """A callback that monitors a validation metric has validation rows."""
    for name in ("early_stopping", "reduce_lr_on_plateau"):
        callback = getattr(train.callbacks, name)
        if callback is not None and callback.monitor.startswith("val_") and not data.has_validation:
            yield (
                ("train", "callbacks", name, "monitor"),
                "expected a metric of the training rows, because there are no validation rows; "
                f"got {callback.monitor}; "
                f"set data.validation, or monitor {callback.monitor.removeprefix('val_')}",
            )
        elif callback is not None and callback.monitor.startswith("val_") and cluster.evaluator:
            yield (
                ("train", "callbacks", name, "monitor"),
                "expected a metric of the training rows, because with an evaluator callbacks do not get validation "
                f"metrics; got {callback.monitor}; set cluster.evaluator to false, or monitor "
                f"{callback.monitor.removeprefix('val_')}",
            )


def weighted_classes(data: Data, train: Train) -> Iterator[Broken]:
    """Class weights are for known classes."""
    if train.class_weights is None:
        return
    key = ("train", "class_weights")
    if data.label is None or data.label.classes is None:
        yield (
            key,
            "expected null, because there are no classes; set data.label.classes or leave it out",
        )
    elif train.class_weights == "balanced" and data.examples is not None:
        yield (
            key,
            "expected a mapping together with data.examples, because Spark does not read the content of the records; "
            "got balanced",
        )
    elif isinstance(train.class_weights, Mapping):
        unknown = [value for value in train.class_weights if not _is_class(value, data.label.classes)]
        if unknown:
            yield key, f"expected labels among data.label.classes, got {', '.join(map(repr, unknown))}"


def one_learning_rate(train: Train) -> Iterator[Broken]:
    """The learning rate is set once."""
    if train.learning_rate is not None and train.optimizer and "learning_rate" in train.optimizer.arguments:
        yield (
            ("train", "learning_rate"),
            f"expected one learning rate, got {train.learning_rate} here and "
            f"{train.optimizer.arguments['learning_rate']} in train.optimizer; keep one of the two",
        )
    if train.schedule is not None and train.learning_rate is not None:
        yield (
            ("train", "schedule"),
            f"expected no schedule beside train.learning_rate {train.learning_rate}; keep one of the two",
        )
    if train.schedule is not None and train.callbacks.reduce_lr_on_plateau is not None:
        yield (
            ("train", "schedule"),
            "expected no schedule beside train.callbacks.reduce_lr_on_plateau, which sets the rate, too; keep one of "
            "the two",
        )


def resampled_classes(data: Data, cluster: Cluster) -> Iterator[Broken]:
    """Spark can resample only rows whose class it knows."""
    if data.resample == "none":
        return
    key, came = ("data", "resample"), f"got {data.resample}"
    if data.label is None or data.label.classes is None:
        yield (
            key,
            f"expected none, because there are no classes; {came}; set data.label.classes or leave it out",
        )
    elif data.examples is not None:
        yield (
            key,
            "expected none together with data.examples, because Spark does not read the content of the records; "
            f"{came}",
        )
    elif cluster.input_mode == "tensorflow":
        yield key, f"expected none under input_mode tensorflow, where Spark reads no rows; {came}"


def precision_of_parameter_servers(train: Train, cluster: Cluster) -> Iterator[Broken]:
    """Parameter servers do not support loss scaling: workers would change each other's scale."""
    if train.mixed_precision == "float16" and cluster.ps:
        yield (
            ("train", "mixed_precision"),
            f"expected none or bfloat16 with cluster.ps={cluster.ps}, because float16 scales the loss; got float16",
        )


def workers_in_step(data: Data, cluster: Cluster) -> Iterator[Broken]:
    """Only Spark's rows have positions, and only steps that all workers take together have an order."""
    if data.ordered and cluster.ps:
        yield (
            ("data", "ordered"),
            f"expected false with cluster.ps={cluster.ps}, because asynchronous steps have no order; got true",
        )
    elif data.ordered and cluster.input_mode == "tensorflow":
        yield (
            ("data", "ordered"),
            "expected false under input_mode tensorflow, where each worker reads its own files; got true",
        )


RULES: tuple[Callable[..., Iterator[Broken]], ...] = (
    sources,
    fractions,
    label_is_no_feature,
    weight_is_of_its_own,
    classes_are_distinct,
    classes_of_one_label,
    windows_are_fed,
    windows_are_cut_by_spark,
    column_options,
    scaled_numbers,
    some_worker,
    room_to_shrink,
    batch_divides,
    tensorflow_reads_tfrecord,
    tensorflow_divides_nothing,
    monitored_rows,
    weighted_classes,
    one_learning_rate,
    resampled_classes,
    precision_of_parameter_servers,
    workers_in_step,
)


def _source(key: tuple[str, ...], source: Source, outer: Source) -> Iterator[Broken]:
    given = [name for name in ("path", "table", "sql") if getattr(source, name) is not None]
    if len(given) != 1:
        yield key, f"expected exactly one of path, table and sql, got {' and '.join(given) or 'none'}"
    elif given == ["path"]:
        if (source.format or outer.format) is None:
            yield (
                (*key, "path"),
                "expected a format, too, for example format: tfrecord or format: parquet",
            )
    else:
        for name, value in (
            ("format", source.format),
            ("schema", source.schema_ddl),
            ("options", source.options),
        ):
            if value:
                yield (*key, name), f"expected only with a path, got it with {given[0]}; leave it out"


def _is_class(value: object, classes: object) -> bool:
    if isinstance(classes, int):
        return isinstance(value, int) and 0 <= value < classes
    return value in classes if isinstance(classes, tuple) else True
