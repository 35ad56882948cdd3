"""Batches for the steps that a coordinator schedules on this worker, with parameter servers.

TensorFlow's server runs these steps as graphs in the worker's trainer. The graph calls `WorkerFeed` there, by a name
that both sides know (`NEXT_BATCH`), and gets the worker's next batch, or the information that the pass has ended. The
chief builds the graphs and calls `open_stream` and `pull`. Every worker registers its own `WorkerFeed`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.ops import script_ops

from tfspark.feed.batching import Rows
from tfspark.feed.columns import Columns
from tfspark.feed.reader import WEIGHT
from tfspark.training.input.dataset import Feed, describe_stream, element_of, feed_of
from tfspark.training.input.elements import Element, flattened, signature
from tfspark.training.input.files import element_of_records, records_of_share

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext

NEXT_BATCH = "tfspark_next_batch"
EVALUATION = "evaluate-"
"""Beginning of the name of a stream that is evaluated once; see `Trainings.evaluate`."""
REST_S = 0.05
"""Time for which a worker without rows holds a step scheduled on it, while other workers still have rows."""

RECORDS = "records"
"""With files, the component that holds serialized Examples, which the step parses."""

Signature = dict[str, tf.TensorSpec]
"""Component of a batch -> its shape and type; the number of rows varies."""


@dataclass(frozen=True)
class WorkerStream:
    """A stream in the form that the chief's graphs use.

    Attributes:
        name: name of the stream.
        signature: the components of a batch.
        batch_size: rows of a step; a worker's last step may have fewer.
        to_element: graph function from a batch to ``(features, label, weight)``.
        look: equal for streams that can use the same graph.
        weighs_rows: whether rows have their own weights.
    """

    name: str
    signature: Signature
    batch_size: int
    to_element: Callable[[dict[str, tf.Tensor]], Element]
    look: str
    weighs_rows: bool = False


def open_stream(context: NodeContext, name: str) -> WorkerStream:
    """Wait until the driver feeds `name`, and return the form of its batches.

    Raises:
        DeadlineError: the driver did not feed within ``feed_timeout_s``.
    """
    described = describe_stream(context, name)
    plan = described["description"]
    size = plan["batch_size"]
    if plan["kind"] == "files":
        parse = element_of_records(plan, context.hooks.features)
        trace_key = json.dumps([plan["columns"], plan["features"], plan["shapes"]], sort_keys=True)
        weighs = Columns.from_json(plan["columns"]).weighs_rows
        return WorkerStream(
            name,
            SIGNATURE_OF_FILES,
            size,
            lambda batch: parse(batch[RECORDS], batch[WEIGHT]),
            trace_key,
            weighs,
        )
    feed = feed_of(context, name, described)
    specs = signature(feed.sample, feed.spec.columns, None)
    return WorkerStream(
        name, specs, size, element_of(feed), f"{sorted(specs.items())}", feed.spec.columns.weighs_rows
    )


SIGNATURE_OF_FILES = {
    RECORDS: tf.TensorSpec((None,), tf.string),
    WEIGHT: tf.TensorSpec((None,), tf.float32),
}


def pull(
    specs: Signature, stream: tf.Tensor, index: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """Add to a graph: take the next batch of pass `index` from the worker that runs the graph.

    Returns:
        Whether there was a batch; the worker's reader number; the batch by column name, without rows if there was none.
    """
    names = sorted(specs)
    has_batch, rank, *values = tf.raw_ops.PyFunc(
        input=[stream, index],
        token=NEXT_BATCH,
        Tout=[tf.bool, tf.int64, *(specs[name].dtype for name in names)],
    )
    has_batch.set_shape(())
    rank.set_shape(())
    for name, value in zip(names, values, strict=True):
        value.set_shape(specs[name].shape)
    return has_batch, rank, dict(zip(names, values, strict=True))


class WorkerFeed:
    """One worker's passes over its streams, one at a time. The steps that run on the worker call it.

    Args:
        context: the node.
    """

    def __init__(self, context: NodeContext):
        self._context = context
        self._readings: dict[str, _Reading] = {}
        self._lock = threading.Lock()
        self._registered = self._next_batch
        # TensorFlow only keeps a weak reference, so this object must hold a strong one.
        script_ops._py_funcs._funcs[NEXT_BATCH] = self._registered

    @property
    def rows(self) -> list[int]:
        """Number of rows of each pass over the stream ``train`` so far."""
        return self._readings["train"].rows if "train" in self._readings else []

    def close(self) -> None:
        """Stop reading."""
        with self._lock:
            for reading in self._readings.values():
                reading.close()

    def _next_batch(self, stream: bytes, index: int) -> list[np.generic | npt.NDArray[np.generic]]:
        with self._lock:
            try:
                reading = self._reading(stream.decode())
                batch = reading.next_of(int(index))
            except BaseException as error:
                # Report it here, and first: the chief only sees it as an error of TensorFlow.
                self._context.tell_failure(error)
                raise
        has_batch = batch is not None
        rows = {} if batch is None else batch
        if not has_batch:
            threading.Event().wait(REST_S)
        rank = np.int64(self._context.reader)
        values = (_as_array(rows.get(name), spec) for name, spec in sorted(reading.signature.items()))
        return [np.bool_(has_batch), rank, *values]

    def _reading(self, stream: str) -> _Reading:
        if stream not in self._readings:
            for other in [name for name in self._readings if name.startswith(EVALUATION)]:
                self._readings.pop(other).close()  # An evaluation ends before the next one begins.
            self._readings[stream] = _Reading(self._context, stream)
        return self._readings[stream]


class _Reading:
    """This worker's passes over one stream."""

    def __init__(self, context: NodeContext, stream: str):
        self._context = context
        self._stream = stream
        self._index = -1
        self._batches: Iterator[Rows] = iter(())
        self._feed: Feed | None = None
        self.signature: Signature = SIGNATURE_OF_FILES
        self.rows: list[int] = []
        described = describe_stream(context, stream)
        if described["description"]["kind"] == "rows":
            self._feed = feed_of(context, stream, described)
            self.signature = signature(self._feed.sample, self._feed.spec.columns, None)

    def next_of(self, index: int) -> Rows | None:
        """Return the next batch of a pass, None at its end; an unfinished earlier pass is left."""
        if index != self._index:
            self.close()
            self._open(index)
        batch = next(self._batches, None)
        if batch is not None:
            self.rows[index] += len(batch[WEIGHT])
        return batch

    def close(self) -> None:
        """Leave the current pass."""
        self._batches = iter(())
        if self._feed is not None:
            self._feed.close()

    def _open(self, index: int) -> None:
        self._index = index
        # A replacement has none of the earlier passes.
        self.rows.extend([0] * (index + 1 - len(self.rows)))
        if self._feed is None:
            self._batches = self._records()
            return
        self._feed.next_index = index
        columns = self._feed.spec.columns
        self._batches = (flattened(batch, columns) for batch in self._feed.open_pass())

    def _records(self) -> Iterator[Rows]:
        """Yield the records of this worker's share, from the current description: later files may be others."""
        plan = describe_stream(self._context, self._stream)["description"]
        for records in records_of_share(plan, self._context.task_index).as_numpy_iterator():
            yield {RECORDS: records, WEIGHT: np.ones(len(records), np.float32)}


def _as_array(values: npt.NDArray[np.generic] | None, spec: tf.TensorSpec) -> npt.NDArray[np.generic]:
    """Return values for TensorFlow: strings as arrays of objects; an array without rows for None."""
    is_text = spec.dtype == tf.string
    if values is None:
        dtype = object if is_text else spec.dtype.as_numpy_dtype
        return np.zeros((0, *spec.shape[1:]), dtype)
    return np.asarray(values, dtype=object) if is_text else values
