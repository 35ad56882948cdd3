"""Evaluate a trained model on the rows of a DataFrame, each row exactly once. `evaluate` is called on the driver.

Each partition is evaluated where Spark computes it. The states of Keras's metrics are sums over rows, so the states of
all partitions are added up, and one Python worker computes the results from the total. No trainers are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tfspark.cluster.inputs import select_columns
from tfspark.driver_python import use_own_python
from tfspark.errors import ConfigError, DataError
from tfspark.feed.arrays import row_weights, to_numpy
from tfspark.feed.columns import Columns
from tfspark.feed.spark_names import map_in_arrow
from tfspark.inference.model_files import KERAS, ModelFiles, loaded_models
from tfspark.inference.predictor import BATCH_ROWS, Predictor

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Array = npt.NDArray[Any]

MOST_COUNTED = 300
"""Maximum number of classes for a confusion matrix: each partition sends the square of this number."""
COMPILED = "compiled"


def evaluate(
    df: DataFrame,
    model: ModelFiles,
    columns: Columns,
    num_classes: int | None = None,
    batch_rows: int = BATCH_ROWS,
) -> dict[str, Any]:
    """Return a model's metrics over all rows.

    Args:
        df: the rows, with labels in the form that the network takes.
        model: a ``.keras`` file that was saved compiled.
        columns: features, label and weight.
        num_classes: also count the predicted classes.
        batch_rows: maximum rows per call of the model.

    Returns:
        Metric name -> value; with `num_classes` also ``confusion_matrix`` and ``roc``, see `TFCluster.evaluate`.

    Raises:
        ConfigError: the model is not compiled.
        DataError: there are no rows.
    """
    if model.kind != KERAS:
        raise ConfigError(
            "expected a .keras file to evaluate, got a SavedModel, which has no metrics; save it by Keras"
        )
    counted = num_classes if num_classes is not None and num_classes <= MOST_COUNTED else None
    use_own_python(df.sparkSession)
    predictor = Predictor(model, columns, (), batch_rows=batch_rows)
    task = _EvaluatePartition(predictor, counted)
    ddl = "state array<double>, merges array<string>, kind string, first_row binary"
    parts = map_in_arrow(select_columns(df, columns), task, ddl).collect()
    if not parts:
        raise DataError("expected rows to evaluate, the DataFrame has none; check its filter")
    total = _merged([part["state"] for part in parts], parts[0]["merges"])
    spark = df.sparkSession
    finish = _Finish(predictor, counted, parts[0]["kind"], total.tolist(), bytes(parts[0]["first_row"]))
    result = spark.range(0, 1, 1, 1).mapInArrow(finish, "result string").collect()[0][0]
    return dict(json.loads(result))


@dataclass(frozen=True)
class _EvaluatePartition:
    predictor: Predictor
    num_classes: int | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one row: flat metric states and class counts; nothing for a partition without rows."""
        metrics: PartMetrics | None = None
        for rows in self.predictor.slices(batches):
            if metrics is None:
                metrics = _metrics_of(self.predictor, self.num_classes)
                metrics.reset()
            metrics.add(rows)
        if metrics is not None:
            state = pa.array([metrics.state().tolist()], pa.list_(pa.float64()))
            merges = pa.array([metrics.merges()], pa.list_(pa.string()))
            kind, first_row = pa.array([metrics.kind or ""]), pa.array([metrics.first_row], pa.binary())
            names = ["state", "merges", "kind", "first_row"]
            yield pa.RecordBatch.from_arrays([state, merges, kind, first_row], names)


def _merged(states: Sequence[Sequence[float]], merges: Sequence[str]) -> Array:
    """Merge the states of all partitions, number by number; those behind the last one with a name are added up."""
    every = np.asarray(states)
    total: Array = every.sum(axis=0)
    for place, merge in enumerate(merges):
        total[place] = getattr(np, merge).reduce(every[:, place])
    return total


@dataclass(frozen=True)
class _Finish:
    predictor: Predictor
    num_classes: int | None
    kind: str
    total: list[float]
    first_row: bytes

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one row: the results as JSON."""
        for _ in batches:
            pass  # Read all rows: otherwise Spark ends this worker, with its TensorFlow.
        metrics = _metrics_of(self.predictor, self.num_classes)
        metrics.build(next(iter(pa.ipc.open_stream(self.first_row))))
        yield pa.record_batch([[json.dumps(metrics.result(np.asarray(self.total), self.kind))]], ["result"])


def _metrics_of(predictor: Predictor, num_classes: int | None) -> PartMetrics:
    key = (COMPILED, predictor.columns, num_classes)
    make = lambda model: PartMetrics(model, predictor, num_classes)  # noqa: E731
    found: PartMetrics = loaded_models().get(predictor.model, make, key, compiled=True)
    return found


class PartMetrics:
    """The metrics of a compiled model, over some of the rows."""

    def __init__(self, model: Any, predictor: Predictor, num_classes: int | None):
        if not model.compiled:
            raise ConfigError(
                "expected a model that was saved compiled, with its loss and metrics, to evaluate it; save it after "
                "model.compile(...)"
            )
        from tfspark.training.padding import count_real_rows_alone

        self._model, self._predictor, self._num_classes = model, predictor, num_classes
        self._counts: Array = np.zeros(0)
        self._steps: dict[Any, Any] = {}
        self._is_built = False
        self.first_row = b""
        self.kind: str | None = None
        count_real_rows_alone(model, predictor.columns.weighs_rows)

    def reset(self) -> None:
        """Reset the state."""
        self._model.reset_metrics()
        self._counts = np.zeros(0)

    def build(self, batch: pa.RecordBatch) -> None:
        """Evaluate a row and reset: metrics create their variables with the first rows, outside of a graph."""
        if not self._is_built:
            row = batch.slice(0, 1)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, row.schema) as stream:
                stream.write_batch(row)
            self.first_row = sink.getvalue().to_pybytes()
            rows = self._converted(row)
            self._predictor.element_function(rows, self._step, in_graph=False)(rows)
            self._model.reset_metrics()
            self._is_built = True

    def _converted(self, batch: pa.RecordBatch) -> dict[str, Array]:
        from tfspark.feed.reader import WEIGHT

        columns = self._predictor.columns
        rows = to_numpy(batch, columns)
        weights = row_weights(rows, columns, batch.num_rows)
        return {**rows, WEIGHT: weights}

    def add(self, batch: pa.RecordBatch) -> None:
        """Evaluate the rows of a batch."""
        self.build(batch)
        rows = self._converted(batch)
        kinds = tuple((name, values.dtype.str, values.shape[1:]) for name, values in sorted(rows.items()))
        if kinds not in self._steps:
            self._steps[kinds] = self._predictor.element_function(rows, self._step)
        counts = self._steps[kinds](rows)
        if counts is not None:
            added = counts.numpy()
            self._counts = self._counts + added if len(self._counts) else added

    def _step(self, element: Any) -> Any:
        from tfspark.training.class_counts import count_classes, kind_of_label

        self._model.test_step(element)
        if self._num_classes is None or self._model.loss is None:
            return None
        found = kind_of_label(
            self._model, self._model(element[0], training=False), element[1], self._num_classes
        )
        self.kind = found
        return None if found is None else count_classes(self._model, element[:2], self._num_classes, found)

    def state(self) -> Array:
        """Return the states of all metrics in one array, followed by the counts."""
        states = [
            np.asarray(variable.numpy(), np.float64).reshape(-1) for variable in self._model.metrics_variables
        ]
        return np.concatenate([*states, self._counts])

    def merges(self) -> list[str]:
        """Return the name of NumPy's function that merges two states, for each number of the metrics' states.

        Raises:
            ConfigError: there is none for a metric.
        """
        from tfspark.training.metric_states import merges_of

        pairs = zip(merges_of(self._model), self._model.metrics_variables, strict=True)
        return [merge.__name__ for merge, variable in pairs for _ in range(int(np.prod(variable.shape)))]

    def result(self, total: Array, kind: str) -> dict[str, Any]:
        """Return the results from summed states.

        Shapes:
            total: sum of the results of `state`.
        """
        from tfspark.training.class_counts import matrix_and_curves
        from tfspark.training.evaluation import plain_logs, roc_of

        place = 0
        for variable in self._model.metrics_variables:
            size = int(np.prod(variable.shape))
            values = total[place : place + size].reshape(variable.shape)
            variable.assign(values.astype(variable.numpy().dtype))
            place += size
        results: dict[str, Any] = plain_logs(self._model.get_metrics_result())
        if self._num_classes is not None and kind:
            matrix, curves = matrix_and_curves(total[place:], self._num_classes, kind)  # type: ignore[arg-type]
            results["confusion_matrix"], results["roc"] = matrix, roc_of(self._model) or curves
        return results
