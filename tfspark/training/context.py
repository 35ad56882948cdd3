"""`TFContext`: what ``main_fun(args, ctx)`` is given in the trainer."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfspark.protocol.activity import Pulse
from tfspark.protocol.roles import NodeSpec, reader_number, stream_name, task_of
from tfspark.protocol.wire import ActionClient, Json, Secret
from tfspark.training.failing import describe
from tfspark.training.input.graph_errors import as_text_error

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfspark.migrate.TFNode import DataFeed
    from tfspark.training.input.row_feed import RowFeed


@dataclass(frozen=True)
class Hooks:
    """Optional functions of a model module, used by tfspark's own loop.

    Attributes:
        features: ``features(batch)``: column name -> tensor ``(B, *shape)``, to what the model takes.
        callbacks: ``callbacks(params)``: more Keras callbacks, the same on every worker.
        export: ``export(model, directory)``: writes more of the trained model beside the usual formats.
        draw: ``draw(model, x, y, directory)``: writes pictures, as the model sees some rows of the last evaluation.
        draw_epoch: ``draw_epoch(model, epoch, directory)``: writes pictures after each epoch, counted from 1.
    """

    features: Callable[[Any], Any] | None = None
    callbacks: Callable[[Any], Any] | None = None
    export: Callable[[Any, str], None] | None = None
    draw: Callable[[Any, Any, Any, str], None] | None = None
    draw_epoch: Callable[[Any, int, str], None] | None = None


class TFContext:
    """A node's view of its cluster.

    Attributes:
        node: this node's role and number.
        nodes: all nodes of the cluster.
        host: address of this executor.
        control: connection to the driver.
        secret: the cluster's.
        settings: plain values given by the driver.
        hooks: functions of the model module.
        pulse: what the driver is told of how it gets on.
        scratch_dir: for temporary files; removed when the trainer has ended.
        text_columns: columns that are fed as text, for messages.
        attempt: 1, or more for a trainer that takes the place of one that was lost.
    """

    def __init__(
        self,
        node: NodeSpec,
        nodes: tuple[NodeSpec, ...],
        host: str,
        control: ActionClient,
        secret: Secret,
        settings: Json,
        port_fd: int | None,
        scratch_dir: str,
        attempt: int = 1,
    ):
        self.node = node
        self.nodes = nodes
        self.host = host
        self.control = control
        self.secret = secret
        self.settings = settings
        self.hooks = Hooks()
        self.pulse = Pulse()
        self.tmp_socket = None if port_fd is None else socket.socket(fileno=port_fd)
        self._row_feeds: dict[str, RowFeed] = {}
        self._datasets: dict[str, tf.distribute.DistributedDataset] = {}
        self.text_columns: list[str] = []
        self._began = time.monotonic()
        self.scratch_dir = scratch_dir
        self.attempt = attempt

    @classmethod
    def from_orders(cls, header: Json, control: ActionClient) -> TFContext:
        """Make the context from what the node task wrote."""
        return cls(
            NodeSpec(**header["node"]),
            tuple(NodeSpec(**node) for node in header["nodes"]),
            header["host"],
            control,
            control.secret,
            header["settings"],
            header["port_fd"],
            header["scratch_dir"],
            header["attempt"],
        )

    # --- who am I ----------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """What the node does: ``worker``, ``ps``, ``chief`` or ``evaluator``."""
        return self.node.role

    def stream(self, name: str) -> str:
        """Return what a stream of the model under way is called, see `stream_name`."""
        return stream_name(name, self.settings.get("generation", 0))

    @property
    def job_name(self) -> str:
        """TensorFlow's task type: `role`, or ``master_node`` on worker 0 when that was given to `TFCluster.run`."""
        return task_of(self.node, self.settings.get("master_node"))[0]

    @property
    def task_index(self) -> int:
        """Number of this node among those of its `job_name`, from 0."""
        return task_of(self.node, self.settings.get("master_node"))[1]

    @property
    def reader(self) -> int:
        """The number by which the feed knows this trainer."""
        return reader_number(self.nodes, self.node, self.attempt)

    @property
    def is_chief(self) -> bool:
        """Whether this node writes checkpoints and exports: worker 0, or the chief of parameter servers."""
        if self.has_parameter_servers:
            return self.node.role == "chief"
        return self.node.role == "worker" and self.node.task_index == 0

    @property
    def has_parameter_servers(self) -> bool:
        """Whether the cluster trains asynchronously, with its variables on parameter servers."""
        return any(node.role == "ps" for node in self.nodes)

    @property
    def num_workers(self) -> int:
        """Workers in the cluster."""
        return sum(node.role == "worker" for node in self.nodes)

    @property
    def seed(self) -> int:
        """The run's seed; the same on every node."""
        return int(self.settings["seed"])

    # --- TensorFlow --------------------------------------------------------------------------------

    @cached_property
    def strategy(self) -> tf.distribute.Strategy:
        """The ``tf.distribute`` strategy of this node, made at first use.

        On workers it is `MultiWorkerMirroredStrategy` and joins the cluster, so every worker must use it;
        on the chief of parameter servers `ParameterServerStrategy`; on an evaluator the default strategy of one
        process.
        """
        from tfspark.training.strategies import make_strategy

        strategy = make_strategy(self)
        self.release_port()
        self.report("tensorflow", seconds=self.age_s)
        return strategy

    def dataset(self, stream: str = "train") -> tf.distribute.DistributedDataset:
        """Return what the driver feeds to `stream`, ready for ``model.fit(ctx.dataset(), epochs=n)``.

        Each iteration is one epoch. An element is ``(features, label, weight)``; without a label column
        the features are the label:

        Shapes:
            features: ``(B, *shape)``, or a dict of such by column name when there are several.
            label: ``(B, *shape)``.
            weight: ``(B,)`` float32; 0 marks rows that only fill up a batch.

        B is the global batch size divided by the number of workers. The first call waits for the driver's
        ``train()``. Rows that are fed are the same dataset whenever it is called, which goes on with the next epoch.
        """
        from tfspark.training.input.dataset import Feed, distributed_dataset
        from tfspark.training.keras_corrections import FEED_ATTRIBUTE

        if stream not in self._datasets:
            dataset = distributed_dataset(self, stream)
            if not isinstance(getattr(dataset, FEED_ATTRIBUTE), Feed):
                return dataset  # Files can be read again from the start.
            self._datasets[stream] = dataset
        return self._datasets[stream]

    # --- reporting and saving ----------------------------------------------------------------------

    @property
    def checkpoint_dir(self) -> str:
        """Directory for checkpoints, as given to `TFCluster.run`; a scratch directory if none was."""
        directory = str(self.settings.get("checkpoint_dir") or os.path.join(self.scratch_dir, "checkpoints"))
        if "://" not in directory:
            os.makedirs(directory, exist_ok=True)
        return directory

    def report(self, event: str, /, **fields: Any) -> None:
        """Tell the driver's observer something, for example ``ctx.report("step", loss=0.3)``."""
        self.control.call("report", node=self.node.index, event=event, fields=fields)

    def tell_failure(self, error: BaseException) -> None:
        """Tell the driver of an exception that ends this node."""
        told = describe(as_text_error(error, self.text_columns))
        self.control.call(
            "trainer_failed",
            node=self.node.index,
            cause=told["cause"],
            traceback=told["traceback"],
            kind=told["kind"],
        )

    def export(self, model: keras.Model, name: str = "export") -> None:
        """Send the model to the run directory as ``<name>/model.keras`` and ``<name>/saved_model``.

        Only the chief does; calling it on every worker is right. The driver needs ``log_dir``.
        """
        from tfspark.training.saving import upload_model

        if self.is_chief:
            upload_model(self, model, name, ("keras", "saved_model"))

    def download(self, name: str, target: Path, kind: str = "artifact") -> None:
        """Fetch a file that the chief has sent to the run directory, or a ``part`` of a checkpoint."""
        table = self.control.get({kind: name}, timeout_s=float(self.settings["feed_timeout_s"]))
        with target.open("wb") as out:
            out.writelines(table.column("data").to_pylist())

    @property
    def age_s(self) -> float:
        """Seconds since this trainer started."""
        return time.monotonic() - self._began

    def release_port(self) -> None:
        """Give up the socket that kept TensorFlow's port free until its server listened."""
        if self.tmp_socket is not None:
            self.tmp_socket.close()
            self.tmp_socket = None

    # --- TensorFlowOnSpark's names -----------------------------------------------------------------

    @property
    def executor_id(self) -> int:
        """Number of this node among all, from 0."""
        return self.node.index

    worker_num = executor_id

    @property
    def cluster_spec(self) -> dict[str, list[str]]:
        """TensorFlow task type -> addresses of its nodes, in their order; empty without a cluster."""
        spec: dict[str, list[str]] = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
        return spec

    @property
    def defaultFS(self) -> str:  # noqa: N802 - the name programs use
        """Hadoop's default file system as Spark's driver has it, for example ``hdfs://namenode:8020``."""
        return str(self.settings["default_fs"])

    @property
    def working_dir(self) -> str:
        """Working directory of Spark's driver."""
        return str(self.settings["working_dir"])

    @property
    def mgr(self) -> TFContext:
        """What `TFNode.DataFeed` is made of: this context."""
        return self

    def absolute_path(self, path: str) -> str:
        """Return a path with its file system; see `TFNode.hdfs_path`."""
        from tfspark.migrate.TFNode import hdfs_path

        return hdfs_path(self, path)

    def get_data_feed(
        self,
        train_mode: bool = True,
        qname_in: str = "input",
        qname_out: str = "output",
        input_mapping: Mapping[str, str] | None = None,
    ) -> DataFeed:
        """Return the rows the driver feeds, one by one; see `TFNode.DataFeed`."""
        from tfspark.migrate.TFNode import DataFeed

        return DataFeed(self, train_mode, qname_in, qname_out, input_mapping)

    def export_saved_model(self, model: Any, export_dir: str, *gone: Any) -> None:
        """Write a Keras model as a SavedModel; only the chief does. See `TFNode.export_saved_model`."""
        from tfspark.migrate.TFNode import export_saved_model

        if self.is_chief:
            export_saved_model(model, self.absolute_path(export_dir), *gone)

    def start_cluster_server(self, num_gpus: int = 1, rdma: bool = False) -> None:
        """Refuse: see `TFNode.start_cluster_server`."""
        from tfspark.migrate.TFNode import start_cluster_server

        start_cluster_server(self, num_gpus, rdma)

    def row_feed(self, stream: str) -> RowFeed:
        """Return the rows of a stream, for a program that takes them apart itself; one feed for each stream."""
        from tfspark.training.input.row_feed import RowFeed

        if stream not in self._row_feeds:
            self._row_feeds[stream] = RowFeed(self, stream)
        return self._row_feeds[stream]

    @property
    def takes_rows(self) -> bool:
        """Whether rows of any stream have been asked for."""
        return bool(self._row_feeds or self._datasets)

    def leave_feeds(self) -> None:
        """Take no further rows; the other workers get them."""
        for feed in self._row_feeds.values():
            feed.leave()
