"""The features of Keras's ``compile`` and ``fit``, and what is promised of each. `docs/keras-features.md` is made of it.

Every row is a small model and its data. `trial` trains it by plain Keras and by tfspark on the same global batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BATCH, ROWS = 8, 28
"""The last batch is short by half, so that the second of two workers has nothing of it."""

EQUAL = "equal"
RNG_SEED = 3


@dataclass(frozen=True)
class Feature:
    """A row.

    Attributes:
        group: what it belongs to.
        name: unique.
        build: makes the compiled model.
        data: features, label and weights (or None), as arrays.
        synchronous: ``equal``; or what is equal instead.
        servers: the same of parameter servers.
        refused: by whom, of ``synchronous`` and ``servers``; the promise is then what the error says.
        class_weights: class -> weight.
        compare: what must be equal: weights, history, tests.
        slow: left to ``--all``.
        fills_up: a short batch is divided by the whole batch size; else by its rows, as Keras does.
        needs_graph: plain Keras is not run eagerly.
    """

    group: str
    name: str
    build: Callable[[], Any]
    data: Callable[[], Any]
    synchronous: str = EQUAL
    servers: str = EQUAL
    refused: tuple[str, ...] = ()
    class_weights: Mapping[int, float] | None = None
    compare: tuple[str, ...] = ("weights", "history", "tests")
    slow: bool = False
    fills_up: bool = True
    needs_graph: bool = False


# --- data ------------------------------------------------------------------------------------------


def generator() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def table_rows(kind: str = "number", weights: bool = False) -> Any:
    """Four numbers a row, and a label of a kind."""
    rng = generator()
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    classes = x[:, :3].argmax(1)
    y: Any = {
        "number": (x.sum(1, keepdims=True) * 2 + 1).astype(np.float32),
        "flat": (x.sum(1) * 2 + 1).astype(np.float32),
        "numbers": np.stack([x.sum(1), x[:, 0] - x[:, 1], x[:, 2] * 2], 1).astype(np.float32),
        "classes": classes.astype(np.int64),
        "one hot": np.eye(3, dtype=np.float32)[classes],
        "yes": (x.sum(1, keepdims=True) > 0).astype(np.float32),
        "several": (x[:, :3] > 0).astype(np.float32),
        "positive": np.abs(x.sum(1, keepdims=True)).astype(np.float32) + 0.1,
        "signs": np.sign(x.sum(1, keepdims=True)).astype(np.float32),
    }[kind]
    return x, y, rng.choice([0.0, 0.5, 1.0, 4.0], ROWS).astype(np.float32) if weights else None


def images(kind: str = "classes", weights: bool = False) -> Any:
    """Six by six pixels, and a label for each."""
    rng = generator()
    x = rng.normal(size=(ROWS, 6, 6, 1)).astype(np.float32)
    inside = (x > 0.2).astype(np.int64)
    y = {"classes": inside[..., 0], "yes": inside.astype(np.float32), "same": x}[kind]
    return x, y, rng.choice([0.0, 0.5, 1.0, 4.0], ROWS).astype(np.float32) if weights else None


def series(steps: int = 5, weights: bool = False) -> Any:
    """Two numbers and a class for each step of time; with 4 steps there are as many as a worker has rows."""
    rng = generator()
    x = rng.normal(size=(ROWS, steps, 2)).astype(np.float32)
    y = (x.sum(-1) > 0).astype(np.int64) + (x[..., 0] > 1)
    return x, y, rng.choice([0.0, 0.5, 1.0, 4.0], ROWS).astype(np.float32) if weights else None


def tokens(label: str = "steps") -> Any:
    """Numbers of words, 0 where there is none."""
    rng = generator()
    lengths = rng.integers(1, 6, ROWS)
    x = rng.integers(1, 9, (ROWS, 5)) * (np.arange(5) < lengths[:, None])
    return x.astype(np.int64), (x % 3).astype(np.int64) if label == "steps" else (lengths % 3).astype(np.int64), None


# --- models ----------------------------------------------------------------------------------------


def initial(seed: int = 1) -> Any:
    import keras

    return keras.initializers.RandomNormal(stddev=0.4, seed=seed)


def dense(units: int, activation: str | None, optimizer: Any, loss: Any, hidden: int = 5, **compiled: Any) -> Any:
    import keras

    layer = functools.partial(keras.layers.Dense)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layer(hidden, "tanh", kernel_initializer=initial(1)),
            layer(units, activation, kernel_initializer=initial(2)),
        ]
    )
    model.compile(optimizer() if callable(optimizer) else optimizer, loss() if callable(loss) else loss, **compiled)
    return model


def sgd(rate: float = 0.05, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import keras

        return keras.optimizers.SGD(rate, **options)

    return make


def optimizer_of(name: str, rate: float = 0.01, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import keras

        return getattr(keras.optimizers, name)(rate, **options)

    return make


def regression(name: str, optimizer: Callable[[], Any], group: str = "optimizers", **more: Any) -> Feature:
    return Feature(group, name, lambda: dense(1, None, optimizer, "mse", metrics=["mae"]), table_rows, **more)


CLIPPING = [
    regression("clipnorm", sgd(clipnorm=0.5)),
    regression("global_clipnorm", sgd(global_clipnorm=0.5)),
    regression("clipvalue", sgd(clipvalue=0.05)),
    regression("Adam(clipnorm)", optimizer_of("Adam", clipnorm=0.5)),
    regression("AdamW(weight_decay, global_clipnorm)", optimizer_of("AdamW", weight_decay=0.1, global_clipnorm=0.3)),
    regression("use_ema", sgd(use_ema=True, ema_momentum=0.9)),
    regression("ema_overwrite_frequency", sgd(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)),
    regression(
        "gradient_accumulation_steps",
        sgd(gradient_accumulation_steps=2),
        servers="refused: workers would add to each other's gradients",
        refused=("servers",),
    ),
    regression(
        "gradient_accumulation_steps with clipnorm",
        optimizer_of("Adam", gradient_accumulation_steps=3, clipnorm=0.2, weight_decay=0.01),
        servers="refused: workers would add to each other's gradients",
        refused=("servers",),
    ),
    regression(
        "loss_scale_factor", sgd(loss_scale_factor=8.0, clipnorm=0.5)
    ),
    regression(
        "LossScaleOptimizer",
        lambda: __import__("keras").optimizers.LossScaleOptimizer(sgd(clipnorm=0.5)(), initial_scale=1024.0),
        servers="refused: workers would change the scale under each other",
        refused=("servers",),
    ),
]
FEATURES: list[Feature] = [*CLIPPING]
