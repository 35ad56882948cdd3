"""Apply a model to Arrow batches. Runs in Spark's Python workers, which load TensorFlow and the model.

Rows are processed as in training (`tfspark.feed`): the same conversion, scaling, decoding and padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tfspark.errors import ConfigError
from tfspark.feed.arrays import rows_at_once, to_numpy
from tfspark.feed.columns import Columns
from tfspark.inference.model_files import SAVED_MODEL, ModelFiles, loaded_models, run_module
from tfspark.inference.outputs import Output
from tfspark.inference.values import with_nulls

Array = npt.NDArray[Any]
Invalid = str

BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20
"""Maximum bytes of the features of one call, in the form that the model gets."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Predictor:
    """A model, the columns it reads and the columns it computes.

    Attributes:
        model: the files.
        columns: its features; a label is not needed.
        outputs: columns to add after those of the rows.
        handle_invalid: a null feature is an ``error``, or its row is dropped (``skip``) or gets a null prediction
            (``keep``).
        batch_rows: maximum rows per call of the model.
        batch_bytes: maximum bytes of the features per call.
        hidden: columns of the rows that are not returned.
        prepare: applied to a batch before its features are read; columns it adds are not returned.
        call: ``call(model, x)`` returns output name -> tensor; None: the model is called.
    """

    model: ModelFiles
    columns: Columns
    outputs: tuple[Output, ...]
    handle_invalid: Invalid = "error"
    batch_rows: int = BATCH_ROWS
    batch_bytes: int = BATCH_BYTES
    hidden: tuple[str, ...] = ()
    prepare: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None
    call: Callable[[Any, Any], Mapping[str, Any]] | None = None

    def predicted(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.StructArray]:
        """Yield the predictions for Spark's batches, a struct for each row; without rows the model is not loaded.

        A null feature is an error, or its row gets null predictions.
        """
        names = [f"_{place}" for place in range(len(self.outputs))]
        for rows in self.slices(batches):
            yield pa.StructArray.from_arrays(self._predicted(rows), names)

    def added(self, batches: Iterator[pa.RecordBatch], kept: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows with the columns `kept` and the predictions; drop rows with a null feature if told to."""
        names = [*kept, *(output.column for output in self.outputs)]
        for batch in batches:
            if self.handle_invalid == "skip":
                batch = batch.filter(pa.array(self._is_there(batch)))
            for rows in self.slices(iter([batch])):
                made = self._predicted(rows.select(list(self.read)))
                yield pa.RecordBatch.from_arrays([*(rows.column(name) for name in kept), *made], names)

    def slices(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of each call, one call after another."""
        for batch in batches:
            if batch.num_rows:
                size = self._rows_of_call(batch)
                for start in range(0, batch.num_rows, size):
                    yield batch.slice(start, size)

    def _rows_of_call(self, batch: pa.RecordBatch) -> int:
        """Return the number of rows of one call, from their bytes in Arrow and in the form that the model gets."""
        sent = [column for column in self.columns.sent if column.name in batch.schema.names]
        names = [column.name for column in sent] or batch.schema.names
        in_arrow: float = sum(batch.column(name).nbytes for name in names) / batch.num_rows
        in_model = sum(FLOAT_BYTES * math.prod(column.shape or ()) for column in sent)
        size = int(self.batch_bytes / max(in_arrow, in_model, 1))
        if len(sent) == len(self.columns.sent):
            size = min(size, rows_at_once(batch, self.columns, self.batch_bytes))
        return max(1, min(size, self.batch_rows))

    def _predicted(self, batch: pa.RecordBatch) -> list[pa.Array]:
        is_there = self._is_there(batch)
        if self.handle_invalid != "keep" or bool(np.all(is_there)):
            return self._computed(batch)
        rows = batch.filter(pa.array(is_there))
        made = self._computed(rows) if rows.num_rows else [output.empty(0) for output in self.outputs]
        return [with_nulls(array, is_there) for array in made]

    def _is_there(self, batch: pa.RecordBatch) -> Array:
        """Return which rows have a value in every feature."""
        there = np.ones(batch.num_rows, bool)
        for name in batch.schema.names:
            if name in self.read and batch.column(name).null_count:
                there &= pc.is_valid(batch.column(name)).to_numpy(zero_copy_only=False)
        return there

    @property
    def read(self) -> tuple[str, ...]:
        """The columns of the data that the model reads."""
        reads = getattr(self.prepare, "reads", ())
        return tuple(reads) or tuple(column.name for column in self.columns.sent)

    def _computed(self, batch: pa.RecordBatch) -> list[pa.Array]:
        rows = to_numpy(batch if self.prepare is None else self.prepare(batch), self.columns)
        kinds = tuple((name, values.dtype.str, values.shape[1:]) for name, values in sorted(rows.items()))
        step = loaded_models().get(
            self.model, lambda model: self._step(model, rows), (self.columns, self.call, kinds)
        )
        results = step(rows)
        arrays = []
        for output in self.outputs:
            values = results[_output_name(output, list(results))].numpy()
            if values.ndim == 0 or len(values) != batch.num_rows:
                raise ConfigError(
                    f"expected an output for each of {batch.num_rows} rows, the model's output for column "
                    f"{output.column!r} has the shape {list(values.shape)}; use a model whose outputs keep the batch "
                    "axis"
                )
            arrays.append(output.compute(values))
        return arrays

    def _step(self, model: Any, sample: Mapping[str, Array]) -> Callable[[Mapping[str, Array]], Any]:
        """Return a function from converted rows to the model's outputs by name."""
        from tfspark.feed.reader import WEIGHT

        call = _call_signature if self.model.kind == SAVED_MODEL else (self.call or _call_model)
        step = self.element_function(
            {**sample, WEIGHT: np.ones(1, np.float32)}, lambda element: call(model, element[0])
        )
        return lambda rows: step({**rows, WEIGHT: np.ones(1, np.float32)})

    def element_function(
        self, sample: Mapping[str, Array], use: Callable[[Any], Any], in_graph: bool = True
    ) -> Callable[[Any], Any]:
        """Return a function from converted rows to the result of `use`, traced once for any number of rows.

        Args:
            sample: some rows, with their weights.
            use: called with ``(features, label, weight)`` as Keras takes them.
            in_graph: trace the function; False: compute eagerly each time.
        """
        import tensorflow as tf

        from tfspark.feed.reader import WEIGHT
        from tfspark.training.input.elements import flattened, joined, signature, to_element

        columns, hook = self.columns, self._features_hook()
        parse = _parser(columns, sample)
        specs = signature(dict(sample), columns, None)

        def traced(batch: dict[str, Any]) -> Any:
            rows = parse(joined(batch, columns))
            return use(to_element({**rows, WEIGHT: batch[WEIGHT]}, columns, hook))

        function = tf.function(traced, input_signature=[specs], autograph=False) if in_graph else traced

        def step(rows: Mapping[str, Array]) -> Any:
            flat = flattened(dict(rows), columns)
            return function({name: tf.constant(values) for name, values in flat.items()})

        return step

    def _features_hook(self) -> Callable[[Any], Any] | None:
        for name, source in self.model.modules:
            hook = getattr(run_module(name, source), "features", None)
            if hook is not None:
                return hook  # type: ignore[no-any-return]
        return None


def _parser(columns: Columns, sample: Mapping[str, Array]) -> Callable[[Any], Any]:
    if columns.examples is None:
        return lambda batch: batch
    from tfspark.training.input.examples import features_of_record, parse_examples

    name = columns.examples
    features = features_of_record(sample[name][0], columns)
    return lambda batch: parse_examples(batch[name], features, columns)


def _call_model(model: Any, x: Any) -> Mapping[str, Any]:
    """Call a Keras model for prediction; return its outputs by name."""
    return named(model(x, training=False), getattr(model, "output_names", None))


def named(results: Any, names: Sequence[str] | None) -> Mapping[str, Any]:
    """Return outputs by name: those of a dict by its keys, others by the model's names or their positions."""
    if isinstance(results, Mapping):
        return results
    listed = list(results) if isinstance(results, list | tuple) else [results]
    if names is None or len(names) != len(listed):
        names = [f"output_{position}" for position in range(len(listed))]
    return dict(zip(names, listed, strict=True))


def _output_name(output: Output, present: list[str]) -> str:
    """Return the name of the model's output from which a column is computed.

    Raises:
        ConfigError: the model has no such output.
    """
    if output.tensor is None or (len(present) == 1 and output.tensor not in present):
        return present[0]
    if output.tensor not in present:
        raise ConfigError(
            f"expected an output {output.tensor!r} for column {output.column!r}, the model has {present}; name one of "
            "them"
        )
    return output.tensor


def _call_signature(function: Any, x: Any) -> Mapping[str, Any]:
    """Call a SavedModel's signature with the tensors it names, in its declared types and shapes."""
    import tensorflow as tf

    specs: Mapping[str, Any] = function.structured_input_signature[1]
    given = x if isinstance(x, Mapping) else {next(iter(specs)): x}
    if len(given) == len(specs) == 1:
        given = {next(iter(specs)): next(iter(given.values()))}
    if set(given) != set(specs):
        raise ConfigError(
            f"expected columns for the inputs {sorted(specs)} of the signature, got {sorted(given)}; name the feature "
            "columns as the inputs are"
        )
    tensors = {}
    for name, tensor in given.items():
        spec = specs[name]
        if tensor.dtype != spec.dtype:
            tensor = tf.cast(tensor, spec.dtype)
        if spec.shape.rank is not None and spec.shape[1:].is_fully_defined():
            tensor = tf.reshape(tensor, [-1, *spec.shape[1:]])
        tensors[name] = tensor
    return function(**tensors)  # type: ignore[no-any-return]
