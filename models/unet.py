"""A network that predicts the class of each pixel of an image: U-Net (Ronneberger et al., 2015).

A model module: tfspark calls `build_model(params)` in every trainer. It needs no Spark, so it can also be run as a
program, in the root of the repository:

    python -m models.unet
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfspark.parameters import above_0, fraction, read_params, shape, whole

Tensor = keras.KerasTensor

# The data that `main` trains on.
PASTED = Path("data/pasted_digits")


@dataclasses.dataclass(frozen=True)
class Params:
    """The parameters of `build_model`.

    Attributes:
        input_shape: height, width and channels of one image; height and width are multiples of 2 ** depth.
        num_classes: number of classes, 2 or more; a mask has a number from 0 to `num_classes - 1` for each pixel.
        filters: channels of the first convolutions, 1 or more; each halving of the image doubles them.
        depth: number of times that the image is halved, 1 or more.
        dropout: fraction of activations dropped where the image is smallest, in [0, 1).
        learning_rate: step size of Adam in the first epoch, above 0.
        decay: the step size is multiplied by this after each epoch, above 0.
    """

    input_shape: tuple[int, int, int] = shape(
        (32, 32, 1), "three whole numbers above 0: height, width, channels", 3
    )
    num_classes: int = whole(11, 2)
    filters: int = whole(16, 1)
    depth: int = whole(2, 1)
    dropout: float = fraction(0.2)
    learning_rate: float = above_0(3e-3)
    decay: float = above_0(1.0)

    def __post_init__(self) -> None:
        """Reject images that cannot be halved `depth` times.

        Raises:
            ValueError: names the factor.
        """
        factor = 2**self.depth
        if any(size % factor for size in self.input_shape[:2]):
            raise ValueError(
                f"height and width must be multiples of {factor} with depth: {self.depth}. "
                f"Received: input_shape={self.input_shape!r}"
            )


def build_model(params: Mapping[str, Any] | None = None) -> keras.Model:
    """Build and compile a U-Net.

    Input shape: `(batch, height, width, channels)`, floats in [0, 1].
    Output shape: `(batch, height, width, num_classes)`, probabilities.

    Args:
        params: fields of `Params`; missing ones have their defaults.

    Raises:
        ValueError: a parameter is unknown or outside its range, or the image cannot be halved `depth` times.
    """
    p = read_params(Params, params or {})
    inputs = keras.Input(p.input_shape, name="image")
    x, before = inputs, []
    for level in range(p.depth):
        x = twice(x, p.filters * 2**level)
        before.append(x)
        x = layers.MaxPooling2D()(x)  # half as high and wide
    x = layers.Dropout(p.dropout)(twice(x, p.filters * 2**p.depth))
    for level in reversed(range(p.depth)):
        filters = p.filters * 2**level
        x = layers.Conv2DTranspose(filters, 2, strides=2, kernel_initializer="he_normal")(x)  # twice
        x = twice(layers.Concatenate()([before[level], x]), filters)
    outputs = layers.Conv2D(p.num_classes, 1, activation="softmax", dtype="float32", name="mask")(x)
    model = keras.Model(inputs, outputs, name="unet")
    iou = keras.metrics.MeanIoU(p.num_classes, sparse_y_pred=False, name="mean_iou")
    optimizer = keras.optimizers.Adam(p.learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy", iou])
    return model


def callbacks(params: Mapping[str, Any] | None = None) -> list[keras.callbacks.Callback]:
    """Return a callback that lowers the learning rate after each epoch."""
    decay = (params or {}).get("decay", Params.decay)
    if decay == 1:
        return []
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * decay if epoch else rate)]


def twice(x: Tensor, filters: int) -> Tensor:
    """Apply a convolution, batch normalization and ReLU, two times; height and width stay the same."""
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


def draw(model: keras.Model, x: Any, y: Any, directory: str) -> None:
    """Draw some images, their masks, and the predicted masks, as `masks.png`.

    Args:
        model: a trained model of this module.
        x: images.
        y: their masks.
        directory: for the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images, truth = np.asarray(x)[:8], np.asarray(y)[:8]
    said = model.predict(images, verbose=0).argmax(axis=-1)
    num_classes = model.output.shape[-1]
    figure = Figure(figsize=(1.6 * len(images), 5), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(3, len(images), squeeze=False)
    for column, triple in zip(rows.T, zip(images, truth, said, strict=True), strict=True):
        for axes, picture, is_mask in zip(column, triple, (False, True, True), strict=True):
            axes.set_axis_off()
            if is_mask:
                axes.imshow(picture, cmap="tab20", vmin=0, vmax=max(num_classes - 1, 1))
            else:
                axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray")
    for axes, title in zip(rows[:, 0], ("image", "mask", "said"), strict=True):
        axes.set_title(title, loc="left", fontsize=9)
    figure.savefig(Path(directory, "masks.png"), dpi=120)


def main() -> None:
    """Train on digits pasted on noise and print the metrics on the test images."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--data", type=Path, default=PASTED, help="directory of TFRecord files: train and test"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pictures", type=Path, help="directory for masks.png")
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"{args.data} is not there; run: scripts/prepare_data pasted_digits")
    keras.utils.set_random_seed(args.seed)
    (x, y), (test_x, test_y) = (read_masks(args.data / name) for name in ("train", "test"))
    params = {"decay": 0.85}
    model = build_model(params)
    model.fit(x, y, batch_size=32, epochs=args.epochs, verbose=2, callbacks=callbacks(params))
    results = model.evaluate(test_x, test_y, verbose=0, return_dict=True)
    print(
        "test",
        ", ".join(f"{name} {value:.4f}" for name, value in results.items()),
        f"on {len(test_x)} images",
    )
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        draw(model, test_x, test_y, str(args.pictures))


def read_masks(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images and masks of 32 x 32 bytes.

    Shapes:
        images: (rows, 32, 32, 1) float32 in [0, 1].
        masks: (rows, 32, 32) uint8.
    """
    import tensorflow as tf

    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("image", "mask")}
    files = sorted(str(path) for path in directory.iterdir() if path.name[0] not in "._")
    rows = tf.io.parse_example(list(tf.data.TFRecordDataset(files)), features)
    images, masks = (tf.io.decode_raw(rows[name], tf.uint8).numpy().reshape(-1, 32, 32) for name in features)
    return images[..., None].astype(np.float32) / 255, masks


if __name__ == "__main__":
    main()
