"""`Estimator.from_keras` with arrays, pandas and Spark DataFrames as input and output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tfspark.errors import ConfigError
from tfspark.ml.orca import Estimator


def creator(config: dict[str, Any]) -> Any:
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(config["rate"]), "binary_crossentropy", metrics=["accuracy"])
    return model


def test_estimator_takes_arrays_pandas_and_dataframes(spark: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 2)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(np.int64)
    estimator = Estimator.from_keras(creator, {"rate": 0.05}, spark=spark)
    with pytest.raises(ConfigError, match=r"call fit\(\) first"):
        estimator.predict(x)

    history = estimator.fit((x, y), epochs=6, batch_size=16, validation_data=(x[:40], y[:40]))

    assert {"loss", "val_loss"} <= set(history)
    assert len(history["loss"]) == 6
    chances = estimator.predict(x)
    assert chances.shape == (200, 2)
    assert (chances.argmax(axis=1) == y).mean() > 0.9
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "is": y})
    metrics = estimator.evaluate(table, feature_cols=["a", "b"], label_cols="is")
    assert metrics["accuracy"] == pytest.approx((chances.argmax(axis=1) == y).mean())
    made = estimator.predict(spark.createDataFrame(table).coalesce(1), feature_cols=["a", "b"])
    assert made.columns == ["a", "b", "is", "prediction"]

    estimator.save(str(tmp_path / "saved"))
    loaded = Estimator.load(str(tmp_path / "saved"), spark)
    np.testing.assert_array_equal(loaded.predict(x), chances)
    with pytest.raises(ConfigError, match="this one was loaded"):
        loaded.fit((x, y))
    with pytest.raises(ConfigError, match="expected feature_cols and label_cols"):
        estimator.evaluate(table)


def numbers(config: dict[str, Any], batch_size: int) -> Any:
    """Return a dataset. The function contains everything that a worker needs, including the import."""
    import tensorflow as tf

    x = tf.random.stateless_uniform([config["rows"], 2], seed=[1, 2], minval=-1.0)
    return tf.data.Dataset.from_tensor_slices((x, tf.cast(x[:, 0] > x[:, 1], tf.int64))).batch(batch_size)


def test_estimator_takes_functions_that_make_datasets(spark: Any, tmp_path: Path) -> None:
    estimator = Estimator.from_keras(creator, {"rate": 0.05, "rows": 200}, num_workers=2, spark=spark)
    history = estimator.fit(numbers, epochs=6, batch_size=20, validation_data=numbers)
    assert len(history["loss"]) == len(history["val_loss"]) == 6
    assert history["accuracy"][-1] > 0.9

    x = np.array([[0.9, -0.9], [-0.9, 0.9]], np.float32)
    chances = estimator.predict(x)
    assert chances.argmax(axis=1).tolist() == [1, 0]
    metrics = estimator.evaluate((x, np.array([1, 1])))
    assert metrics["accuracy"] == 0.5
    estimator.save(str(tmp_path / "saved"))
    np.testing.assert_array_equal(Estimator.load(str(tmp_path / "saved"), spark).predict(x), chances)
    with pytest.raises(ConfigError, match=r"functions that create a dataset are for fit\(\)"):
        estimator.predict(numbers)
    with pytest.raises(ConfigError, match=r"validation_data to be a function"):
        estimator.fit(numbers, validation_data=(x, x))
