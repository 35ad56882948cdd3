"""The Spark session of an experiment."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tfspark.errors import ConfigError
from tfspark.experiment.config import Cluster

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOOPBACK = "127.0.0.1"
LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_submitted() -> bool:
    """Whether ``spark-submit`` started this program; its master and settings then win over the YAML file's."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


@contextmanager
def spark_session(name: str, cluster: Cluster) -> Iterator[SparkSession]:
    """Open the session of an experiment, and stop it at the end.

    Raises:
        ConfigError: Spark could not start; the message includes Spark's own.
    """
    from pyspark.sql import SparkSession

    settings = {"spark.app.name": name, "spark.ui.showConsoleProgress": "false"}
    if not is_submitted():
        if cluster.master:
            settings["spark.master"] = cluster.master
        if (cluster.master or "local").startswith("local"):
            settings |= _loopback()
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings |= cluster.spark
    _refuse_connect(settings)
    try:
        with _handlers_kept():
            _start_jvm(settings)
            spark = SparkSession.builder.config(map=settings).getOrCreate()
    except Exception as error:
        raise ConfigError(
            f"expected Spark to start with master {cluster.master or 'as configured'}, it said: {error}; see "
            "cluster.master and cluster.spark, and whether java -version prints 17 or newer"
        ) from None
    spark.sparkContext.setLogLevel("ERROR")
    try:
        yield spark
    finally:
        with suppress(Exception):  # Spark may have ended, for example after a signal.
            # Tasks that were just cancelled, such as a warm-up, end while Spark stops: hide their errors.
            spark.sparkContext.setLogLevel("OFF")
        spark.stop()


def _refuse_connect(settings: Mapping[str, str]) -> None:
    """Reject Spark Connect before Spark starts it: it has no SparkContext."""
    given = "SPARK_REMOTE" if os.environ.get("SPARK_REMOTE") else "spark.remote"
    if os.environ.get("SPARK_REMOTE") or settings.get("spark.remote"):
        raise ConfigError(
            f"expected a classic Spark session, {given} asks for Spark Connect, which has no SparkContext; unset it "
            "and set cluster.master"
        )


def _loopback() -> dict[str, str]:
    """Return settings for a cluster within this machine: listen on this machine only, and log only errors."""
    os.environ.setdefault("SPARK_LOCAL_IP", LOOPBACK)
    settings = {
        "spark.driver.host": LOOPBACK,
        "spark.driver.bindAddress": LOOPBACK,
        "spark.ui.enabled": "false",
    }
    if "SPARK_CONF_DIR" not in os.environ:
        settings["spark.driver.extraJavaOptions"] = f"-Dlog4j2.configurationFile={LOG_SETTINGS.as_uri()}"
    return settings


def _start_jvm(settings: Mapping[str, str]) -> None:
    """Start Spark's JVM in its own session, if it is not running.

    There a signal to this program's process group, such as a terminal's Ctrl-C, does not reach it: the JVM is
    still needed to end the nodes. It ends with this program, whose pipe it reads. If this program ended before the
    JVM reads that pipe, the JVM would remain. So signals wait until then, for a second or two.
    """
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    if SparkContext._gateway is None:
        with _signals_held():
            conf = SparkConf().setAll(list(settings.items()))
            SparkContext._ensure_initialized(gateway=launch_gateway(conf, {"start_new_session": True}))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the end of the block."""
    came: list[int] = []
    try:
        with _handlers_kept():
            if threading.current_thread() is threading.main_thread():
                for number in ENDING_SIGNALS:
                    signal.signal(number, lambda number, frame: came.append(number))
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore the signal handlers at the end of the block.

    pyspark's own handler of SIGINT calls the JVM in the middle of any other call, and cancels the jobs of the nodes,
    which must end in order.
    """
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
