"""How Spark divides rows into partitions; compared with what a checkpoint says. Runs on the driver.

A ledger identifies rows by partition and position. But Spark divides a DataFrame anew each time it is planned: files by
the number of cores at that moment (``FilePartition.maxSplitBytes``), ranges by a sample whose seed is the RDD's number.
So each pass is planned once, and everything that is served of it later, also by another incarnation of the cluster,
comes from the same RDD. If a pass is planned again, for example by another program, it is compared with the
checkpoint. Two values must match: the number of partitions, and a digest of their splits (each file's name, offset,
length, size and modification time) and of the seeds by which Spark draws rows.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from py4j.protocol import Py4JError

from tfspark.cluster.direct import DirectRows, NotDirectError, direct_rows
from tfspark.cluster.jvm import each, java_class
from tfspark.errors import ConfigError

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession

    from tfspark.protocol.values import Json

logger = logging.getLogger("tfspark")

PARALLELISM = "spark.sql.leafNodeDefaultParallelism"
"""The settings by which files, ranges and local rows are divided; if unset, Spark uses the number of executor cores."""
COALESCED = "spark.sql.adaptive.coalescePartitions.minPartitionNum"
"""The same for the partitions that adaptive execution makes after a shuffle."""
_PARALLELISM_FIRST = "spark.sql.adaptive.coalescePartitions.parallelismFirst"

_KEEPS_ORDER = (
    *("Project", "Filter", "WholeStageCodegen", "InputAdapter", "ColumnarToRow", "RowToColumnar", "Generate"),
    *("Sample", "Union", "Coalesce", "InMemoryTableScan", "AdaptiveSparkPlan", "MapInArrow", "MapInPandas"),
    *("BatchEvalPython", "ArrowEvalPython", "DeserializeToObject", "MapElements", "MapPartitions"),
    *("SerializeFromObject", "QueryStage"),
)
"""Nodes of a physical plan that keep the order of their rows. A sort below any other node may be one that Spark added.
Such a sort leaves rows of the same key, for example in a join, in the order in which they arrived."""
_SHUFFLES_ITSELF = ("CollectLimitExec", "CollectTailExec", "TakeOrderedAndProjectExec")
_NUMBERED = ("ParallelCollectionRDD", "HadoopRDD", "NewHadoopRDD")
"""Nodes whose partitions contain the RDD's number, which is different in every program."""
REPEATABLE_SOURCES = ("tfrecord", "tfrecords")
"""Data sources written in Python whose rows are in the same places each time."""
_NUMBER_OF_EXPRESSION = re.compile(r"#\d+L?")


@dataclass(frozen=True)
class Layout:
    """How rows are divided into partitions.

    Attributes:
        partitions: their number.
        digest: of their splits and seeds; empty: unknown, and then different from every other digest.
        repeatable: whether a partition that is computed again has its rows in the same places.
        parallelism: the Spark settings that were used.
        plan: identifies this one plan.
    """

    partitions: int = 0
    digest: str = ""
    repeatable: bool = False
    parallelism: Mapping[str, str] | None = None
    plan: str = field(default_factory=lambda: uuid.uuid4().hex)

    def to_json(self) -> Json:
        """Return the values that a checkpoint stores."""
        return asdict(self)

    def differs_from(self, kept: Mapping[str, object]) -> str:
        """Return why these partitions may differ from those of a checkpoint; empty if they are the same."""
        if not kept:
            return "the checkpoint does not say how Spark had cut the rows"
        if kept["partitions"] != self.partitions:
            return (
                f"Spark cuts the rows into {self.partitions} partitions, it were {kept['partitions']} before"
            )
        if not self.digest:
            return "Spark cuts the rows by a sample of them, or does not say how"
        if kept["digest"] != self.digest:
            return (
                "the files, their sizes, times or order, Spark's cuts through them, or seeds by which it draws rows, "
                "are not those of before"
            )
        return "" if self.repeatable else _NOT_REPEATABLE


_NOT_REPEATABLE = (
    "after a shuffle Spark has rows in the order in which they arrive, which is another each time, and a database or "
    "another source of rows may have changed"
)


class Parallelism:
    """The settings by which Spark divides rows. They stay the same for all plans made under them; thread-safe.

    Args:
        settings: those of an earlier program; None: the session's, when rows are first planned.
    """

    def __init__(self, settings: Mapping[str, str] | None = None):
        self._settings = settings
        self._lock = threading.Lock()

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings; empty before the first plan."""
        return self._settings or {}

    @contextmanager
    def held(self, spark: SparkSession) -> Iterator[None]:
        """Plan under these settings; restore the session's own afterwards."""
        with self._lock:
            if self._settings is None:
                self._settings = parallelism_of(spark)
            now = parallelism_of(spark)
            # Set only what differs: Spark warns about each setting with an older name, even if its value stays the
            # same.
            changed = {name: value for name, value in self._settings.items() if now.get(name) != value}
            before = {name: spark.conf.get(name, None) for name in changed}
            try:
                for name, value in changed.items():
                    spark.conf.set(name, value)
                yield
            finally:
                for name, own in before.items():
                    if own is None:
                        spark.conf.unset(name)
                    else:
                        spark.conf.set(name, own)


def parallelism_of(spark: SparkSession) -> dict[str, str]:
    """Return the current settings by which Spark divides rows."""
    cores = str(spark.sparkContext.defaultParallelism)
    found = {PARALLELISM: spark.conf.get(PARALLELISM, None) or cores}
    parallelism_first = str(spark.conf.get(_PARALLELISM_FIRST, "true")).lower() == "true"
    merged_to = spark.conf.get(COALESCED, None) or (cores if parallelism_first else None)
    return found if merged_to is None else {**found, COALESCED: merged_to}


class PlannedRows:
    """Rows that are planned once for each pass, or once for all if their plan has no shuffle.

    On Spark Connect, which shows no plan, they are planned each time they are served.

    Args:
        rows: the rows to feed.
        parallelism: settings to plan them under.
        scan: who reads files, see `FeedOptions.scan`.
        observe: called with ``scan``, who reads the rows, and the reason: at first, and when it changes.
    """

    def __init__(
        self,
        rows: DataFrame,
        parallelism: Parallelism,
        scan: str = "auto",
        observe: Callable[[str, Json], None] = lambda event, fields: None,
    ):
        self.rows = rows
        self._parallelism = parallelism
        self._scan = scan
        self._observe = observe
        self._direct: DirectRows | None = None
        self._why_not = ""
        self._index = -1
        self._planned: DataFrame | None = None
        self._serves_all = False  # Whether this plan serves all passes.
        self._layout = Layout()
        self._lock = threading.Lock()

    def of_pass(self, index: int) -> tuple[DataFrame, Layout]:
        """Return the rows of a pass, with fixed partitions, and their layout; the first call plans them."""
        if not hasattr(self.rows, "_jdf"):
            refuse_direct(self._scan, "Spark Connect does not say how it reads them")
            return self.rows, Layout()
        with self._lock:
            # A plan costs 0.2 s. Rows of a shuffle get one for each pass, so that they are computed again.
            if self._planned is None or (self._index != index and not self._serves_all):
                df = self.rows.select("*")
                with self._parallelism.held(df.sparkSession):
                    self._planned, self._layout, is_unchanged = _planned(df, self._parallelism.settings)
                self._direct = self._read_directly(df)
                self._serves_all = is_unchanged or self._direct is not None
            self._index = index
            return self._planned, self._layout

    def direct(self) -> DirectRows | None:
        """Return how feed tasks read the rows of the last planned pass; None if Spark reads them."""
        return self._direct

    def _read_directly(self, df: DataFrame) -> DirectRows | None:
        if self._scan == "spark":
            return None
        direct, why_not = None, ""
        try:
            direct = direct_rows(df.sparkSession, df._jdf.queryExecution(), self._scan == "direct")
        except NotDirectError as error:
            why_not = str(error)
        except Py4JError as error:
            why_not = f"how Spark reads them cannot be told: {str(error).splitlines()[0]}"
        if why_not:
            refuse_direct(self._scan, why_not)
        if why_not != self._why_not or self._index < 0:
            by = "feed tasks" if direct is not None else "Spark"
            logger.info("rows are read by %s%s", by, f": {why_not}" if why_not else "")
            self._observe("scan", {"by": by, "why": why_not})
        self._why_not = why_not
        return direct

    def differ_from(self, index: int, kept: Mapping[str, object]) -> str:
        """Return why the rows of a pass cannot be found by their places in a checkpoint; empty if they can."""
        if not hasattr(self.rows, "_jdf"):
            return "Spark Connect does not say how it cuts them"
        if self._index == index and self._layout.plan == kept.get("plan"):
            return "" if self._layout.repeatable else _NOT_REPEATABLE
        return self.of_pass(index)[1].differs_from(kept)


def refuse_direct(scan: str, why: str) -> None:
    """Reject rows that only Spark can read.

    Raises:
        ConfigError: scan='direct' was given.
    """
    if scan == "direct":
        raise ConfigError(
            f"expected rows that feed tasks can read from files themselves (scan='direct', data.scan), but {why}; "
            "say scan='auto', which lets Spark read such rows"
        )


def is_determinate(rdd: RDD[object]) -> bool:
    """Return whether Spark, computing an RDD's partitions again, puts their items in the same places."""
    return _is_determinate(rdd._jrdd.rdd())


def _is_determinate(jvm_rdd: JavaObject) -> bool:
    return str(jvm_rdd.outputDeterministicLevel()) == "DETERMINATE"


def _planned(df: DataFrame, parallelism: Mapping[str, str]) -> tuple[DataFrame, Layout, bool]:
    """Plan a DataFrame; return one that reads the RDD of this plan, its layout, and whether it serves all passes."""
    from pyspark.sql import DataFrame

    spark = df.sparkSession
    execution = df._jdf.queryExecution()
    rdd = execution.toRdd()
    fixed = spark._jsparkSession.internalCreateDataFrame(rdd, df._jdf.schema(), False)
    partitions, is_unchanged = rdd.getNumPartitions(), False
    try:
        plan = _Plan(spark, execution.executedPlan())
        digest = plan.digest(rdd) if plan.is_comparable else ""
        layout = Layout(partitions, digest, plan.is_repeatable, parallelism)
        is_unchanged = plan.is_comparable and not plan.has_shuffle
    except Py4JError as error:  # Another version of Spark, or an unknown data source.
        logger.info("how Spark cuts the rows cannot be told: %s", str(error).splitlines()[0])
        layout = Layout(partitions, parallelism=parallelism)
    return DataFrame(fixed, spark), layout, is_unchanged


def _is_anything(scan: JavaObject) -> bool:
    """Return whether a data source written in Python is read that is not tfspark's own, so its rows may be any."""
    is_python = scan.scan().getClass().getSimpleName() == "PythonScan"
    return is_python and str(scan.table().name()) not in REPEATABLE_SOURCES


class _Plan:
    """What a physical plan says about its partitions."""

    def __init__(self, spark: SparkSession, root: JavaObject):
        self._class = functools.partial(java_class, spark.sparkContext)
        self._scans: list[JavaObject] = []
        self._drawn: list[str] = []
        self.is_comparable = True
        self.has_shuffle = False
        self.is_repeatable = self._look_at(root, True)

    def _look_at(self, node: JavaObject, keeps_order: bool) -> bool:
        """Inspect a node and those below it; return whether its rows come in the same order each time."""
        name = node.getClass().getSimpleName()
        if name in ("FileSourceScanExec", "BatchScanExec"):
            self._scans.append(node.inputRDD())
        self._note_seeds(node, name)
        if name == "RowDataSourceScanExec" or (name == "BatchScanExec" and _is_anything(node)):
            self.is_comparable = False
            return False  # A database may return other rows, or another order, each time.
        if name == "AQEShuffleReadExec":
            self.is_comparable = False  # It merged partitions by their size in this one run.
        below, had_shuffle = keeps_order and any(kind in name for kind in _KEEPS_ORDER), self.has_shuffle
        are_repeatable = [self._look_at(child, below) for child in self._below(node, name)]
        if name == "InMemoryTableScanExec":
            self.has_shuffle = had_shuffle  # Persisted rows are not computed again.
        self.has_shuffle |= "ShuffleExchange" in name or name in _SHUFFLES_ITSELF
        if "ShuffleExchange" in name:
            # The bounds of ranges come from a sample whose seed is the RDD's number.
            self.is_comparable &= "Range" not in node.outputPartitioning().getClass().getSimpleName()
            return False
        if name == "RDDScanExec":
            is_determinate = _is_determinate(node.rdd())
            self.has_shuffle |= not is_determinate
            return is_determinate
        if name in ("SortExec", "TakeOrderedAndProjectExec") and keeps_order:
            return True
        return name not in ("CollectLimitExec", "CollectTailExec") and all(are_repeatable)

    def _note_seeds(self, node: JavaObject, name: str) -> None:
        """Record the random seeds of a node: with another seed, it has other rows."""
        if name == "SampleExec":
            self._drawn.append(str(node.seed()))
        if not node.deterministic():
            drawn = [str(one) for one in each(node.expressions()) if not one.deterministic()]
            self._drawn.extend(_NUMBER_OF_EXPRESSION.sub("", one) for one in drawn)

    def _below(self, node: JavaObject, name: str) -> list[JavaObject]:
        if name == "AdaptiveSparkPlanExec":
            return [node.executedPlan()]
        if name == "InMemoryTableScanExec":
            return [node.relation().cachedPlan()]
        if name == "ReusedExchangeExec":
            return [node.child()]
        return [node.plan()] if name.endswith("QueryStageExec") else list(each(node.children()))

    def digest(self, rdd: JavaObject) -> str:
        """Return a digest of all splits from which the partitions are computed."""
        found = hashlib.sha256(str(rdd.getNumPartitions()).encode())
        found.update("\n".join(self._drawn).encode())
        for leaf in self._leaves([rdd, *self._scans]):
            name = leaf.getClass().getSimpleName()
            found.update(f"{name} {leaf.getNumPartitions()} ".encode())
            if name == "ReliableCheckpointRDD":  # Its rows were computed by the program that wrote it.
                found.update(str(leaf.checkpointPath()).encode())
            if name not in _NUMBERED:
                found.update(self._serialized(leaf.partitions()))
            elif "Hadoop" in name:
                files = dict[str, str]()
                for partition in leaf.partitions():
                    split = partition.inputSplit().value()
                    found.update(f"{split} {self._file_of(split, files)} ".encode())
        return found.hexdigest()

    def _file_of(self, split: JavaObject, known: dict[str, str]) -> str:
        """Return size and modification time of a split's file, which the split itself does not have."""
        path = split.getPath()  # A split of something else has none: then the layout is unknown.
        name = str(path)
        if name not in known:
            conf = self._class("org.apache.spark.deploy.SparkHadoopUtil").get().conf()
            status = path.getFileSystem(conf).getFileStatus(path)
            known[name] = f"{status.getLen()} {status.getModificationTime()}"
        return known[name]

    def _leaves(self, above: list[JavaObject]) -> Iterator[JavaObject]:
        seen = set()
        while above:
            rdd = above.pop(0)
            if rdd.id() in seen:
                continue
            seen.add(rdd.id())
            on = list(each(rdd.dependencies()))
            above.extend(dependency.rdd() for dependency in on)
            if not on:
                yield rdd

    def _serialized(self, partitions: JavaObject) -> bytes:
        """Return a digest of the partitions, serialized as Spark sends them to executors; the bytes stay in the JVM."""
        digest = self._class("java.security.MessageDigest").getInstance("SHA-256")
        nowhere = self._class("java.io.OutputStream").nullOutputStream()
        digested = self._class("java.security.DigestOutputStream")(nowhere, digest)
        out = self._class("java.io.ObjectOutputStream")(digested)
        out.writeObject(partitions)
        out.flush()
        return bytes(digest.digest())
