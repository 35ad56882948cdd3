"""A trained model as bytes: read on the driver, sent with Spark's task, loaded once in each Python worker."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfspark.errors import ConfigError
from tfspark.greetings import without_greetings

KERAS, SAVED_MODEL = "keras", "saved_model"
MOST_BYTES = 1 << 30
"""Spark sends a task's code, including the model, as one JVM array, which holds at most 2 GiB."""
LOADED_MODELS = 3
"""Maximum number of models that a Python worker keeps: a pipeline may have several stages."""


@dataclass(frozen=True)
class ModelFiles:
    """A model and everything that is needed to load it.

    Attributes:
        kind: ``keras`` or ``saved_model``.
        files: (path within the model, bytes) pairs; only one for a ``.keras`` file.
        modules: (name, source) of Python modules to run before loading; they register custom objects.
        custom_objects: more custom objects, by their names in the model.
        signature: for a SavedModel, the name of the function to call.
        digest: checksum of the files and modules, so that two versions of one file are never confused.
    """

    kind: str
    files: tuple[tuple[str, bytes], ...] = field(repr=False)
    modules: tuple[tuple[str, str], ...] = ()
    custom_objects: Mapping[str, Any] = field(default_factory=dict)
    signature: str = "serving_default"
    digest: str = ""

    def __post_init__(self) -> None:
        """Reject a model that is too large for Spark to send, and compute the checksum."""
        num_bytes = sum(len(data) for _, data in self.files)
        if num_bytes > MOST_BYTES:
            raise ConfigError(
                f"expected a model of at most {MOST_BYTES:,} bytes, which Spark can ship with its tasks, got "
                f"{num_bytes:,}; save it without the optimizer's state, or in a smaller type"
            )
        seen = hashlib.sha256(f"{self.kind} {self.signature}".encode())
        for name, data in self.files:
            seen.update(f"\n{name} {len(data)}\n".encode() + data)
        for name, source in self.modules:
            seen.update(f"\n{name}\n{source}".encode())
        object.__setattr__(self, "digest", seen.hexdigest())

    @property
    def keras_file(self) -> bytes:
        """The bytes of the ``.keras`` file."""
        return self.files[0][1]


def of_keras(
    data: bytes, modules: tuple[tuple[str, str], ...] = (), custom_objects: Mapping[str, Any] | None = None
) -> ModelFiles:
    """Create a model from the bytes of a ``.keras`` file."""
    return ModelFiles(KERAS, (("model.keras", data),), modules, dict(custom_objects or {}))


def read_model(path: str | Path, signature: str = "serving_default") -> ModelFiles:
    """Read a ``.keras`` file or a SavedModel's directory on the driver.

    Raises:
        ConfigError: the path is neither.
    """
    place = Path(str(path).removeprefix("file:"))
    if place.is_file() and place.suffix == ".keras":
        return of_keras(place.read_bytes())
    if (place / "saved_model.pb").is_file():
        paths = sorted(file for file in place.rglob("*") if file.is_file())
        files = tuple((file.relative_to(place).as_posix(), file.read_bytes()) for file in paths)
        return ModelFiles(SAVED_MODEL, files, signature=signature)
    found = "a directory" if place.is_dir() else "a file" if place.is_file() else "nothing"
    raise ConfigError(
        f"expected a run directory, a .keras file or a SavedModel at {str(path)!r}, got {found} that is none of them "
        f"(working directory {os.getcwd()}); name what `tfspark run` or model.save(...) wrote"
    )


class LoadedModels:
    """The models that this process holds; the least recently used one is removed first."""

    def __init__(self, most: int = LOADED_MODELS):
        self._most = most
        self._models: dict[tuple[str, Any], Any] = {}

    def get(
        self, model: ModelFiles, make: Callable[[Any], Any], key: Any = None, compiled: bool = False
    ) -> Any:
        """Return the result of `make` for the loaded model; it is computed once for each version of its files.

        Args:
            model: the files.
            make: called with the loaded model.
            key: identifies the caller's result, if several callers use one model.
            compiled: load the model with its loss and metrics.
        """
        place = (model.digest, key)
        made = self._models.pop(place, None)
        if made is None:
            made = make(load(model, compiled))
        self._models[place] = made
        while len(self._models) > self._most:
            del self._models[next(iter(self._models))]
        return made


@functools.cache
def loaded_models() -> LoadedModels:
    """Return the loaded models of this process."""
    return LoadedModels()


def load(model: ModelFiles, compiled: bool = False) -> Any:
    """Load a model into TensorFlow: a `keras.Model`, with its loss if `compiled`, or a function of a SavedModel.

    Raises:
        ConfigError: a SavedModel has no such signature.
    """
    with _variables_of_import(), without_greetings():  # TensorFlow prints some with the first variable.
        for name, source in model.modules:
            run_module(name, source)
        return _loaded(model, compiled)


@contextmanager
def _variables_of_import() -> Iterator[None]:
    """Set what Keras and TensorFlow read during their import. Spark uses this process again, also for a node."""
    names = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ["KERAS_BACKEND"] = "tensorflow"  # As in trainers; other work of the user may use another.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def _loaded(model: ModelFiles, compiled: bool) -> Any:
    with tempfile.TemporaryDirectory(prefix="tfspark-model-") as folder:
        for name, data in model.files:
            place = Path(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        if model.kind == KERAS:
            import keras

            return keras.saving.load_model(
                Path(folder, model.files[0][0]), custom_objects=dict(model.custom_objects), compile=compiled
            )
        return _signature_of(folder, model.signature)


def _signature_of(folder: str, signature: str) -> Any:
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    if signature not in loaded.signatures:
        raise ConfigError(
            f"expected the signature {signature!r} in the SavedModel, it has {sorted(loaded.signatures)}; name one of "
            "them"
        )
    function = loaded.signatures[signature]
    function._tfspark_model = loaded  # A signature alone does not keep the model's variables alive.
    return function


def run_module(name: str, source: str) -> types.ModuleType:
    """Run a module's source under its own name, once for each version of the source; return the module."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    full = f"tfspark_inference_{digest}"
    if full not in sys.modules:
        module = types.ModuleType(full)
        module.__file__ = name
        sys.modules[full] = module  # dataclasses look a class's module up by its name
        try:
            exec(compile(source, name, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[full]
            raise
    return sys.modules[full]
