"""What the training loop needs from a feed: of rows from Spark (`Feed`), or of files (`FilesFeed`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tensorflow as tf

FEED_ATTRIBUTE = "_tfspark_feed"
"""Attribute of a distributed dataset that holds its feed. Before each step, Keras's corrected epoch iterator asks the
feed whether there is one."""


class ReadPass(Protocol):
    """A pass that is being read."""

    def has_step(self, step: int) -> bool:
        """Wait until all workers can take a step, from 0; False at the end of the pass, on all workers alike."""

    def steps_from(self, step: int, most: int) -> int:
        """Wait until `most` steps from `step` on can be taken; return their number, which is smaller at the end."""


class TrainingFeed(Protocol):
    """All passes of the training data, as one worker reads them.

    Attributes:
        next_index: number of the next pass to open.
        steps_at_once: number of batches that must be ready at the same time, for ``steps_per_execution``.
    """

    next_index: int
    steps_at_once: int

    @property
    def global_batch_size(self) -> int:
        """Rows of a step over all workers."""

    @property
    def weighs_rows(self) -> bool:
        """Whether rows have their own weights."""

    @property
    def rows_of_pass(self) -> int:
        """Number of rows of the last pass on this worker, without padding."""

    @property
    def steps_of_pass(self) -> int:
        """Number of batches of the last pass."""

    @property
    def is_over(self) -> bool:
        """Whether the last requested pass does not exist, because the stream has ended."""

    def open_pass(self) -> ReadPass:
        """Start to read the next pass."""

    def iterator(self) -> tf.distribute.DistributedIterator:
        """Return the distributed iterator over all passes, created once."""

    def abandon_pass(self) -> None:
        """Leave a pass before its end; the next pass starts from its beginning."""

    def end(self) -> None:
        """Record that no more passes will be opened."""


def feed_of_dataset(dataset: object) -> TrainingFeed | None:
    """Return the feed of a distributed dataset; None if the dataset is not tfspark's."""
    feed: TrainingFeed | None = getattr(dataset, FEED_ATTRIBUTE, None)
    return feed
