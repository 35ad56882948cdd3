"""Train one model on a cluster of its own: start it, feed it, fetch the model, end it. Driver only."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfspark.cluster.inputs import FeedOptions
from tfspark.cluster.tfcluster import TFCluster
from tfspark.errors import ConfigError
from tfspark.inference.described import Signature, read_signature
from tfspark.ml.rows import FitRows
from tfspark.ml.slots import FITS
from tfspark.protocol.settings import Hooks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SHUFFLE_BATCHES = 16
"""Each worker mixes the rows of so many batches anew in every epoch."""


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        build_model: ``build_model(params)`` returns a compiled Keras model.
        params: handed to it.
        callbacks: ``callbacks(params)`` returns more Keras callbacks; None: there are none.
        modules: (name, source) of modules that loading the model needs.
        custom_objects: custom objects of the model, by name.
    """

    build_model: Callable[..., Any]
    params: Mapping[str, Any]
    callbacks: Callable[[Any], Any] | None = None
    modules: tuple[tuple[str, str], ...] = ()
    custom_objects: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HowToTrain:
    """The Params of training, in `TFCluster`'s words."""

    num_workers: int
    epochs: int
    batch_size: int
    seed: int
    shuffle: bool
    callbacks: Mapping[str, Any]
    learning_rate: float | None = None
    optimizer: str | None = None
    log_dir: str | None = None

    def __post_init__(self) -> None:
        """Refuse a batch that cannot be divided."""
        if self.batch_size % self.num_workers:
            raise ConfigError(
                f"expected a batchSize that numWorkers={self.num_workers} divides, got {self.batch_size}; set it to "
                f"{-(-self.batch_size // self.num_workers) * self.num_workers}"
            )


@dataclass(frozen=True)
class Trained:
    """What a training has left.

    Attributes:
        keras_file: the model.
        signature: its inputs and outputs.
        history: metric -> its value after each epoch.
        seconds: how long it took, from the start of the cluster to its end.
        start_seconds: of these, until the nodes were up.
        log_dir: where the logs are; None: they were not kept.
    """

    keras_file: bytes
    signature: Signature
    history: Mapping[str, list[float]]
    seconds: float
    start_seconds: float
    log_dir: str | None


def train(spark: SparkSession, network: Network, rows: FitRows, how: HowToTrain) -> Trained:
    """Train a network and return it; the cluster has ended then, also after a failure.

    Raises:
        TfsparkError: as `TFCluster.run` and `TFCluster.train` do.
    """
    began = time.monotonic()
    window = SHUFFLE_BATCHES * how.batch_size // how.num_workers if how.shuffle else 0
    feeding = FeedOptions(shuffle_rows=window, cache="node" if how.epochs > 1 else "none")
    with FITS.hold(spark, how.num_workers), _log_dir(how.log_dir) as log_dir:
        cluster = TFCluster.run(
            spark,
            network.build_model,
            dict(network.params),
            num_executors=how.num_workers,
            log_dir=str(log_dir),
            seed=how.seed,
            optimizer=None if how.optimizer is None else {"name": how.optimizer},
            learning_rate=how.learning_rate,
            callbacks=how.callbacks,
            hooks=Hooks(callbacks=network.callbacks),
        )
        with cluster:
            start_seconds = time.monotonic() - began
            history = cluster.train(
                rows.train,
                how.epochs,
                columns=rows.columns,
                batch_size=how.batch_size,
                validation=rows.validation,
                feeding=feeding,
            )
            cluster.shutdown(export=["keras"])
        export = log_dir / "export"
        return Trained(
            (export / "model.keras").read_bytes(),
            read_signature(export) or Signature(),
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
