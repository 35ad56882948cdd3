"""Convolutional networks that classify images.

A model module: tfspark calls `build_model(params)` in every trainer. It needs neither Spark nor tfspark, so
it also runs alone, from the top of the repository:

    python -m models.cnn
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

# What `main` trains on, and how far it moves the images: 4,000 go further when they do not stay in place.
DIGITS = Path("data/mnist_5k/images")
SHIFT = 0.07


@dataclasses.dataclass(frozen=True)
class Params:
    """What `build_model` can be told.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        input_shape: height, width and channels of one image.
        num_classes: number of classes, 2 or more; labels are 0 to `num_classes - 1`.
        filters: channels of the first convolution; later ones have a multiple of it.
        shift: in training, images are moved by up to this fraction of their height and width, in [0, 1).
        dropout: fraction of activations dropped before the output layer, in [0, 1).
        weight_decay: L2 penalty on the kernels, 0 or more.
        learning_rate: step size of Adam, above 0.
    """

    architecture: str = "lenet"
    input_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    filters: int = 32
    shift: float = 0.0
    dropout: float = 0.4
    weight_decay: float = 0.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            ValueError: names the parameter, its range and the value received.
        """
        object.__setattr__(self, "input_shape", _image_shape(self.input_shape))
        self._require(
            "architecture", self.architecture in list(ARCHITECTURES), f"one of {', '.join(ARCHITECTURES)}"
        )
        self._require("num_classes", _is_whole(self.num_classes, 2), "a whole number, 2 or more")
        self._require("filters", _is_whole(self.filters, 1), "a whole number, 1 or more")
        self._require("shift", _is_number(self.shift) and 0 <= self.shift < 1, "a number in [0, 1)")
        self._require("dropout", _is_number(self.dropout) and 0 <= self.dropout < 1, "a number in [0, 1)")
        self._require(
            "weight_decay", _is_number(self.weight_decay) and self.weight_decay >= 0, "a number, 0 or more"
        )
        self._require(
            "learning_rate", _is_number(self.learning_rate) and self.learning_rate > 0, "a number above 0"
        )
        least = LEAST_SIZE[self.architecture]
        if min(self.input_shape[:2]) < least:
            raise ValueError(
                f"{self.architecture} needs images of at least {least} x {least} pixels. "
                f"Received: input_shape={self.input_shape!r}"
            )

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {expected}. Received: {name}={getattr(self, name)!r}")


def build_model(params: Mapping[str, Any] | None = None) -> keras.Model:
    """Build and compile an image classifier.

    Input shape: `(batch, height, width, channels)`, floats in [0, 1].
    Output shape: `(batch, num_classes)`, probabilities.

    Args:
        params: fields of `Params`; whatever is left out has its default.

    Raises:
        ValueError: a parameter is unknown or outside its range, or the image is too small.
    """
    p = read_params(params or {})
    inputs = keras.Input(p.input_shape, name="image")
    features = ARCHITECTURES[p.architecture](augment(inputs, p), p)
    outputs = layers.Dense(p.num_classes, activation="softmax", name="class")(features)
    model = keras.Model(inputs, outputs, name=p.architecture)
    model.compile(
        optimizer=keras.optimizers.Adam(p.learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def lenet(x: keras.KerasTensor, p: Params) -> keras.KerasTensor:
    """Two convolutions, each pooled, and a hidden layer: LeNet-5's plan (LeCun et al., 1998) with ReLU."""
    x = conv(x, p.filters, 5, p, padding="valid")  # (batch, height - 4, width - 4, filters)
    x = layers.MaxPooling2D()(x)  # half as high and wide
    x = conv(x, 2 * p.filters, 5, p, padding="valid")  # again 4 less, with 2 filters
    x = layers.MaxPooling2D()(x)  # half as high and wide
    return head(x, 128, p)


def simple(x: keras.KerasTensor, p: Params) -> keras.KerasTensor:
    """Two small convolutions, each pooled, and a hidden layer: for small images and quick tries."""
    x = conv(x, p.filters, 3, p)
    x = layers.MaxPooling2D()(x)  # half as high and wide
    x = conv(x, 2 * p.filters, 3, p)
    x = layers.MaxPooling2D()(x)  # half as high and wide
    return head(x, 64, p)


ARCHITECTURES: dict[str, Callable[[keras.KerasTensor, Params], keras.KerasTensor]] = {
    "lenet": lenet,
    "simple": simple,
}

# The least height and width with a pixel left after the last pooling.
LEAST_SIZE = {"lenet": 16, "simple": 4}


def augment(x: keras.KerasTensor, p: Params) -> keras.KerasTensor:
    """Move the images about in training; predictions see them as they are."""
    return layers.RandomTranslation(p.shift, p.shift, fill_mode="constant")(x) if p.shift else x


def conv(
    x: keras.KerasTensor, filters: int, kernel: int, p: Params, padding: str = "same"
) -> keras.KerasTensor:
    """Convolve and rectify; with the padding "same", height and width stay."""
    return layers.Conv2D(filters, kernel, padding=padding, activation="relu", kernel_regularizer=l2(p))(x)


def head(x: keras.KerasTensor, units: int, p: Params) -> keras.KerasTensor:
    """Flatten to one hidden layer."""
    x = layers.Flatten()(x)  # (batch, height * width * channels)
    x = layers.Dense(units, activation="relu", kernel_regularizer=l2(p))(x)
    return layers.Dropout(p.dropout)(x)


def l2(p: Params) -> keras.regularizers.Regularizer | None:
    """Return the penalty on a kernel, or None where there is none."""
    return keras.regularizers.L2(p.weight_decay) if p.weight_decay else None


def read_params(params: Mapping[str, Any]) -> Params:
    """Check the names in `params` and fill in the defaults.

    Raises:
        ValueError: an unknown name, with the nearest known one; or a value outside its range.
    """
    known = [field.name for field in dataclasses.fields(Params)]
    unknown = [_unknown(name, known) for name in params if name not in known]
    if unknown:
        raise ValueError("; ".join(unknown))
    return Params(**params)


def _unknown(name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown model parameter {name!r}: {hint}"


def _image_shape(value: object) -> tuple[int, int, int]:
    if isinstance(value, list | tuple) and len(value) == 3 and all(_is_whole(size, 1) for size in value):
        height, width, channels = value
        return (height, width, channels)
    raise ValueError(
        "input_shape must be three whole numbers above 0: height, width, channels. "
        f"Received: input_shape={value!r}"
    )


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def main() -> None:
    """Train on 4,000 of 5,000 handwritten digits and print the accuracy on the other 1,000."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, default=DIGITS, help="directory of TFRecord files")
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="lenet")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"{args.data} is not there; run: scripts/prepare_data mnist_5k")
    keras.utils.set_random_seed(args.seed)
    images, labels = read_digits(args.data, args.seed)
    model = build_model({"architecture": args.architecture, "shift": SHIFT})
    model.fit(images[:4000], labels[:4000], batch_size=64, epochs=args.epochs, verbose=2)
    _, accuracy = model.evaluate(images[4000:], labels[4000:], verbose=0)
    print(f"test accuracy {accuracy:.4f} on {len(labels) - 4000} images")


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
