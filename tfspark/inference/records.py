"""Predict the rows of TFRecord files where they are decoded, without Spark's JVM.

Spark would decode records in one Python worker, make rows of them in the JVM and convert these to Arrow for another
Python worker, which takes longer than many models. Where a DataFrame is only a scan of TFRecord files, one worker
decodes and predicts. Partitions, rows, their order and the columns are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from py4j.protocol import Py4JError

from tfspark.cluster.direct import DATA_SOURCE, NotDirectError, direct_records, only_source
from tfspark.feed.scan import Scan
from tfspark.inference.predictor import Predictor

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

logger = logging.getLogger("tfspark")


@dataclass(frozen=True)
class PredictSplitTask:
    """Predicts the rows of splits. Runs in a Python worker of Spark.

    Attributes:
        predictor: the model, the columns it reads and the columns it computes.
        scan: reads a split.
        splits: one per partition.
        kept: the columns that are returned before the predictions.
    """

    predictor: Predictor
    scan: Scan
    splits: tuple[Any, ...]
    kept: tuple[str, ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the splits whose numbers are given, with their predictions."""
        # The number comes with the row: a task of Spark may have several partitions, for example after coalesce.
        for batch in batches:
            for number in batch.column(0).to_pylist():
                yield from self.predictor.added(self.scan.read(self.splits[number]), self.kept)


def predicted_records(df: DataFrame, predictor: Predictor, schema: StructType) -> DataFrame | None:
    """Return the rows with their predictions if they only come from TFRecord files; otherwise None.

    Args:
        df: the rows.
        predictor: the model, the columns it reads and the columns it computes.
        schema: of the result: the columns of `df` that are kept, then those that are computed.
    """
    if only_source(df) != DATA_SOURCE:
        return None
    try:
        direct = direct_records(df.select("*")._jdf.queryExecution())
    except (NotDirectError, Py4JError) as error:
        logger.debug("Spark reads the rows to predict: %s", str(error).splitlines()[0])
        return None
    if direct is None or not direct.splits:
        return None
    kept = tuple(schema.fieldNames()[: len(schema) - len(predictor.outputs)])
    task = PredictSplitTask(predictor, direct.scan, direct.splits, kept)
    count = len(direct.splits)
    return df.sparkSession.range(0, count, 1, count).mapInArrow(task, schema)
