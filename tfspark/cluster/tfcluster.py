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
    is_dstream,
    is_rdd,
    session_of,
    validation_rows,
    what_to_feed,
)
from tfspark.cluster.options import ClusterOptions
from tfspark.cluster.preflight import (
    SLOTS_WAIT_S,
    check_encryption,
    check_settings,
    check_slots,
    room_for,
)
from tfspark.cluster.program import is_main_fun, pickled
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

    from tfspark.feed.files import TFRecordFiles

logger = logging.getLogger("tfspark")

MOST_COUNTED_CLASSES = 2000
"""The square of this is about what one call may have."""
SHUTDOWN_TIMEOUT_S = 3 * 24 * 3600.0
"""As in TensorFlowOnSpark: without feeding, training happens during `shutdown`."""
EVALUATOR_GRACE_S = 30.0
DEFAULT_PASSES = 10
"""What TensorFlowOnSpark makes of ``num_epochs=0``, its default."""
Mode = InputMode
"""The same, where `TFCluster.InputMode` hides it."""


class TFCluster:
    """A running cluster; made by `run`, ended by `shutdown`. Also a context manager."""

    InputMode = InputMode

    def __init__(
        self,
        spark: SparkSession,
        options: ClusterOptions,
        settings: TrainerSettings,
        num_nodes: int,
        code: bytes,
        observer: Observer | None,
        map_fun: Callable[..., Any],
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
        map_fun: Callable[..., Any],
        tf_args: Any = None,
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
        optimizer: Mapping[str, Any] | None = None,
        learning_rate: float | None = None,
        schedule: Mapping[str, Any] | None = None,
        mixed_precision: Precision | None = None,
        callbacks: Mapping[str, Any] | None = None,
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
            map_fun: ``main_fun(args, ctx)``, run on every node; or a function that takes no context and
                returns a compiled `keras.Model` (``build_model(args)`` or ``build_model()``), which
                tfspark trains itself.
            tf_args: first argument of `map_fun`. A list becomes ``sys.argv`` of a `main_fun`, too.
            num_executors: nodes of all roles together; each holds one Spark task slot.
            num_ps: how many of them are parameter servers; with any, workers train asynchronously
                (ParameterServerStrategy), and a chief beside worker 0 coordinates them.
            tensorboard: run TensorBoard on the chief's executor, over `log_dir`, until the cluster ends.
            input_mode: who reads the data; None: the first call tells: TFRecordFiles given to `train` are read
                by the workers, anything else by Spark.
            log_dir: the run directory on the driver's machine: logs, checkpoints and exports go there.
            driver_ps_nodes: run the parameter servers on the driver's machine; they then need no slots.
            master_node: ``"chief"`` or ``"master"``: worker 0's ``ctx.job_name``; None: ``"worker"``.
            reservation_timeout: seconds until every node must have registered.
            queues: names that ``qname`` of `train` and `inference` may have.
            eval_node: reserve one node as a side-car evaluator.
            release_port: no effect: a node's port is kept until TensorFlow listens on it.
            seed: seed of weights, shuffling and dropout, the same on every worker.
            feed_timeout: seconds the feed may stand still in any place before that is an error.
            heartbeat_timeout: seconds of silence after which a node is lost, and a worker for the others' TensorFlow.
            optimizer: a Keras optimizer instead of the one `build_model` compiled: ``{"name": "sgd", ...}``.
            learning_rate: instead of the compiled one.
            schedule: of the learning rate, instead of the compiled one, by its name in `keras.optimizers.schedules`:
                ``{"name": "cosine_decay", "initial_learning_rate": 0.01, "decay_steps": 1000}``.
            mixed_precision: with `build_model`: compute in this type, with weights in float32.
            callbacks: ``early_stopping``, ``reduce_lr_on_plateau``, ``terminate_on_nan`` with their arguments.
            checkpoint_dir: directory for `main_fun`'s own checkpoints, on storage all executors share.
            checkpoint_every_epochs: with `build_model`: save into ``log_dir/checkpoints``; 0: never.
            checkpoint_every_steps: with `build_model`: save the training's state after every so many steps, too, and
                not only after each epoch.
            checkpoint_every_seconds: the same by the clock, give or take two seconds. With either, the state is also
                saved when Spark says that it will take an executor away.
            max_restarts: with `build_model`: how often within `restart_window` the cluster is started again, from its
                newest checkpoint, when a process or an executor is lost; default 3. Checkpoints of the state are in
                ``log_dir/checkpoints``, or without `log_dir` in a temporary directory. With a `main_fun` that reads
                files (`InputMode.TENSORFLOW`) how often that is run again, by all nodes; default 0. It goes on from
                checkpoints of its own.
            restart_window: seconds.
            min_executors: with `build_model`: with how many nodes training goes on when Spark cannot replace one that
                was lost, or has no room for all at the start; default `num_executors`. With fewer than those it
                starts again with more after the next epoch for which Spark has room.
            resize_keeps: what stays when the number of workers changes: the ``global_batch``, or each worker's part
                of it, ``worker_batch``.
            replacement_timeout: seconds that Spark has to replace what was lost, before `min_executors` will do.
            resume: ``log_dir`` of a run that was interrupted; `train` goes on where its newest checkpoint was.
            tls: encrypt rows, calls, checkpoints and models on their way, with a certificate made for this cluster;
                TensorFlow cannot encrypt what its servers say to each other.
            allow_plaintext: whether weights, and rows without `tls`, may travel unencrypted although Spark's own
                traffic is encrypted.
            warm: fork trainers from a process on each executor that has imported TensorFlow and stays for later
                clusters and restarts; False: start each as a fresh interpreter. It holds some 250 MB, and ends with
                the executor, or after ten minutes without a trainer.
            hooks: more functions of the model module, with `build_model` only.
            observer: called with (event, fields) for phases, steps, epochs and log lines.

        Raises:
            ConfigError: an argument or a Spark setting is wrong; nothing was started.
            ReservationError: too few slots, other versions, or a node missing at the deadline.
        """
        del release_port
        session = session_of(sc)
        options = ClusterOptions(
            runs_main_fun=is_main_fun(map_fun),
            num_executors=index(num_executors),  # NumPy's, too.
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
        cls, spark: SparkSession, map_fun: Callable[..., Any], tf_args: Any, num_nodes: int, all_at_once: bool
    ) -> TFCluster:
        """Start nodes that know nothing of each other; see `TFParallel.run`."""
        options = ClusterOptions.for_independent(num_nodes, all_at_once)
        return cls._started(spark, options, map_fun, tf_args, None)

    @classmethod
    def _started(
        cls,
        spark: SparkSession,
        options: ClusterOptions,
        map_fun: Callable[..., Any],
        tf_args: Any,
        observer: Observer | None,
    ) -> TFCluster:
        """Check what only Spark knows, and launch."""
        settings = options.trainer_settings(spark)
        check_settings(spark)
        if not options.independent:  # Such nodes say nothing to each other.
            check_encryption(spark, options.allow_plaintext)
        if "TF_CONFIG" in os.environ:
            logger.warning("TF_CONFIG of this program is not used: tfspark gives each node one of its own")
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
        try:
            self._supervisor.surviving(lambda: None)
        except BaseException:
            self.stop()
            raise
        return self

    def shutdown(
        self,
        ssc: Any = None,
        grace_secs: float = 0,
        timeout: float = SHUTDOWN_TIMEOUT_S,
        *,
        export: Sequence[str] = (),
    ) -> dict[str, Any]:
        """End the cluster in order: let the trainers finish, export, collect what they returned.

        Args:
            ssc: the StreamingContext of a DStream that is fed; waits until it or all workers have ended.
            grace_secs: seconds an evaluator that runs a `main_fun` has to return after the workers, 30 at least.
                Workers are waited for anyhow.
            timeout: seconds the trainers have to return after the last row; -1: no limit.
            export: with `build_model`: formats to export to ``log_dir/export``: ``keras``, ``saved_model``.

        Returns:
            ``"worker 0"`` and so on -> what the node's `main_fun` returned, or for `build_model` a summary:
            ``history``, ``rows`` per epoch, ``iterations``, ``weights_sha256``.

        Raises:
            NodeFailedError: a node failed; the cluster is torn down all the same.
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

    def _closed(self, grace_s: float, timeout_s: float, export: Sequence[str]) -> dict[str, Any]:
        """Let the trainers finish; return what they returned."""
        self._supervisor.feeder.close_all()
        self._supervisor.control.post_job("close", export=list(export))
        self._supervisor.control.wait(
            self._trainers_done, timeout_s, "the trainers to return after the last row"
        )
        self._await_evaluator(grace_s)
        if not self._options.runs_main_fun:
            nodes = self._supervisor.registry.nodes.values()
            check_identical_weights({node.spec.name: node.result for node in nodes})
        try:
            self._supervisor.control.wait(
                lambda: self._supervisor.registry.all_ended, STOP_TIMEOUT_S, "the nodes to end"
            )
        except DeadlineError:  # Their trainers have returned all there is; `stop` ends what pauses.
            logger.warning("not all nodes ended within %g s, they are ended now", STOP_TIMEOUT_S)
        return {n.spec.name: n.result for n in self._supervisor.registry.nodes.values()}

    def _await_streaming(self, ssc: Any) -> None:
        """Wait for the end of a StreamingContext; end it when a node fails or no worker reads any more."""
        directory = self._supervisor.control.directory
        try:
            while not ssc.awaitTerminationOrTimeout(1):
                if any(directory.all_left(name) for name in self._trainings.streams):
                    ssc.stop(stopSparkContext=False, stopGraceFully=True)
                    return
                self._supervisor.control.check()
        except TfsparkError:
            ssc.stop(stopSparkContext=False, stopGraceFully=False)
            raise

    def _await_evaluator(self, grace_s: float) -> None:
        """Let an evaluator's `main_fun` return; one that evaluates for ever is told to stop, which is no failure."""
        if not (self._supervisor.evaluators and self._options.runs_main_fun):
            return
        try:
            self._supervisor.control.wait(
                lambda: self._supervisor.registry.all_succeeded("evaluator"),
                max(grace_s, EVALUATOR_GRACE_S),
                "the evaluator to return",
            )
        except DeadlineError:
            self._supervisor.control.update(lambda: setattr(self._supervisor.registry, "stopping", True))

    def begin_anew(
        self,
        tf_args: Any = None,
        *,
        seed: int = 0,
        optimizer: Mapping[str, Any] | None = None,
        learning_rate: float | None = None,
        schedule: Mapping[str, Any] | None = None,
        callbacks: Mapping[str, Any] | None = None,
    ) -> None:
        """Train another model on the same nodes: what `build_model` returns for other arguments.

        The model before is gone with its optimizer, history and checkpoints; `export` it first. What follows is as
        after `run` with these arguments, and takes none of the time of starting nodes.

        Args:
            tf_args: argument of `build_model`, plain data as JSON has it.
            seed: as those of `run`, as are the others.
            optimizer: see there.
            learning_rate: see there.
            schedule: see there.
            callbacks: see there.

        Raises:
            ConfigError: the cluster runs a `main_fun`, or has parameter servers or an evaluator; or an argument is not
                plain.
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
            As `shutdown` does.

        Raises:
            TfsparkError: the workers' weights differ.
        """
        if self._options.runs_main_fun or self._trainings.spec is None or self._log_dir is None:
            raise ConfigError(
                "expected a cluster with log_dir that has trained what build_model returns, to export it; call "
                "train() before, and give log_dir to TFCluster.run"
            )
        results = self._trainings.export(formats)
        check_identical_weights(results)
        return results

    def stop(self) -> None:
        """End the cluster now, in whatever state it is; harmless when it has ended."""
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
        """Show the nodes in a notebook."""
        nodes = self._supervisor.registry.nodes.values()
        state = "ended" if self._supervisor.stopped else "running"
        rows = "".join(
            f"<tr><td>{node.spec.name}</td><td>{html.escape(node.host or 'not there')}</td></tr>"
            for node in nodes
        )
        places = {"TensorBoard": self._tensorboard_url, "log_dir": self._log_dir}
        more = "".join(
            f"<div>{name}: {html.escape(str(place))}</div>" for name, place in places.items() if place
        )
        return (
            f"<div><b>TFCluster</b> {state}, {len(nodes)} node{'' if len(nodes) == 1 else 's'}"
            f"<table><tr><th>node</th><th>host</th></tr>{rows}</table>{more}</div>"
        )

    # --- feeding -----------------------------------------------------------------------------------

    def train(
        self,
        data: DataFrame | RDD[Any] | TFRecordFiles | Any,
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
        trigger: Mapping[str, Any] | None = None,
        checkpoint_location: str | None = None,
        weight: str | Column | None = None,
        verbose: Verbose = "auto",
    ) -> dict[str, list[float]]:
        """Feed a DataFrame `num_epochs` times and wait until it is trained.

        A streaming DataFrame is trained micro-batch by micro-batch, each `num_epochs` times, until its query ends or
        `stop_stream` is called. Spark commits a micro-batch when it is trained.

        Args:
            data: rows to train on; in `InputMode.TENSORFLOW` the files to read. To a `main_fun` also an RDD of
                anything Arrow can hold, or a DStream of such.
            num_epochs: how often; default 1. An RDD to a `main_fun` is fed ten times by default, and if it is 0,
                as in TensorFlowOnSpark: until the workers have enough.
            feed_timeout: seconds the feed may stand still; default that of `run`.
            qname: one of the queues of `run`; a `main_fun` reads it by ``ctx.get_data_feed(qname_in=qname)``, or by
                ``ctx.dataset(qname)``.
            features: feature columns; None: every column but the label. One is fed as a tensor, several
                as a dict by name.
            label: label column; several are fed as a dict by name, for a model of several outputs; None: the
                features are their own target.
            num_classes: check that labels lie in [0, num_classes).
            class_weights: class -> weight of its rows in the loss.
            columns: features, label, num_classes, class_weights and weight in one.
            batch_size: rows of a step over all workers; default 32 for each worker.
            validation: rows to evaluate after each epoch; Spark feeds them in either mode.
            feeding: how rows travel.
            trigger: for a streaming DataFrame, arguments of Spark's `DataStreamWriter.trigger`, for example
                ``{"processingTime": "10 seconds"}`` or ``{"availableNow": True}``.
            checkpoint_location: for a streaming DataFrame, where Spark notes what was trained, so that a later
                run goes on from there.
            weight: column of one number for each row, by which its loss and weighted metrics are multiplied; the rows
                of `validation` and of `evaluate` must have it, too. As Keras's ``sample_weight``.
            verbose: with `build_model`, how far the training is: ``"auto"``: a bar in a Jupyter notebook, a line for
                each epoch on a terminal, else nothing; 1: lines where there is no notebook; 0: nothing.

        Returns:
            With `build_model`, metric name -> value per epoch, whose curves a notebook draws; empty for a `main_fun`.

        Raises:
            DataError: a row is not what was declared; the message names partition and row.
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
        """Show how far a training is within the block."""
        self._progress = progress
        try:
            yield progress
        finally:
            self._progress = None
            progress.end()

    def _trained(
        self,
        data: Any,
        num_epochs: int,
        feed_timeout: float | None,
        qname: str,
        chosen: Selection,
        batch_size: int | None,
        validation: DataFrame | None,
        feeding: FeedOptions | None,
        trigger: Mapping[str, Any] | None,
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
        """Let `train` on a streaming DataFrame end after the micro-batch in work; from another thread.

        Harmless when nothing streams.
        """
        self._trainings.stop_stream()

    def evaluate(self, df: DataFrame, num_classes: int | None = None) -> dict[str, Any]:
        """Evaluate the model on all rows of a DataFrame; every row counts once.

        Needs `build_model` and a `train` before; the columns are the same.

        Args:
            df: rows.
            num_classes: count the predicted classes, too.

        Returns:
            Metric name -> value; with `num_classes` also ``confusion_matrix``: rows are the true classes,
            columns the predicted ones, ``num_classes`` x ``num_classes`` counts; and ``roc``: for each of up to 20
            classes (of two: for class 1) a list of (false, true) positive rates. Where the label is an array of a yes
            or no for each class, `num_classes` matrices of 2 x 2: whether a row is of the class, whether it is
            predicted.
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

        The `main_fun` takes rows with ``next_batch()`` of a `TFNode.DataFeed` until ``should_stop()``, and returns
        one result for each with ``batch_results()``. The workers compute when Spark computes the RDD that is returned,
        so shut the cluster down after that, and again each time unless it is cached.

        Args:
            data: an RDD, or a DataFrame, whose rows come as Spark Rows.
            feed_timeout: seconds the exchange of one partition may stand still; default that of `run`.
            qname: one of the queues of `run`.

        Returns:
            The results; partitions, and the order within each, are those of `data`.

        Raises:
            ConfigError: the cluster was started with `build_model`, or trains, or reads files itself.
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
        """Return the address of TensorBoard, if ``tensorboard=True`` was given."""
        return self._tensorboard_url

    def _passes(self, num_epochs: int | None, data: Any) -> int:
        """Return how often to feed."""
        as_elements = self._options.runs_main_fun and is_rdd(data)
        passes = (0 if as_elements else 1) if num_epochs is None else num_epochs
        if passes == 0 and as_elements:
            return DEFAULT_PASSES
        if passes < 1:
            raise ConfigError(f"expected num_epochs >= 1, got {passes}")
        return passes

    # --- state -------------------------------------------------------------------------------------

    def _trainers_done(self) -> bool:
        everyone = ("worker", "ps", "evaluator", "chief")
        roles = ("worker",) if self._options.runs_main_fun else everyone
        return all(self._supervisor.registry.all_succeeded(role) for role in roles)

    def _observe(self, event: str, fields: Json) -> None:
        if event == "log":
            self._keep_log(fields["node"], fields["lines"])
        if event == "epoch":
            fields = {**fields, "rows_fed": self._trainings.rows_of_epoch(fields["epoch"])}
        if event == "not_kept":
            logger.warning("%s could not be kept: %s; training goes on", fields["name"], fields["why"])
        if event == "tensorboard":
            self._tensorboard_url = fields["url"]
        if event == "weights":
            self._trainings.weights_arrived(fields["epoch"], fields["name"])
        logger.debug("%s %s", event, fields)
        if self._progress is not None:
            with suppress(Exception):  # A notebook that is closed ends no training.
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


def check_identical_weights(results: Mapping[str, Any]) -> None:
    """Synchronous training keeps all workers' weights equal.

    Args:
        results: name of a node -> what its trainer says of its model.

    Raises:
        TfsparkError: they are not.
    """
    digests = {
        name: result["weights_sha256"]
        for name, result in results.items()
        if isinstance(result, dict) and "weights_sha256" in result
    }
    if len(set(digests.values())) > 1:
        raise TfsparkError(
            f"expected identical weights on all workers after training, got {digests}; a layer keeps state "
            "that is not synchronised (see docs/troubleshooting.md)"
        )
