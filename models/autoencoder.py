"""Autoencoders: dense, convolutional, denoising, variational.

They learn to reproduce their input through a narrow code: to find anomalies by the error, or to reduce dimensions
by the encoder, which is exported by itself. A model module: tfspark calls `adapt(params, df)` on the driver and
`build_model(params)` in every trainer. It needs no Spark, so it can also be run as a program, in the root of the
repository:

    python -m models.autoencoder                # anomalies: malignant tumours, having seen benign ones only
    python -m models.autoencoder --images       # 16 numbers for a handwritten digit
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
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
    param,
    read_params,
    several,
    whole,
)

Tensor = keras.KerasTensor

# The data that `main` trains on.
TUMOURS = Path("data/breast_cancer")
DIGITS = Path("data/mnist_5k/images")


@dataclasses.dataclass(frozen=True)
class Params:
    """The parameters of `build_model`.

    Attributes:
        architecture: `dense`, or `convolutional` for images.
        input_shape: of one row; for an image height, width and channels, with height and width 4 or more.
        code: number of values of the code, to which a row is reduced, 1 or more.
        hidden: units of the dense encoder's layers; the decoder has them in reverse.
        filters: channels of the first convolution, 1 or more; the second has twice as many.
        noise: deviation of the Gaussian noise added in training, 0 or more: the model learns to remove it (Vincent et
            al., 2008).
        variational: the code is a distribution, kept close to the normal one (Kingma and Welling, 2013).
        kl_weight: weight of the divergence from the normal distribution, 0 or more; 1 is right for Gaussian rows of
            variance 1/2. `variational` only.
        standardise: values may have any range, and each is divided by its deviation, which `adapt` computes; else they
            must be in [0, 1].
        mean: of each value; `adapt` computes it.
        std: standard deviation of each value; `adapt` computes it.
        labels: rows have a label, 1 for anomalies; measure how well the error separates them from ordinary rows.
        dropout: fraction of the hidden activations dropped in training, in [0, 1).
        weight_decay: L2 penalty on the kernels, 0 or more.
        learning_rate: step size of Adam, above 0.
    """

    architecture: str = choice("dense", ["dense", "convolutional"])
    input_shape: tuple[int, ...] = param(
        (28, 28, 1),
        "a list of whole numbers above 0",
        lambda value: are(value, is_size) and len(value) > 0,
    )
    code: int = whole(16, 1)
    hidden: tuple[int, ...] = several((128,), "a list of whole numbers above 0", is_size)
    filters: int = whole(16, 1)
    noise: float = at_least_0(0.0)
    variational: bool = flag(False)
    kl_weight: float = at_least_0(1.0)
    standardise: bool = flag(False)
    mean: tuple[float, ...] = several((), "a list of numbers", is_number)
    std: tuple[float, ...] = several((), "a list of numbers above 0", is_above_0)
    labels: bool = flag(False)
    dropout: float = fraction(0.0)
    weight_decay: float = at_least_0(0.0)
    learning_rate: float = above_0(1e-3)

    def __post_init__(self) -> None:
        """Reject values that contradict each other.

        Raises:
            ValueError: names the values that must be combined.
        """
        if self.architecture == "convolutional" and (
            len(self.input_shape) != 3 or min(self.input_shape[:2]) < 4
        ):
            raise ValueError(
                "architecture: convolutional needs images of at least 4 x 4 pixels: input_shape: [height, width, "
                f"channels]. Received: input_shape={self.input_shape!r}"
            )
        counts = {len(self.mean), len(self.std)}
        if self.standardise and counts != {math.prod(self.input_shape)}:
            raise ValueError(
                f"standardise needs a mean and a std for each of the {math.prod(self.input_shape)} values: call "
                f"adapt(params, df). Received: {len(self.mean)} and {len(self.std)}"
            )


def adapt(params: Mapping[str, Any], df: Any) -> dict[str, Any]:
    """Compute mean and deviation of each value in a Spark DataFrame, if `standardise` is set. Runs on the driver.

    Args:
        params: as for `build_model`.
        df: the training rows; the model reads the first column, an array.
    """
    if not params.get("standardise") or params.get("mean"):
        return dict(params)
    values = df.selectExpr(f"posexplode(`{df.columns[0]}`) AS (position, value)").groupBy("position")
    rows = values.agg({"value": "avg"}).join(values.agg({"value": "stddev_pop"}), "position").collect()
    _, means, deviations = zip(*sorted(tuple(row) for row in rows), strict=True)
    return {**params, "mean": list(means), "std": [deviation or 1.0 for deviation in deviations]}


def build_model(params: Mapping[str, Any] | None = None) -> Autoencoder:
    """Build and compile an autoencoder. Its input is also its target; labels are only used in metrics.

    Input shape: `(batch, *input_shape)`, floats; in [0, 1] unless standardised.
    Output shape: the same.

    Args:
        params: fields of `Params`; missing ones have their defaults.

    Raises:
        ValueError: a parameter is unknown or outside its range, or contradicts another.
    """
    p = read_params(Params, params or {})
    make = {"dense": dense, "convolutional": convolutional}[p.architecture]
    encoder, decoder = make(p)
    model = Autoencoder(
        encoder, decoder, p.kl_weight if p.variational else 0.0, p.labels, name=p.architecture
    )
    metrics = [keras.metrics.MeanSquaredError(name="mse"), keras.metrics.MeanAbsoluteError(name="mae")]
    model.compile(
        keras.optimizers.Adam(p.learning_rate),
        loss=ReconstructionError(list(p.std) if p.standardise else None),
        metrics=[] if p.standardise else metrics,  # without scaling, the largest values would dominate
    )
    return model


def dense(p: Params) -> tuple[keras.Model, keras.Model]:
    """Build an encoder and a decoder from dense layers."""
    inputs = keras.Input(p.input_shape, name="row")
    x = layers.Flatten()(noisy(inputs, p))  # (batch, values)
    for units in p.hidden:
        x = hidden(x, units, p)
    encoder = keras.Model(inputs, code(x, p), name="encoder")
    y = codes = keras.Input((p.code,), name="code")
    for units in reversed(p.hidden):
        y = hidden(y, units, p)
    y = layers.Dense(math.prod(p.input_shape))(y)  # (batch, values)
    y = layers.Reshape(p.input_shape)(y)
    return encoder, keras.Model(codes, values(y, p), name="decoder")


def convolutional(p: Params) -> tuple[keras.Model, keras.Model]:
    """Build an encoder from two convolutions, each halving height and width, and a decoder that mirrors it."""
    height, width, channels = p.input_shape
    half, quarter = [-(-size // 2) for size in (height, width)], [-(-size // 4) for size in (height, width)]
    inputs = keras.Input(p.input_shape, name="image")
    x = conv(noisy(inputs, p), p.filters, p)  # (batch, height / 2, width / 2, filters)
    x = conv(x, 2 * p.filters, p)  # (batch, height / 4, width / 4, 2 filters)
    x = hidden(layers.Flatten()(x), 8 * p.code, p)
    encoder = keras.Model(inputs, code(x, p), name="encoder")
    codes = keras.Input((p.code,), name="code")
    y = hidden(hidden(codes, 8 * p.code, p), math.prod(quarter) * 2 * p.filters, p)
    y = layers.Reshape((*quarter, 2 * p.filters))(y)  # (batch, height / 4, width / 4, 2 filters)
    y = cut(layers.Conv2DTranspose(p.filters, 3, 2, "same", activation="relu")(y), half)
    y = cut(layers.Conv2DTranspose(p.filters, 3, 2, "same", activation="relu")(y), [height, width])
    y = layers.Conv2D(channels, 3, padding="same")(y)  # (batch, height, width, channels)
    return encoder, keras.Model(codes, values(y, p), name="decoder")


def noisy(x: Tensor, p: Params) -> Tensor:
    """Standardise, and in training add noise."""
    if p.standardise:
        scale, offset = (
            [1 / std for std in p.std],
            [-mean / std for mean, std in zip(p.mean, p.std, strict=True)],
        )
        x = layers.Rescaling(*(np.reshape(numbers, p.input_shape).tolist() for numbers in (scale, offset)))(x)
    return layers.GaussianNoise(p.noise)(x) if p.noise else x


def hidden(x: Tensor, units: int, p: Params) -> Tensor:
    """Apply a dense layer, ReLU, and dropout in training."""
    regularizer = keras.regularizers.L2(p.weight_decay) if p.weight_decay else None
    x = layers.Dense(units, "relu", kernel_regularizer=regularizer)(x)
    return layers.Dropout(p.dropout)(x) if p.dropout else x


def conv(x: Tensor, filters: int, p: Params) -> Tensor:
    """Apply a convolution that halves height and width (rounded up), and ReLU."""
    regularizer = keras.regularizers.L2(p.weight_decay) if p.weight_decay else None
    return layers.Conv2D(filters, 3, 2, "same", activation="relu", kernel_regularizer=regularizer)(x)


def cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """Remove the row and the column that rounding up has added."""
    return x[:, : size[0], : size[1], :]


def code(x: Tensor, p: Params) -> Tensor | list[Tensor]:
    """Return the code, `(batch, code)`; for a variational encoder its mean and the logarithm of its variance."""
    mean = layers.Dense(p.code, name="code")(x)
    return [mean, layers.Dense(p.code, name="log_variance")(x)] if p.variational else mean


def values(y: Tensor, p: Params) -> Tensor:
    """Scale the decoder's output to the range of the values."""
    if not p.standardise:
        return layers.Activation("sigmoid", dtype="float32")(y)
    mean, std = (np.reshape(numbers, p.input_shape).tolist() for numbers in (p.mean, p.std))
    return layers.Rescaling(std, mean, dtype="float32")(y)


@keras.saving.register_keras_serializable("tfspark")
class Autoencoder(keras.Model):
    """Encodes and decodes its input, which is also its target.

    Args:
        encoder: row -> code; for a variational model -> mean and logarithm of the variance of the code.
        decoder: code -> row.
        kl_weight: weight of the divergence in the loss.
        labels: rows have a label, 1 for anomalies; measure the AUC of the error.
    """

    def __init__(
        self, encoder: keras.Model, decoder: keras.Model, kl_weight: float, labels: bool, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.encoder, self.decoder, self.kl_weight, self.labels = encoder, decoder, kl_weight, labels
        self.sample = Sample() if self.is_variational else None
        # The error is mapped into [0, 1), where the metric has its thresholds.
        self.auc = keras.metrics.AUC(num_thresholds=1000, name="auc") if labels else None
        self(keras.Input(encoder.input_shape[1:]))  # build it, so that it can be saved untrained

    @property
    def is_variational(self) -> bool:
        """Whether the code is a distribution."""
        return len(self.encoder.outputs) > 1

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        """Return the reconstruction."""
        encoded = self.encoder(x, training=training)
        drawn = self.sample(encoded, training=training) if self.sample else encoded
        return self.decoder(drawn, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the reconstruction's error; for a variational model add the divergence (the evidence lower bound).

        Both are means over the values of a row; the divergence is that of the code of the row without noise.
        """
        loss = super().compute_loss(x, x, y_pred, sample_weight, training)
        if self.sample is None:
            return loss
        num_values = math.prod(self.encoder.input_shape[1:])
        divergence = DivergenceFromNormal()(*self.encoder(x, training=False), sample_weight)
        return loss + self.kl_weight / num_values * divergence

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Measure the reconstruction and, if there are labels, how well its error separates anomalies."""
        if self.auc is not None:
            error = self.loss.call(x, y_pred)
            self.auc.update_state(keras.ops.reshape(y, (-1,)), error / (1 + error), sample_weight)
        return super().compute_metrics(x, x, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration for `from_config`."""
        parts = {
            name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("encoder", "decoder")
        }
        return {**parts, "kl_weight": self.kl_weight, "labels": self.labels, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Autoencoder:
        """Create the model from the result of `get_config`."""
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("encoder", "decoder")
        }
        return cls(**{**config, **parts})


@keras.saving.register_keras_serializable("tfspark")
class Sample(layers.Layer):
    """Draw a code from its distribution in training; use the mean in prediction.

    The reparameterisation of Kingma and Welling (2013, section 2.4): code = mean + deviation * noise, so the gradient
    passes through mean and deviation.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, moments: Sequence[Tensor], training: bool | None = None) -> Tensor:
        """Return a code: `(batch, code)`."""
        mean, log_variance = moments
        if not training:
            return mean
        noise = keras.random.normal(keras.ops.shape(mean), dtype=mean.dtype, seed=self.seed_generator)
        return mean + keras.ops.exp(log_variance / 2) * noise


@keras.saving.register_keras_serializable("tfspark")
class ReconstructionError(keras.losses.Loss):
    """The mean squared error over a row's values, each divided by its deviation.

    Args:
        std: deviation of each value of a row; None: 1.

    Shapes:
        y_true, y_pred: (batch, *input_shape).
    """

    def __init__(self, std: list[float] | None = None, name: str = "reconstruction_error", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.std = std

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return one error per row: `(batch,)`."""
        num_values = math.prod(y_pred.shape[1:])
        lacking = keras.ops.reshape(keras.ops.cast(y_true, y_pred.dtype) - y_pred, (-1, num_values))
        if self.std is not None:
            lacking = lacking / keras.ops.convert_to_tensor(self.std, lacking.dtype)
        return keras.ops.mean(keras.ops.square(lacking), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the object."""
        return {**super().get_config(), "std": self.std}


@keras.saving.register_keras_serializable("tfspark")
class DivergenceFromNormal(keras.losses.Loss):
    """The Kullback-Leibler divergence of a code's distribution from the standard normal one.

    Kingma and Welling (2013), appendix B: -1/2 sum(1 + log variance - mean^2 - variance).
    """

    def call(self, mean: Any, log_variance: Any) -> Any:
        """Return one divergence per row: `(batch,)`."""
        terms = 1 + log_variance - keras.ops.square(mean) - keras.ops.exp(log_variance)
        return -0.5 * keras.ops.sum(terms, axis=-1)


def encoder_of(model: Autoencoder) -> keras.Model:
    """Return the model that reduces a row to its code; for a variational model, to the mean of the code."""
    return keras.Model(model.encoder.inputs[0], model.encoder.outputs[0], name="encoder")


def score(model: Autoencoder, x: np.ndarray) -> np.ndarray:
    """Return each row's reconstruction error; it is large if the row differs from the training rows.

    Shapes:
        x: (rows, *input_shape).
        returns: (rows,).
    """
    return np.asarray(model.loss.call(x.astype("float32"), model.predict(x, verbose=0)))


def threshold(model: Autoencoder, x: np.ndarray, quantile: float = 0.95) -> float:
    """Return the error that this share of ordinary rows does not exceed; rows above it are anomalies."""
    return float(np.quantile(score(model, x), quantile))


def export(model: Autoencoder, directory: str) -> None:
    """Save the encoder as a separate model, `encoder.keras`: it reduces a row to its code."""
    encoder_of(model).save(Path(directory, "encoder.keras"))


def draw(model: Autoencoder, x: Any, y: Any, directory: str) -> None:
    """Draw `reconstructions.png` (for images), `errors.png` (for rows with labels), and `latent_space.png`.

    Args:
        model: a trained autoencoder.
        x: inputs of the model.
        y: their labels; the rows again if there are none.
        directory: for the pictures.
    """
    x = np.asarray(x).astype("float32")
    labels = np.asarray(y).reshape(-1) if np.size(y) == len(x) else None
    if x.ndim == 4:
        _save(
            Path(directory, "reconstructions.png"),
            (10, 2.4),
            _draw_images,
            x[:10],
            model.predict(x[:10], verbose=0),
        )
    if labels is not None and set(labels.tolist()) == {0, 1}:
        _save(Path(directory, "errors.png"), (7, 4), _draw_errors, score(model, x), labels)
    codes = encoder_of(model).predict(x, verbose=0)
    if min(codes.shape) > 1:
        _save(Path(directory, "latent_space.png"), (6, 5.5), _draw_codes, codes, labels)


def _save(path: Path, size: tuple[float, float], draw_on: Callable[..., None], *arguments: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw_on(figure, *arguments)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def _draw_images(figure: Any, images: np.ndarray, said: np.ndarray) -> None:
    """Draw images, and below each its reconstruction."""
    cells = figure.subplots(2, len(images), squeeze=False)
    for line, row in enumerate((images, said)):
        for cell, image in zip(cells[line], row, strict=True):
            cell.imshow(
                np.clip(image if image.shape[-1] == 3 else image[..., 0], 0, 1), cmap="gray", vmin=0, vmax=1
            )
            cell.set_axis_off()


def _draw_errors(figure: Any, errors: np.ndarray, labels: np.ndarray) -> None:
    """Draw the distributions of the errors of ordinary rows and of anomalies."""
    axes = figure.subplots()
    bins = np.geomspace(max(errors.min(), 1e-6), errors.max(), 40)
    for label, color, name in ((0, "#0072B2", "ordinary"), (1, "#D55E00", "anomalies")):
        axes.hist(errors[labels == label], bins, alpha=0.6, color=color, label=name)
    limit = np.quantile(errors[labels == 0], 0.95)
    found = np.mean(errors[labels == 1] > limit)
    axes.axvline(limit, color="#333333", linestyle="--", linewidth=1, label="95 % of the ordinary are below")
    axes.set_xscale("log")
    axes.set_xlabel("reconstruction error")
    axes.set_ylabel("rows")
    axes.set_title(
        f"AUC {auc_of(errors, labels):.4f} on {len(errors)} rows; {found:.0%} of the anomalies above the line",
        loc="left",
    )
    axes.legend(frameon=False)


def _draw_codes(figure: Any, codes: np.ndarray, labels: np.ndarray | None) -> None:
    """Draw the codes on their two principal axes."""
    centred = codes - codes.mean(axis=0)
    main_axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes = figure.subplots()
    colors = {} if labels is None else {"c": labels, "cmap": "tab10", "vmin": 0, "vmax": max(9, *labels)}
    points = axes.scatter(*(centred @ main_axes.T).T, s=8, **colors)
    axes.set_title("Codes on their two main axes", loc="left")
    if labels is not None and len(set(labels)) <= 10:
        axes.legend(*points.legend_elements(), frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def auc_of(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability that an anomaly has a larger score than an ordinary row (ties count half)."""
    anomalies, ordinary = scores[labels == 1], np.sort(scores[labels == 0])
    below = np.searchsorted(ordinary, anomalies, "left") + np.searchsorted(ordinary, anomalies, "right")
    return float(below.mean() / 2 / len(ordinary))


# The parameters that `main` trains with; the experiments in configs/ have the same.
ANOMALIES: dict[str, Any] = {
    "input_shape": [30],
    "standardise": True,
    "labels": True,
    "code": 2,
    "hidden": [16],
}
IMAGES: dict[str, Any] = {"architecture": "convolutional", "code": 16}


def main() -> None:
    """Train without labels; print how well anomalies are found (five folds), or the error on test images."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", action="store_true", help="reduce digits instead of finding anomalies")
    parser.add_argument("--variational", action="store_true")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pictures", type=Path, help="directory for the pictures")
    args = parser.parse_args()
    data = DIGITS if args.images else TUMOURS
    if not data.is_dir():
        parser.error(f"{data} is not there; run: scripts/prepare_data {data.parts[1]}")
    keras.utils.set_random_seed(args.seed)
    run = reduce_images if args.images else find_anomalies
    model, x, y = run(args.epochs, args.variational)
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        draw(model, x, y, str(args.pictures))


def find_anomalies(epochs: int | None, variational: bool) -> tuple[Autoencoder, np.ndarray, np.ndarray]:
    """Train on benign tumours, detect malignant ones by their error; print the AUC of each fold and their mean."""
    found = []
    for fold in range(1, 6):
        (x, _), (test_x, labels) = (
            read_tumours(TUMOURS / f"fold_{fold}" / part) for part in ("train", "test")
        )
        statistics = {"mean": x.mean(axis=0).tolist(), "std": x.std(axis=0).tolist()}
        model = build_model({**ANOMALIES, **statistics, "variational": variational})
        model.fit(x, np.zeros(len(x)), batch_size=32, epochs=epochs or 15, verbose=0)
        found.append(auc_of(score(model, test_x), labels))
        limit = threshold(model, x)
        caught, alarms = (np.mean(score(model, test_x)[labels == label] > limit) for label in (1, 0))
        print(
            f"fold {fold}: AUC {found[-1]:.4f}; above the 95 % quantile: {caught:.0%} malignant, {alarms:.0%} benign"
        )
    print(f"mean AUC {np.mean(found):.4f}")
    return model, test_x, labels


def reduce_images(epochs: int | None, variational: bool) -> tuple[Autoencoder, np.ndarray, np.ndarray]:
    """Train on four fifths of the digits; print the mean squared error on the others."""
    images, labels = read_images(DIGITS)
    cut = round(0.8 * len(images))
    model = build_model({**IMAGES, "input_shape": images.shape[1:], "variational": variational})
    model.fit(images[:cut], images[:cut], batch_size=32, epochs=epochs or 30, verbose=2)
    mse = model.evaluate(images[cut:], images[cut:], verbose=0, return_dict=True)["mse"]
    print(f"test MSE {mse:.4f} on {len(images) - cut} images")
    return model, images[cut:], labels[cut:]


def read_tumours(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read measures, (rows, 30) float32, and labels, (rows,) int64."""
    import tensorflow as tf

    rows = read_records(
        directory,
        measures=tf.io.FixedLenFeature([30], tf.float32),
        malignant=tf.io.FixedLenFeature([], tf.int64),
    )
    return rows["measures"], rows["malignant"]


def read_images(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read square gray images, (rows, side, side, 1) float32 in [0, 1], and labels, (rows,) int64."""
    import tensorflow as tf

    rows = read_records(
        directory, image=tf.io.FixedLenFeature([], tf.string), label=tf.io.FixedLenFeature([], tf.int64)
    )
    pixels = np.frombuffer(b"".join(rows["image"]), np.uint8).reshape(len(rows["image"]), -1)
    side = math.isqrt(pixels.shape[1])
    return pixels.reshape(-1, side, side, 1) / np.float32(255), rows["label"]


def read_records(directory: Path, **features: Any) -> dict[str, np.ndarray]:
    """Read all rows of a directory of TFRecord files."""
    import tensorflow as tf

    files = sorted(str(path) for path in directory.iterdir() if path.name[0] not in "._")
    columns = tf.io.parse_example(list(tf.data.TFRecordDataset(files)), features)
    return {name: values.numpy() for name, values in columns.items()}


if __name__ == "__main__":
    main()
