"""Load model modules: Python files with `build_model`, found by their path.

Called on the driver. The functions of a `ModelModule` travel to the executors by value, inside Spark's task
closure, so only the driver needs the file.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import re
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tfspark.errors import ConfigError
from tfspark.shipped import find_shipped

Function = Callable[..., Any]

# Hook -> its positional arguments.
HOOKS: dict[str, tuple[str, ...]] = {
    "build_model": ("params",),
    "features": ("batch",),
    "callbacks": ("params",),
    "export": ("model", "directory"),
    "adapt": ("params", "df"),
    "draw": ("model", "x", "y", "directory"),
    "draw_epoch": ("model", "epoch", "directory"),
}


@dataclass(frozen=True)
class ModelModule:
    """The functions of a model module.

    Attributes:
        path: the file.
        name: the module's name in this process; no import statement finds it.
        build_model: ``build_model(params)`` returns a compiled `keras.Model`.
        features: ``features(batch)`` returns the model's inputs; None: the batch itself.
        callbacks: ``callbacks(params)`` returns further Keras callbacks; None: there are none.
        export: ``export(model, directory)`` writes further files beside the usual formats; None: there are none.
        adapt: ``adapt(params, df)`` returns `params`, completed from the training rows; None: they do not change.
        draw: ``draw(model, x, y, directory)`` writes pictures of some test rows; None: there are none.
        draw_epoch: ``draw_epoch(model, epoch, directory)`` writes pictures after each epoch; None: there are none.
    """

    path: Path
    name: str
    build_model: Function
    features: Function | None = None
    callbacks: Function | None = None
    export: Function | None = None
    adapt: Function | None = None
    draw: Function | None = None
    draw_epoch: Function | None = None

    @property
    def parameters(self) -> tuple[str, ...] | None:
        """The names of the module's parameters if it has a dataclass `Params`, as the included ones do; else None."""
        own = getattr(sys.modules.get(self.name), "Params", None)
        return (
            tuple(field.name for field in dataclasses.fields(own)) if dataclasses.is_dataclass(own) else None
        )


def load_model_module(path: str | Path) -> ModelModule:
    """Load a Python file, or an included one such as ``models/cnn.py``, and check its functions.

    `build_model` is not called. From now on Spark pickles everything in the module by value.

    Raises:
        ConfigError: the file does not exist or raises an exception, or a function is missing or has wrong
            arguments.
    """
    file = find_shipped(str(path)).resolve()
    module = _run(file)
    try:
        functions = _hooks(module, file)
    except ConfigError:
        del sys.modules[module.__name__]
        raise
    _pickle_by_value(module)
    return ModelModule(path=file, name=module.__name__, **functions)


def _run(file: Path) -> ModuleType:
    # A new name for every load: two files of one name, or two versions of one file, must not be confused.
    stem = re.sub(r"\W", "_", file.stem)
    name = f"tfspark_model_{stem}_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: expected a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(
            f"{file}: expected a Python file that can be imported; {_failure(error)}"
        ) from error
    return module


def _failure(error: BaseException) -> str:
    """Describe an error with its traceback, without the frames of the import machinery."""
    text = "".join(traceback.format_exception(_without_importer(error)))
    return f"it raised {type(error).__name__}:\n{text.rstrip()}"


def _without_importer(error: BaseException) -> BaseException:
    trace = error.__traceback__
    while trace is not None and _is_importer(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return error.with_traceback(trace)


def _is_importer(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen importlib")


def _hooks(module: ModuleType, file: Path) -> dict[str, Function]:
    if not hasattr(module, "build_model"):
        raise ConfigError(
            f"{file}: expected a function build_model(params) that returns a compiled keras.Model, got none"
        )
    return {name: _hook(module, name, file) for name in HOOKS if getattr(module, name, None) is not None}


def _hook(module: ModuleType, name: str, file: Path) -> Function:
    function: Function = getattr(module, name)
    signature = f"{name}({', '.join(HOOKS[name])})"
    if not callable(function):
        raise ConfigError(
            f"{file}: expected a function {signature}, got {type(function).__name__} {function!r}"
        )
    if not _accepts(function, HOOKS[name]):
        raise ConfigError(
            f"{file}: expected {signature}, got {name}{inspect.signature(function)}; "
            "give it these positional arguments and no others without a default"
        )
    return function


def _accepts(function: Function, arguments: Sequence[str]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _pickle_by_value(module: ModuleType) -> None:
    from pyspark.cloudpickle import register_pickle_by_value  # only here: the import of pyspark is slow

    register_pickle_by_value(module)
