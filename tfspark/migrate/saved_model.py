"""Apply a SavedModel to Arrow batches. Runs in Spark's Python workers, which load TensorFlow and the model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tfspark.errors import ConfigError
from tfspark.feed.arrays import column_to_numpy
from tfspark.feed.columns import Column
from tfspark.feed.spark_names import quoted
from tfspark.inference.values import spark_type, to_arrow


@dataclass(frozen=True)
class SavedModel:
    """A SavedModel, and the mapping between its tensors and columns.

    Attributes:
        directory: its path on the executors.
        tags: of the graph to load; None: the only one.
        signature: its name.
        inputs: (column, tensor name) pairs.
        outputs: (tensor name, column) pairs.
        batch_rows: maximum number of rows in one call.
    """

    directory: str
    tags: tuple[str, ...] | None
    signature: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    batch_rows: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Compute the output columns of Spark's batches."""
        function = load(self.directory, self.tags, self.signature)
        for batch in batches:
            for start in range(0, batch.num_rows, self.batch_rows):
                yield self._predict(function, batch.slice(start, self.batch_rows))

    def describe(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one row: the output columns in Spark's DDL."""
        del batches
        specs = load(self.directory, self.tags, self.signature).structured_outputs
        names = tensor_names([tensor for tensor, _ in self.outputs], list(specs), "output")
        columns = [
            f"{quoted(column)} {_spark_type(specs[name])}"
            for name, (_, column) in zip(names, self.outputs, strict=True)
        ]
        yield pa.record_batch([[", ".join(columns)]], ["ddl"])

    def _predict(self, function: Any, batch: pa.RecordBatch) -> pa.RecordBatch:
        results = function(**self._inputs(function, batch))
        names = tensor_names([tensor for tensor, _ in self.outputs], list(results), "output")
        arrays = []
        for name in names:
            values = results[name].numpy()
            if len(values) != batch.num_rows:
                raise ConfigError(
                    f"expected an output for each of {batch.num_rows} rows, but {name!r} has {len(values)}; export a "
                    "signature whose outputs keep the batch axis"
                )
            arrays.append(to_arrow(values))
        return pa.RecordBatch.from_arrays(arrays, [column for _, column in self.outputs])

    def _inputs(self, function: Any, batch: pa.RecordBatch) -> dict[str, Any]:
        import tensorflow as tf

        specs: Mapping[str, Any] = function.structured_input_signature[1]
        names = tensor_names([tensor for _, tensor in self.inputs], list(specs), "input")
        given = {}
        for name, (column, _) in zip(names, self.inputs, strict=True):
            values = column_to_numpy(batch.column(column), Column(column))
            tensor = tf.constant(values)
            if tensor.dtype != specs[name].dtype:
                tensor = tf.cast(tensor, specs[name].dtype)
            if specs[name].shape.rank is not None and specs[name].shape[1:].is_fully_defined():
                tensor = tf.reshape(tensor, [-1, *specs[name].shape[1:]])
            given[name] = tensor
        return given


def load(directory: str, tags: tuple[str, ...] | None, signature: str) -> Any:
    """Load a signature once for all partitions of this Python worker; load it again if its files have changed.

    Raises:
        ConfigError: the SavedModel does not have the signature.
    """
    return _loaded(directory, tags, signature, _stamp_of(directory))


def _stamp_of(directory: str) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of each file of a SavedModel: they differ if a new model was written in its place.

    The result also includes the model's fingerprint, which has a random number: copies of files may have old times.
    """
    import tensorflow as tf

    found = []
    fingerprint = tf.io.gfile.join(directory, "fingerprint.pb")
    if tf.io.gfile.exists(fingerprint):
        with tf.io.gfile.GFile(fingerprint, "rb") as file:
            found.append((file.read().hex(), 0, 0))
    for folder in (directory, tf.io.gfile.join(directory, "variables")):
        for name in sorted(tf.io.gfile.listdir(folder)) if tf.io.gfile.exists(folder) else ():
            told = tf.io.gfile.stat(tf.io.gfile.join(folder, name))
            found.append((name, int(told.length), int(told.mtime_nsec)))
    return tuple(found)


@functools.lru_cache(maxsize=1)
def _loaded(
    directory: str, tags: tuple[str, ...] | None, signature: str, stamp: tuple[tuple[str, int, int], ...]
) -> Any:
    import tensorflow as tf

    del stamp
    model = tf.saved_model.load(directory, tags=None if tags is None else list(tags))
    if signature not in model.signatures:
        raise ConfigError(
            f"expected the signature {signature!r} in {directory}, got {sorted(model.signatures)}; name one with "
            "setSignatureDefKey()"
        )
    function = model.signatures[signature]
    function._tfspark_model = model  # A signature does not keep its model's variables alive.
    return function


def tensor_names(wanted: Sequence[str], present: Sequence[str], what: str) -> list[str]:
    """Return the names of the wanted tensors; a model's only input or output may have any name in the mapping.

    Keras 3 gives tensors different names than Keras 2, for which mappings were written.

    Raises:
        ConfigError: a tensor does not exist.
    """
    if len(wanted) == len(present) == 1:
        return list(present)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ConfigError(
            f"expected {what} tensors {list(wanted)}, got a signature with {sorted(present)}; change the {what} mapping"
        )
    return list(wanted)


def _spark_type(spec: Any) -> str:
    """Return the Spark type of an output's column: an array for each axis after the batch axis."""
    return spark_type(spec.dtype.name, 0 if spec.shape.rank is None else spec.shape.rank - 1)
