"""Train each model of ``models/`` for two steps under a strategy, save it and load it; print the results.

Usage: every_model.py mirrored INDEX PORT0 PORT1 CASE...     one of two synchronous workers
       every_model.py servers CASE...                        two workers and two parameter servers, in this process

Prints one line ``RESULT {json}`` for each case.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from training.ps_trial import FakeContext, FakeFeed, servers

from models import autoencoder, cnn, gan, mlp, rnn, unet
from tfspark.feed.reader import WEIGHT
from tfspark.training.build import copy_optimizer
from tfspark.training.input.distribute import distribute_from_function
from tfspark.training.keras_corrections import apply_corrections
from tfspark.training.ps import session as parameter_server
from tfspark.training.ps.sharding import look_up_on_servers, whole_values
from tfspark.training.ps.worker_feed import WorkerStream
from tfspark.training.ps.worker_steps import find_tables_from_branches, make_additions_atomic

STEPS, BATCH, CLASSES = 2, 4, 3
NUMBERS = np.random.default_rng(0)
LABELS = np.arange(STEPS * BATCH) % CLASSES


def image_of(architecture: str) -> list[int]:
    size = max(cnn.ARCHITECTURES[architecture].least_size, 8)
    return [size, size, 1]


def rows_of(*shape: int) -> np.ndarray:
    return NUMBERS.random((STEPS * BATCH, *shape), np.float32)


def of_images(architecture: str, **params: Any) -> tuple[Any, dict[str, Any], Any, Any]:
    shape = image_of(architecture)
    params |= {"architecture": architecture, "input_shape": shape, "filters": 2, "num_classes": CLASSES}
    labels = np.eye(CLASSES, dtype=np.float32)[LABELS] if params.get("multi_label") else LABELS
    return cnn, params, rows_of(*shape), labels


SMALL: dict[str, Any] = {"units": 3, "embedding": 4}
WORDS = ("the", "good", "bad", "film")
TEXTS = np.array([" ".join(WORDS[i % 4 : i % 4 + 2]) for i in range(STEPS * BATCH)], object)
TOKENS = NUMBERS.integers(0, 9, (STEPS * BATCH, 5)).astype(np.int32)
SERIES = {**SMALL, "inputs": "series", "input_shape": [6, 2], "mean": [0.5, 0.5], "std": [0.3, 0.3]}
TABLE: dict[str, Any] = {"input_shape": [6], "hidden": [5], "code": 2}
MADE: dict[str, Any] = {"input_shape": [4, 4, 1], "filters": 2, "latent": 3, "num_classes": CLASSES}
PIXELS: dict[str, Any] = {**TABLE, "architecture": "convolutional", "input_shape": [7, 6, 1], "filters": 2}

Case = Callable[[], tuple[Any, dict[str, Any], Any, Any]]
"""Returns the module of a case, its parameters, rows and labels."""

CNN: dict[str, Case] = {name: functools.partial(of_images, name) for name in cnn.ARCHITECTURES}
OTHERS: dict[str, Case] = {
    "multi-label": lambda: of_images("simple", multi_label=True, shift=0.1, weight_decay=0.01),
    "text": lambda: (rnn, {**SMALL, "vocabulary": WORDS, "num_classes": CLASSES}, TEXTS, LABELS),
    "lstm": lambda: (
        rnn,
        {**SMALL, "inputs": "tokens", "input_shape": [5], "vocabulary_size": 10, "cell": "lstm", "layers": 2},
        TOKENS,
        LABELS % 2,
    ),
    "per step": lambda: (
        rnn,
        {**SERIES, "per_step": True, "skip": False, "bidirectional": False, "num_classes": CLASSES},
        rows_of(6, 2),
        NUMBERS.integers(-1, CLASSES, (STEPS * BATCH, 6)),
    ),
    "forecast": lambda: (
        rnn,
        {**SERIES, "task": "forecast", "per_window": True, "horizon": 2, "targets": 2},
        rows_of(6, 2),
        rows_of(4),
    ),
    "dense autoencoder": lambda: (autoencoder, {**TABLE, "noise": 0.1}, rows_of(6), None),
    "anomalies": lambda: (
        autoencoder,
        {**TABLE, "standardise": True, "mean": [0.5] * 6, "std": [0.3] * 6, "labels": True},
        rows_of(6),
        LABELS % 2,
    ),
    "variational": lambda: (autoencoder, {**TABLE, "variational": True}, rows_of(6), None),
    "convolutional": lambda: (autoencoder, PIXELS, rows_of(7, 6, 1), None),
    "table": lambda: (
        mlp,
        {
            "categories": {"word": "embedding"},
            "vocabulary": {"word": WORDS},
            "num_classes": CLASSES,
            "hidden": [4],
        },
        TEXTS,
        LABELS,
    ),
    "segmentation": lambda: (
        unet,
        {"input_shape": [8, 8, 1], "num_classes": CLASSES, "filters": 2},
        rows_of(8, 8, 1),
        NUMBERS.integers(0, CLASSES, (STEPS * BATCH, 8, 8)),
    ),
    "gan": lambda: (gan, MADE, rows_of(4, 4, 1), None),
    "conditional gan": lambda: (gan, {**MADE, "conditional": True}, rows_of(4, 4, 1), LABELS),
}
CASES = CNN | OTHERS


def inputs_of(model: keras.Model, x: np.ndarray) -> Any:
    """Return the inputs of a prediction: rows, or noise (and class) for a generator."""
    if not isinstance(model, gan.GAN):
        return tf.constant(x[:3], tf.string if x.dtype == object else None)
    return model.with_label(
        "noise", tf.ones((3, model.latent)), tf.constant([0, 1, 2]) if model.is_conditional else None
    )


def outcome(strategy_model: keras.Model, exported: keras.Model, x: np.ndarray) -> dict[str, Any]:
    """Save the exported model and load it; compare its predictions with those of the trained model."""
    with tempfile.TemporaryDirectory() as folder:
        exported.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
    expected, found = (np.asarray(m(inputs_of(m, x), training=False)) for m in (strategy_model, again))
    optimizers = [o for o in vars(again).values() if isinstance(o, keras.optimizers.Optimizer)]
    return {
        "apart": float(np.abs(expected - found).max()),
        "finite": bool(np.isfinite(found).all()),
        "iterations": [int(optimizer.iterations) for optimizer in optimizers],
    }


def digest(values: list[Any]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(value).tobytes() for value in values)).hexdigest()


# --- synchronous workers ---------------------------------------------------------------------------


class Batches:
    """A feed of one pass with the same steps on all workers."""

    weighs_rows = False
    is_over = False

    def __init__(self, dataset: tf.data.Dataset):
        self.dataset: Any = dataset

    def open_pass(self) -> Any:
        return SimpleNamespace(
            has_step=lambda step: step < STEPS,
            steps_from=lambda step, most: min(most, max(STEPS - step, 0)),
        )

    def iterator(self) -> Any:
        return iter(self.dataset)


def mirrored(name: str, strategy: tf.distribute.Strategy, index: int) -> dict[str, Any]:
    module, params, x, y = CASES[name]()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = module.build_model(params)
    before = digest(model.get_weights())
    x, y = np.roll(x, index, 0), np.roll(x if y is None else y, index, 0)  # Different rows on each worker.
    local = tf.data.Dataset.from_tensor_slices(
        (list(x) if x.dtype == object else x, y, np.ones(len(x), np.float32))
    ).batch(BATCH, drop_remainder=True)
    feed = Batches(local)
    feed.dataset = distribute_from_function(strategy, lambda _: local, feed)
    logs = model.fit(feed.dataset, epochs=1, verbose=0, shuffle=False).history
    exported = module.build_model(params)
    exported.set_weights(model.get_weights())
    copy_optimizer(exported, model)
    return {
        **outcome(model, exported, x),
        "logs": {key: values[-1] for key, values in logs.items()},
        "moved": digest(model.get_weights()) != before,
        "weights": digest([v.numpy() for v in model.trainable_variables]),
    }


# --- parameter servers -----------------------------------------------------------------------------


def served(name: str, strategy: tf.distribute.Strategy, index: int) -> dict[str, Any]:
    module, params, x, y = CASES[name]()
    columns = {"x": x, "y": x if y is None else y}
    feed = FakeFeed(2, columns, BATCH)
    look = {
        key: tf.TensorSpec((None, *values.shape[1:]), tf.string if values.dtype == object else values.dtype)
        for key, values in columns.items()
    } | {WEIGHT: tf.TensorSpec((None,), tf.float32)}
    parameter_server.open_stream = lambda context, stream: WorkerStream(
        stream, look, BATCH, lambda batch: (batch["x"], batch["y"], batch[WEIGHT]), name
    )
    session = parameter_server.ParameterServerSession(
        module.build_model, params, FakeContext.of(strategy, num_workers=2)
    )
    job = {"first_pass": 0, "epochs": 1, "call": 0, "validation": False, "side_car": False}
    before = digest(whole_values(session.model.weights))
    trained = session.train(job)
    feed.stop()
    exported = session.to_export()
    return {
        **outcome(session.model, exported, x),
        "logs": {key: values[-1] for key, values in trained["history"].items()},
        "moved": digest(whole_values(session.model.weights)) != before,
        "rows": trained["rows"],
    }


def main() -> None:
    kind, *rest = sys.argv[1:]
    # Rewriting the graphs takes longer than two steps.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if kind == "mirrored":
        index, ports, names = int(rest[0]), rest[1:3], rest[3:]
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        apply_corrections()
        strategy, train = tf.distribute.MultiWorkerMirroredStrategy(), mirrored
    else:
        index, names = 0, rest
        strategy, train = servers(2, 2), served
        make_additions_atomic()
        find_tables_from_branches()
        look_up_on_servers(2)
    for name in names:
        print("RESULT " + json.dumps({"case": name, **train(name, strategy, index)}), flush=True)
    os._exit(0)  # A trainer ends in the same way: TensorFlow's servers cannot be stopped.


if __name__ == "__main__":
    main()
