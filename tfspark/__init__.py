"""Train Keras models across a Spark cluster, where the data already is.

Importing this package is light: pyspark, pyarrow and TensorFlow are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfspark.cluster.inputs import Feeding, InputMode
    from tfspark.cluster.tfcluster import TFCluster
    from tfspark.feed.columns import Column, Columns
    from tfspark.feed.files import TFRecordFiles
    from tfspark.inference.predict import predict
    from tfspark.migrate import TFNode, TFParallel, compat, dfutil, gpu_info, pipeline, util

__all__ = [
    "Column",
    "Columns",
    "Feeding",
    "InputMode",
    "TFCluster",
    "TFNode",
    "TFParallel",
    "TFRecordFiles",
    "compat",
    "dfutil",
    "gpu_info",
    "pipeline",
    "predict",
    "util",
]

_HOMES = {
    "Column": "tfspark.feed.columns",
    "Columns": "tfspark.feed.columns",
    "Feeding": "tfspark.cluster.inputs",
    "InputMode": "tfspark.cluster.inputs",
    "TFCluster": "tfspark.cluster.tfcluster",
    "TFRecordFiles": "tfspark.feed.files",
    "predict": "tfspark.inference.predict",
}

_MIGRATED = ("TFNode", "TFParallel", "compat", "dfutil", "gpu_info", "pipeline", "util")
"""Modules that TensorFlowOnSpark has under these names."""


def __getattr__(name: str) -> Any:
    if name in _MIGRATED:
        return import_module(f"tfspark.migrate.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'tfspark' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
