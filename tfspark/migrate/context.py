"""`TFContext`: the `ctx` of ``main_fun(args, ctx)`` in the trainer, with TensorFlowOnSpark's names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tfspark.migrate import TFNode
from tfspark.training.context import TrainingContext
from tfspark.training.input.row_feed import RowFeed


class TFContext(TrainingContext):
    """A node's view of its cluster."""

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
    def defaultFS(self) -> str:
        """Hadoop's default file system on Spark's driver, for example ``hdfs://namenode:8020``."""
        return self.settings.default_fs

    @property
    def working_dir(self) -> str:
        """Working directory of Spark's driver."""
        return self.settings.working_dir

    @property
    def mgr(self) -> TFContext:
        """The argument of `TFNode.DataFeed`: this context."""
        return self

    def absolute_path(self, path: str) -> str:
        """Return a path with its file system; see `TFNode.hdfs_path`."""
        return TFNode.hdfs_path(self, path)

    def get_data_feed(
        self,
        train_mode: bool = True,
        qname_in: str = "input",
        qname_out: str = "output",
        input_mapping: Mapping[str, str] | None = None,
    ) -> TFNode.DataFeed:
        """Return the rows that the driver feeds, one by one; see `TFNode.DataFeed`."""
        return TFNode.DataFeed(self, train_mode, qname_in, qname_out, input_mapping)

    def export_saved_model(self, model: Any, export_dir: str, *gone: Any) -> None:
        """Write a Keras model as a SavedModel; only the chief writes. See `TFNode.export_saved_model`."""
        if self.is_chief:
            TFNode.export_saved_model(model, self.absolute_path(export_dir), *gone)

    def start_cluster_server(self, num_gpus: int = 1, rdma: bool = False) -> None:
        """Raise an error; see `TFNode.start_cluster_server`."""
        TFNode.start_cluster_server(self, num_gpus, rdma)

    def row_feed(self, stream: str) -> RowFeed:
        """Return the rows of a stream, for a program that converts them itself; there is one feed per stream."""
        if stream not in self._row_feeds:
            self._row_feeds[stream] = RowFeed(self, stream)
        return self._row_feeds[stream]

    @cached_property
    def _row_feeds(self) -> dict[str, RowFeed]:
        return {}

    @property
    def takes_rows(self) -> bool:
        """Whether rows of any stream have been asked for."""
        return bool(self._row_feeds) or super().takes_rows

    def leave_feeds(self) -> None:
        """Stop taking rows; the other workers get them."""
        for feed in self._row_feeds.values():
            feed.leave()
