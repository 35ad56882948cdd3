"""`TFCluster`: reserve executors as TensorFlow nodes, feed them, get the results. Runs on the driver."""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tfspark.cluster.control import Observer, observer_failed
from tfspark.cluster.inputs import (
    FeedOptions,
    InputMode,
    Selection,
    check_alike,
    is_dstream,
    is_rdd,
    session_of,
    validation_rows,
    what_to_feed,
)
from tfspark.cluster.interrupts import spare_our_jobs
from tfspark.cluster.options import ClusterOptions
from tfspark.cluster.preflight import (
    SLOTS_WAIT_S,
    check_encryption,
    check_settings,
    check_slots,
    room_for,
)
from tfspark.cluster.program import is_main_fun, pickled
from tfspark.cluster.state.driver_state import DriverState
from tfspark.cluster.state.recovery import RESTART_WINDOW_S
from tfspark.cluster.state.size import REPLACEMENT_TIMEOUT_S, Preserved
from tfspark.cluster.supervisor import Supervisor
from tfspark.cluster.trainings import ROWS_PER_WORKER, Trainings
from tfspark.cluster.warm_up import warming_up
from tfspark.driver_python import stop_progress_bar
from tfspark.errors import ConfigError, DeadlineError, TfsparkError
from tfspark.feed.columns import Column, Columns
from tfspark.feed.exchange import InferenceTask
from tfspark.feed.stream import stream_of
from tfspark.history import History
from tfspark.progress import TrainingProgress, Verbose, where_to_show
from tfspark.protocol.settings import Hooks, Precision, TrainerSettings, as_plain
from tfspark.protocol.timing import HEARTBEAT_TIMEOUT_S, STOP_TIMEOUT_S
from tfspark.protocol.values import Json

if TYPE_CHECKING:
    from pyspark import RDD, SparkContext
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.streaming import DStream, StreamingContext

    from tfspark.feed.files import TFRecordFiles

logger = logging.getLogger("tfspark")

MOST_COUNTED_CLASSES = 2000
"""Its square is about the number of counts that fit into one call."""
SHUTDOWN_TIMEOUT_S = 3 * 24 * 3600.0
"""Three days, as in TensorFlowOnSpark: without feeding, training happens during `shutdown`."""
EVALUATOR_GRACE_S = 30.0
DEFAULT_PASSES = 10
"""Number of passes that TensorFlowOnSpark uses for ``num_epochs=0``, its default."""
Mode = InputMode
"""`InputMode` under another name, for annotations in the class, where `TFCluster.InputMode` hides it."""


class TFCluster:
    """A running cluster. Create it with `run`, end it with `shutdown`, or use it as a context manager."""

    InputMode = InputMode

    def __init__(
        self,
        spark: SparkSession,
        options: ClusterOptions,
        settings: TrainerSettings,
        num_nodes: int,
        code: bytes,
        observer: Observer | None,
        map_fun: Callable[..., object],
    ):
        self._spark = spark
        self._settings = settings
        self._map_fun = map_fun
        self._progress: TrainingProgress | None = None
        self._options = options
        self._observer = observer
        self._log_dir = options.run_directory
        self._tensorboard_url: str | None = None
        self._lacks_logs = False
        recovery = options.recovery()
        self._supervisor = Supervisor(spark, options, settings, num_nodes, code, self._observe, recovery)
        self._trainings = Trainings(spark, options, self._observe, self._supervisor, recovery)
        self._supervisor.work = self._trainings

    # --- begin and end --------------------------------------------------------------------------------------

    @classmethod
    def run(
        cls,
        sc: SparkSession | SparkContext,
        map_fun: Callable[..., object],
        tf_args: object = None,
        num_executors: int = 1,
        num_ps: int = 0,
        tensorboard: bool = False,
        input_mode: Mode | int | None = None,
        log_dir: str | None = None,
        driver_ps_nodes: bool = False,
        master_node: str | None = None,
        reservation_timeout: float = 600.0,
        queues: Sequence[str] = ("input", "output", "error"),
        eval_node: bool = False,
        release_port: bool = True,
        *,
        seed: int = 0,
        feed_timeout: float = 600.0,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT_S,
        optimizer: Mapping[str, object] | None = None,
        learning_rate: float | None = None,
        schedule: Mapping[str, object] | None = None,
        mixed_precision: Precision | None = None,
        callbacks: Mapping[str, object] | None = None,
        checkpoint_dir: str | None = None,
        checkpoint_every_epochs: int = 0,
        checkpoint_every_steps: int = 0,
        checkpoint_every_seconds: float = 0.0,
        max_restarts: int | None = None,
        restart_window: float = RESTART_WINDOW_S,
        min_executors: int | None = None,
        resize_keeps: Preserved = "global_batch",
        replacement_timeout: float = REPLACEMENT_TIMEOUT_S,
        resume: str | None = None,
        tls: bool = False,
        allow_plaintext: bool = False,
        warm: bool = True,
        hooks: Hooks | None = None,
        observer: Observer | None = None,
    ) -> TFCluster:
        """Reserve executors and start a TensorFlow process on each.

        The arguments before `seed` are those of TensorFlowOnSpark, in its order.

        Args:
            sc: the session, or a SparkContext.
            map_fun: ``main_fun(args, ctx)``, run on every node; or a function without a context that returns a compiled
                `keras.Model` (``build_model(args)`` or ``build_model()``), which tfspark trains itself.
            tf_args: first argument of `map_fun`. For a `main_fun`, a list also becomes ``sys.argv``.
            num_executors: number of nodes of all roles; each holds one Spark task slot.
            num_ps: number of parameter servers among them. If there are any, workers train asynchronously
                (ParameterServerStrategy), and a chief beside worker 0 coordinates them.
            tensorboard: run TensorBoard for `log_dir` on the chief's executor until the cluster ends.
            input_mode: who reads the data. None: the first call decides. Workers read TFRecordFiles that are passed to
                `train`; Spark reads everything else.
            log_dir: the run directory on the driver's machine, for logs, checkpoints and exports.
            driver_ps_nodes: run the parameter servers on the driver's machine, where they need no slots.
            master_node: ``"chief"`` or ``"master"``: worker 0's ``ctx.job_name``; None: ``"worker"``.
            reservation_timeout: seconds within which every node must register.
            queues: allowed values of ``qname`` in `train` and `inference`.
            eval_node: reserve one node as a sidecar evaluator.
            release_port: no effect: a node's port is kept until TensorFlow listens on it.
            seed: seed of weights, shuffling and dropout, the same on every worker.
            feed_timeout: seconds without progress anywhere in the feed before an error is raised.
            heartbeat_timeout: seconds of silence after which a node is lost, also for the TensorFlow of other workers.
            optimizer: a Keras optimizer that replaces the one `build_model` compiled: ``{"name": "sgd", ...}``.
            learning_rate: replaces the compiled learning rate.
            schedule: a learning rate schedule that replaces the compiled one, by its name in
                `keras.optimizers.schedules`:
                ``{"name": "cosine_decay", "initial_learning_rate": 0.01, "decay_steps": 1000}``.
            mixed_precision: with `build_model`: compute in this type, and keep the weights in float32.
            callbacks: ``early_stopping``, ``reduce_lr_on_plateau``, ``terminate_on_nan`` with their arguments.
            checkpoint_dir: directory for the checkpoints that `main_fun` saves, on storage that all executors share.
            checkpoint_every_epochs: with `build_model`: save into ``log_dir/checkpoints``; 0: never.
            checkpoint_every_steps: with `build_model`: save the training state also after this number of steps, not
                only after each epoch.
            checkpoint_every_seconds: save the training state at this interval, with a tolerance of two seconds. With
                either argument, the state is also saved when Spark announces that it will take an executor away.
            max_restarts: number of restarts within `restart_window` when a process or an executor is lost. With
                `build_model`, default 3: the cluster restarts from its newest checkpoint, which is in
                ``log_dir/checkpoints``, or in a temporary directory if there is no `log_dir`. With a `main_fun` that
                reads files (`InputMode.TENSORFLOW`), default 0: all nodes run it again; it continues from its own
                checkpoints.
            restart_window: length of the window in seconds.
            min_executors: with `build_model`: the number of nodes that is enough when Spark cannot replace a lost node,
                or has no room for all nodes at the start; default `num_executors`. A smaller cluster restarts with more
                nodes after the next epoch for which Spark has room.
            resize_keeps: what stays the same when the number of workers changes: the ``global_batch``, or the part of
                each worker, ``worker_batch``.
            replacement_timeout: seconds that Spark has to replace what was lost, before `min_executors` is enough.
            resume: ``log_dir`` of an interrupted run; `train` continues from its newest checkpoint.
            tls: encrypt rows, calls, checkpoints and models in transit, with a certificate made for this cluster.
                TensorFlow cannot encrypt the traffic between its servers.
            allow_plaintext: whether weights, and rows without `tls`, may travel unencrypted although Spark encrypts its
                own traffic.
            warm: fork trainers from a process on each executor that has already imported TensorFlow and stays for later
                clusters and restarts; False: start each trainer as a new interpreter. The process holds about 250 MB.
                It ends with the executor, or after ten minutes without a trainer.
            hooks: more functions of the model module, only with `build_model`.
            observer: called with (event, fields) for phases, steps, epochs and log lines.

        Raises:
            ConfigError: an argument or a Spark setting is wrong; nothing was started.
            ReservationError: there are too few slots, versions differ, or a node has not registered in time.
        """
        del release_port
        session = session_of(sc)
        options = ClusterOptions(
            runs_main_fun=is_main_fun(map_fun),
            num_executors=index(num_executors),  # Accept NumPy integers, too.
            num_ps=index(num_ps),
            tensorboard=tensorboard,
            input_mode=None if input_mode is None else InputMode(input_mode),
            log_dir=log_dir,
            driver_ps_nodes=driver_ps_nodes,
            master_node=master_node,
            reservation_timeout=reservation_timeout,
            queues=queues,
            eval_node=eval_node,
            seed=seed,
            feed_timeout=feed_timeout,
            heartbeat_timeout=heartbeat_timeout,
            optimizer=optimizer,
            learning_rate=learning_rate,
            schedule=schedule,
            mixed_precision=mixed_precision,
            callbacks=callbacks,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every_epochs=checkpoint_every_epochs,
            checkpoint_every_steps=checkpoint_every_steps,
            checkpoint_every_seconds=checkpoint_every_seconds,
            max_restarts=max_restarts,
            restart_window=restart_window,
            min_executors=min_executors,
            resize_keeps=resize_keeps,
            replacement_timeout=replacement_timeout,
            resume=resume,
            tls=tls,
            allow_plaintext=allow_plaintext,
            warm=warm,
            hooks=hooks or Hooks(),
        )
        return cls._started(session, options, map_fun, tf_args, observer)

    @classmethod
    def run_independently(
        cls,
        spark: SparkSession,
        map_fun: Callable[..., object],
        tf_args: object,
        num_nodes: int,
        all_at_once: bool,
    ) -> TFCluster:
        """Start nodes that do not know each other; see `TFParallel.run`."""
        options = ClusterOptions.for_independent(num_nodes, all_at_once)
        return cls._started(spark, options, map_fun, tf_args, None)

    @classmethod
    def _started(
        cls,
        spark: SparkSession,
        options: ClusterOptions,
        map_fun: Callable[..., object],
        tf_args: object,
        observer: Observer | None,
    ) -> TFCluster:
        """Check what only Spark knows, and launch the cluster."""
        settings = options.trainer_settings(spark)
        check_settings(spark)
        if not options.independent:  # Independent nodes do not communicate.
            check_encryption(spark, options.allow_plaintext)
        if "TF_CONFIG" in os.environ:
            logger.warning("TF_CONFIG of this program is not used: tfspark gives each node its own")
        with warming_up(spark, options.num_executors if options.warm else 0):
            code = pickled(map_fun, tf_args, options.hooks)
            wait_s = min(options.reservation_timeout, SLOTS_WAIT_S)
            if options.all_at_once:
                num_nodes = room_for(spark, options.size, int(options.feeds), wait_s)
            else:
                check_slots(spark, 1, 0, wait_s)
                num_nodes = options.num_executors
            cluster = cls(spark, options, settings, num_nodes, code, observer, map_fun)
            return cluster._launched()

    def _launched(self) -> TFCluster:
        stop_progress_bar(self._spark)
        spare_our_jobs()
        try:
            self._supervisor.surviving(lambda: None)
        except BaseException:
            self.stop()
            raise
        return self

    def shutdown(
        self,
        ssc: StreamingContext | None = None,
        grace_secs: float = 0,
        timeout: float = SHUTDOWN_TIMEOUT_S,
        *,
        export: Sequence[str] = (),
    ) -> dict[str, Any]:
        """End the cluster in order: let the trainers finish, export, collect what they returned.

        After a `train` or `evaluate` that was broken off, by Ctrl-C or an error in the data, the workers end what they
        did at the same step, and the weights are exported as they are.

        Args:
            ssc: the StreamingContext of a DStream that is fed; wait until it or all workers have ended.
            grace_secs: seconds that an evaluator with a `main_fun` has to return after the workers, at least 30.
                Workers are waited for in any case.
            timeout: seconds that the trainers have to return after the last row; -1: no limit.
            export: with `build_model`: formats to export to ``log_dir/export``: ``keras``, ``saved_model``.

        Returns:
            Node name, such as ``"worker 0"`` -> the value that the node's `main_fun` returned. For `build_model`, the
            value is a summary: ``history``, ``rows`` per epoch, ``iterations``, ``weights_sha256``.

        Raises:
            NodeFailedError: a node failed; the cluster is stopped in this case, too.
            DeadlineError: a trainer did not return in time.
        """
        if export and self._options.runs_main_fun:
            raise ConfigError("expected no export with a main_fun; call ctx.export(model) in it instead")
        if export and self._log_dir is None:
            raise ConfigError("expected log_dir to be set, to hold the export; pass it to TFCluster.run")
        try:
            if ssc is not None:
                self._await_streaming(ssc)
            timeout_s = timeout if timeout >= 0 else float("inf")
            return self._supervisor.surviving(lambda: self._closed(grace_secs, timeout_s, export))
        finally:
            self.stop()

    def _closed(self, grace_s: float, timeout_s: float, export: Sequence[str]) -> dict[str, object]:
        """Let the trainers finish; return the values they returned."""
        if export:
            self._trainings.check_exportable()
        self._supervisor.feeder.close_all()
        self._supervisor.control.post_job("close", export=list(export))
        self._supervisor.control.wait(
            self._trainers_done, timeout_s, "the trainers to return after the last row"
        )
        self._await_evaluator(grace_s)
        if not self._options.runs_main_fun:
            _check_identical_weights(self._results())
        try:
            self._supervisor.control.wait(
                lambda state: state.registry.all_ended, STOP_TIMEOUT_S, "the nodes to end"
            )
        except DeadlineError:  # All trainers have returned their results, so `stop` may end the nodes.
            logger.warning("not all nodes ended within %g s, they are ended now", STOP_TIMEOUT_S)
        return self._results()

    def _results(self) -> dict[str, object]:
        return self._supervisor.control.read(lambda state: state.registry.results())

    def _await_streaming(self, ssc: StreamingContext) -> None:
        """Wait for the end of a StreamingContext; end it when a node fails or no worker reads any more."""
        control = self._supervisor.control

        def all_left(state: DriverState) -> bool:
            return any(state.directory.all_left(name) for name in self._trainings.streams)

        try:
            while not ssc.awaitTerminationOrTimeout(1):
                if control.read(all_left):
                    ssc.stop(stopSparkContext=False, stopGraceFully=True)
                    return
                control.check()
        except TfsparkError:
            ssc.stop(stopSparkContext=False, stopGraceFully=False)
            raise

    def _await_evaluator(self, grace_s: float) -> None:
        """Wait until an evaluator's `main_fun` returns. One that never returns is told to stop, without an error."""
        if not (self._supervisor.evaluators and self._options.runs_main_fun):
            return
        try:
            self._supervisor.control.wait(
                lambda state: state.registry.all_succeeded("evaluator"),
                max(grace_s, EVALUATOR_GRACE_S),
                "the evaluator to return",
            )
        except DeadlineError:
            self._supervisor.control.update(lambda state: state.registry.stop())

    def begin_anew(
        self,
        tf_args: object = None,
        *,
        seed: int = 0,
        optimizer: Mapping[str, object] | None = None,
        learning_rate: float | None = None,
        schedule: Mapping[str, object] | None = None,
        callbacks: Mapping[str, object] | None = None,
    ) -> None:
        """Train another model on the same nodes: the one that `build_model` returns for other arguments.

        The current model is lost, with its optimizer, history and checkpoints; `export` it first. Afterwards the
        cluster is as after `run` with these arguments, but no nodes have to be started.

        Args:
            tf_args: argument of `build_model`, as plain JSON data.
            seed: see `run`.
            optimizer: see `run`.
            learning_rate: see `run`.
            schedule: see `run`.
            callbacks: see `run`.

        Raises:
            ConfigError: the cluster runs a `main_fun`, or has parameter servers or an evaluator; or an argument is not
                plain JSON data.
        """
        has_others = any(node.role != "worker" for node in self._supervisor.nodes)
        if self._options.runs_main_fun or has_others:
            raise ConfigError(
                "expected a cluster of workers that train what build_model returns to begin anew, this one has "
                "a main_fun, parameter servers or an evaluator; shut it down and run another"
            )
        self._options = replace(
            self._options,
            seed=seed,
            optimizer=optimizer,
            learning_rate=learning_rate,
            schedule=schedule,
            callbacks=callbacks,
        )
        params = as_plain("tf_args", tf_args)
        settings = self._options.trainer_settings(self._spark)
        self._settings = replace(settings, generation=self._settings.generation + 1)
        self._supervisor.begin_anew(pickled(self._map_fun, params, self._options.hooks), self._settings)
        self._trainings = self._trainings.renewed(self._options, self._settings, params)
        self._supervisor.work = self._trainings

    def export(self, *formats: str) -> dict[str, Any]:
        """Export the model to ``log_dir/export``, as `shutdown` does, and go on.

        Args:
            formats: ``keras``, ``saved_model``.

        Returns:
            See `shutdown`.

        Raises:
            TfsparkError: the workers' weights differ.
        """
        if self._options.runs_main_fun or self._trainings.spec is None or self._log_dir is None:
            raise ConfigError(
                "expected a cluster with log_dir that has trained what build_model returns, to export it; call "
                "train() before, and give log_dir to TFCluster.run"
            )
        results = self._trainings.export(formats)
        _check_identical_weights(results)
        return results

    def stop(self) -> None:
        """End the cluster now, in any state; harmless if it has ended."""
        self._supervisor.stop()

    def __enter__(self) -> TFCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._supervisor.stopped:
            self.shutdown()
        else:
            self.stop()

    def _repr_html_(self) -> str:
        """Return HTML that shows the nodes in a notebook."""
        hosts = self._supervisor.control.read(lambda state: state.registry.hosts())
        state = "ended" if self._supervisor.stopped else "running"
        rows = "".join(
            f"<tr><td>{name}</td><td>{html.escape(host or 'not there')}</td></tr>"
            for name, host in hosts.items()
        )
        places = {"TensorBoard": self._tensorboard_url, "log_dir": self._log_dir}
        more = "".join(
            f"<div>{name}: {html.escape(str(place))}</div>" for name, place in places.items() if place
        )
        return (
            f"<div><b>TFCluster</b> {state}, {len(hosts)} node{'' if len(hosts) == 1 else 's'}"
            f"<table><tr><th>node</th><th>host</th></tr>{rows}</table>{more}</div>"
        )

    # --- feeding -----------------------------------------------------------------------------------

    def train(
        self,
        data: DataFrame | RDD[Any] | DStream[Any] | TFRecordFiles,
        num_epochs: int | None = None,
        feed_timeout: float | None = None,
        qname: str = "input",
        *,
        features: Sequence[str | Column] | None = None,
        label: str | Column | Sequence[str | Column] | None = "label",
        num_classes: int | None = None,
        class_weights: Mapping[int, float] | None = None,
        columns: Columns | None = None,
        batch_size: int | None = None,
        validation: DataFrame | None = None,
        feeding: FeedOptions | None = None,
        trigger: Mapping[str, object] | None = None,
        checkpoint_location: str | None = None,
        weight: str | Column | None = None,
        verbose: Verbose = "auto",
    ) -> dict[str, list[float]]:
        """Feed a DataFrame `num_epochs` times and wait until it is trained on.

        A streaming DataFrame is trained micro-batch by micro-batch, each one `num_epochs` times, until its query ends
        or `stop_stream` is called. Spark commits a micro-batch after it is trained.

        Args:
            data: rows to train on; in `InputMode.TENSORFLOW`, the files to read. A `main_fun` also accepts an RDD of
                any values that Arrow can hold, or a DStream of them.
            num_epochs: number of epochs, default 1. For a `main_fun` that is fed an RDD, the default is ten, and 0
                means until the workers want no more rows, as in TensorFlowOnSpark.
            feed_timeout: seconds without progress in the feed before an error is raised; default: that of `run`.
            qname: one of the queues of `run`; a `main_fun` reads it with ``ctx.get_data_feed(qname_in=qname)`` or
                ``ctx.dataset(qname)``.
            features: feature columns; None: every column except the label. One column is fed as a tensor, several as a
                dict by name.
            label: label column. Several columns are fed as a dict by name, for a model with several outputs. None: the
                features are also the target.
            num_classes: check that labels lie in [0, num_classes).
            class_weights: class -> weight of its rows in the loss.
            columns: features, label, num_classes, class_weights and weight in one object.
            batch_size: rows of a step over all workers; default: 32 per worker.
            validation: rows to evaluate after each epoch; Spark feeds them in both modes.
            feeding: how rows are sent to the workers.
            trigger: for a streaming DataFrame, arguments of Spark's `DataStreamWriter.trigger`, for example
                ``{"processingTime": "10 seconds"}`` or ``{"availableNow": True}``.
            checkpoint_location: for a streaming DataFrame, the directory where Spark records what was trained, so that
                a later run can continue from there.
            weight: numeric column; a row's loss and weighted metrics are multiplied by its value, as by Keras's
                ``sample_weight``. The rows of `validation` and `evaluate` must have it, too.
            verbose: with `build_model`, how progress is shown. ``"auto"``: a bar in a Jupyter notebook, a line per
                epoch on a terminal, otherwise nothing; 1: lines outside a notebook; 0: nothing.
        Returns:
            With `build_model`, metric name -> value per epoch; a notebook shows it as curves. Empty for a `main_fun`.

        Raises:
            DataError: a row does not match its declaration; the message names partition and row.
            NodeFailedError: a node failed.
        """
        num_epochs = self._passes(num_epochs, data)
        is_endless = is_dstream(data) or bool(getattr(data, "isStreaming", False))
        shown = where_to_show(0 if is_endless or self._options.runs_main_fun else verbose)
        with self._showing(TrainingProgress(shown, num_epochs)) as progress:
            progress.history = History(
                self._trained(
                    data,
                    num_epochs,
                    feed_timeout,
                    qname,
                    Selection(features, label, num_classes, class_weights, columns, weight),
                    batch_size,
                    validation,
                    feeding,
                    trigger,
                    checkpoint_location,
                )
            )
        return progress.history

    @contextmanager
    def _showing(self, progress: TrainingProgress) -> Iterator[TrainingProgress]:
        """Show the progress of a training within the block."""
        self._progress = progress
        try:
            yield progress
        finally:
            self._progress = None
            progress.end()

    def _trained(
        self,
        data: object,
        num_epochs: int,
        feed_timeout: float | None,
        qname: str,
        chosen: Selection,
        batch_size: int | None,
        validation: DataFrame | None,
        feeding: FeedOptions | None,
        trigger: Mapping[str, object] | None,
        checkpoint_location: str | None,
    ) -> dict[str, list[float]]:
        if self._trainings.use_for("train", data, qname) is InputMode.TENSORFLOW:
            given = {
                "features": chosen.features,
                "columns": chosen.columns,
                "feeding": feeding,
                "trigger": trigger,
                "checkpoint_location": checkpoint_location,
                "weight": chosen.weight,
            }
            return self._trainings.train_on_files(data, num_epochs, batch_size, validation, given)
        stream = self._trainings.named(stream_of(qname))
        timeout_s = feed_timeout or self._trainings.feed_timeout_s
        if is_dstream(data):
            return self._trainings.train_on_dstream(data, stream, batch_size, timeout_s)
        fed = what_to_feed(self._spark, data, chosen, self._options.runs_main_fun)
        checked = None if validation is None else validation_rows(self._spark, validation, fed.columns)
        if checked is not None:
            check_alike(fed.rows, checked)
        self._trainings.open(
            stream,
            fed,
            batch_size,
            feeding or FeedOptions(),
            timeout_s,
            validation is not None,
            fed.is_streaming,
        )
        if fed.is_streaming:
            place = checkpoint_location
            return self._trainings.train_on_stream(
                stream, fed.rows, num_epochs, checked, trigger or {}, place
            )
        return self._trainings.train_on_rows(stream, fed.rows, num_epochs, checked)

    def stop_stream(self) -> None:
        """Let `train` on a streaming DataFrame end after the current micro-batch. Call it from another thread.

        Harmless if there is no streaming query.
        """
        self._trainings.stop_stream()

    def evaluate(self, df: DataFrame, num_classes: int | None = None) -> dict[str, Any]:
        """Evaluate the model on all rows of a DataFrame; every row counts once.

        Requires `build_model` and an earlier `train`; the columns are the same.

        Args:
            df: the rows.
            num_classes: also count the predicted classes.

        Returns:
            Metric name -> value. With `num_classes` also ``confusion_matrix`` and ``roc``. The matrix has
            ``num_classes`` x ``num_classes`` counts; rows are the true classes, columns the predicted ones. ``roc`` has
            a list of (false, true)
            positive rates for each of up to 20 classes; for two classes, only for class 1. If the label is an array
            with a yes or no for each class, there are `num_classes` matrices of 2 x 2 counts: whether a row is of the
            class, and whether it is predicted.
        """
        spec = self._trainings.spec
        if self._options.runs_main_fun or spec is None:
            raise ConfigError(
                "expected a cluster started with build_model and trained before evaluate(), this one "
                "runs a main_fun or was not trained; evaluate in main_fun instead"
            )
        if num_classes is not None and num_classes > MOST_COUNTED_CLASSES:
            raise ConfigError(
                f"expected num_classes <= {MOST_COUNTED_CLASSES} in evaluate(), got {num_classes}: its square is the "
                "number of counts in a confusion matrix; leave it out: metrics do not need it"
            )
        if num_classes is not None and spec.columns.class_label is None:
            raise ConfigError(
                f"expected no num_classes in evaluate(), since there are {len(spec.columns.labels)} labels, not one; "
                "leave it out"
            )
        return self._trainings.evaluate(df, num_classes)

    def inference(
        self, data: RDD[Any] | DataFrame, feed_timeout: float | None = None, qname: str = "input"
    ) -> RDD[Any]:
        """Let the workers' `main_fun` compute one result for each row.

        The `main_fun` takes rows with ``next_batch()`` of a `TFNode.DataFeed` until ``should_stop()`` is true, and
        returns one result for each row with ``batch_results()``. The workers compute when Spark computes the returned
        RDD. So shut the cluster down after that; unless the RDD is cached, every action on it needs the cluster again.

        Args:
            data: an RDD, or a DataFrame, whose rows arrive as Spark Rows.
            feed_timeout: seconds without progress while one partition is exchanged; default: that of `run`.
            qname: one of the queues of `run`.

        Returns:
            The results, in the partitions of `data` and in the same order within each.

        Raises:
            ConfigError: the cluster was started with `build_model`, or it trains, or its workers read files themselves.
        """
        if not self._options.runs_main_fun:
            raise ConfigError(
                "expected a cluster started with main_fun(args, ctx) for inference(), this one trains what build_model "
                "returns; export the model and apply it with tfspark.predict"
            )
        rows = data.rdd if hasattr(data, "mapInArrow") else data
        if not is_rdd(rows):
            raise ConfigError(f"expected an RDD or a DataFrame to infer, got {type(data).__name__}")
        self._trainings.use_for("inference", data, qname)
        task = InferenceTask(
            self._supervisor.control.location,
            self._supervisor.current.secret,
            stream_of(qname),
            ROWS_PER_WORKER,
            self._trainings.buffer_bytes,
            feed_timeout or self._trainings.feed_timeout_s,
        )
        results: RDD[Any] = rows.mapPartitionsWithIndex(task)
        return results

    def tensorboard_url(self) -> str | None:
        """Return the address of TensorBoard; None without ``tensorboard=True``."""
        return self._tensorboard_url

    def _passes(self, num_epochs: int | None, data: object) -> int:
        """Return the number of passes to feed."""
        as_elements = self._options.runs_main_fun and is_rdd(data)
        passes = (0 if as_elements else 1) if num_epochs is None else num_epochs
        if passes == 0 and as_elements:
            return DEFAULT_PASSES
        if passes < 1:
            raise ConfigError(f"expected num_epochs >= 1, got {passes}")
        return passes

    # --- state -------------------------------------------------------------------------------------

    def _trainers_done(self, state: DriverState) -> bool:
        everyone = ("worker", "ps", "evaluator", "chief")
        roles = ("worker",) if self._options.runs_main_fun else everyone
        return all(state.registry.all_succeeded(role) for role in roles)

    def _observe(self, event: str, fields: Json) -> None:
        if event == "log":
            self._keep_log(fields["node"], fields["lines"])
        if event == "epoch":
            fields = {**fields, "rows_fed": self._trainings.rows_of_epoch(fields["epoch"])}
        if event == "not_kept":
            logger.warning("%s could not be kept: %s; training continues", fields["name"], fields["why"])
        if event == "tensorboard":
            self._tensorboard_url = fields["url"]
        if event == "weights":
            self._trainings.weights_arrived(fields["epoch"], fields["name"])
        logger.debug("%s %s", event, fields)
        if self._progress is not None:
            with suppress(Exception):  # A closed notebook must not end the training.
                self._progress(event, fields)
        if self._observer is not None:
            try:
                self._observer(event, fields)
            except Exception as error:
                raise observer_failed(event, error) from error

    def _keep_log(self, node: str, lines: Sequence[str]) -> None:
        if self._log_dir is None:
            return
        folder = self._log_dir / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{node.replace(' ', '-')}.log").open("a", encoding="utf-8") as log:
                log.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            if not self._lacks_logs:
                logger.warning("lines of %s could not be kept in %s: %s", node, folder, error.strerror)
            self._lacks_logs = True


def _check_identical_weights(results: Mapping[str, object]) -> None:
    """Check that all workers have the same weights, as they must after synchronous training.

    Args:
        results: name of a node -> the summary of its model.

    Raises:
        TfsparkError: the weights differ.
    """
    models = {
        name: (result["weights_sha256"], f"after step {result['iterations']}")
        for name, result in results.items()
        if isinstance(result, dict) and "weights_sha256" in result
    }
    if len({digest for digest, _ in models.values()}) > 1:
        raise TfsparkError(
            f"expected identical weights on all workers after training, got {models}; a layer keeps state "
            "that is not synchronised (see docs/troubleshooting.md)"
        )
