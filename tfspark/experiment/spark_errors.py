"""What Spark says when it cannot compute something, cut down to what concerns the person who asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tfspark.errors import DataError

MAX_CHARS = 1500


@contextmanager
def spark_errors_in_words() -> Iterator[None]:
    """Raise a `DataError` where Spark fails within the block, and keep its own error log quiet.

    Raises:
        DataError: with the words of Spark, or of the error of tfspark that was raised in one of its tasks.
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
