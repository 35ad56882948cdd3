"""Train Keras models across a Spark cluster, where the data already is.

Importing this package is fast: pyspark, pyarrow and TensorFlow are imported only when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfspark import ml, parameters, tfrecord
    from tfspark.cluster.inputs import Feeding, FeedOptions, InputMode
    from tfspark.cluster.tfcluster import TFCluster
    from tfspark.errors import (
        ConfigError,
        DataError,
        DeadlineError,
        NodeFailedError,
        ReservationError,
        TfsparkError,
    )
    from tfspark.feed.columns import Column, Columns
    from tfspark.feed.files import TFRecordFiles
    from tfspark.inference.predict import predict
    from tfspark.migrate import TFNode, TFParallel, compat, dfutil, gpu_info, pipeline, util
    from tfspark.migrate.context import TFContext
    from tfspark.protocol.settings import Hooks

__all__ = [
    "Column",
    "Columns",
    "ConfigError",
    "DataError",
    "DeadlineError",
    "FeedOptions",
    "Feeding",
    "Hooks",
    "InputMode",
    "NodeFailedError",
    "ReservationError",
    "TFCluster",
    "TFContext",
    "TFNode",
    "TFParallel",
    "TFRecordFiles",
    "TfsparkError",
    "compat",
    "dfutil",
    "gpu_info",
    "ml",
    "parameters",
    "pipeline",
    "predict",
    "tfrecord",
    "util",
]

_HOMES = {
    "Column": "tfspark.feed.columns",
    "Columns": "tfspark.feed.columns",
    "ConfigError": "tfspark.errors",
    "DataError": "tfspark.errors",
    "DeadlineError": "tfspark.errors",
    "FeedOptions": "tfspark.cluster.inputs",
    "Feeding": "tfspark.cluster.inputs",
    "Hooks": "tfspark.protocol.settings",
    "InputMode": "tfspark.cluster.inputs",
    "NodeFailedError": "tfspark.errors",
    "ReservationError": "tfspark.errors",
    "TFCluster": "tfspark.cluster.tfcluster",
    "TFContext": "tfspark.migrate.context",
    "TFRecordFiles": "tfspark.feed.files",
    "TfsparkError": "tfspark.errors",
    "predict": "tfspark.inference.predict",
}

_MIGRATED = ("TFNode", "TFParallel", "compat", "dfutil", "gpu_info", "pipeline", "util")
"""Modules with TensorFlowOnSpark's names."""


def __getattr__(name: str) -> Any:
    if name in _MIGRATED:
        return import_module(f"tfspark.migrate.{name}")
    if name in ("ml", "parameters", "tfrecord"):
        return import_module(f"tfspark.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'tfspark' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
