"""Save and load the models and estimators of `tfspark.ml` as Spark ML does: in a directory on any file system.

``metadata/`` is Spark ML's own, with additions by tfspark; ``model.keras`` is the network, which Keras can load without
tfspark. Loading a model runs no code from its directory: custom objects come from tfspark's own model modules, or are
imported by name. An estimator's `modelBuilder` without an importable name is pickled.
"""

from __future__ import annotations

import base64
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyspark import cloudpickle
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter

from tfspark import shipped
from tfspark.errors import ConfigError
from tfspark.feed.described import FORMAT, check_format

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MODEL_FILE = "model.keras"
PART_BYTES = 8 << 20
CODE_PARAMS = ("modelBuilder", "customObjects")
"""Params that hold code, not plain data."""


class NetworkWriter(MLWriter):
    """Writes an estimator or a model of `tfspark.ml`."""

    def __init__(self, instance: Any):
        super().__init__()
        self.instance = instance

    def saveImpl(self, path: str) -> None:
        """Write the directory."""
        instance = self.instance
        params = {p.name: value for p, value in instance._paramMap.items() if p.name not in CODE_PARAMS}
        code = {
            p.name: _code_to_json(value) for p, value in instance._paramMap.items() if p.name in CODE_PARAMS
        }
        extra = {"tfsparkFormat": FORMAT, "code": code, "state": instance._state_to_json()}
        DefaultParamsWriter.saveMetadata(instance, path, self.sparkSession, extra, params)
        data = instance._keras_file
        if data is not None:
            write_bytes(self.sparkSession, f"{path}/{MODEL_FILE}", data)


class NetworkReader(MLReader[Any]):
    """Reads a directory that `NetworkWriter` wrote."""

    def __init__(self, cls: type):
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> Any:
        """Return the estimator or the model.

        Raises:
            ConfigError: it does not belong to tfspark.ml, has a different class, or was saved by a newer version.
        """
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        if "tfsparkFormat" not in metadata:
            raise ConfigError(
                f"expected an estimator or a model of tfspark.ml at {path}, got {metadata['class']}; load it with "
                "that class"
            )
        check_format(metadata, path, "tfsparkFormat")
        found = _class_of(metadata["class"])
        if not issubclass(found, self.cls):
            raise ConfigError(
                f"expected a {self.cls.__name__} at {path}, got a {found.__name__}; load it with "
                f"{found.__name__}.load()"
            )
        instance: Any = found()
        instance._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(instance, metadata)
        for name, code in metadata["code"].items():
            instance._set(**{name: _code_from_json(code)})
        has_file = metadata["state"] is not None
        data = read_bytes(self.sparkSession, f"{path}/{MODEL_FILE}") if has_file else None
        instance._set_state(metadata["state"], data)
        return instance


def _class_of(name: str) -> type:
    module, _, own = name.rpartition(".")
    found: type = getattr(importlib.import_module(module), own)
    return found


# --- code ---------------------------------------------------------------------------------------------


def _code_to_json(value: Any) -> Any:
    """Return code as plain data: a path, a name that can be imported, or a pickle."""
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, Mapping):
        return {"objects": {name: _code_to_json(item) for name, item in value.items()}}
    name = importable_name(value)
    if name is not None:
        return {"name": name}
    return {"pickle": base64.b64encode(cloudpickle.dumps(value)).decode()}


def _code_from_json(data: Mapping[str, Any]) -> Any:
    """Return the code from the result of `_code_to_json`."""
    if "path" in data:
        return data["path"]
    if "objects" in data:
        return {name: _code_from_json(item) for name, item in data["objects"].items()}
    if "name" in data:
        return imported(data["name"])
    return cloudpickle.loads(base64.b64decode(data["pickle"]))


def importable_name(value: Any) -> str | None:
    """Return ``module:name`` of a function or class if another process can import it; else None."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if module in (None, "__main__") or "<" in name:
        return None
    try:
        return f"{module}:{name}" if imported(f"{module}:{name}") is value else None
    except ConfigError:
        return None


def imported(name: str) -> Any:
    """Import ``module:name``.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"expected to import {path} of the saved model from the module {module}: {error}; put the module on the "
            "module path"
        ) from None
    return found


def is_own_module(name: str) -> bool:
    """Return whether a module comes with tfspark, as a part of its package or as a model module."""
    return name.startswith("tfspark.") or name in shipped.list_shipped()


def own_modules(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the sources of modules that come with tfspark: (name, source) pairs."""
    return tuple(
        (
            name,
            f"import {name}\n"
            if name.startswith("tfspark.")
            else shipped.find_shipped(name).read_text(encoding="utf-8"),
        )
        for name in names
    )


# --- files --------------------------------------------------------------------------------------------


def write_bytes(spark: SparkSession, path: str, data: bytes) -> None:
    """Write a file to any file system of Spark's Hadoop."""
    place, system = _on_hadoop(spark, path)
    stream = system.create(place)
    try:
        for start in range(0, len(data), PART_BYTES):
            stream.write(bytearray(data[start : start + PART_BYTES]))
    finally:
        stream.close()


def read_bytes(spark: SparkSession, path: str) -> bytes:
    """Read a file from any file system of Spark's Hadoop.

    Raises:
        ConfigError: it does not exist.
    """
    place, system = _on_hadoop(spark, path)
    if not system.exists(place):
        raise ConfigError(
            f"expected the file {path} of a saved model, but it does not exist; save the model again"
        )
    row = spark.read.format("binaryFile").load(str(system.makeQualified(place))).select("content").first()
    assert row is not None
    return bytes(row[0])


def _on_hadoop(spark: SparkSession, path: str) -> tuple[Any, Any]:
    jvm: Any = spark.sparkContext._jvm
    place = jvm.org.apache.hadoop.fs.Path(path)
    return place, place.getFileSystem(spark.sparkContext._jsc.hadoopConfiguration())
