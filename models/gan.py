"""Generative adversarial networks for images: DCGAN, plain and conditional.

Two networks compete in training, each with its own optimizer. A model module: tfspark calls `build_model(params)` in
every trainer. It needs no Spark, so it can also be run as a program, in the root of the repository:

    python -m models.gan
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfspark.parameters import above_0, at_least_0, flag, fraction, read_params, shape, whole

Tensor = keras.KerasTensor

# The data that `main` trains on.
DIGITS = Path("data/digits/images")


@dataclasses.dataclass(frozen=True)
class Params:
    """The parameters of `build_model`.

    Attributes:
        input_shape: height, width and channels of one image; height and width are multiples of 4.
        conditional: both networks get the class (Mirza and Osindero, 2014): labels are 0 to `num_classes - 1`.
        num_classes: 2 or more; `conditional` only.
        latent: number of random values from which an image is generated, 1 or more.
        filters: channels of the discriminator's first convolution, 1 or more.
        label_smoothing: real images count as real by 1 less this, in [0, 1) (Salimans et al., 2016).
        dropout: fraction of the discriminator's activations dropped in training, in [0, 1).
        gradient_penalty: prevents the discriminator from being steep at real images, so that the images of one class
            stay different (gamma of R1, Mescheder et al., 2018), 0 or more. 0 saves a third of the time.
        learning_rate: step size of the generator's Adam, above 0.
        discriminator_learning_rate: step size of the discriminator's Adam, above 0.
        seed: of the random numbers of the training.
    """

    input_shape: tuple[int, int, int] = shape(
        (28, 28, 1), "three whole numbers above 0: height, width, channels", 3
    )
    conditional: bool = flag(False)
    num_classes: int = whole(10, 2)
    latent: int = whole(64, 1)
    filters: int = whole(32, 1)
    label_smoothing: float = fraction(0.1)
    dropout: float = fraction(0.3)
    gradient_penalty: float = at_least_0(0.0)
    learning_rate: float = above_0(5e-4)
    discriminator_learning_rate: float = above_0(5e-4)
    seed: int = whole(0, 0)

    def __post_init__(self) -> None:
        """Reject sizes that cannot be halved twice.

        Raises:
            ValueError: names the minimum size.
        """
        if any(size % 4 for size in self.input_shape[:2]):
            raise ValueError(
                "height and width must be multiples of 4, at least 4 x 4 pixels. "
                f"Received: input_shape={self.input_shape!r}"
            )


def build_model(params: Mapping[str, Any] | None = None) -> GAN:
    """Build and compile the two networks.

    Trained on images `(batch, height, width, channels)`, floats in [0, 1], and, if conditional, their classes.

    Input shape: random numbers `(batch, latent)`; if conditional, a dict with them as `noise`, and `label`, `(batch,)`.
    Output shape: images `(batch, height, width, channels)` in [0, 1].

    Args:
        params: fields of `Params`; missing ones have their defaults.

    Raises:
        ValueError: a parameter is unknown or outside its range, or the size cannot be halved twice.
    """
    p = read_params(Params, params or {})
    # Steps of Adam as in Radford et al. (2015): less momentum than usual.
    optimizer = keras.optimizers.Adam(p.discriminator_learning_rate, beta_1=0.5)
    model = GAN(
        generator(p), discriminator(p), optimizer, p.label_smoothing, p.gradient_penalty, p.seed, name="gan"
    )
    model.compile(keras.optimizers.Adam(p.learning_rate, beta_1=0.5))
    return model


def generator(p: Params) -> keras.Model:
    """Build the generator (Radford et al., 2015): transposed convolutions, each doubling height and width."""
    height, width, channels = p.input_shape
    noise = keras.Input((p.latent,), name="noise")
    inputs, x = noise, noise
    if p.conditional:
        label = keras.Input((), dtype="int32", name="label")
        inputs = {"noise": noise, "label": label}
        x = layers.Concatenate()(
            [noise, layers.Embedding(p.num_classes, p.latent)(label)]
        )  # (batch, 2 latent)
    x = layers.Dense(height // 4 * (width // 4) * 4 * p.filters, use_bias=False)(x)
    x = layers.Reshape((height // 4, width // 4, 4 * p.filters))(normalised(x))
    x = layers.Conv2DTranspose(2 * p.filters, 4, 2, "same", use_bias=False)(
        x
    )  # (batch, height / 2, width / 2, ...)
    x = layers.Conv2DTranspose(channels, 4, 2, "same")(normalised(x))  # (batch, height, width, channels)
    return keras.Model(inputs, layers.Activation("sigmoid", dtype="float32")(x), name="generator")


def normalised(x: Tensor) -> Tensor:
    """Apply batch normalization and ReLU."""
    return layers.ReLU()(layers.BatchNormalization()(x))


def discriminator(p: Params) -> keras.Model:
    """Build the discriminator: strided convolutions, then one number, above 0 for real images."""
    image = keras.Input(p.input_shape, name="image")
    x = layers.Rescaling(2, -1)(image)
    for filters in (p.filters, 2 * p.filters):
        x = layers.Conv2D(filters, 4, 2, "same")(x)  # half as high and wide
        x = layers.Dropout(p.dropout)(layers.LeakyReLU(0.2)(x))
    x = layers.Flatten()(x)  # (batch, features)
    logit = layers.Dense(1, dtype="float32")(x)  # (batch, 1)
    if not p.conditional:
        return keras.Model(image, logit, name="discriminator")
    # The class is compared with the features by a scalar product (Miyato and Koyama, 2018).
    label = keras.Input((), dtype="int32", name="label")
    x = layers.Dense(p.latent)(x)
    match = layers.Dot(axes=1, dtype="float32")(
        [x, layers.Embedding(p.num_classes, p.latent)(label)]
    )  # (batch, 1)
    return keras.Model({"image": image, "label": label}, layers.Add()([logit, match]), name="discriminator")


@keras.saving.register_keras_serializable("tfspark")
class GAN(keras.Model):
    """A generator and a discriminator that compete (Goodfellow et al., 2014).

    Rows of weight 0 do not count in any loss. The compiled optimizer is the generator's.

    Args:
        generator: noise (and class) -> image.
        discriminator: image (and class) -> logit.
        discriminator_optimizer: is saved with the model.
        label_smoothing: real images count as real by 1 less this.
        gradient_penalty: times half the squared gradient of the logit of a real image with respect to its pixels is
            added to the discriminator's loss in training.
        seed: of the noise of the training.
    """

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        discriminator_optimizer: keras.optimizers.Optimizer,
        label_smoothing: float,
        gradient_penalty: float,
        seed: int,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.generator, self.discriminator = generator, discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.discriminator_optimizer.build(discriminator.trainable_variables)
        self.label_smoothing, self.gradient_penalty, self.seed = label_smoothing, gradient_penalty, seed
        names = ("generator_loss", "discriminator_loss", "real_score", "fake_score")
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        # Build it, so that it can be saved untrained.
        self(keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype=x.dtype), generator.input))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics; there is no single loss."""
        return self.trackers

    @property
    def is_conditional(self) -> bool:
        """Whether both networks get the class."""
        return len(self.generator.inputs) > 1

    @property
    def latent(self) -> int:
        """Number of random values from which an image is generated."""
        return next(tensor.shape[-1] for tensor in self.generator.inputs if len(tensor.shape) == 2)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if the model is not conditional."""
        return next((w.shape[0] for w in self.generator.weights if "embedding" in w.path), 0)

    def compile(self, optimizer: Any) -> None:
        """Set the generator's optimizer."""
        super().compile(optimizer)
        self.optimizer.build(self.generator.trainable_variables)

    def get_compile_config(self) -> dict[str, Any]:
        """Return the configuration for `compile_from_config`."""
        return {"optimizer": keras.optimizers.serialize(self.optimizer)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile from the result of `get_compile_config`."""
        self.compile(keras.optimizers.deserialize(config["optimizer"]))

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Return generated images."""
        return self.generator(inputs, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take a step with both networks on the same generated images; runs on each replica."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as of_generator, tf.GradientTape() as of_discriminator:
            losses = self.losses_of(x, y, weight, training=True)
        for tape, loss, network, optimizer in (
            (of_generator, losses[0], self.generator, self.optimizer),
            (of_discriminator, losses[1], self.discriminator, self.discriminator_optimizer),
        ):
            variables = network.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, Any]:
        """Measure the losses; a test image should look as real as a training image."""
        self.losses_of(*keras.utils.unpack_x_y_sample_weight(data), training=False)
        return self.get_metrics_result()

    def losses_of(self, x: Any, y: Any, weight: Any, training: bool) -> tuple[Any, Any]:
        """Return the losses of generator and discriminator: this replica's part of the mean over all rows."""
        num_rows = tf.shape(x)[0]
        weight = tf.ones(num_rows) if weight is None else tf.cast(weight, tf.float32)
        labels = tf.cast(tf.reshape(y, (-1,)), tf.int32) if self.is_conditional else None
        noise = self.noise(num_rows)
        real = tf.cast(x, tf.float32)
        fake = self.generator(self.with_label("noise", noise, labels), training=training)
        with tf.GradientTape() as of_real:
            of_real.watch(real)
            real_logit, fake_logit = (
                self.discriminator(self.with_label("image", image, labels), training=training)[:, 0]
                for image in (real, fake)
            )
        generator_loss = cross_entropy(fake_logit, 1.0)
        real_loss = cross_entropy(real_logit, 1.0 - self.label_smoothing)
        discriminator_loss = (real_loss + cross_entropy(fake_logit, 0.0)) / 2
        if training and self.gradient_penalty:
            steepness = tf.reduce_sum(tf.square(of_real.gradient(real_logit, real)), axis=(1, 2, 3))
            discriminator_loss += self.gradient_penalty / 2 * steepness
        measured = (generator_loss, discriminator_loss, tf.sigmoid(real_logit), tf.sigmoid(fake_logit))
        for tracker, rows in zip(self.trackers, measured, strict=True):
            tracker.update_state(rows, sample_weight=weight)
        return tuple(tf.nn.compute_average_loss(rows, sample_weight=weight) for rows in measured[:2])

    def noise(self, num_rows: Any) -> Any:
        """Draw noise that depends on step and replica: it differs between them, but a repeated step gets the same."""
        replica = tf.distribute.get_replica_context()
        step = tf.cast(self.optimizer.iterations, tf.int32) * replica.num_replicas_in_sync
        draw = step + tf.cast(replica.replica_id_in_sync_group, tf.int32)
        return tf.random.stateless_normal((num_rows, self.latent), seed=tf.stack([self.seed, draw]))

    def with_label(self, name: str, value: Any, labels: Any) -> Any:
        """Add the class to the inputs of a network, if the model is conditional."""
        return value if labels is None else {name: value, "label": labels}

    def get_config(self) -> dict[str, Any]:
        """Return the configuration for `from_config`."""
        parts = ("generator", "discriminator", "discriminator_optimizer")
        made = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in parts}
        numbers = ("label_smoothing", "gradient_penalty", "seed", "name")
        return {**made, **{name: getattr(self, name) for name in numbers}}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GAN:
        """Create the model from the result of `get_config`."""
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("generator", "discriminator", "discriminator_optimizer")
        }
        return cls(**{**config, **parts})


def cross_entropy(logit: Tensor, target: float) -> Tensor:
    """Return each row's loss against its target: 1 for real."""
    return tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logit), target), logit)


def samples(model: GAN, num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Generate images; a conditional model generates its classes in turn, equally often.

    Shapes:
        images: (num_rows, height, width, channels) float32 in [0, 1].
        labels: (num_rows,) int32; None if the model is not conditional.
    """
    noise = np.random.default_rng(seed).standard_normal((num_rows, model.latent)).astype("float32")
    if not model.is_conditional:
        return model.generator.predict(noise, verbose=0, batch_size=256), None
    labels = np.arange(num_rows, dtype="int32") % model.num_classes
    return model.generator.predict({"noise": noise, "label": labels}, verbose=0, batch_size=256), labels


def export(model: GAN, directory: str) -> None:
    """Save the generator as a separate model, `generator.keras`."""
    model.generator.save(Path(directory, "generator.keras"))


def draw(model: GAN, x: Any, y: Any, directory: str) -> None:
    """Draw `samples.png`: ten lines of images; for a conditional model a column for each of up to 20 classes."""
    draw_grid(model, Path(directory, "samples.png"))


def draw_epoch(model: GAN, epoch: int, directory: str) -> None:
    """Draw `epoch-0001.png` and so on: images from the same noise, after each epoch."""
    draw_grid(model, Path(directory, f"epoch-{epoch:04d}.png"))


def draw_grid(model: GAN, path: Path) -> None:
    """Draw ten lines of generated images, with a gray line between them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = model.num_classes if 0 < model.num_classes <= 20 else 10
    images = samples(model, 10 * columns)[0]
    images = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=0.5)
    height, width, channels = images.shape[1:]
    lines = images.reshape(10, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    picture = lines.reshape(10 * height, columns * width, channels)[:-1, :-1]
    figure = Figure(figsize=(6, 6 * picture.shape[0] / picture.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture if channels == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def judge(images: np.ndarray, classifier: keras.Model) -> tuple[float, np.ndarray]:
    """Classify generated images by a classifier of real ones.

    Returns:
        Its mean confidence, and the share of each class in its predictions.
    """
    said = classifier.predict(images, verbose=0, batch_size=256)
    shares = np.bincount(said.argmax(axis=1), minlength=said.shape[1]) / len(said)
    return float(said.max(axis=1).mean()), shares


def main() -> None:
    """Train on small digits; judge samples by a classifier of the same real digits."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=DIGITS, help="directory of TFRecord files of images")
    parser.add_argument("--conditional", action="store_true")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pictures", type=Path, help="directory for samples.png")
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"{args.data} is not there; run: scripts/prepare_data {args.data.parts[-2]}")
    keras.utils.set_random_seed(args.seed)
    images, labels = read_digits(args.data)
    sizes = {"input_shape": images.shape[1:], "conditional": args.conditional}
    model = build_model({**SMALL_IMAGES, **sizes, "seed": args.seed})
    model.fit(images, labels, batch_size=64, epochs=args.epochs, verbose=2)
    classifier = train_classifier(images, labels)
    made, wanted = samples(model, 10_000)
    confidence, shares = judge(made, classifier)
    print(
        f"mean confidence {confidence:.3f}; rarest class {shares.min():.1%}, most frequent {shares.max():.1%}"
    )
    if wanted is not None:
        right = classifier.predict(made, verbose=0, batch_size=256).argmax(axis=1) == wanted
        print(f"of the class asked for: {right.mean():.1%}")
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        draw(model, images, labels, str(args.pictures))


# The parameters that `main` trains with, as in configs/gan_digits.yaml: for few and small images.
SMALL_IMAGES: dict[str, Any] = {"dropout": 0, "gradient_penalty": 0.3, "discriminator_learning_rate": 0.002}


def train_classifier(images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Train a small classifier on real images, and print its accuracy on test images."""
    cut = round(0.8 * len(images))
    model = keras.Sequential([
        keras.Input(images.shape[1:]),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(0.4),
        layers.Dense(10, "softmax"),
    ])  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(
        images[:cut],
        labels[:cut],
        batch_size=64,
        epochs=int(np.clip(100_000 // len(images), 2, 60)),
        verbose=0,
    )
    accuracy = model.evaluate(images[cut:], labels[cut:], verbose=0)[1]
    print(f"the judge's accuracy on {len(images) - cut} real images: {accuracy:.4f}")
    return model


def read_digits(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read TFRecord files of square gray digits with pixels up to 255, or up to 16 if they are 8 x 8.

    Shapes:
        images: (rows, side, side, 1) float32 in [0, 1].
        labels: (rows,) int64.
    """
    files = sorted(str(path) for path in directory.iterdir() if path.name[0] not in "._")
    feature = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    columns = tf.io.parse_example(list(tf.data.TFRecordDataset(files)), feature)
    pixels = np.frombuffer(b"".join(columns["image"].numpy()), np.uint8).reshape(len(columns["label"]), -1)
    side = int(pixels.shape[1] ** 0.5)
    return pixels.reshape(-1, side, side, 1) / np.float32(16 if side == 8 else 255), columns["label"].numpy()


if __name__ == "__main__":
    main()
