"""Make a ``tf.distribute`` dataset from the feed's batches. Runs in the trainer."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfspark.errors import ConfigError, DataError, DeadlineError
from tfspark.feed.arrays import row_weights, to_numpy
from tfspark.feed.batching import Rows, num_rows, take
from tfspark.feed.cache import NodeCache
from tfspark.feed.ledger import Used
from tfspark.feed.reader import WEIGHT, PassReader, broken_off
from tfspark.feed.stream import Start, StreamSpec, decode_sample
from tfspark.protocol.values import Json
from tfspark.training.input.distribute import distribute_from_function
from tfspark.training.input.elements import (
    Element,
    Tensors,
    flattened,
    joined,
    signature,
    to_element,
    with_autograph,
    without_autograph,
)
from tfspark.training.input.examples import features_of_record, parse_examples, weights_of_examples

if TYPE_CHECKING:
    from tfspark.training.node_context import NodeContext


class Feed:
    """All passes of one stream, as this node reads them.

    Args:
        context: the node.
        spec: the stream.
        sample: one row, with the shapes and types of the stream.
    """

    def __init__(self, context: NodeContext, spec: StreamSpec, sample: Rows):
        self.spec = spec
        self.sample = sample
        self.next_index = 0
        self.steps_at_once = 1
        self.start: tuple[int, Start] = (0, Start())
        self.features_hook = context.hooks.features
        self._context = context
        self._opened: queue.SimpleQueue[PassReader | None] = queue.SimpleQueue()
        self._last: PassReader | None = None
        self._iterator: tf.distribute.DistributedIterator | None = None
        self._cache = (
            NodeCache(context.scratch_dir, context.lasting_dir, spec.cache_bytes)
            if spec.cache_bytes
            else None
        )
        self.make_iterator: Callable[[], tf.distribute.DistributedIterator] = lambda: None

    @property
    def _reading(self) -> PassReader:
        """The last opened pass."""
        assert self._last is not None
        return self._last

    @property
    def weighs_rows(self) -> bool:
        """Whether rows have their own weights."""
        return self.spec.columns.weighs_rows

    @property
    def rows_of_pass(self) -> int:
        """Number of rows of the last pass."""
        return self._reading.rows

    @property
    def steps_of_pass(self) -> int:
        """Number of batches of the last pass."""
        return self._reading.steps

    @property
    def first_step_of_pass(self) -> int:
        """Number of the first batch that was returned in the last pass; 0 unless the pass was resumed."""
        return self._reading.first_step

    def used(self, steps: int) -> Used:
        """Return the rows in this node's batches up to step `steps` of the last pass."""
        return self._reading.used(steps)

    @property
    def is_over(self) -> bool:
        """Whether the last requested pass does not exist, because the stream has ended."""
        return self._reading.is_behind_the_end

    @property
    def is_broken_off(self) -> bool:
        """Whether this node did not get all rows of the last pass because the driver feeds no more."""
        return self._reading.is_broken_off

    @property
    def global_batch_size(self) -> int:
        """Rows of a step over all workers."""
        return self.spec.batch_size * self.spec.num_readers

    def open_pass(self) -> PassReader:
        """Start to read the next pass."""
        index, start = self.start
        reading = PassReader(
            self._context.control,
            self._context.secret,
            self.spec,
            self.next_index,
            self._context.reader,
            self._context.host,
            self.sample,
            self._cache,
            start if index == self.next_index else None,
            self._context.activity,
            self.steps_at_once,
        )
        self._last = reading
        self._opened.put(reading)
        self.next_index += 1
        return reading

    def batches(self) -> Iterator[Rows]:
        """Yield the batches of the open pass, or of the next one."""
        if self._opened.empty():
            self.open_pass()
        reading = self._opened.get()
        if reading is not None:
            yield from self._batches_of(reading)

    def all_batches(self) -> Iterator[Rows]:
        """Yield the batches of all opened passes, one pass after another, until `end`."""
        opened = self._opened
        while (reading := opened.get()) is not None:
            yield from self._batches_of(reading)

    def iterator(self) -> tf.distribute.DistributedIterator:
        """Return the distributed iterator over `all_batches`, created once.

        A new iterator for each epoch would cost seconds, because the first steps after its creation stall in
        TensorFlow's collectives (measured with TensorFlow 2.21, also on rows in memory).
        """
        if self._iterator is None:
            self._iterator = self.make_iterator()
        return self._iterator

    def abandon_pass(self) -> None:
        """Leave a pass before its end; its iterator is dropped, with the rows it has read ahead."""
        self._reading.close()
        # The iterator's thread waits for a pass; TensorFlow waits for that thread when it deletes the iterator.
        self._opened.put(None)
        self._opened = queue.SimpleQueue()
        self._iterator = None

    def end(self) -> None:
        """Record that no more passes will be opened, because another model is trained on another stream."""
        self.close()
        self._opened.put(None)
        if self._cache is not None:
            self._cache.drop()

    def close(self) -> None:
        """Stop reading the last pass, if there is one."""
        if self._last is not None:
            self._last.close()

    @staticmethod
    def _batches_of(reading: PassReader) -> Iterator[Rows]:
        try:
            yield from reading
        finally:
            reading.close()


def open_feed(context: NodeContext, stream: str) -> Feed:
    """Wait until the driver feeds `stream` and its first row is known.

    Raises:
        DeadlineError: the driver did not feed within ``feed_timeout_s``.
        BrokenOffError: the driver feeds no more.
    """
    return feed_of(context, stream, describe_stream(context, stream))


def feed_of(context: NodeContext, stream: str, described: Json) -> Feed:
    """Return the feed of a described stream.

    Raises:
        DataError: the stream has no rows.
    """
    spec = StreamSpec.from_json(described["description"])
    if described["sample"] is None:
        raise DataError(f"the stream {stream!r} was closed before its first row: the DataFrame has no rows")
    rows = to_numpy(decode_sample(described["sample"]), spec.columns)
    text = [c.name for c in spec.columns.sent if c.decode is None and _is_of_bytes(rows[c.name])]
    context.text_columns = [] if spec.columns.examples else text
    weights = row_weights(rows, spec.columns, 1)
    return Feed(context, spec, {**rows, WEIGHT: weights})


def _is_of_bytes(values: npt.NDArray[Any]) -> bool:
    """Return whether a column's array holds text or bytes, also as objects."""
    while values.dtype == object and len(values) and isinstance(values.flat[0], np.ndarray):
        values = values.flat[0]
    return bool(values.dtype == object)


def describe_stream(context: NodeContext, stream: str) -> Json:
    """Ask the driver for a stream's description until it is available."""
    timeout_s = context.settings.feed_timeout_s
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with context.activity.waiting():
            reply = context.control.call("describe", stream=stream)
        if reply["status"] == "ok":
            return reply
        if reply["status"] == "broken_off":
            raise broken_off(stream, reply["why"])
        if reply.get("open_ended"):
            until = (
                time.monotonic() + timeout_s
            )  # The stream is quiet, but the driver is up; or the call failed.
    raise DeadlineError(
        f"waited feed_timeout_s={timeout_s:g} s for the first row of {stream!r}; call cluster.train(df) on the "
        "driver, or raise feed_timeout_s if the DataFrame takes that long to compute"
    )


def distributed_dataset(
    context: NodeContext, stream: str, strategy: tf.distribute.Strategy
) -> tf.distribute.DistributedDataset:
    """Return `stream` as a dataset distributed over the workers; see `TrainingContext.dataset`."""
    described = describe_stream(context, stream)
    if described["description"].get("no_dataset"):
        raise ConfigError(described["description"]["no_dataset"])
    if described["description"]["kind"] == "files":
        from tfspark.training.input.files import files_dataset

        return files_dataset(context, described["description"], strategy)
    return distribute(strategy, open_feed(context, stream))


def distribute(strategy: tf.distribute.Strategy, feed: Feed) -> tf.distribute.DistributedDataset:
    """Wrap a feed for a strategy, one batch of ``spec.batch_size`` rows per worker and step.

    The feed's readers agree on the number of steps, so TensorFlow's own agreement, a collective per step, is switched
    off for this dataset.
    """

    def of_worker(
        batches: Callable[[], Iterator[Rows]],
    ) -> Callable[[tf.distribute.InputContext], tf.data.Dataset]:
        def make(input_context: tf.distribute.InputContext) -> tf.data.Dataset:
            local_replicas = input_context.num_replicas_in_sync // input_context.num_input_pipelines
            return local_dataset(feed, batches, local_replicas)

        return make

    feed.make_iterator = lambda: iter(distribute_from_function(strategy, of_worker(feed.all_batches), feed))
    return distribute_from_function(strategy, of_worker(feed.batches), feed)


def local_dataset(
    feed: Feed, batches: Callable[[], Iterator[Rows]] | None = None, local_replicas: int = 1
) -> tf.data.Dataset:
    """Return this worker's part of the feed as a ``tf.data.Dataset``.

    If a worker has several devices, it takes one batch per device and step.
    """
    spec, columns = feed.spec, feed.spec.columns
    size = spec.batch_size // local_replicas

    def pieces() -> Iterator[Rows]:
        for batch in (batches or feed.batches)():
            for start in range(0, num_rows(batch), size):
                yield flattened(take(batch, slice(start, start + size)), columns)

    shapes = signature(feed.sample, columns, size if spec.synchronous else None)
    dataset = tf.data.Dataset.from_generator(pieces, output_signature=shapes)
    in_parallel = tf.data.AUTOTUNE if columns.needs_work else 1
    return dataset.map(element_of(feed), num_parallel_calls=in_parallel).prefetch(2)


def element_of(feed: Feed) -> Callable[[Tensors], Element]:
    """Return a function that converts a batch of the feed to an element; see `to_element`."""
    columns, hook = feed.spec.columns, with_autograph(feed.features_hook)
    examples = columns.examples

    def of_columns(batch: Tensors) -> Element:
        return to_element(joined(batch, columns), columns, hook)

    def parsed(batch: Tensors) -> Element:
        assert examples is not None
        rows = parse_examples(batch[examples], features, columns)
        weights = weights_of_examples(batch[WEIGHT], rows, columns)
        return to_element({**rows, WEIGHT: weights}, columns, hook)

    if examples is not None:
        features = features_of_record(feed.sample[examples][0], columns)
    return without_autograph(of_columns if examples is None else parsed)
