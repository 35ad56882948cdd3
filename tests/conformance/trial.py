"""Train the models of the table, one after another, in one process; print the results of each.

Usage: trial.py plain NAME...                        plain Keras
       trial.py mirrored INDEX PORT... -- NAME...    one of several synchronous workers; each has a port
       trial.py servers WORKERS NAME...              workers and a parameter server, in this process

Prints one line ``RESULT {json}`` for each name: ``history``, ``tests`` (the results of `evaluate`), ``weights`` (flat),
``iterations`` and ``written``, or ``error``.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from conformance.table import BATCH, Feature
from tfspark.training.input.elements import as_tuples

Arrays = Any


def part(data: Arrays, index: Any) -> Arrays:
    def of(values: Any) -> Any:
        if isinstance(values, tf.RaggedTensor) and not isinstance(index, slice):
            return tf.gather(values, index)
        return values[index]

    return tf.nest.map_structure(of, data)


def count_rows(data: Arrays) -> int:
    return int(tf.nest.flatten(data)[0].shape[0])


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
    x, y, weights = feature.data()
    keras.utils.set_random_seed(1)
    model = feature.build()
    # Eager steps are much faster, because Keras does not trace them.
    model.run_eagerly = not feature.needs_graph
    given = {} if weights is None else {"sample_weight": for_values(model, y, weights)}
    fitted: dict[str, Any] = {**given, "class_weight": feature.class_weights}
    # Keras takes only one of them; tfspark multiplies them.
    if weights is not None and feature.class_weights:
        both = (weights * class_weights(y, feature.class_weights)).astype(np.float32)
        fitted = {"sample_weight": for_values(model, y, both)}
    x = feature.hook(x)
    validation = {"validation_data": (x, y, *given.values())} if feature.validates else {}
    with tempfile.TemporaryDirectory() as folder:

        def fit() -> Any:
            return model.fit(
                x, y, batch_size=BATCH, epochs=feature.epochs, shuffle=False, verbose=0,
                callbacks=feature.callbacks(folder), **fitted, **validation,
            ).history  # fmt: skip

        history = fit()
        if feature.between is not None:
            feature.between(model)
            model.run_eagerly = True
            history = fit()
        written = feature.written(folder)
    values = model.get_weights()  # Before the evaluation: a layer may change them.
    tests = model.evaluate(x, y, batch_size=BATCH, verbose=0, return_dict=True, **given)
    return {**outcome(model, history, tests, values), "written": written}


def for_values(model: keras.Model, y: Any, weights: Any) -> Any:
    """Repeat each row's weight over the values of its losses, as plain Keras expects."""

    def of(output: Any) -> Any:
        shape = (len(weights), *output.shape[1:-1])
        return np.broadcast_to(weights.reshape(-1, *[1] * (len(shape) - 1)), shape)

    if isinstance(model, keras.Sequential):
        return of(model.outputs[0])
    return tf.nest.map_structure(of, model.output if getattr(model, "inputs", None) else y)


# --- synchronous workers ---------------------------------------------------------------------------


class Shard:
    """A worker's part of every batch, as in the feed: the last batch is padded."""

    def __init__(self, feature: Feature, rank: int, num_workers: int):
        from tfspark.feed.reader import PADDING

        self.size = BATCH // num_workers
        x, y, weights = feature.data()
        num_rows = count_rows(x)
        rows = np.ones(num_rows, np.float32) if weights is None else weights
        self.num_steps = -(-num_rows // BATCH)
        index = [
            (np.arange(start + rank * self.size, start + (rank + 1) * self.size))
            for start in range(0, num_rows, BATCH)
        ]
        wanted = np.concatenate(index)
        own = wanted[wanted < num_rows]
        self.weighs_rows = weights is not None or feature.class_weights is not None
        self.real = (part(x, own), part(y, own), rows[own])
        filled = np.where(wanted < num_rows, wanted, own[-1] if len(own) else 0)
        trained = rows * class_weights(y, feature.class_weights)
        padded = np.where(wanted < num_rows, trained[filled], PADDING).astype(np.float32)
        self.padded = (part(x, filled), part(y, filled), padded)
        self.hook = feature.hook
        self.rows_of_pass, self.steps_of_pass, self.global_batch_size = len(own), self.num_steps, BATCH
        self.first_step_of_pass = 0
        self.next_index, self.start, self.is_over, self.is_broken_off = 0, None, False, False
        self.steps_at_once = 1
        self.sample = part((x, y, rows), slice(0, 1))
        self.dataset: Any = None

    def of_training(self) -> tf.data.Dataset:
        rows = tf.data.Dataset.from_tensor_slices(self.padded).batch(self.size, drop_remainder=True).repeat()
        return rows.map(self.element)

    def element(self, x: Any, y: Any, weights: Any) -> Any:
        return as_tuples(self.hook(x)), y, weights

    def open_pass(self) -> Any:
        return SimpleNamespace(
            has_step=lambda step: step < self.num_steps,
            steps_from=lambda step, most: min(most, self.num_steps - step),
        )

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
    """A worker's context. It takes the place of the driver: the workers' own collectives add up sums."""

    has_parameter_servers = False

    def stream(self, name: str) -> str:
        return name

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
    from tfspark.protocol.activity import Activity
    from tfspark.protocol.settings import Hooks, TrainerSettings
    from tfspark.training import evaluation
    from tfspark.training import session as sessions
    from tfspark.training.input.distribute import distribute_from_function

    def local_dataset(shard: Shard, batches: Any = None) -> tf.data.Dataset:
        rows = shard.real if batches is None else shard.sample
        return tf.data.Dataset.from_tensor_slices(rows).batch(shard.size).map(shard.element)

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
        sessions.distributed_dataset = lambda context, stream, strategy: shard.dataset
        sessions.describe_stream = lambda context, stream: {"description": {}}
        sessions.open_feed = lambda context, stream: shard
        settings = TrainerSettings(runs_main_fun=False, feed_timeout_s=100.0)
        folder = tempfile.mkdtemp()
        context = MirroredContext(
            strategy=strategy, num_workers=num_workers, seed=1, settings=settings, activity=Activity(), add=add,
            hooks=Hooks(callbacks=lambda params: feature.callbacks(folder)), is_chief=rank == 0,
            scratch_dir="/nowhere", node=SimpleNamespace(task_index=rank), role="worker",
        )  # fmt: skip
        context.control = context
        # Evaluation does not use class weights.
        session = sessions.TrainingSession(lambda: feature.build(), None, context)
        job = {
            "first_pass": 0, "epochs": feature.epochs, "call": 0, "validation": feature.validates,
            "side_car": False,
        }  # fmt: skip
        trained = session.train(job)
        if feature.between is not None:
            with strategy.scope():
                feature.between(session.model)
            trained = session.train({**job, "call": 1})
        shard.weighs_rows = feature.data()[2] is not None
        tests = session.evaluate("test")
        written = feature.written(folder) if os.listdir(folder) else None
        shutil.rmtree(folder)
        return {
            **outcome(session.model, trained["history"], tests, session.model.get_weights()),
            "written": written,
        }

    return train


# --- parameter servers -----------------------------------------------------------------------------


def served(strategy: Any, num_workers: int) -> Callable[[Feature], dict[str, Any]]:
    from tensorflow.python.ops import script_ops
    from training.ps_trial import FakeContext

    from tfspark.feed.reader import WEIGHT
    from tfspark.protocol.settings import Hooks
    from tfspark.training.ps import session as parameter_server
    from tfspark.training.ps.sharding import whole_values
    from tfspark.training.ps.worker_feed import NEXT_BATCH, WorkerStream

    def flat_parts(x: Any, y: Any) -> list[Any]:
        """Return arrays; for ragged rows, return their values and their lengths."""
        parts = []
        for values in [*tf.nest.flatten(x), *tf.nest.flatten(y)]:
            is_ragged = isinstance(values, tf.RaggedTensor)
            parts += [values.flat_values.numpy(), values.row_lengths().numpy()] if is_ragged else [values]
        return parts

    def batches(feature: Feature, trains: bool = True) -> Iterator[Any]:
        x, y, weights = feature.data()
        num_rows = count_rows(x)
        rows = np.ones(num_rows, np.float32) if weights is None else weights
        of_classes = class_weights(y, feature.class_weights) if trains else 1.0
        rows = (rows * of_classes).astype(np.float32)
        for start in range(0, num_rows, BATCH):
            of_batch = slice(start, start + BATCH)
            yield [*flat_parts(part(x, of_batch), part(y, of_batch)), rows[of_batch]]

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
            rows = passes.setdefault((stream, int(index)), batches(feature, stream == b"train"))
            batch = next(rows, None)
            given = dict(zip([*names, WEIGHT], batch or [v[:0] for v in first], strict=True))
            return [np.bool_(batch is not None), np.int64(0), *(given[name] for name in order)]

        script_ops._py_funcs._funcs[NEXT_BATCH] = next_batch
        x, y, weights = feature.data()

        def element(batch: Any) -> Any:
            parts = iter([batch[name] for name in names])
            made = [
                tf.RaggedTensor.from_row_lengths(next(parts), next(parts), validate=False)
                if isinstance(values, tf.RaggedTensor)
                else next(parts)
                for values in [*tf.nest.flatten(x), *tf.nest.flatten(y)]
            ]
            features, label = tf.nest.pack_sequence_as((x, y), made)
            return as_tuples(feature.hook(features)), label, batch[WEIGHT]

        parameter_server.open_stream = lambda context, name: WorkerStream(
            name,
            signature,
            BATCH,
            element,
            feature.name,
            weighs_rows=weights is not None or feature.class_weights is not None,
        )
        context = FakeContext.of(strategy, num_workers)
        context.seed = 1
        with tempfile.TemporaryDirectory() as folder:
            context.hooks = Hooks(callbacks=lambda params: feature.callbacks(folder))
            session = parameter_server.ParameterServerSession(lambda: feature.build(), None, context)
            job = {
                "first_pass": 0, "epochs": feature.epochs, "call": 0, "validation": feature.validates,
                "side_car": False,
            }  # fmt: skip
            trained = session.train(job)
            written = feature.written(folder)
        values = whole_values(session.model.weights)
        tests = session.evaluate("test")
        return {
            **outcome(session.model, trained["history"], tests, values),
            "written": written,
        }

    return train


def trainer_of(kind: str, arguments: list[str]) -> tuple[Callable[[Feature], dict[str, Any]], list[str]]:
    """Return the function that trains a feature, and the names of the wanted features."""
    # Rewriting the graphs takes longer than the steps.
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

    from tfspark.training.ps.sharding import look_up_on_servers
    from tfspark.training.ps.worker_steps import find_tables_from_branches, make_additions_atomic

    strategy = servers(int(arguments[0]), 1)
    make_additions_atomic()
    find_tables_from_branches()
    look_up_on_servers(1)
    return served(strategy, int(arguments[0])), arguments[1:]


def main() -> None:
    from conformance.table import FEATURES

    known = {feature.name: feature for feature in FEATURES}
    gc.freeze()  # `clear_session` collects after each feature.
    train, names = trainer_of(sys.argv[1], sys.argv[2:])
    for name in names:
        try:
            result = train(known[name])
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"[:1500]}
            traceback.print_exc()
        keras.backend.clear_session()
        print("RESULT " + json.dumps({"feature": name, **result}), flush=True)
    os._exit(0)  # A trainer ends in the same way: TensorFlow's servers cannot be stopped.


if __name__ == "__main__":
    main()
