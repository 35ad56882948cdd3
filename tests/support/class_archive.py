"""Write the classes of Spark to an archive. With it, the tests' JVMs start in half of the CPU time.

    python tests/support/class_archive.py

The archive is in the virtual environment. `support.environment` uses it if it exists. A JVM of another version does
not use it. See "Class Data Sharing" in the documentation of Java.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyspark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ARCHIVE = Path(sys.prefix, f"spark-{pyspark.__version__}.jsa")
"""The archive, with the classes that a session and a few queries use."""


def is_current() -> bool:
    """Return whether the archive exists and is newer than the installed Java."""
    java = os.path.realpath(os.environ.get("JAVA_HOME", "") + "/bin/java")
    java = java if os.path.exists(java) else os.path.realpath(shutil.which("java") or "")
    return ARCHIVE.exists() and ARCHIVE.stat().st_mtime > os.stat(java).st_mtime


def write() -> None:
    """Write a new archive. Running tests keep the old archive, which they have open."""
    from pyspark.sql import SparkSession

    new = ARCHIVE.with_suffix(f".{os.getpid()}")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["SPARK_SUBMIT_OPTS"] = (
        f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:ArchiveClassesAtExit={new}"
    )
    loopback = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    quiet = {"spark.ui.enabled": "false", "spark.log.level": "OFF"}
    spark = SparkSession.builder.master("local[2]").config(map={**loopback, **quiet}).getOrCreate()
    gateway = spark.sparkContext._gateway
    assert gateway is not None
    with tempfile.TemporaryDirectory() as directory:
        use(spark, directory)
        spark.stop()
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(120)
    if new.exists():
        new.replace(ARCHIVE)


def use(spark: SparkSession, directory: str) -> None:
    """Load the classes of what many tests do."""
    from pyspark.sql.functions import col

    rows = spark.range(0, 100, 1, 2).selectExpr(
        "id", "array(rand(1), rand(2)) AS x", "string(id % 3) AS label"
    )
    rows.write.mode("overwrite").parquet(directory)
    rows = spark.read.parquet(directory)
    rows.persist().count()
    rows.mapInArrow(lambda batches: batches, rows.schema).where("id > 3").collect()
    rows.repartition(3, col("id")).groupBy("label").count().orderBy("label").collect()
    rows.rdd.mapPartitions(lambda part: part).count()


if __name__ == "__main__" and not is_current():
    write()
