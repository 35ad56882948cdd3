"""The Params of `tfspark.migrate.pipeline`: a mix-in class for each, with TensorFlowOnSpark's names."""

from __future__ import annotations

from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters

from tfspark.errors import ConfigError

P = TypeVar("P", bound=Params)


class TFTypeConverters:
    """Converters that Spark does not have."""

    @staticmethod
    def toDict(value: Any) -> dict[str, str]:
        """Check a dict."""
        if not isinstance(value, dict):
            raise TypeError(f"expected a dict, got {type(value).__name__}")
        return value

    @staticmethod
    def toOptionalString(value: Any) -> str | None:
        """Check a string or None."""
        return None if value is None else str(TypeConverters.toString(value))

    @staticmethod
    def toSparkMode(value: Any) -> int:
        """Check `InputMode.SPARK`: an estimator feeds a DataFrame."""
        if int(value) != 1:
            raise ConfigError(
                f"expected InputMode.SPARK for a TFEstimator, got {value!r}; call TFCluster.run with "
                "InputMode.TENSORFLOW for a train_fn that reads files itself"
            )
        return int(value)


def _set_param(params: P, **values: Any) -> P:
    """Set one Param and return the object, as setters of Spark ML do."""
    params._set(**values)
    return params


class HasBatchSize(Params):  # type: ignore[misc]
    """``batch_size``: rows of a batch."""

    batch_size: Param[Any] = Param(
        Params._dummy(), "batch_size", "rows of a batch", typeConverter=TypeConverters.toInt
    )

    def setBatchSize(self: P, value: int) -> P:
        """Set `batch_size`."""
        return _set_param(self, batch_size=value)

    def getBatchSize(self) -> int:
        """Return `batch_size`."""
        value: int = self.getOrDefault(self.batch_size)
        return value


class HasClusterSize(Params):  # type: ignore[misc]
    """``cluster_size``: nodes of the cluster."""

    cluster_size: Param[Any] = Param(
        Params._dummy(), "cluster_size", "nodes of the cluster", typeConverter=TypeConverters.toInt
    )

    def setClusterSize(self: P, value: int) -> P:
        """Set `cluster_size`."""
        return _set_param(self, cluster_size=value)

    def getClusterSize(self) -> int:
        """Return `cluster_size`."""
        value: int = self.getOrDefault(self.cluster_size)
        return value


class HasEpochs(Params):  # type: ignore[misc]
    """``epochs``: number of passes over the rows."""

    epochs: Param[Any] = Param(
        Params._dummy(), "epochs", "number of passes over the rows", typeConverter=TypeConverters.toInt
    )

    def setEpochs(self: P, value: int) -> P:
        """Set `epochs`."""
        return _set_param(self, epochs=value)

    def getEpochs(self) -> int:
        """Return `epochs`."""
        value: int = self.getOrDefault(self.epochs)
        return value


class HasGraceSecs(Params):  # type: ignore[misc]
    """``grace_secs``: seconds that an evaluator may run after the workers."""

    grace_secs: Param[Any] = Param(
        Params._dummy(),
        "grace_secs",
        "seconds that an evaluator may run after the workers",
        typeConverter=TypeConverters.toInt,
    )

    def setGraceSecs(self: P, value: int) -> P:
        """Set `grace_secs`."""
        return _set_param(self, grace_secs=value)

    def getGraceSecs(self) -> int:
        """Return `grace_secs`."""
        value: int = self.getOrDefault(self.grace_secs)
        return value


class HasInputMapping(Params):  # type: ignore[misc]
    """``input_mapping``: column -> input tensor."""

    input_mapping: Param[Any] = Param(
        Params._dummy(), "input_mapping", "column -> input tensor", typeConverter=TFTypeConverters.toDict
    )

    def setInputMapping(self: P, value: dict[str, str]) -> P:
        """Set `input_mapping`."""
        return _set_param(self, input_mapping=value)

    def getInputMapping(self) -> dict[str, str]:
        """Return `input_mapping`."""
        value: dict[str, str] = self.getOrDefault(self.input_mapping)
        return value


class HasInputMode(Params):  # type: ignore[misc]
    """``input_mode``: who reads the data; always 1, Spark."""

    input_mode: Param[Any] = Param(
        Params._dummy(),
        "input_mode",
        "who reads the data; always 1, Spark",
        typeConverter=TFTypeConverters.toSparkMode,
    )

    def setInputMode(self: P, value: int) -> P:
        """Set `input_mode`."""
        return _set_param(self, input_mode=value)

    def getInputMode(self) -> int:
        """Return `input_mode`."""
        value: int = self.getOrDefault(self.input_mode)
        return value


class HasMasterNode(Params):  # type: ignore[misc]
    """``master_node``: job name of worker 0."""

    master_node: Param[Any] = Param(
        Params._dummy(),
        "master_node",
        "job name of worker 0",
        typeConverter=TFTypeConverters.toOptionalString,
    )

    def setMasterNode(self: P, value: str | None) -> P:
        """Set `master_node`."""
        return _set_param(self, master_node=value)

    def getMasterNode(self) -> str | None:
        """Return `master_node`."""
        value: str | None = self.getOrDefault(self.master_node)
        return value


class HasModelDir(Params):  # type: ignore[misc]
    """``model_dir``: directory for checkpoints."""

    model_dir: Param[Any] = Param(
        Params._dummy(), "model_dir", "directory for checkpoints", typeConverter=TypeConverters.toString
    )

    def setModelDir(self: P, value: str | None) -> P:
        """Set `model_dir`."""
        return _set_param(self, model_dir=value)

    def getModelDir(self) -> str | None:
        """Return `model_dir`."""
        value: str | None = self.getOrDefault(self.model_dir)
        return value


class HasOutputMapping(Params):  # type: ignore[misc]
    """``output_mapping``: output tensor -> column."""

    output_mapping: Param[Any] = Param(
        Params._dummy(), "output_mapping", "output tensor -> column", typeConverter=TFTypeConverters.toDict
    )

    def setOutputMapping(self: P, value: dict[str, str]) -> P:
        """Set `output_mapping`."""
        return _set_param(self, output_mapping=value)

    def getOutputMapping(self) -> dict[str, str]:
        """Return `output_mapping`."""
        value: dict[str, str] = self.getOrDefault(self.output_mapping)
        return value


class HasProtocol(Params):  # type: ignore[misc]
    """``protocol``: no effect, because TensorFlow chooses its protocol."""

    protocol: Param[Any] = Param(
        Params._dummy(),
        "protocol",
        "no effect, because TensorFlow chooses its protocol",
        typeConverter=TypeConverters.toString,
    )

    def setProtocol(self: P, value: str) -> P:
        """Set `protocol`."""
        return _set_param(self, protocol=value)

    def getProtocol(self) -> str:
        """Return `protocol`."""
        value: str = self.getOrDefault(self.protocol)
        return value


class HasReaders(Params):  # type: ignore[misc]
    """``readers``: number of readers, for train_fn."""

    readers: Param[Any] = Param(
        Params._dummy(), "readers", "number of readers, for train_fn", typeConverter=TypeConverters.toInt
    )

    def setReaders(self: P, value: int) -> P:
        """Set `readers`."""
        return _set_param(self, readers=value)

    def getReaders(self) -> int:
        """Return `readers`."""
        value: int = self.getOrDefault(self.readers)
        return value


class HasSteps(Params):  # type: ignore[misc]
    """``steps``: maximum number of steps to train, for train_fn."""

    steps: Param[Any] = Param(
        Params._dummy(),
        "steps",
        "maximum number of steps to train, for train_fn",
        typeConverter=TypeConverters.toInt,
    )

    def setSteps(self: P, value: int) -> P:
        """Set `steps`."""
        return _set_param(self, steps=value)

    def getSteps(self) -> int:
        """Return `steps`."""
        value: int = self.getOrDefault(self.steps)
        return value


class HasTensorboard(Params):  # type: ignore[misc]
    """``tensorboard``: run TensorBoard over model_dir."""

    tensorboard: Param[Any] = Param(
        Params._dummy(),
        "tensorboard",
        "run TensorBoard over model_dir",
        typeConverter=TypeConverters.toBoolean,
    )

    def setTensorboard(self: P, value: bool) -> P:
        """Set `tensorboard`."""
        return _set_param(self, tensorboard=value)

    def getTensorboard(self) -> bool:
        """Return `tensorboard`."""
        value: bool = self.getOrDefault(self.tensorboard)
        return value


class HasTFRecordDir(Params):  # type: ignore[misc]
    """``tfrecord_dir``: TFRecord files, for train_fn."""

    tfrecord_dir: Param[Any] = Param(
        Params._dummy(),
        "tfrecord_dir",
        "TFRecord files, for train_fn",
        typeConverter=TypeConverters.toString,
    )

    def setTFRecordDir(self: P, value: str | None) -> P:
        """Set `tfrecord_dir`."""
        return _set_param(self, tfrecord_dir=value)

    def getTFRecordDir(self) -> str | None:
        """Return `tfrecord_dir`."""
        value: str | None = self.getOrDefault(self.tfrecord_dir)
        return value


class HasExportDir(Params):  # type: ignore[misc]
    """``export_dir``: directory of the SavedModel."""

    export_dir: Param[Any] = Param(
        Params._dummy(), "export_dir", "directory of the SavedModel", typeConverter=TypeConverters.toString
    )

    def setExportDir(self: P, value: str | None) -> P:
        """Set `export_dir`."""
        return _set_param(self, export_dir=value)

    def getExportDir(self) -> str | None:
        """Return `export_dir`."""
        value: str | None = self.getOrDefault(self.export_dir)
        return value


class HasSignatureDefKey(Params):  # type: ignore[misc]
    """``signature_def_key``: signature of the SavedModel, serving_default if unset."""

    signature_def_key: Param[Any] = Param(
        Params._dummy(),
        "signature_def_key",
        "signature of the SavedModel, serving_default if unset",
        typeConverter=TypeConverters.toString,
    )

    def setSignatureDefKey(self: P, value: str | None) -> P:
        """Set `signature_def_key`."""
        return _set_param(self, signature_def_key=value)

    def getSignatureDefKey(self) -> str | None:
        """Return `signature_def_key`."""
        value: str | None = self.getOrDefault(self.signature_def_key)
        return value


class HasTagSet(Params):  # type: ignore[misc]
    """``tag_set``: tags of the SavedModel, separated by commas."""

    tag_set: Param[Any] = Param(
        Params._dummy(),
        "tag_set",
        "tags of the SavedModel, separated by commas",
        typeConverter=TypeConverters.toString,
    )

    def setTagSet(self: P, value: str | None) -> P:
        """Set `tag_set`."""
        return _set_param(self, tag_set=value)

    def getTagSet(self) -> str | None:
        """Return `tag_set`."""
        value: str | None = self.getOrDefault(self.tag_set)
        return value


class HasNumPS(Params):  # type: ignore[misc]
    """``num_ps``: parameter servers; ``driver_ps_nodes``: no effect."""

    num_ps: Param[Any] = Param(
        Params._dummy(), "num_ps", "parameter servers", typeConverter=TypeConverters.toInt
    )
    driver_ps_nodes: Param[Any] = Param(
        Params._dummy(),
        "driver_ps_nodes",
        "no effect",
        typeConverter=TypeConverters.toBoolean,
    )

    def setNumPS(self: P, value: int) -> P:
        """Set `num_ps`."""
        return _set_param(self, num_ps=value)

    def getNumPS(self) -> int:
        """Return `num_ps`."""
        value: int = self.getOrDefault(self.num_ps)
        return value

    def setDriverPSNodes(self: P, value: bool) -> P:
        """Set `driver_ps_nodes`."""
        return _set_param(self, driver_ps_nodes=value)

    def getDriverPSNodes(self) -> bool:
        """Return `driver_ps_nodes`."""
        value: bool = self.getOrDefault(self.driver_ps_nodes)
        return value
