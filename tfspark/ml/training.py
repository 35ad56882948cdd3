"""Train networks on clusters: start a cluster, feed it, get the model, end it or train the next. Driver only."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfspark.cluster.inputs import FeedOptions
from tfspark.cluster.program import pickled
from tfspark.cluster.tfcluster import TFCluster
from tfspark.errors import ConfigError
from tfspark.feed.described import Signature, read_signature
from tfspark.ml.params import plain
from tfspark.ml.rows import FitRows
from tfspark.ml.slots import FITS
from tfspark.progress import Verbose
from tfspark.protocol.settings import Hooks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SHUFFLE_BATCHES = 16
"""Rows are shuffled in a window of this many batches, differently in every epoch."""


@dataclass(frozen=True)
class Network:
    """The network to train.

    Attributes:
        build_model: ``build_model(params)`` returns a compiled Keras model.
        params: its argument.
        callbacks: ``callbacks(params)`` returns further Keras callbacks; None: there are none.
        modules: (name, source) of modules that are needed to load the model.
        custom_objects: custom objects of the model, by name.
    """

    build_model: Callable[..., Any]
    params: Mapping[str, Any]
    callbacks: Callable[[Any], Any] | None = None
    modules: tuple[tuple[str, str], ...] = ()
    custom_objects: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain_params(self) -> dict[str, Any] | None:
        """The parameters as plain data for JSON; None: they are not plain data."""
        try:
            return dict(plain(self.params))
        except ValueError:
            return None


@dataclass(frozen=True)
class HowToTrain:
    """The Params of training, with the names of `TFCluster`."""

    num_workers: int
    epochs: int
    batch_size: int
    seed: int
    shuffle: bool
    callbacks: Mapping[str, Any]
    learning_rate: float | None = None
    optimizer: str | None = None
    log_dir: str | None = None
    verbose: Verbose = "auto"

    def __post_init__(self) -> None:
        """Reject a batch that cannot be divided among the workers."""
        if self.batch_size % self.num_workers:
            raise ConfigError(
                f"expected a batchSize that numWorkers={self.num_workers} divides, got {self.batch_size}; set it to "
                f"{-(-self.batch_size // self.num_workers) * self.num_workers}"
            )

    @property
    def of_model(self) -> dict[str, Any]:
        """The arguments of `TFCluster.run` and `begin_anew` for the training."""
        return {
            "seed": self.seed,
            "optimizer": None if self.optimizer is None else {"name": self.optimizer},
            "learning_rate": self.learning_rate,
            "callbacks": self.callbacks,
        }


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        keras_file: the model.
        signature: its inputs and outputs.
        history: metric -> its value after each epoch.
        seconds: duration, from the start of the cluster to its end.
        start_seconds: the part of it until the nodes were up.
        log_dir: directory of the logs; None: they were not kept.
    """

    keras_file: bytes
    signature: Signature
    history: Mapping[str, list[float]]
    seconds: float
    start_seconds: float
    log_dir: str | None


class Clusters:
    """The clusters of several fits; each cluster is lent to one fit after another.

    A cluster keeps running while more fits will follow that may need it: those with the same function, `numWorkers` and
    `logDir`. If no more fits will follow, or after one has failed, all idle clusters end.

    Args:
        num_fits: number of fits that will follow.
    """

    def __init__(self, num_fits: int = 1):
        self._lock = threading.Lock()
        self._to_come = num_fits
        self._idle: list[_Running] = []

    @contextmanager
    def lent(self, spark: SparkSession, network: Network, how: HowToTrain) -> Iterator[_Running]:
        """Lend a cluster whose trainers have built the network, but not trained it yet.

        Raises:
            TfsparkError: as `TFCluster.run` does.
        """
        running = self._taken(spark, network, how)
        try:
            yield running
        except BaseException:
            running.stop()
            self.give_up()
            raise
        with self._lock:
            is_kept = len(self._idle) < self._to_come
            if is_kept:
                self._idle.append(running)
        if not is_kept:
            running.end()

    def give_up(self) -> None:
        """End all idle clusters, and keep none from now on."""
        with self._lock:
            self._to_come = 0
            idle, self._idle = self._idle, []
        for running in idle:
            running.stop()

    def _taken(self, spark: SparkSession, network: Network, how: HowToTrain) -> _Running:
        """Return an idle cluster that can train the network, or a new one."""
        key = _key(network, how)
        with self._lock:
            self._to_come = max(0, self._to_come - 1)
            found = next((running for running in self._idle if running.key == key), None)
            others = self._idle if found is None else []  # Their slots may be needed.
            self._idle = [] if found is None else [running for running in self._idle if running is not found]
        for running in others:
            running.end()
        if found is None:
            return _Running(spark, network, how, key)
        try:
            found.begin_anew(network, how)
        except BaseException:
            found.stop()
            raise
        return found


def _key(network: Network, how: HowToTrain) -> Any:
    """Return a key; fits with equal keys can share a cluster. Parameters are not part of it, if they are plain data."""
    if network.plain_params is None:
        return object()
    code = pickled(network.build_model, None, Hooks(callbacks=network.callbacks))
    return code, how.num_workers, how.log_dir


class _Running:
    """A running cluster, its slots and its directory."""

    def __init__(self, spark: SparkSession, network: Network, how: HowToTrain, key: Any):
        self.key = key
        with ExitStack() as held:
            held.enter_context(FITS.hold(spark, how.num_workers))
            self.log_dir = held.enter_context(_log_dir(how.log_dir))
            self.cluster = held.enter_context(
                TFCluster.run(
                    spark,
                    network.build_model,
                    network.plain_params or dict(network.params),
                    num_executors=how.num_workers,
                    log_dir=str(self.log_dir),
                    hooks=Hooks(callbacks=network.callbacks),
                    **how.of_model,
                )
            )
            self._held = held.pop_all()

    def begin_anew(self, network: Network, how: HowToTrain) -> None:
        """Make the cluster train another network."""
        self.cluster.begin_anew(network.plain_params, **how.of_model)

    def end(self) -> None:
        """End the cluster normally."""
        self._held.close()

    def stop(self) -> None:
        """End the cluster immediately, in any state."""
        with self._held:
            self.cluster.stop()


def train(
    spark: SparkSession, network: Network, rows: FitRows, how: HowToTrain, clusters: Clusters | None = None
) -> Trained:
    """Train a network and return it.

    Args:
        spark: the session.
        network: the network to train.
        rows: the rows to train on.
        how: the Params of training.
        clusters: shared with other fits; None: use a separate cluster, which has ended when this returns.

    Raises:
        TfsparkError: as `TFCluster.run` and `TFCluster.train` do.
    """
    began = time.monotonic()
    window = SHUFFLE_BATCHES * how.batch_size if how.shuffle else 0
    # By position, so that the same rows and seed give the same model, as with other estimators of Spark ML.
    feeding = FeedOptions(shuffle_rows=window, cache="node" if how.epochs > 1 else "none", ordered=True)
    with (clusters or Clusters()).lent(spark, network, how) as running:
        start_seconds = time.monotonic() - began
        history = running.cluster.train(
            rows.train,
            how.epochs,
            columns=rows.columns,
            batch_size=how.batch_size,
            validation=rows.validation,
            feeding=feeding,
            verbose=how.verbose,
        )
        running.cluster.export("keras")
        export = running.log_dir / "export"
        keras_file, signature = (export / "model.keras").read_bytes(), read_signature(export)
    return Trained(
        keras_file,
        signature or Signature(),
        history,
        time.monotonic() - began,
        start_seconds,
        how.log_dir,
    )


@contextmanager
def _log_dir(wanted: str | None) -> Iterator[Path]:
    if wanted is not None:
        yield Path(wanted)
        return
    with tempfile.TemporaryDirectory(prefix="tfspark-fit-") as folder:
        yield Path(folder)
