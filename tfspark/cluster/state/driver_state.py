"""What the driver knows of one incarnation of a cluster: one object, which is used under one lock."""

from __future__ import annotations

from dataclasses import dataclass

from tfspark.cluster.state.registry import Registry
from tfspark.feed.directory import FeedDirectory
from tfspark.feed.offers import Offers


@dataclass
class DriverState:
    """The mutable state of the control plane.

    `ControlPlane` gives it only to functions that run under its lock. They must not keep it, or an object that belongs
    to it, after they return.

    Attributes:
        registry: which nodes are up.
        directory: which tasks have rows.
        offers: which tasks wait for results.
        train_stream: full name of the stream that the current model is trained on.
        feeding_over: whether no more rows will be fed.
    """

    registry: Registry
    directory: FeedDirectory
    offers: Offers
    train_stream: str = "train"
    feeding_over: bool = False

    @property
    def must_stop(self) -> bool:
        """Whether nodes and feed tasks must stop: the cluster is being stopped, or has failed."""
        return self.registry.stopping or self.registry.failed

    @property
    def has_reader(self) -> bool:
        """Whether a reader may still take an offered partition."""
        return not (self.must_stop or self.feeding_over or self.registry.all_succeeded("worker"))

    def end_feeding(self) -> None:
        """Record that no more rows will be fed."""
        self.feeding_over = True
        self.registry.may_replace_workers = False
        self.directory.close_all()

    def drop_reader(self, rank: int) -> None:
        """Record that a reader takes no more rows, of any stream."""
        self.directory.leave(rank)
        self.offers.drop(rank)
