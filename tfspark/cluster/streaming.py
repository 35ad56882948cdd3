"""Train on the micro-batches of a streaming DataFrame. Runs on the driver.

Each micro-batch is trained as a separate pass. Spark commits it only after that. So the weights include exactly the
committed micro-batches, unless the process dies between training and commit. After a stop, the current micro-batch
ends and is committed; the next one is refused, so Spark delivers it again after a restart from the same checkpoint
location.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tfspark.errors import DeadlineError, TfsparkError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.streaming import StreamingQuery

COMMIT_TIMEOUT_S = 60.0
POLL_S = 0.1
_PY4J_LOG = logging.getLogger("py4j.clientserver")


class StreamStoppedError(TfsparkError):
    """Raised within Spark to refuse a micro-batch after the stop; users never see it."""


class _Quiet(logging.Filter):
    """Removes the refusal after a stop from py4j's log, because it is not an error."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], StreamStoppedError))


class MicroBatches:
    """A streaming query that passes its micro-batches to a function, one after another.

    Args:
        df: the streaming DataFrame.
        train: trains one micro-batch and then returns; called in one of Spark's threads.
        trigger: arguments of `DataStreamWriter.trigger`; empty: whenever there are rows.
        checkpoint_location: directory where Spark records its commits; None: a temporary directory.
    """

    def __init__(
        self,
        df: DataFrame,
        train: Callable[[DataFrame], None],
        trigger: Mapping[str, object],
        checkpoint_location: str | None,
    ):
        self._df = df
        self._train = train
        self._trigger = dict(trigger)
        self._checkpoint_location = checkpoint_location
        self._stopping = False
        self._busy = False
        self._last_batch = -1
        self._error: BaseException | None = None
        self._query: StreamingQuery | None = None
        self._lock = threading.Lock()
        self._quiet = _Quiet()

    def stop(self) -> None:
        """Ask the query to end after the current micro-batch; return at once."""
        with self._lock:
            self._stopping = True

    def start(self) -> None:
        """Start the query."""
        _PY4J_LOG.addFilter(self._quiet)
        writer = self._df.writeStream.foreachBatch(self._on_batch)
        if self._trigger:
            writer = writer.trigger(**self._trigger)
        if self._checkpoint_location is not None:
            writer = writer.option("checkpointLocation", self._checkpoint_location)
        self._query = writer.start()

    def wait_over(self, is_alive: Callable[[], None]) -> None:
        """Wait until the query has ended, or can be stopped after `stop`.

        Args:
            is_alive: called repeatedly; raises when the cluster has failed.

        Raises:
            Exception: the error from the training of a micro-batch, or from Spark.
        """
        query = self._query
        assert query is not None
        while not self._may_stop():
            if self._ended(query):
                return
            is_alive()
        self._wait_committed(query, is_alive)

    def close(self) -> None:
        """End the query; harmless if it has ended."""
        self.stop()
        if self._query is not None:
            self._query.stop()
        _PY4J_LOG.removeFilter(self._quiet)

    def _may_stop(self) -> bool:
        with self._lock:
            return self._stopping and not self._busy

    def _ended(self, query: StreamingQuery) -> bool:
        """Wait a short time for the query's end; raise the error that ended it."""
        try:
            return bool(query.awaitTermination(POLL_S))
        except Exception as error:
            if self._error is None:
                raise
            if isinstance(self._error, StreamStoppedError):
                return True
            raise self._error from error

    def _wait_committed(self, query: StreamingQuery, is_alive: Callable[[], None]) -> None:
        """Wait until Spark has committed the last micro-batch that was trained."""
        for _ in range(int(COMMIT_TIMEOUT_S / POLL_S)):
            progress = query.lastProgress
            if self._last_batch < 0 or (progress is not None and progress["batchId"] >= self._last_batch):
                return
            if self._ended(query):
                return
            is_alive()
        raise DeadlineError(
            f"waited {COMMIT_TIMEOUT_S:g} s for Spark to commit micro-batch {self._last_batch}, which is trained; a "
            "restart from the same checkpoint location would train it again; see whether that location can be written"
        )

    def _on_batch(self, df: DataFrame, number: int) -> None:
        with self._lock:
            if self._stopping:
                self._error = StreamStoppedError(f"micro-batch {number} came after the stop")
                raise self._error
            self._busy = True
        try:
            if not df.isEmpty():
                self._train(df)
        except BaseException as error:
            self._error = error
            raise
        finally:
            with self._lock:
                self._busy, self._last_batch = False, number
