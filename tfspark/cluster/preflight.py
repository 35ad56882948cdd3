"""Checks on the driver before anything is launched."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tfspark.cluster.state.size import Size
from tfspark.errors import ConfigError, ReservationError

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject
    from pyspark.sql import SparkSession

SLOTS_WAIT_S = 30.0
SLOTS_POLL_S = 0.25
ENCRYPTING = (
    "spark.network.crypto.enabled",
    "spark.authenticate.enableSaslEncryption",
    "spark.ssl.enabled",
    "spark.ssl.rpc.enabled",
)
"""Settings by which Spark encrypts the traffic between its own processes."""
IDLE = ("spark.python.worker", "spark.sql.execution.pyspark.udf")
"""Prefixes of the settings for idle Python workers; Spark SQL uses the first if the second is unset."""


def check_settings(spark: SparkSession) -> None:
    """Reject Spark settings under which nodes cannot run.

    Raises:
        ConfigError: dynamic allocation is on, so Spark would remove executors whose nodes wait; or speculation is on,
            so Spark would start long-running nodes a second time; or Spark kills Python workers that return no rows
            for a while.
    """
    if is_on(spark, "spark.dynamicAllocation.enabled"):
        raise ConfigError(
            "expected spark.dynamicAllocation.enabled=false, it is true: Spark would remove executors whose nodes "
            "only wait for data; set it to false and give a fixed spark.executor.instances (or spark.cores.max)"
        )
    if is_on(spark, "spark.speculation"):
        raise ConfigError(
            "expected spark.speculation=false, it is true: Spark would start nodes that take long, as all do, a second "
            "time; set it to false for this application"
        )
    kills = [prefix for prefix in IDLE if is_on(spark, f"{prefix}.killOnIdleTimeout")]
    if kills and any(_is_some(spark, f"{prefix}.idleTimeoutSeconds") for prefix in IDLE):
        raise ConfigError(
            f"expected {kills[0]}.killOnIdleTimeout=false, it is true: Spark would kill every node after "
            "idleTimeoutSeconds, as a node gives it no rows; set it to false for this application"
        )


def is_on(spark: SparkSession, name: str) -> bool:
    """Return whether a Spark setting is true; upper and lower case do not matter, as in Scala."""
    return str(spark.conf.get(name, "false")).strip().lower() == "true"


def _is_some(spark: SparkSession, name: str) -> bool:
    """Return whether a Spark duration, such as ``30`` or ``30s``, is not 0; False if it cannot be parsed."""
    digits = re.match(r"\s*(\d+)", str(spark.conf.get(name, "0")))
    return digits is None or int(digits[1]) > 0


def check_encryption(spark: SparkSession, allow_plaintext: bool) -> None:
    """Reject a Spark that encrypts its traffic, because TensorFlow cannot encrypt its own.

    Raises:
        ConfigError: Spark encrypts, and plaintext was not allowed.
    """
    wanted = [key for key in ENCRYPTING if is_on(spark, key)]
    if wanted and not allow_plaintext:
        raise ConfigError(
            f"expected a Spark that does not encrypt its traffic, {', '.join(wanted)} is true: tls=True (cluster.tls) "
            "encrypts rows and calls beside it, but TensorFlow's own servers neither encrypt weights nor ask who calls "
            "(see docs/security.md); use a network that encrypts, and say allow_plaintext=True "
            "(cluster.allow_plaintext)"
        )


def jvm_context(spark: SparkSession) -> JavaObject | None:
    """Return Spark's own context in the driver's JVM; None on Spark Connect, which has none."""
    try:
        return spark.sparkContext._jsc.sc()
    except Exception:
        return None


def count_slots(spark: SparkSession) -> int | None:
    """Return how many tasks the application's executors can run at the same time now; None on Spark Connect."""
    context = jvm_context(spark)
    if context is None:
        return None
    profile = context.resourceProfileManager().defaultResourceProfile()
    return int(context.maxNumConcurrentTasks(profile))


def check_slots(
    spark: SparkSession,
    num_nodes: int,
    num_feed_slots: int,
    timeout_s: float,
    count: Callable[[SparkSession], int | None] | None = None,
    least: int | None = None,
) -> int:
    """Wait until there are enough task slots, because executors may still be starting.

    Args:
        spark: the session.
        num_nodes: slots that the nodes hold for the lifetime of the cluster.
        num_feed_slots: slots that must stay free for feed tasks.
        timeout_s: seconds to wait for executors. A local master never gets more slots, so it is not waited for.
        count: counts the slots, `count_slots` by default. If it returns None, slots cannot be counted; then a
            reservation that times out shows that there were too few.
        least: number of nodes that is enough when the time is over; None: all are needed.

    Returns:
        The number of nodes that fit, at most `num_nodes`.

    Raises:
        ReservationError: there are too few slots.
    """
    needed = num_nodes + num_feed_slots
    until = time.monotonic() + timeout_s
    while True:
        slots = (count or count_slots)(spark)
        if slots is None or slots >= needed:
            return num_nodes
        if time.monotonic() > until or is_local(spark):
            if least is not None and slots - num_feed_slots >= least:
                return slots - num_feed_slots
            raise ReservationError(_too_few(least or num_nodes, num_feed_slots, slots, spark))
        time.sleep(SLOTS_POLL_S)  # Spark has no event for a new executor.


def room_for(spark: SparkSession, size: Size, num_feed_slots: int, timeout_s: float) -> int:
    """Return how many of the wanted nodes fit; see `check_slots`."""
    wanted, least = size.wanted - size.on_driver, size.least - size.on_driver
    return check_slots(spark, wanted, num_feed_slots, timeout_s, least=least) + size.on_driver


def is_local(spark: SparkSession) -> bool:
    """Return whether Spark runs its tasks in the driver's own JVM."""
    return is_local_master(str(spark.conf.get("spark.master", "")))


def is_local_master(master: str) -> bool:
    """Return whether a master URL means that tasks run in the driver's own JVM."""
    return master == "local" or master.startswith("local[")


def _too_few(num_nodes: int, num_feed_slots: int, slots: int, spark: SparkSession) -> str:
    needed = num_nodes + num_feed_slots
    feeding = f" and at least {num_feed_slots} more to feed them" if num_feed_slots else ""
    if is_local(spark):
        cpus = int(spark.conf.get("spark.task.cpus", "1") or 1)
        of_each = f" (spark.task.cpus={cpus} for each slot)" if cpus > 1 else ""
        fix = f"use --master local[{needed * cpus}] or more{of_each}"
    else:
        fix = "raise spark.executor.cores, spark.executor.instances or spark.cores.max, or lower spark.task.cpus"
    return (
        f"expected {needed} task slots ({num_nodes} nodes hold one each{feeding}), Spark has {slots}; "
        f"{fix}, or lower num_executors"
    )


def driver_addresses(spark: SparkSession) -> tuple[str, str]:
    """Return (address to listen on, address by which executors reach the driver), as Spark itself uses them."""
    host = str(spark.conf.get("spark.driver.host", None) or "127.0.0.1")
    return str(spark.conf.get("spark.driver.bindAddress", None) or host), host
