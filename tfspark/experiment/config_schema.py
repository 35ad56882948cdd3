"""The schema of an experiment: every key, its type, its range, its default.

`tfspark.experiment.config` fills it from YAML; a test compares ``docs/configuration.md`` with it. Each range is
stated twice, side by side: once for pydantic, once in `Words` for people. The docstring below a field is its
entry in the reference. No Spark, no TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from tfspark.experiment.config_rules import BrokenRulesError, broken_rules
from tfspark.protocol.roles import local_batch_size


@dataclass(frozen=True)
class Words:
    """The description of a field's expected values, for error messages and the reference."""

    text: str


OPTIMIZERS = (
    "adadelta", "adafactor", "adagrad", "adam", "adamw", "adamax", "ftrl", "lion", "muon", "nadam",
    "rmsprop", "schedulefreeadamw", "sgd",
)  # fmt: skip
"""The optimizers that `keras.optimizers.get` of Keras 3 knows by name (it does not know Lamb)."""

SCHEDULES = (
    "cosine_decay", "cosine_decay_restarts", "exponential_decay", "inverse_time_decay",
    "piecewise_constant_decay", "polynomial_decay",
)  # fmt: skip
"""The schedules of `keras.optimizers.schedules`, their classes' names written with underscores."""

MASTER = (
    r"local|local\[(\*|[1-9]\d*)(,\s*\d+)?\]|local-cluster\[\d+,\s*\d+,\s*\d+\]|yarn|spark://.+|k8s://.+|"
)

WINDOW, TARGET = "window", "target"
"""The columns that `data.windows` makes."""

DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64",
)  # fmt: skip


def _null_is_empty(value: Any) -> Any:
    return {} if value is None else value


def _name_is_mapping(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _empty_is_null(value: Any) -> Any:
    return None if value == "" else value


def _list_is_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _number_is_text(value: Any) -> Any:
    """Spell a Spark setting as Spark does: ``true``, not ``True``."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _name_is_list(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _list_is_tuple(value)


def _names_are_mapping(value: Any) -> Any:
    """Turn a column's name, or a list of names, into a mapping of columns without settings."""
    names = [value] if isinstance(value, str) else value
    is_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return {name: {} for name in names} if is_names and len(set(names)) == len(names) else value


def _name_is_label(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _split_kind(value: Any) -> str:
    return "(table)" if isinstance(value, dict | Source) else "(fraction)"


Text = Annotated[str, Field(min_length=1)]
AtLeast1 = Annotated[int, Field(ge=1)]
AtLeast0 = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Classes = Annotated[tuple[int, ...] | tuple[Text, ...], Field(min_length=2)]
Setting = Annotated[str, BeforeValidator(_number_is_text)]
Monitor = Annotated[
    str, Field(pattern=r"^[A-Za-z]\w*$"), Words("a metric's name such as loss, val_loss or accuracy")
]
Mode = Annotated[Literal["auto", "min", "max"], Words("auto, min or max")]

_TEXT = Words("text")
_TRUTH = Words("true or false")
_COUNT = Words("a whole number, 1 or more")
_COUNT_OR_0 = Words("a whole number, 0 or more")
_SECONDS = Words("a number of seconds above 0")
_SETTINGS = Words("a mapping: name -> text, number, true or false")


class Section(BaseModel):
    """A mapping with known keys only; immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Model(Section):
    """The model to train."""

    module: Annotated[Text, Words("the path of a Python file")]
    """A Python file with `build_model(params)` that returns a compiled `keras.Model`."""
    params: Annotated[dict[str, Any], BeforeValidator(_null_is_empty), Words("a mapping")] = {}
    """Passed to `build_model` unchanged."""


class Source(Section):
    """Where rows come from: exactly one of `path`, `table` and `sql`."""

    format: Annotated[Text | None, Words("a format Spark can read, for example tfrecord, parquet or csv")] = (
        None
    )
    """Format of the files at `path`: tfrecord, parquet, csv, json, orc, avro, or another that Spark reads."""
    path: Annotated[Text | None, Words("a path or URL")] = None
    """Files or a directory, local or on any file system that Spark reaches. A relative path is looked up in
    the working directory first; if it is not there, Spark resolves it."""
    table: Annotated[Text | None, Words("a table's name")] = None
    """A table in Spark's catalog, for example `sales.images`."""
    sql: Annotated[Text | None, Words("a SQL query")] = None
    """A query that Spark runs."""
    schema_ddl: Annotated[
        Text | None, Words('column types as in SQL, for example "image BINARY, label INT"')
    ] = Field(None, alias="schema")
    """Columns and their types; if omitted, Spark infers them from the files. Only with `path`."""
    options: Annotated[dict[str, Setting], BeforeValidator(_null_is_empty), _SETTINGS] = {}
    """Options of Spark's reader, for example `header: true` for csv. Only with `path`."""


class Feature(Section):
    """How a column becomes a tensor."""

    shape: Annotated[
        Annotated[tuple[AtLeast1, ...], BeforeValidator(_list_is_tuple)] | None,
        Words("a list of whole numbers, 1 or more each"),
    ] = None
    """Shape of one row's value, without the batch dimension; if omitted, that of the first row."""
    dtype: Annotated[Literal[DTYPES] | None, Words(f"one of {', '.join(DTYPES)}")] = None  # type: ignore[valid-type]
    """Type of the values; for a binary column, the type as which its bytes were written. If omitted, that of the
    column."""
    scale: Annotated[Positive | None, Words("a number above 0, for example 255")] = None
    """Divide every value by this, and feed it as float32."""
    ragged: Annotated[Literal["pad", "ragged"] | None, Words("pad or ragged")] = None
    """For arrays whose lengths differ from row to row. `pad`: filled up to a dense tensor. `ragged`: a
    `tf.RaggedTensor`. If omitted, all rows must have the same length."""
    pad_to: Annotated[AtLeast1 | None, _COUNT] = None
    """Length to which `pad` fills up; a longer row is an error. If omitted, that of the longest row of each batch."""
    pad_value: Annotated[float | str | None, Words("a number, or a text for arrays of strings")] = None
    """Value with which `pad` fills up, before `scale`; if omitted, 0, or the empty text."""
    decode: Annotated[Literal["image"] | None, Words("image")] = None
    """`image`: the column holds JPEG, PNG, GIF or BMP files. The workers decode them to uint8 of `shape`, which is
    [height, width, channels]."""
    resize: Annotated[bool, _TRUTH] = False
    """Resize decoded images to `shape`; otherwise an image of a different size is an error."""


class Label(Section):
    """The column the model learns to predict."""

    column: Annotated[
        Text | Annotated[tuple[Text, ...], BeforeValidator(_list_is_tuple), Field(min_length=1)],
        Words("a column's name, or a list of names for a model of several outputs"),
    ]
    """Name of the column. Several columns are fed as a dict by name, for a model whose outputs have these names."""
    classes: Annotated[
        Annotated[int, Field(ge=2)]
        | Annotated[Classes, BeforeValidator(_list_is_tuple)]
        | Literal["infer"]
        | None,
        Words(
            "a whole number, 2 or more; a list of at least 2 whole numbers or of at least 2 texts; or infer"
        ),
    ] = None
    """A number n: labels are 0 to n-1. A list: the label's values in the order of the classes. `infer`: the
    values that Spark finds, sorted. If omitted, the label is used unchanged, as in regression. Only for one column."""
    shape: Annotated[
        Annotated[tuple[AtLeast1, ...], BeforeValidator(_list_is_tuple)] | None,
        Words("a list of whole numbers, 1 or more each"),
    ] = None
    """Shape of one row's label, without the batch dimension, for example [height, width] of a mask. If omitted, that of
    the first row."""
    dtype: Annotated[Literal[DTYPES] | None, Words(f"one of {', '.join(DTYPES)}")] = None  # type: ignore[valid-type]
    """Type of the values; for a binary column, the type as which its bytes were written. If omitted, that of the
    column."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, as a tuple even for one column."""
        return (self.column,) if isinstance(self.column, str) else self.column


class Windows(Section):
    """How series are cut into windows: the values before a point in time, and the values that follow."""

    order: Annotated[Text, Words("a column's name")]
    """The column by which rows are ordered in time: a number, a date or a time. A value occurs once in each series."""
    columns: Annotated[
        Annotated[tuple[Text, ...], BeforeValidator(_name_is_list), Field(min_length=1)],
        Words("a column's name, or a list of names"),
    ]
    """The variables of a window; none of them may be null."""
    groups: Annotated[
        Annotated[tuple[Text, ...], BeforeValidator(_name_is_list)],
        Words("a column's name, or a list of names"),
    ] = ()
    """The columns that identify a series; if omitted, all rows are one series, which one Spark task sorts."""
    steps: Annotated[AtLeast1, _COUNT]
    """Number of rows in a window."""
    horizon: Annotated[AtLeast1, _COUNT] = 1
    """Number of rows to forecast: those that follow the window."""
    targets: Annotated[
        Annotated[tuple[Text, ...], BeforeValidator(_name_is_list), Field(min_length=1)] | None,
        Words("a column's name, or a list of names"),
    ] = None
    """The variables to forecast; if omitted, all of `columns`."""

    @property
    def num_targets(self) -> int:
        """Number of variables to forecast."""
        return len(self.targets or self.columns)


Split = Annotated[
    Annotated[Fraction, Tag("(fraction)")] | Annotated[Source, Tag("(table)")],
    Discriminator(_split_kind),
    Words("a fraction of the rows in [0, 1), or a mapping with one of path, table and sql"),
]


class Data(Source):
    """The rows, the columns that are fed, and how they are divided."""

    windows: Annotated[Windows | None, Words("a mapping with order, columns and steps")] = None
    """Cut series into rows of two columns: `window`, the values of `steps` points in time, the oldest first, and
    `target`, those of the next `horizon`. They are the feature, of shape [steps, columns], and the label. Fractions for
    validation and test are then the newest rows. If omitted, rows are not changed."""
    features: Annotated[
        dict[Text, Annotated[Feature, BeforeValidator(_null_is_empty)]],
        BeforeValidator(_names_are_mapping),
        Field(min_length=1),
        Words(
            "a mapping with at least one column, for example `image: {shape: [28, 28, 1]}`; or a list of different "
            "column names"
        ),
    ]
    """Column name -> how it becomes a tensor. One column is fed as a tensor, several as a dict by name. A list of names
    is enough for columns without settings."""
    label: Annotated[
        Label | None, BeforeValidator(_name_is_label), Words("a mapping with a column, or a column's name")
    ] = None
    """What the model predicts. A column's name is enough for a label without settings. Omit it if the features are
    their own target, as for an autoencoder."""
    weight: Annotated[Text | None, Words("a column's name")] = None
    """The column with one number for each row; the row's loss and weighted metrics are multiplied by it, in validation
    and test, too (Keras's `sample_weight`). If omitted, all rows weigh 1."""
    examples: Annotated[Text | None, Words("a binary column's name")] = None
    """The column that holds serialized `tf.train.Example` records; `features` and `label` then name their features, and
    the workers parse them. For TFRecord files: `byteArray`, together with `options: {recordType: ByteArray}`."""
    batch_size: Annotated[AtLeast1, _COUNT] = 64
    """Rows per step over all workers together (the global batch); it must divide among the workers."""
    validation: Split = 0.0
    """Rows that are not trained on and are evaluated after every epoch. A mapping names a separate source of rows;
    it inherits `format`, `schema` and `options` from `data` if it has none."""
    test: Split = 0.0
    """Rows that are not trained on and are evaluated once, at the end. Otherwise like `validation`."""
    resample: Annotated[Literal["none", "over", "under"], Words("none, over or under")] = "none"
    """How classes with few training rows are balanced. `over`: rows of smaller classes are fed several times, so that
    each class has about as many rows as the largest. `under`: rows of larger classes are dropped at random, so that
    each has about as many rows as the smallest. Validation and test rows do not change."""
    shuffle: Annotated[bool, _TRUTH] = True
    """Shuffle the rows once, with `seed`, before they are divided."""
    ordered: Annotated[bool, _TRUTH] = False
    """Give rows to workers by their position, so that every step trains on the same rows in every run, for any number
    of workers. For clusters with other numbers of cores, set `spark.sql.leafNodeDefaultParallelism` in `cluster.spark`.
    `false`: a free worker takes any rows that are available, which is faster."""
    cache: Annotated[Literal["none", "node"], Words("none or node")] = "none"
    """`node`: each worker writes the rows that it received in the first epoch to its node's disk, and reads them from
    there in later epochs, and in later trainings of the same rows in the same Spark application. `none`: Spark serves
    the rows of every epoch."""
    cache_bytes: Annotated[AtLeast1, _COUNT] = 16 << 30
    """Disk space that one worker may use for its cache. Older rows are removed to make room; if the rows of one epoch
    need more, every epoch comes from Spark."""
    scan: Annotated[Literal["auto", "spark", "direct"], Words("auto, spark or direct")] = "auto"
    """Who reads files. `auto`: the tasks that feed read Parquet and TFRecord files themselves if the rows are only
    columns of these files; Spark reads all other rows, for example those that are shuffled or divided. `spark`: Spark
    reads. `direct`: rows that Spark would have to read are an error."""

    @model_validator(mode="before")
    @classmethod
    def _feed_windows(cls, values: Any) -> Any:
        """Use the windows as features and label, unless others are given."""
        given = values.get("windows") if isinstance(values, dict) else None
        if not isinstance(given, dict):
            return values
        columns, steps = given.get("columns"), given.get("steps")
        if not isinstance(columns, str | list | tuple) or not isinstance(steps, int):
            shape = None  # Their own checks report the mistake.
        else:
            shape = [steps, 1 if isinstance(columns, str) else len(columns)]
        own = {"features": {WINDOW: {"shape": shape}}, "label": {"column": TARGET}}
        return {**own, **values}

    @property
    def source(self) -> Source:
        """Where the training rows come from."""
        return Source.model_validate(self.model_dump(include=set(Source.model_fields), by_alias=True))

    @property
    def validation_source(self) -> Source | None:
        """The separate source of the validation rows; None: they are a fraction of the rows."""
        return self._source_of(self.validation)

    @property
    def test_source(self) -> Source | None:
        """The separate source of the test rows; None: they are a fraction of the rows."""
        return self._source_of(self.test)

    @property
    def validation_fraction(self) -> float:
        """Fraction of the rows kept for validation."""
        return self.validation if isinstance(self.validation, float) else 0.0

    @property
    def test_fraction(self) -> float:
        """Fraction of the rows kept for the test."""
        return self.test if isinstance(self.test, float) else 0.0

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return self.validation != 0.0

    @property
    def has_test(self) -> bool:
        """Whether there are test rows."""
        return self.test != 0.0

    def _source_of(self, split: float | Source) -> Source | None:
        if not isinstance(split, Source):
            return None
        if split.path is None:
            return split
        inherited = {
            name: getattr(self, name)
            for name in ("format", "schema_ddl", "options")
            if not getattr(split, name)
        }
        return split.model_copy(update=inherited)


class Cluster(Section):
    """The nodes of the TensorFlow cluster; each uses one executor slot."""

    master: Annotated[
        Annotated[str, Field(pattern=rf"^({MASTER})$")] | None,
        BeforeValidator(_empty_is_null),
        Words(
            "a Spark master: local[4], local-cluster[2,1,1024], spark://host:7077, yarn or k8s://... (not "
            "sc://: tfspark run needs a SparkContext, which Spark Connect does not have)"
        ),
    ] = None
    """Spark's master. If omitted, that of spark-submit or of Spark's own configuration."""
    executors: Annotated[AtLeast1, _COUNT] = 1
    """Number of nodes: workers, parameter servers and the evaluator together."""
    ps: Annotated[AtLeast0, _COUNT_OR_0] = 0
    """Number of nodes that are parameter servers. If there are any, workers train asynchronously, each at its own
    pace."""
    evaluator: Annotated[bool, _TRUTH] = False
    """Whether one of the nodes evaluates while the others train."""
    input_mode: Annotated[Literal["spark", "tensorflow"], Words("spark or tensorflow")] = "spark"
    """`spark`: Spark reads the rows and streams them to the workers. `tensorflow`: the workers read TFRecord
    files themselves; `validation` and `test` then need their own sources, whose rows are still fed by Spark."""
    reservation_timeout_s: Annotated[Seconds, _SECONDS] = 60.0
    """Seconds until every node must have registered."""
    feed_timeout_s: Annotated[Seconds, _SECONDS] = 600.0
    """Seconds without progress of the feed, for example without a row that a worker takes, before the run ends with an
    error."""
    max_restarts: Annotated[AtLeast0, _COUNT_OR_0] = 3
    """Maximum number of restarts within `restart_window_s`. After the loss of a process or an executor the nodes start
    again from the newest checkpoint. 0: the first loss ends the run."""
    restart_window_s: Annotated[Seconds, _SECONDS] = 3600.0
    """Length of the sliding time window in which restarts are counted."""
    min_executors: Annotated[AtLeast1 | None, _COUNT] = None
    """Minimum number of nodes with which training continues if Spark cannot replace a lost node, or starts if Spark has
    no room for all. It gets more nodes after the next epoch at whose end there is room. If omitted, `executors`."""
    resize_keeps: Annotated[
        Literal["global_batch", "worker_batch"], Words("global_batch or worker_batch")
    ] = "global_batch"
    """What stays the same when the number of workers changes: `global_batch`, that is `data.batch_size`, or
    `worker_batch`, each worker's share of it, which makes steps smaller."""
    replacement_timeout_s: Annotated[Seconds, _SECONDS] = 60.0
    """Seconds for Spark to replace lost nodes before training continues with fewer, down to `min_executors`."""
    tls: Annotated[bool, _TRUTH] = False
    """Whether rows, calls, checkpoints and models travel encrypted (TLS), with a certificate made for this cluster.
    TensorFlow cannot encrypt the traffic between its servers."""
    allow_plaintext: Annotated[bool, _TRUTH] = False
    """Whether weights, and rows without `tls`, may travel unencrypted although Spark is set to encrypt its own
    traffic."""
    warm: Annotated[bool, _TRUTH] = True
    """Whether trainers are forked from a process on each executor that has imported TensorFlow and continues to run for
    restarts and later clusters; `false`: each starts as a fresh interpreter."""
    spark: Annotated[dict[str, Setting], BeforeValidator(_null_is_empty), _SETTINGS] = {}
    """Further Spark settings, for example `spark.executor.memory: 4g`."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_executors not in (None, self.executors)

    @property
    def num_workers(self) -> int:
        """Number of nodes that train."""
        return self.executors - self.ps - int(self.evaluator)


class Optimizer(Section):
    """A Keras optimizer with its arguments."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[Literal[OPTIMIZERS], Words(f"one of {', '.join(OPTIMIZERS)}")]  # type: ignore[valid-type]
    """Name of the optimizer. Every other key is an argument of its class, for example `learning_rate` or `momentum`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the optimizer's class."""
        return dict(self.model_extra or {})


class Schedule(Section):
    """A schedule of the learning rate, by steps (`keras.optimizers.schedules`)."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[Literal[SCHEDULES], Words(f"one of {', '.join(SCHEDULES)}")]  # type: ignore[valid-type]
    """Name of the schedule. Every other key is an argument of its class, for example `initial_learning_rate` or
    `decay_steps`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the schedule's class."""
        return dict(self.model_extra or {})


class EarlyStopping(Section):
    """Stop when a metric no longer improves (`keras.callbacks.EarlyStopping`)."""

    monitor: Monitor = "val_loss"
    """The metric to monitor."""
    patience: Annotated[AtLeast0, _COUNT_OR_0] = 3
    """Epochs without improvement after which training stops."""
    min_delta: Annotated[float, Field(ge=0), Words("a number, 0 or more")] = 0.0
    """Minimum change that counts as an improvement."""
    mode: Mode = "auto"
    """Whether lower (min) or higher (max) is better; auto decides by the metric's name."""
    restore_best_weights: Annotated[bool, _TRUTH] = True
    """Go back to the best epoch's weights at the end."""


class ReduceLROnPlateau(Section):
    """Lower the learning rate when a metric no longer improves (`keras.callbacks.ReduceLROnPlateau`)."""

    monitor: Monitor = "val_loss"
    """The metric to monitor."""
    factor: Annotated[float, Field(gt=0, lt=1), Words("a number in (0, 1)")] = 0.5
    """Factor by which the learning rate is multiplied."""
    patience: Annotated[AtLeast0, _COUNT_OR_0] = 2
    """Epochs without improvement after which it is lowered."""
    min_lr: Annotated[float, Field(ge=0), Words("a number, 0 or more")] = 0.0
    """Minimum learning rate."""
    mode: Mode = "auto"
    """Whether lower (min) or higher (max) is better; auto decides by the metric's name."""


class Callbacks(Section):
    """Callbacks that monitor the training."""

    early_stopping: Annotated[EarlyStopping | None, Words("a mapping; {} takes its defaults")] = None
    """Stop when a metric no longer improves; if omitted, train all epochs."""
    reduce_lr_on_plateau: Annotated[ReduceLROnPlateau | None, Words("a mapping; {} takes its defaults")] = (
        None
    )
    """Lower the learning rate when a metric no longer improves; if omitted, it does not change."""
    terminate_on_nan: Annotated[bool, _TRUTH] = True
    """Stop when the loss is not a number."""


class Train(Section):
    """How the model is trained."""

    epochs: Annotated[AtLeast1, _COUNT] = 10
    """Passes over the training rows."""
    optimizer: Annotated[
        Optimizer | None,
        BeforeValidator(_name_is_mapping),
        Words(f"one of {', '.join(OPTIMIZERS)}; or a mapping such as {{name: sgd, momentum: 0.9}}"),
    ] = None
    """Replaces the optimizer that `build_model` compiled; if omitted, that one is used."""
    learning_rate: Annotated[Positive | None, Words("a number above 0")] = None
    """Replaces the optimizer's learning rate; if omitted, the optimizer keeps its own."""
    schedule: Annotated[
        Schedule | None,
        Words("a mapping such as {name: cosine_decay, initial_learning_rate: 0.01, decay_steps: 1000}"),
    ] = None
    """Replaces the optimizer's learning rate by one that changes from step to step; if omitted, it does not change."""
    mixed_precision: Annotated[Literal["none", "float16", "bfloat16"], Words("none, float16 or bfloat16")] = (
        "none"
    )
    """Compute in this type and keep weights in float32 (Keras's `mixed_float16`, `mixed_bfloat16`). It is faster on
    accelerators that support it. `float16` scales the loss, which parameter servers cannot do; Keras can load the saved
    model with its optimizer only if Keras's global policy is set to `mixed_float16` before."""
    class_weights: Annotated[
        Literal["balanced"] | Annotated[dict[int | Text, Weight], Field(min_length=1)] | None,
        Words("balanced, or a mapping: label -> a weight, 0 or more"),
    ] = None
    """Weight of each class in the loss. `balanced`: rows / (classes x rows of the class). A label that is
    not in the mapping weighs 1."""
    callbacks: Annotated[Callbacks, BeforeValidator(_null_is_empty), Words("a mapping")] = Callbacks()
    """Callbacks that monitor the training."""


class Checkpoint(Section):
    """When checkpoints and models are saved, and how many are kept."""

    every_epochs: Annotated[AtLeast1, _COUNT] = 1
    """Number of epochs between saved models, `checkpoints/epoch-0001.keras` and so on."""
    every_steps: Annotated[AtLeast0, _COUNT_OR_0] = 0
    """Number of steps between checkpoints of the training's state; 0: after each epoch only. With parameter servers and
    with `input_mode: tensorflow` checkpoints are always taken after whole epochs."""
    every_seconds: Annotated[Annotated[float, Field(ge=0)], Words("a number of seconds, 0 or more")] = 0.0
    """Number of seconds between checkpoints of the training's state, to within two seconds; `every_steps` may be set,
    too."""
    keep: Annotated[AtLeast1, _COUNT] = 3
    """Number of newest saved models to keep. Of the state's checkpoints the newest two are always kept."""


class Export(Section):
    """The formats in which the model is written at the end."""

    formats: Annotated[
        Annotated[tuple[Literal["keras", "saved_model"], ...], BeforeValidator(_list_is_tuple)],
        Words("a list of keras and saved_model"),
    ] = ("keras", "saved_model")
    """`keras`: one file for Keras. `saved_model`: a directory for TensorFlow Serving. `[]`: nothing."""


class Output(Section):
    """Where the results are written."""

    dir: Annotated[Text, Words("a directory")] = "runs"
    """Every run gets its own directory below this one: `<dir>/<name>-<timestamp>/`."""


class Experiment(Section):
    """One experiment: a model, its data, the cluster, the training and its output."""

    name: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")],
        Words("letters, digits and any of _ . - without spaces"),
    ]
    """The experiment's name; the run's directory begins with it."""
    seed: Annotated[Annotated[int, Field(ge=0, lt=2**32)], Words("a whole number in [0, 2**32)")] = 42
    """Seed of the shuffle, the division of the rows and the initial weights."""
    model: Annotated[Model, Words("a mapping with a module")]
    """The model to train."""
    data: Annotated[Data, Words("a mapping with features and one of path, table and sql")]
    """The rows, the columns that are fed, and how they are divided."""
    cluster: Annotated[Cluster, BeforeValidator(_null_is_empty), Words("a mapping")] = Cluster()
    """The nodes of the TensorFlow cluster."""
    train: Annotated[Train, BeforeValidator(_null_is_empty), Words("a mapping")] = Train()
    """How the model is trained."""
    checkpoint: Annotated[Checkpoint, BeforeValidator(_null_is_empty), Words("a mapping")] = Checkpoint()
    """When checkpoints and models are saved, and how many are kept."""
    export: Annotated[Export, BeforeValidator(_null_is_empty), Words("a mapping")] = Export()
    """The formats in which the model is written at the end."""
    output: Annotated[Output, BeforeValidator(_null_is_empty), Words("a mapping")] = Output()
    """Where the results are written."""

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        broken = broken_rules({name: getattr(self, name) for name in type(self).model_fields})
        if broken:
            raise BrokenRulesError(broken)
        return self

    @property
    def num_workers(self) -> int:
        """Number of nodes that train."""
        return self.cluster.num_workers

    @property
    def local_batch_size(self) -> int:
        """Rows per step and worker."""
        return local_batch_size(self.data.batch_size, self.num_workers)
