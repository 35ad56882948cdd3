"""`SparseDense` of sparse vectors returns the same as Keras's `Dense` of the dense vectors."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tfspark.ml.sparse_dense import SparseDense

SIZE = 50


def test_sparse_dense_predicts_and_trains_like_dense_and_can_be_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((12, SIZE)) < 0.1, rng.standard_normal((12, SIZE)), 0).astype(np.float32)
    longest = max(1, int((dense != 0).sum(axis=1).max()))
    indices, values = np.zeros((12, longest), np.int32), np.zeros((12, longest), np.float32)
    for row, vector in enumerate(dense):
        (there,) = np.nonzero(vector)
        indices[row, : len(there)], values[row, : len(there)] = there, vector[there]
    target = rng.standard_normal((12, 3)).astype(np.float32)

    own = keras.layers.Dense(3, "tanh", kernel_regularizer=keras.regularizers.L2(0.01))
    plain = keras.Sequential([keras.Input((SIZE,)), own])
    places, numbers = keras.Input((None,), dtype="int32", name="i"), keras.Input((None,), name="v")
    layer = SparseDense(3, SIZE, "tanh", keras.regularizers.L2(0.01))
    sparse = keras.Model({"i": places, "v": numbers}, layer(places, numbers))
    sparse.set_weights(plain.get_weights())
    rows = {"i": indices, "v": values}
    np.testing.assert_allclose(sparse.predict(rows, verbose=0), plain.predict(dense, verbose=0), atol=1e-6)

    for model, x in ((plain, dense), (sparse, rows)):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, target, batch_size=4, epochs=3, shuffle=False, verbose=0)
    for one, other in zip(plain.get_weights(), sparse.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)

    sparse.save(tmp_path / "sparse.keras")
    loaded = keras.saving.load_model(tmp_path / "sparse.keras")
    np.testing.assert_array_equal(loaded.predict(rows, verbose=0), sparse.predict(rows, verbose=0))
