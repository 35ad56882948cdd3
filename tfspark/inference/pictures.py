"""Pictures of some rows, drawn by a model's module in a Python worker of Spark. Called on the driver."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tfspark.cluster.inputs import select_columns
from tfspark.driver_python import use_own_python
from tfspark.feed.arrays import row_weights, to_numpy
from tfspark.feed.columns import Columns
from tfspark.feed.spark_names import map_in_arrow
from tfspark.inference.model_files import ModelFiles, load, run_module
from tfspark.inference.predictor import Predictor

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SHOWN_ROWS = 1000
"""Number of rows of an evaluation that the module gets, as in a run."""
DRAWS = "def draw("
PICTURES_DDL = "name string, data binary"


def draw_rows(df: DataFrame, model: ModelFiles, columns: Columns) -> dict[str, bytes]:
    """Let the model's module draw some of the rows; return file name -> content.

    Args:
        df: the rows, with labels in the form that the network takes.
        model: a ``.keras`` file and its module; nothing is drawn if the module has no ``draw``.
        columns: features, label and weight.
    """
    if not any(DRAWS in source for _, source in model.modules):
        return {}
    use_own_python(df.sparkSession)
    rows = select_columns(df, columns).limit(SHOWN_ROWS).coalesce(1)
    task = DrawTask(Predictor(model, columns, (), batch_rows=SHOWN_ROWS))
    return {row["name"]: bytes(row["data"]) for row in map_in_arrow(rows, task, PICTURES_DDL).collect()}


@dataclass(frozen=True)
class DrawTask:
    """Draws the rows of its partition.

    Attributes:
        predictor: the model and the columns it reads.
    """

    predictor: Predictor

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one row for each file."""
        model, parts = load(self.predictor.model, compiled=True), []
        for batch in self.predictor.slices(batches):
            parts.append(self._element(batch))
        whole = _joined(parts)
        if whole is None:
            return
        with tempfile.TemporaryDirectory(prefix="tfspark-pictures-") as folder:
            for name, source in self.predictor.model.modules:
                draw = getattr(run_module(name, source), "draw", None)
                if draw is not None:
                    draw(model, *whole, folder)
            for file in sorted(path for path in Path(folder).iterdir() if path.is_file()):
                yield pa.record_batch([[file.name], [file.read_bytes()]], ["name", "data"])

    def _element(self, batch: pa.RecordBatch) -> Any:
        """Return features and label in the form that the model takes."""
        from tfspark.feed.reader import WEIGHT

        columns = self.predictor.columns
        rows = to_numpy(batch, columns)
        rows[WEIGHT] = row_weights(rows, columns, batch.num_rows)
        return self.predictor.element_function(rows, lambda element: element[:2], in_graph=False)(rows)


def _joined(parts: list[Any]) -> Any:
    """Concatenate batches; None if there are none, or they are not dense."""
    import tensorflow as tf

    if not parts or not all(isinstance(part, tf.Tensor) for part in tf.nest.flatten(parts)):
        return None
    return tf.nest.map_structure(lambda *values: np.concatenate(values), *parts)
