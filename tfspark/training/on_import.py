"""Correct Keras as soon as a `main_fun` imports it. Importing this module imports neither Keras nor TensorFlow.

A `main_fun` may create its strategy itself, as programs for TensorFlowOnSpark do. Then `ctx.strategy`, which also
applies the corrections, is never called.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

STEPS = ("steps_per_epoch", "validation_steps")


def correct_keras_when_imported() -> None:
    """Apply `tfspark.training.keras_corrections` and `take_broken_steps` now, or right after ``import keras``."""
    if "keras" in sys.modules:  # A fork of the warm parent has imported it.
        _correct(sys.modules["keras"])
    else:
        sys.meta_path.insert(0, _KerasFinder())


def _correct(keras: ModuleType) -> None:
    from tfspark.training.keras_corrections import apply_corrections

    apply_corrections()
    take_broken_steps(keras)


def take_broken_steps(keras: ModuleType) -> None:
    """Let ``fit`` accept fractional numbers of steps and round them up, as in Keras 2."""
    trainer = keras.Model
    original = trainer.fit

    @functools.wraps(original)
    def fit(self: object, *args: object, **kwargs: Any) -> object:
        whole = {name: math.ceil(kwargs[name]) for name in STEPS if isinstance(kwargs.get(name), float)}
        return original(self, *args, **{**kwargs, **whole})

    trainer.fit = fit


class _KerasFinder(MetaPathFinder):
    """Find Keras as Python does, with a loader that corrects it after the import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "keras":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _CorrectingLoader(spec.loader)  # Only the import uses it, and that runs once.
        return spec


class _CorrectingLoader(Loader):
    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _correct(module)
