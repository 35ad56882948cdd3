"""Train Keras models across a Spark cluster, where the data already is.

Importing this package is light: pyspark, pyarrow and TensorFlow are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfspark.cluster.tfcluster import Feeding, InputMode, TFCluster
    from tfspark.feed.columns import Column, Columns
    from tfspark.feed.files import TFRecordFiles

__all__ = ["Column", "Columns", "Feeding", "InputMode", "TFCluster", "TFRecordFiles"]

_HOMES = {
    "Column": "tfspark.feed.columns",
    "Columns": "tfspark.feed.columns",
    "Feeding": "tfspark.cluster.tfcluster",
    "InputMode": "tfspark.cluster.tfcluster",
    "TFCluster": "tfspark.cluster.tfcluster",
    "TFRecordFiles": "tfspark.feed.files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfspark' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
