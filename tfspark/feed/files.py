"""`InputMode.TENSORFLOW`: each worker reads its share of TFRecord files through tf.data.

`TFRecordFiles` is used on the driver, which divides the records among the workers; `files_dataset` runs in the
trainers and is pure tf.data. TensorFlow is imported only there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tfspark.errors import ConfigError, DataError
from tfspark.feed.arrays import to_numpy
from tfspark.feed.columns import Columns, check_columns
from tfspark.protocol.wire import Json
from tfspark.tfrecord import InputFile, count_records, feature_specs, list_files, read_schema
from tfspark.tfrecord.damage import Damage
from tfspark.tfrecord.decode import decode_block
from tfspark.tfrecord.files import open_input
from tfspark.tfrecord.records import read_blocks

if TYPE_CHECKING:
    import tensorflow as tf

    from tfspark.training.context import TFContext

COUNTING_THREADS = 8


@dataclass(frozen=True)
class Slice:
    """Consecutive records of one file."""

    path: str
    compression: str
    skip: int
    take: int


@dataclass(frozen=True)
class TFRecordFiles:
    """TFRecord files that every executor can read under the same path.

    Attributes:
        path: a file, a directory or a glob, or several of them.
        columns: which features are used and how.
        shuffle_rows: rows of each worker's shuffle window.
    """

    path: str | Sequence[str]
    columns: Columns
    shuffle_rows: int = 0

    def plan(self, num_workers: int, local_batch_size: int) -> Json:
        """Divide the records among the workers: equal numbers, give or take one, in file order.

        Raises:
            DataError: no such file, no record in any, a damaged file.
            ConfigError: a column is not in the files.
        """
        if self.columns.examples is not None:
            raise ConfigError(
                "expected no examples with TFRecordFiles, whose records are Examples anyway; leave it out"
            )
        files = list_files(self.path)
        schema = read_schema(self.path)
        check_columns(self.columns, schema.names)
        shares = divide(files, _count(files), num_workers)
        rows = [sum(piece.take for piece in share) for share in shares]
        return {
            "columns": self.columns.to_json(),
            "features": [vars(spec) for spec in feature_specs(schema) if spec.name in self.columns.names],
            "shapes": self._shapes(files, schema),
            "shares": [[vars(piece) for piece in share] for share in shares],
            "filler": vars(Slice(files[0].path, files[0].compression, 0, 1)),
            "batch_size": local_batch_size,
            "num_readers": num_workers,
            "steps": -(-max(rows) // local_batch_size),
            "shuffle_rows": self.shuffle_rows,
        }

    def _shapes(self, files: Sequence[InputFile], schema: pa.Schema) -> dict[str, list[int]]:
        """Column name -> shape of one row, as the first record has it."""
        wanted = pa.schema([schema.field(name) for name in self.columns.names])
        file = next(file for file in files if file.num_bytes)
        damage = Damage(file.path)
        with open_input(file) as stream:
            block = next(iter(read_blocks(stream, damage)))
        rows = to_numpy(decode_block(block, wanted, damage).slice(0, 1), self.columns)
        return {name: list(values.shape[1:]) for name, values in rows.items()}


def _count(files: Sequence[InputFile]) -> list[int]:
    with ThreadPoolExecutor(COUNTING_THREADS, thread_name_prefix="tfspark-count") as pool:
        return list(pool.map(count_records, [file.path for file in files]))


def divide(files: Sequence[InputFile], counts: Sequence[int], num_workers: int) -> list[list[Slice]]:
    """Cut the sequence of all records into `num_workers` runs of equal length, give or take one.

    Args:
        files: in reading order.
        counts: records of each file.
        num_workers: how many shares.

    Returns:
        Worker -> slices of files. Every record is in exactly one.

    Raises:
        DataError: there is no record at all.
    """
    total = sum(counts)
    if not total:
        raise DataError(f"expected records, came none in {len(files)} files; see whether the path is right")
    bounds = [total * worker // num_workers for worker in range(num_workers + 1)]
    return [list(_between(files, counts, first, end)) for first, end in pairwise(bounds)]


def _between(files: Sequence[InputFile], counts: Sequence[int], first: int, end: int) -> Iterable[Slice]:
    start = 0
    for file, count in zip(files, counts, strict=True):
        skip, stop = max(first - start, 0), min(end - start, count)
        if skip < stop:
            yield Slice(file.path, file.compression, skip, stop - skip)
        start += count


@dataclass
class FilesFeed:
    """A plan as the training loop sees it: the number of steps is known beforehand."""

    num_steps: int
    rows: int
    global_batch_size: int
    weighs_rows: bool = False
    next_index: int = 0
    make_iterator: Callable[[], Any] = lambda: None
    _iterator: Any = None

    def open_pass(self) -> FilesFeed:
        """Begin the next epoch."""
        self.next_index += 1
        return self

    def iterator(self) -> Any:
        """Return the distributed iterator over all epochs, made once."""
        if self._iterator is None:
            self._iterator = self.make_iterator()
        return self._iterator

    def abandon_pass(self) -> None:
        """Leave an epoch before its end; the next one begins anew."""
        self._iterator = None

    @property
    def steps_of_pass(self) -> int:
        """Batches of an epoch."""
        return self.num_steps

    @property
    def rows_of_pass(self) -> int:
        """Rows of an epoch on this worker."""
        return self.rows

    def has_step(self, step: int) -> bool:
        """Tell whether an epoch has a step of this number, from 0."""
        return step < self.num_steps


def files_dataset(context: TFContext, plan: Json) -> tf.distribute.DistributedDataset:
    """Return this worker's share as a distributed dataset; runs in the trainer."""
    from tfspark.training.input.dataset import distribute_from_function

    share = plan["shares"][context.node.task_index]
    rows = sum(piece["take"] for piece in share)
    weighs = Columns.from_json(plan["columns"]).weighs_rows
    feed = FilesFeed(plan["steps"], rows, plan["batch_size"] * plan["num_readers"], weighs)
    hook, strategy = context.hooks.features, context.strategy

    def epoch(told: Any) -> tf.data.Dataset:
        replicas = told.num_replicas_in_sync // told.num_input_pipelines
        return share_dataset(plan, context.node.task_index, hook, replicas)

    feed.make_iterator = lambda: iter(
        distribute_from_function(strategy, lambda told: epoch(told).repeat().prefetch(2), feed)
    )
    return distribute_from_function(strategy, lambda told: epoch(told).prefetch(2), feed)


def share_dataset(
    plan: Json, rank: int, features_hook: Any = None, local_replicas: int = 1
) -> tf.data.Dataset:
    """Read one worker's share: batches of equal size, the last filled up with padding, equally many for all.

    A worker with several devices takes one batch per device and step.
    """
    from tfspark.feed.reader import PADDING

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
    weighted = real.map(lambda record: (record, 1.0)).concatenate(
        filler.map(lambda record: (record, padding))
    )
    batches = weighted.take(plan["steps"] * plan["batch_size"]).batch(size, drop_remainder=True)
    return batches.map(element_of_records(plan, features_hook), num_parallel_calls=2)


def records_of_share(plan: Json, rank: int) -> tf.data.Dataset:
    """Read one worker's share by itself: batches of serialized records, the last as short as what is left."""
    records = _records([_slice(piece) for piece in plan["shares"][rank]])
    if plan["shuffle_rows"]:
        records = records.shuffle(plan["shuffle_rows"], seed=plan["seed"], reshuffle_each_iteration=True)
    return records.batch(plan["batch_size"]).prefetch(2)


def element_of_records(plan: Json, features_hook: Any = None) -> Callable[[Any, Any], Any]:
    """Return what turns records and their weights into an element for Keras."""
    from tfspark.feed.reader import WEIGHT
    from tfspark.training.input.elements import to_element
    from tfspark.training.input.examples import Feature, parse_examples, weights_of_examples

    columns = Columns.from_json(plan["columns"])
    kinds = {spec["name"]: spec["kind"] for spec in plan["features"]}
    features = {name: Feature(kind, tuple(plan["shapes"][name])) for name, kind in kinds.items()}

    def parse(records: tf.Tensor, weights: tf.Tensor) -> Any:
        rows = parse_examples(records, features, columns)
        weights = weights_of_examples(weights, rows, columns)
        return to_element({**rows, WEIGHT: weights}, columns, features_hook)

    return parse


def _slice(piece: Json) -> Slice:
    return Slice(**piece)


def _records(slices: Sequence[Slice]) -> tf.data.Dataset:
    """Read slices one after the other: one node of the graph for all, as there may be many thousands."""
    import tensorflow as tf

    paths = tf.constant([piece.path for piece in slices], tf.string)
    kinds = tf.constant(["GZIP" if piece.compression else "" for piece in slices], tf.string)
    counts = tf.constant([[piece.skip, piece.take] for piece in slices], tf.int64, shape=(len(slices), 2))

    def read(path: tf.Tensor, kind: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path, compression_type=kind).skip(count[0]).take(count[1])

    return tf.data.Dataset.from_tensor_slices((paths, kinds, counts)).flat_map(read)
