"""Rows that nodes have stored, which a later training of the same application may read again. Runs on the driver.

With `FeedOptions(cache="node")` each worker stores the rows of the first epoch in a file. The driver remembers, for the
Spark application, from which rows the files were made. A later training of the same rows, by the same number of
workers, is offered the files, whichever cluster of the application it runs on.

Rows are the same if Spark's plans are (`sameResult`, by which Spark finds a cached DataFrame), and if no input file was
changed. As in Spark's cache, a function in a plan is taken to return the same values for the same rows.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from py4j.protocol import Py4JError

from tfspark.cluster.direct import DirectRows, NotDirectError, tfrecord_files
from tfspark.cluster.layout import PlannedRows
from tfspark.errors import TfsparkError
from tfspark.feed.stream import StreamSpec
from tfspark.tfrecord.files import resolve

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger("tfspark")

MAX_FILES = 10_000
"""Rows of more input files are not stored for later trainings: to look at each file takes too long."""
MAX_REMEMBERED = 64
"""Number of stored data sets of an application that are remembered; each holds a plan in Spark's JVM."""
_READERS = 16
_WITHOUT_INPUT = ("Range", "LocalRelation", "OneRowRelation")
_IN_MEMORY = "ParallelCollectionRDD"
_LISTS_FILES = ("InMemoryFileIndex", "CatalogFileIndex")

Version = tuple[int, int]
"""Size of a file in bytes, and its modification time in ns."""


@dataclass(frozen=True, eq=False)
class Origin:
    """From which rows a worker's file is made.

    Attributes:
        source: how feed tasks read the rows, or Spark's plan.
        files: the input files as they are now.
        dealing: what decides which worker gets which rows, and in which order.
    """

    source: DirectRows | Any
    files: Mapping[str, Version]
    dealing: tuple[Any, ...]

    def is_as(self, other: Origin) -> bool:
        """Return whether the plan and the workers are the same; files may have changed."""
        if self.dealing != other.dealing or isinstance(self.source, DirectRows) != isinstance(
            other.source, DirectRows
        ):
            return False
        if isinstance(self.source, DirectRows):
            return bool(self.source == other.source)
        return bool(self.source.sameResult(other.source))


@dataclass(frozen=True)
class StoredRows:
    """Files with the rows of one pass.

    Attributes:
        rows: their number.
        sample: the first row that was fed; see `FeedDirectory.offer_sample`.
        files: one for each worker.
    """

    rows: int
    sample: str
    files: Mapping[int, str]


@dataclass
class _Application:
    """What one Spark application has stored, the data set used last at the end."""

    stored: list[tuple[Origin, StoredRows]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


_APPLICATIONS: dict[str, _Application] = {}


class StoredRowsOfApplication:
    """The files that the nodes of a Spark application have stored; shared by all clusters of the application.

    Args:
        spark: the session.
    """

    def __init__(self, spark: SparkSession):
        application = str(spark.sparkContext.applicationId) if hasattr(spark, "_jsparkSession") else ""
        for ended in [known for known in _APPLICATIONS if known != application]:
            del _APPLICATIONS[ended]
        self._of = _APPLICATIONS.setdefault(application, _Application()) if application else _Application()

    def find(self, origin: Origin) -> StoredRows | None:
        """Return the files made from these rows, if there are any."""
        with self._of.lock:
            for entry in self._of.stored:
                earlier, stored = entry
                if earlier.is_as(origin) and earlier.files == origin.files:
                    self._of.stored.remove(entry)
                    self._of.stored.append(entry)
                    return stored
        return None

    def outdated(self, origin: Origin) -> tuple[str, ...]:
        """Forget the files made from these rows, for example because an input has changed, and return them."""
        with self._of.lock:
            same = [entry for entry in self._of.stored if entry[0].is_as(origin)]
            self._of.stored = [entry for entry in self._of.stored if entry not in same]
        return tuple(file for _, stored in same for file in stored.files.values())

    def add(self, origin: Origin, stored: StoredRows) -> None:
        """Remember files that were made from these rows, instead of earlier ones."""
        self.outdated(origin)
        with self._of.lock:
            self._of.stored = [*self._of.stored, (origin, stored)][-MAX_REMEMBERED:]


def origin_of(rows: PlannedRows, index: int, spec: StreamSpec) -> Origin | None:
    """Return from which rows the files of a pass are made; None if a later training could not tell that they are same.

    Args:
        rows: the rows.
        index: number of the pass.
        spec: the stream that feeds them.
    """
    if not hasattr(rows.rows, "_jdf") or rows.rows.isStreaming:
        return None
    dealing: tuple[Any, ...] = (spec.num_readers,)
    if spec.num_readers == 1 and spec.shuffle_rows:
        # One worker trains in the same order each time, so it does if it reads stored rows.
        dealing = 1, spec.seed, index
    try:
        _, layout = rows.of_pass(index)
        if spec.ordered:
            if spec.shuffle_rows or not layout.repeatable or not layout.digest:
                return None  # The order is another in each pass.
            dealing = spec.num_readers, spec.batch_size, layout.partitions, layout.digest
        direct = rows.direct()
        if direct is not None:
            paths = sorted({piece.file.path for split in direct.splits for piece in split})
            return Origin(direct, _versions(paths), dealing)
        return _planned_by_spark(rows.rows, dealing)
    except (Py4JError, OSError, NotDirectError, TfsparkError) as error:
        logger.info("rows are not stored for later trainings: %s", str(error).splitlines()[0])
        return None


def _planned_by_spark(df: DataFrame, dealing: tuple[Any, ...]) -> Origin | None:
    """Return the origin of rows that come from files and from the driver's memory only; otherwise None."""
    execution = df._jdf.queryExecution()
    plan = execution.normalized()
    if plan.subqueriesAll().size():
        return None  # Their inputs are none of the leaves.
    leaves = plan.collectLeaves()
    num_sources = 0
    for number in range(leaves.size()):
        leaf = leaves.apply(number)
        kind = leaf.getClass().getSimpleName()
        if kind == "LogicalRDD":
            is_known = all(each == _IN_MEMORY for each in _inputs_of(leaf.rdd()))
        elif kind == "LogicalRelation":
            is_known = _lists_plain_files(leaf.relation())
        else:
            num_sources += kind == "DataSourceV2Relation"
            is_known = kind in (*_WITHOUT_INPUT, "DataSourceV2Relation")
        if not is_known:
            return None
    tfrecords = tfrecord_files(execution) if num_sources else []
    if len(tfrecords) != num_sources:  # Another source, or below a cached DataFrame.
        return None
    return Origin(plan, _versions([*df.inputFiles(), *itertools.chain(*tfrecords)]), dealing)


def _lists_plain_files(relation: Any) -> bool:
    """Return whether files are all that a relation reads: table formats may delete rows without changing a file."""
    if relation.getClass().getSimpleName() != "HadoopFsRelation":
        return False
    return relation.location().getClass().getSimpleName() in _LISTS_FILES


def _inputs_of(jvm_rdd: Any) -> Iterator[str]:
    """Yield the kinds of RDDs from which an RDD is computed."""
    on = jvm_rdd.dependencies()
    for number in range(on.size()):
        yield from _inputs_of(on.apply(number).rdd())
    if not on.size():
        yield jvm_rdd.getClass().getSimpleName()


def _versions(paths: Sequence[str]) -> dict[str, Version]:
    """Return the size and time of each input file."""
    if len(paths) > MAX_FILES:
        raise TfsparkError(f"there are {len(paths)} input files, more than {MAX_FILES}")

    def version(path: str) -> Version:
        system, inner = resolve(path)
        info = system.get_file_info(inner)
        if info.size is None:
            raise OSError(f"{path} is gone")
        return info.size, info.mtime_ns or 0

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(paths, pool.map(version, paths), strict=True))
