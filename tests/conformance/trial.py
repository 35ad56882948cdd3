"""Train the models of the table, one after the other, in one process; print what became of each.

Usage: trial.py plain NAME...                        plain Keras
       trial.py mirrored INDEX PORT... -- NAME...    one of as many synchronous workers as there are ports
       trial.py servers WORKERS NAME...              workers and a parameter server, in this process

One line ``RESULT {json}`` for each name: ``history``, ``tests`` (what `evaluate` said), ``weights`` (flat), or
``error``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from conformance.table import BATCH, ROWS, Feature

EPOCHS = 1
Arrays = Any


def part(data: Arrays, index: Any) -> Arrays:
    return tf.nest.map_structure(lambda values: values[index], data)


def numbers(value: Any) -> Any:
    array = np.asarray(value, np.float64)
    return float(array) if array.ndim == 0 else array.tolist()


def flat(values: list[Any]) -> list[float]:
    return [float(each) for value in values for each in np.asarray(value, np.float64).ravel()]


def outcome(model: keras.Model, history: Any, tests: Any, values: list[Any]) -> dict[str, Any]:
    return {
        "history": {name: [numbers(value) for value in each] for name, each in history.items()},
        "tests": {name: numbers(value) for name, value in tests.items()},
        "weights": flat(values),
        "iterations": int(model.optimizer.iterations.numpy()),
    }


# --- plain Keras -----------------------------------------------------------------------------------


def plain(feature: Feature) -> dict[str, Any]:
    """Fit for the history, and once more for the weights: a short batch is filled up with rows that weigh nothing."""
    x, y, weights = feature.data()
    rows = np.ones(ROWS, np.float32) if weights is None else weights
    model, history = fitted(feature, x, y, weights, feature.class_weights)
    short = flat(model.get_weights())
    if feature.fills_up:
        last = np.where(
            np.arange(-(-ROWS // BATCH) * BATCH) < ROWS, np.arange(-(-ROWS // BATCH) * BATCH), ROWS - 1
        )
        weighed = rows * class_weights(y, feature.class_weights)
        filled = np.where(np.arange(len(last)) < ROWS, weighed[last], 0).astype(np.float32)
        model, _ = fitted(feature, part(x, last), part(y, last), filled, None)
    given = {} if weights is None else {"sample_weight": for_values(model, y, weights)}
    tests = model.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True, **given)
    return {**outcome(model, history, tests, model.get_weights()), "weights_short": short}


def fitted(feature: Feature, x: Any, y: Any, weights: Any, of_classes: Any) -> tuple[keras.Model, Any]:
    keras.utils.set_random_seed(1)
    model = feature.build()
    model.run_eagerly = not feature.needs_graph  # Nothing to trace: much quicker.
    given = {} if weights is None else {"sample_weight": for_values(model, y, weights)}
    history = model.fit(
        x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0, class_weight=of_classes, **given
    ).history  # fmt: skip
    return model, history


def for_values(model: keras.Model, y: Any, weights: Any) -> Any:
    """Repeat each row's weight over the values of its losses, as plain Keras wants it."""

    def of(output: Any) -> Any:
        shape = (len(weights), *output.shape[1:-1])
        return np.broadcast_to(weights.reshape(-1, *[1] * (len(shape) - 1)), shape)

    if isinstance(model, keras.Sequential):
        return of(model.outputs[0])
    return tf.nest.map_structure(of, model.output if getattr(model, "inputs", None) else y)


# --- synchronous workers ---------------------------------------------------------------------------


class Shard:
    """A worker's part of every batch, as the feed gives it out: the last batch filled up with padding."""

    def __init__(self, feature: Feature, rank: int, num_workers: int):
        from tfspark.feed.reader import PADDING

        self.size = BATCH // num_workers
        x, y, weights = feature.data()
        self.weighs_rows = weights is not None or feature.class_weights is not None
        rows = np.ones(ROWS, np.float32) if weights is None else weights
        self.num_steps = -(-ROWS // BATCH)
        index = [
            (np.arange(start + rank * self.size, start + (rank + 1) * self.size))
            for start in range(0, ROWS, BATCH)
        ]
        wanted = np.concatenate(index)
        own = wanted[wanted < ROWS]
        self.real = (part(x, own), part(y, own), rows[own])
        filled = np.where(wanted < ROWS, wanted, own[-1])
        trained = rows * class_weights(y, feature.class_weights)
        padded = np.where(wanted < ROWS, trained[filled], PADDING).astype(np.float32)
        self.padded = (part(x, filled), part(y, filled), padded)
        self.rows_of_pass, self.steps_of_pass, self.global_batch_size = len(own), self.num_steps, BATCH
        self.first_step_of_pass = 0
        self.next_index, self.start, self.is_over = 0, None, False
        self.sample = part(self.real, slice(0, 1))
        self.dataset: Any = None

    def of_training(self) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(self.padded).batch(self.size, drop_remainder=True).repeat()

    def open_pass(self) -> Any:
        return SimpleNamespace(has_step=lambda step: step < self.num_steps)

    def abandon_pass(self) -> None:
        pass

    def iterator(self) -> Any:
        return iter(self.dataset)


def class_weights(y: Any, given: Any) -> Any:
    if not given:
        return 1.0
    classes = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    return np.array([given.get(int(each), 1.0) for each in classes], np.float32)


class MirroredContext(SimpleNamespace):
    """A worker whose driver adds sums up by the workers' own collectives."""

    is_chief = True
    has_parameter_servers = False

    def report(self, event: str, **fields: Any) -> None:
        json.dumps(fields)

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        assert action == "sum", action
        arrays = [np.asarray(value, np.float64) for value in fields["values"]]
        total = self.add(tf.constant(np.concatenate([array.ravel() for array in arrays]))).numpy()
        ends = np.cumsum([array.size for array in arrays])[:-1]
        values = [p.reshape(a.shape) for p, a in zip(np.split(total, ends), arrays, strict=True)]
        return {"status": "ok", "values": values}


def mirrored(strategy: Any, rank: int, num_workers: int) -> Callable[[Feature], dict[str, Any]]:
    from tfspark.cluster.context import Hooks
    from tfspark.cluster.pulse import Pulse
    from tfspark.feed.dataset import distribute_from_function
    from tfspark.training import evaluation, loop

    def local_dataset(shard: Shard, batches: Any = None) -> tf.data.Dataset:
        rows = shard.real if batches is None else shard.sample
        return tf.data.Dataset.from_tensor_slices(rows).batch(shard.size)

    def summed(values: Any) -> Any:
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(values))

    add = tf.function(
        lambda values: strategy.run(summed, args=(values,)),
        input_signature=[tf.TensorSpec((None,), tf.float64)],
        autograph=False,
    )

    def train(feature: Feature) -> dict[str, Any]:
        shard = Shard(feature, rank, num_workers)
        shard.dataset = distribute_from_function(strategy, lambda _: shard.of_training(), shard)
        evaluation.local_dataset = local_dataset
        loop.distributed_dataset = lambda context, stream: shard.dataset
        loop.describe_stream = lambda context, stream: {"description": {}}
        loop.open_feed = lambda context, stream: shard
        settings = {
            "keeps_state": False, "checkpoint_every_steps": 0, "checkpoint_every_seconds": 0.0,
            "feed_timeout_s": 100.0, "checkpoint_every_epochs": 0,
        }  # fmt: skip
        context = MirroredContext(
            strategy=strategy, num_workers=num_workers, seed=1, settings=settings, hooks=Hooks(), pulse=Pulse(),
            scratch_dir="/nowhere", node=SimpleNamespace(task_index=rank), role="worker", add=add,
        )  # fmt: skip
        context.control = context
        # Evaluation has no weights of classes.
        session = loop.TrainingSession(lambda: feature.build(), None, context)
        job = {"first_pass": 0, "epochs": EPOCHS, "call": 0, "validation": False, "side_car": False}
        trained = session.train(job)
        shard.weighs_rows = feature.data()[2] is not None
        tests = session.evaluate("test")
        return outcome(session.model, trained["history"], tests, session.model.get_weights())

    return train


# --- parameter servers -----------------------------------------------------------------------------


def served(strategy: Any, num_workers: int) -> Callable[[Feature], dict[str, Any]]:
    from tensorflow.python.ops import script_ops
    from training.ps_trial import FakeContext

    from tfspark.feed.reader import WEIGHT
    from tfspark.feed.worker_feed import NEXT_BATCH, WorkerStream
    from tfspark.training import parameter_server
    from tfspark.training.sharding import whole_values

    def batches(feature: Feature) -> Iterator[Any]:
        x, y, weights = feature.data()
        rows = np.ones(ROWS, np.float32) if weights is None else weights
        rows = rows * class_weights(y, feature.class_weights)
        data = [*tf.nest.flatten(x), *tf.nest.flatten(y), rows.astype(np.float32)]
        for start in range(0, ROWS, BATCH):
            yield [values[start : start + BATCH] for values in data]

    def train(feature: Feature) -> dict[str, Any]:
        first = next(batches(feature))
        names = [f"part {number:02d}" for number in range(len(first) - 1)]
        signature = {
            name: tf.TensorSpec(
                (None, *values.shape[1:]), tf.string if values.dtype == object else values.dtype
            )
            for name, values in zip([*names, WEIGHT], first, strict=True)
        }
        order = sorted(signature)
        passes: dict[Any, Any] = {}

        def next_batch(stream: bytes, index: int) -> list[Any]:
            rows = passes.setdefault((stream, int(index)), batches(feature))
            batch = next(rows, None)
            given = dict(zip([*names, WEIGHT], batch or [v[:0] for v in first], strict=True))
            return [np.bool_(batch is not None), np.int64(0), *(given[name] for name in order)]

        script_ops._py_funcs._funcs[NEXT_BATCH] = next_batch
        x, y, weights = feature.data()

        def element(batch: Any) -> Any:
            return (*tf.nest.pack_sequence_as((x, y), [batch[name] for name in names]), batch[WEIGHT])

        parameter_server.open_stream = lambda context, name: WorkerStream(
            name,
            signature,
            BATCH,
            element,
            feature.name,
            weighs_rows=weights is not None or feature.class_weights is not None,
        )
        session = parameter_server.ParameterServerSession(
            lambda: feature.build(), None, FakeContext.of(strategy, num_workers)
        )
        job = {"first_pass": 0, "epochs": EPOCHS, "call": 0, "validation": False, "side_car": False}
        trained = session.train(job)
        tests = session.evaluate("test")
        return outcome(session.model, trained["history"], tests, whole_values(session.model.weights))

    return train


def trainer_of(kind: str, arguments: list[str]) -> tuple[Callable[[Feature], dict[str, Any]], list[str]]:
    """Return what trains a feature, and the names of those wanted."""
    # To rewrite the graphs takes longer than the steps.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    if kind == "plain":
        return plain, arguments
    if kind == "mirrored":
        from tfspark.training.keras_corrections import apply_corrections

        end = arguments.index("--")
        rank, ports = int(arguments[0]), arguments[1:end]
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
        apply_corrections()
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        return mirrored(strategy, rank, len(ports)), arguments[end + 1 :]
    from training.ps_trial import servers

    from tfspark.training.sharding import look_up_on_servers
    from tfspark.training.worker_steps import find_tables_from_branches, make_additions_atomic

    strategy = servers(int(arguments[0]), 1)
    make_additions_atomic()
    find_tables_from_branches()
    look_up_on_servers(1)
    return served(strategy, int(arguments[0])), arguments[1:]


def main() -> None:
    from conformance.table import FEATURES

    known = {feature.name: feature for feature in FEATURES}
    train, names = trainer_of(sys.argv[1], sys.argv[2:])
    for name in names:
        try:
            result = train(known[name])
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"[:1500]}
            traceback.print_exc()
        keras.backend.clear_session()
        print("RESULT " + json.dumps({"feature": name, **result}), flush=True)
    os._exit(0)  # As a trainer ends: TensorFlow's servers have no orderly end.


if __name__ == "__main__":
    main()
