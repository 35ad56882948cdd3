"""Training and evaluation calls on a running cluster, and their progress. Runs on the driver.

`TFCluster` checks its arguments and passes them on to this module. A new incarnation of the cluster continues the work.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from tfspark.cluster.feeder import for_evaluation
from tfspark.cluster.incarnation import Incarnation
from tfspark.cluster.inputs import (
    FeedOptions,
    InputMode,
    TrainingRows,
    as_dataframe,
    check_alike,
    elements_to_feed,
    is_rdd,
    no_validation_rows,
    select_columns,
    validation_rows,
)
from tfspark.cluster.layout import Parallelism, PlannedRows, refuse_direct
from tfspark.cluster.options import ClusterOptions
from tfspark.cluster.preflight import check_slots
from tfspark.cluster.sidecar import SidecarEvaluator
from tfspark.cluster.state.checkpoint_store import RESIZED, Checkpoint, check_same_run
from tfspark.cluster.state.driver_state import DriverState
from tfspark.cluster.state.recovery import Recovery
from tfspark.cluster.streaming import MicroBatches
from tfspark.cluster.supervisor import Supervisor
from tfspark.errors import ConfigError, DataError, DeadlineError, TfsparkError
from tfspark.feed.columns import Columns
from tfspark.feed.stream import StreamSpec, check_qname
from tfspark.protocol.roles import local_batch_size, stream_name
from tfspark.protocol.settings import TrainerSettings
from tfspark.protocol.values import Json

if TYPE_CHECKING:
    from pyspark import RDD
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.streaming import DStream

    from tfspark.feed.files import TFRecordFiles

logger = logging.getLogger("tfspark")

T = TypeVar("T")

KEPT_EPOCHS = 10_000
"""Maximum number of values per metric in the history of a stream, which may have no end."""
ROWS_PER_WORKER = 32
"""Default batch of one worker, as in Keras."""


class Trainings:
    """The trainings and evaluations of one cluster.

    Args:
        spark: the session.
        options: of the cluster.
        observe: called with (event, fields).
        supervisor: keeps the cluster up.
        recovery: the checkpoints; None: restarts are off.
        generation: number of models that were trained on the cluster before.
    """

    def __init__(
        self,
        spark: SparkSession,
        options: ClusterOptions,
        observe: Callable[[str, Json], None],
        supervisor: Supervisor,
        recovery: Recovery | None,
        generation: int = 0,
    ):
        self._spark = spark
        self._options = options
        self._size = options.size
        self._input_mode = options.input_mode
        self._recovery = recovery
        self._observe = observe
        self._supervisor = supervisor
        self._purpose = ""
        self._feeding = FeedOptions()
        self._opened: dict[str, StreamSpec] = {}
        point = None if recovery is None else recovery.point
        self._parallelism = Parallelism(None if point is None else point.layout.get("parallelism"))
        self._planned: PlannedRows | None = None
        self._num_passes = self._call = 0
        self._went_back = False
        self._files: TFRecordFiles | None = None
        self._rows_in_files = 0
        self._validated: Columns | None = None
        self._evaluations = itertools.count(1)
        self._stream: MicroBatches | None = None
        self._sidecar: SidecarEvaluator | None = None
        self._num_sidecar = 0
        self._generation = generation
        self._broken_off = ""
        self._earlier: tuple[Collection[str], int] = ((), 0)
        """Streams of earlier models, and the job after which nobody reads them."""
        self._train, self._validation = self.named("train"), self.named("validation")

    # --- state for other modules -----------------------------------------------------------------------------

    def named(self, stream: str) -> str:
        """Return the full name of this model's stream; see `stream_name`."""
        return stream_name(stream, self._generation)

    @property
    def broken_off(self) -> str:
        """The exception that broke off a call; empty if there was none."""
        return self._broken_off

    @property
    def streams(self) -> list[str]:
        """The streams that were opened."""
        return list(self._opened)

    @property
    def spec(self) -> StreamSpec | None:
        """The training stream; None before the first training."""
        return self._opened.get(self._train)

    @property
    def buffer_bytes(self) -> int:
        """Maximum size of the rows that wait in a feed task."""
        return self._feeding.buffer_bytes

    @property
    def feed_slots(self) -> int:
        """Task slots that must stay free for the tasks that feed."""
        return int(self._input_mode is not InputMode.TENSORFLOW or self._validated is not None)

    @property
    def may_replace_workers(self) -> bool:
        """Whether a worker beside parameter servers may be replaced alone: it may if its rows can be served again."""
        return self._feeding.cache == "none"

    @property
    def feed_timeout_s(self) -> float:
        """Seconds without progress in the feed before an error is raised."""
        return self._options.feed_timeout

    def weights_arrived(self, epoch: int, name: str) -> None:
        """Record that the chief has sent the weights of an epoch."""
        if self._sidecar is not None:
            self._sidecar.weights_arrived(epoch, name)

    def use_for(self, purpose: str, data: object, qname: str) -> InputMode:
        """Check that this call is possible after the earlier calls; return who reads the data."""
        from tfspark.feed.files import TFRecordFiles

        check_qname(qname, self._options.queues)
        reads_files = isinstance(data, TFRecordFiles)
        mode = self._input_mode
        if mode is None:
            mode = InputMode.TENSORFLOW if reads_files else InputMode.SPARK
            if mode is InputMode.SPARK and self._options.runs_main_fun:
                check_slots(self._spark, self._supervisor.num_slots, 1, timeout_s=0)
        if purpose == "inference" and mode is InputMode.TENSORFLOW:
            raise ConfigError(
                "expected InputMode.SPARK for inference(), this cluster has InputMode.TENSORFLOW, whose workers read "
                "files themselves; run it with input_mode=TFCluster.InputMode.SPARK"
            )
        if self._purpose not in ("", purpose):
            raise ConfigError(
                f"expected a cluster that was not used before for {purpose}(), this one was for {self._purpose}(): its "
                "main_fun would take rows of one for the other; shut it down and run another cluster"
            )
        self._input_mode, self._purpose = mode, purpose
        return mode

    def rows_of_epoch(self, epoch: int) -> int:
        """Return the rows that all workers together had in an epoch, without padding."""
        if self._input_mode is InputMode.TENSORFLOW:
            return self._rows_in_files
        received = self._supervisor.control.read(
            lambda state: state.directory.rows_received(self._train, epoch - 1)
        )
        return sum(received.values())

    # --- training on what Spark feeds ----------------------------------------------------------------

    def open(
        self,
        stream: str,
        fed: TrainingRows,
        batch_size: int | None,
        feeding: FeedOptions,
        timeout_s: float,
        validation: bool,
        open_ended: bool = False,
    ) -> None:
        """Open the streams at the first call; check that later calls have the same arguments."""
        if feeding.ordered and self._supervisor.chief is not None:
            raise ConfigError(
                "expected FeedOptions(ordered=False) with num_ps > 0, got True: steps of asynchronous training have no "
                "order; leave it out, or leave num_ps out"
            )
        spec = replace(
            self._stream_spec(fed.columns, batch_size, feeding),
            name=stream,
            timeout_s=timeout_s,
            open_ended=open_ended,
        )
        if self._opened.setdefault(stream, spec) != spec:
            raise ConfigError(
                "expected the same columns, batch_size and feeding as at the first train(), got others; shut this "
                "cluster down and run a new one"
            )
        self._feeding = feeding
        self._supervisor.feeder.open(spec, self._supervisor.workers, feeding.buffer_bytes, fed.layout)
        self._call = self._num_passes
        self._planned = None if fed.is_streaming else self._plan(fed.rows)
        self._check_resumed(spec)
        if validation and self._options.runs_main_fun:
            # For `model.fit(..., validation_data=ctx.dataset("validation"))`: validation is in step, as training is.
            columns = replace(spec.columns, class_weights=())
            in_step = replace(spec, name=self._validation, columns=columns, shuffle_rows=0, cache_bytes=0)
            self._supervisor.feeder.open(in_step, self._supervisor.workers, feeding.buffer_bytes)
        elif validation:
            readers = self._supervisor.evaluators or self._supervisor.workers
            self._supervisor.feeder.open(
                for_evaluation(spec, self._validation), readers, feeding.buffer_bytes
            )

    def train_on_rows(
        self, stream: str, rows: DataFrame | RDD[object], num_epochs: int, checked: DataFrame | None
    ) -> dict[str, list[float]]:
        """Feed rows `num_epochs` times, and `checked` after each epoch; return metric -> value per epoch."""
        first = self._call = self._num_passes
        self._num_passes += num_epochs
        call = range(first, self._num_passes)
        if self._planned is None or self._planned.rows is not rows:
            self._planned = self._plan(rows)
        return self._done_whole(
            lambda: self._train_passes(stream, self._planned or rows, call, checked),
            begins_again=num_epochs == 1,
        )

    def _done_whole(self, work: Callable[[], T], begins_again: bool = False) -> T:
        """Do some work together with the workers. If it is interrupted, the workers can do no other work.

        Args:
            work: the driver's part of the work.
            begins_again: whether the workers have ended it after a `DataError`, for example if there were no rows.

        Raises:
            TfsparkError: an earlier call was interrupted, and the workers are still in the middle of it.
        """
        if self._broken_off:
            raise TfsparkError(
                "expected a cluster whose workers have ended what they did before, an earlier call was broken off by "
                f"{self._broken_off}; end this cluster by shutdown(), which can export the weights as they are, or "
                "run another, with resume= to go on"
            )
        try:
            return self._supervisor.surviving(work)
        except BaseException as error:
            is_over = self._supervisor.has_failed or (begins_again and isinstance(error, DataError))
            if not is_over:
                said = str(error).strip().splitlines()
                self._broken_off = f"{type(error).__name__}{': ' if said else ''}{said[0] if said else ''}"
                self._supervisor.feeder.break_off(self._broken_off)
                self._abandon_sidecar()
            raise

    def _plan(self, rows: DataFrame | RDD[object]) -> PlannedRows | None:
        """Fix the partitions of rows for all incarnations; items of an RDD are fed in one incarnation only."""
        if is_rdd(rows):
            refuse_direct(self._feeding.scan, "they are the items of an RDD")
            return None
        return PlannedRows(rows, self._parallelism, self._feeding.scan, self._observe)

    def _train_passes(
        self, stream: str, rows: PlannedRows | RDD[object], call: range, checked: DataFrame | None
    ) -> dict[str, list[float]]:
        """Feed the rest of a training, which may be all of it."""
        self._go_back_further()
        left, begun = self._left_of(call)
        if left is None:
            return {}
        if not self._options.runs_main_fun:
            self._supervisor.feeder.begin_at(stream, left.start)
        if not left and isinstance(rows, PlannedRows):
            self._supervisor.feeder.show_first_row(stream, rows.rows)
        job = self._post_training(call, left, checked)
        if checked is not None and self._options.runs_main_fun:
            self._show_validation(checked)
        first_whole = left.start + (begun is not None)
        for index in left:
            first_of_several = index == first_whole and index + 1 < left.stop
            self._feed(stream, rows, job, first_of_several, index > first_whole, begun)
            begun = None
            is_found = self._supervisor.feeder.is_of_earlier_training(stream)
            if index == first_whole and self._feeding.cache == "node" and (first_of_several or is_found):
                self._observe("cache", {"kept": self._supervisor.feeder.is_kept(stream), "found": is_found})
            if self._all_left(stream):
                break
            if checked is not None and self._options.runs_main_fun:
                self._validate_if_asked(stream, checked, job)
            elif checked is not None and self._sidecar is None and not self._supervisor.have_trained(job):
                self._feed(self._validation, checked, job)
            if self._supervisor.have_trained(job):
                break
            if index + 1 < left.stop:
                self._grow(job, index + 1)
        return self._training_result(job)

    def _show_validation(self, checked: DataFrame) -> None:
        """Give a `main_fun` the first row of the validation rows, so that it can make its dataset before it trains."""
        control, validation = self._supervisor.control, self._validation
        self._supervisor.feeder.show_first_row(validation, checked)
        if not control.read(lambda state: state.directory.has_sample(validation)):
            raise no_validation_rows()
        control.update(lambda state: state.directory.forget_asking(validation))

    def _validate_if_asked(self, stream: str, checked: DataFrame, job: int) -> None:
        """Feed the validation rows if the `main_fun` asks for them before it continues to train or returns."""
        control = self._supervisor.control

        def asked(state: DriverState) -> bool:
            return state.directory.is_awaited(self._validation)

        def asked_or_on(state: DriverState) -> bool:
            goes_on = state.directory.is_awaited(stream) or state.directory.all_left(stream)
            return asked(state) or goes_on or self._supervisor.have_trained(job)

        with contextlib.suppress(DeadlineError):  # It is busy; the check below sees what it does next.
            control.wait(asked_or_on, self.feed_timeout_s, "main_fun to evaluate or to train on")
        if control.read(asked):
            self._feed(self._validation, checked, job)
        elif not self._told_unread:
            self._told_unread = True
            logger.warning(
                "main_fun has not read the validation rows after an epoch; pass "
                "validation_data=ctx.dataset('validation') to fit, or leave validation= out of train(); with "
                "build_model tfspark evaluates them itself"
            )

    _told_unread = False

    def _grow(self, job: int, passes: int) -> None:
        """After `passes` passes, restart with more workers if Spark has room for them now."""
        recovery = self._recovery
        if recovery is None:
            return

        def saved() -> bool:
            self._supervisor.control.wait(
                lambda _: recovery.store.has(passes) or self._supervisor.have_trained(job),
                self.feed_timeout_s,
                f"the checkpoint of epoch {passes}",
            )
            return not self._supervisor.have_trained(job)

        self._supervisor.resize_if_possible(saved)

    def train_on_stream(
        self,
        stream: str,
        rows: DataFrame,
        num_epochs: int,
        checked: DataFrame | None,
        trigger: Mapping[str, object],
        checkpoint_location: str | None,
    ) -> dict[str, list[float]]:
        """Feed each micro-batch `num_epochs` times, until the query ends or `stop_stream` is called."""
        history: dict[str, list[float]] = {}

        def train(batch: DataFrame) -> None:
            for name, values in self.train_on_rows(stream, batch, num_epochs, checked).items():
                history[name] = [*history.get(name, ()), *values][-KEPT_EPOCHS:]

        self._stream = MicroBatches(rows, train, trigger, checkpoint_location)
        try:
            self._stream.start()
            self._stream.wait_over(self._supervisor.check_for_good)
        finally:
            self._stream.close()
            self._stream = None
        return history

    def stop_stream(self) -> None:
        """Let `train_on_stream` end after the current micro-batch; harmless if there is no streaming query."""
        if self._stream is not None:
            self._stream.stop()

    def train_on_dstream(
        self, data: DStream[object], stream: str, batch_size: int | None, timeout_s: float
    ) -> dict[str, list[float]]:
        """Feed each RDD of a DStream once, when it arrives; return at once."""
        if not self._options.runs_main_fun:
            raise ConfigError(
                "expected a main_fun(args, ctx) to feed a DStream to; pass a DataFrame to build_model"
            )

        def feed(rdd: RDD[object]) -> None:
            if not rdd.isEmpty() and not self._all_left(stream):
                fed = elements_to_feed(rdd)
                self.open(stream, fed, batch_size, FeedOptions(), timeout_s, False, open_ended=True)
                self._feed(stream, rdd, 0)

        data.foreachRDD(feed)
        return {}

    def _all_left(self, stream: str) -> bool:
        """Return whether all workers have left a stream."""
        return self._supervisor.control.read(lambda state: state.directory.all_left(stream))

    # --- training on files ---------------------------------------------------------------------------

    def train_on_files(
        self,
        data: object,
        num_epochs: int,
        batch_size: int | None,
        validation: DataFrame | None,
        given: Mapping[str, object],
    ) -> dict[str, list[float]]:
        """Let the workers read files `num_epochs` times; `given` are arguments that must be None."""
        from tfspark.feed.files import TFRecordFiles

        if not isinstance(data, TFRecordFiles):
            raise ConfigError(
                f"expected TFRecordFiles in InputMode.TENSORFLOW, got {type(data).__name__}; pass "
                "TFRecordFiles(path, columns), or use InputMode.SPARK to feed a DataFrame"
            )
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise ConfigError(
                f"expected no {', '.join(unused)} in InputMode.TENSORFLOW, where workers read files themselves; "
                "TFRecordFiles holds the columns and the shuffling; leave it out, or use InputMode.SPARK"
            )
        spec = self._stream_spec(data.columns, batch_size, FeedOptions(shuffle_rows=data.shuffle_rows))
        checked = None if validation is None else self._open_validation(spec, validation)
        self._opened[self._train] = spec
        call = range(self._num_passes, self._num_passes + num_epochs)
        self._num_passes = call.stop
        return self._done_whole(lambda: self._train_on_shares(data, spec, call, checked))

    def _open_validation(self, spec: StreamSpec, validation: DataFrame) -> DataFrame:
        """Open the stream of rows that Spark feeds beside the files; return the rows."""
        if self._options.runs_main_fun:
            raise ConfigError(
                "expected no validation for a main_fun in InputMode.TENSORFLOW, which reads files itself; read them "
                "in main_fun, or use InputMode.SPARK"
            )
        if self._validated not in (None, spec.columns):
            raise ConfigError(
                "expected the same columns as at the first train() with validation, got others; shut this cluster down "
                "and run a new one"
            )
        # Spark looks for a first row, which takes a slot, too.
        check_slots(self._spark, self._supervisor.num_slots, 1, timeout_s=0)
        rows = validation_rows(self._spark, validation, spec.columns)
        self._validated = spec.columns
        readers = self._supervisor.evaluators or self._supervisor.workers
        self._supervisor.feeder.open(
            for_evaluation(spec, self._validation), readers, self._feeding.buffer_bytes
        )
        return rows

    def _train_on_shares(
        self, data: TFRecordFiles, spec: StreamSpec, call: range, checked: DataFrame | None
    ) -> dict[str, list[float]]:
        """Let each worker read its share of the files, for the epochs that are left."""
        self._deal_files(data, spec)
        if self._options.runs_main_fun:
            return {}
        self._check_resumed(spec)
        left, _ = self._left_of(call)
        if left is None:
            return {}
        job = self._post_training(call, left, checked)
        if checked is not None and self._sidecar is None:
            self._validate_when_asked(checked, job)
        return self._training_result(job)

    def _validate_when_asked(self, checked: DataFrame, job: int) -> None:
        """Feed the validation rows after each epoch; the workers ask for them when an epoch ends."""

        def asked_or_done(state: DriverState) -> bool:
            return state.directory.is_awaited(self._validation) or self._supervisor.have_trained(job)

        while True:
            self._supervisor.control.wait(asked_or_done, float("inf"), "the workers to end an epoch")
            if self._supervisor.have_trained(job):
                return
            self._feed(self._validation, checked, job)

    def _deal_files(self, data: TFRecordFiles, spec: StreamSpec) -> None:
        """Send each worker its share of the files."""
        num_workers = len(self._supervisor.workers)
        plan = data.plan(num_workers, self._size.for_workers(spec, num_workers).batch_size)
        self._files = data
        self._rows_in_files = sum(piece["take"] for share in plan["shares"] for piece in share)
        description = {**plan, "kind": "files", "seed": self._options.seed}
        self._supervisor.control.update(
            lambda state: state.directory.open_stream(self._train, description, num_workers)
        )

    # --- evaluation ----------------------------------------------------------------------------------

    def evaluate(self, df: DataFrame, num_classes: int | None) -> Json:
        """Evaluate rows; see `TFCluster.evaluate`."""
        spec = self._opened[self._train]
        if self._input_mode is InputMode.TENSORFLOW:
            check_slots(self._spark, self._supervisor.num_slots, 1, timeout_s=0)
        rows = select_columns(as_dataframe(self._spark, df), spec.columns)
        if self._planned is not None:
            check_alike(self._planned.rows, rows)
        return self._done_whole(lambda: self._evaluated(spec, rows, num_classes), begins_again=True)

    def _evaluated(self, spec: StreamSpec, rows: DataFrame, num_classes: int | None) -> Json:
        name = self.named(f"evaluate-{next(self._evaluations)}")
        self._supervisor.feeder.open(
            for_evaluation(spec, name), self._supervisor.workers, self._feeding.buffer_bytes
        )
        job = self._supervisor.control.post_job("evaluate", stream=name, num_classes=num_classes)
        try:
            self._feed(name, rows, job)
        except DataError:
            self._end_empty(name, job)
            self._supervisor.feeder.drop(name)
            raise
        self._supervisor.control.wait(
            lambda _: self._supervisor.have_trained(job),
            self.feed_timeout_s,
            f"the workers to evaluate {name!r}",
        )
        self._supervisor.feeder.drop(name)
        return dict(next(iter(self._supervisor.control.job_results(job).values())))

    def _end_empty(self, name: str, job: int) -> None:
        """End an evaluation that has no rows: workers wait for its first row, and other evaluations may follow."""

        def end(state: DriverState) -> bool:
            if state.directory.has_sample(name):
                return False
            like = state.directory.sample(self._train)  # It has the same columns.
            if like is None:  # The workers read files for their training.
                state.directory.break_off("an evaluation of no rows", name)
            else:
                state.directory.offer_sample(name, like)
            return True

        if self._supervisor.control.update(end):
            what = f"the workers to end the evaluation of no rows {name!r}"
            self._supervisor.control.wait(
                lambda _: self._supervisor.have_trained(job), self.feed_timeout_s, what
            )

    def _evaluate_beside(self, epoch: int, weights: str, validation: DataFrame) -> None:
        """Let the evaluator evaluate the weights of one epoch; runs in the thread of `SidecarEvaluator`."""
        job = self._supervisor.control.post_job(
            "side_car", epoch=epoch, weights=weights, index=self._num_sidecar
        )
        self._num_sidecar += 1
        self._feed(self._validation, validation, job)
        self._supervisor.control.wait(
            lambda _: self._supervisor.have_ended(job, self._supervisor.evaluators),
            self.feed_timeout_s,
            f"the evaluator to evaluate epoch {epoch}",
        )
        self._supervisor.control.remove_artifact(weights)

    def renewed(self, options: ClusterOptions, settings: TrainerSettings, params: object) -> Trainings:
        """Let the trainers build another model; return the `Trainings` of that model.

        The streams of the current model are closed.
        """
        control = self._supervisor.control
        earlier, job = self._earlier
        if not earlier or self._supervisor.have_trained(job):  # Else workers may still read them.
            for name in earlier:
                self._supervisor.feeder.drop(name)
            earlier = ()
        names = control.update(lambda state: state.directory.close_all())
        job = control.post_job("begin_anew", params=params, settings=settings.to_json())
        another = Trainings(
            self._spark, options, self._observe, self._supervisor, self._recovery, settings.generation
        )
        another._earlier = ({*earlier, *names}, job)
        return another

    def check_exportable(self) -> None:
        """Check that there are weights to export, also after a call that was broken off.

        Raises:
            TfsparkError: it was broken off before the first row, so the model may have no weights.
        """
        if not self._broken_off:
            return

        def has_sample(state: DriverState) -> bool:
            return self._train in state.directory.stream_names and state.directory.has_sample(self._train)

        if self._input_mode is not InputMode.TENSORFLOW and not self._supervisor.control.read(has_sample):
            raise TfsparkError(
                "expected a model that was trained to be exported, the training was broken off before its first row, "
                f"by {self._broken_off}; train again in another cluster"
            )
        logger.warning(
            "a call was broken off by %s: the weights are exported as they were then", self._broken_off
        )

    def export(self, formats: Sequence[str]) -> Json:
        """Let the chief send the model; return each worker's summary of it."""
        return self._done_whole(lambda: self._exported(formats))

    def _exported(self, formats: Sequence[str]) -> Json:
        job = self._supervisor.control.post_job("export", formats=list(formats))
        self._supervisor.control.wait(
            lambda _: self._supervisor.have_trained(job), self.feed_timeout_s, "the chief to send the model"
        )
        results = self._supervisor.control.job_results(job)
        return {self._supervisor.nodes[index].name: result for index, result in results.items()}

    # --- new incarnations -----------------------------------------------------------------------------------

    def take_over(self, earlier: Incarnation) -> None:
        """Let the new incarnation continue the work of an earlier one."""
        recovery = self._recovery
        assert recovery is not None
        self._abandon_sidecar()
        self._num_sidecar = 0
        self._supervisor.feeder.take_over(
            earlier.feeder, [*self._opened, self._validation], self._supervisor.nodes
        )
        if self._files is not None:
            self._deal_files(self._files, self._opened[self._train])
        recovery.point = recovery.store.newest()
        self._go_back()

    def _abandon_sidecar(self) -> None:
        if self._sidecar is not None:
            self._sidecar.abandon()
            self._supervisor.control.remove_artifact("side-car")  # Remove weights that were not evaluated.
        self._sidecar = None

    def _leave_out_other_rows(self) -> bool:
        """Skip a checkpoint in the middle of an epoch if Spark has since put the rows of that epoch in other places.

        The rows are only known when their ``train()`` is called.
        """
        recovery = self._recovery
        point = None if recovery is None else recovery.point
        if recovery is None or point is None or not point.steps or point.call > self._call:
            return False
        why = "a stream is not planned twice"
        if self._planned is not None and point.call == self._call:
            why = self._planned.differ_from(point.passes, point.layout)
        if why:
            recovery.point = recovery.store.newest_whole()
            logger.warning(
                "the checkpoint of step %d of epoch %d is not used: %s", point.steps, point.passes + 1, why
            )
            self._observe("rows_differ", {"epoch": point.passes + 1, "step": point.steps, "why": why})
        return bool(why)

    def _go_back_further(self) -> None:
        """Go back further if the resumed run was interrupted in a ``train()`` call that this run only reaches now."""
        if self._went_back and self._leave_out_other_rows():
            self._go_back()
            if self._recovery is None or self._recovery.point is None:
                raise TfsparkError(
                    "expected a checkpoint between two epochs to go back to, there is none; start anew"
                )

    def _go_back(self) -> None:
        """Let the trainers restore the checkpoint as soon as they know the first row that is fed."""
        self._went_back = True
        self._leave_out_other_rows()
        recovery = self._recovery
        if recovery is None:
            return
        recovery.store.batch_rows = self._batch_rows
        point = recovery.begin_with(self._num_parts)
        if point is not None:
            self._observe("resumed", {"epoch": point.passes + 1, "step": point.steps})
            self._supervisor.control.post_job(
                "resume",
                parts=point.parts,
                passes=point.passes,
                steps=point.steps,
                rows=point.rows,
                replays=point.can_be_replayed(self._batch_rows),
            )

    def _check_resumed(self, spec: StreamSpec) -> None:
        """At the first training of a resumed run: check that it is the same run, and restore its checkpoint."""
        if self._recovery is None:
            return
        run = {
            "workers": self._size.num_workers,
            "parameter servers": sum(node.role == "ps" for node in self._supervisor.nodes),
            "seed": spec.seed,
            "rows per worker and step": spec.batch_size,
            "ordered": spec.ordered,
            "columns": spec.columns.to_json(),
        }
        self._recovery.store.run = json.loads(json.dumps(run))
        self._recovery.store.batch_rows = self._batch_rows
        if self._recovery.point is not None and not self._went_back:
            may_differ = RESIZED if self._size.is_elastic else ()
            check_same_run(self._recovery.point, self._recovery.store.run, may_differ)
            self._go_back()

    def _left_of(self, call: range) -> tuple[range | None, Checkpoint | None]:
        """Return the passes of a training that the checkpoint of this incarnation does not contain completely.

        Return None if the resumed run had already done this training and started a later one. The second value is the
        checkpoint if it is in the middle of the first of these passes, and that pass is not replayed.
        """
        point = None if self._recovery is None else self._recovery.point
        if point is None or not self._went_back or point.call < call.start:
            return call, None
        if point.call > call.start:
            return None, None
        begin = call.stop if point.finished else point.passes
        is_within = bool(point.steps and point.used) and not point.can_be_replayed(self._batch_rows)
        return range(min(begin, call.stop), call.stop), point if is_within else None

    @property
    def _batch_rows(self) -> int:
        """Rows of a step over all workers of this incarnation, if a step uses the rows at its positions; otherwise 0.

        An interrupted epoch is then fed again from its beginning, and its finished steps are skipped: they are the same
        steps, even if there are fewer workers now. Otherwise, the ledger says which rows are left.
        """
        spec = self._opened.get(self._train)
        if spec is None or not self._feeding.ordered:
            return 0
        now = self._size.for_workers(spec, len(self._supervisor.workers))
        return now.num_readers * now.batch_size

    @property
    def _num_parts(self) -> int:
        """Number of nodes that have a part of a checkpoint."""
        return len(self._supervisor.workers) if self._supervisor.chief is None else 1

    # --- used by all of them ---------------------------------------------------------------------------------

    def _stream_spec(self, columns: Columns, batch_size: int | None, feeding: FeedOptions) -> StreamSpec:
        """Return the stream as the whole cluster reads it; for fewer workers see `Size.for_workers`."""
        num_workers = self._size.num_workers
        size = batch_size or ROWS_PER_WORKER * num_workers
        spec = StreamSpec(
            name=self._train,
            columns=columns,
            batch_size=local_batch_size(size, num_workers),
            num_readers=num_workers,
            synchronous=self._supervisor.chief is None,
            ordered=feeding.ordered,
            shuffle_rows=feeding.shuffle_rows,
            seed=self._options.seed,
            chunk_bytes=feeding.chunk_bytes,
            timeout_s=self.feed_timeout_s,
            cache_bytes=feeding.cache_bytes if feeding.cache == "node" else 0,
            has_ledger=self._options.saves_within_epochs and (not feeding.ordered or self._size.is_elastic),
        )
        return StreamSpec.from_json(spec.to_json())  # This converts NumPy numbers to Python's.

    def _post_training(self, call: range, left: range, validation: DataFrame | None) -> int:
        if self._options.runs_main_fun:
            return 0
        if validation is not None and self._supervisor.evaluators:
            self._sidecar = SidecarEvaluator(
                lambda epoch, name: self._evaluate_beside(epoch, name, validation)
            )
        return self._supervisor.control.post_job(
            "train",
            call=call.start,
            first_pass=left.start,
            epochs=len(left),
            validation=validation is not None and self._sidecar is None,
            side_car=self._sidecar is not None,
        )

    def _feed(
        self,
        stream: str,
        data: PlannedRows | DataFrame | RDD[object],
        job: int,
        keep: bool = False,
        again: bool = False,
        begun: Checkpoint | None = None,
    ) -> None:
        planned = data if isinstance(data, PlannedRows) else self._plan(data) or data
        rows = self._supervisor.feeder.feed(stream, planned, job, keep, again, begun)
        if rows is not None:
            self._observe("fed", {"stream": stream, "rows": rows})

    def _training_result(self, job: int) -> dict[str, list[float]]:
        if self._options.runs_main_fun:
            return {}
        self._supervisor.control.wait(
            lambda _: self._supervisor.have_trained(job), float("inf"), "the workers to train"
        )
        if self._sidecar is not None and not self._sidecar.finish(self.feed_timeout_s):
            raise DeadlineError(
                f"waited {self.feed_timeout_s:g} s for the evaluator to end the evaluation of an epoch; raise "
                "feed_timeout if one may take that long"
            )
        self._sidecar = None
        teller = self._supervisor.chief or self._supervisor.workers[0]
        return dict(self._supervisor.control.job_results(job)[teller.index]["history"])
