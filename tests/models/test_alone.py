"""Each model module run as a program, on files in the format of ``scripts/prepare_data``."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models import autoencoder, cnn, gan, mlp, rnn, unet

RANDOM = np.random.default_rng(0)
LABELS = np.arange(200) % 10


def write_rows(directory: Path, **columns: Any) -> None:
    """Write one TFRecord file; strings and bytes as bytes, whole numbers as int64, others as float32."""
    directory.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(directory / "part-00000.tfrecord")) as writer:
        for row in zip(*columns.values(), strict=True):
            features = tf.train.Features(feature=dict(zip(columns, map(feature, row), strict=True)))
            writer.write(tf.train.Example(features=features).SerializeToString())


def feature(value: Any) -> tf.train.Feature:
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, np.integer):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=value))


def digits(side: int, most: int) -> list[bytes]:
    """Return images with two bright bars. The label determines the places of the bars."""
    images = RANDOM.integers(0, most // 4, (len(LABELS), side, side), np.uint8)
    for image, label in zip(images, LABELS, strict=True):
        image[(label % 5) * side // 5, :] = most
        image[:, (label // 5) * side // 2] = most
    return [image.tobytes() for image in images]


def write_mnist(data: Path) -> None:
    write_rows(data / "mnist_5k" / "images", image=digits(28, 255), label=LABELS)


def write_small_digits(data: Path) -> None:
    write_rows(data / "digits" / "images", image=digits(8, 16), label=LABELS)


def write_sentences(data: Path) -> None:
    texts = [f"a {'bad' if label % 2 else 'good'} café, {label}".encode() for label in LABELS]
    write_rows(data / "rotten_tomatoes" / "texts", text=texts, label=1 - LABELS % 2)


def write_windows(data: Path) -> None:
    months = 50 + 40 * np.sin(np.arange(300) / 20)
    for part, first in (("train", 0), ("test", 200)):
        windows = [months[i : i + 48] for i in range(first, first + 50)]
        targets = [months[i + 48 : i + 49] for i in range(first, first + 50)]
        write_rows(data / "sunspots" / part, window=windows, target=targets)


def write_tumours(data: Path) -> None:
    for fold in range(1, 6):
        for part, malignant in (("train", np.zeros(64, int)), ("test", np.arange(20) % 2)):
            measures = RANDOM.normal(malignant[:, None] * 3.0, 1.0, (len(malignant), 30))
            write_rows(data / "breast_cancer" / f"fold_{fold}" / part, measures=measures, malignant=malignant)


def write_diamonds(data: Path) -> None:
    sizes = RANDOM.random((len(LABELS), 7)).astype(np.float32) + 1
    texts = {
        "cut": [mlp.CUTS[label % 5].encode() for label in LABELS],
        "color": [b"DEF"[label % 3 : label % 3 + 1] for label in LABELS],
        "clarity": [b"SI1" if label % 2 else b"VS2" for label in LABELS],
    }
    numbers = {name: list(sizes[:, i : i + 1]) for i, name in enumerate((*mlp.SIZES, "price"))}
    write_rows(data / "diamonds" / "stones", **numbers, **texts)


def write_pasted(data: Path) -> None:
    for part in ("train", "test"):
        images = RANDOM.integers(0, 256, (40, 32, 32), np.uint8)
        masks = [(image > 200).astype(np.uint8).tobytes() for image in images]
        write_rows(data / "pasted_digits" / part, image=[image.tobytes() for image in images], mask=masks)


@pytest.mark.parametrize(
    ("module", "write", "options", "said", "picture"),
    [
        (cnn, write_mnist, "", "test accuracy 0.*on 40 images", "saliency.png"),
        (rnn, write_sentences, "", "test accuracy .* on 40 rows", "occlusion.png"),
        (rnn, write_windows, "--series", "test .*rmse.* on 50 rows", "forecast.png"),
        (autoencoder, write_tumours, "", "mean AUC [01]", "*.png"),
        (autoencoder, write_mnist, "--images --variational", "test MSE 0.* on 40 images", "*.png"),
        (gan, write_small_digits, "--conditional", "of the class asked for: ", "samples.png"),
        (mlp, write_diamonds, "", "test .*mae .* on 40 rows", "columns.png"),
        (mlp, write_diamonds, "--cut", "test accuracy .* on 40 rows", "columns.png"),
        (unet, write_pasted, "", "test .*mean_iou 0.* on 40 images", "masks.png"),
    ],
    ids=[
        "cnn",
        "rnn",
        "rnn --series",
        "autoencoder",
        "autoencoder --images",
        "gan",
        "mlp",
        "mlp --cut",
        "unet",
    ],
)
def test_main_when_the_data_is_there_trains_tests_and_draws(
    module: Any,
    write: Callable[[Path], None],
    options: str,
    said: str,
    picture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main", "--epochs", "1", "--pictures", "pictures", *options.split()])

    module.main()

    assert re.search(said, capsys.readouterr().out)
    sizes = [path.stat().st_size for path in Path("pictures").glob(picture)]
    assert min(sizes, default=0) > 1000


@pytest.mark.parametrize("module", [cnn, rnn, autoencoder, gan, mlp, unet])
def test_main_when_the_data_is_not_there_says_how_to_get_it(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main"])

    with pytest.raises(SystemExit):
        module.main()

    assert re.search(r"data/\w+.* is not there; run: scripts/prepare_data \w+\n", capsys.readouterr().err)
