"""The Spark session of an experiment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tfspark.errors import ConfigError
from tfspark.experiment.config import Cluster

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOOPBACK = "127.0.0.1"
LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")


def is_submitted() -> bool:
    """Whether ``spark-submit`` started this program; its master and settings then win over the YAML file's."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


@contextmanager
def spark_session(name: str, cluster: Cluster) -> Iterator[SparkSession]:
    """Open the session an experiment asks for, and stop it at the end.

    Raises:
        ConfigError: Spark could not start; the message carries Spark's own words.
    """
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName(name).config("spark.ui.showConsoleProgress", "false")
    if not is_submitted():
        if cluster.master:
            builder = builder.master(cluster.master)
        if (cluster.master or "local").startswith("local"):
            builder = _loopback(builder)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for key, value in cluster.spark.items():
        builder = builder.config(key, value)
    try:
        spark = builder.getOrCreate()
    except Exception as error:
        raise ConfigError(
            f"expected Spark to start with master {cluster.master or 'as configured'}, it said: {error}; see "
            "cluster.master and cluster.spark, and whether java -version prints 17 or newer"
        ) from None
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    finally:
        spark.stop()


def _loopback(builder: SparkSession.Builder) -> SparkSession.Builder:
    """A cluster within this machine listens on this machine only, and says only what went wrong."""
    os.environ.setdefault("SPARK_LOCAL_IP", LOOPBACK)
    if "SPARK_CONF_DIR" not in os.environ:
        builder = builder.config(
            "spark.driver.extraJavaOptions", f"-Dlog4j2.configurationFile={LOG_SETTINGS}"
        )
    return (
        builder.config("spark.driver.host", LOOPBACK)
        .config("spark.driver.bindAddress", LOOPBACK)
        .config("spark.ui.enabled", "false")
    )
