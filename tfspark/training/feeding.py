"""What the training loop asks of a feed: rows that Spark feeds (`Feed`), or files that workers read (`FilesFeed`)."""

from __future__ import annotations

from typing import Any, Protocol

FEED_ATTRIBUTE = "_tfspark_feed"
"""Attribute of a distributed dataset that holds its feed. Keras's corrected epoch iterator asks it before each step
whether there is one."""


class ReadPass(Protocol):
    """A pass that is being read."""

    def has_step(self, step: int) -> bool:
        """Wait until a step, from 0, can be taken on all workers; False at the end of the pass, the same on all."""

    def steps_from(self, step: int, most: int) -> int:
        """Wait until `most` steps can be taken from this one on; return how many there are, fewer at the end."""


class TrainingFeed(Protocol):
    """All passes of what a model is trained on, as one worker reads them.

    Attributes:
        next_index: number of the pass that is opened next.
        steps_at_once: how many batches must be ready at once, for ``steps_per_execution``.
    """

    next_index: int
    steps_at_once: int

    @property
    def global_batch_size(self) -> int:
        """Rows of a step over all workers."""

    @property
    def weighs_rows(self) -> bool:
        """Whether rows have weights of their own."""

    @property
    def rows_of_pass(self) -> int:
        """Rows of the last pass on this worker, padding not counted."""

    @property
    def steps_of_pass(self) -> int:
        """Batches of the last pass."""

    @property
    def is_over(self) -> bool:
        """Whether the last pass that was asked for does not exist: the stream has ended."""

    def open_pass(self) -> ReadPass:
        """Begin to read the next pass."""

    def iterator(self) -> Any:
        """Return the distributed iterator over all passes, made once."""

    def abandon_pass(self) -> None:
        """Leave a pass before its end; the next one begins anew."""

    def end(self) -> None:
        """Say that no further pass will be opened."""


def feed_of_dataset(dataset: Any) -> TrainingFeed | None:
    """Return the feed of a distributed dataset; None if it is not one of tfspark's."""
    feed: TrainingFeed | None = getattr(dataset, FEED_ATTRIBUTE, None)
    return feed
