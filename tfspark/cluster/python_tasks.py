"""Spark jobs whose tasks get no rows: nodes, warm-ups, and feed tasks that read their files themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfspark.cluster.jvm import java_class

if TYPE_CHECKING:
    from pyspark import RDD, SparkContext
    from pyspark.sql import DataFrame, SparkSession

NO_ROWS_DDL = "nothing bigint"
"""Schema of a query that is run for what its tasks do, not for rows."""
SIMPLIFIED_TRACEBACK = "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled"


def python_tasks(spark: SparkSession, run: Callable[[int], object], count: int) -> DataFrame | RDD[Any]:
    """Return tasks for Spark to compute. Each one calls `run` with its number, from 0 on.

    They are tasks of an RDD, as Spark has no query to plan and compile then: a job takes half the time and CPU, and in
    a new session seconds less. Spark Connect has no RDDs; there they are tasks of a query.

    Args:
        spark: the session.
        run: picklable; its return value is not used.
        count: number of tasks.
    """
    from pyspark import RDD
    from pyspark.serializers import NoOpSerializer

    task = _Task(run)
    if not hasattr(spark, "_jsparkSession"):  # Spark Connect.
        return spark.range(0, count, 1, count).mapInArrow(task.of_query, NO_ROWS_DDL)
    context = _with_environment_of_queries(spark)
    if not count:
        return context.emptyRDD()
    # `SparkContext.parallelize` of pyspark would write a file.
    items = java_class(context, "java.util.Collections").nCopies(count, bytearray())
    rows = RDD(context._jsc.parallelize(items, count), context, NoOpSerializer())
    return rows.mapPartitionsWithIndex(task.of_rdd)


@dataclass(frozen=True)
class _Task:
    """Calls a function in a Spark task; yields no rows."""

    run: Callable[[int], object]

    def of_rdd(self, number: int, rows: Iterable[object]) -> Iterator[object]:
        for _ in rows:  # To the end: Spark gives its next task to this process only then.
            pass
        self.run(number)
        yield from ()

    def of_query(self, batches: Iterable[Any]) -> Iterator[Any]:
        from pyspark import TaskContext

        context = TaskContext.get()
        assert context is not None
        return self.of_rdd(context.partitionId(), batches)


def _with_environment_of_queries(spark: SparkSession) -> SparkContext:
    """Return a view of the Spark context whose RDDs run in the Python workers of queries.

    Spark has a daemon that forks Python workers for each environment, and a daemon takes a second of CPU to start. The
    environments of RDDs and queries differ in this variable only. The tasks are not profiled (`spark.python.profile`):
    a node would slow down, and they are not the user's.
    """
    context = spark.sparkContext
    view = object.__new__(type(context))
    environment = dict(context.environment)
    if spark.conf.get(SIMPLIFIED_TRACEBACK, "true") == "true":
        environment["SPARK_SIMPLIFIED_TRACEBACK"] = "1"
    vars(view).update(vars(context), environment=environment, profiler_collector=None)
    return view
