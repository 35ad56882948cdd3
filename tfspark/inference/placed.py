"""Read the features of rows to predict where they are predicted, without Spark's JVM.

For rows of Parquet files, Spark knows the file and the row's number within it. A Python worker that is given these two
reads the features itself, which is several times faster than reading them in the JVM and converting them to Arrow.
Filters and all other columns are left to Spark, which reads a column only if the query needs it. Spark gives the rows
in the order of the file, so each row group is read once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException

from tfspark.cluster.direct import FILES, NotDirectError, PlacedColumns, only_source, placed_columns
from tfspark.errors import DataError
from tfspark.feed.scan import FileVersion, Selection, open_unchanged, parquet_file
from tfspark.feed.spark_names import select_by_name
from tfspark.inference.predictor import Predictor

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

logger = logging.getLogger("tfspark")

FILE, ROW = "__tfspark_file", "__tfspark_row"
"""Columns with each row's place."""
BATCH_BYTES = 8 << 20
"""Approximate size of what is read at a time."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PredictPlacesTask:
    """Predicts the rows at given places. Runs in a Python worker of Spark.

    Attributes:
        predictor: the model, the columns it reads and the columns it computes.
        placed: the columns and the files.
    """

    predictor: Predictor
    placed: PlacedColumns

    def of_places(self, batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        """Yield a struct for each row; the columns are its file and its number there."""
        yield from self.predictor.predicted(self._rows(batches))

    def _rows(self, batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.RecordBatch]:
        reader: RowReader | None = None
        try:
            for files, rows in batches:
                first = 0
                runs = pc.run_end_encode(files)
                for path, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                    if reader is None or reader.path != path:
                        if reader is not None:
                            reader.close()
                        reader = RowReader(
                            path, self.placed.files[path], self.placed.selection, self.predictor.batch_rows
                        )
                    yield from reader.rows(rows.slice(first, end - first).to_numpy())
                    first = end
        finally:
            if reader is not None:
                reader.close()


class RowReader:
    """Reads rows of one Parquet file by their numbers; quick if they ascend.

    Args:
        path: names the file.
        file: the file as Spark listed it.
        selection: the columns.
        batch_rows: rows of a call of the model.
    """

    def __init__(self, path: str, file: FileVersion, selection: Selection, batch_rows: int):
        self.path = path
        self._file = file
        self._selection = selection
        self._stream = open_unchanged(file)
        self._parquet = parquet_file(self._stream)
        metadata = self._parquet.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups])
        names = set(selection.columns.names)
        read = sum(
            column.total_uncompressed_size
            for group in groups
            for column in map(group.column, range(group.num_columns))
            if column.path_in_schema.partition(".")[0] in names
        )
        self._rows_at_once = _rows_at_once(read / max(1, metadata.num_rows), batch_rows)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = self._end = 0

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
        self._stream.close()

    def rows(self, numbers: Numbers) -> Iterator[pa.RecordBatch]:
        """Yield the rows with these numbers, in their order.

        Raises:
            DataError: the file is damaged.
        """
        while len(numbers):
            self._seek(int(numbers[0]))
            assert self._batch is not None
            outside = np.flatnonzero((numbers < self._first) | (numbers >= self._end))
            count = int(outside[0]) if len(outside) else len(numbers)
            places, numbers = numbers[:count] - self._first, numbers[count:]
            is_slice = places[-1] - places[0] == count - 1 and bool(np.all(np.diff(places) == 1))
            yield self._selection.of(
                self._batch.slice(places[0], count) if is_slice else self._batch.take(pa.array(places))
            )

    def _seek(self, number: int) -> None:
        """Make the batch with the row `number` the current one."""
        if self._first <= number < self._end:
            return
        group = int(np.searchsorted(self._ends, number, side="right"))
        try:
            current = int(np.searchsorted(self._ends, self._end, side="right"))
            if self._batch is None or number < self._end or group > current:
                self._batches = self._parquet.iter_batches(
                    batch_size=self._rows_at_once,
                    row_groups=list(range(group, len(self._ends))),
                    columns=self._selection.columns.names,
                    use_threads=False,
                )
                self._end = int(self._ends[group - 1]) if group else 0
            while number >= self._end:
                self._batch = next(self._batches)
                self._first, self._end = self._end, self._end + self._batch.num_rows
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise DataError(
                f"expected row {number} of {self._file.path}, pyarrow says: {str(error) or 'there are fewer rows'}; "
                "write the file anew"
            ) from error


def _rows_at_once(row_bytes: float, batch_rows: int) -> int:
    """Return the rows to read at a time: whole calls of the model, if there is room for them."""
    rows = int(BATCH_BYTES / max(1.0, row_bytes))
    return rows - rows % batch_rows if rows > batch_rows else max(1, rows)


def with_places(df: DataFrame, predictor: Predictor) -> tuple[DataFrame, PlacedColumns] | None:
    """Return the rows with the columns `FILE` and `ROW`, and how to read the features there; None if Spark must.

    Args:
        df: the rows.
        predictor: the model and the columns it reads.
    """
    if predictor.handle_invalid == "skip":
        return None  # Spark drops rows without features, so it reads them.
    if only_source(df) != FILES or "_metadata" in (name.lower() for name in df.columns):
        return None
    from pyspark.sql.functions import col

    try:
        read = select_by_name(df, list(predictor.read))
        placed = placed_columns(df.sparkSession, read._jdf.queryExecution())
        places = col("_metadata.file_path").alias(FILE), col("_metadata.row_index").alias(ROW)
        return df.select("*", *places), placed
    except (NotDirectError, AnalysisException, Py4JError) as error:
        logger.debug("Spark reads the features to predict: %s", str(error).splitlines()[0])
        return None
