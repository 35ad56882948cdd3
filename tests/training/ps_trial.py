"""Train some of the models below with parameter servers in this process; print the results as JSON.

Usage: ps_trial.py WORKERS SERVERS MODEL...

Plain Keras trains each model on the same batches, too. The steps of one worker are sequential, so both trainings must
end with the same weights.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops import script_ops

from tfspark.feed.reader import WEIGHT
from tfspark.protocol.activity import Activity
from tfspark.protocol.settings import Hooks, TrainerSettings
from tfspark.training.ps import session as parameter_server
from tfspark.training.ps.sharding import look_up_on_servers, whole_values
from tfspark.training.ps.worker_feed import NEXT_BATCH, WorkerStream
from tfspark.training.ps.worker_steps import find_tables_from_branches, make_additions_atomic

EPOCHS, BATCH, ROWS = 3, 16, 200
VOCABULARY, CLASSES = 9000, 3


def dense(optimizer: Any = "sgd", **compiled: Any) -> keras.Model:
    """Dense layers with a regularizer and a loss added by a layer."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, "tanh", kernel_regularizer="l2", activity_regularizer="l2")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
    compiled = {"metrics": ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)], **compiled}
    model.compile(optimizer, "sparse_categorical_crossentropy", **compiled)
    return model


def scheduled() -> keras.Model:
    """AdamW under a schedule, with clipping and a moving average of the weights."""
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 40)
    return dense(keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0, use_ema=True))


def with_state() -> keras.Model:
    """BatchNormalization and Dropout."""
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(8),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, "softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def unbuilt() -> keras.Model:
    """A model without an input shape: Keras creates its variables from the data."""
    model = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def conv() -> keras.Model:
    """Convolution and pooling."""
    layers = [
        keras.Input((4,)),
        keras.layers.Reshape((2, 2, 1)),
        keras.layers.Conv2D(4, 2, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def text(cell: Any, vocabulary: int = 50) -> keras.Model:
    """An Embedding with a mask, then a recurrent layer."""
    layers = [
        keras.Input((4,)),
        keras.layers.Lambda(lambda x: keras.ops.cast(keras.ops.abs(x) * vocabulary / 4, "int32")),
        keras.layers.Embedding(vocabulary, 16, mask_zero=True),
        cell,
        keras.layers.Dense(3, "softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def places() -> keras.Model:
    """A layer without its own `build`: Keras calls the layer to build the large and the small table in it."""

    class Places(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = keras.layers.Embedding(VOCABULARY, 16), keras.layers.Embedding(4, 16)

        def call(self, x: Any) -> Any:
            return self.words(x) + self.places(keras.ops.arange(4))

    layers = [
        keras.Input((4,)),
        keras.layers.Lambda(lambda x: keras.ops.cast(keras.ops.abs(x) * VOCABULARY / 4, "int32")),
        Places(),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax"),
    ]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def words() -> keras.Model:
    """A model that splits strings into words and looks them up in a table, as TextVectorization does."""
    vocabulary = [str(number) for number in range(-9, 10)]
    split = keras.layers.TextVectorization(standardize=None, output_sequence_length=4, vocabulary=vocabulary)
    inputs = keras.Input((4,))
    numbers = keras.layers.Lambda(
        lambda x: tf.strings.reduce_join(tf.strings.as_string(tf.cast(x * 3, tf.int32)), 1, separator=" "),
        output_shape=(),
    )(inputs)
    ids = split(numbers)
    hidden = keras.layers.LSTM(4)(keras.layers.Embedding(30, 4, mask_zero=True)(ids))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(hidden))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class TwoOptimizers(keras.Model):
    """A model for adversarial training: its own `train_step`, two optimizers, no `call`."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
        self.discriminator = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
        )
        self.loss_g = keras.metrics.Mean("loss_g")
        self.loss_d = keras.metrics.Mean("loss_d")
        self.seeds = keras.random.SeedGenerator(7)

    def compile(self, optimizer_g: Any, optimizer_d: Any) -> None:
        super().compile()
        self.optimizer_g, self.optimizer_d = optimizer_g, optimizer_d

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [self.loss_g, self.loss_d]

    def train_step(self, data: Any) -> dict[str, Any]:
        real = data[0]
        noise = keras.random.normal((tf.shape(real)[0], 2), seed=self.seeds)
        bce = keras.losses.BinaryCrossentropy(from_logits=True)
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise))
            true = self.discriminator(real)
            loss_d = bce(tf.zeros_like(fake), fake) + bce(tf.ones_like(true), true)
        weights = self.discriminator.trainable_weights
        self.optimizer_d.apply_gradients(zip(tape.gradient(loss_d, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise))
            loss_g = bce(tf.ones_like(fake), fake)
        weights = self.generator.trainable_weights
        self.optimizer_g.apply_gradients(zip(tape.gradient(loss_g, weights), weights, strict=True))
        self.loss_d.update_state(loss_d)
        self.loss_g.update_state(loss_g)
        return {"d": self.loss_d.result(), "g": self.loss_g.result()}


def gan() -> keras.Model:
    """Two networks that train each other."""
    model = TwoOptimizers()
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01))
    return model


MODELS = {
    "sgd": dense,
    "momentum": lambda: dense(keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True)),
    "adam": lambda: dense("adam", weighted_metrics=["accuracy"]),
    "adamw": scheduled,
    "state": with_state,
    "unbuilt": unbuilt,
    "conv": conv,
    "lstm": lambda: text(keras.layers.LSTM(8)),
    "gru": lambda: text(keras.layers.Bidirectional(keras.layers.GRU(6, dropout=0.2))),
    "large": lambda: text(keras.layers.LSTM(8), VOCABULARY),
    "places": places,
    "gan": gan,
    "words": words,
}


def rows() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    return x, (x.argmax(1) % 3).astype(np.int64)


class FakeFeed:
    """Returns the batches of each pass to any worker that asks, in order; then reports the end to every worker."""

    def __init__(self, num_workers: int, columns: dict[str, Any], batch_size: int):
        self._columns, self._size = columns, batch_size
        self._passes: dict[tuple[bytes, int], Any] = {}
        self._ranks = itertools.cycle(range(num_workers))
        self._lock = threading.Lock()
        self.registered = self.next_batch
        script_ops._py_funcs._funcs[NEXT_BATCH] = self.registered

    def stop(self) -> None:
        """Stop answering; TensorFlow has only a weak reference to this feed, so it must be referenced until here."""
        del self.registered

    def next_batch(self, stream: bytes, index: int) -> list[Any]:
        with self._lock:
            num_rows = len(self._columns["x"])
            starts = self._passes.setdefault((stream, int(index)), iter(range(0, num_rows, self._size)))
            start = next(starts, num_rows)
            x, y = (self._columns[name][start : start + self._size] for name in ("x", "y"))
            has_batch, rank = np.bool_(start < num_rows), np.int64(next(self._ranks))
            return [has_batch, rank, np.ones(len(x), np.float32), x, y]


class FakeDriver:
    """A driver that reports no lost workers."""

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        assert action == "end_pass", (action, fields)
        return {"lost": []}


class FakeContext(SimpleNamespace):
    """A chief whose driver only records calls."""

    @classmethod
    def of(cls, strategy: tf.distribute.Strategy, num_workers: int) -> FakeContext:
        """Return a chief with this number of workers."""
        settings = TrainerSettings(runs_main_fun=False)
        return cls(
            strategy=strategy, num_workers=num_workers, seed=3, settings=settings, hooks=Hooks(), is_chief=True,
            reports=[], activity=Activity(), control=FakeDriver(),
            scratch_dir="/nowhere",
        )  # fmt: skip

    def report(self, event: str, **fields: Any) -> None:
        self.reports.append((event, fields))

    def stream(self, name: str) -> str:
        return name


def servers(num_workers: int, num_ps: int) -> tf.distribute.Strategy:
    """Start TensorFlow's servers in this process and join them."""
    counts = {"worker": num_workers, "ps": num_ps}
    # A cluster's description may not have port 0, so the ports are chosen before.
    addresses = {job: [f"127.0.0.1:{free_port()}" for _ in range(n)] for job, n in counts.items()}
    spec = tf.train.ClusterSpec(addresses)
    # All servers share the threads of this process. It needs enough threads for each server to wait for another one.
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=4 * (num_workers + num_ps))
    started = [
        tf.distribute.Server(spec, job, i, protocol="grpc", config=config)
        for job, n in counts.items()
        for i in range(n)
    ]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(spec, rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    strategy._started = started
    return strategy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plain(name: str) -> tuple[Any, dict[str, list[float]], Any]:
    """Train with plain Keras."""
    keras.utils.set_random_seed(3)
    model = MODELS[name]()
    x, y = rows()
    dataset = tf.data.Dataset.from_tensor_slices((x, y, np.ones(ROWS, np.float32))).batch(BATCH)
    history = model.fit(dataset, epochs=EPOCHS, verbose=0).history
    tests = model.evaluate(dataset, verbose=0, return_dict=True) if name != "gan" else {}
    return model, history, tests


def trial(name: str, strategy: tf.distribute.Strategy, num_workers: int) -> dict[str, Any]:
    """Train and evaluate a model with parameter servers and with plain Keras; return the results of both."""
    feed = FakeFeed(num_workers, dict(zip("xy", rows(), strict=True)), BATCH)
    context = FakeContext.of(strategy, num_workers)
    session = parameter_server.ParameterServerSession(lambda: MODELS[name](), None, context)
    trained = session.train(
        {"first_pass": 0, "epochs": EPOCHS, "call": 0, "validation": False, "side_car": False}
    )
    has_call = name != "gan"
    ours_tests = session.evaluate("test", num_classes=CLASSES) if has_call else {}
    feed.stop()
    model, history, tests = plain(name)
    ours = whole_values(session.model.trainable_weights)
    optimizers = [o for o in vars(session.model).values() if isinstance(o, keras.optimizers.Optimizer)]
    weights = [variable.numpy() for variable in model.trainable_weights]
    return {
        "apart": max(float(np.abs(a - b).max()) for a, b in zip(ours, weights, strict=True)),
        "iterations": [int(o.iterations.numpy()) for o in optimizers if o.built],
        "rows": trained["rows"],
        "history": trained["history"],
        "plain_history": history,
        "tests": ours_tests,
        "confusion_matrix": session.confusion_matrix,
        "curves": [len(curve) for curve in session.roc or []],
        "plain_tests": tests,
        "shapes": [list(variable.shape) for variable in session.model.trainable_weights],
        "servers": sorted({variable.value.device for variable in session.model.trainable_weights}),
        "exported_shapes": [list(variable.shape) for variable in session.to_export().trainable_weights],
    }


def main() -> None:
    num_workers, num_ps = int(sys.argv[1]), int(sys.argv[2])
    strategy = servers(num_workers, num_ps)
    make_additions_atomic()
    find_tables_from_branches()
    look_up_on_servers(num_ps)
    signature = {
        "x": tf.TensorSpec((None, 4), tf.float32),
        "y": tf.TensorSpec((None,), tf.int64),
        WEIGHT: tf.TensorSpec((None,), tf.float32),
    }
    parameter_server.open_stream = lambda context, name: WorkerStream(
        name, signature, BATCH, lambda batch: (batch["x"], batch["y"], batch[WEIGHT]), "x and y"
    )
    print(json.dumps({name: trial(name, strategy, num_workers) for name in sys.argv[3:]}))
    sys.stdout.flush()
    os._exit(0)  # A trainer ends in the same way: TensorFlow's servers cannot be stopped.


if __name__ == "__main__":
    main()
