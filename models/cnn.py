"""Convolutional networks that classify images.

LeNet-style, AlexNet, VGG, ResNet and Inception. A model module: tfspark calls `build_model(params)` in every
trainer. It needs no Spark, so it can also be run as a program, in the root of the repository:

    python -m models.cnn
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfspark.parameters import above_0, at_least_0, choice, flag, fraction, read_params, shape, whole

Tensor = keras.KerasTensor

# The data that `main` trains on, and how far it shifts the images: shifted, 4,000 images give a better model.
DIGITS = Path("data/mnist_5k/images")
SHIFT = 0.07


# Architectures: the function that builds the network below its output layer, the minimum height and width of an
# image, and the published width of its first convolution; all other widths are multiples of it.


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network: its builder from an image and `Params`, and its limits.

    Attributes:
        make: image -> features; or several: those of the network first, then those of auxiliary heads.
        least_size: minimum height and width of an image.
        filters: channels of the first convolution.
    """

    make: Callable[[Tensor, Params], Tensor | list[Tensor]]
    least_size: int
    filters: int


def lenet(x: Tensor, p: Params) -> Tensor:
    """Two convolutions, each pooled, and a hidden layer: LeNet-5's plan (LeCun et al., 1998) with ReLU."""
    x = conv(x, p.filters, 5, p, padding="valid")  # (batch, height - 4, width - 4, filters)
    x = layers.MaxPooling2D()(x)  # half as high and wide
    x = conv(x, 2 * p.filters, 5, p, padding="valid")  # again 4 less, with 2 filters
    x = layers.MaxPooling2D()(x)  # half as high and wide
    return head(x, [4 * p.filters], p)


def simple(x: Tensor, p: Params) -> Tensor:
    """Two small convolutions, each pooled, and a hidden layer: for small images and quick experiments."""
    x = conv(x, p.filters, 3, p)
    x = layers.MaxPooling2D()(x)  # half as high and wide
    x = conv(x, 2 * p.filters, 3, p)
    x = layers.MaxPooling2D()(x)  # half as high and wide
    return head(x, [2 * p.filters], p)


def alexnet(x: Tensor, p: Params) -> Tensor:
    """Five convolutions and two hidden layers (Krizhevsky et al., 2012), without its two groups."""
    f = p.filters  # 96
    x = conv(x, f, 11, p, strides=4, padding="valid")  # (batch, 55, 55, 96) for an image of 227 x 227
    x = layers.MaxPooling2D(3, 2)(x)  # 27 x 27
    x = conv(x, f * 8 // 3, 5, p)  # 256 filters
    x = layers.MaxPooling2D(3, 2)(x)  # 13 x 13
    for filters in (4 * f, 4 * f, f * 8 // 3):  # 384, 384, 256
        x = conv(x, filters, 3, p)
    x = layers.MaxPooling2D(3, 2)(x)  # 6 x 6
    return head(x, [f * 128 // 3] * 2, p)  # two of 4,096


def vgg(*depths: int) -> Callable[[Tensor, Params], Tensor]:
    """Build a VGG (Simonyan and Zisserman, 2014): five stages of 3 x 3 convolutions, each pooled.

    Each convolution has batch normalization, without which 16 and more layers hardly train from scratch.
    """

    def make(x: Tensor, p: Params) -> Tensor:
        for depth, factor in zip(depths, (1, 2, 4, 8, 8), strict=True):
            for _ in range(depth):
                x = conv_norm(x, factor * p.filters, 3, p)
            x = layers.MaxPooling2D()(x)  # half as high and wide
        return head(x, [64 * p.filters] * 2, p)  # two of 4,096

    return make


def resnet(
    depths: Sequence[int], block: Callable[[Tensor, int, int, Params], Tensor]
) -> Callable[[Tensor, Params], Tensor]:
    """Build a ResNet for large images (He et al., 2015): a wide first layer, then four stages of blocks."""

    def make(x: Tensor, p: Params) -> Tensor:
        x = conv_norm(x, p.filters, 7, p, strides=2)  # half as high and wide
        x = layers.MaxPooling2D(3, 2, padding="same")(x)  # a quarter
        x = stages(x, depths, block, p)  # 1/32, with 8 (basic) or 32 (bottleneck) times the filters
        return pooled(x, p)

    return make


def cifar_resnet(depth: int) -> Callable[[Tensor, Params], Tensor]:
    """Build a ResNet for small images (He et al., 2015, section 4.2): 3 stages of (depth - 2) / 6 blocks."""

    def make(x: Tensor, p: Params) -> Tensor:
        x = conv_norm(x, p.filters, 3, p)
        x = stages(x, [(depth - 2) // 6] * 3, basic, p)  # a quarter as high and wide, 4 times the filters
        return pooled(x, p)

    return make


def stages(
    x: Tensor, depths: Sequence[int], block: Callable[[Tensor, int, int, Params], Tensor], p: Params
) -> Tensor:
    """Stack residual blocks; each stage but the first halves height and width and doubles the filters."""
    for stage, depth in enumerate(depths):
        for index in range(depth):
            strides = 2 if stage and index == 0 else 1
            x = block(x, p.filters * 2**stage, strides, p)
    return x


def basic(x: Tensor, filters: int, strides: int, p: Params) -> Tensor:
    """Add two 3 x 3 convolutions to their input."""
    y = conv_norm(x, filters, 3, p, strides=strides)
    y = conv_norm(y, filters, 3, p, activation=None)
    return layers.ReLU()(layers.Add()([y, shortcut(x, filters, strides, p)]))


def bottleneck(x: Tensor, filters: int, strides: int, p: Params) -> Tensor:
    """Add 1 x 1, 3 x 3 and 1 x 1 convolutions to their input; the last has four times the filters."""
    y = conv_norm(x, filters, 1, p)
    y = conv_norm(y, filters, 3, p, strides=strides)
    y = conv_norm(y, 4 * filters, 1, p, activation=None)
    return layers.ReLU()(layers.Add()([y, shortcut(x, 4 * filters, strides, p)]))


def shortcut(x: Tensor, filters: int, strides: int, p: Params) -> Tensor:
    """Return a block's input, projected where its shape changes."""
    if strides == 1 and x.shape[-1] == filters:
        return x
    return conv_norm(x, filters, 1, p, strides=strides, activation=None)


# Of each Inception module, as in table 1 of the paper: filters of the 1 x 1 path; of the 3 x 3 path's reduction
# and convolution; of the 5 x 5 path's; of the path that pools. All for 64 filters in the first layer.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def inception(x: Tensor, p: Params) -> list[Tensor]:
    """Inception v1, "GoogLeNet" (Szegedy et al., 2014), with its auxiliary heads after 4a and 4d."""
    auxiliary = []
    x = conv_norm(x, p.filters, 7, p, strides=2)  # half as high and wide
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # a quarter
    x = conv_norm(x, p.filters, 1, p)
    x = conv_norm(x, 3 * p.filters, 3, p)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)  # 1/8
    for name, widths in INCEPTION.items():
        if name in ("4a", "5a"):
            x = layers.MaxPooling2D(3, 2, padding="same")(x)  # 1/16, then 1/32
        x = inception_module(x, widths, p)
        if name in ("4a", "4d"):
            auxiliary.append(auxiliary_features(x, p))
    return [pooled(x, p), *auxiliary]


def inception_module(x: Tensor, widths: Sequence[int], p: Params) -> Tensor:
    """Process several scales in parallel; height and width stay the same, the paths' channels are concatenated."""
    one, reduce3, three, reduce5, five, pool = (max(1, width * p.filters // 64) for width in widths)
    paths = [
        conv_norm(x, one, 1, p),
        conv_norm(conv_norm(x, reduce3, 1, p), three, 3, p),
        conv_norm(conv_norm(x, reduce5, 1, p), five, 5, p),
        conv_norm(layers.MaxPooling2D(3, 1, padding="same")(x), pool, 1, p),
    ]
    return layers.Concatenate()(paths)


def auxiliary_features(x: Tensor, p: Params) -> Tensor:
    """Features of an auxiliary head: 5 x 5 means, every third, and a hidden layer of 1,024."""
    x = layers.AveragePooling2D(5, 3)(x)
    return head(conv_norm(x, 2 * p.filters, 1, p), [16 * p.filters], p)


# Minimum sizes: one value remains after the last pooling, and no stride is longer than the image.
ARCHITECTURES: dict[str, Architecture] = {
    "lenet": Architecture(lenet, 16, 32),
    "simple": Architecture(simple, 4, 32),
    "alexnet": Architecture(alexnet, 67, 96),
    "vgg11": Architecture(vgg(1, 1, 2, 2, 2), 32, 64),
    "vgg16": Architecture(vgg(2, 2, 3, 3, 3), 32, 64),
    "vgg19": Architecture(vgg(2, 2, 4, 4, 4), 32, 64),
    "resnet18": Architecture(resnet((2, 2, 2, 2), basic), 32, 64),
    "resnet34": Architecture(resnet((3, 4, 6, 3), basic), 32, 64),
    "resnet50": Architecture(resnet((3, 4, 6, 3), bottleneck), 32, 64),
    "resnet20": Architecture(cifar_resnet(20), 4, 16),
    "resnet32": Architecture(cifar_resnet(32), 4, 16),
    "resnet56": Architecture(cifar_resnet(56), 4, 16),
    "inception": Architecture(inception, 65, 64),
}


@dataclasses.dataclass(frozen=True)
class Params:
    """The parameters of `build_model`.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        input_shape: height, width and channels of one image.
        resize: height and width to which the model resizes images; None: it does not.
        num_classes: number of classes, 2 or more; labels are 0 to `num_classes - 1`.
        multi_label: a row may have any of the classes; a label is a row of `num_classes` zeros and ones.
        filters: channels of the first convolution, with which all others grow; None: as published.
        shift: in training, shift images by up to this fraction of their height and width, in [0, 1).
        rotate: in training, rotate images by up to this fraction of a full turn, in [0, 1).
        zoom: in training, enlarge or shrink images by up to this fraction, in [0, 1).
        flip: in training, mirror every second image, left to right.
        dropout: fraction of activations dropped before an output layer, in [0, 1).
        weight_decay: L2 penalty on the kernels below the output layer, 0 or more.
        auxiliary_weight: weight of each auxiliary head in the loss, 0 or more; Inception only.
        learning_rate: step size of Adam, above 0.
    """

    architecture: str = choice("lenet", list(ARCHITECTURES))
    input_shape: tuple[int, int, int] = shape(
        (28, 28, 1), "three whole numbers above 0: height, width, channels", 3
    )
    resize: tuple[int, int] | None = shape(
        None, "two whole numbers above 0: height, width; or nothing (null)", 2
    )
    num_classes: int = whole(10, 2)
    multi_label: bool = flag(False)
    filters: int | None = whole(None, 1)
    shift: float = fraction(0.0)
    rotate: float = fraction(0.0)
    zoom: float = fraction(0.0)
    flip: bool = flag(False)
    dropout: float = fraction(0.4)
    weight_decay: float = at_least_0(0.0)
    auxiliary_weight: float = at_least_0(0.3)
    learning_rate: float = above_0(1e-3)

    def __post_init__(self) -> None:
        """Set the published width, and reject images that are too small.

        Raises:
            ValueError: names the minimum size.
        """
        architecture = ARCHITECTURES[self.architecture]
        object.__setattr__(self, "filters", self.filters or architecture.filters)
        if min(self.resize or self.input_shape[:2]) < architecture.least_size:
            least = architecture.least_size
            raise ValueError(
                f"{self.architecture} needs images of at least {least} x {least} pixels; give larger ones, or "
                f"resize: [{least}, {least}]. Received: input_shape={self.input_shape!r}, resize={self.resize!r}"
            )


def build_model(params: Mapping[str, Any] | None = None) -> keras.Model:
    """Build and compile an image classifier.

    Input shape: `(batch, height, width, channels)`, floats in [0, 1].
    Output shape: `(batch, num_classes)`, probabilities; for a multi-label model, an independent one for each class.

    Args:
        params: fields of `Params`; missing ones have their defaults.

    Raises:
        ValueError: a parameter is unknown or outside its range, or the image is too small.
    """
    p = read_params(Params, params or {})
    inputs = keras.Input(p.input_shape, name="image")
    features = ARCHITECTURES[p.architecture].make(augment(inputs, p), p)
    features = features if isinstance(features, list) else [features]
    outputs = [output(x, index, p) for index, x in enumerate(features)]
    model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=p.architecture)
    if len(outputs) > 1:
        model = AuxiliaryHeads(model, p.auxiliary_weight, name=f"{p.architecture}_with_heads")
    model.compile(keras.optimizers.Adam(p.learning_rate), loss=loss_of(p), metrics=metrics_of(p))
    return model


def loss_of(p: Params) -> str:
    """Return the cross-entropy of the task."""
    return "binary_crossentropy" if p.multi_label else "sparse_categorical_crossentropy"


def metrics_of(p: Params) -> list[Any]:
    """Return the metrics; precision, recall and F1 of a single label follow from the confusion matrix."""
    if not p.multi_label:
        return ["accuracy"]
    return [
        keras.metrics.BinaryAccuracy(name="accuracy"),
        keras.metrics.AUC(name="auc", multi_label=True, num_labels=p.num_classes),
        keras.metrics.F1Score(name="f1", average="macro", threshold=0.5),
    ]


@keras.saving.register_keras_serializable("tfspark")
class AuxiliaryHeads(keras.Model):
    """A network with auxiliary outputs, which are used only in training.

    In training all outputs count in the loss; in prediction and evaluation only the first one exists.

    Args:
        network: a model with several outputs of the same shape.
        weight: of each output but the first in the loss.
    """

    def __init__(self, network: keras.Model, weight: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.network = network
        self.weight = weight
        self(keras.Input(network.input_shape[1:]))  # build it, so that it can be saved untrained

    def call(self, x: Tensor, training: bool | None = None) -> Tensor | list[Tensor]:
        """Return all outputs in training, else the first."""
        outputs = self.network(x, training=training)
        return outputs if training else outputs[0]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Add the auxiliary outputs' losses, weighted, to that of the first."""
        first, *others = y_pred if isinstance(y_pred, list) else [y_pred]
        loss = super().compute_loss(x, y, first, sample_weight, training)
        loss_of_head = keras.losses.get(self.loss_name)
        return loss + sum(self.weight * loss_of_head(y, other, sample_weight) for other in others)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Measure the first output."""
        return super().compute_metrics(x, y, y_pred[0] if isinstance(y_pred, list) else y_pred, sample_weight)

    @property
    def loss_name(self) -> str:
        """The class of the compiled loss, which every head has."""
        return "BinaryCrossentropy" if self.loss == "binary_crossentropy" else "SparseCategoricalCrossentropy"

    def get_config(self) -> dict[str, Any]:
        """Return the configuration for `from_config`."""
        network = keras.saving.serialize_keras_object(self.network)
        return {"network": network, "weight": self.weight, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AuxiliaryHeads:
        """Create the model from the result of `get_config`."""
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        return cls(**{**config, "network": network})


def augment(x: Tensor, p: Params) -> Tensor:
    """Resize images and, only in training, change them a little."""
    if p.resize:
        x = layers.Resizing(*p.resize)(x)  # (batch, *resize, channels)
    if p.flip:
        x = layers.RandomFlip("horizontal")(x)
    if p.rotate:
        x = layers.RandomRotation(p.rotate, fill_mode="constant")(x)
    if p.zoom:
        x = layers.RandomZoom(p.zoom, fill_mode="constant")(x)
    return layers.RandomTranslation(p.shift, p.shift, fill_mode="constant")(x) if p.shift else x


def conv(x: Tensor, filters: int, kernel: int, p: Params, strides: int = 1, padding: str = "same") -> Tensor:
    """Apply a convolution and ReLU; with the padding "same", height and width are divided by the strides."""
    return layers.Conv2D(filters, kernel, strides, padding, activation="relu", kernel_regularizer=l2(p))(x)


def conv_norm(
    x: Tensor, filters: int, kernel: int, p: Params, strides: int = 1, activation: str | None = "relu"
) -> Tensor:
    """Apply a convolution, batch normalization and ReLU; height and width are divided by the strides."""
    x = layers.Conv2D(
        filters,
        kernel,
        strides,
        "same",
        use_bias=False,  # the normalisation has one
        kernel_initializer="he_normal",
        kernel_regularizer=l2(p),
    )(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def head(x: Tensor, widths: Sequence[int], p: Params) -> Tensor:
    """Apply Flatten, then hidden layers."""
    x = layers.Flatten()(x)  # (batch, height * width * channels)
    for units in widths:
        x = layers.Dense(units, activation="relu", kernel_regularizer=l2(p))(x)
        x = layers.Dropout(p.dropout)(x)
    return x


def pooled(x: Tensor, p: Params) -> Tensor:
    """Return the mean of each channel."""
    return layers.Dropout(p.dropout)(layers.GlobalAveragePooling2D()(x))  # (batch, channels)


def output(x: Tensor, index: int, p: Params) -> Tensor:
    """Return probabilities: of one class among all, or independently of each class."""
    name = f"auxiliary_{index}" if index else "class"
    activation = "sigmoid" if p.multi_label else "softmax"
    return layers.Dense(p.num_classes, activation, dtype="float32", name=name)(x)


def l2(p: Params) -> keras.regularizers.Regularizer | None:
    """Return the penalty on a kernel; None if there is none."""
    return keras.regularizers.L2(p.weight_decay) if p.weight_decay else None


def saliency(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return how much each pixel changes the score of the predicted class (Simonyan et al., 2013).

    The score is the input of the softmax or the sigmoid: a probability of 1 does not change.

    Shapes:
        images: (rows, height, width, channels) float32.
        returns: (rows, height, width) float32, each row's largest value 1.
    """
    import tensorflow as tf

    network = getattr(model, "network", model)  # of one with auxiliary heads
    last = network.get_layer("class")
    features = keras.Model(network.inputs, last.input)
    x = tf.convert_to_tensor(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        below = tf.cast(features(x, training=False), last.compute_dtype)
        score = tf.reduce_max(tf.matmul(below, last.kernel) + last.bias, axis=-1)
    size = np.abs(tape.gradient(score, x).numpy()).max(axis=-1)
    return size / np.maximum(size.max(axis=(1, 2), keepdims=True), 1e-12)


def draw(model: keras.Model, x: Any, y: Any, directory: str) -> None:
    """Draw `saliency.png`: some images, and below each the pixels that the prediction depends on.

    Args:
        model: a trained classifier.
        x: images, as inputs of the model.
        y: their labels.
        directory: for the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = np.asarray(x)[:8].astype("float32")
    said, truth = np.asarray(model(images, training=False)), np.asarray(y)[: len(images)]
    maps = saliency(model, images)
    figure = Figure(figsize=(1.3 * len(images), 3.2), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, image in enumerate(images):
        axes[0, column].imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray")
        title, color = _verdict(said[column], truth[column])
        axes[0, column].set_title(title, fontsize=9, color=color)
        axes[1, column].imshow(maps[column], cmap="magma")
    for cell in axes.flat:
        cell.set_axis_off()
    FigureCanvasAgg(figure)
    figure.savefig(Path(directory, "saliency.png"), dpi=120)


def _verdict(said: np.ndarray, truth: np.ndarray) -> tuple[str, str]:
    """Write the predicted class, or classes; in red beside the true one if they differ."""
    if truth.size > 1:  # a yes or no for each class
        found, expected = np.flatnonzero(said > 0.5).tolist(), np.flatnonzero(truth > 0.5).tolist()
    else:
        found, expected = [int(said.argmax())], [int(truth.item())]
    names, others = (", ".join(map(str, classes)) or "none" for classes in (found, expected))
    return (f"says {names}", "black") if found == expected else (f"says {names}\nis {others}", "#D55E00")


def main() -> None:
    """Train on four fifths of the handwritten digits and print the accuracy on the others."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=DIGITS, help="directory of TFRecord files")
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="lenet")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pictures", type=Path, help="directory for saliency.png")
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"{args.data} is not there; run: scripts/prepare_data mnist_5k")
    keras.utils.set_random_seed(args.seed)
    images, labels = read_digits(args.data, args.seed)
    least = ARCHITECTURES[args.architecture].least_size
    resize = [least, least] if least > 28 else None
    model = build_model({"architecture": args.architecture, "shift": SHIFT, "resize": resize})
    cut = round(0.8 * len(labels))
    model.fit(images[:cut], labels[:cut], batch_size=64, epochs=args.epochs, verbose=2)
    _, accuracy = model.evaluate(images[cut:], labels[cut:], verbose=0)
    print(f"test accuracy {accuracy:.4f} on {len(labels) - cut} images")
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        draw(model, images[cut:], labels[cut:], str(args.pictures))


def read_digits(directory: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Read TFRecord files of digits in a seeded random order.

    Shapes:
        images: (rows, 28, 28, 1) float32 in [0, 1].
        labels: (rows,) int64.
    """
    import tensorflow as tf

    files = sorted(str(path) for path in directory.iterdir() if path.name[0] not in "._")
    records = list(tf.data.TFRecordDataset(files))
    feature = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    columns = tf.io.parse_example(records, feature)
    images = tf.reshape(tf.io.decode_raw(columns["image"], tf.uint8), (-1, 28, 28, 1))
    order = np.random.default_rng(seed).permutation(len(records))
    return (images.numpy() / np.float32(255))[order], columns["label"].numpy()[order]


if __name__ == "__main__":
    main()
