"""How Spark has cut rows into partitions, kept for all of a pass and compared with a checkpoint's. Runs on the driver.

A ledger knows rows by partition and position. Spark cuts a DataFrame anew whenever it is planned: files by the cores
there are just then (``FilePartition.maxSplitBytes``), ranges by a sample that the RDD's number seeds. So a pass is
planned once, and what is served of it later, in another incarnation of the cluster, too, comes of the same RDD. A pass
that is planned again, as by another program, is compared with what the checkpoint says: the number of partitions, and a
digest of their splits, which have each file's name, offset, length, size and modification time, and of the seeds by
which Spark draws rows.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from py4j.protocol import Py4JError

from tfspark.cluster.direct import DirectRows, NotDirectError, direct_rows
from tfspark.errors import ConfigError

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger("tfspark")

PARALLELISM = "spark.sql.leafNodeDefaultParallelism"
"""What files, ranges and local rows are cut by; if it is not set, by the cores of the executors there are."""
COALESCED = "spark.sql.adaptive.coalescePartitions.minPartitionNum"
"""The same for what adaptive execution makes of the partitions of a shuffle."""
_PARALLELISM_FIRST = "spark.sql.adaptive.coalescePartitions.parallelismFirst"

_KEEPS_ORDER = (
    *("Project", "Filter", "WholeStageCodegen", "InputAdapter", "ColumnarToRow", "RowToColumnar", "Generate"),
    *("Sample", "Union", "Coalesce", "InMemoryTableScan", "AdaptiveSparkPlan", "MapInArrow", "MapInPandas"),
    *("BatchEvalPython", "ArrowEvalPython", "DeserializeToObject", "MapElements", "MapPartitions"),
    *("SerializeFromObject", "QueryStage"),
)
"""Nodes of a physical plan that take their rows one after the other. A sort below any other may be Spark's own, which
leaves rows of the same key, as of a join, in the order in which they came."""
_NUMBERED = ("ParallelCollectionRDD", "HadoopRDD", "NewHadoopRDD")
"""Their partitions have the number of the RDD, which is another in every program."""
_NUMBER_OF_EXPRESSION = re.compile(r"#\d+L?")


@dataclass(frozen=True)
class Layout:
    """How rows are cut into partitions.

    Attributes:
        partitions: how many there are.
        digest: of their splits and seeds; empty: it cannot be known, so it is like no other.
        repeatable: whether a partition that is computed again has its rows in the same places.
        parallelism: settings of Spark by which they were cut.
        plan: of this one plan.
    """

    partitions: int = 0
    digest: str = ""
    repeatable: bool = False
    parallelism: Mapping[str, str] | None = None
    plan: str = field(default_factory=lambda: uuid.uuid4().hex)

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return asdict(self)

    def differs_from(self, kept: Mapping[str, Any]) -> str:
        """Say in what these partitions may be others than those a checkpoint was made of; empty: in nothing."""
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
    "after a shuffle Spark has rows in the order in which they arrive, which is another each time"
)


class Parallelism:
    """The settings by which Spark cuts rows, the same whenever rows are planned under them; thread-safe.

    Args:
        settings: those of an earlier program; None: as they are when rows are first planned.
    """

    def __init__(self, settings: Mapping[str, str] | None = None):
        self._settings = settings
        self._lock = threading.Lock()

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings; empty before anything was planned."""
        return self._settings or {}

    @contextmanager
    def held(self, spark: SparkSession) -> Iterator[None]:
        """Plan under these settings; the session's own come back afterwards."""
        with self._lock:
            if self._settings is None:
                self._settings = parallelism_of(spark)
            now = parallelism_of(spark)
            # Spark warns of each setting of an older name, even if nothing changes by it.
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
    """Return the settings by which Spark cuts rows just now."""
    cores = str(spark.sparkContext.defaultParallelism)
    found = {PARALLELISM: spark.conf.get(PARALLELISM, None) or cores}
    parallelism_first = str(spark.conf.get(_PARALLELISM_FIRST, "true")).lower() == "true"
    merged_to = spark.conf.get(COALESCED, None) or (cores if parallelism_first else None)
    return found if merged_to is None else {**found, COALESCED: merged_to}


class PlannedRows:
    """Rows that are planned once for each pass.

    On Spark Connect, which shows no plan, they are planned whenever they are served.

    Args:
        rows: what is fed.
        parallelism: settings to plan them under.
        scan: who reads files: see `FeedOptions.scan`.
        observe: called with ``scan`` and who reads the rows and why, when that is known and when it changes.
    """

    def __init__(
        self,
        rows: DataFrame,
        parallelism: Parallelism,
        scan: str = "auto",
        observe: Callable[[str, dict[str, Any]], None] = lambda event, fields: None,
    ):
        self.rows = rows
        self._parallelism = parallelism
        self._scan = scan
        self._observe = observe
        self._direct: DirectRows | None = None
        self._why_not = ""
        self._index = -1
        self._planned: DataFrame | None = None
        self._layout = Layout()
        self._lock = threading.Lock()

    def of_pass(self, index: int) -> tuple[DataFrame, Layout]:
        """Return the rows of a pass with partitions that stay, and how they are cut; the first call plans them."""
        if not hasattr(self.rows, "_jdf"):
            refuse_direct(self._scan, "Spark Connect does not say how it reads them")
            return self.rows, Layout()
        with self._lock:
            # A plan of its own for each pass: what was shuffled for one is computed anew for the next. Rows that are
            # only read are not shuffled; to plan them costs 0.2 s.
            if self._planned is None or (self._index != index and self._direct is None):
                df = self.rows.select("*")
                with self._parallelism.held(df.sparkSession):
                    self._planned, self._layout = _planned(df, self._parallelism.settings)
                self._direct = self._read_directly(df)
            self._index = index
            return self._planned, self._layout

    def direct(self) -> DirectRows | None:
        """Return how feed tasks read the rows of the last pass that was planned; None: Spark does."""
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

    def differ_from(self, index: int, kept: Mapping[str, Any]) -> str:
        """Say why the rows of a pass cannot be told from their places in a checkpoint; empty: they can."""
        if not hasattr(self.rows, "_jdf"):
            return "Spark Connect does not say how it cuts them"
        if self._index == index and self._layout.plan == kept.get("plan"):
            return "" if self._layout.repeatable else _NOT_REPEATABLE
        return self.of_pass(index)[1].differs_from(kept)


def refuse_direct(scan: str, why: str) -> None:
    """Refuse rows that only Spark can read.

    Raises:
        ConfigError: feed tasks were to read them.
    """
    if scan == "direct":
        raise ConfigError(
            f"expected rows that feed tasks can read from files themselves (scan='direct', data.scan), but {why}; "
            "say scan='auto', which lets Spark read such rows"
        )


def is_determinate(rdd: RDD[Any]) -> bool:
    """Tell whether Spark computes an RDD's partitions again with their elements in the same places."""
    return _is_determinate(rdd._jrdd.rdd())


def _is_determinate(jvm_rdd: Any) -> bool:
    return str(jvm_rdd.outputDeterministicLevel()) == "DETERMINATE"


def _planned(df: DataFrame, parallelism: Mapping[str, str]) -> tuple[DataFrame, Layout]:
    """Plan a DataFrame; return one that reads the RDD of this plan."""
    from pyspark.sql import DataFrame

    spark = df.sparkSession
    execution = df._jdf.queryExecution()
    rdd = execution.toRdd()
    fixed = spark._jsparkSession.internalCreateDataFrame(rdd, df._jdf.schema(), False)
    partitions = rdd.getNumPartitions()
    try:
        plan = _Plan(spark, execution.executedPlan())
        digest = plan.digest(rdd) if plan.is_comparable else ""
        layout = Layout(partitions, digest, plan.is_repeatable, parallelism)
    except Py4JError as error:  # Another version of Spark, or a source of data that is made otherwise.
        logger.info("how Spark cuts the rows cannot be told: %s", str(error).splitlines()[0])
        layout = Layout(partitions, parallelism=parallelism)
    return DataFrame(fixed, spark), layout


class _Plan:
    """What a physical plan tells of its partitions."""

    def __init__(self, spark: SparkSession, root: Any):
        self._jvm: Any = spark.sparkContext._jvm
        self._scans: list[Any] = []
        self._drawn: list[str] = []
        self.is_comparable = True
        self.is_repeatable = self._look_at(root, True)

    def _look_at(self, node: Any, keeps_order: bool) -> bool:
        """Look at a node and what is below; tell whether its rows come in the same order again."""
        name = node.getClass().getSimpleName()
        if name in ("FileSourceScanExec", "BatchScanExec"):
            self._scans.append(node.inputRDD())
        self._note_seeds(node, name)
        if name == "RowDataSourceScanExec":
            self.is_comparable = False
            return False  # A database's rows: what they are, and in what order, it says anew each time.
        if name == "AQEShuffleReadExec":
            self.is_comparable = False  # It has joined partitions by the bytes they happened to have.
        below = keeps_order and any(kind in name for kind in _KEEPS_ORDER)
        are_repeatable = [self._look_at(each, below) for each in self._below(node, name)]
        if "ShuffleExchange" in name:
            # Bounds of ranges come of a sample that is drawn by the RDD's number.
            self.is_comparable &= "Range" not in node.outputPartitioning().getClass().getSimpleName()
            return False
        if name == "RDDScanExec":
            return _is_determinate(node.rdd())
        if name in ("SortExec", "TakeOrderedAndProjectExec") and keeps_order:
            return True
        return name not in ("CollectLimitExec", "CollectTailExec") and all(are_repeatable)

    def _note_seeds(self, node: Any, name: str) -> None:
        """Note what is drawn at random, which rows there are of it: with another seed there are others."""
        if name == "SampleExec":
            self._drawn.append(str(node.seed()))
        if not node.deterministic():
            drawn = [str(each) for each in self._list(node.expressions()) if not each.deterministic()]
            self._drawn.extend(_NUMBER_OF_EXPRESSION.sub("", each) for each in drawn)

    def _below(self, node: Any, name: str) -> list[Any]:
        if name == "AdaptiveSparkPlanExec":
            return [node.executedPlan()]
        if name == "InMemoryTableScanExec":
            return [node.relation().cachedPlan()]
        if name == "ReusedExchangeExec":
            return [node.child()]
        return [node.plan()] if name.endswith("QueryStageExec") else self._list(node.children())

    def digest(self, rdd: Any) -> str:
        """Return a digest of all splits that the partitions are computed of."""
        found = hashlib.sha256(str(rdd.getNumPartitions()).encode())
        found.update("\n".join(self._drawn).encode())
        for leaf in self._leaves([rdd, *self._scans]):
            name = leaf.getClass().getSimpleName()
            found.update(f"{name} {leaf.getNumPartitions()} ".encode())
            if name == "ReliableCheckpointRDD":  # What it has was computed by the program that wrote it.
                found.update(str(leaf.checkpointPath()).encode())
            if name not in _NUMBERED:
                found.update(self._serialized(leaf.partitions()))
            elif "Hadoop" in name:
                for partition in leaf.partitions():
                    found.update(str(partition.inputSplit().value()).encode())
        return found.hexdigest()

    def _leaves(self, above: list[Any]) -> Iterator[Any]:
        seen = set()
        while above:
            rdd = above.pop(0)
            if rdd.id() in seen:
                continue
            seen.add(rdd.id())
            on = self._list(rdd.dependencies())
            above.extend(dependency.rdd() for dependency in on)
            if not on:
                yield rdd

    def _serialized(self, partitions: Any) -> bytes:
        """Return a digest of the partitions as Spark would send them to executors; nothing of them leaves the JVM."""
        digest = self._jvm.java.security.MessageDigest.getInstance("SHA-256")
        nowhere = self._jvm.java.io.OutputStream.nullOutputStream()
        out = self._jvm.java.io.ObjectOutputStream(
            self._jvm.java.security.DigestOutputStream(nowhere, digest)
        )
        out.writeObject(partitions)
        out.flush()
        return bytes(digest.digest())

    def _list(self, scala: Any) -> list[Any]:
        return list(self._jvm.scala.jdk.javaapi.CollectionConverters.asJava(scala))
