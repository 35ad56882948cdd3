"""Spark ML Params that check their values when they are set, with setters and getters. Driver only."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params
from pyspark.ml.param.shared import (
    HasFeaturesCol,
    HasHandleInvalid,
    HasLabelCol,
    HasMaxIter,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasSeed,
    HasStepSize,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from tfspark.errors import ConfigError
from tfspark.inference.predict import INVALID

Convert = Callable[[Any], Any]

ALIASES = {"inputCol": "featuresCol", "outputCol": "predictionCol", "blockSize": "batchSize"}
"""Alternative names of Params: those of Spark's transformers and of its multilayer perceptron."""


def declare(name: str, doc: str, convert: Convert) -> Any:
    """Declare a Param: a class attribute with a check of its values."""
    return Param(Params._dummy(), name, doc, typeConverter=convert)


def text(value: Any) -> str:
    """Check a text."""
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


def whole(least: int) -> Convert:
    """Return a converter for whole numbers with a minimum."""

    def convert(value: Any) -> int:
        is_whole = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not is_whole or value != int(value) or value < least:
            raise ValueError(f"expected a whole number, {least} or more")
        return int(value)

    return convert


def integer(value: Any) -> int:
    """Check a whole number, positive or negative."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError("expected a whole number")
    return int(value)


def number(least: float, is_above: bool = False, below: float = math.inf) -> Convert:
    """Return a converter for numbers with a minimum, which may be excluded, and an excluded upper limit."""

    def convert(value: Any) -> float:
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        words = f"{'above' if is_above else 'from'} {least:g}" + (
            "" if below == math.inf else f" to below {below:g}"
        )
        if (
            not is_number
            or not math.isfinite(value)
            or not least <= value < below
            or (is_above and value == least)
        ):
            raise ValueError(f"expected a number {words}")
        return float(value)

    return convert


def flag(value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError("expected True or False")
    return bool(value)


def choice(*options: str) -> Convert:
    """Return a converter for one of several words."""

    def convert(value: Any) -> str:
        if value not in options:
            near = difflib.get_close_matches(str(value), options, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"expected one of {', '.join(options)}{hint}")
        return str(value)

    return convert


def _how_verbose(value: Any) -> Any:
    """Check ``auto``, 0 or 1."""
    if value not in ("auto", 0, 1):
        raise ValueError("expected auto, 0 or 1")
    return value if value == "auto" else int(value)


def sizes(value: Any) -> list[int]:
    """Check sizes: a list of whole numbers, 1 or more."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("expected a list of whole numbers, 1 or more each")
    return [whole(1)(size) for size in value]


def texts(value: Any) -> list[str]:
    """Check a list of texts."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError("expected a list of texts")
    return list(value)


def names(value: Any) -> list[str]:
    """Check names of columns, each once."""
    found = texts(value)
    if not found or len(set(found)) < len(found):
        raise ValueError("expected a list of different columns, at least one")
    return found


def labels(value: Any) -> list[Any]:
    """Check the values of a label, in the order of the classes."""
    items = list(value) if isinstance(value, list | tuple | range | np.ndarray) else []
    items = [item.item() if isinstance(item, np.generic) else item for item in items]
    is_text = all(isinstance(item, str) for item in items)
    is_number = all(isinstance(item, int | float) and not isinstance(item, bool) for item in items)
    if len(items) < 2 or len(set(items)) < len(items) or not (is_text or is_number):
        raise ValueError("expected a list of at least 2 different texts, or of at least 2 different numbers")
    return items


def mapping(value: Any) -> dict[str, Any]:
    """Check a dict of arguments that JSON can hold."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a dict of arguments by name")
    return {name: plain(item) for name, item in value.items()}


def plain(value: Any) -> Any:
    """Return a value as plain data for JSON: lists for tuples and arrays, Python's numbers for NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | Vector):
        return np.asarray(value).tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(f"expected numbers, texts, lists and dicts of them, got {type(value).__name__} inside")


class CheckedParams(Params):
    """Params that are set by keyword, by setter or by `set`, and checked each time.

    Each Param ``x`` has ``setX`` and ``getX``, unless the class defines them. Values that contradict each other are
    rejected when they are set (`_contradiction`).
    """

    _paramMap: dict[Any, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Add setters and getters of the Params to the class, and a signature for notebooks."""
        super().__init_subclass__(**kwargs)
        names = _params_of(cls)
        aliases = [alias for alias, own in ALIASES.items() if own in names and alias not in names]
        for name in [*names, *aliases]:
            _add_accessors(cls, name)
        keyword = inspect.Parameter.KEYWORD_ONLY
        cls.__signature__ = inspect.Signature([inspect.Parameter(name, keyword) for name in names])

    def setParams(self, **params: Any) -> Self:
        """Set several Params by name."""
        return self._set(**self._named(params))

    def _named(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return Params by their own names.

        Raises:
            ConfigError: a Param is unknown, or is given by both of its names.
        """
        known = _params_of(type(self))
        found: dict[str, Any] = {}
        for name, value in params.items():
            own = name if name in known else ALIASES.get(name, name)
            if own not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
                raise ConfigError(f"expected a Param of {type(self).__name__}, got {name!r}; {hint}")
            if own in found and found[own] != value:
                raise ConfigError(
                    f"expected {own} once, got {found[own]!r} and {value!r}: {name} is another name of it; leave "
                    "one of them out"
                )
            found[own] = value
        return found

    def _set(self, **kwargs: Any) -> Self:
        """Check and set Params; none is set if one is wrong.

        Raises:
            ConfigError: names the Param, its value and the expected values.
        """
        before: dict[Any, Any] = dict(self._paramMap)
        for name, value in kwargs.items():
            if value is None:
                continue
            param = self.getParam(name)
            try:
                self._paramMap[param] = param.typeConverter(value)
            except (TypeError, ValueError) as error:
                self._paramMap = before
                raise ConfigError(
                    f"Param {name} of {type(self).__name__}: {error}, got {value!r}; {param.doc}"
                ) from None
        problem = self._contradiction()
        if problem:
            self._paramMap = before
            raise ConfigError(f"{type(self).__name__}: {problem}")
        return self

    def set(self, param: Param[Any], value: Any) -> None:
        """Set one Param."""
        self._shouldOwn(param)
        self._set(**{param.name: value})

    def _contradiction(self) -> str | None:
        """Return a message about Params that contradict each other; None: none do."""
        return None


def _params_of(cls: type) -> list[str]:
    """Return the names of a class's Params, in alphabetical order."""
    return sorted(name for name in dir(cls) if isinstance(getattr(cls, name, None), Param))


def _add_accessors(cls: type, name: str) -> None:
    own = name if name in _params_of(cls) else ALIASES[name]
    capital = name[0].upper() + name[1:]

    def setter(self: CheckedParams, value: Any) -> CheckedParams:
        return self._set(**{own: value})

    def getter(self: CheckedParams) -> Any:
        return self.getOrDefault(own)

    setter.__doc__, getter.__doc__ = f"Set `{own}`.", f"Return `{own}`, or its default."
    for accessor, full in ((setter, f"set{capital}"), (getter, f"get{capital}")):
        if not hasattr(cls, full):
            accessor.__name__ = accessor.__qualname__ = full
            setattr(cls, full, accessor)


# --- the Params ---------------------------------------------------------------------------------------


class ColumnParams(
    CheckedParams, HasFeaturesCol, HasLabelCol, HasPredictionCol, HasWeightCol, HasHandleInvalid
):
    """Columns and batches of an estimator and of its model."""

    featuresCol = declare("featuresCol", "the column that the network reads (also inputCol)", text)
    labelCol = declare("labelCol", "the column that it learns to predict", text)
    predictionCol = declare("predictionCol", "the column of the predictions (also outputCol)", text)
    weightCol = declare(
        "weightCol", "the column of each row's weight in loss and metrics, like Keras's sample_weight", text
    )
    batchSize = declare("batchSize", "rows of a step over all workers (also blockSize)", whole(1))
    predictBatchSize = declare(
        "predictBatchSize", "maximum number of rows in one call of the network in transform", whole(1)
    )
    handleInvalid = declare(
        "handleInvalid",
        "rows without features in transform: error: raise; skip: drop the rows; keep: their prediction is null",
        choice(*INVALID),
    )

    def _set_column_defaults(self) -> None:
        self._setDefault(
            featuresCol="features",
            labelCol="label",
            predictionCol="prediction",
            predictBatchSize=1024,
            handleInvalid="error",
        )


class ClassParams(CheckedParams, HasProbabilityCol, HasRawPredictionCol):
    """Columns of a classifier."""

    probabilityCol = declare(
        "probabilityCol", "the column of the classes' probabilities, a vector; empty: none", text
    )
    rawPredictionCol = declare(
        "rawPredictionCol", "the column of the probabilities' logarithms, a vector; empty: none", text
    )

    def _set_class_defaults(self) -> None:
        self._setDefault(probabilityCol="probability", rawPredictionCol="rawPrediction")


class TrainingParams(CheckedParams, HasMaxIter, HasStepSize, HasSeed, HasValidationIndicatorCol):
    """Settings of the training."""

    maxIter = declare("maxIter", "epochs: passes over the rows, 1 or more", whole(1))
    stepSize = declare("stepSize", "learning rate of the optimizer, above 0", number(0, is_above=True))
    seed = declare("seed", "of weights, shuffling and dropout", integer)
    numWorkers = declare("numWorkers", "TensorFlow workers; each holds one of Spark's task slots", whole(1))
    optimizer = declare("optimizer", "a Keras optimizer by name, such as adam, sgd or rmsprop", text)
    callbacks = declare(
        "callbacks",
        "early_stopping, reduce_lr_on_plateau, terminate_on_nan: a dict of name -> arguments",
        mapping,
    )
    validationIndicatorCol = declare(
        "validationIndicatorCol", "the boolean column that is true for rows that are only evaluated", text
    )
    logDir = declare(
        "logDir", "directory for the workers' logs and the exported model; unset: they are not kept", text
    )
    verbose = declare(
        "verbose",
        "how progress is shown: auto: a bar in a notebook, a line for each epoch on a terminal; 1: lines where there "
        "is no notebook; 0: nothing",
        _how_verbose,
    )
    shuffle = declare("shuffle", "whether rows are shuffled, differently in every epoch", flag)

    def _set_training_defaults(self) -> None:
        self._setDefault(maxIter=10, seed=0, numWorkers=1, batchSize=32, shuffle=True, verbose="auto")
