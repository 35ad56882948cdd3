"""The driver's end of the feed: opens streams and runs the Spark jobs that serve them, one per pass."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfspark.cluster.control import ControlPlane
from tfspark.cluster.direct import DirectRows
from tfspark.cluster.layout import PlannedRows, is_determinate
from tfspark.cluster.partition_order import mixed_order, with_mixed_partitions, without_partitions
from tfspark.cluster.python_tasks import NO_ROWS_DDL, python_tasks
from tfspark.cluster.sparkjob import SparkJob
from tfspark.cluster.state.checkpoint_store import Checkpoint
from tfspark.cluster.state.driver_state import DriverState
from tfspark.cluster.stored_rows import StoredRows, StoredRowsOfApplication, origin_of
from tfspark.errors import DataError, DeadlineError, TfsparkError
from tfspark.feed.columns import Columns
from tfspark.feed.directory import Keep
from tfspark.feed.rdd_rows import ElementsTask
from tfspark.feed.scan import ScanTask
from tfspark.feed.source import NOT_REACHED, FeedTask
from tfspark.feed.spark_names import map_in_arrow
from tfspark.feed.stream import SAMPLE_DDL, StreamSpec, first_row
from tfspark.protocol.roles import NodeSpec
from tfspark.protocol.timing import REPLACEMENT_S
from tfspark.protocol.values import Json
from tfspark.protocol.wire import Secret

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession

JOIN_TIMEOUT_S = 5.0
NETWORK_FAILED = (NOT_REACHED, "FlightUnavailableError: ", "FlightTimedOutError: ")
"""Words in the error of a Spark job that failed because of the network between feed tasks, workers and driver."""


def for_evaluation(spec: StreamSpec, name: str) -> StreamSpec:
    """Return a stream of the same columns for an evaluation: readers need not keep in step, and every row weighs 1."""
    columns: Columns = replace(spec.columns, class_weights=())
    return replace(
        spec,
        name=name,
        columns=columns,
        synchronous=False,
        ordered=False,
        shuffle_rows=0,
        cache_bytes=0,
        has_ledger=False,
    )


class Feeder:
    """Feeds DataFrames to nodes.

    Args:
        spark: the session.
        control: the control plane.
        secret: the cluster's secret.
        ended: returns whether all of the given nodes have ended a job; rows they have not read yet are not fed.
        for_workers: converts the stream of the whole cluster to one for the current number of workers.
    """

    def __init__(
        self,
        spark: SparkSession,
        control: ControlPlane,
        secret: Secret,
        ended: Callable[[int, Sequence[NodeSpec]], bool],
        for_workers: Callable[[StreamSpec], StreamSpec],
    ):
        self._spark = spark
        self._control = control
        self._secret = secret
        self._ended = ended
        self._for_workers = for_workers
        self._whole: dict[str, StreamSpec] = {}
        self._readers: dict[str, Sequence[NodeSpec]] = {}
        self._specs: dict[str, StreamSpec] = {}
        self._buffer_bytes: dict[str, int] = {}
        self._layouts: dict[str, Mapping[str, object]] = {}
        self._last_stored: dict[str, int] = {}
        self._of_earlier_trainings: set[str] = set()
        self._stored = StoredRowsOfApplication(spark)

    def open(
        self,
        spec: StreamSpec,
        readers: Sequence[NodeSpec],
        buffer_bytes: int,
        layout: Mapping[str, object] | None = None,
    ) -> None:
        """Declare a stream. A stream that is already open stays as it is.

        Args:
            spec: the stream as the whole cluster reads it.
            readers: the nodes that read it.
            buffer_bytes: maximum size of the rows that wait in a feed task.
            layout: further description, for readers of items; see `TrainingRows.layout`.
        """
        if spec.name in self._specs:
            return
        self._whole[spec.name] = spec
        self._specs[spec.name] = replace(self._for_workers(spec), num_readers=len(readers))
        self._readers[spec.name] = readers
        self._buffer_bytes[spec.name] = buffer_bytes
        self._layouts[spec.name] = layout or {}
        description = {
            **self._specs[spec.name].to_json(),
            "kind": "rows",
            "needs_sample": True,
            **(layout or {}),
        }
        coordinated = self._control.has_chief and readers[0].role == "worker"
        self._control.update(
            lambda state: state.directory.open_stream(
                spec.name, description, len(readers), spec.ordered, coordinated
            )
        )

    def take_over(self, earlier: Feeder, names: Collection[str], nodes: Sequence[NodeSpec]) -> None:
        """Open the streams of an earlier incarnation for the nodes of this one; their first rows are known."""
        for name in names:
            if name in earlier._whole:
                readers = [node for node in nodes if node.role == earlier._readers[name][0].role]
                self.open(earlier._whole[name], readers, earlier._buffer_bytes[name], earlier._layouts[name])
                sample = earlier._sample(name)
                if sample is not None:
                    self._offer_sample(name, sample)

    def show_first_row(self, stream: str, rows: DataFrame) -> None:
        """Give the nodes the shapes and types of a stream when no pass of it will be fed."""
        if self._sample(stream) is None:
            # `take` computes as few partitions as possible; a limit below another operation computes all of them.
            first = self._spark.createDataFrame(rows.take(1), rows.schema)
            for row in map_in_arrow(first, first_row, SAMPLE_DDL).collect():
                self._offer_sample(stream, row["sample"])

    def _sample(self, stream: str) -> str | None:
        return self._control.read(lambda state: state.directory.sample(stream))

    def _offer_sample(self, stream: str, sample: str) -> None:
        self._control.update(lambda state: state.directory.offer_sample(stream, sample))

    def begin_at(self, stream: str, index: int) -> None:
        """Number the next pass of a stream `index`, or higher if that one was already fed."""
        self._control.update(lambda state: state.directory.skip_passes(stream, index))

    def feed(
        self,
        stream: str,
        rows: PlannedRows | RDD[Any],
        job: int,
        keep: bool = False,
        again: bool = False,
        begun: Checkpoint | None = None,
    ) -> int | None:
        """Feed every row once, and check that all of them arrived.

        One Spark job serves the rows. If the nodes have stored them, in an earlier pass or in an earlier training of
        the same rows, the nodes read their files instead. If a worker is lost and replaced, another job serves the rows
        that it had received.

        Args:
            stream: an open stream.
            rows: a DataFrame with the stream's columns, or an RDD of items.
            job: the job for which the nodes need the rows; if they end it early, the rest is not fed.
            keep: let the nodes store these rows, if the stream has a node cache.
            again: these are the same rows as in the previous pass.
            begun: a checkpoint in the middle of this pass. Rows it was trained on are not fed, and partitions that were
                trained on completely are not computed.

        Returns:
            The number of rows; None if the nodes ended the job before they had received all rows.

        Raises:
            DataError: there are no rows.
            Exception: the error that Spark raised while it computed the rows.
        """
        spec = self._specs[stream]
        if again and self.is_kept(stream):
            return self._feed_stored(stream, job)
        origin = None
        if spec.cache_bytes and not again and begun is None and isinstance(rows, PlannedRows):
            origin = origin_of(
                rows, self._control.read(lambda state: state.directory.num_passes(stream)), spec
            )
        found = None if origin is None else self._stored.find(origin)
        stale = () if origin is None or found is not None else self._stored.outdated(origin)
        is_kept = bool(spec.cache_bytes) and (keep or origin is not None)
        how = Keep(uuid.uuid4().hex, origin is not None, stale) if is_kept else None
        used = None if begun is None else begun.used
        offer = None if found is None else found.files
        if found is not None and self._sample(stream) is None:
            self._offer_sample(stream, found.sample)
        index = self._control.update(
            lambda state: state.directory.open_pass(stream, how, used=used, offer=offer)
        )
        self._last_stored[stream] = index
        self._of_earlier_trainings.discard(stream)
        if found is not None and isinstance(rows, PlannedRows) and self._take_stored(stream, index, job):
            self._of_earlier_trainings.add(stream)
            self._note_layout(stream, index, self._layout_of_stored(stream, rows.of_pass(index)[1].to_json()))
            return found.rows if self._all_arrived(stream, index, found.rows, float("inf"), job) else None
        served = self._feed_from_spark(stream, index, rows, job, begun)
        if served is not None and origin is not None and self.is_kept(stream):
            files, sample = self._control.read(
                lambda state: (state.directory.stored(stream, index), state.directory.sample(stream))
            )
            self._stored.add(origin, StoredRows(served, sample or "", files))
        return served

    def _feed_from_spark(
        self, stream: str, index: int, rows: PlannedRows | RDD[Any], job: int, begun: Checkpoint | None
    ) -> int | None:
        """Let Spark serve an open pass; see `feed`."""
        timeout_s = self._specs[stream].timeout_s + (REPLACEMENT_S if self._control.has_chief else 0.0)
        whole = {} if begun is None else begun.fully_trained
        if whole and self._sample(stream) is None:
            whole.popitem()  # Compute this one all the same: its task shows the nodes a row.
        while self._serve(stream, index, rows, job, whole):
            while not self._reopened(stream, index, job):
                served = self._control.update(lambda state: state.directory.finish_pass(stream, index))
                if not self._all_arrived(stream, index, served, timeout_s, job):
                    return None
                if not self._lacks_rows(stream, index):
                    return served
        return None

    def _lacks_rows(self, stream: str, index: int) -> bool:
        return self._control.read(lambda state: state.directory.lacks_rows(stream, index))

    def _serve(
        self, stream: str, index: int, rows: PlannedRows | RDD[Any], job: int, whole: Mapping[int, int]
    ) -> bool:
        """Let Spark serve a pass, or what is missing of it; return whether the nodes took all rows."""
        feeding = SparkJob(
            self._spark,
            lambda: self._serving(stream, index, rows, whole),
            f"tfspark feed {stream} pass {index + 1}",
            on_end=lambda: self._control.update(lambda _: None),  # Wake the wait below.
        )

        def over(state: DriverState) -> bool:
            return feeding.ended or self._unwanted(state, stream, index, job)

        try:
            self._control.wait(over, float("inf"), "the Spark job that feeds")
            if not feeding.ended or self._unread(stream, index):
                self._control.update(lambda state: state.directory.abandon_pass(stream, index))
                feeding.join(JOIN_TIMEOUT_S)
                return False
            try:
                feeding.result()
            except Exception as error:
                self._check_network(stream, error)
                raise
            unfinished = self._control.read(
                lambda state: [] if state.registry.failed else state.directory.unfinished(stream, index)
            )
            if unfinished:
                raise TfsparkError(
                    f"expected Spark to compute all of {stream!r}, its job ended before partition {unfinished[0]} did; "
                    "this is a bug in tfspark, please report it"
                )
            return True
        finally:
            feeding.cancel()

    def _check_network(self, stream: str, error: Exception) -> None:
        """Raise a transient error if a feed task failed because of the network, however often Spark tried it."""
        message = str(error)
        if any(cause in message for cause in NETWORK_FAILED):
            lines = message.splitlines()
            said = next(line.strip() for line in lines if any(cause in line for cause in NETWORK_FAILED))
            failure = TfsparkError(
                f"expected the tasks that feed {stream!r} to be reached by every worker, and to reach the driver, the "
                f"network between them failed: {said}"
            )
            self._control.update(lambda state: state.registry.fail_cluster(failure, transient=True))
            self._control.check()

    def _reopened(self, stream: str, index: int, job: int) -> bool:
        """Return whether rows must be served again because a worker that had received them was lost."""
        if not self._lacks_rows(stream, index):
            return False
        self._control.wait(
            lambda state: (
                state.directory.is_settled(stream, index) or self._unwanted(state, stream, index, job)
            ),
            self._specs[stream].timeout_s,
            f"the workers that are left to tell what they received in epoch {index + 1} of {stream!r}",
        )
        return self._control.update(lambda state: state.directory.reopen(stream, index))

    def is_kept(self, stream: str) -> bool:
        """Whether the nodes have stored all rows of the last pass that was not read from their files."""
        last = self._last_stored.get(stream)
        return last is not None and bool(
            self._control.read(lambda state: state.directory.stored(stream, last))
        )

    def is_of_earlier_training(self, stream: str) -> bool:
        """Whether the stored rows are those of an earlier training."""
        return stream in self._of_earlier_trainings

    def _take_stored(self, stream: str, index: int, job: int) -> bool:
        """Return whether the nodes read the files that an open pass offers them; otherwise the offer is withdrawn."""
        with contextlib.suppress(DeadlineError):  # A node is busy; Spark serves the rows.
            self._control.wait(
                lambda state: (
                    state.directory.has_looked(stream, index) or self._unwanted(state, stream, index, job)
                ),
                self._specs[stream].timeout_s,
                "the workers to look for stored rows",
            )
        return self._control.update(lambda state: state.directory.takes_offer(stream, index))

    def _feed_stored(self, stream: str, job: int) -> int | None:
        """Let the nodes read the files in which they have stored the rows of an earlier pass."""
        last = self._last_stored[stream]
        expected = sum(self._rows_received(stream, last).values())

        def open_pass(state: DriverState) -> int:
            given = state.directory.stored(stream, last)
            layout = self._layout_of_stored(stream, state.directory.layout(stream, last))
            return state.directory.open_pass(stream, given=given, layout=layout)

        index = self._control.update(open_pass)
        # The deadlines are in the nodes: this wait lasts as long as the epoch.
        arrived = self._all_arrived(stream, index, expected, float("inf"), job)
        return expected if arrived else None

    def _layout_of_stored(self, stream: str, layout: Json) -> Json:
        """Return how Spark had divided stored rows. In a shuffled order, it would serve this pass in another order."""
        spec = self._specs[stream]
        return {} if spec.ordered and spec.shuffle_rows else layout

    def _unread(self, stream: str, index: int) -> bool:
        return self._control.read(lambda state: state.directory.unread(stream, index))

    def _rows_received(self, stream: str, index: int) -> dict[int, int]:
        return self._control.read(lambda state: state.directory.rows_received(stream, index))

    def _unwanted(self, state: DriverState, stream: str, index: int, job: int) -> bool:
        """Return whether the nodes ended the job or left the stream before they received all rows of the pass."""
        if state.directory.unread(stream, index):
            return True
        readers = self._readers[stream]
        all_read = len(state.directory.rows_received(stream, index)) == len(readers)
        return not all_read and self._ended(job, readers)

    def drop(self, stream: str) -> None:
        """Forget a stream whose readers have ended what they did with it."""
        for known in (self._whole, self._specs, self._readers, self._buffer_bytes, self._layouts):
            known.pop(stream, None)
        self._last_stored.pop(stream, None)
        self._control.update(lambda state: state.directory.drop_stream(stream))

    def break_off(self, why: str) -> None:
        """Announce that no more rows will be fed because a call ended by an exception; see `FeedDirectory`."""
        self._control.update(lambda state: state.directory.break_off(why))

    def close_all(self) -> None:
        """Announce that no more rows will be fed; sources and readers that still run will stop."""
        self._control.update(lambda state: state.end_feeding())

    def _serving(
        self, stream: str, index: int, rows: PlannedRows | RDD[Any], whole: Mapping[int, int]
    ) -> DataFrame | RDD[Any]:
        """Return what Spark computes to serve a pass.

        If rows are shuffled, the partitions come in mixed order. Partitions that were already served are not computed,
        except on Spark Connect, where they cannot be chosen.
        """
        spec, order = self._specs[stream], list[int]()
        if not isinstance(rows, PlannedRows):
            self._note_layout(stream, index, {"repeatable": is_determinate(rows)})
            return rows.mapPartitionsWithIndex(ElementsTask(self._task(stream, index, order)))
        planned, layout = rows.of_pass(index)
        self._note_layout(stream, index, layout.to_json())
        direct = rows.direct()
        if direct is not None:
            return self._serving_files(stream, index, direct, whole)
        if spec.shuffle_rows:
            planned, order = with_mixed_partitions(planned, spec.seed, index)
        left_out = self._leave_out(stream, index, whole, order)
        if not hasattr(planned, "_jdf"):
            left_out = []
        task = replace(self._task(stream, index, order), left_out=tuple(left_out))
        served = map_in_arrow(planned, task, NO_ROWS_DDL)
        # Prune after the task was added: Spark then plans these partitions exactly as for the whole pass.
        return without_partitions(served, left_out) if left_out else served

    def _serving_files(
        self, stream: str, index: int, direct: DirectRows, whole: Mapping[int, int]
    ) -> DataFrame | RDD[Any]:
        """Return the tasks that serve a pass by reading the files themselves; rows come in Spark's order."""
        spec = self._specs[stream]
        order = mixed_order(len(direct.splits), spec.seed, index) if spec.shuffle_rows else []
        left_out = set(self._leave_out(stream, index, whole, order))
        splits = tuple(
            (number, direct.splits[order[number] if order else number])
            for number in range(len(direct.splits))
            if number not in left_out
        )
        task = ScanTask(self._task(stream, index, order), direct.scan, splits)
        return python_tasks(self._spark, task, len(splits))

    def _note_layout(self, stream: str, index: int, layout: Json) -> None:
        self._control.update(lambda state: state.directory.note_layout(stream, index, layout))

    def _leave_out(
        self, stream: str, index: int, whole: Mapping[int, int], order: Sequence[int]
    ) -> list[int]:
        """Mark partitions as served; return all for which Spark needs to run no more tasks."""

        def leave_out(state: DriverState) -> list[int]:
            state.directory.leave_out(stream, index, whole, order)
            return state.directory.served(stream, index)

        return self._control.update(leave_out)

    def _task(self, stream: str, index: int, order: Sequence[int]) -> FeedTask:
        spec = self._specs[stream]
        return FeedTask(
            location=self._control.location,
            secret=self._secret,
            stream=stream,
            index=index,
            num_readers=spec.num_readers,
            batch_rows=spec.batch_size,
            ordered=spec.ordered,
            buffer_bytes=self._buffer_bytes[stream],
            timeout_s=spec.timeout_s,
            order=tuple(order),
        )

    def _all_arrived(self, stream: str, index: int, served: int, timeout_s: float, job: int) -> bool:
        """Check that readers received every served row, unless a reader was lost.

        Return False if the nodes ended the pass before they had received all rows.
        """
        self._control.check()  # After a failure the sources stop before they have served all rows, or any.
        if not served or self._sample(stream) is None:
            raise DataError(
                f"expected rows to feed, the DataFrame of {stream!r} has none; check its path and filters"
            )
        num_readers = len(self._readers[stream])

        def ended(state: DriverState) -> bool:
            all_read = len(state.directory.rows_received(stream, index)) == num_readers
            is_over = all_read and state.directory.is_over(stream, index)
            return (
                is_over
                or state.directory.lacks_rows(stream, index)
                or self._unwanted(state, stream, index, job)
            )

        self._control.wait(ended, timeout_s, f"the workers to end epoch {index + 1} of {stream!r}")
        if self._lacks_rows(stream, index):
            return True
        received = self._rows_received(stream, index)
        if len(received) < num_readers or self._unread(stream, index):
            return False
        if sum(received.values()) != served:
            raise TfsparkError(
                f"expected the workers to receive the {served} rows that were served in epoch {index + 1} of "
                f"{stream!r}, they received {sum(received.values())}; this is a bug in tfspark, please report it"
            )
        return True
