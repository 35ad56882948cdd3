"""`InputMode.TENSORFLOW`: read a worker's share of TFRecord files with tf.data. Runs in the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tensorflow as tf

from tfspark.errors import ConfigError
from tfspark.feed.columns import Columns
from tfspark.protocol.values import Json

if TYPE_CHECKING:
    from tfspark.training.input.elements import Element, FeaturesHook
    from tfspark.training.node_context import NodeContext

from tfspark.feed.files import Slice


@dataclass
class FilesFeed:
    """A plan as a feed for the training loop; the number of steps is known in advance."""

    num_steps: int
    rows: int
    global_batch_size: int
    weighs_rows: bool = False
    next_index: int = 0
    steps_at_once: int = 1
    make_iterator: Callable[[], tf.distribute.DistributedIterator] = lambda: None
    _iterator: tf.distribute.DistributedIterator | None = None

    def open_pass(self) -> FilesFeed:
        """Start the next epoch."""
        self.next_index += 1
        return self

    def iterator(self) -> tf.distribute.DistributedIterator:
        """Return the distributed iterator over all epochs, created once."""
        if self._iterator is None:
            self._iterator = self.make_iterator()
        return self._iterator

    def abandon_pass(self) -> None:
        """Leave an epoch before its end; the next epoch starts from its beginning."""
        self._iterator = None

    @property
    def is_over(self) -> bool:
        """Always False: files can be read again."""
        return False

    def end(self) -> None:
        """Forget the iterator."""
        self._iterator = None

    @property
    def steps_of_pass(self) -> int:
        """Number of batches of an epoch."""
        return self.num_steps

    @property
    def rows_of_pass(self) -> int:
        """Number of rows of an epoch on this worker."""
        return self.rows

    def has_step(self, step: int) -> bool:
        """Return whether an epoch has this step, counted from 0."""
        return self.steps_from(step, 1) == 1

    def steps_from(self, step: int, most: int) -> int:
        """Return how many of the next `most` steps exist."""
        return min(most, max(self.num_steps - step, 0))


def files_dataset(
    context: NodeContext, plan: Json, strategy: tf.distribute.Strategy
) -> tf.distribute.DistributedDataset:
    """Return this worker's share as a distributed dataset; runs in the trainer."""
    from tfspark.training.input.distribute import distribute_from_function

    share = plan["shares"][context.node.task_index]
    rows = sum(piece["take"] for piece in share)
    weighs = Columns.from_json(plan["columns"]).weighs_rows
    feed = FilesFeed(plan["steps"], rows, plan["batch_size"] * plan["num_readers"], weighs)
    hook = context.hooks.features

    def epoch(told: tf.distribute.InputContext) -> tf.data.Dataset:
        replicas = told.num_replicas_in_sync // told.num_input_pipelines
        return _share_dataset(plan, context.node.task_index, hook, replicas)

    feed.make_iterator = lambda: iter(
        distribute_from_function(strategy, lambda told: epoch(told).repeat().prefetch(2), feed)
    )
    return distribute_from_function(strategy, lambda told: epoch(told).prefetch(2), feed)


def _share_dataset(
    plan: Json, rank: int, features_hook: FeaturesHook | None = None, local_replicas: int = 1
) -> tf.data.Dataset:
    """Read one worker's share in batches of equal size; the last is padded, and all workers have the same number.

    If a worker has several devices, it takes one batch per device and step.
    """
    from tfspark.feed.reader import PADDING
    from tfspark.training.input.elements import without_autograph

    size, rest = divmod(plan["batch_size"], local_replicas)
    if rest:
        raise ConfigError(
            f"expected a batch_size that gives each of a worker's {local_replicas} devices as many rows, got "
            f"{plan['batch_size']} rows for the worker; choose a multiple"
        )
    padding = float(PADDING)
    real = _records([_slice(piece) for piece in plan["shares"][rank]])
    if plan["shuffle_rows"]:
        real = real.shuffle(plan["shuffle_rows"], seed=plan["seed"], reshuffle_each_iteration=True)
    filler = _records([_slice(plan["filler"])]).repeat()

    def weigh(records: tf.data.Dataset, weight: float) -> tf.data.Dataset:
        return records.map(without_autograph(lambda record: (record, weight)))

    weighted = weigh(real, 1.0).concatenate(weigh(filler, padding))
    batches = weighted.take(plan["steps"] * plan["batch_size"]).batch(size, drop_remainder=True)
    return batches.map(element_of_records(plan, features_hook), num_parallel_calls=2)


def records_of_share(plan: Json, rank: int) -> tf.data.Dataset:
    """Read one worker's share as batches of serialized records; the last batch may be short."""
    records = _records([_slice(piece) for piece in plan["shares"][rank]])
    if plan["shuffle_rows"]:
        records = records.shuffle(plan["shuffle_rows"], seed=plan["seed"], reshuffle_each_iteration=True)
    return records.batch(plan["batch_size"]).prefetch(2)


def element_of_records(
    plan: Json, features_hook: FeaturesHook | None = None
) -> Callable[[tf.Tensor, tf.Tensor], Element]:
    """Return a function that converts records and their weights to a Keras element."""
    from tfspark.feed.reader import WEIGHT
    from tfspark.training.input.elements import to_element, with_autograph, without_autograph
    from tfspark.training.input.examples import Feature, parse_examples, weights_of_examples

    columns, hook = Columns.from_json(plan["columns"]), with_autograph(features_hook)
    kinds = {spec["name"]: spec["kind"] for spec in plan["features"]}
    features = {name: Feature(kind, tuple(plan["shapes"][name])) for name, kind in kinds.items()}

    def parse(records: tf.Tensor, weights: tf.Tensor) -> Element:
        rows = parse_examples(records, features, columns)
        weights = weights_of_examples(weights, rows, columns)
        return to_element({**rows, WEIGHT: weights}, columns, hook)

    return without_autograph(parse)


def _slice(piece: Json) -> Slice:
    return Slice(**piece)


def _records(slices: Sequence[Slice]) -> tf.data.Dataset:
    """Read slices one after another, in one node of the graph, because there may be many thousands."""
    from tfspark.training.input.elements import without_autograph

    paths = tf.constant([piece.path for piece in slices], tf.string)
    kinds = tf.constant(["GZIP" if piece.compression else "" for piece in slices], tf.string)
    counts = tf.constant([[piece.skip, piece.take] for piece in slices], tf.int64, shape=(len(slices), 2))

    def read(path: tf.Tensor, kind: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path, compression_type=kind).skip(count[0]).take(count[1])

    return tf.data.Dataset.from_tensor_slices((paths, kinds, counts)).flat_map(without_autograph(read))
