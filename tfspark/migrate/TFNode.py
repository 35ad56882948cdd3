"""TensorFlowOnSpark's ``TFNode``: functions for a map function. Used in the trainer.

``from tfspark import TFNode``; the context has the same functions as methods.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from tfspark.errors import ConfigError
from tfspark.feed.stream import check_qname, stream_of

if TYPE_CHECKING:
    from tfspark.migrate.context import TFContext


class Places(Protocol):
    """The part of a context that `hdfs_path` needs."""

    @property
    def defaultFS(self) -> str:
        """Hadoop's default file system."""

    @property
    def working_dir(self) -> str:
        """Working directory of the driver."""


class DataFeed:
    """The rows that the driver feeds with ``cluster.train`` or ``cluster.inference``, unchanged as in the RDD.

    Rows are pulled over the feed as by ``ctx.dataset()``; all passes of all calls follow one another. All feeds of
    one queue in a process share its rows.

    Args:
        mgr: ``ctx.mgr``, or the context itself.
        train_mode: False if results are returned with `batch_results`. In both modes a batch never mixes rows of two
            partitions of an inference, but may mix rows of two epochs.
        qname_in: the queue: the ``qname`` of ``train`` and ``inference``.
        qname_out: one of the queues; results go back to the partition of their rows.
        input_mapping: column -> tensor name. Batches are then dicts of lists by tensor name, with the fields of a row
            in the order of the sorted column names.
    """

    def __init__(
        self,
        mgr: TFContext,
        train_mode: bool = True,
        qname_in: str = "input",
        qname_out: str = "output",
        input_mapping: Mapping[str, str] | None = None,
    ):
        if not hasattr(mgr, "row_feed"):
            raise ConfigError(f"expected DataFeed(ctx.mgr, ...) in a map function, got {type(mgr).__name__}")
        for qname in (qname_in, qname_out):
            check_qname(qname, mgr.settings.queues)
        self.train_mode = train_mode
        self.input_tensors = (
            None if input_mapping is None else [tensor for _, tensor in sorted(input_mapping.items())]
        )
        self._feed = mgr.row_feed(stream_of(qname_in))

    def next_batch(self, batch_size: int) -> Any:
        """Return the next rows, waiting for them.

        Args:
            batch_size: number of rows; fewer at the end of the feed, and of each partition of an inference.

        Returns:
            A list of rows; with an input mapping, tensor name -> list of values.
        """
        rows = self._feed.take(batch_size)
        if self.input_tensors is None:
            return rows
        return {tensor: [row[i] for row in rows] for i, tensor in enumerate(self.input_tensors)}

    def should_stop(self) -> bool:
        """Return whether no more rows will come: the driver has shut the cluster down, or `terminate` was called."""
        return self._feed.ended

    def batch_results(self, results: Sequence[Any]) -> None:
        """Return one result for each row of the batch before, in the same order.

        Args:
            results: values that Arrow can hold: numbers, text, bytes, lists, dicts, NumPy arrays.
        """
        self._feed.answer(results if hasattr(results, "__len__") else list(results))

    def terminate(self) -> None:
        """Stop taking rows. The other workers get them; when all have ended, ``train`` returns."""
        self._feed.leave()


def hdfs_path(ctx: Places, path: str) -> str:
    """Return a path with its file system, as Hadoop resolves it.

    Args:
        ctx: the context, or any object with ``defaultFS`` and ``working_dir``.
        path: returned unchanged if it names its file system. An absolute path is on the default file system. A relative
            path is relative to the user's home there; on local disks, to the driver's working directory.
    """
    root = "file://" if ctx.defaultFS.startswith("file:") else ctx.defaultFS.rstrip("/")
    if "://" in path:
        return path
    if path.startswith("/"):
        return root + path
    if root.startswith(("hdfs://", "viewfs://")):
        return f"{root}/user/{_hadoop_user()}/{path}"
    if root.startswith("file:"):
        return f"{root}/{ctx.working_dir.strip('/')}/{path}"
    return f"{root}/{path}"


def _hadoop_user() -> str:
    """Return the user of this process for Hadoop; relative paths are in this user's home.

    Raises:
        ConfigError: the user has no name, for example in a container.
    """
    try:
        return os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError(
            f"expected the user {os.getuid()} to have a name, for the home directory on HDFS; set HADOOP_USER_NAME, or "
            "pass a path that begins with a slash"
        ) from None


def export_saved_model(model: Any, export_dir: str, *gone: Any) -> None:
    """Write a Keras model as a SavedModel with the signature ``serving_default``.

    Args:
        model: a built model.
        export_dir: directory, with or without a file system.
        gone: ignored: tag set and signatures, which only a session needs.

    Raises:
        ConfigError: `model` is a session of TensorFlow 1.
    """
    if not hasattr(model, "layers"):
        raise ConfigError(
            f"expected a Keras model, got {type(model).__name__}; TensorFlow 1 sessions are not supported: call "
            "ctx.export_saved_model(model, export_dir)"
        )
    from tfspark.migrate.compat import write_saved_model

    del gone
    write_saved_model(model, export_dir)


def start_cluster_server(ctx: Any, num_gpus: int = 1, rdma: bool = False) -> NoReturn:
    """Raise an error: TensorFlow 2 starts its servers itself.

    Raises:
        ConfigError: always.
    """
    del ctx, num_gpus, rdma
    raise ConfigError(
        "expected a tf.distribute strategy, got start_cluster_server() of TensorFlow 1; use ctx.strategy, which "
        "starts the node's server"
    )


def release_port(ctx: Any) -> None:
    """Close the socket that holds TensorFlow's port; the strategy does this by itself."""
    ctx.release_port()
