"""A dense layer on sparse vectors. Imports Keras: only for trainers and for Python workers that predict."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("tfspark")
class SparseDense(keras.layers.Layer):
    """Multiply sparse vectors by a kernel and add a bias; only the kernel's rows at the vectors' indices are read.

    The result equals that of `keras.layers.Dense` on the dense vectors.

    Args:
        units: size of the output.
        size: dimensions of the vectors.
        activation: as in Keras.
        kernel_regularizer: as in Keras.

    Input shape: indices and values, both ``(batch, terms)``, padded with values of 0.
    Output shape: ``(batch, units)``.
    """

    def __init__(
        self, units: int, size: int, activation: Any = None, kernel_regularizer: Any = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.units, self.size = units, size
        self.activation = keras.activations.get(activation)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, indices_shape: Any, values_shape: Any) -> None:
        """Create kernel and bias."""
        del indices_shape, values_shape
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.size, self.units),
            initializer="glorot_uniform",
            regularizer=self.kernel_regularizer,
        )
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, indices: Any, values: Any) -> Any:
        """Return the product."""
        rows = keras.ops.take(self.kernel, indices, axis=0)  # (batch, terms, units)
        return self.activation(keras.ops.einsum("btu,bt->bu", rows, values) + self.bias)

    def compute_output_shape(self, indices_shape: Any, values_shape: Any) -> tuple[int | None, int]:
        """Return ``(batch, units)``."""
        del values_shape
        return (indices_shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the layer."""
        return {
            **super().get_config(),
            "units": self.units,
            "size": self.size,
            "activation": keras.activations.serialize(self.activation),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
