"""The schema of an experiment: every key, its type, its range, its default.

`tfspark.experiment.config` fills it from YAML, ``docs/configuration.md`` is checked against it. Each range is
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
    """What a field expects, as an error message and the reference put it."""

    text: str


OPTIMIZERS = (
    "adadelta", "adafactor", "adagrad", "adam", "adamw", "adamax", "ftrl", "lion", "muon", "nadam",
    "rmsprop", "schedulefreeadamw", "sgd",
)  # fmt: skip
"""The optimizers that `keras.optimizers.get` of Keras 3 knows by name (Lamb it does not)."""

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
    """A mapping whose keys are all known; it cannot be changed once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Model(Section):
    """Which model is trained."""

    module: Annotated[Text, Words("the path of a Python file")]
    """A Python file with `build_model(params)` that returns a compiled `keras.Model`."""
    params: Annotated[dict[str, Any], BeforeValidator(_null_is_empty), Words("a mapping")] = {}
    """Handed to `build_model` as it is."""


class Source(Section):
    """Where rows come from: exactly one of `path`, `table` and `sql`."""

    format: Annotated[Text | None, Words("a format Spark can read, for example tfrecord, parquet or csv")] = (
        None
    )
    """Format of the files at `path`: tfrecord, parquet, csv, json, orc, avro, or another that Spark reads."""
    path: Annotated[Text | None, Words("a path or URL")] = None
    """Files or a directory, local or on any file system that Spark reaches. A relative path is looked up in
    the working directory first; what is not there is left to Spark."""
    table: Annotated[Text | None, Words("a table's name")] = None
    """A table in Spark's catalog, for example `sales.images`."""
    sql: Annotated[Text | None, Words("a SQL query")] = None
    """A query that Spark runs."""
    schema_ddl: Annotated[
        Text | None, Words('column types as in SQL, for example "image BINARY, label INT"')
    ] = Field(None, alias="schema")
    """Columns and their types; left out, Spark finds them in the files. Only with `path`."""
    options: Annotated[dict[str, Setting], BeforeValidator(_null_is_empty), _SETTINGS] = {}
    """Options of Spark's reader, for example `header: true` for csv. Only with `path`."""


class Feature(Section):
    """How a column becomes a tensor."""

    shape: Annotated[
        Annotated[tuple[AtLeast1, ...], BeforeValidator(_list_is_tuple)] | None,
        Words("a list of whole numbers, 1 or more each"),
    ] = None
    """Shape of one row's value, without the batch; left out, it is what the first row has."""
    dtype: Annotated[Literal[DTYPES] | None, Words(f"one of {', '.join(DTYPES)}")] = None  # type: ignore[valid-type]
    """Type of the values; for a binary column, the type its bytes were written as. Left out: its own."""
    scale: Annotated[Positive | None, Words("a number above 0, for example 255")] = None
    """Every value is divided by this and fed as float32."""
    ragged: Annotated[Literal["pad", "ragged"] | None, Words("pad or ragged")] = None
    """For arrays whose lengths differ from row to row. `pad`: filled up to a dense tensor. `ragged`: a
    `tf.RaggedTensor`. Left out: all rows must have one length."""
    pad_to: Annotated[AtLeast1 | None, _COUNT] = None
    """Length that `pad` fills up to; a longer row is an error. Left out: the longest row of each batch."""
    pad_value: Annotated[float | str | None, Words("a number, or a text for arrays of strings")] = None
    """What `pad` fills up with, before `scale`; left out: 0, or the empty text."""
    decode: Annotated[Literal["image"] | None, Words("image")] = None
    """`image`: the column holds JPEG, PNG, GIF or BMP files. The workers decode them to uint8 of `shape`, which is
    [height, width, channels]."""
    resize: Annotated[bool, _TRUTH] = False
    """Resize decoded images to `shape`; otherwise one of another size is an error."""


class Label(Section):
    """The column the model learns to predict."""

    column: Annotated[
        Text | Annotated[tuple[Text, ...], BeforeValidator(_list_is_tuple), Field(min_length=1)],
        Words("a column's name, or a list of names for a model of several outputs"),
    ]
    """Name of the column. Several are fed as a dict by name, for a model whose outputs have these names."""
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
    values that Spark finds, sorted. Left out: the label is used as it is, as in regression. Only for one column."""
    shape: Annotated[
        Annotated[tuple[AtLeast1, ...], BeforeValidator(_list_is_tuple)] | None,
        Words("a list of whole numbers, 1 or more each"),
    ] = None
    """Shape of one row's label, without the batch, as [height, width] of a mask. Left out: that of the first row."""
    dtype: Annotated[Literal[DTYPES] | None, Words(f"one of {', '.join(DTYPES)}")] = None  # type: ignore[valid-type]
    """Type of the values; for a binary column, the type its bytes were written as. Left out: its own."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, also if it is one."""
        return (self.column,) if isinstance(self.column, str) else self.column


class Windows(Section):
    """How series are cut into windows: what came before a point in time, and what came then."""

    order: Annotated[Text, Words("a column's name")]
    """The column that says when: a number, a date or a time. A value occurs once in each series."""
    columns: Annotated[
        Annotated[tuple[Text, ...], BeforeValidator(_name_is_list), Field(min_length=1)],
        Words("a column's name, or a list of names"),
    ]
    """The variables of a window; none of them may be null."""
    groups: Annotated[
        Annotated[tuple[Text, ...], BeforeValidator(_name_is_list)],
        Words("a column's name, or a list of names"),
    ] = ()
    """The columns that tell series apart; left out, the rows are one series, which one task of Spark sorts."""
    steps: Annotated[AtLeast1, _COUNT]
    """Rows of a window."""
    horizon: Annotated[AtLeast1, _COUNT] = 1
    """Rows that are to be forecast: the next after the window."""
    targets: Annotated[
        Annotated[tuple[Text, ...], BeforeValidator(_name_is_list), Field(min_length=1)] | None,
        Words("a column's name, or a list of names"),
    ] = None
    """The variables that are to be forecast; left out, all of `columns`."""

    @property
    def num_targets(self) -> int:
        """How many variables are forecast."""
        return len(self.targets or self.columns)


Split = Annotated[
    Annotated[Fraction, Tag("(fraction)")] | Annotated[Source, Tag("(table)")],
    Discriminator(_split_kind),
    Words("a fraction of the rows in [0, 1), or a mapping with one of path, table and sql"),
]


class Data(Source):
    """The rows, the columns that are fed, and how they are divided."""

    windows: Annotated[Windows | None, Words("a mapping with order, columns and steps")] = None
    """Series are cut into rows of two columns: `window`, the values of `steps` points in time, the oldest first, and
    `target`, those of the next `horizon`. They are the feature, of shape [steps, columns], and the label. Fractions for
    validation and test are then the newest rows. Left out: rows are taken as they are."""
    features: Annotated[
        dict[Text, Annotated[Feature, BeforeValidator(_null_is_empty)]],
        Field(min_length=1),
        Words("a mapping with at least one column, for example `image: {shape: [28, 28, 1]}`"),
    ]
    """Column name -> how it becomes a tensor. One column is fed as a tensor, several as a dict by name."""
    label: Annotated[Label | None, Words("a mapping with a column")] = None
    """What is predicted; left out for a model that is its own target, such as an autoencoder."""
    weight: Annotated[Text | None, Words("a column's name")] = None
    """The column of one number for each row, by which its loss and weighted metrics are multiplied, in validation and
    test, too; Keras's `sample_weight`. Left out: all rows weigh 1."""
    examples: Annotated[Text | None, Words("a binary column's name")] = None
    """The column that holds serialized `tf.train.Example` records; `features` and `label` then name their features, and
    the workers parse them. For TFRecord files: `byteArray` beside `options: {recordType: ByteArray}`."""
    batch_size: Annotated[AtLeast1, _COUNT] = 64
    """Rows per step over all workers together (the global batch); it must divide among the workers."""
    validation: Split = 0.0
    """Rows that training does not see and that are evaluated after every epoch. A mapping names rows of
    their own; it takes `format`, `schema` and `options` from `data` where it has none."""
    test: Split = 0.0
    """Rows that training does not see and that are evaluated once, at the end. As `validation` otherwise."""
    resample: Annotated[Literal["none", "over", "under"], Words("none, over or under")] = "none"
    """What is done for classes with few training rows. `over`: rows of smaller classes are fed several times, so that
    each class has about as many as the largest. `under`: rows of larger classes are left out at random, so that each
    has about as many as the smallest. Validation and test rows stay as they are."""
    shuffle: Annotated[bool, _TRUTH] = True
    """Shuffle the rows once, with `seed`, before they are divided."""
    cache: Annotated[Literal["none", "node"], Words("none or node")] = "none"
    """`node`: each worker keeps the rows it received in the first epoch on its node's disk, and reads them from
    there in the later ones. `none`: Spark serves the rows of every epoch."""
    cache_bytes: Annotated[AtLeast1, _COUNT] = 16 << 30
    """Disk that one worker may take for its cache; rows that need more are read from Spark in every epoch."""
    scan: Annotated[Literal["auto", "spark", "direct"], Words("auto, spark or direct")] = "auto"
    """Who reads files. `auto`: the tasks that feed read Parquet and TFRecord files themselves where the rows are no
    more than columns of such files; Spark reads all else, such as rows that are shuffled or divided. `spark`: Spark
    reads. `direct`: rows that Spark would have to read are refused."""

    @model_validator(mode="before")
    @classmethod
    def _feed_windows(cls, values: Any) -> Any:
        """Feed windows unless it is said what else."""
        given = values.get("windows") if isinstance(values, dict) else None
        if not isinstance(given, dict):
            return values
        columns, steps = given.get("columns"), given.get("steps")
        if not isinstance(columns, str | list | tuple) or not isinstance(steps, int):
            shape = None  # Which is complained about where they stand.
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
        """Where validation rows of their own come from; None: they are a fraction of the rows."""
        return self._source_of(self.validation)

    @property
    def test_source(self) -> Source | None:
        """Where test rows of their own come from; None: they are a fraction of the rows."""
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
        """Whether there are validation rows at all."""
        return self.validation != 0.0

    @property
    def has_test(self) -> bool:
        """Whether there are test rows at all."""
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
    """The nodes of the TensorFlow cluster, each an executor's slot."""

    master: Annotated[
        Annotated[str, Field(pattern=rf"^({MASTER})$")] | None,
        BeforeValidator(_empty_is_null),
        Words(
            "a Spark master: local[4], local-cluster[2,1,1024], spark://host:7077, yarn or k8s://... (not "
            "sc://: tfspark run needs a SparkContext, which Spark Connect does not have)"
        ),
    ] = None
    """Spark's master. Left out: what spark-submit or Spark's own configuration says."""
    executors: Annotated[AtLeast1, _COUNT] = 1
    """Number of nodes: workers, parameter servers and the evaluator together."""
    ps: Annotated[AtLeast0, _COUNT_OR_0] = 0
    """How many of the nodes are parameter servers: with any, workers train asynchronously, each at its own pace."""
    evaluator: Annotated[bool, _TRUTH] = False
    """Whether one of the nodes evaluates while the others train."""
    input_mode: Annotated[Literal["spark", "tensorflow"], Words("spark or tensorflow")] = "spark"
    """`spark`: Spark reads the rows and streams them to the workers. `tensorflow`: the workers read TFRecord
    files themselves; rows of `validation` and `test`, which have sources of their own then, are still fed by Spark."""
    reservation_timeout_s: Annotated[Seconds, _SECONDS] = 60.0
    """How long the start waits until every node has reported."""
    feed_timeout_s: Annotated[Seconds, _SECONDS] = 600.0
    """How long a worker may go without taking a row before the run is called stalled."""
    max_restarts: Annotated[AtLeast0, _COUNT_OR_0] = 3
    """How often within `restart_window_s` the nodes are started again, from the newest checkpoint, when a process or an
    executor is lost; 0: the first loss ends the run."""
    restart_window_s: Annotated[Seconds, _SECONDS] = 3600.0
    """Length of the sliding window of time in which restarts are counted."""
    min_executors: Annotated[AtLeast1 | None, _COUNT] = None
    """With how many nodes training goes on when Spark cannot replace one that was lost, or has no room for all at the
    start; it has more again after the next epoch for which there is room. Left out: `executors`."""
    resize_keeps: Annotated[
        Literal["global_batch", "worker_batch"], Words("global_batch or worker_batch")
    ] = "global_batch"
    """What stays when the number of workers changes: `global_batch`, that is `data.batch_size`, or `worker_batch`, each
    worker's share of it, which makes steps smaller."""
    replacement_timeout_s: Annotated[Seconds, _SECONDS] = 60.0
    """How long Spark has to replace what was lost before `min_executors` will do."""
    tls: Annotated[bool, _TRUTH] = False
    """Whether rows, calls, checkpoints and models travel encrypted (TLS), with a certificate made for this cluster.
    TensorFlow cannot encrypt what its servers say to each other."""
    allow_plaintext: Annotated[bool, _TRUTH] = False
    """Whether weights, and rows without `tls`, may travel unencrypted although Spark is set to encrypt its own
    traffic."""
    warm: Annotated[bool, _TRUTH] = True
    """Whether trainers are forked from a process on each executor that has imported TensorFlow and stays for restarts
    and later clusters; `false`: each starts as a fresh interpreter."""
    spark: Annotated[dict[str, Setting], BeforeValidator(_null_is_empty), _SETTINGS] = {}
    """More of Spark's configuration, for example `spark.executor.memory: 4g`."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.min_executors not in (None, self.executors)

    @property
    def num_workers(self) -> int:
        """How many nodes train."""
        return self.executors - self.ps - int(self.evaluator)


class Optimizer(Section):
    """A Keras optimizer with its arguments."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[Literal[OPTIMIZERS], Words(f"one of {', '.join(OPTIMIZERS)}")]  # type: ignore[valid-type]
    """Its name. Every other key is an argument of its class, for example `learning_rate` or `momentum`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the optimizer's class."""
        return dict(self.model_extra or {})


class Schedule(Section):
    """A schedule of the learning rate, by steps (`keras.optimizers.schedules`)."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[Literal[SCHEDULES], Words(f"one of {', '.join(SCHEDULES)}")]  # type: ignore[valid-type]
    """Its name. Every other key is an argument of its class, for example `initial_learning_rate` or `decay_steps`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the schedule's class."""
        return dict(self.model_extra or {})


class EarlyStopping(Section):
    """Stop when a metric no longer improves (`keras.callbacks.EarlyStopping`)."""

    monitor: Monitor = "val_loss"
    """The metric that is watched."""
    patience: Annotated[AtLeast0, _COUNT_OR_0] = 3
    """Epochs without improvement after which training stops."""
    min_delta: Annotated[float, Field(ge=0), Words("a number, 0 or more")] = 0.0
    """Least change that counts as an improvement."""
    mode: Mode = "auto"
    """Whether lower (min) or higher (max) is better; auto goes by the metric's name."""
    restore_best_weights: Annotated[bool, _TRUTH] = True
    """Go back to the best epoch's weights at the end."""


class ReduceLROnPlateau(Section):
    """Lower the learning rate when a metric no longer improves (`keras.callbacks.ReduceLROnPlateau`)."""

    monitor: Monitor = "val_loss"
    """The metric that is watched."""
    factor: Annotated[float, Field(gt=0, lt=1), Words("a number in (0, 1)")] = 0.5
    """The learning rate is multiplied by this."""
    patience: Annotated[AtLeast0, _COUNT_OR_0] = 2
    """Epochs without improvement after which it is lowered."""
    min_lr: Annotated[float, Field(ge=0), Words("a number, 0 or more")] = 0.0
    """The learning rate does not go below this."""
    mode: Mode = "auto"
    """Whether lower (min) or higher (max) is better; auto goes by the metric's name."""


class Callbacks(Section):
    """What watches the training."""

    early_stopping: Annotated[EarlyStopping | None, Words("a mapping; {} takes its defaults")] = None
    """Stop when a metric no longer improves; left out: train all epochs."""
    reduce_lr_on_plateau: Annotated[ReduceLROnPlateau | None, Words("a mapping; {} takes its defaults")] = (
        None
    )
    """Lower the learning rate when a metric no longer improves; left out: it stays."""
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
    """Replaces the optimizer that `build_model` compiled; left out: that one is kept."""
    learning_rate: Annotated[Positive | None, Words("a number above 0")] = None
    """Replaces the optimizer's learning rate; left out: its own is kept."""
    schedule: Annotated[
        Schedule | None,
        Words("a mapping such as {name: cosine_decay, initial_learning_rate: 0.01, decay_steps: 1000}"),
    ] = None
    """Replaces the optimizer's learning rate by one that changes from step to step; left out: it does not."""
    mixed_precision: Annotated[Literal["none", "float16", "bfloat16"], Words("none, float16 or bfloat16")] = (
        "none"
    )
    """Compute in this type and keep weights in float32 (Keras's `mixed_float16`, `mixed_bfloat16`). It pays on
    accelerators that have it. `float16` scales the loss, which parameter servers cannot; Keras loads such a model
    with its optimizer if its global policy is set to `mixed_float16` before."""
    class_weights: Annotated[
        Literal["balanced"] | Annotated[dict[int | Text, Weight], Field(min_length=1)] | None,
        Words("balanced, or a mapping: label -> a weight, 0 or more"),
    ] = None
    """Weight of each class in the loss. `balanced`: rows / (classes x rows of the class). A label left out of
    the mapping weighs 1."""
    callbacks: Annotated[Callbacks, BeforeValidator(_null_is_empty), Words("a mapping")] = Callbacks()
    """What watches the training."""


class Checkpoint(Section):
    """What a restart goes back to."""

    every_epochs: Annotated[AtLeast1, _COUNT] = 1
    """Epochs from one saved model, `checkpoints/epoch-0001.keras` and so on, to the next."""
    every_steps: Annotated[AtLeast0, _COUNT_OR_0] = 0
    """Steps from one checkpoint of the training's state to the next; 0: after each epoch only. With parameter servers
    and with `input_mode: tensorflow` it is always whole epochs."""
    every_seconds: Annotated[Annotated[float, Field(ge=0)], Words("a number of seconds, 0 or more")] = 0.0
    """The same by the clock, give or take two seconds; both may be set."""
    keep: Annotated[AtLeast1, _COUNT] = 3
    """Number of newest saved models that are kept. Of the state the newest two are, whatever this says."""


class Export(Section):
    """What is written at the end."""

    formats: Annotated[
        Annotated[tuple[Literal["keras", "saved_model"], ...], BeforeValidator(_list_is_tuple)],
        Words("a list of keras and saved_model"),
    ] = ("keras", "saved_model")
    """`keras`: one file for Keras. `saved_model`: a directory for TensorFlow Serving. `[]`: nothing."""


class Output(Section):
    """Where the results go."""

    dir: Annotated[Text, Words("a directory")] = "runs"
    """Every run gets a directory of its own below this: `<dir>/<name>-<timestamp>/`."""


class Experiment(Section):
    """One experiment: a model, its data, the cluster, the training, and what is kept of it."""

    name: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")],
        Words("letters, digits and any of _ . - without spaces"),
    ]
    """The experiment's name; the run's directory begins with it."""
    seed: Annotated[Annotated[int, Field(ge=0, lt=2**32)], Words("a whole number in [0, 2**32)")] = 42
    """Seed of the shuffle, the division of the rows and the initial weights."""
    model: Annotated[Model, Words("a mapping with a module")]
    """Which model is trained."""
    data: Annotated[Data, Words("a mapping with features and one of path, table and sql")]
    """The rows, the columns that are fed, and how they are divided."""
    cluster: Annotated[Cluster, BeforeValidator(_null_is_empty), Words("a mapping")] = Cluster()
    """The nodes of the TensorFlow cluster."""
    train: Annotated[Train, BeforeValidator(_null_is_empty), Words("a mapping")] = Train()
    """How the model is trained."""
    checkpoint: Annotated[Checkpoint, BeforeValidator(_null_is_empty), Words("a mapping")] = Checkpoint()
    """What a restart goes back to."""
    export: Annotated[Export, BeforeValidator(_null_is_empty), Words("a mapping")] = Export()
    """What is written at the end."""
    output: Annotated[Output, BeforeValidator(_null_is_empty), Words("a mapping")] = Output()
    """Where the results go."""

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        broken = broken_rules({name: getattr(self, name) for name in type(self).model_fields})
        if broken:
            raise BrokenRulesError(broken)
        return self

    @property
    def num_workers(self) -> int:
        """How many nodes train."""
        return self.cluster.num_workers

    @property
    def local_batch_size(self) -> int:
        """Rows per step and worker."""
        return local_batch_size(self.data.batch_size, self.num_workers)
