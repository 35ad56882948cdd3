"""Programs for the clusters of these tests: `build_model` functions and a `main_fun`.

They have a separate module, which executors find by its name (``tests`` is on their path). Only the trainers import
TensorFlow.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tfspark.feed.columns import Column, Columns


def dense(params: dict[str, Any]) -> Any:
    """Return two dense layers over four features; only the initial weights are random."""
    import keras

    model = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(params.get("num_classes", 2), activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.get(
        {"class_name": params.get("optimizer", "sgd"), "config": {"learning_rate": params.get("rate", 0.05)}}
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def with_state(params: dict[str, Any]) -> Any:
    """Return a model whose layers have state and draw random numbers: BatchNormalization and Dropout."""
    import keras

    model = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(16),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(params["num_classes"], activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def no_model(params: Any) -> str:
    """Forget to return the model."""
    del params
    return "a model"


def uncompiled(params: Any) -> Any:
    """Forget to compile."""
    import keras

    del params
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])


def saving_callbacks(params: dict[str, Any]) -> list[Any]:
    """Return callbacks that write files: one model per epoch, and logs for TensorBoard."""
    import keras

    return [
        keras.callbacks.ModelCheckpoint(params["directory"] + "/{epoch}.keras"),
        keras.callbacks.TensorBoard(params["directory"] + "/board", histogram_freq=1),
    ]


def save_drawn_rows(model: Any, x: Any, y: Any, directory: str) -> None:
    """Save the rows to draw, and the model's predictions of them."""
    import numpy as np

    np.savez(os.path.join(directory, "shown.npz"), x=x, y=y, scores=model.predict(x, verbose=0))


def accumulating(params: Any) -> Any:
    """Compile with an optimizer that adds up gradients over steps."""
    import keras

    del params
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(gradient_accumulation_steps=4), "mse")
    return model


def fit_as_users_do(args: dict[str, Any], ctx: Any) -> dict[str, Any]:
    """Run a typical `main_fun`: strategy, model, fit, report, export."""
    with ctx.strategy.scope():
        model = dense(args)
    history = model.fit(ctx.dataset(), epochs=args["epochs"], verbose=0)
    ctx.report("trained", loss=history.history["loss"][-1])
    ctx.export(model, "mine")
    return {
        "history": history.history,
        "iterations": int(model.optimizer.iterations.numpy()),
        "who": [ctx.job_name, ctx.task_index, ctx.is_chief, ctx.num_workers],
    }


def say(args: Any, ctx: Any) -> Any:
    """Do what `args` names, without TensorFlow."""
    if args == "wait":
        from threading import Event

        import psutil
        from support.trainers import node_task_of

        ctx.report("waiting", pid=os.getpid(), node_task=node_task_of(psutil.Process()).pid)
        Event().wait()
    if args == "fail on worker 1" and ctx.task_index == 1:
        import time

        sys.stdout.write("the last words of worker 1\n")
        ctx.report("raised", at=time.time())
        raise ValueError("the dog ate row 7")
    if args == "return an object":
        return object()
    if args == "die on worker 1" and ctx.task_index == 1:
        import time

        sys.stdout.write("the last words of worker 1\n")
        sys.stdout.flush()
        ctx.report("killed", at=time.time())
        os.kill(os.getpid(), signal.SIGKILL)
    if str(args).startswith(("fail", "die")):
        from threading import Event

        Event().wait()
    return {"said": args, "workers": ctx.num_workers}


def counting(params: dict[str, Any]) -> Any:
    """Return a model whose weights count: entry ``i`` grows by 1 whenever row ``i`` is trained on."""
    import keras

    class Minus(keras.losses.Loss):  # type: ignore[misc]
        """A loss whose gradient is -1 for each row."""

        def call(self, truth: Any, counts: Any) -> Any:
            del truth
            return -counts[:, 0]

    numbers = keras.layers.Input((1,), dtype="int64")
    counts = keras.layers.Embedding(params["rows"], 1, embeddings_initializer="zeros")(numbers)
    model = keras.Model(numbers, keras.layers.Flatten()(counts))
    model.compile(keras.optimizers.SGD(1.0), Minus(reduction="sum"))
    return model


def stepping(params: dict[str, Any]) -> Any:
    """Return a model as `counting` does, but entry ``i`` grows by (step within the epoch) * 100 ** epoch."""
    import keras

    model = counting(params)
    rates = [step * 100.0**epoch for epoch in range(3) for step in range(1, params["steps"] + 1)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(list(range(len(rates) - 1)), rates)
    model.compile(keras.optimizers.SGD(schedule), model.loss)
    return model


def squares_and_kill_once(marker: str, ctx: Any) -> None:
    """Return the square of the row for each item (row, pid); kill process ``pid`` when the first items arrive."""
    feed = ctx.get_data_feed(False)
    while not feed.should_stop():
        batch = feed.next_batch(10)
        if batch and not Path(marker).exists():
            Path(marker).touch()
            os.kill(batch[0][1], signal.SIGKILL)
        feed.batch_results([row * row for row, _ in batch])


COLUMNS = Columns((Column("features"),), Column("label"), num_classes=2)


TOLD_S = 8.0
"""Seconds from a kill to the error on the driver, on a loaded machine."""


ALL_EXECUTORS_FIRST = {
    "spark.scheduler.minRegisteredResourcesRatio": "1",
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "60s",
}
"""Spark starts no task before all executors are there, so that the two nodes are on two executors."""
