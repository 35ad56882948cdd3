"""Combine datasets of workers that agree on their number of batches into one ``tf.distribute`` dataset."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfspark.training.feeding import FEED_ATTRIBUTE, TrainingFeed


def distribute_from_function(
    strategy: tf.distribute.Strategy,
    of_worker: Callable[[tf.distribute.InputContext], tf.data.Dataset],
    feed: TrainingFeed,
) -> tf.distribute.DistributedDataset:
    """Distribute per-worker datasets that have the same number of batches on every worker."""
    extended = strategy.extended
    before = getattr(extended, "experimental_enable_get_next_as_optional", None)
    if before is not None:
        extended.experimental_enable_get_next_as_optional = False
    try:
        dataset = strategy.distribute_datasets_from_function(of_worker)
    finally:
        if before is not None:
            extended.experimental_enable_get_next_as_optional = before
    setattr(dataset, FEED_ATTRIBUTE, feed)
    return dataset
