"""`KerasEstimator`, `KerasModel`, and the common part of the ready-made estimators. Driver only."""

from __future__ import annotations

import functools
import inspect
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyspark.ml import Estimator, Model
from pyspark.ml.base import _FitMultipleIterator
from pyspark.ml.param import Param
from pyspark.ml.util import MLReadable, MLWritable

from tfspark.cluster.inputs import session_of
from tfspark.errors import ConfigError
from tfspark.feed.columns import Columns, check_columns
from tfspark.feed.described import Signature
from tfspark.inference.evaluate import evaluate
from tfspark.inference.model_files import ModelFiles, of_keras
from tfspark.inference.outputs import Output
from tfspark.inference.predict import apply, find_model, value_outputs
from tfspark.inference.predictor import Predictor
from tfspark.ml.findings import Findings
from tfspark.ml.inputs import Inputs, find_inputs, table_of
from tfspark.ml.params import (
    ClassParams,
    ColumnParams,
    TrainingParams,
    declare,
    labels,
    mapping,
    names,
    number,
    sizes,
    text,
)
from tfspark.ml.persistence import (
    NetworkReader,
    NetworkWriter,
    importable_name,
    imported,
    is_own_module,
    own_modules,
)
from tfspark.ml.rows import FitRows, Target, find_classes, find_numbers, fit_rows
from tfspark.ml.summary import TrainingSummary
from tfspark.ml.training import Clusters, HowToTrain, Network, Trained, train
from tfspark.shipped import list_shipped

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


T = TypeVar("T")

NEEDED_TO_LOAD = ("register_keras_serializable", "def features(")
"""Text in a model module which shows that its model cannot be used without the module."""
UNSEEN = frozenset(
    (
        *(
            "maxIter",
            "stepSize",
            "batchSize",
            "seed",
            "optimizer",
            "callbacks",
            "shuffle",
            "logDir",
            "verbose",
        ),
        *("numWorkers", "layers", "regParam", "modelParams"),
        *("predictionCol", "handleInvalid", "predictBatchSize"),
    )
)
"""Params that do not influence the facts which a fit computes from its rows."""
SEEDS = 1 << 31
"""TensorFlow's seeds are from 0 to below this; Spark's may be any whole number."""


@dataclass(frozen=True)
class Plan:
    """The plan of a fit for a DataFrame.

    Attributes:
        network: the network to train.
        inputs: how the features enter it.
        target: what the network predicts.
        rows: the rows to feed.
        extra: further data for the model, as plain data.
    """

    network: Network
    inputs: Inputs
    target: Target
    rows: FitRows
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """The state of a fitted model, beside its Params.

    Attributes:
        files: the network.
        inputs: how the features enter it.
        target: what the network predicts.
        signature: inputs and outputs of the network.
        summary: of the fit.
        shipped: names of tfspark's modules that are needed to load it.
        columns: the features as a run declared them, instead of `inputs`.
        extra: further data for the model, as plain data.
    """

    files: ModelFiles = field(repr=False)
    inputs: Inputs | None
    target: Target
    signature: Signature
    summary: TrainingSummary
    shipped: tuple[str, ...] = ()
    columns: Columns | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the network itself.

        Raises:
            ConfigError: the network has custom objects that another process cannot import.
        """
        for name, source in self.files.modules:
            if name not in self.shipped and any(sign in source for sign in NEEDED_TO_LOAD):
                raise ConfigError(
                    f"expected a model module without custom objects and features(batch) to save the model, but {name} "
                    "has them; keep the run directory, and load it with KerasModel.from_run"
                )
        return {
            "inputs": None if self.inputs is None else self.inputs.to_json(),
            "columns": None if self.columns is None else self.columns.to_json(),
            "target": {**vars(self.target), "classes": list(self.target.classes)},
            "signature": self.signature.to_json(),
            "summary": self.summary.to_json(),
            "shipped": list(self.shipped),
            "extra": dict(self.extra),
            "custom_objects": {
                name: _name_of(name, item) for name, item in self.files.custom_objects.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], keras_file: bytes) -> State:
        """Return the state from the result of `to_json`."""
        shipped = tuple(data["shipped"])
        objects = {name: imported(item) for name, item in data["custom_objects"].items()}
        target = data["target"]
        return cls(
            of_keras(keras_file, own_modules(shipped), objects),
            None if data["inputs"] is None else Inputs.from_json(data["inputs"]),
            Target(**{**target, "classes": tuple(target["classes"])}),
            Signature.from_json(data["signature"]),
            TrainingSummary(**data["summary"]),
            shipped,
            None if data["columns"] is None else Columns.from_json(data["columns"]),
            data["extra"],
        )


def _name_of(name: str, item: Any) -> str:
    found = importable_name(item)
    if found is None:
        raise ConfigError(
            f"expected custom objects that another process can import, but {name!r} is defined in the program itself; "
            "put it into a separate module before you save the model"
        )
    return found


class Saved(MLWritable, MLReadable[Any]):
    """Can be saved and loaded."""

    def write(self) -> NetworkWriter:
        """Return the writer: ``write().overwrite().save(path)``."""
        return NetworkWriter(self)

    @classmethod
    def read(cls) -> NetworkReader:
        """Return the reader: ``read().load(path)``."""
        return NetworkReader(cls)

    @property
    def _keras_file(self) -> bytes | None:
        return None

    def _state_to_json(self) -> Any:
        return None

    def _set_state(self, state: Any, data: bytes | None) -> None:
        del state, data


# --- models -------------------------------------------------------------------------------------------


class KerasModel(Model, ColumnParams, ClassParams, TrainingParams, Saved):
    """A trained network: adds its predictions to a DataFrame.

    A classifier adds the label (`predictionCol`), the probability of each class and their logarithms, as Spark's own
    do. Labels 0 to k-1 are predicted as doubles, others in their own type. A regression adds one double. Another
    network with one output adds a vector, or nested arrays; one with several outputs a column for each,
    ``prediction_<output>``.

    The columns, the order and the number of rows do not change.
    """

    def __init__(self, **params: Any):
        super().__init__()
        self._set_column_defaults()
        self._set_class_defaults()
        self._set_training_defaults()
        self._state: State | None = None
        self._set(**self._named(params))

    @classmethod
    def from_run(cls, run: str | Path) -> KerasModel:
        """Return the model that a run of ``tfspark run`` has exported.

        Raises:
            ConfigError: the run has exported no model, or the columns that the model reads are unknown.
        """
        found = find_model(run)
        if found.described is None or found.signature is None:
            raise ConfigError(
                f"expected a run directory of tfspark run, got {str(run)!r}; predict with tfspark.predict(df, model, "
                "features=...)"
            )
        described = found.described
        labels_of = described.columns.class_label
        target = Target(
            None if labels_of is None else labels_of.name,
            len(described.classes) if described.classes and not described.is_multi_label else None,
            _own_classes(described.classes),
        )
        files, shipped = _with_own_names(found.files)
        model = cls()
        model._state = State(
            files, None, target, found.signature, TrainingSummary(), shipped, described.features
        )
        if labels_of is not None:
            model._set(labelCol=labels_of.name)
        return model

    @property
    def summary(self) -> TrainingSummary:
        """The history and the time of the fit."""
        return self._known.summary

    @property
    def hasSummary(self) -> bool:
        """Whether it was fitted by this estimator."""
        return bool(self._known.summary.history)

    @property
    def numClasses(self) -> int | None:
        """Number of classes; None: the model is not a classifier."""
        return self._known.target.num_classes

    @property
    def classes(self) -> list[Any]:
        """The labels in the order of the classes; empty if the model is not a classifier."""
        target = self._known.target
        return list(target.classes) or [float(number) for number in range(target.num_classes or 0)]

    def evaluate(self, dataset: DataFrame) -> dict[str, Any]:
        """Return the network's own metrics over all rows; each row counts once.

        The rows need the features, the label and, if `weightCol` is set, the weights of the fit. A classifier's
        results have ``confusion_matrix`` and ``roc``, like those of `TFCluster.evaluate`.
        """
        state = self._known
        if state.inputs is None or state.extra:
            raise ConfigError(
                f"expected a model fitted by a classifier or a regressor to evaluate, got {type(self).__name__} of "
                f"{'a run: use `tfspark evaluate RUN`' if state.inputs is None else 'another kind: use its transform'}"
            )
        label = state.target.label and self.getOrDefault("labelCol")
        weight = self.getOrDefault("weightCol") if self.isDefined("weightCol") else None
        target = replace(state.target, label=label)
        rows = fit_rows(dataset, self._inputs(state), target, weight, None)
        return evaluate(rows.train, state.files, rows.columns, target.num_classes)

    def keras(self) -> Any:
        """Return the network as a `keras.Model`, in this process; loads TensorFlow."""
        from tfspark.inference.model_files import load

        return load(self._known.files)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        state = self._known
        session_of(dataset.sparkSession)
        if state.inputs is None:
            assert state.columns is not None
            check_columns(state.columns, dataset.columns)
            return apply(dataset, self._predictor(state, state.columns))
        inputs = self._inputs(state)
        _check_features(dataset, inputs)
        return apply(inputs.prepared(dataset), self._predictor(state, inputs.features, inputs))

    def _inputs(self, state: State) -> Inputs:
        """Return the inputs under the current name of the column."""
        assert state.inputs is not None
        return state.inputs.called(self.getOrDefault("featuresCol"))

    def _predictor(self, state: State, columns: Columns, inputs: Inputs | None = None) -> Predictor:
        return Predictor(
            state.files,
            columns,
            self._outputs(state),
            self.getOrDefault("handleInvalid"),
            self.getOrDefault("predictBatchSize"),
            hidden=() if inputs is None else inputs.hidden,
            prepare=None if inputs is None else inputs.parts,
            call=self._call(inputs),
        )

    def _call(self, inputs: Inputs | None) -> Callable[[Any, Any], Mapping[str, Any]] | None:
        """Return a function to call instead of the network; None: the network itself."""
        del inputs
        return None

    def _outputs(self, state: State) -> tuple[Output, ...]:
        name, target = self.getOrDefault("predictionCol"), state.target
        if target.num_classes is not None:
            return self._class_outputs(name, target)
        outputs = state.signature.outputs
        if len(outputs) == 1 and len(outputs[0].shape) < 2 and outputs[0].dtype != "string":
            is_number = outputs[0].shape in ((), (1,))
            return (Output(name, "number", "double") if is_number else Output(name, "vector", "vector"),)
        return value_outputs(state.signature, name)

    def _class_outputs(self, name: str, target: Target) -> tuple[Output, ...]:
        kind = "string" if target.classes and isinstance(target.classes[0], str) else "double"
        made = [Output(name, "class", kind, classes=target.classes)] if name else []
        for param, output in (("probabilityCol", "probability"), ("rawPredictionCol", "raw")):
            if self.getOrDefault(param):
                made.append(Output(self.getOrDefault(param), output, "vector"))  # type: ignore[arg-type]
        return tuple(made)

    @property
    def _known(self) -> State:
        if self._state is None:
            raise ConfigError(
                f"expected a {type(self).__name__} that was fitted or loaded, but this one is empty; call fit() of the "
                "estimator, or load()"
            )
        return self._state

    @property
    def _keras_file(self) -> bytes | None:
        return self._known.files.keras_file

    def _state_to_json(self) -> Any:
        return self._known.to_json()

    def _set_state(self, state: Any, data: bytes | None) -> None:
        assert data is not None
        self._state = State.from_json(state, data)

    def _repr_html_(self) -> str:
        """Show the curves of the fit in a notebook."""
        return f"<b>{self.uid}</b>{self.summary._repr_html_()}"


def _with_own_names(files: ModelFiles) -> tuple[ModelFiles, tuple[str, ...]]:
    """Rename those modules of a run that are tfspark's own to their names in tfspark; return these names, too."""
    known = {source: name for name, source in own_modules([n for n in list_shipped() if n.endswith(".py")])}
    modules = tuple((known.get(source, name), source) for name, source in files.modules)
    return replace(files, modules=modules), tuple(name for name, _ in modules if is_own_module(name))


def _own_classes(classes: tuple[Any, ...]) -> tuple[Any, ...]:
    return () if list(classes) == list(range(len(classes))) else classes


def _check_features(df: DataFrame, inputs: Inputs) -> None:
    """Check that the column of features exists and has the same kind as in the fit.

    Raises:
        ConfigError: names both kinds.
    """
    missing = [name for name in inputs.read if name not in df.columns]
    if missing:
        raise ConfigError(
            f"expected the features column {missing[0]!r}, the data has {df.columns}; set featuresCol (inputCol), "
            "or add the stage that creates it"
        )
    for part in inputs.each:
        for name in part.table or (part.name,):
            kind = df.schema[name].dataType.simpleString()
            is_text = kind in ("string", "array<string>")
            if is_text != (part.kind in ("text", "words")):
                raise ConfigError(
                    f"expected {part.kind} features in column {name!r}, as in the rows trained on, got {kind}; set "
                    "featuresCol to the column that holds them"
                )


# --- estimators ---------------------------------------------------------------------------------------


class NetworkEstimator(Estimator, ColumnParams, TrainingParams, Saved):
    """Base class of the estimators of `tfspark.ml`: plans a fit, trains on a cluster, returns the model."""

    inputShape = declare(
        "inputShape", "shape of one row, such as [28, 28, 1]; unset: that of the data", sizes
    )
    inputCols = declare("inputCols", "columns that the network reads instead of featuresCol", names)
    scale = declare(
        "scale",
        "number by which features are divided; unset: 255 for bytes of images",
        number(0, is_above=True),
    )

    model_class: type[KerasModel] = KerasModel
    _findings: Findings | None = None
    """Shared by the fits of one grid; None: this fit does not belong to a grid."""

    def __init__(self, **params: Any):
        super().__init__()
        self._set_column_defaults()
        self._set_training_defaults()
        self._set_own_defaults()
        self._set(**self._named(params))

    def _set_own_defaults(self) -> None:
        """Set the defaults of a subclass's Params."""

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[Mapping[Param[Any], Any]]
    ) -> Iterator[tuple[int, KerasModel]]:
        """Fit a model for each of several settings, on demand; several threads may ask.

        Settings that need the same nodes are trained one after another on one running cluster; each thread has its own.
        """
        estimator, clusters, findings = self.copy(), Clusters(len(paramMaps)), Findings()

        def fit(index: int) -> KerasModel:
            own: NetworkEstimator = estimator.copy(dict(paramMaps[index]))
            own._findings = findings
            try:
                return own._fit(dataset, clusters)
            except BaseException:
                clusters.give_up()
                raise

        models: Iterator[tuple[int, KerasModel]] = _FitMultipleIterator(fit, len(paramMaps))
        weakref.finalize(models, clusters.give_up)  # The caller may not ask for all models.
        return models

    def _fit(self, dataset: DataFrame, clusters: Clusters | None = None) -> KerasModel:
        session = session_of(dataset.sparkSession)
        how = self._how_to_train()
        plan = self._plan(dataset)
        return self._fitted(plan, train(session, plan.network, plan.rows, how, clusters))

    def _once(self, find: Callable[..., T], dataset: DataFrame, *known: Any) -> T:
        """Return ``find(dataset, *known)``; another fit on the same rows may have computed it.

        Args:
            find: a top-level function.
            dataset: the rows of the fit, or rows derived from them by its columns and Params.
            known: all other arguments on which the result depends.
        """
        if self._findings is None:
            return find(dataset, *known)
        params = {p.name: value for p, value in self._paramMap.items() if p.name not in UNSEEN}
        key = repr((find, known, sorted(params.items())))
        return self._findings.once(key, lambda: find(dataset, *known))

    def _plan(self, dataset: DataFrame) -> Plan:
        raise NotImplementedError

    def _fitted(self, plan: Plan, trained: Trained) -> KerasModel:
        model = self.model_class()
        self._copyValues(model)
        summary = TrainingSummary(
            dict(trained.history), trained.seconds, trained.start_seconds, trained.log_dir
        )
        names = tuple(name for name, _ in plan.network.modules if is_own_module(name))
        model._state = State(
            of_keras(trained.keras_file, plan.network.modules, plan.network.custom_objects),
            plan.inputs,
            self._found_target(plan.target, trained.signature),
            trained.signature,
            summary,
            names,
            extra=plan.extra,
        )
        return model

    def _found_target(self, target: Target, signature: Signature) -> Target:
        """Return the target, completed from the signature of the trained network."""
        del signature
        return target

    def _how_to_train(self) -> HowToTrain:
        return HowToTrain(
            num_workers=self.getOrDefault("numWorkers"),
            epochs=self.getOrDefault("maxIter"),
            batch_size=self.getOrDefault("batchSize"),
            seed=self.getOrDefault("seed") % SEEDS,
            shuffle=self.getOrDefault("shuffle"),
            callbacks=self._value("callbacks") or {},
            learning_rate=self._value("stepSize"),
            optimizer=self._value("optimizer"),
            log_dir=self._value("logDir"),
            verbose=self.getOrDefault("verbose"),
        )

    def _rows(self, dataset: DataFrame, inputs: Inputs, target: Target) -> FitRows:
        weight, indicator = self._value("weightCol"), self._value("validationIndicatorCol")
        return fit_rows(dataset, inputs, target, weight, indicator)

    def _find_inputs(self, dataset: DataFrame, **given: Any) -> Inputs:
        shape, several = self._value("inputShape"), self._value("inputCols")
        if several:
            return self._several_inputs(dataset, several)
        return self._once(
            functools.partial(find_inputs, **given),
            dataset,
            self.getOrDefault("featuresCol"),
            None if shape is None else tuple(shape),
            self._value("scale"),
        )

    def _several_inputs(self, dataset: DataFrame, names: Sequence[str]) -> Inputs:
        """Return the inputs for several columns: one row of numbers."""
        return table_of(dataset, names, self._value("scale"))

    def _contradiction(self) -> str | None:
        if self.isSet("inputCols") and self.isSet("featuresCol"):
            return "expected either inputCols or featuresCol (inputCol), got both; leave one out"
        return None

    def _value(self, name: str) -> Any:
        """Return a Param's value; None: it is not set, or empty."""
        param: Param[Any] = self.getParam(name)
        return (self.getOrDefault(param) if self.isDefined(param) else None) or None


def builder(value: Any) -> Any:
    """Check a function that builds a model, or the path of a model module."""
    if isinstance(value, str):
        return text(value)
    if not callable(value):
        raise ValueError("expected a function build_model(params), or the path of a Python file that has one")
    needed = [
        parameter
        for parameter in inspect.signature(value).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ValueError("expected a function of one argument, the modelParams, or of none")
    return value


def objects(value: Any) -> dict[str, Any]:
    """Check custom objects of Keras: a dict by name."""
    if not isinstance(value, Mapping) or not all(callable(item) for item in value.values()):
        raise ValueError("expected a dict: name -> class or function")
    return dict(value)


class KerasEstimator(NetworkEstimator):
    """Trains the model that a function builds, on Spark's rows, and returns a `KerasModel`.

    Args:
        params: the Params by name; ``build_model`` is another name of `modelBuilder`.

    The model reads one column, `featuresCol`; or several, `inputCols`, as its inputs of these names. A model that was
    compiled with a cross-entropy is a classifier of labels 0 to k-1. Labels that are texts, or that `classes` names,
    are numbered first.
    """

    modelBuilder = declare(
        "modelBuilder",
        "build_model(modelParams), which returns a compiled keras.Model; or the path of a Python file that has it",
        builder,
    )
    modelParams = declare("modelParams", "the argument of modelBuilder", mapping)
    customObjects = declare(
        "customObjects", "custom objects of the model by name, as for Keras's load_model", objects
    )
    classes = declare("classes", "values of the label in the order of the classes", labels)

    def __init__(self, **params: Any):
        if "build_model" in params:
            params["modelBuilder"] = params.pop("build_model")
        super().__init__(**params)

    def _set_own_defaults(self) -> None:
        self._setDefault(modelParams={}, customObjects={})

    def _plan(self, dataset: DataFrame) -> Plan:
        if not self.isDefined("modelBuilder"):
            raise ConfigError("KerasEstimator: expected modelBuilder, got none; set build_model=a function")
        inputs = self._find_inputs(dataset)
        target = self._target(dataset)
        rows = self._rows(dataset, inputs, target)
        return Plan(self._network(rows), inputs, target, rows)

    def _several_inputs(self, dataset: DataFrame, names: Sequence[str]) -> Inputs:
        """Return the inputs for several columns: each is the model's input with its name."""
        if self._value("inputShape"):
            raise ConfigError(
                "expected inputCols without inputShape, got both: each column has its own shape; leave inputShape out"
            )
        scale = self._value("scale")
        parts = [self._once(find_inputs, dataset, name, None, scale) for name in names]
        words = next((part.name for part in parts if part.kind == "words"), None)
        if words is not None:
            raise ConfigError(
                f"expected numbers, vectors, images or texts in each of inputCols, but column {words!r} holds arrays "
                "of words; join them with concat_ws(' ', ...)"
            )
        return Inputs("", "named", named=tuple(parts))

    def _target(self, dataset: DataFrame) -> Target:
        label = self.getOrDefault("labelCol")
        if not label:
            return Target()
        if self._value("classes") or (
            label in dataset.columns and dataset.schema[label].dataType.typeName() == "string"
        ):
            return self._once(find_classes, dataset, label, self._value("classes"))
        return self._once(find_numbers, dataset, label)

    def _found_target(self, target: Target, signature: Signature) -> Target:
        if target.num_classes is not None or target.label is None:
            return target
        return replace(target, num_classes=signature.num_classes)

    def _network(self, rows: FitRows) -> Network:
        build, params = self.getOrDefault("modelBuilder"), self.getOrDefault("modelParams")
        custom = self.getOrDefault("customObjects")
        if not isinstance(build, str):
            return Network(build, params, custom_objects=custom)
        return self._once(module_network, rows.train, build, params, custom)


def module_network(
    df: DataFrame, path: str, params: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
) -> Network:
    """Return the network of a model module; its `adapt` completes the parameters from the rows."""
    from tfspark.experiment.modules import load_model_module

    os.environ["KERAS_BACKEND"] = "tensorflow"  # The module imports Keras.
    module = load_model_module(path)
    own = dict(params) if module.adapt is None else module.adapt(dict(params), df)
    source = ((path, module.path.read_text(encoding="utf-8")),)
    return Network(module.build_model, own, module.callbacks, source, dict(custom_objects or {}))
