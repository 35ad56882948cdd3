"""Convert Spark's errors to short messages, without the parts that do not help the user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tfspark.errors import DataError

MAX_CHARS = 1500


@contextmanager
def spark_errors_in_words() -> Iterator[None]:
    """Raise a `DataError` if Spark fails within the block, and silence Spark's own error log.

    Raises:
        DataError: with Spark's message, or that of tfspark's error in one of Spark's tasks.
    """
    from pyspark.errors import PySparkException
    from pyspark.logger import PySparkLogger

    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        PySparkLogger.getLogger(name).disabled = True  # It would print the error as JSON, with the stack.
    try:
        yield
    except PySparkException as error:
        ours = re.search(r"^tfspark\.errors\.\w+: (.*)", str(error), re.MULTILINE)
        if ours:
            raise DataError(ours.group(1)) from None
        raise DataError(f"expected Spark to compute the rows, it said: {spark_words(error)}") from None


def spark_words(error: Exception) -> str:
    """Return Spark's message without the plan and the stack that follow it."""
    return re.split(r"\s*SQLSTATE: |\s*JVM stacktrace", str(error))[0].strip()[:MAX_CHARS]
