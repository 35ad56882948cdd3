"""`TrainingContext`: the context of a node that trains, with its strategy, datasets and export."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from tfspark.training.node_context import NodeContext

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


class TrainingContext(NodeContext):
    """A node's view of its cluster; see `NodeContext` for its arguments."""

    @cached_property
    def _datasets(self) -> dict[str, tf.distribute.DistributedDataset]:
        return {}

    @cached_property
    def strategy(self) -> tf.distribute.Strategy:
        """The ``tf.distribute`` strategy of this node, created at first use.

        On workers it is `MultiWorkerMirroredStrategy` and joins the cluster, so every worker must use it. On the chief
        of parameter servers it is `ParameterServerStrategy`, on an evaluator the default strategy of one process.
        """
        from tfspark.training.strategies import make_strategy

        strategy = make_strategy(self)
        self.release_port()
        self.report("tensorflow", seconds=self.age_s)
        return strategy

    def dataset(self, stream: str = "train") -> tf.distribute.DistributedDataset:
        """Return the rows that the driver feeds to `stream`, ready for ``model.fit(ctx.dataset(), epochs=n)``.

        Each iteration is one epoch. An element is ``(features, label, weight)``; without a label column the features
        are also the label.

        Shapes:
            features: ``(B, *shape)``, or a dict of such tensors by column name if there are several.
            label: ``(B, *shape)``.
            weight: ``(B,)`` float32; 0 marks padding rows.

        B is the global batch size divided by the number of workers. The first call waits for the driver's ``train()``.
        For fed rows, every call returns the same dataset, which continues with the next epoch.
        """
        from tfspark.training.feeding import feed_of_dataset
        from tfspark.training.input.dataset import Feed, distributed_dataset

        if stream not in self._datasets:
            dataset = distributed_dataset(self, stream, self.strategy)
            if not isinstance(feed_of_dataset(dataset), Feed):
                return dataset  # Files can be read again from the start.
            self._datasets[stream] = dataset
        return self._datasets[stream]

    def export(self, model: keras.Model, name: str = "export") -> None:
        """Send the model to the run directory as ``<name>/model.keras`` and ``<name>/saved_model``.

        Only the chief sends it, so every worker may call this. The driver needs ``log_dir``.
        """
        from tfspark.training.saving import upload_model

        if self.is_chief:
            upload_model(self, model, name, ("keras", "saved_model"))

    @property
    def takes_rows(self) -> bool:
        """Whether the rows of any stream were requested."""
        return bool(self._datasets)
