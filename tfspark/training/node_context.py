"""`NodeContext`: what a trainer knows about its node and cluster, and how it reports to the driver."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Self

from tfspark.protocol.activity import Activity
from tfspark.protocol.roles import NodeSpec, reader_number, stream_name, task_of
from tfspark.protocol.settings import Hooks, TrainerSettings
from tfspark.protocol.values import Json
from tfspark.protocol.wire import ActionClient, Secret
from tfspark.training.failing import describe
from tfspark.training.input.graph_errors import as_text_error


class NodeContext:
    """A node's view of its cluster.

    Attributes:
        node: this node's role and number.
        nodes: all nodes of the cluster.
        host: address of this executor.
        control: connection to the driver.
        secret: the cluster's secret.
        settings: the driver's settings for all trainers.
        hooks: functions of the model module.
        activity: reports to the driver what this trainer does.
        scratch_dir: directory for temporary files; removed when the trainer has ended.
        lasting_dir: directory for files that outlive the trainer, on the same file system; Spark removes it with the
            application. Empty: there is none.
        text_columns: columns that are fed as text, for messages.
        attempt: 1, or higher for a trainer that replaces a lost one.
    """

    def __init__(
        self,
        node: NodeSpec,
        nodes: tuple[NodeSpec, ...],
        host: str,
        control: ActionClient,
        secret: Secret,
        settings: TrainerSettings,
        port_fd: int | None,
        scratch_dir: str,
        lasting_dir: str = "",
        attempt: int = 1,
    ):
        self.node = node
        self.nodes = nodes
        self.host = host
        self.control = control
        self.secret = secret
        self.settings = settings
        self.hooks = Hooks()
        self.activity = Activity()
        self.tmp_socket = None if port_fd is None else socket.socket(fileno=port_fd)
        self.text_columns: list[str] = []
        self._began = time.monotonic()
        self.scratch_dir = scratch_dir
        self.lasting_dir = lasting_dir
        self.attempt = attempt

    @classmethod
    def from_orders(cls, header: Json, control: ActionClient) -> Self:
        """Create the context from the orders of the node task."""
        return cls(
            NodeSpec(**header["node"]),
            tuple(NodeSpec(**node) for node in header["nodes"]),
            header["host"],
            control,
            control.secret,
            TrainerSettings.from_json(header["settings"]),
            header["port_fd"],
            header["scratch_dir"],
            header["lasting_dir"],
            header["attempt"],
        )

    # --- this node ----------------------------------------------------------------------------------

    @property
    def role(self) -> str:
        """The node's role: ``worker``, ``ps``, ``chief`` or ``evaluator``."""
        return self.node.role

    def stream(self, name: str) -> str:
        """Return the full name of the current model's stream; see `stream_name`."""
        return stream_name(name, self.settings.generation)

    @property
    def job_name(self) -> str:
        """TensorFlow's task type: `role`, or ``master_node`` on worker 0 when that was given to `TFCluster.run`."""
        return task_of(self.node, self.settings.master_node)[0]

    @property
    def task_index(self) -> int:
        """Number of this node among those of its `job_name`, from 0."""
        return task_of(self.node, self.settings.master_node)[1]

    @property
    def reader(self) -> int:
        """This trainer's number as a reader of the feed."""
        return reader_number(self.nodes, self.node, self.attempt)

    @property
    def is_chief(self) -> bool:
        """Whether this node writes checkpoints and exports: worker 0, or the chief of parameter servers."""
        if self.has_parameter_servers:
            return self.node.role == "chief"
        return self.node.role == "worker" and self.node.task_index == 0

    @property
    def has_parameter_servers(self) -> bool:
        """Whether the cluster trains asynchronously, with variables on parameter servers."""
        return any(node.role == "ps" for node in self.nodes)

    @property
    def num_workers(self) -> int:
        """Number of workers in the cluster."""
        return sum(node.role == "worker" for node in self.nodes)

    @property
    def seed(self) -> int:
        """The run's seed; the same on every node."""
        return self.settings.seed

    # --- reporting and saving ----------------------------------------------------------------------

    @property
    def checkpoint_dir(self) -> str:
        """Directory for checkpoints, as given to `TFCluster.run`; a scratch directory if none was."""
        directory = self.settings.checkpoint_dir or os.path.join(self.scratch_dir, "checkpoints")
        if "://" not in directory:
            os.makedirs(directory, exist_ok=True)
        return directory

    def report(self, event: str, /, **fields: object) -> None:
        """Report an event to the driver's observer, for example ``ctx.report("step", loss=0.3)``."""
        self.control.call("report", node=self.node.index, event=event, fields=fields)

    def tell_failure(self, error: BaseException) -> None:
        """Report the exception that ends this node to the driver."""
        told = describe(as_text_error(error, self.text_columns), self.scratch_dir)
        self.control.call(
            "trainer_failed",
            node=self.node.index,
            cause=told["cause"],
            traceback=told["traceback"],
            kind=told["kind"],
        )

    def download(self, name: str, target: Path, kind: str = "artifact") -> None:
        """Fetch a file that the chief has sent to the run directory, or a ``part`` of a checkpoint."""
        table = self.control.get({kind: name}, timeout_s=self.settings.feed_timeout_s)
        with target.open("wb") as out:
            out.writelines(table.column("data").to_pylist())

    @property
    def age_s(self) -> float:
        """Seconds since this trainer started."""
        return time.monotonic() - self._began

    def release_port(self) -> None:
        """Close the socket that held TensorFlow's port until its server listened on it."""
        if self.tmp_socket is not None:
            self.tmp_socket.close()
            self.tmp_socket = None
