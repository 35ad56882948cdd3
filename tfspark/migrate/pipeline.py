"""TensorFlowOnSpark's ``pipeline``: an Estimator that trains with a `TFCluster`, a Model that applies a SavedModel.

Called on the driver. ``from tfspark import pipeline``, or ``from tfspark.pipeline import TFEstimator, TFModel``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyspark.ml import Estimator, Model
from pyspark.ml.param import Params

from tfspark.cluster.inputs import InputMode
from tfspark.cluster.tfcluster import TFCluster
from tfspark.driver_python import use_own_python
from tfspark.errors import ConfigError
from tfspark.feed.spark_names import map_in_arrow, quoted
from tfspark.migrate.params import (
    HasBatchSize,
    HasClusterSize,
    HasEpochs,
    HasExportDir,
    HasGraceSecs,
    HasInputMapping,
    HasInputMode,
    HasMasterNode,
    HasModelDir,
    HasNumPS,
    HasOutputMapping,
    HasProtocol,
    HasReaders,
    HasSignatureDefKey,
    HasSteps,
    HasTagSet,
    HasTensorboard,
    HasTFRecordDir,
    TFTypeConverters,
)
from tfspark.migrate.saved_model import SavedModel

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

__all__ = [
    "HasBatchSize",
    "HasClusterSize",
    "HasEpochs",
    "HasExportDir",
    "HasGraceSecs",
    "HasInputMapping",
    "HasInputMode",
    "HasMasterNode",
    "HasModelDir",
    "HasNumPS",
    "HasOutputMapping",
    "HasProtocol",
    "HasReaders",
    "HasSignatureDefKey",
    "HasSteps",
    "HasTFRecordDir",
    "HasTagSet",
    "HasTensorboard",
    "Namespace",
    "TFEstimator",
    "TFModel",
    "TFParams",
    "TFTypeConverters",
]


class Namespace:
    """Arguments by name, or a command line.

    Args:
        d: a dict, an ``argparse.Namespace``, another `Namespace`, or a list, which is stored as ``argv``.
    """

    argv: list[str] | None = None

    def __init__(self, d: Any):
        if isinstance(d, list):
            self.argv = d
        elif isinstance(d, dict):
            self.__dict__.update(d)
        elif isinstance(d, argparse.Namespace | Namespace):
            self.__dict__.update(vars(d))
        else:
            raise ConfigError(
                f"expected arguments as a dict, an argparse.Namespace or a list, got {type(d).__name__}"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.argv or list(self.__dict__))

    def __contains__(self, name: str) -> bool:
        return name in (self.argv or self.__dict__)

    def __repr__(self) -> str:
        if self.argv:
            return repr(self.argv)
        return f"Namespace({', '.join(f'{key}={value!r}' for key, value in sorted(vars(self).items()))})"

    def __eq__(self, other: object) -> bool:
        if self.argv:
            return self.argv == (other.argv if isinstance(other, Namespace) else other)
        return isinstance(other, Namespace) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class TFParams(Params):  # type: ignore[misc]
    """Arguments by name beside the Params of Spark ML."""

    args: Namespace

    def merge_args_params(self) -> Namespace:
        """Return the arguments, with the Params' values added; Params override arguments."""
        merged = copy.copy(self.args)
        vars(merged).update({param.name: self.getOrDefault(param) for param in self.params})
        return merged


class TFEstimator(
    Estimator["TFModel"],  # type: ignore[misc]
    TFParams,
    HasInputMapping,
    HasClusterSize,
    HasNumPS,
    HasInputMode,
    HasMasterNode,
    HasProtocol,
    HasGraceSecs,
    HasTensorboard,
    HasModelDir,
    HasExportDir,
    HasTFRecordDir,
    HasBatchSize,
    HasEpochs,
    HasReaders,
    HasSteps,
):
    """Trains by feeding the columns of the input mapping, in the order of their names, to a cluster's `train_fn`.

    Args:
        train_fn: ``train_fn(args, ctx)``; reads rows with a `TFNode.DataFeed` and exports to ``args.export_dir``.
        tf_args: its arguments, to which the Params are added by name; a list is passed unchanged.
        export_fn: must be None: `train_fn` exports.
    """

    def __init__(
        self, train_fn: Callable[[Any, Any], Any], tf_args: Any, export_fn: Callable[..., Any] | None = None
    ):
        super().__init__()
        if export_fn is not None:
            raise ConfigError(
                "expected no export_fn: it exported from a session of TensorFlow 1; call "
                "ctx.export_saved_model(model, args.export_dir) at the end of train_fn"
            )
        self.train_fn = train_fn
        self.args = Namespace(tf_args)
        self._setDefault(
            input_mapping={},
            cluster_size=1,
            num_ps=0,
            driver_ps_nodes=False,
            input_mode=int(InputMode.SPARK),
            master_node="chief",
            protocol="grpc",
            tensorboard=False,
            model_dir=None,
            export_dir=None,
            tfrecord_dir=None,
            batch_size=100,
            epochs=1,
            readers=1,
            steps=1000,
            grace_secs=30,
        )

    def _fit(self, dataset: DataFrame) -> TFModel:
        columns = sorted(self.getInputMapping())
        if not columns:
            raise ConfigError(
                "expected the columns to feed, got none; call setInputMapping({column: tensor})"
            )
        args = self.merge_args_params()
        cluster = TFCluster.run(
            dataset.sparkSession,
            self.train_fn,
            args.argv or args,
            self.getClusterSize(),
            self.getNumPS(),
            self.getTensorboard(),
            InputMode.SPARK,
            log_dir=self.getModelDir() if self.getTensorboard() else None,
            driver_ps_nodes=self.getDriverPSNodes(),
            master_node=self.getMasterNode(),
        )
        with cluster:
            cluster.train(dataset.select([dataset[quoted(name)] for name in columns]), self.getEpochs())
            cluster.shutdown(grace_secs=self.getGraceSecs())
        trained: TFModel = self._copyValues(TFModel(self.args))
        return trained


class TFModel(
    Model,  # type: ignore[misc]
    TFParams,
    HasInputMapping,
    HasOutputMapping,
    HasBatchSize,
    HasModelDir,
    HasExportDir,
    HasSignatureDefKey,
    HasTagSet,
):
    """Applies the SavedModel in ``export_dir``; each executor loads it itself.

    The result has only the columns of the output mapping, in the order of the tensors' names.

    Args:
        tf_args: arguments by name; only `merge_args_params` uses them.
    """

    def __init__(self, tf_args: Any):
        super().__init__()
        self.args = Namespace(tf_args)
        self._setDefault(
            input_mapping={},
            output_mapping={},
            batch_size=100,
            model_dir=None,
            export_dir=None,
            signature_def_key=None,
            tag_set=None,
        )

    def _transform(self, dataset: DataFrame) -> DataFrame:
        model = self._saved_model()
        use_own_python(dataset.sparkSession)
        described = dataset.sparkSession.range(0, 1, 1, 1).mapInArrow(model.describe, "ddl string").collect()
        columns = [dataset[quoted(column)] for column, _ in model.inputs]
        return map_in_arrow(dataset.select(columns), model, described[0]["ddl"])

    def _saved_model(self) -> SavedModel:
        export_dir, tags = self.getExportDir(), self.getTagSet()
        if export_dir is None or not self.getInputMapping() or not self.getOutputMapping():
            raise ConfigError(
                "expected a SavedModel and mappings, got "
                f"export_dir={export_dir!r}, input_mapping={self.getInputMapping()}, "
                f"output_mapping={self.getOutputMapping()}; call setExportDir(), setInputMapping({{column: tensor}}) "
                "and setOutputMapping({tensor: column})"
            )
        return SavedModel(
            export_dir,
            None if tags is None else tuple(tags.split(",")),
            self.getSignatureDefKey() or "serving_default",
            tuple(sorted(self.getInputMapping().items())),
            tuple(sorted(self.getOutputMapping().items())),
            self.getBatchSize(),
        )
