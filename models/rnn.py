"""Recurrent networks that classify texts and series, and that forecast series.

LSTM and GRU, in one direction or both, stacked; one prediction per row (many to one) or one per step (many to many). A
model module: tfspark calls `adapt(params, df)` on the driver and `build_model(params)` in every trainer. It needs
no Spark, so it can also be run as a program, in the root of the repository:

    python -m models.rnn                    # the tone of a sentence
    python -m models.rnn --series           # next month's sunspots
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfspark.parameters import (
    above_0,
    are,
    at_least_0,
    choice,
    flag,
    fraction,
    is_above_0,
    is_number,
    is_size,
    is_text,
    param,
    read_params,
    several,
    whole,
)

Tensor = keras.KerasTensor

# The data that `main` trains on.
SENTENCES = Path("data/rotten_tomatoes/texts")
SUNSPOTS = Path("data/sunspots")

# The text between words, for TensorFlow (RE2) and for Spark (Java): HTML tags, punctuation and symbols.
# Apostrophes are removed: "don't" is one word.
SEPARATORS = r"<[^>]*>|[\p{P}\p{S}]+"


@dataclasses.dataclass(frozen=True)
class Params:
    """The parameters of `build_model`.

    Attributes:
        inputs: `text`: strings, split into words within the model; `tokens`: word numbers, 0 for padding;
            `series`: numbers by step and variable.
        task: `classify`, or `forecast` the next values of a series.
        cell: `lstm` or `gru`.
        bidirectional: read forward and backward; each direction has `units`.
        units: of each layer, 1 or more.
        layers: number of stacked layers, 1 or more.
        pooling: how the states of a row's steps are combined: the `last` state, their `mean` or their `max`.
        per_step: predict at every step instead, many to many.
        skip: add a linear model of the inputs to the network's output (as in LSTNet, Lai et al., 2018): of the mean
            embedding for words, of all values for series.
        vocabulary: the words by falling frequency, which `adapt` counts; `text` only.
        vocabulary_size: size of the vocabulary, 3 or more, including padding and unknown words.
        length: maximum number of words that are read of a text, 1 or more; `text` only.
        embedding: size of a word's embedding, 1 or more.
        input_shape: of one row: steps of `tokens`, steps and variables of a `series`.
        mean: of each variable, which is subtracted first; `adapt` computes it; `series` only.
        std: standard deviation of each variable, by which it is divided; `adapt` computes it.
        per_window: scale each window to mean 0 and deviation 1 for the network, and scale its forecast back (Kim et
            al., 2022), so that the model applies at all levels of a series; `series` only.
        num_classes: 2 or more; labels are 0 to `num_classes - 1`. Per step, a label of -1 does not count.
        horizon: number of steps to forecast, 1 or more.
        targets: number of variables to forecast (the first ones), 1 or more.
        dropout: fraction dropped after the embedding, between layers and before the output, in [0, 1).
        weight_decay: L2 penalty on the kernels of the layers, 0 or more.
        learning_rate: step size of Adam in the first epoch, above 0.
        decay: the step size is multiplied by this after each epoch, above 0.
    """

    inputs: str = choice("text", ["text", "tokens", "series"])
    task: str = choice("classify", ["classify", "forecast"])
    cell: str = choice("gru", ["lstm", "gru"])
    bidirectional: bool = flag(True)
    units: int = whole(32, 1)
    layers: int = whole(1, 1)
    pooling: str = choice("mean", ["last", "mean", "max"])
    per_step: bool = flag(False)
    skip: bool = flag(True)
    vocabulary: tuple[str, ...] = several((), "a list of words", is_text)
    vocabulary_size: int = whole(20_000, 3)
    length: int = whole(256, 1)
    embedding: int = whole(64, 1)
    input_shape: tuple[int, ...] | None = param(
        None,
        "whole numbers above 0: steps; or steps and variables",
        lambda value: value is None or (are(value, is_size) and len(value) in (1, 2)),
    )
    mean: tuple[float, ...] = several((), "a list of numbers", is_number)
    std: tuple[float, ...] = several((), "a list of numbers above 0", is_above_0)
    per_window: bool = flag(False)
    num_classes: int = whole(2, 2)
    horizon: int = whole(1, 1)
    targets: int = whole(1, 1)
    dropout: float = fraction(0.5)
    weight_decay: float = at_least_0(0.0)
    learning_rate: float = above_0(1e-3)
    decay: float = above_0(1.0)

    def __post_init__(self) -> None:
        """Reject values that contradict each other.

        Raises:
            ValueError: names the values that must be combined.
        """
        series = self.inputs == "series"
        variables = self.input_shape[-1] if self.input_shape else 0
        for holds, problem in [
            (self.task == "classify" or series, "task: forecast goes with inputs: series"),
            (
                self.inputs != "text" or self.vocabulary,
                "inputs: text needs a vocabulary: call adapt(params, df)",
            ),
            (not series or len(self.input_shape or ()) == 2, "series need input_shape: [steps, variables]"),
            (
                self.inputs != "tokens" or len(self.input_shape or ()) == 1,
                "tokens need input_shape: [steps], the length to which rows are padded with 0",
            ),
            (
                not series or all(len(values) in (0, variables) for values in (self.mean, self.std)),
                "mean and std need one value per variable",
            ),
            (
                self.task == "classify" or self.targets <= variables,
                "targets cannot be more than the variables",
            ),
            (not (self.per_step and self.skip), "per_step goes with skip: false"),
        ]:
            if not holds:
                raise ValueError(
                    f"{problem}. Received: inputs={self.inputs!r}, task={self.task!r}, "
                    f"input_shape={self.input_shape!r}, per_step={self.per_step!r}"
                )


def adapt(params: Mapping[str, Any], df: Any) -> dict[str, Any]:
    """Compute the vocabulary, or mean and deviation of the variables, of a Spark DataFrame. Runs on the driver.

    Spark computes everything over all rows; only the result comes to the driver. Values in `params` are not changed.

    Args:
        params: as for `build_model`.
        df: the training rows; the model reads the first column.
    """
    kind, column = params.get("inputs", Params.inputs), f"`{df.columns[0]}`"
    if kind == "text" and not params.get("vocabulary"):
        plain = f"regexp_replace(replace(lower({column}), chr(39), ''), r'{SEPARATORS}', ' ')"
        words = df.selectExpr(f"explode(split(trim({plain}), r'\\s+')) AS word").where("word != ''")
        counts = words.groupBy("word").count().sort("count", "word", ascending=[False, True])
        size = params.get("vocabulary_size", Params.vocabulary_size) - 2
        return {**params, "vocabulary": [row[0] for row in counts.limit(size).collect()]}
    if kind == "series" and not params.get("mean"):
        variables = params["input_shape"][-1]
        values = df.selectExpr(f"posexplode({column}) AS (position, value)")
        found = values.selectExpr(f"position % {variables} AS variable", "value").groupBy("variable")
        rows = found.agg({"value": "avg"}).join(found.agg({"value": "stddev_pop"}), "variable").collect()
        _, means, deviations = zip(*sorted(tuple(row) for row in rows), strict=True)
        return {**params, "mean": list(means), "std": [deviation or 1.0 for deviation in deviations]}
    return dict(params)


def build_model(params: Mapping[str, Any] | None = None) -> keras.Model:
    """Build and compile a recurrent network.

    Input shape: `text`: `(batch,)` strings; `tokens`: `(batch, steps)` integers; `series`: `(batch, steps, variables)`.
    Output shape: for a classifier `(batch, classes)` probabilities, or `(batch, 1)`, that of class 1, if there
    are two; per step `(batch, steps, classes)`. For a forecast `(batch, horizon * targets)`, or per step
    `(batch, steps * targets)`: flat as in a TFRecord, steps first, in the units of the inputs.

    Args:
        params: fields of `Params`; missing ones have their defaults.

    Raises:
        ValueError: a parameter is unknown or outside its range, or contradicts another.
    """
    p = read_params(Params, params or {})
    inputs, x, linear = series_inputs(p) if p.inputs == "series" else word_inputs(p)
    x = recurrent(x, p)  # (batch, steps, units), or without steps if the last state is asked for
    if not p.per_step:
        x = pool(x, p)  # (batch, units)
    outputs = forecast(x, linear, inputs, p) if p.task == "forecast" else classes(x, linear, p)
    model = keras.Model(inputs, outputs, name=f"{p.inputs}_{p.cell}")
    loss, metrics = goal(p)
    model.compile(keras.optimizers.Adam(p.learning_rate), loss=loss, metrics=metrics)
    return model


def callbacks(params: Mapping[str, Any] | None = None) -> list[keras.callbacks.Callback]:
    """Return a callback that lowers the learning rate after each epoch."""
    p = read_params(Params, params or {})
    if p.decay == 1:
        return []
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * p.decay if epoch else rate)]


def goal(p: Params) -> tuple[Any, list[Any]]:
    """Return the loss and the metrics of the task."""
    if p.task == "forecast":
        rmse = keras.metrics.RootMeanSquaredError(name="rmse")
        return "mean_squared_error", [rmse, keras.metrics.MeanAbsoluteError(name="mae")]
    if p.per_step:
        return StepCrossentropy(), [StepAccuracy(name="accuracy")]
    if p.num_classes == 2:
        return "binary_crossentropy", ["accuracy", keras.metrics.AUC(name="auc")]
    return "sparse_categorical_crossentropy", ["accuracy"]


def word_inputs(p: Params) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input of words, and their embeddings; positions without a word are masked."""
    if p.inputs == "text":
        inputs = keras.Input((), dtype="string", name="text")
        split = layers.TextVectorization(
            standardize=standardise, vocabulary=list(p.vocabulary)[: p.vocabulary_size - 2]
        )
        # (batch, words of the longest text, at most length); one more, of padding: there may be texts without words.
        tokens = keras.ops.pad(split(inputs)[:, : p.length], ((0, 0), (0, 1)))
    else:
        inputs = tokens = keras.Input(p.input_shape, dtype="int32", name="tokens")
    x = layers.Embedding(p.vocabulary_size, p.embedding, mask_zero=True)(tokens)  # (batch, words, embedding)
    linear = layers.Dropout(p.dropout)(MaskedPooling("mean")(x))  # (batch, embedding): their mean
    return inputs, layers.SpatialDropout1D(p.dropout)(x), linear


def series_inputs(p: Params) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input of a series, and the series with each variable scaled to mean 0 and deviation 1."""
    inputs = keras.Input(p.input_shape, name="window")  # (batch, steps, variables)
    x = normalised(inputs, p)
    if not p.per_window:
        return inputs, x, layers.Flatten()(x)
    mean, deviation = window_statistics(x)
    return inputs, (x - mean) / deviation, layers.Flatten()(x)


def normalised(x: Tensor, p: Params) -> Tensor:
    """Scale each variable to mean 0 and deviation 1 over the training rows."""
    return layers.Normalization(mean=list(p.mean), variance=[std**2 for std in p.std])(x) if p.mean else x


def window_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each window's mean and deviation, `(batch, 1, variables)`; a constant window gets a small deviation."""
    return keras.ops.mean(x, axis=1, keepdims=True), keras.ops.std(x, axis=1, keepdims=True) + 0.05


def recurrent(x: Tensor, p: Params) -> Tensor:
    """Stack the layers; all but perhaps the last return their state at every step."""
    for index in range(p.layers):
        keeps_steps = p.per_step or p.pooling != "last" or index < p.layers - 1
        make = layers.LSTM if p.cell == "lstm" else layers.GRU
        regularizer = keras.regularizers.L2(p.weight_decay) if p.weight_decay else None
        layer = make(p.units, return_sequences=keeps_steps, kernel_regularizer=regularizer)
        x = (layers.Bidirectional(layer) if p.bidirectional else layer)(x)
        x = layers.Dropout(p.dropout)(x)
    return x


def pool(x: Tensor, p: Params) -> Tensor:
    """Combine the states of all steps to one; padding does not count."""
    return x if p.pooling == "last" else MaskedPooling(p.pooling)(x)


def classes(x: Tensor, linear: Tensor, p: Params) -> Tensor:
    """Return the probability of class 1, or of every class."""
    is_binary = p.num_classes == 2 and not p.per_step
    activation = "sigmoid" if is_binary else "softmax"
    units = 1 if is_binary else p.num_classes
    scores = layers.Dense(units, name="scores")(x)
    if p.skip:
        scores = layers.Add()([scores, layers.Dense(units, use_bias=False, name="linear")(linear)])
    if p.per_step:
        scores = WithoutMask()(scores)
    return layers.Activation(activation, dtype="float32", name="class")(scores)


def forecast(x: Tensor, linear: Tensor, inputs: Tensor, p: Params) -> Tensor:
    """Return the next values in the units of the inputs."""
    steps = 1 if p.per_step else p.horizon
    values = layers.Dense(steps * p.targets, name="values")(x)  # (batch, [steps,] horizon * targets)
    values = layers.Reshape((-1, p.targets), name="by_step")(values)  # (batch, steps or horizon, targets)
    if p.per_window:
        mean, deviation = window_statistics(normalised(inputs, p)[:, :, : p.targets])
        values = values * deviation + mean
    if p.skip:
        ahead = layers.Dense(steps * p.targets, name="linear")(linear)
        values = layers.Add()([values, layers.Reshape((steps, p.targets))(ahead)])
    if p.mean:
        scale, offset = list(p.std[: p.targets]), list(p.mean[: p.targets])
        values = layers.Rescaling(scale, offset)(values)
    return layers.Flatten(dtype="float32", name="forecast")(values)


@keras.saving.register_keras_serializable("tfspark")
def standardise(texts: Any) -> Any:
    """Convert text to lower case with spaces between words, as `adapt` does with Spark."""
    import tensorflow as tf

    plain = tf.strings.regex_replace(tf.strings.lower(texts, "utf-8"), "'", "")
    return tf.strings.regex_replace(plain, SEPARATORS, " ")


@keras.saving.register_keras_serializable("tfspark")
class MaskedPooling(layers.Layer):
    """Return the mean or the maximum over the steps that are not masked; 0 for a row without any.

    Args:
        kind: `mean` or `max`.

    Input shape: `(batch, steps, features)`.
    Output shape: `(batch, features)`.
    """

    supports_masking = True

    def __init__(self, kind: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.kind = kind

    def call(self, x: Tensor, mask: Any = None) -> Tensor:
        """Return the pooled features."""
        ops = keras.ops
        counts = ops.ones_like(x[..., :1]) if mask is None else ops.cast(mask, x.dtype)[..., None]
        if self.kind == "mean":
            return ops.sum(x * counts, axis=1) / ops.maximum(ops.sum(counts, axis=1), 1)
        largest = ops.max(ops.where(counts > 0, x, ops.full_like(x, -1e9)), axis=1)
        return largest * ops.max(counts, axis=1)

    def compute_mask(self, x: Any, mask: Any = None) -> None:
        """Return None: the result has no steps."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the layer."""
        return {**super().get_config(), "kind": self.kind}


@keras.saving.register_keras_serializable("tfspark")
class WithoutMask(layers.Layer):
    """Return values without their mask: labels of -1 mark the steps that do not count."""

    supports_masking = True

    def call(self, x: Tensor) -> Tensor:
        """Return the same values in a new tensor: Keras attaches the mask to the tensor."""
        return x * 1

    def compute_mask(self, x: Any, mask: Any = None) -> None:
        """Return None."""


@keras.saving.register_keras_serializable("tfspark")
class StepCrossentropy(keras.losses.Loss):
    """The mean cross-entropy over those steps of a row whose label is not -1.

    Shapes:
        y_true: (batch, steps) integers.
        y_pred: (batch, steps, classes) probabilities.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return one value per row, so that a row's weight can be applied."""
        counts = keras.ops.cast(y_true >= 0, y_pred.dtype)
        values = keras.losses.sparse_categorical_crossentropy(keras.ops.maximum(y_true, 0), y_pred)
        return keras.ops.sum(values * counts, axis=-1) / keras.ops.maximum(keras.ops.sum(counts, axis=-1), 1)


@keras.saving.register_keras_serializable("tfspark")
class StepAccuracy(keras.metrics.Mean):
    """The share of correctly classified steps, among those whose label is not -1."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Count a batch; a row's weight is that of each of its steps."""
        counts = keras.ops.cast(y_true >= 0, self.dtype)
        if sample_weight is not None:
            counts *= keras.ops.cast(keras.ops.reshape(sample_weight, (-1, 1)), self.dtype)
        right = keras.ops.cast(keras.ops.argmax(y_pred, axis=-1), "int32") == keras.ops.cast(y_true, "int32")
        return super().update_state(right, sample_weight=counts)


def vocabulary_of(texts: Sequence[str], size: int) -> list[str]:
    """Return the most frequent words, as `adapt` does with Spark."""
    import tensorflow as tf

    counts: Counter[str] = Counter()
    for start in range(0, len(texts), 1024):
        words = tf.strings.split(standardise(tf.constant(texts[start : start + 1024]))).flat_values
        counts.update(word.decode() for word in words.numpy())
    return sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]


def occlusion(model: keras.Model, text: str) -> list[tuple[str, float]]:
    """Return by how much the predicted probability falls if a word is removed (Zeiler, Fergus, 2013).

    Returns:
        Each word of the text with its importance.
    """
    words = text.split()
    texts = [text, *(" ".join(words[:i] + words[i + 1 :]) for i in range(len(words)))]
    said = probabilities(model, texts)
    whole_text, *without = said[:, said[0].argmax()]
    return [(word, float(whole_text - part)) for word, part in zip(words, without, strict=True)]


def probabilities(model: keras.Model, texts: Sequence[str]) -> np.ndarray:
    """Return the probability of each class, `(texts, classes)`, even if the model returns only that of class 1."""
    said = model.predict(np.array(texts, object), verbose=0, batch_size=64)
    return np.concatenate([1 - said, said], axis=1) if said.shape[-1] == 1 else said


def draw(model: keras.Model, x: Any, y: Any, directory: str) -> None:
    """Draw predictions of some rows: `occlusion.png` for texts, `forecast.png` and `steps.png` for series.

    Args:
        model: a trained model of this module.
        x: inputs of the model.
        y: their targets.
        directory: for the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    if model.inputs[0].dtype == "string" and len(model.output.shape) == 2:
        texts = [_text(value) for value in np.asarray(x).reshape(-1)[:6]]
        _draw_occlusion(figure, model, texts, np.asarray(y).reshape(-1))
        name = "occlusion.png"
    elif model.output_names == ["forecast"]:
        _draw_forecast(figure, model, np.asarray(x), np.asarray(y))
        name = "forecast.png"
    elif model.inputs[0].dtype != "string" and len(model.inputs[0].shape) == len(model.output.shape) == 3:
        _draw_steps(figure, model, np.asarray(x)[:6], np.asarray(y)[:6])
        name = "steps.png"
    else:
        return
    FigureCanvasAgg(figure)
    figure.savefig(Path(directory, name), dpi=120)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _draw_occlusion(figure: Any, model: keras.Model, texts: Sequence[str], truth: np.ndarray) -> None:
    """Draw each text's words in lines: on red if they support the prediction, on blue if they contradict it."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    rows = figure.subplots(len(texts), 1, squeeze=False)[:, 0]
    for axes, text, said, label in zip(rows, texts, probabilities(model, texts), truth, strict=False):
        axes.set_axis_off()
        verdict = f"says {said.argmax()} ({said.max():.0%}), is {int(label)}"
        is_right = said.argmax() == label
        axes.set_title(verdict, loc="left", fontsize=9, color="black" if is_right else "#D55E00")
        importance = occlusion(model, " ".join(text.split()[:48]))
        largest = max((abs(value) for _, value in importance), default=0.0) or 1.0
        color, column, line = Normalize(-largest, largest), 0, 0
        for word, value in importance:
            if column + len(word) > 120:
                column, line = 0, line + 1
            axes.text(
                column / 125, 0.9 - 0.3 * line, word, fontsize=8, family="monospace", va="top",
                bbox={"facecolor": colormaps["coolwarm"](color(value)), "edgecolor": "none", "pad": 1, "alpha": 0.7},
            )  # fmt: skip
            column += len(word) + 1
    figure.suptitle(
        "What speaks for the prediction (red) and against it (blue)", x=0.01, ha="left", fontsize=10
    )


def _draw_forecast(figure: Any, model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    """Draw the forecasts of the first variable against the truth, and some windows with their forecasts."""
    num_targets = model.get_layer("by_step").output.shape[-1]
    said, y = (
        values.reshape(len(x), -1, num_targets)[..., 0] for values in (model.predict(x, verbose=0), y)
    )  # (rows, steps)
    everything, windows = figure.subfigures(1, 2)
    axes = everything.subplots()
    ends = [min(y.min(), said.min()), max(y.max(), said.max())]
    axes.plot(ends, ends, color="#bbbbbb", linewidth=1)
    axes.scatter(y, said, s=8, color="#0072B2")
    axes.set_title(f"RMSE {np.sqrt(np.mean((said - y) ** 2)):.2f} on {len(y)} rows", loc="left")
    axes.set_xlabel("truth")
    axes.set_ylabel("forecast")
    is_per_step = len(model.get_layer("values").output.shape) == 3
    for cell, before, after, forecast in zip(windows.subplots(3, 2).flat, x[:, :, 0], y, said, strict=False):
        ahead = np.arange(1, len(after) + 1) - (len(before) if is_per_step else 0)
        cell.plot(np.arange(1 - len(before), 1), before, color="#999999", linewidth=1.2)
        cell.plot(ahead, after, "o", color="#0072B2", markersize=4, label="truth")
        cell.plot(ahead, forecast, "x", color="#D55E00", markersize=5, label="forecast")
    cell.legend(frameon=False, fontsize=8)


def _draw_steps(figure: Any, model: keras.Model, x: np.ndarray, y: np.ndarray) -> None:
    """Draw some series, and below each the true and the predicted classes of its steps."""
    said = model.predict(x, verbose=0).argmax(axis=-1)
    most = max(model.output.shape[-1] - 1, 1)
    cells = figure.subplots(len(x), 2, squeeze=False)
    for (above, below), values, truth, guess in zip(cells, x, y, said, strict=True):
        above.imshow(values.T, cmap="gray", aspect="auto")
        strips = np.ma.masked_less([truth, guess], 0)  # A label of -1 does not count.
        below.imshow(strips, cmap="tab20", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
        below.set_yticks([0, 1], ["is", "said"])
        above.set_yticks([])
        for axes in (above, below):
            axes.set_xticks([])


def main() -> None:
    """Train on a data set and print the metrics on its test rows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--data", type=Path, help="directory of TFRecord files; of a series: with train and test"
    )
    parser.add_argument(
        "--series", action="store_true", help="forecast sunspots instead of classifying sentences"
    )
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pictures", type=Path, help="directory for occlusion.png or forecast.png")
    args = parser.parse_args()
    data = args.data or (SUNSPOTS if args.series else SENTENCES)
    if not data.is_dir():
        parser.error(f"{data} is not there; run: scripts/prepare_data {data.parts[1]}")
    keras.utils.set_random_seed(args.seed)
    (x, y), (test_x, test_y) = read_windows(data) if args.series else read_texts(data, args.seed)
    if args.series:
        found = {"input_shape": x.shape[1:], "mean": [float(x.mean())], "std": [float(x.std())]}
        params, epochs = {**SERIES, **found}, 40
    else:
        params, epochs = {**TEXT, "vocabulary": vocabulary_of(list(x), Params.vocabulary_size)}, 4
    model = build_model(params)
    model.fit(x, y, batch_size=32, epochs=args.epochs or epochs, verbose=2, callbacks=callbacks(params))
    results = model.evaluate(test_x, test_y, verbose=0, return_dict=True)
    print(
        "test", ", ".join(f"{name} {value:.4f}" for name, value in results.items()), f"on {len(test_x)} rows"
    )
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        draw(model, test_x, test_y, str(args.pictures))


# The parameters that `main` trains with; the experiments in configs/ have the same.
TEXT: dict[str, Any] = {"inputs": "text", "units": 16, "length": 48, "learning_rate": 0.002, "decay": 0.5}
SERIES: dict[str, Any] = {
    "inputs": "series",
    "task": "forecast",
    "bidirectional": False,
    "units": 16,
    "pooling": "last",
    "per_window": True,
    "dropout": 0.3,
    "learning_rate": 0.01,
    "decay": 0.92,
}

Rows = tuple[np.ndarray, np.ndarray]


def read_texts(directory: Path, seed: int) -> tuple[Rows, Rows]:
    """Read texts and their labels, and keep a random fifth for the test.

    Shapes:
        texts: (rows,) strings.
        labels: (rows,) int64.
    """
    import tensorflow as tf

    rows = read_records(
        directory, text=tf.io.FixedLenFeature([], tf.string), label=tf.io.FixedLenFeature([], tf.int64)
    )
    order = np.random.default_rng(seed).permutation(len(rows["label"]))
    texts = np.array([text.decode() for text in rows["text"]], object)[order]  # Keras takes str, not bytes.
    labels, cut = rows["label"][order], round(0.8 * len(order))
    return (texts[:cut], labels[:cut]), (texts[cut:], labels[cut:])


def read_windows(directory: Path) -> tuple[Rows, Rows]:
    """Read the windows of one variable, and the values after each, of `train` and of `test`.

    Shapes:
        windows: (rows, steps, 1) float32.
        targets: (rows, horizon) float32.
    """
    import tensorflow as tf

    many = tf.io.FixedLenSequenceFeature([], tf.float32, allow_missing=True)
    train, test = (read_records(directory / part, window=many, target=many) for part in ("train", "test"))
    return (train["window"][..., None], train["target"]), (test["window"][..., None], test["target"])


def read_records(directory: Path, **features: Any) -> dict[str, np.ndarray]:
    """Read all rows of a directory of TFRecord files."""
    import tensorflow as tf

    files = sorted(str(path) for path in directory.iterdir() if path.name[0] not in "._")
    columns = tf.io.parse_example(list(tf.data.TFRecordDataset(files)), features)
    return {name: values.numpy() for name, values in columns.items()}


if __name__ == "__main__":
    main()
