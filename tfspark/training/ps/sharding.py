"""Embeddings with parameter servers: divide large tables among the servers, and send only the requested rows.

Keras reads the whole table to get a few rows. Here `keras.layers.Embedding` looks rows up on the server of the table. A
table that `MinSizePartitioner` would divide becomes one weight per part, divided by rows. It is saved as one table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, MutableMapping, Sequence

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras.src import backend

MIN_PART_BYTES = 256 << 10
"""Minimum bytes of a part; a smaller one is not worth a separate request. TensorFlow's `MinSizePartitioner` default."""
_PART = re.compile(r"_part\d+of\d+")


def look_up_on_servers(num_ps: int) -> None:
    """Correct `keras.layers.Embedding` in this process.

    Args:
        num_ps: maximum number of parts of a table.
    """
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(MIN_PART_BYTES, num_ps)
    layer = keras.layers.Embedding
    layer.build = _build_in_parts(layer.build, partitioner)
    layer.call = _call_with_lookup(layer.call)
    layer.save_own_variables = _save_whole(layer.save_own_variables)


def _is_plain(layer: keras.layers.Embedding) -> bool:
    return not (layer.quantization_mode or layer.lora_rank or layer.lora_enabled)


def _build_in_parts(
    original: Callable[..., None], partitioner: tf.distribute.experimental.partitioners.Partitioner
) -> Callable[..., None]:
    @functools.wraps(original)
    def build(self: keras.layers.Embedding, input_shape: Sequence[int | None] | None = None) -> None:
        shape = (self.input_dim, self.output_dim)
        dtype = tf.as_dtype(self.variable_dtype)
        is_remote = isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy)
        self._is_on_servers = is_remote and _is_plain(self)
        count = int(partitioner(tf.TensorShape(shape), dtype)[0]) if self._is_on_servers else 1
        if self.built or count == 1:
            original(self, input_shape)
            return
        # Create the values of the whole table and then divide them, so that they are the same as in one process.
        with tf.init_scope():  # Keras may build this layer while it traces another.
            table = np.asarray(self.embeddings_initializer(shape, dtype=dtype.name))
        self._embeddings = [
            self.add_weight(
                shape=part.shape,
                initializer=lambda shape, dtype, part=part: tf.constant(part, dtype),
                name=f"embeddings_part{number}of{count}",
                regularizer=self.embeddings_regularizer,
                constraint=self.embeddings_constraint,
            )
            for number, part in enumerate(np.array_split(table, count))
        ]
        self.built = True

    return build


def _call_with_lookup(original: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    @functools.wraps(original)
    def call(self: keras.layers.Embedding, inputs: tf.Tensor) -> tf.Tensor:
        if not getattr(self, "_is_on_servers", False):
            return original(self, inputs)
        parts = self._embeddings if isinstance(self._embeddings, list) else [self._embeddings]
        indices = tf.cast(inputs, tf.int64)
        if any(part._value is None for part in parts):
            # Keras calls a layer that has no `build` to learn its shapes. Only afterwards there are variables.
            return tf.zeros_like(indices, self.compute_dtype)[..., None] * tf.zeros(
                self.output_dim, self.compute_dtype
            )
        # With several tables, TensorFlow expects consecutive rows in one, and one row more in the first tables, as
        # above.
        rows = tf.nn.embedding_lookup([_value_now(part) for part in parts], indices)
        return tf.cast(rows, self.compute_dtype)

    return call


def _value_now(variable: keras.Variable) -> tf.Variable | tf.Tensor:
    """Return the variable itself, so that only rows are read, or what a `keras.StatelessScope` has instead of it."""
    if not backend.in_stateless_scope():
        return variable._value
    value = backend.get_stateless_scope().get_current_value(variable)
    return variable._value if value is None else value


def _save_whole(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def save_own_variables(
        self: keras.layers.Embedding, store: MutableMapping[str, npt.NDArray[np.generic]]
    ) -> None:
        if isinstance(self._embeddings, list):
            store["0"] = whole_values(self._embeddings)[0]
        else:
            original(self, store)

    return save_own_variables


def whole_values(variables: Sequence[keras.Variable]) -> list[npt.NDArray[np.generic]]:
    """Return the variables' values, with the parts of a table joined, in the order of an undivided model."""
    groups: dict[str, list[npt.NDArray[np.generic]]] = {}
    for number, variable in enumerate(variables):
        is_part = _PART.search(variable.path) is not None
        key = _PART.sub("", variable.path) if is_part else f"{number}"
        groups.setdefault(key, []).append(keras.ops.convert_to_numpy(variable))
    return [np.concatenate(values) if len(values) > 1 else values[0] for values in groups.values()]
