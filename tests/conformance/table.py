"""The features of Keras's ``compile`` and ``fit``, and the promise for each; the source of `docs/keras-features.md`.

Every row is a small model and its data. `trial` trains it with plain Keras and with tfspark on the same global batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance import examples

BATCH, ROWS = 8, 28
"""The last batch has only half of its rows, so the second of two workers gets no row of it."""

EQUAL = "equal"
EXAMPLES_OF_KERAS = "models like Keras's examples"
RNG_SEED = 3


@dataclass(frozen=True)
class Feature:
    """A row of the table.

    Attributes:
        group: heading of the row on the page.
        name: unique name.
        build: returns the compiled model.
        data: returns features, label and weights (or None), as arrays.
        synchronous: the promise for synchronous training: ``equal``, or a description of the differences.
        servers: the promise for parameter servers.
        refused: kinds of training that refuse the feature: ``synchronous``, ``servers``, or ``several`` for two or more
            synchronous workers. The promise is then the reason.
        class_weights: class -> weight.
        compare: the results that must be equal: weights, history, tests.
        slow: whether only ``--all`` trains it.
        needs_graph: whether plain Keras cannot train it eagerly.
        of_batches: whether the loss is no mean over rows, so that the loss of `evaluate` depends on the batches.
        main_fun: the promise for a `main_fun`; empty if it is the same as for synchronous training.
        epochs: number of epochs.
        callbacks: folder to write to -> callbacks.
        written: folder -> content that the callbacks have written. A worker without files does not call it.
        chief_alone: whether only the chief writes.
        validates: whether the training rows are evaluated after each epoch.
        hook: changes the features of a batch, as a `features` hook does.
        between: changes the model between two trainings. Only the results of the second training are compared.
        not_compared: kinds of training that train it, but whose results are not compared: ``servers``, or ``several``
            synchronous workers, whose weights must differ.
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
    needs_graph: bool = False
    of_batches: bool = False
    main_fun: str = ""
    epochs: int = 1
    callbacks: Callable[[str], list[Any]] = lambda folder: []
    written: Callable[[str], Any] = lambda folder: None
    chief_alone: bool = False
    validates: bool = False
    hook: Callable[[Any], Any] = lambda x: x
    between: Callable[[Any], None] | None = None
    not_compared: tuple[str, ...] = ()

    @property
    def quick_on_servers(self) -> bool:
        """Whether parameter servers train it in the quick part of the suite."""
        return not self.slow and self.group in (
            "optimizers",
            "outputs of several values",
            "weights",
            "models",
            "inputs",
            EXAMPLES_OF_KERAS,
        )


@dataclass(frozen=True)
class Stated:
    """A row of the page that other tests check."""

    group: str
    name: str
    synchronous: str
    servers: str
    main_fun: str = ""


# --- data ------------------------------------------------------------------------------------------


def generator() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def table_rows(kind: str = "number", weights: bool = False) -> Any:
    """Return rows of four numbers, and labels of a kind."""
    rng = generator()
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    classes = x[:, :3].argmax(1)
    y: Any = {
        "number": (x.sum(1, keepdims=True) * 2 + 1).astype(np.float32),
        "flat": (x.sum(1) * 2 + 1).astype(np.float32),
        "numbers": np.stack([x.sum(1), x[:, 0] - x[:, 1], x[:, 2] * 2], 1).astype(np.float32),
        "classes": classes.astype(np.int64),
        "one-hot": np.eye(3, dtype=np.float32)[classes],
        "binary": (x.sum(1, keepdims=True) > 0).astype(np.float32),
        "multi-hot": (x[:, :3] > 0).astype(np.float32),
        "positive": np.abs(x.sum(1, keepdims=True)).astype(np.float32) + 0.1,
        "signs": np.sign(x.sum(1, keepdims=True)).astype(np.float32),
    }[kind]
    return x, y, rng.choice([0.0, 0.5, 1.0, 4.0], ROWS).astype(np.float32) if weights else None


def images(kind: str = "classes", weights: bool = False) -> Any:
    """Return images of six by six pixels, and a label for each pixel."""
    rng = generator()
    x = rng.normal(size=(ROWS, 6, 6, 1)).astype(np.float32)
    inside = (x > 0.2).astype(np.int64)
    y = {"classes": inside[..., 0], "binary": inside.astype(np.float32), "same": x}[kind]
    return x, y, rng.choice([0.0, 0.5, 1.0, 4.0], ROWS).astype(np.float32) if weights else None


def series(steps: int = 5, weights: bool = False) -> Any:
    """Return two numbers and a class for each time step. Four steps are as many as a worker's rows in a batch."""
    rng = generator()
    x = rng.normal(size=(ROWS, steps, 2)).astype(np.float32)
    y = (x.sum(-1) > 0).astype(np.int64) + (x[..., 0] > 1)
    return x, y, rng.choice([0.0, 0.5, 1.0, 4.0], ROWS).astype(np.float32) if weights else None


def tokens(label: str = "steps") -> Any:
    """Return numbers of words, with 0 where there is no word."""
    rng = generator()
    lengths = rng.integers(1, 6, ROWS)
    x = rng.integers(1, 9, (ROWS, 5)) * (np.arange(5) < lengths[:, None])
    return (
        x.astype(np.int64),
        (x % 3).astype(np.int64) if label == "steps" else (lengths % 3).astype(np.int64),
        None,
    )


# --- models ----------------------------------------------------------------------------------------


def initial(seed: int = 1) -> Any:
    import keras

    return keras.initializers.RandomNormal(stddev=0.4, seed=seed)


def dense(
    units: int, activation: str | None, optimizer: Any, loss: Any, hidden: int = 5, **compiled: Any
) -> Any:
    import keras

    layer = functools.partial(keras.layers.Dense)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layer(hidden, "tanh", kernel_initializer=initial(1)),
            layer(units, activation, kernel_initializer=initial(2)),
        ]
    )
    model.compile(
        optimizer() if callable(optimizer) else optimizer, loss() if callable(loss) else loss, **compiled
    )
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
    regression(
        "AdamW(weight_decay, global_clipnorm)", optimizer_of("AdamW", weight_decay=0.1, global_clipnorm=0.3)
    ),
    regression("use_ema", sgd(use_ema=True, ema_momentum=0.9)),
    regression(
        "ema_overwrite_frequency",
        sgd(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
        servers="refused: workers would overwrite weights that others train",
        refused=("servers",),
    ),
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
    regression("loss_scale_factor", sgd(loss_scale_factor=8.0, clipnorm=0.5)),
    regression(
        "LossScaleOptimizer",
        lambda: __import__("keras").optimizers.LossScaleOptimizer(sgd(clipnorm=0.5)(), initial_scale=1024.0),
        servers="refused: workers would change each other's scale",
        refused=("servers",),
    ),
]


def own_optimizer() -> Any:
    """Return a user-defined optimizer with a slot variable; its step is the tanh of gradient and previous gradient."""
    import keras

    class Signs(keras.optimizers.Optimizer):
        def build(self, variables: Any) -> None:
            if not self.built:
                super().build(variables)
                self.before = self.add_optimizer_variables(variables, "before")

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            before = self.before[self._get_variable_index(variable)]
            rate = keras.ops.cast(learning_rate, variable.dtype)
            step = keras.ops.tanh(keras.ops.cast(gradient, variable.dtype) + 0.5 * before)
            self.assign(before, gradient)
            self.assign_sub(variable, rate * step)

    return Signs(0.05, clipnorm=0.5)


def clipping_optimizer(in_pairs: bool) -> Any:
    """Return a user's optimizer that shortens all gradients to one length in `apply`, or in `apply_gradients`."""
    import keras

    def shortened(gradients: Any) -> Any:
        length = keras.ops.sqrt(sum(keras.ops.sum(keras.ops.square(each)) for each in gradients))
        return [0.3 * each / length for each in gradients]

    class Shortening(keras.optimizers.Adam):
        pass

    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        super(Shortening, self).apply(shortened(grads), trainable_variables)

    def apply_gradients(self: Any, grads_and_vars: Any) -> Any:
        grads, variables = zip(*grads_and_vars, strict=True)
        return super(Shortening, self).apply_gradients(zip(shortened(grads), variables, strict=True))

    if in_pairs:
        Shortening.apply_gradients = apply_gradients
    else:
        Shortening.apply = apply
    # The second moment is small, so that a step depends on the lengths of gradients, too.
    return Shortening(0.01, epsilon=1.0)


BY_WORKERS = {
    "servers": "refused: workers would add to each other's gradients",
    "refused": ("servers",),
}
TOGETHER = [
    regression(
        "Adam(use_ema, global_clipnorm)", optimizer_of("Adam", use_ema=True, global_clipnorm=0.3), slow=True
    ),
    regression(
        "AdamW(gradient_accumulation_steps, use_ema, clipvalue)",
        optimizer_of("AdamW", gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.8, clipvalue=0.1),
        slow=True,
        **BY_WORKERS,
    ),
    regression(
        "SGD(momentum, gradient_accumulation_steps, ema_overwrite_frequency)",
        sgd(momentum=0.9, gradient_accumulation_steps=2, use_ema=True, ema_overwrite_frequency=2),
        slow=True,
        **BY_WORKERS,
    ),
    regression(
        "RMSprop(centered, momentum)", optimizer_of("RMSprop", centered=True, momentum=0.5), slow=True
    ),
    regression("Adam(amsgrad, clipvalue)", optimizer_of("Adam", amsgrad=True, clipvalue=0.1), slow=True),
    regression("a user-defined optimizer", own_optimizer),
    regression("a user-defined optimizer that clips in `apply`", lambda: clipping_optimizer(in_pairs=False)),
    regression(
        "a user-defined optimizer that clips in `apply_gradients`",
        lambda: clipping_optimizer(in_pairs=True),
        slow=True,
    ),
    regression(
        "LossScaleOptimizer around gradient accumulation",
        lambda: __import__("keras").optimizers.LossScaleOptimizer(
            sgd(gradient_accumulation_steps=2, clipnorm=0.5)(), initial_scale=64.0
        ),
        servers="refused: workers would change each other's scale",
        refused=("servers",),
        slow=True,
    ),
]


# --- losses ----------------------------------------------------------------------------------------


def loss_of(name: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import keras

        return getattr(keras.losses, name)(**options)

    return make


def dice(truth: Any, guess: Any) -> Any:
    """A loss with one number for the whole batch."""
    import keras

    truth = keras.ops.cast(truth, guess.dtype)
    both = keras.ops.sum(truth * guess)
    return 1 - (2 * both + 1) / (keras.ops.sum(truth) + keras.ops.sum(guess) + 1)


def mean_and_dice(truth: Any, guess: Any) -> Any:
    """The sum of a loss for each row and a loss for the whole batch."""
    import keras

    return keras.losses.binary_crossentropy(truth, guess) + keras.losses.Dice()(truth, guess)


def among_others(truth: Any, guess: Any) -> Any:
    """A loss with a value for each row that depends on the other rows of the batch."""
    import keras

    likeness = keras.ops.matmul(guess, keras.ops.transpose(guess))
    own = keras.ops.arange(keras.ops.shape(guess)[0])
    return keras.losses.sparse_categorical_crossentropy(own, likeness, from_logits=True)


def of_table(
    name: str, kind: str, units: int, activation: str | None, loss: Any, weighs: bool = False, **more: Any
) -> Feature:
    compiled = more.pop("compiled", {})
    return Feature(
        more.pop("group", "losses"),
        name,
        lambda: dense(units, activation, sgd(), loss, **compiled),
        lambda: table_rows(kind, weighs),
        **more,
    )


def of_pixels(
    name: str, kind: str, loss: Any, metrics: Callable[[], Any] = list, weighs: bool = False, **more: Any
) -> Feature:
    def build() -> Any:
        import keras

        units, activation = {"classes": (2, "softmax"), "binary": (1, "sigmoid"), "same": (1, None)}[kind]
        layer = keras.layers.Conv2D(
            units, 3, padding="same", activation=activation, kernel_initializer=initial()
        )
        model = keras.Sequential([keras.Input((6, 6, 1)), layer])
        made = {"weighted_metrics": metrics()} if weighs else {"metrics": metrics()}
        model.compile(sgd(0.5)(), loss() if callable(loss) and loss is not dice else loss, **made)
        return model

    return Feature(
        more.pop("group", "outputs of several values"), name, build, lambda: images(kind, weighs), **more
    )


def of_steps(
    name: str, metrics: Callable[[], Any] = list, steps: int = 5, weighs: bool = False, **more: Any
) -> Feature:
    def build() -> Any:
        import keras

        layers = [keras.Input((steps, 2)), keras.layers.Dense(3, "softmax", kernel_initializer=initial())]
        model = keras.Sequential(layers)
        made = {"weighted_metrics": metrics()} if weighs else {"metrics": metrics()}
        model.compile(sgd(0.5)(), "sparse_categorical_crossentropy", **made)
        return model

    return Feature("outputs of several values", name, build, lambda: series(steps, weighs), **more)


def masked(name: str, label: str, weighted: bool = False, **more: Any) -> Feature:
    def build() -> Any:
        import keras

        uniform = keras.initializers.RandomNormal(stddev=0.5, seed=4)
        layers = [
            keras.Input((5,), dtype="int64"),
            keras.layers.Embedding(9, 3, mask_zero=True, embeddings_initializer=uniform),
            keras.layers.SimpleRNN(
                4,
                return_sequences=label == "steps",
                kernel_initializer=initial(5),
                recurrent_initializer=initial(6),
            ),
            keras.layers.Dense(3, "softmax", kernel_initializer=initial(7)),
        ]
        model = keras.Sequential(layers)
        made = {"weighted_metrics": ["accuracy"]} if weighted else {"metrics": ["accuracy"]}
        model.compile(sgd(0.5)(), "sparse_categorical_crossentropy", **made)
        return model

    return Feature("outputs of several values", name, build, lambda: tokens(label), **more)


def metric_of(name: str, *args: Any, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import keras

        return getattr(keras.metrics, name)(*args, **options)

    return make


def made(*metrics: Callable[[], Any]) -> Callable[[], list[Any]]:
    return lambda: [metric() for metric in metrics]


WEIGHED = ("MeanAbsoluteError", "BinaryCrossentropy", "SparseCategoricalCrossentropy", "Huber")
QUICK_LOSSES = ("BinaryCrossentropy", "SparseCategoricalCrossentropy", "Huber", "Dice", "Circle")
LOSSES = [
    of_table(
        f"{name}, {kind}",
        kind,
        units,
        activation,
        loss_of(name),
        weighs=name in WEIGHED,
        slow=name not in QUICK_LOSSES,
    )
    for name, kind, units, activation in [
        ("MeanAbsoluteError", "number", 1, None),
        ("MeanSquaredLogarithmicError", "positive", 1, "softplus"),
        ("MeanAbsolutePercentageError", "positive", 1, "softplus"),
        ("Huber", "numbers", 3, None),
        ("LogCosh", "number", 1, None),
        ("CosineSimilarity", "numbers", 3, None),
        ("Poisson", "positive", 1, "softplus"),
        ("KLDivergence", "one-hot", 3, "softmax"),
        ("BinaryCrossentropy", "multi-hot", 3, "sigmoid"),
        ("BinaryFocalCrossentropy", "binary", 1, "sigmoid"),
        ("CategoricalCrossentropy", "one-hot", 3, "softmax"),
        ("CategoricalFocalCrossentropy", "one-hot", 3, "softmax"),
        ("SparseCategoricalCrossentropy", "classes", 3, "softmax"),
        ("CategoricalHinge", "one-hot", 3, None),
        ("Hinge", "signs", 1, "tanh"),
        ("SquaredHinge", "signs", 1, "tanh"),
        ("Tversky", "multi-hot", 3, "sigmoid"),
        ("Dice", "multi-hot", 3, "sigmoid"),
        ("Circle", "classes", 3, None),
        ("CategoricalGeneralizedCrossEntropy", "classes", 3, "softmax"),
    ]
]
LOSSES += [
    of_table(
        f"reduction {reduction}{' with weights' if weighs else ''}",
        "number",
        1,
        None,
        loss_of("MeanSquaredError", reduction=reduction),
        weighs=weighs,
        slow=not weighs,
    )
    for reduction in ("sum_over_batch_size", "mean_with_sample_weight", "sum", "none")
    for weighs in (False, True)
]
LOSSES += [
    of_table("a function of the whole batch", "binary", 1, "sigmoid", lambda: dice),
    of_table(
        "a function of the whole batch, with weights",
        "binary",
        1,
        "sigmoid",
        lambda: dice,
        weighs=True,
    ),
]
LOSSES += [
    of_table("a function that adds other losses", "binary", 1, "sigmoid", lambda: mean_and_dice),
    of_table("a function that compares rows", "numbers", 3, None, lambda: among_others, slow=True),
    of_table(
        "a function that compares rows, with weights",
        "numbers",
        3,
        None,
        lambda: among_others,
        weighs=True,
        slow=True,
    ),
]


def squares(truth: Any, guess: Any) -> Any:
    """A loss with a value for each value of the output, instead of each row."""
    return (truth - guess) ** 2


class Halves:
    """Returns a user-defined loss when it is called."""

    def __call__(self) -> Any:
        import keras

        class Own(keras.losses.Loss):
            def call(self, truth: Any, guess: Any) -> Any:
                return keras.ops.mean(keras.ops.abs(truth - guess), axis=-1) / 2

        return Own()


LOSSES += [
    of_table("a function of each value, with weights", "number", 1, None, lambda: squares, weighs=True),
    of_table("a user-defined Loss, with weights", "numbers", 3, None, Halves(), weighs=True, slow=True),
    of_table("Dice of each row", "multi-hot", 3, "sigmoid", loss_of("Dice", axis=(1,)), slow=True),
    of_table(
        "label_smoothing, from_logits",
        "one-hot",
        3,
        None,
        loss_of("CategoricalCrossentropy", from_logits=True, label_smoothing=0.2),
        slow=True,
    ),
]


def without_class(index: int) -> Callable[[], Any]:
    return loss_of("SparseCategoricalCrossentropy", ignore_class=index)


def transcribed() -> Any:
    """Return a model that maps time steps to a shorter text at unknown positions (CTC)."""
    import keras

    layers = [keras.Input((5, 2)), keras.layers.Dense(4, "softmax", kernel_initializer=initial())]
    model = keras.Sequential(layers)
    model.compile(sgd(0.1)(), keras.losses.CTC())
    return model


def texts_of_series() -> Any:
    x, y, _ = series()
    return x, y[:, :2] + 1, None


OUTPUTS = [
    of_pixels(
        "segmentation, ignore_class",
        "classes",
        without_class(0),
        made(metric_of("MeanIoU", 2, ignore_class=0, sparse_y_pred=False)),
        of_batches=True,
    ),
    of_pixels(
        "segmentation, ignore_class, weighted",
        "classes",
        without_class(1),
        made(metric_of("MeanIoU", 2, ignore_class=1, sparse_y_pred=False)),
        weighs=True,
        of_batches=True,
        slow=True,
    ),
    of_pixels(
        "pixels, reduction none",
        "same",
        loss_of("MeanSquaredError", reduction="none"),
        weighs=True,
        slow=True,
    ),
    Feature("outputs of several values", "CTC", transcribed, texts_of_series, slow=True),
    of_pixels(
        "segmentation, classes",
        "classes",
        "sparse_categorical_crossentropy",
        lambda: ["accuracy", *made(metric_of("MeanIoU", 2, sparse_y_pred=False))()],
    ),
    of_pixels(
        "segmentation, binary",
        "binary",
        "binary_crossentropy",
        made(metric_of("BinaryIoU"), metric_of("Precision"), metric_of("AUC"), metric_of("BinaryAccuracy")),
    ),
    of_pixels(
        "segmentation, weighted",
        "binary",
        "binary_crossentropy",
        made(metric_of("BinaryIoU"), metric_of("Recall"), metric_of("AUC"), metric_of("BinaryAccuracy")),
        weighs=True,
    ),
    of_pixels(
        "segmentation, classes, weighted",
        "classes",
        "sparse_categorical_crossentropy",
        made(metric_of("MeanIoU", 2, sparse_y_pred=False), metric_of("SparseCategoricalAccuracy")),
        weighs=True,
    ),
    of_pixels("segmentation, Dice of the batch", "binary", loss_of("Dice")),
    of_pixels("image autoencoder", "same", "mse", lambda: ["mae"]),
    of_pixels(
        "pixels, reduction mean_with_sample_weight",
        "same",
        loss_of("MeanSquaredError", reduction="mean_with_sample_weight"),
        weighs=True,
    ),
    of_pixels("pixels, reduction sum", "same", loss_of("MeanSquaredError", reduction="sum"), slow=True),
    of_steps("tagging", lambda: ["accuracy"]),
    of_steps("tagging, as many steps as rows", lambda: ["accuracy"], steps=4, weighs=True),
    of_steps("tagging, weighted", lambda: ["accuracy"], weighs=True),
    masked("mask of steps", "steps"),
    masked("mask of steps, weighted metrics", "steps", weighted=True),
    masked("mask that a layer consumes", "rows"),
]

# --- metrics ---------------------------------------------------------------------------------------


def classes_metrics() -> list[Any]:
    import keras

    m = keras.metrics

    class Largest(m.Metric):
        """A user-defined metric."""

        def __init__(self, name: str = "largest"):
            super().__init__(name=name)
            self.count = self.add_weight(name="count", initializer="zeros")

        def update_state(self, truth: Any, guess: Any, sample_weight: Any = None) -> None:
            value = keras.ops.cast(guess[:, 0] > 0.3, "float32")
            self.count.assign_add(keras.ops.sum(value))

        def result(self) -> Any:
            return self.count

    def near(truth: Any, guess: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(truth - guess), axis=-1)

    return [
        "accuracy",
        m.F1Score(average="macro", name="f1"),
        m.F1Score(average=None, name="f1_each"),
        m.FBetaScore(average="micro", name="fbeta"),
        m.AUC(multi_label=True, num_labels=3, name="auc_each"),
        m.AUC(name="auc"),
        m.AUC(curve="PR", name="auc_pr"),
        m.Precision(class_id=1, name="precision_1"),
        m.Recall(top_k=2, name="recall_2"),
        m.TopKCategoricalAccuracy(2, name="top2"),
        m.R2Score(name="r2"),
        m.SensitivityAtSpecificity(0.5, name="sens"),
        m.OneHotMeanIoU(3, name="iou"),
        m.OneHotIoU(3, [0, 1]),
        m.CosineSimilarity(name="cosine"),
        m.RootMeanSquaredError(name="rmse"),
        m.CategoricalCrossentropy(name="cce"),
        m.KLDivergence(),
        m.FalseNegatives(),
        m.TruePositives([0.3, 0.6], name="tp"),
        m.PrecisionAtRecall(0.4),
        m.CategoricalAccuracy(),
        m.ConcordanceCorrelation(),
        m.PearsonCorrelation(),
        Largest(),
        near,
    ]


def weighted_metrics() -> list[Any]:
    import keras

    m = keras.metrics
    return [
        "accuracy",
        m.F1Score(average="macro", name="f1"),
        m.AUC(multi_label=True, num_labels=3, name="auc_each"),
        m.AUC(name="auc"),
        m.Precision(class_id=1),
        m.R2Score(name="r2"),
        m.OneHotMeanIoU(3, name="iou"),
        m.CosineSimilarity(name="cosine"),
        m.RootMeanSquaredError(name="rmse"),
    ]


def regression_metrics() -> list[Any]:
    import keras

    m = keras.metrics
    return [
        "mae",
        "mse",
        m.R2Score(),
        m.RootMeanSquaredError(),
        m.MeanAbsolutePercentageError(),
        m.MeanSquaredLogarithmicError(),
        m.LogCoshError(),
        m.Poisson(),
        m.MeanMetricWrapper(lambda a, b: a - b, name="bias"),
    ]


def with_metrics(
    name: str, kind: str, units: int, activation: Any, loss: str, make: Any, **more: Any
) -> Feature:
    weighs = more.pop("weighs", False)

    def build() -> Any:
        compiled = {"weighted_metrics": make()} if weighs else {"metrics": make()}
        return dense(units, activation, sgd(), loss, **compiled)

    return Feature("metrics", name, build, lambda: table_rows(kind, weighs), **more)


def sparse_metrics() -> list[Any]:
    import keras

    m = keras.metrics
    return [
        "accuracy",
        m.SparseCategoricalCrossentropy(name="sce"),
        m.SparseTopKCategoricalAccuracy(2, name="top2"),
        m.MeanIoU(3, sparse_y_pred=False, name="iou"),
    ]


def binary_metrics() -> list[Any]:
    import keras

    m = keras.metrics
    return [
        "accuracy",
        m.BinaryCrossentropy(name="bce"),
        m.AUC(from_logits=False),
        m.Precision(),
        m.Recall(),
        m.BinaryIoU(),
        m.SpecificityAtSensitivity(0.5),
        m.RecallAtPrecision(0.5),
        m.TrueNegatives(),
        m.FalsePositives(),
        m.Hinge(),
        m.F1Score(threshold=0.5, average="micro"),
    ]


def one_metric(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: dense(1, None, sgd(), "mse", metrics=[make()])


def kept_state(keep: str) -> Any:
    """Return a user-defined metric.

    Args:
        keep: ``largest``: its state is the largest error. ``batches``: it counts batches. ``last``: its state is the
            mean error of the last batch.
    """
    import keras

    class Kept(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name=keep)
            self.state = self.add_weight(name="state", initializer="zeros")

        def update_state(self, truth: Any, guess: Any, sample_weight: Any = None) -> None:
            errors = keras.ops.abs(truth - guess)
            self.state.assign(
                {
                    "largest": keras.ops.maximum(self.state, keras.ops.max(errors)),
                    "batches": self.state + 1.0,
                    "last": keras.ops.mean(errors),
                }[keep]
            )

        def result(self) -> Any:
            return self.state

    return Kept()


def own_metrics(result: str = "of_inputs", weighs: bool = False) -> Any:
    """Return a model with the `compute_metrics` of Keras's documentation.

    Args:
        result: the name of the additional result.
        weighs: whether the other metric is weighted.
    """
    import keras

    class OfInputs(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="of_inputs")
            self.total = self.add_weight(name="total", initializer="zeros")
            self.rows = self.add_weight(name="rows", initializer="zeros")

        def update_state(self, x: Any, y: Any, guess: Any, sample_weight: Any = None) -> None:
            values = keras.ops.sum(keras.ops.abs(x), -1) * keras.ops.abs(y - guess)[:, 0]
            self.total.assign_add(keras.ops.sum(values))
            self.rows.assign_add(keras.ops.cast(keras.ops.shape(values)[0], "float32"))

        def result(self) -> Any:
            return self.total / self.rows

    class Measured(keras.Sequential):
        def __init__(self, layers: Any) -> None:
            super().__init__(layers)
            self.of_inputs = OfInputs()

        def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            results = super().compute_metrics(x, y, y_pred, sample_weight)
            self.of_inputs.update_state(x, y, y_pred, sample_weight)
            results[result] = self.of_inputs.result()
            return results

    model = Measured([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer=initial(1))])
    model.compile(sgd()(), "mse", **{"weighted_metrics" if weighs else "metrics": ["mae"]})
    return model


def number_of_a_batch() -> Callable[..., Any]:
    import keras

    def spread(truth: Any, guess: Any) -> Any:
        return keras.ops.max(guess) - keras.ops.min(guess) + keras.ops.mean(truth)

    return spread


OF_BATCHES = "equal; the result of `evaluate` depends on each worker's own batches"
METRICS = [
    Feature("metrics", "compute_metrics", own_metrics, table_rows, epochs=2),
    Feature(
        "metrics",
        "compute_metrics, weighted",
        lambda: own_metrics(weighs=True),
        lambda: table_rows(weights=True),
        epochs=2,
        slow=True,
    ),
    Feature(
        "metrics",
        "compute_metrics whose result has another name than its metric",
        lambda: own_metrics("again"),
        table_rows,
        epochs=2,
        synchronous="equal for metrics; `evaluate` returns only these, by their names",
        servers="equal for metrics; for other values, the mean over steps",
        compare=("weights",),
        not_compared=("servers",),
        slow=True,
    ),
    Feature(
        "metrics",
        "a user-defined metric: the largest error",
        one_metric(lambda: kept_state("largest")),
        table_rows,
    ),
    Feature(
        "metrics",
        "a user-defined metric: the number of batches",
        one_metric(lambda: kept_state("batches")),
        table_rows,
        synchronous=OF_BATCHES,
        compare=("weights", "history"),
        slow=True,
    ),
    Feature(
        "metrics",
        "a function that returns one number for the batch",
        one_metric(number_of_a_batch),
        table_rows,
        synchronous=OF_BATCHES,
        compare=("weights", "history"),
        slow=True,
    ),
    Feature(
        "metrics",
        "a user-defined metric: a value of the last batch",
        one_metric(lambda: kept_state("last")),
        table_rows,
        synchronous="refused with several workers: their states cannot be merged",
        servers="refused: states of steps cannot be merged",
        refused=("several", "servers"),
        slow=True,
    ),
    with_metrics(
        "metrics of one-hot classes", "one-hot", 3, "softmax", "categorical_crossentropy", classes_metrics
    ),
    with_metrics(
        "weighted metrics", "one-hot", 3, "softmax", "categorical_crossentropy", weighted_metrics, weighs=True
    ),
    with_metrics(
        "weighted metrics without weights",
        "classes",
        3,
        "softmax",
        "sparse_categorical_crossentropy",
        sparse_metrics,
    ),
    with_metrics("metrics of binary labels", "binary", 1, "sigmoid", "binary_crossentropy", binary_metrics),
    with_metrics("metrics of numbers", "positive", 1, "softplus", "mse", regression_metrics),
]

# --- weights ---------------------------------------------------------------------------------------

WEIGHTS = [
    of_table(
        "class_weight of integer classes",
        "classes",
        3,
        "softmax",
        "sparse_categorical_crossentropy",
        group="weights",
        class_weights={0: 1.0, 1: 2.0, 2: 0.0},
        compiled={"weighted_metrics": ["accuracy"], "metrics": ["accuracy"]},
    ),
    of_table(
        "class_weight of one-hot classes",
        "one-hot",
        3,
        "softmax",
        "categorical_crossentropy",
        group="weights",
        class_weights={0: 1.0, 2: 5.0},
        compiled={"weighted_metrics": ["accuracy"]},
    ),
    of_table(
        "class_weight of several labels",
        "multi-hot",
        3,
        "sigmoid",
        "binary_crossentropy",
        group="weights",
        class_weights={0: 1.0, 1: 2.0, 2: 5.0},
    ),
    of_table(
        "sample_weight",
        "number",
        1,
        None,
        "mse",
        weighs=True,
        group="weights",
        compiled={"weighted_metrics": ["mae"], "metrics": ["mae"]},
    ),
]
WEIGHTS += [
    of_table(
        "class_weight and sample_weight, with validation",
        "classes",
        3,
        "softmax",
        "sparse_categorical_crossentropy",
        weighs=True,
        group="weights",
        class_weights={0: 0.5, 1: 2.0},
        compiled={"weighted_metrics": ["accuracy"], "metrics": ["accuracy"]},
        validates=True,
        epochs=2,
    ),
    of_table(
        "class_weight of binary labels",
        "binary",
        1,
        "sigmoid",
        "binary_crossentropy",
        group="weights",
        class_weights={0: 1.0, 1: 3.0},
        slow=True,
    ),
    Feature(
        "weights",
        "sample_weight with string features",
        lambda: of_strings(),
        lambda: (*words()[:2], table_rows(weights=True)[2]),
        needs_graph=True,
        slow=True,
    ),
]
# --- all optimizers, schedules ----------------------------------------------------------------------

OPTIMIZERS = [
    *(
        regression(
            name, optimizer_of(name, clipnorm=1.0, weight_decay=0.01), slow=name not in ("Adam", "Lion")
        )
        for name in (
            "Adadelta",
            "Adafactor",
            "Adagrad",
            "Adam",
            "Adamax",
            "AdamW",
            "Ftrl",
            "Lamb",
            "Lion",
            "Nadam",
            "RMSprop",
        )
    ),
    regression("SGD(momentum, nesterov)", optimizer_of("SGD", momentum=0.9, nesterov=True), slow=True),
    regression("Muon", optimizer_of("Muon", exclude_layers=["dense"]), slow=True),
]


def schedule(name: str, *args: Any, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        import keras

        return keras.optimizers.Adam(
            getattr(keras.optimizers.schedules, name)(*args, **options), clipnorm=1.0
        )

    return make


SCHEDULES = [
    regression(
        "CosineDecay", schedule("CosineDecay", 0.05, 4, warmup_target=0.1, warmup_steps=2), "schedules"
    ),
    regression("ExponentialDecay", schedule("ExponentialDecay", 0.05, 2, 0.5), "schedules", slow=True),
    regression(
        "PiecewiseConstantDecay", schedule("PiecewiseConstantDecay", [1, 2], [0.1, 0.05, 0.01]), "schedules"
    ),
    regression("PolynomialDecay", schedule("PolynomialDecay", 0.05, 3, cycle=True), "schedules", slow=True),
    regression("InverseTimeDecay", schedule("InverseTimeDecay", 0.05, 3, 0.5), "schedules", slow=True),
    regression("CosineDecayRestarts", schedule("CosineDecayRestarts", 0.05, 2), "schedules", slow=True),
]

# --- models ----------------------------------------------------------------------------------------


def two_columns(weights: bool = False) -> Any:
    """Return two features, and two labels with the names of the outputs."""
    x, y, given = table_rows("classes", weights)
    return {"left": x[:, :2], "right": x[:, 2:]}, {"kind": y, "size": x.sum(1, keepdims=True)}, given


def of_model(
    name: str, build: Callable[[], Any], data: Callable[[], Any] = table_rows, **more: Any
) -> Feature:
    return Feature("models", name, build, data, **more)


def two_outputs(loss_weights: Any = None, weighted: bool = False) -> Any:
    import keras

    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    hidden = keras.layers.Concatenate()([left, right])
    kind = keras.layers.Dense(3, "softmax", name="kind", kernel_initializer=initial(1))(hidden)
    size = keras.layers.Dense(1, name="size", kernel_initializer=initial(2))(hidden)
    model = keras.Model({"left": left, "right": right}, {"kind": kind, "size": size})
    metrics = {"kind": ["accuracy"], "size": ["mae"]}
    model.compile(
        sgd(clipnorm=1.0)(),
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        loss_weights=loss_weights,
        **({"weighted_metrics": metrics} if weighted else {"metrics": metrics}),
    )
    return model


def pixels_and_class() -> Any:
    import keras

    inputs = keras.Input((6, 6, 1))
    mask = keras.layers.Conv2D(
        1, 3, padding="same", activation="sigmoid", name="mask", kernel_initializer=initial(1)
    )
    flat = keras.layers.GlobalAveragePooling2D()(inputs)
    mean = keras.layers.Dense(1, name="mean", kernel_initializer=initial(2))(flat)
    model = keras.Model(inputs, {"mask": mask(inputs), "mean": mean})
    model.compile(
        sgd()(),
        {"mask": "binary_crossentropy", "mean": "mse"},
        metrics={"mask": [keras.metrics.BinaryIoU(name="iou")], "mean": ["mae"]},
    )
    return model


def pixels_and_class_data() -> Any:
    x, y, _ = images("binary")
    return x, {"mask": y, "mean": x.mean((1, 2))}, None


def regularised() -> Any:
    import keras

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(
        5,
        "tanh",
        kernel_regularizer="l2",
        kernel_initializer=initial(1),
        kernel_constraint=keras.constraints.MaxNorm(0.5),
    )(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=initial(2))(hidden))
    model.compile(sgd(0.1)(), "mse")
    return model


def frozen() -> Any:
    model = dense(1, None, sgd(clipnorm=0.1), "mse")
    model.layers[0].trainable = False
    model.compile(sgd(clipnorm=0.1)(), "mse")
    return model


def own_step() -> Any:
    import keras
    import tensorflow as tf

    class Own(keras.Model):
        """A model with its own training step, which uses Keras's loss."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.layers.Dense(1, kernel_initializer=initial(1))

        def call(self, x: Any) -> Any:
            return self.inner(x)

        def train_step(self, data: Any) -> Any:
            x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                guess = self(x)
                loss = self.compute_loss(x, y, guess, weight)
            weights = self.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return self.compute_metrics(x, y, guess, weight)

    model = Own()
    model.compile(sgd(clipnorm=0.5)(), "mse", metrics=["mae"])
    return model


def own_loss() -> Any:
    import keras

    class Own(keras.Model):
        """A model with its own `compute_loss`."""

        def compute_loss(
            self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **more: Any
        ) -> Any:
            return 2 * super().compute_loss(x, y, y_pred, sample_weight, **more)

    inputs = keras.Input((4,))
    model = Own(inputs, keras.layers.Dense(1, kernel_initializer=initial(1))(inputs))
    model.compile(sgd(clipnorm=0.5)(), "mse")
    return model


def guided_step(data: str = "weights") -> Callable[[], Any]:
    """Return a function that makes a model with the training step of Keras's guides.

    Args:
        data: ``weights``: the step uses the weights of rows. ``none``: it ignores them. ``own mean``: it computes the
            mean itself, and has its own metrics.
    """

    def build() -> Any:
        import keras
        import tensorflow as tf

        class Guided(keras.Model):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                if data == "own mean":
                    self.measured = keras.metrics.Mean(name="measured")
                    self.error = keras.metrics.MeanAbsoluteError(name="error")

            @property
            def metrics(self) -> Any:
                return [self.measured, self.error] if data == "own mean" else super().metrics

            def train_step(self, batch: Any) -> Any:
                x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
                weight = weight if data == "weights" else None
                with tf.GradientTape() as tape:
                    guess = self(x, training=True)
                    if data == "own mean":
                        squared = keras.losses.mean_squared_error(y, guess)
                        loss = keras.ops.mean(squared) + 0.01 * keras.ops.mean(keras.ops.abs(guess))
                    else:
                        loss = self.compute_loss(y=y, y_pred=guess, sample_weight=weight)
                weights = self.trainable_weights
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                if data == "own mean":
                    self.measured.update_state(loss)
                    self.error.update_state(y, guess)
                    return {metric.name: metric.result() for metric in self.metrics}
                for metric in self.metrics:
                    if metric.name == "loss":
                        metric.update_state(loss)
                    else:
                        metric.update_state(y, guess, sample_weight=weight)
                return {metric.name: metric.result() for metric in self.metrics}

            def test_step(self, batch: Any) -> Any:
                if data != "own mean":
                    return super().test_step(batch)
                x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
                self.error.update_state(y, self(x, training=False))
                return {"error": self.error.result()}

        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(5, "tanh", kernel_regularizer="l2", kernel_initializer=initial(1))(inputs)
        outputs = keras.layers.Dense(1, kernel_initializer=initial(2))(hidden)
        model = Guided(inputs=inputs, outputs=outputs)
        model.compile(sgd(0.1, clipnorm=0.5)(), "mse", metrics=["mae"])
        return model

    return build


def returned_numbers() -> Any:
    """Return a model whose step returns its loss and a metric under another name."""
    import keras
    import tensorflow as tf

    class Returning(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.error = keras.metrics.MeanAbsoluteError(name="error")

        def train_step(self, batch: Any) -> Any:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            with tf.GradientTape() as tape:
                guess = self(x, training=True)
                loss = keras.ops.mean(keras.ops.square(y - guess))
            weights = self.trainable_weights
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            self.error.update_state(y, guess)
            return {"seen_loss": loss, "wrong": self.error.result()}

    inputs = keras.Input((4,))
    model = Returning(inputs=inputs, outputs=keras.layers.Dense(1, kernel_initializer=initial(1))(inputs))
    model.compile(sgd(0.1)(), "mse")
    return model


def step_that_changes_gradients(how: str) -> Callable[[], Any]:
    """Return a function that makes a model whose step changes its gradients before an optimizer gets them.

    Args:
        how: ``clip``: it clips them by their global norm. ``sign``: it keeps only their signs. ``apart``: a
            `tf.function` of its own takes them, and they are not changed. ``ahead``: they are those after a step of
            gradient descent, which the step makes by itself.
    """

    def build() -> Any:
        import keras
        import tensorflow as tf

        class Changing(keras.Model):
            def gradients_of(self, x: Any, y: Any) -> Any:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(
                        keras.losses.sparse_categorical_crossentropy(y, self(x, training=True))
                    )
                return loss, tape.gradient(loss, self.trainable_weights)

            @tf.function
            def gradients_apart(self, x: Any, y: Any) -> Any:
                return self.gradients_of(x, y)

            def gradients_ahead(self, x: Any, y: Any) -> Any:
                with tf.GradientTape() as tape:
                    loss, gradients = self.gradients_of(x, y)
                    ahead = [
                        (variable, tf.convert_to_tensor(variable) - 0.3 * tf.convert_to_tensor(gradient))
                        for variable, gradient in zip(self.trainable_weights, gradients, strict=True)
                    ]
                    with keras.StatelessScope(state_mapping=ahead):
                        guess = self(x, training=True)
                    later = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, guess))
                return loss, tape.gradient(later, self.trainable_weights)

            def train_step(self, batch: Any) -> Any:
                x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
                take = {"apart": self.gradients_apart, "ahead": self.gradients_ahead}.get(
                    how, self.gradients_of
                )
                loss, gradients = take(x, y)
                if how == "clip":
                    gradients, _ = tf.clip_by_global_norm(gradients, 0.02)
                if how == "sign":
                    gradients = [tf.sign(tf.convert_to_tensor(gradient)) for gradient in gradients]
                self.optimizer.apply(gradients, self.trainable_weights)
                for metric in self.metrics:
                    metric.update_state(loss)
                return {metric.name: metric.result() for metric in self.metrics}

        inputs = keras.Input((5,), dtype="int64")
        table = keras.initializers.RandomNormal(stddev=0.5, seed=4)
        words = keras.layers.Flatten()(keras.layers.Embedding(9, 3, embeddings_initializer=table)(inputs))
        model = Changing(inputs, keras.layers.Dense(3, "softmax", kernel_initializer=initial(7))(words))
        model.compile(sgd(0.5)(), "sparse_categorical_crossentropy")
        return model

    return build


def step_with_sums() -> Any:
    """Return a model whose step and test step use a loss of Keras that adds up its values."""
    import keras
    import tensorflow as tf

    class Adding(keras.Model):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.added = keras.losses.MeanSquaredError(reduction="sum")
            self.measured = keras.metrics.Mean(name="measured")

        @property
        def metrics(self) -> Any:
            return [self.measured]

        def train_step(self, batch: Any) -> Any:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            with tf.GradientTape() as tape:
                loss = self.added(y, self(x, training=True)) + 0.1 * tf.add_n(
                    [tf.reduce_sum(tf.square(each)) for each in self.trainable_variables]
                )
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            self.measured.update_state(loss)
            return {"measured": self.measured.result()}

        def test_step(self, batch: Any) -> Any:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            self.measured.update_state(self.added(y, self(x, training=False)))
            return {"measured": self.measured.result()}

    inputs = keras.Input((4,))
    model = Adding(inputs, keras.layers.Dense(1, kernel_initializer=initial(2))(inputs))
    model.compile(sgd(0.005)())
    return model


def accumulating_step() -> Any:
    """Return a model whose step adds up gradients by itself, and applies them in every second step."""
    import keras
    import tensorflow as tf

    class Accumulating(keras.Model):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.number = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)
            self.sums = [
                self.add_weight(shape=each.shape, initializer="zeros", trainable=False)
                for each in self.trainable_variables
            ]

        def train_step(self, batch: Any) -> Any:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(y - self(x, training=True)))
            weights = self.trainable_variables
            for total, gradient in zip(self.sums, tape.gradient(loss, weights), strict=True):
                total.assign_add(gradient)
            self.number.assign_add(1)
            tf.cond(tf.equal(self.number % 2, 0), self.use_sums, lambda: None)
            for metric in self.metrics:
                metric.update_state(loss)
            return {metric.name: metric.result() for metric in self.metrics}

        def use_sums(self) -> None:
            pairs = zip(self.sums, self.trainable_variables, strict=True)
            self.optimizer.apply_gradients([(total / 2.0, variable) for total, variable in pairs])
            for total in self.sums:
                total.assign(tf.zeros_like(total))

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "tanh", kernel_initializer=initial(1))(inputs)
    model = Accumulating(inputs, keras.layers.Dense(1, kernel_initializer=initial(2))(hidden))
    model.compile(sgd(0.05, momentum=0.9)(), "mse")
    return model


def two_optimizers() -> Any:
    """Return a model of two networks that compete; its step calls losses of Keras, as in Keras's GANs."""
    import keras
    import tensorflow as tf

    class Rivals(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.maker = keras.layers.Dense(1, kernel_initializer=initial(1))
            self.judge = keras.layers.Dense(1, kernel_initializer=initial(2))
            self.of_maker = keras.metrics.Mean(name="maker_loss")
            self.of_judge = keras.metrics.Mean(name="judge_loss")

        def compile(self, optimizer: Any, judge_optimizer: Any, loss_fn: Any) -> None:
            super().compile(optimizer)
            self.judge_optimizer, self.loss_fn = judge_optimizer, loss_fn

        @property
        def metrics(self) -> Any:
            return [self.of_maker, self.of_judge]

        def call(self, x: Any) -> Any:
            return self.judge(self.maker(x))

        def train_step(self, batch: Any) -> Any:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            with tf.GradientTape() as tape:
                said = self.judge(keras.ops.concatenate([self.maker(x), y], axis=0))
                truth = keras.ops.concatenate([keras.ops.ones_like(y), keras.ops.zeros_like(y)], axis=0)
                of_judge = self.loss_fn(truth, said)
            weights = self.judge.trainable_weights
            self.judge_optimizer.apply(tape.gradient(of_judge, weights), weights)
            with tf.GradientTape() as tape:
                of_maker = self.loss_fn(keras.ops.zeros_like(y), self.judge(self.maker(x)))
            weights = self.maker.trainable_weights
            self.optimizer.apply(tape.gradient(of_maker, weights), weights)
            self.of_maker.update_state(of_maker)
            self.of_judge.update_state(of_judge)
            return {metric.name: metric.result() for metric in self.metrics}

        def test_step(self, batch: Any) -> Any:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
            self.of_maker.update_state(self.loss_fn(keras.ops.zeros_like(y), self(x)))
            return {"maker_loss": self.of_maker.result()}

    model = Rivals()
    model.build((None, 4))
    model.compile(
        sgd(0.1)(), optimizer_of("Adam", clipnorm=0.5)(), keras.losses.BinaryCrossentropy(from_logits=True)
    )
    return model


def mean_of_ones_own(beside: bool) -> Callable[[], Any]:
    """Return a function that makes a model whose `compute_loss` computes means itself, with or without Keras's loss."""

    def build() -> Any:
        import keras

        class Own(keras.Model):
            def compute_loss(
                self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **more: Any
            ) -> Any:
                own = keras.ops.mean(keras.ops.abs(y_pred)) + keras.ops.mean(keras.ops.square(y - y_pred))
                if not beside:
                    return own
                return own + super().compute_loss(x, y, y_pred, sample_weight, **more)

        inputs = keras.Input((4,))
        model = Own(
            inputs, keras.layers.Dense(1, kernel_regularizer="l2", kernel_initializer=initial(1))(inputs)
        )
        model.compile(sgd(0.1)(), "mse" if beside else None, metrics=["mae"] if beside else None)
        return model

    return build


def shared_layers() -> Any:
    """Return a model that uses an inner model twice."""
    import keras

    encoder = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, "tanh", kernel_initializer=initial(3))]
    )
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    hidden = keras.layers.Add()([encoder(left), encoder(right)])
    kind = keras.layers.Dense(3, "softmax", name="kind", kernel_initializer=initial(1))(hidden)
    size = keras.layers.Dense(1, name="size", kernel_initializer=initial(2))(hidden)
    model = keras.Model({"left": left, "right": right}, {"kind": kind, "size": size})
    model.compile(sgd(clipnorm=0.5)(), {"kind": "sparse_categorical_crossentropy", "size": "mse"})
    return model


def spectral() -> Any:
    """Return a model with a layer whose state depends on its weights."""
    import keras

    keras.utils.set_random_seed(5)  # The state begins with random numbers.
    inner = keras.layers.Dense(3, kernel_initializer=initial(1))
    layers = [
        keras.Input((4,)),
        keras.layers.SpectralNormalization(inner),
        keras.layers.Dense(1, kernel_initializer=initial(2)),
    ]
    model = keras.Sequential(layers)
    model.compile(sgd(clipnorm=0.5)(), "mse")
    return model


def added_alone() -> Any:
    """Return a model whose only loss is the loss that a layer adds."""
    import keras

    class Apart(keras.layers.Layer):
        def call(self, x: Any, y: Any) -> Any:
            self.add_loss(keras.ops.mean(keras.ops.square(x - y)))
            return x

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, "tanh", kernel_initializer=initial(1))(inputs)
    model = keras.Model(inputs, Apart()(hidden, inputs))
    model.compile(sgd(0.1)(), None)
    return model


def embedded(optimizer: Callable[[], Any]) -> Any:
    import keras

    table = keras.initializers.RandomNormal(stddev=0.5, seed=4)
    layers = [
        keras.Input((5,), dtype="int64"),
        keras.layers.Embedding(9, 3, embeddings_initializer=table),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax", kernel_initializer=initial(7)),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer(), "sparse_categorical_crossentropy")
    return model


def normalised() -> Any:
    import keras

    layer = keras.layers.Normalization()
    layer.adapt(table_rows()[0])
    hidden = keras.layers.Dense(1, kernel_initializer=initial(1))
    model = keras.Sequential([keras.Input((4,)), layer, hidden])
    model.compile(sgd()(), "mse")
    return model


def batch_normalised(synchronized: bool) -> Any:
    import keras

    layers = [
        keras.Input((4,)),
        keras.layers.BatchNormalization(synchronized=synchronized),
        keras.layers.Dense(1, kernel_initializer=initial(1)),
    ]
    model = keras.Sequential(layers)
    model.compile(sgd()(), "mse")
    return model


def dropped_out() -> Any:
    import keras

    layers = [
        keras.Input((4,)),
        keras.layers.Dropout(0.3, seed=2),
        keras.layers.Dense(1, kernel_initializer=initial(1)),
    ]
    model = keras.Sequential(layers)
    model.compile(sgd()(), "mse")
    return model


def compiled(**options: Any) -> Callable[[], Any]:
    return lambda: dense(1, None, sgd(clipnorm=0.5), "mse", metrics=["mae"], **options)


def mixed(policy: str) -> Callable[[], Any]:
    def build() -> Any:
        import keras

        keras.mixed_precision.set_dtype_policy(policy)
        try:
            return dense(1, None, sgd(clipnorm=0.5), "mse")
        finally:
            keras.mixed_precision.set_dtype_policy("float32")

    return build


MODELS = [
    of_model("several inputs and outputs, by name", two_outputs, two_columns),
    of_model(
        "several outputs, loss_weights and weights",
        lambda: two_outputs({"kind": 0.3, "size": 2.0}, True),
        lambda: two_columns(True),
    ),
    of_model("an output for each pixel and one for the row", pixels_and_class, pixels_and_class_data),
    of_model("regularizers and constraints", regularised),
    of_model("frozen layers", frozen),
    of_model("train_step", own_step),
    of_model("compute_loss", own_loss),
    of_model("train_step of Keras's guide", guided_step(), lambda: table_rows(weights=True)),
    of_model(
        "train_step that ignores weights",
        guided_step("none"),
        slow=True,
    ),
    of_model("train_step with its own mean", guided_step("own mean")),
    of_model(
        "train_step that returns its loss and metrics",
        returned_numbers,
        epochs=2,
        servers="equal for metrics; for other values that a step returns, the mean over steps",
        not_compared=("servers",),
        slow=True,
    ),
    of_model(
        "train_step that clips its gradients",
        step_that_changes_gradients("clip"),
        lambda: tokens("rows"),
    ),
    of_model(
        "train_step that moves by the signs of its gradients",
        step_that_changes_gradients("sign"),
        lambda: tokens("rows"),
        slow=True,
    ),
    of_model(
        "train_step whose gradients a tf.function of its own takes",
        step_that_changes_gradients("apart"),
        lambda: tokens("rows"),
        slow=True,
    ),
    of_model(
        "train_step whose gradients are those after a first step",
        step_that_changes_gradients("ahead"),
        lambda: tokens("rows"),
        slow=True,
    ),
    of_model(
        "train_step with a loss of reduction sum",
        step_with_sums,
        synchronous=OF_BATCHES,
        compare=("weights", "history"),
    ),
    of_model(
        "train_step that accumulates gradients, and applies them in a branch",
        accumulating_step,
        servers="refused: TensorFlow applies no gradients in a branch there",
        refused=("servers",),
    ),
    of_model("train_step with two optimizers", two_optimizers, lambda: table_rows("binary"), of_batches=True),
    of_model(
        "compute_loss with its own mean",
        mean_of_ones_own(beside=False),
        of_batches=True,
    ),
    of_model(
        "compute_loss that adds its own mean to Keras's loss",
        mean_of_ones_own(beside=True),
        of_batches=True,
        slow=True,
    ),
    of_model("shared layers", shared_layers, two_columns, slow=True),
    of_model("SpectralNormalization", spectral, slow=True),
    of_model("Embedding with clipnorm", lambda: embedded(sgd(0.5, clipnorm=0.05)), lambda: tokens("rows")),
    of_model(
        "Embedding with Adam(global_clipnorm)",
        lambda: embedded(optimizer_of("Adam", global_clipnorm=0.05)),
        lambda: tokens("rows"),
        slow=True,
    ),
    of_model("Normalization adapted in build_model", normalised),
    of_model(
        "BatchNormalization",
        lambda: batch_normalised(False),
        compare=(),
        synchronous="each worker has the statistics of its part of the batch; after each epoch, all get the mean",
        servers="statistics of each step's batch, in the order in which the steps run",
    ),
    of_model(
        "BatchNormalization(synchronized=True)",
        lambda: batch_normalised(True),
        compare=(),
        synchronous="statistics of the whole batch, including padding rows",
        servers="statistics of each step's batch, in the order in which the steps run",
    ),
    of_model(
        "Dropout and other random layers",
        dropped_out,
        compare=(),
        synchronous="each worker draws different random numbers, which are the same in each run",
        servers="the random numbers depend on the step's number",
    ),
    of_model(
        "run_eagerly",
        compiled(run_eagerly=True),
        refused=("servers",),
        servers="refused: steps must be graphs",
    ),
    of_model(
        "jit_compile",
        compiled(jit_compile=True),
        refused=("synchronous",),
        synchronous="refused: XLA compiles neither the exchange of gradients on CPUs nor batches with padding",
    ),
    of_model(
        "steps_per_execution",
        compiled(steps_per_execution=2),
        refused=("servers",),
        servers="refused: each single step goes to the next free worker",
    ),
    of_model(
        "mixed_bfloat16",
        mixed("mixed_bfloat16"),
        compare=(),
        synchronous="equal except for rounding",
        servers="equal except for rounding",
    ),
    of_model(
        "mixed_float16",
        mixed("mixed_float16"),
        compare=(),
        synchronous="equal except for rounding",
        servers="refused: workers would change each other's scale of the loss",
        refused=("servers",),
    ),
]
# --- numbers of rows, values that are not finite ------------------------------------------------------


def some_rows(count: int) -> Callable[[], Any]:
    def rows() -> Any:
        x, y, _ = table_rows(weights=True)
        return np.tile(x, (2, 1))[:count], np.tile(y, (2, 1))[:count], None

    return rows


def with_infinity(value: float) -> Callable[[], Any]:
    """Return a function that makes rows with one label that is infinite or nan."""

    def rows() -> Any:
        x, y, _ = table_rows()
        y[21] = value
        return x, y, None

    return rows


BATCHES = [
    *(
        Feature(
            "batches",
            name,
            lambda: dense(1, None, sgd(clipnorm=0.5), "mse", metrics=["mae"]),
            some_rows(count),
        )
        for count, name in (
            (32, "32 rows in batches of 8: no short batch"),
            (25, "25 rows in batches of 8: one row in the last batch"),
            (31, "31 rows in batches of 8: one row missing in the last batch"),
            (3, "3 rows in a batch of 8: no row for the second worker"),
        )
    ),
    *(
        Feature(
            "batches", f"a loss that is {value}", lambda: dense(1, None, sgd(), "mse"), with_infinity(value)
        )
        for value in (np.nan, np.inf)
    ),
]


def without_weight(value: float) -> Callable[[], Any]:
    """Return a function that makes rows with one label that is infinite or nan, in a row of weight 0."""

    def rows() -> Any:
        x, y, _ = with_infinity(value)()
        weights = np.ones(ROWS, np.float32)
        weights[21] = 0.0
        return x, y, weights

    return rows


BATCHES.append(
    Feature(
        "batches",
        "a label that is nan, in a row of weight 0",
        lambda: dense(1, None, sgd(), "mse", weighted_metrics=["mae"]),
        without_weight(np.nan),
        slow=True,
    )
)
# --- kinds of inputs and outputs ----------------------------------------------------------------------

WORDS = ("red", "green", "blue", "gray")


def words(texts: bool = False) -> Any:
    """Return a word or several words for each row, and a number as label. One of the words is not in `WORDS`."""
    rng = generator()
    chosen = rng.choice([*WORDS, "pink"], (ROWS, 3))
    y = (chosen == "red").sum(1, keepdims=True).astype(np.float32)
    said = [" ".join(row) for row in chosen] if texts else list(chosen[:, 0])
    return np.array(said, object), y, None


def ragged_rows() -> Any:
    """Return rows of one to five numbers."""
    import tensorflow as tf

    rng = generator()
    lengths = rng.integers(1, 6, ROWS)
    values = rng.integers(1, 9, lengths.sum()).astype(np.int64)
    return tf.RaggedTensor.from_row_lengths(values, lengths), (lengths % 3).astype(np.int64), None


def of_strings() -> Any:
    import keras

    inputs = keras.Input((), dtype="string")
    known = keras.layers.StringLookup(vocabulary=list(WORDS), output_mode="one_hot")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=initial(1))(known))
    model.compile(sgd(clipnorm=0.5)(), "mse")
    return model


def of_texts() -> Any:
    import keras

    split = keras.layers.TextVectorization(output_mode="count", max_tokens=10)
    split.adapt(words(texts=True)[0])
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=initial(1))(split(inputs)))
    model.compile(sgd(clipnorm=0.5)(), "mse")
    return model


def discretized() -> Any:
    import keras

    layer = keras.layers.Discretization(num_bins=4, output_mode="multi_hot")
    layer.adapt(table_rows()[0])
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1, kernel_initializer=initial(1))])
    model.compile(sgd()(), "mse")
    return model


def of_ragged() -> Any:
    import keras
    import tensorflow as tf

    class MeanOfRow(keras.layers.Layer):
        """The mean of an embedding over each row's values."""

        def __init__(self) -> None:
            super().__init__()
            start = keras.initializers.RandomNormal(stddev=0.5, seed=4)
            self.table = self.add_weight(shape=(9, 3), initializer=start, name="table")

        def call(self, x: Any) -> Any:
            if not isinstance(x, tf.RaggedTensor):  # Keras builds with a dense placeholder.
                return tf.reduce_mean(tf.gather(self.table.value, x), axis=1)
            return tf.reduce_mean(x.with_flat_values(tf.gather(self.table.value, x.flat_values)), axis=1)

        def compute_output_shape(self, shape: Any) -> Any:
            return (shape[0], 3)

    inputs = keras.Input((None,), dtype="int64", ragged=True)
    outputs = keras.layers.Dense(3, "softmax", kernel_initializer=initial(7))(MeanOfRow()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(sgd(0.5)(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def as_sparse(x: Any) -> Any:
    import tensorflow as tf

    return tf.sparse.from_dense(tf.where(tf.constant(0.0) < x, x, 0.0))


def of_sparse(**options: Any) -> Any:
    import keras

    inputs = keras.Input((4,), sparse=True)
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=initial(1))(inputs))
    model.compile(sgd(**options)(), "mse")
    return model


def of_parts(
    inputs_as: Callable[[Any, Any], Any], outputs_as: Callable[[Any, Any], Any]
) -> Callable[[], Any]:
    """Return a function that makes a model whose two inputs and two outputs have the given structures."""

    def build() -> Any:
        import keras

        left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
        hidden = keras.layers.Concatenate()([left, right])
        kind = keras.layers.Dense(3, "softmax", name="kind", kernel_initializer=initial(1))(hidden)
        size = keras.layers.Dense(1, name="size", kernel_initializer=initial(2))(hidden)
        model = keras.Model(inputs_as(left, right), outputs_as(kind, size))
        losses = outputs_as("sparse_categorical_crossentropy", "mse")
        model.compile(sgd(clipnorm=1.0)(), losses, metrics=outputs_as(["accuracy"], ["mae"]))
        return model

    return build


def in_parts(
    inputs_as: Callable[[Any, Any], Any], outputs_as: Callable[[Any, Any], Any]
) -> Callable[[], Any]:
    def data() -> Any:
        x, y, _ = two_columns()
        return inputs_as(x["left"], x["right"]), outputs_as(y["kind"], y["size"]), None

    return data


def pair(first: Any, second: Any) -> Any:
    return (first, second)


def by_name(first: Any, second: Any) -> Any:
    return {"kind": first, "size": second}


def as_input_list(batch: Any) -> Any:
    return [batch["left"], batch["right"]]


INPUTS = [
    Feature("inputs", "strings", of_strings, words, needs_graph=True),
    Feature(
        "inputs", "TextVectorization adapted in build_model", of_texts, lambda: words(True), needs_graph=True
    ),
    Feature("inputs", "Discretization adapted in build_model", discretized, table_rows, slow=True),
    Feature("inputs", "ragged rows", of_ragged, ragged_rows, needs_graph=True),
    Feature(
        "inputs",
        "sparse rows, made by a `features` hook",
        of_sparse,
        table_rows,
        hook=as_sparse,
        needs_graph=True,
    ),
    Feature(
        "inputs",
        "sparse rows with clipnorm",
        lambda: of_sparse(clipnorm=0.5),
        table_rows,
        hook=as_sparse,
        needs_graph=True,
        refused=("several",),
        synchronous="refused with several workers: the norms of the parts do not give the norm of their sum",
        slow=True,
    ),
    Feature(
        "inputs",
        "inputs as a tuple, outputs as a tuple",
        of_parts(pair, pair),
        in_parts(pair, pair),
        slow=True,
    ),
    Feature(
        "inputs",
        "nested inputs, outputs by name",
        of_parts(lambda a, b: {"a": a, "more": {"b": b}}, by_name),
        in_parts(lambda a, b: {"a": a, "more": {"b": b}}, by_name),
    ),
    Feature(
        "inputs",
        "inputs as a list, made by a `features` hook",
        of_parts(lambda a, b: [a, b], by_name),
        two_columns,
        hook=as_input_list,
        slow=True,
    ),
]

# --- callbacks ----------------------------------------------------------------------------------------


def fitted_with(
    name: str, *made: Callable[[str], Any], optimizer: Callable[[], Any] | None = None, **more: Any
) -> Feature:
    return Feature(
        "callbacks",
        name,
        more.pop("build", lambda: dense(1, None, optimizer or sgd(0.1), "mse", metrics=["mae"])),
        more.pop("data", table_rows),
        callbacks=lambda folder: [make(folder) for make in made],
        epochs=more.pop("epochs", 3),
        **more,
    )


def callback(name: str, *args: Any, **options: Any) -> Callable[[str], Any]:
    def make(folder: str) -> Any:
        import keras

        filled = {
            key: value.format(folder=folder) if isinstance(value, str) else value
            for key, value in options.items()
        }
        return getattr(keras.callbacks, name)(*args, **filled)

    return make


def lines_of(name: str) -> Callable[[str], Any]:
    """Return a function that reads comma-separated numbers, without the header; other values become NaN."""
    return lambda folder: np.genfromtxt(f"{folder}/{name}", delimiter=",", skip_header=1).tolist()


def saved_model(folder: str) -> Any:
    """Return the number of steps and the weights of the saved model, or of the last of several."""
    import keras

    path = sorted(Path(folder).glob("*.keras"))[-1]
    model = keras.models.load_model(path)
    flat = np.concatenate([np.ravel(value) for value in model.get_weights()])
    return [int(model.optimizer.iterations.numpy()), *flat.tolist()]


def saved_weights(folder: str) -> Any:
    model = dense(1, None, sgd(), "mse")
    model.load_weights(f"{folder}/last.weights.h5")
    return np.concatenate([np.ravel(value) for value in model.get_weights()]).tolist()


def scalars(folder: str) -> Any:
    """Return the numbers of event files of training and of validation, and the losses in the training's events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    counts = [len(list(Path(folder, part).glob("events*"))) for part in ("train", "validation")]
    events = EventAccumulator(f"{folder}/train", {"tensors": 0}).Reload()
    import tensorflow as tf

    return [*counts, *(float(tf.make_ndarray(each.tensor_proto)) for each in events.Tensors("epoch_loss"))]


def noted(folder: str) -> Any:
    """Return a `LambdaCallback` that writes its calls to a file."""
    import keras

    def note(name: str) -> Callable[..., None]:
        def write(number: Any, logs: Any = None) -> None:
            with open(f"{folder}/calls.txt", "a") as file:
                file.write(f"{name} {number if isinstance(number, int) else ''}\n")

        return write

    names = ("on_epoch_begin", "on_epoch_end", "on_train_begin", "on_train_end", "on_train_batch_end")
    return keras.callbacks.LambdaCallback(**{name: note(name) for name in names})


def of_validation(folder: str) -> Any:
    """Return a user-defined callback that writes the losses of evaluations to a file."""
    import keras

    class Evaluations(keras.callbacks.Callback):
        def on_test_begin(self, logs: Any = None) -> None:
            self._write("begin", 0.0)

        def on_test_end(self, logs: Any = None) -> None:
            self._write("end", logs["loss"])

        def _write(self, name: str, value: float) -> None:
            with open(f"{folder}/tests.csv", "a") as file:
                file.write(f"{int(name == 'end')},{float(value)}\n")

    return Evaluations()


def noted_logs(folder: str) -> Any:
    """Return a callback that writes the logs of each step to a file, and changes the learning rate."""
    import keras

    class Steps(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = 0.1 / (1 + batch)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            with open(f"{folder}/steps.csv", "a") as file:
                file.write(f"{batch},{float(logs['loss'])},{float(logs['mae'])}\n")

    return Steps()


def predicting(folder: str) -> Any:
    """Return a callback that writes predictions to a file after each epoch."""
    import keras

    class Predictions(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            said = self.model.predict(table_rows()[0][:5], verbose=0)
            with open(f"{folder}/said.csv", "a") as file:
                file.write(",".join(str(float(value)) for value in said.ravel()) + "\n")

    return Predictions()


def stopping(folder: str) -> Any:
    """Return a callback that stops the training in the middle of an epoch."""
    import keras

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1 and self.model.optimizer.iterations >= 5:
                self.model.stop_training = True

    return Stop()


def backed_up(folder: str) -> Any:
    import json

    return json.loads(Path(folder, "training_metadata.json").read_text())["epoch"]


CALLBACKS = [
    fitted_with(
        "EarlyStopping(restore_best_weights)",
        callback("EarlyStopping", monitor="val_loss", min_delta=5.0, patience=2, restore_best_weights=True),
        validates=True,
        epochs=6,
    ),
    fitted_with(
        "ReduceLROnPlateau",
        callback("ReduceLROnPlateau", monitor="loss", min_delta=100.0, patience=1, factor=0.3),
        slow=True,
    ),
    fitted_with(
        "LearningRateScheduler",
        callback("LearningRateScheduler", lambda epoch, rate: rate * 0.5 if epoch else rate),
        slow=True,
    ),
    fitted_with(
        "TerminateOnNaN",
        callback("TerminateOnNaN"),
        data=with_infinity(np.nan),
        servers="stops after the running steps; the epoch is not validated",
        synchronous="equal; the interrupted epoch is not validated",
        main_fun="equal",
        not_compared=("servers",),
    ),
    fitted_with(
        "ModelCheckpoint(save_best_only)",
        callback(
            "ModelCheckpoint",
            filepath="{folder}/best.keras",
            save_best_only=True,
            monitor="val_mae",
            mode="min",
        ),
        validates=True,
        epochs=2,
        written=saved_model,
        chief_alone=True,
    ),
    fitted_with(
        "ModelCheckpoint(save_weights_only)",
        callback("ModelCheckpoint", filepath="{folder}/last.weights.h5", save_weights_only=True),
        written=saved_weights,
        chief_alone=True,
        slow=True,
    ),
    fitted_with(
        "CSVLogger",
        callback("CSVLogger", filename="{folder}/log.csv"),
        written=lines_of("log.csv"),
        chief_alone=True,
    ),
    fitted_with(
        "TensorBoard",
        callback("TensorBoard", log_dir="{folder}"),
        written=scalars,
        chief_alone=True,
        validates=True,
        slow=True,
    ),
    fitted_with(
        "BackupAndRestore",
        callback("BackupAndRestore", backup_dir="{folder}", delete_checkpoint=False),
        written=backed_up,
        chief_alone=True,
        synchronous="the chief writes; a run continues from tfspark's own checkpoints, so a leftover backup is refused",
        servers="like synchronous training",
        main_fun="the chief writes; all workers get the restored state",
    ),
    fitted_with(
        "SwapEMAWeights",
        callback("SwapEMAWeights"),
        optimizer=sgd(0.1, use_ema=True, ema_momentum=0.8),
        validates=True,
    ),
    fitted_with(
        "SwapEMAWeights(swap_on_epoch)",
        callback("SwapEMAWeights", swap_on_epoch=True),
        optimizer=sgd(0.1, use_ema=True, ema_momentum=0.8),
        slow=True,
    ),
    fitted_with(
        "LambdaCallback", noted, epochs=2, written=lambda folder: Path(folder, "calls.txt").read_text()
    ),
    fitted_with(
        "logs of each step, a learning rate for each step",
        noted_logs,
        data=some_rows(32),
        written=lines_of("steps.csv"),
        epochs=2,
        synchronous="equal; after a short batch, the logs have the mean of the workers' values",
        main_fun="like synchronous training",
        servers="callbacks run after the steps: a new rate applies to steps that begin later",
        not_compared=("servers",),
    ),
    fitted_with(
        "callbacks that predict",
        predicting,
        written=lines_of("said.csv"),
        epochs=2,
        servers="refused when they call `predict`: the variables are in other processes; call the model instead",
        refused=("servers",),
    ),
    fitted_with(
        "a callback that stops in the middle of an epoch",
        stopping,
        not_compared=("servers",),
        servers="stops after the running steps",
        slow=True,
    ),
    fitted_with(
        "ModelCheckpoint(save_freq)",
        callback("ModelCheckpoint", filepath="{folder}/at-{{batch}}.keras", save_freq=3),
        written=saved_model,
        chief_alone=True,
        slow=True,
    ),
    fitted_with(
        "EarlyStopping(baseline, start_from_epoch)",
        callback("EarlyStopping", monitor="mae", baseline=0.01, patience=1, start_from_epoch=1),
        epochs=5,
        slow=True,
    ),
    fitted_with(
        "callbacks that use evaluations", of_validation, written=lines_of("tests.csv"), validates=True
    ),
]


# --- models that are changed or loaded ----------------------------------------------------------------


def loaded() -> Any:
    """Return a compiled model that was loaded from a file, with an optimizer that has taken steps."""
    import tempfile

    import keras

    model = dense(1, None, optimizer_of("Adam", clipnorm=0.5), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables[
        2:
    ]:  # The first two are the number of steps and the learning rate.
        variable.assign(np.full(variable.shape, 0.01))
    model.optimizer.iterations.assign(5)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        return keras.models.load_model(f"{folder}/model.keras")


def freeze_first(model: Any) -> None:
    model.layers[0].trainable = False
    model.compile(sgd(0.02, clipnorm=0.1)(), "mse", metrics=["mae"])


def own_test_step() -> Any:
    import keras

    class Own(keras.Model):
        """A model with its own evaluation step, which uses Keras's loss."""

        def test_step(self, data: Any) -> Any:
            x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
            guess = 2 * self(x, training=False)
            loss = self.compute_loss(x, y, guess, weight, training=False)
            for metric in self.metrics:  # As in Keras's guide.
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, guess, weight)
            return {metric.name: metric.result() for metric in self.metrics}

    inputs = keras.Input((4,))
    model = Own(inputs, keras.layers.Dense(1, kernel_initializer=initial(1))(inputs))
    model.compile(sgd(clipnorm=0.5)(), "mse", metrics=["mae"])
    return model


def with_loss_of_activity() -> Any:
    import keras

    class Spread(keras.layers.Layer):
        """Adds a loss that depends on its input: a mean over rows."""

        def call(self, x: Any) -> Any:
            self.add_loss(keras.ops.mean(keras.ops.square(x)))
            return x

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "tanh", activity_regularizer="l2", kernel_initializer=initial(1))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=initial(2))(Spread()(hidden)))
    model.compile(sgd(0.1)(), "mse")
    return model


MEANS_OF_LAYERS = "equal on full batches for a mean over rows; in a short batch, padding rows count, too"
CHANGED = [
    of_model(
        "activity_regularizer, add_loss",
        with_loss_of_activity,
        some_rows(32),
        synchronous=MEANS_OF_LAYERS,
    ),
    of_model(
        "add_loss without a compiled loss",
        added_alone,
        lambda: (some_rows(32)()[0], some_rows(32)()[1], None),
        synchronous=MEANS_OF_LAYERS,
    ),
    of_model("a compiled model loaded from a file", loaded),
    of_model(
        "trainable changed between two trainings, compiled again",
        compiled(),
        between=freeze_first,
        main_fun="equal",
        synchronous="not possible: `build_model` builds the model once; use a `main_fun`",
        servers="not possible: `build_model` builds the model once",
        not_compared=("servers",),
    ),
    of_model(
        "test_step",
        own_test_step,
        synchronous="equal for metrics; other values that a step returns are dropped",
        servers="equal for metrics; for other values that a step returns, the mean over steps",
        main_fun="equal",
    ),
]


def of_example(name: str, build: Callable[[], Any], data: Callable[[int], Any], **more: Any) -> Feature:
    return Feature(EXAMPLES_OF_KERAS, name, build, lambda: data(ROWS), **{"slow": True, **more})


EXAMPLES = [
    of_example("images: Conv2D, MaxPooling2D", examples.convnet, examples.classes_of_images),
    of_example("images: SeparableConv2D with shortcuts", examples.xception, examples.classes_of_images),
    of_example("images: vision Transformer", examples.vision_transformer, examples.classes_of_images),
    of_example("images: autoencoder that removes noise", examples.denoiser, examples.noisy_images),
    of_example("films: ConvLSTM2D", examples.next_frame, examples.films),
    of_example("text: Bidirectional LSTM", examples.bidirectional, examples.reviews),
    of_example("text: Transformer", examples.transformer, examples.reviews, slow=False),
    of_example("text: MLP-Mixer", examples.mixer, examples.reviews),
    of_example("text: sequence to sequence, GRU and attention", examples.translation, examples.sentences),
    of_example("series: causal Conv1D, GRU, LSTM", examples.forecast, examples.series),
    of_example("pairs: siamese network, contrastive loss", examples.siamese, examples.pairs),
    of_example("ratings: product of embeddings", examples.recommender, examples.ratings),
    of_example("tables: wide and deep, IntegerLookup", examples.wide_and_deep, examples.customers),
    of_example(
        "distillation: a teacher in compute_loss",
        examples.distiller,
        lambda rows: table_rows("classes"),
        slow=False,
    ),
    of_example(
        "images: variational autoencoder, train_step",
        examples.variational_autoencoder,
        examples.noisy_points,
        of_batches=True,
    ),
    of_example(
        "images: WGAN, gradient penalty, two steps of the critic",
        examples.gradient_penalty,
        examples.noisy_points,
        of_batches=True,
    ),
    of_example(
        "images: diffusion, train_step that keeps a moving average of the weights",
        examples.diffusion,
        examples.noisy_points,
    ),
    of_example("images: PixelCNN, a kernel masked in each step", examples.pixel_cnn, examples.noisy_images),
    of_example(
        "images: a Loss with its own `__call__`, which compares rows",
        examples.own_call_contrast,
        examples.classes,
        of_batches=True,
    ),
    of_example(
        "triplets: train_step with a loss for each row",
        examples.triplet_network,
        examples.triplets,
        slow=False,
    ),
    of_example(
        "text: masked language model, train_step with weights of words",
        examples.masked_language_model,
        examples.gaps,
    ),
    of_example(
        "text: causal attention, an output without loss",
        examples.miniature_gpt,
        examples.next_words,
    ),
    of_example(
        "speech: train_step that calls compute_loss with weights of words",
        examples.dictation,
        examples.captions,
        of_batches=True,
    ),
    of_example(
        "lines of text: a layer that adds the CTC loss",
        examples.transcription,
        examples.lines_of_text,
        of_batches=True,
    ),
    of_example(
        "tables: endpoint layer that calls a loss of Keras",
        examples.endpoint,
        lambda rows: examples.answers(32),
        synchronous=MEANS_OF_LAYERS,
        slow=False,
    ),
    of_example(
        "tables: decision forest with randomly chosen features", examples.decision_forest, examples.classes
    ),
    of_example("tables: FeatureSpace", examples.feature_space, examples.members, needs_graph=True),
    of_example(
        "bags: attention over a list of inputs, class weights",
        examples.attention_over_instances,
        examples.bags,
        hook=lambda batch: [batch[name] for name in "abc"],
        class_weights={0: 0.7, 1: 2.0},
    ),
    of_example("roads: graph convolution, LSTM", examples.graph_convolution, examples.roads),
    of_example(
        "ratings: a layer that mixes the rows of a batch",
        examples.mixing_rows,
        lambda rows: examples.ratings(32),
        of_batches=True,
        synchronous="equal with one worker on full batches; with several, each mixes only its rows, including padding",
        not_compared=("several",),
    ),
    of_example(
        "views: train_step that compares the rows of a batch",
        examples.contrasted_views,
        examples.triplets,
        of_batches=True,
        synchronous="equal with one worker; with several, each compares only the rows of its part of the batch",
        not_compared=("several",),
    ),
    of_example(
        "captions: train_step that divides by the batch's number of words",
        examples.captioning,
        examples.captions,
        of_batches=True,
        synchronous="equal with one worker; with several, each divides by the number of words in its part of the batch",
        not_compared=("several",),
    ),
]
ALL = [
    *CLIPPING,
    *TOGETHER,
    *OPTIMIZERS,
    *SCHEDULES,
    *LOSSES,
    *OUTPUTS,
    *METRICS,
    *WEIGHTS,
    *BATCHES,
    *INPUTS,
    *MODELS,
    *CHANGED,
    *EXAMPLES,
    *CALLBACKS,
]
SLOW = (
    "use_ema",
    "loss_scale_factor",
    "Adam(clipnorm)",
    "segmentation, classes, weighted",
    "tagging, weighted",
    "mask of steps, weighted metrics",
    "weighted metrics without weights",
    "frozen layers",
    "mixed_bfloat16",
    "BatchNormalization(synchronized=True)",
    "Normalization adapted in build_model",
    "clipvalue",
    "gradient_accumulation_steps",
    "Adam",
    "Lion",
    "PiecewiseConstantDecay",
    "Huber, numbers",
    "SparseCategoricalCrossentropy, classes",
    "reduction sum_over_batch_size with weights",
    "a function of the whole batch",
    "image autoencoder",
    "tagging",
    "metrics of binary labels",
    "class_weight of integer classes",
    "several inputs and outputs, by name",
    "Embedding with clipnorm",
    "BatchNormalization",
    "32 rows in batches of 8: no short batch",
    "31 rows in batches of 8: one row missing in the last batch",
    "a loss that is inf",
    "CSVLogger",
    "LambdaCallback",
    "TextVectorization adapted in build_model",
)
"""More rows that only ``--all`` trains: for each, a similar row covers most of it."""
OF_BATCHES = (
    "Tversky",
    "Dice",
    "Circle",
    "reduction sum",
    "reduction mean_with",
    "a function",
    "pixels,",
    "mask of",
    "test_step",
)
FEATURES = [
    replace(feature, of_batches=True)
    if (feature.name.startswith(OF_BATCHES) and not feature.name.startswith("reduction sum_over"))
    or "Dice of the" in feature.name
    else feature
    for feature in (replace(each, slow=each.slow or each.name in SLOW) for each in ALL)
]
STATED = [
    Stated("weights", "a column of weights (`weight=`, `data.weight`)", EQUAL, EQUAL),
    Stated("weights", "class weights of text and bool labels", EQUAL, EQUAL),
    Stated("callbacks", "RemoteMonitor", "on the chief only", "on the chief only"),
    Stated("callbacks", "user-defined callbacks", "run on every worker", "run on the chief"),
    Stated(
        "models",
        "stateful recurrent layers with a fixed batch",
        "equal with one worker and `FeedOptions(ordered=True)`; each "
        "worker keeps the states of its rows; `evaluate` pads batches",
        "states of the previous batch, whichever batch that was",
    ),
    Stated(
        "fit",
        "validation rows",
        "each evaluated once, without padding",
        "like synchronous training",
        '`validation_data=ctx.dataset("validation")`',
    ),
    Stated(
        "models",
        "train_step whose loss is a sum over rows by tf.reduce_sum",
        "the mean of the workers' sums: use a mean, or a loss of Keras with reduction='sum'",
        "like plain Keras, for each worker's batch",
    ),
    Stated(
        "models",
        "gradients that a train_step takes in a branch or in a tf.function of its own, and clips there",
        "each worker clips its own",
        "like plain Keras, for each worker's batch",
    ),
    Stated(
        "models",
        "other variables that a layer or a step changes, such as moving statistics of your own or a queue of rows",
        "each worker changes its own, by its part of the batch; after each epoch, all get the mean",
        "one for all; each step changes it by its batch, in the order in which the steps run",
    ),
    Stated(
        "metrics",
        "metrics that a model's own step updates, and whose states are not sums over rows",
        "added up anyway, as `tf.distribute` does",
        "added up anyway",
    ),
]
