"""The feed directory: which source has rows, who reads it, when an epoch is over.

Lives in the driver. Feed tasks announce their partition as a *source*, readers in the trainers *lease*
sources, and at the end of a pass all readers agree on the number of steps. State and decisions only: no
sockets, no Spark. Every method is called under one lock by the control plane, which wakes waiting calls
after each change; replies are plain dicts because they travel as JSON.

A *stream* is what one call of ``TFCluster.train`` or ``evaluate`` feeds; a *pass* is one run over it (an
epoch, counted from 0).
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tfspark.feed.ledger import union
from tfspark.feed.ranges import Ranges
from tfspark.protocol.timing import SOURCE_SILENCE_S
from tfspark.protocol.values import Json


@dataclass
class Source:
    """One attempt of one feed task, serving one partition.

    Attributes:
        partition: its position in the order in which the pass is served.
        name: its number in the DataFrame, for messages.
        attempt: what the task calls this attempt; one that asks again had not got its answer.
    """

    id: str
    partition: int
    name: int
    location: str
    host: str
    heard: float
    attempt: str = ""
    pulls: int = 0
    readers: set[int] = field(default_factory=set)
    lost: bool = False


class PassState(Enum):
    """Where a pass is.

    | state | next | when |
    |---|---|---|
    | SERVING | SERVED | Spark has finished every partition |
    | SERVING, SERVED | LACKS_ROWS | a reader was lost, with rows that must be served again |
    | LACKS_ROWS | SERVING | the partitions of which rows are missing were opened again |
    | SERVED | OVER | the coordinator of the readers' steps has taken every step |
    """

    SERVING = "serving"
    LACKS_ROWS = "lacks rows"
    SERVED = "served"
    OVER = "over"


@dataclass
class FeedPass:
    """One run over a stream.

    Attributes:
        keep: the readers keep what they receive on their nodes.
        kept_in: the pass whose rows the readers have kept and read again; -1: Spark serves this pass.
        kept: readers that have kept all they received.
        layout: how Spark has cut its rows, for its checkpoints.
        used: rows that need not be served, as an earlier incarnation of the cluster has trained on them: the
            partition's own number -> intervals.
        delivered: partition -> reader -> rows it said it received.
        abandoned: nobody reads the rest, so sources are told to stop.
        cut: a reader has left the stream before it had all rows.
    """

    layout: Json = field(default_factory=dict)
    used: Mapping[int, list[list[int]]] = field(default_factory=dict)
    keep: bool = False
    kept_in: int = -1
    kept: set[int] = field(default_factory=set)
    sources: dict[int, Source] = field(default_factory=dict)
    all_sources: list[str] = field(default_factory=list)
    counted: dict[int, int] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)
    delivered: dict[int, dict[int, Ranges]] = field(default_factory=dict)
    state: PassState = PassState.SERVING
    abandoned: bool = False
    announced: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    cut: bool = False


_FORGOTTEN = FeedPass(state=PassState.OVER)
"""Every pass that is long over; there may be millions of them."""


@dataclass
class Stream:
    """What is fed, to how many readers, and how far it is.

    Attributes:
        awaited: number of passes of which a reader has asked for the last.
        num_forgotten: passes of which only the rows of each reader are known, as ``totals`` over all of them.
    """

    description: Json
    num_readers: int
    ordered: bool
    coordinated: bool = False
    passes: list[FeedPass] = field(default_factory=list)
    sample: str | None = None
    closed: bool = False
    pulls: int = 0
    awaited: int = 0
    left: set[int] = field(default_factory=set)
    num_forgotten: int = 0
    totals: Counter[int] = field(default_factory=Counter)


class FeedDirectory:
    """The driver's book of streams, sources, leases and agreements."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._streams: dict[str, Stream] = {}
        self._by_id: dict[str, tuple[Stream, FeedPass, Source]] = {}
        self._lost: set[int] = set()
        self._clock = clock

    # --- the driver's side -------------------------------------------------------------------------

    def open_stream(
        self,
        name: str,
        description: Json,
        num_readers: int,
        ordered: bool = False,
        coordinated: bool = False,
    ) -> None:
        """Declare a stream before its first pass; `coordinated`: somebody ends each of its passes by `end_pass`."""
        self._streams[name] = Stream(description, num_readers, ordered, coordinated)

    @property
    def stream_names(self) -> list[str]:
        """All streams ever opened."""
        return list(self._streams)

    def skip_passes(self, stream: str, count: int) -> None:
        """Let the next pass have at least number `count`: an earlier incarnation of the cluster had those before it."""
        book = self._streams[stream]
        while len(book.passes) < count:
            book.passes.append(
                FeedPass(state=PassState.OVER, ended=dict.fromkeys(range(book.num_readers), 0))
            )

    def open_pass(
        self,
        stream: str,
        keep: bool = False,
        kept_in: int = -1,
        used: Mapping[int, list[list[int]]] | None = None,
    ) -> int:
        """Begin the next pass and return its number.

        Args:
            stream: name of the stream.
            keep: let the readers keep what they receive.
            kept_in: a pass whose rows the readers have kept and shall read again, without Spark.
            used: rows not to serve; see `FeedPass`.
        """
        book = self._streams[stream]
        book.passes.append(FeedPass(used=used or {}, keep=keep, kept_in=kept_in))
        self._forget_old(book)
        return len(book.passes) - 1

    def _forget_old(self, book: Stream) -> None:
        """Forget what a pass was made of when two others have begun, but for one whose rows the readers have kept."""
        while book.num_forgotten < len(book.passes) - 2:
            old = book.passes[book.num_forgotten]
            book.totals.update(old.ended)
            for source in old.all_sources:
                self._by_id.pop(source, None)
            kept = FeedPass(keep=True, ended=old.ended, kept=old.kept, state=PassState.OVER)
            book.passes[book.num_forgotten] = kept if old.keep else _FORGOTTEN
            book.num_forgotten += 1

    def sizes(self, stream: str, index: int) -> dict[int, int]:
        """Return the rows of each partition of the pass of which Spark has given the last, by its own number."""
        book = self._streams.get(stream)
        if book is None or index >= len(book.passes):
            return {}
        feed_pass = book.passes[index]
        known = feed_pass.counted | feed_pass.done
        return {s.name: known[s.partition] for s in feed_pass.sources.values() if s.partition in known}

    def note_layout(self, stream: str, index: int, layout: Json) -> None:
        """Note how Spark has cut the rows of a pass."""
        self._streams[stream].passes[index].layout = layout

    def layout(self, stream: str, index: int) -> Json:
        """Return how Spark has cut the rows of a pass; empty if that is not known."""
        return self._streams[stream].passes[index].layout if self.has_pass(stream, index) else {}

    def leave_out(self, stream: str, index: int, whole: Mapping[int, int], order: Sequence[int]) -> None:
        """Take partitions for served, as an earlier incarnation of the cluster has trained on them whole.

        Args:
            stream: name of the stream.
            index: number of the pass.
            whole: their own numbers -> rows.
            order: the partitions' own numbers, in the order of the pass, where that is another.
        """
        positions = {name: position for position, name in enumerate(order)} or {name: name for name in whole}
        self._streams[stream].passes[index].done.update(
            {positions[name]: rows for name, rows in whole.items() if name in positions}
        )

    def served(self, stream: str, index: int) -> list[int]:
        """Return the partitions of the pass that need no task of Spark's any more, in ascending order."""
        return sorted(self._streams[stream].passes[index].done)

    def finish_pass(self, stream: str, index: int) -> int:
        """Say that Spark has finished every partition of the pass; return the rows it served."""
        feed_pass = self._streams[stream].passes[index]
        if feed_pass.state is PassState.SERVING:
            feed_pass.state = PassState.SERVED
        return sum(feed_pass.done.values())

    def unfinished(self, stream: str, index: int) -> list[int]:
        """Return partitions of the pass that a task has begun to serve and none has ended, though all are wanted."""
        book = self._streams[stream]
        feed_pass = book.passes[index]
        is_wanted = not (book.closed or feed_pass.abandoned)
        return sorted(feed_pass.sources.keys() - feed_pass.done.keys()) if is_wanted else []

    def abandon_pass(self, stream: str, index: int) -> None:
        """Say that nobody will read the rest of the pass; its sources are told to stop."""
        self._streams[stream].passes[index].abandoned = True

    def close_stream(self, stream: str) -> None:
        """Say that no further pass will come; readers and sources still at work are told to stop."""
        self._streams[stream].closed = True

    def rows_received(self, stream: str, index: int) -> dict[int, int]:
        """Return reader -> rows it received, of the readers that have ended the pass or left the stream."""
        book = self._streams[stream]
        return {**dict.fromkeys(book.left, 0), **book.passes[index].ended}

    def unread(self, stream: str, index: int) -> bool:
        """Tell whether every reader has left the stream, at least one of them before it ended the pass."""
        book = self._streams[stream]
        feed_pass = book.passes[index]
        at_work = book.num_readers - len(feed_pass.ended)
        return len(book.left) == book.num_readers and (feed_pass.cut or at_work > 0)

    def is_awaited(self, stream: str) -> bool:
        """Tell whether a reader asks for a pass after the last that was begun."""
        book = self._streams[stream]
        return book.awaited > len(book.passes)

    def forget_asking(self, stream: str) -> None:
        """Take no reader that only wanted to see the first row for one that asks for a pass."""
        book = self._streams[stream]
        book.awaited = len(book.passes)

    def all_left(self, stream: str) -> bool:
        """Tell whether nobody reads the stream any more."""
        book = self._streams.get(stream)
        return book is not None and len(book.left) == book.num_readers

    def all_kept(self, stream: str, index: int) -> bool:
        """Tell whether every reader has kept what it received in a pass."""
        book = self._streams[stream]
        return len(book.passes[index].kept) == book.num_readers

    def sample(self, stream: str) -> str | None:
        """Return the first row of the stream, as `offer_sample` was given it."""
        return self._streams[stream].sample

    def has_sample(self, stream: str) -> bool:
        """Tell whether any row of the stream has been seen."""
        return self._streams[stream].sample is not None

    # --- the feed task's side ----------------------------------------------------------------------

    def source_up(
        self, stream: str, index: int, partition: int, location: str, host: str, name: int, attempt: str = ""
    ) -> Json:
        """Take in a source, or tell it to wait, or that its work is not needed.

        A second attempt of a partition waits until every reader of the first has reported what it received,
        and then serves only the rest. Where its rows may be in other places by now, nobody can tell which
        those are: the pass ends, and the reply is ``moved``.
        """
        book = self._streams[stream]
        feed_pass = book.passes[index]
        if book.closed or feed_pass.abandoned or partition in feed_pass.done:
            return {"action": "stop", "rows": feed_pass.done.get(partition, 0)}
        earlier = feed_pass.sources.get(partition)
        if earlier is not None and attempt and earlier.attempt == attempt:
            return self._serve(book, feed_pass, earlier)  # The answer to the same call was lost.
        if earlier is not None and not self._superseded(earlier):
            return {"action": "wait"}
        may_move = earlier is not None and not feed_pass.layout.get("repeatable", True)
        if earlier is not None and may_move and self._need_not_be_served(feed_pass, earlier):
            feed_pass.abandoned = True
            return {"action": "stop", "rows": 0, "moved": True}
        source = Source(uuid.uuid4().hex, partition, name, location, host, self._clock(), attempt)
        feed_pass.sources[partition] = source
        feed_pass.all_sources.append(source.id)
        self._by_id[source.id] = (book, feed_pass, source)
        return self._serve(book, feed_pass, source)

    def _serve(self, book: Stream, feed_pass: FeedPass, source: Source) -> Json:
        return {
            "action": "serve",
            "source": source.id,
            "skip": self._need_not_be_served(feed_pass, source),
            "want_sample": book.sample is None,
        }

    def offer_sample(self, stream: str, sample: str) -> Json:
        """Keep the first row of the stream: the trainers read shapes and types from it."""
        book = self._streams[stream]
        if book.sample is None:
            book.sample = sample
        return {}

    def source_alive(self, source: str, rows: int | None = None, pulls: int = 0) -> Json:
        """Hear a source's heartbeat; tell it whether to go on, how often its stream was pulled from, and who is lost.

        Args:
            source: who speaks.
            rows: how many its partition has, as soon as Spark has given the last; before, None.
            pulls: how often it was pulled from so far.
        """
        if source not in self._by_id:
            return {"stop": True, "pulls": 0, "lost": []}
        book, feed_pass, entry = self._by_id[source]
        entry.heard = self._clock()
        book.pulls += max(0, pulls - entry.pulls)
        entry.pulls = max(pulls, entry.pulls)
        if rows is not None:
            feed_pass.counted[entry.partition] = rows
        stop = book.closed or feed_pass.abandoned or entry.lost
        return {"stop": stop, "pulls": book.pulls, "lost": sorted(self._lost)}

    def source_there(self, source: str) -> Json:
        """Tell whether a source has not been served to its end, nor been taken for lost."""
        if source not in self._by_id:
            return {"there": False}
        book, feed_pass, entry = self._by_id[source]
        over = book.closed or feed_pass.abandoned or entry.lost or entry.partition in feed_pass.done
        return {"there": not over and self._clock() - entry.heard <= SOURCE_SILENCE_S}

    def source_failed(self, source: str) -> Json:
        """Note that a source has ended before its time."""
        if source in self._by_id:
            self._by_id[source][2].lost = True
        return {}

    def partition_done(self, stream: str, index: int, partition: int, rows: int, stopped: str = "") -> Json:
        """Note that a partition was served to its end and acknowledged.

        Args:
            stream: name of the stream.
            index: number of the pass.
            partition: which one.
            rows: how many it has.
            stopped: the source, if it was stopped with rows left. The partition is not done then; the
                reply says whether another attempt must serve it.
        """
        book = self._streams[stream]
        feed_pass = book.passes[index]
        if stopped:
            wanted = not book.closed and not feed_pass.abandoned
            return {"retry": wanted and self._by_id[stopped][2].lost}
        feed_pass.done[partition] = rows
        return {"retry": False}

    # --- the reader's side -------------------------------------------------------------------------

    def describe(self, stream: str) -> Json:
        """Return the stream's description and its first row, or ``wait``."""
        book = self._streams.get(stream)
        if book is None:
            return {"status": "wait"}
        needs_sample = bool(book.description.get("needs_sample"))
        if needs_sample and book.sample is None and not book.closed:
            book.awaited = max(book.awaited, 1)
            return {"status": "wait", "open_ended": bool(book.description.get("open_ended"))}
        return {"status": "ok", "description": book.description, "sample": book.sample}

    def lease(self, stream: str, index: int, rank: int, host: str, held: list[str], after: int) -> Json:
        """Give a reader a source, or ``wait``, ``kept``, or ``end`` when the pass has no more rows.

        The answer says, too, whether to ``keep`` the rows, and with ``kept`` in which pass they were (``kept_in``).

        Args:
            stream: name of the stream.
            index: number of the pass.
            rank: the reader.
            host: the reader's host; sources of the same host come first, then those with fewest readers.
            held: sources the reader has already.
            after: for an ordered stream, the last partition the reader has finished; -1 at the start.
        """
        book = self._streams[stream]
        book.awaited = max(book.awaited, index + 1)
        if index >= len(book.passes):
            return {"status": "closed" if book.closed else "wait", "passes": len(book.passes)}
        if book.closed or rank in self._lost:
            return {"status": "closed", "passes": len(book.passes)}
        feed_pass = book.passes[index]
        if feed_pass.kept_in >= 0:
            return {"status": "kept", "kept_in": feed_pass.kept_in}
        # What the reader does not hold was granted by an answer that it never got.
        for unknown in feed_pass.sources.values():
            if unknown.id not in held:
                unknown.readers.discard(rank)
        source = (
            self._next_in_order(feed_pass, after)
            if book.ordered
            else self._best_source(feed_pass, host, held)
        )
        if source is not None:
            source.readers.add(rank)
            return {
                "status": "source",
                "source": source.id,
                "location": source.location,
                "partition": source.partition,
                "name": source.name,
                "rows_before": self._rows_before(feed_pass, source.partition) if book.ordered else 0,
                "keep": feed_pass.keep,
            }
        is_served = feed_pass.state in (PassState.SERVED, PassState.OVER)
        return {"status": "end" if is_served else "wait", "keep": feed_pass.keep}

    def release(self, source: str, rank: int, delivered: list[list[int]], gone: bool) -> Json:
        """End a lease: note what the reader received of the source, and whether the source was lost."""
        if source not in self._by_id:
            return {}  # Of a pass that was forgotten: the answer to the same call was lost.
        _, feed_pass, entry = self._by_id[source]
        if rank not in self._lost:
            readers = feed_pass.delivered.setdefault(entry.partition, {})
            readers.setdefault(rank, Ranges()).add_all(delivered)
        entry.readers.discard(rank)
        if gone and entry.partition not in feed_pass.done:
            entry.lost = True
        return {}

    def agree(
        self, stream: str, index: int, rank: int, steps: int, ended: bool, rows: int, kept: bool = False
    ) -> Json:
        """Announce the steps a reader is sure of; learn the steps the pass will have.

        Readers announce while they are blocked and when they have ended. ``steps`` of the reply is a
        number every reader must reach; it is final once all have ended. A call whose answer was late was repeated,
        and may arrive once more after later ones: a reader does not go back by it.
        """
        feed_pass = self._streams[stream].passes[index]
        if rank in self._lost:
            return {"steps": steps, "final": True, "closed": True}
        feed_pass.announced[rank] = max(steps, feed_pass.announced.get(rank, 0))
        if ended:
            feed_pass.ended[rank] = max(rows, feed_pass.ended.get(rank, 0))
        if kept:
            feed_pass.kept.add(rank)
        book = self._streams[stream]
        return {
            "steps": max(feed_pass.announced.values()),
            "final": len(book.left | feed_pass.ended.keys()) == book.num_readers,
            "closed": book.closed,
        }

    def has_pass(self, stream: str, index: int) -> bool:
        """Tell whether a pass was begun."""
        return stream in self._streams and index < len(self._streams[stream].passes)

    def describe_rows(self, stream: str) -> Json:
        """Return the stream's description, whether or not its first row is there."""
        return self._streams[stream].description

    def most_rows(self, stream: str) -> int:
        """Return the rows of the reader that had most of them in all passes; 0 once a reader has left."""
        book = self._streams.get(stream)
        if book is None or book.left:
            return 0
        totals = Counter[int](book.totals)
        for feed_pass in book.passes[book.num_forgotten :]:
            totals.update(feed_pass.ended)
        return max(totals.values(), default=0)

    def cut_short(self, stream: str, index: int, rank: int, rows: int) -> None:
        """Note that a reader wants no more rows of a pass than it has."""
        if self.has_pass(stream, index) and rank not in self._streams[stream].passes[index].ended:
            feed_pass = self._streams[stream].passes[index]
            feed_pass.ended[rank], feed_pass.cut = rows, True

    def leave(self, rank: int, stream: str | None = None) -> Json:
        """Note that a reader wants no more rows of a stream, or, None, of any; the others get what is left."""
        for name, book in self._streams.items():
            if stream in (None, name) and rank < book.num_readers:
                book.left.add(rank)
        return {}

    # --- readers that are lost ---------------------------------------------------------------------

    def lose_reader(self, rank: int) -> None:
        """Forget what a reader that died received in passes that are not over: nobody knows what it trained on.

        Another, with a number of its own, reads in its place, and together with the others what must be served again.
        """
        self._lost.add(rank)
        for book in self._streams.values():
            for feed_pass in book.passes:
                if book.coordinated and feed_pass.state is not PassState.OVER:
                    self._forget(feed_pass, rank)

    @staticmethod
    def _forget(feed_pass: FeedPass, rank: int) -> None:
        for source in feed_pass.sources.values():
            source.readers.discard(rank)
        for readers in feed_pass.delivered.values():
            readers.pop(rank, None)
        feed_pass.announced.pop(rank, None)
        feed_pass.ended.pop(rank, None)
        feed_pass.state = PassState.LACKS_ROWS

    def end_pass(self, stream: str, index: int, seen: list[int], ended: list[int]) -> Json:
        """Let the coordinator of the readers' steps end a pass; tell which of its readers were lost meanwhile.

        Args:
            stream: name of the stream.
            index: number of the pass.
            seen: readers of which steps have returned.
            ended: readers that have no more rows. The pass is over if none of these is lost.
        """
        if self.has_pass(stream, index) and self._lost.isdisjoint(ended):
            self._streams[stream].passes[index].state = PassState.OVER
        return {"lost": sorted(self._lost.intersection(seen))}

    def is_over(self, stream: str, index: int) -> bool:
        """Tell whether the coordinator has ended a pass, if the stream has one."""
        book = self._streams[stream]
        return book.passes[index].state is PassState.OVER or not book.coordinated

    def lacks_rows(self, stream: str, index: int) -> bool:
        """Tell whether a reader was lost, and it has not been looked yet what must be served again."""
        return self._streams[stream].passes[index].state is PassState.LACKS_ROWS

    def is_settled(self, stream: str, index: int) -> bool:
        """Tell whether every reader that lives has told what it received of the sources so far."""
        return not any(source.readers for source in self._streams[stream].passes[index].sources.values())

    def reopen(self, stream: str, index: int) -> bool:
        """Open the partitions of which rows are missing, when all were served; tell whether there are any.

        Call it when the pass `is_settled`.
        """
        feed_pass = self._streams[stream].passes[index]
        if feed_pass.state is PassState.LACKS_ROWS:
            feed_pass.state = PassState.SERVING
        missing = []
        for partition, source in feed_pass.sources.items():
            served = Ranges()
            served.add_all(self._need_not_be_served(feed_pass, source))
            if partition in feed_pass.done and any(served.missing(0, feed_pass.done[partition])):
                missing.append(partition)
        for partition in missing:
            del feed_pass.done[partition]
            feed_pass.sources[partition].lost = True
        return bool(missing)

    @staticmethod
    def _need_not_be_served(feed_pass: FeedPass, source: Source) -> list[list[int]]:
        delivered = feed_pass.delivered.get(source.partition, {}).values()
        return union([*(ranges.to_json() for ranges in delivered), feed_pass.used.get(source.name, [])])

    # --- choices -----------------------------------------------------------------------------------

    def _superseded(self, source: Source) -> bool:
        silent = self._clock() - source.heard > SOURCE_SILENCE_S
        source.lost = source.lost or silent
        return source.lost and not source.readers

    @staticmethod
    def _best_source(feed_pass: FeedPass, host: str, held: list[str]) -> Source | None:
        open_sources = [
            source
            for source in feed_pass.sources.values()
            if source.partition not in feed_pass.done and not source.lost and source.id not in held
        ]
        if not open_sources:
            return None
        return min(open_sources, key=lambda s: (len(s.readers) > 0, s.host != host, len(s.readers)))

    @staticmethod
    def _rows_before(feed_pass: FeedPass, partition: int) -> int:
        """Return the rows of all partitions before this one: a reader who has seen their end may ask."""
        known = feed_pass.counted | feed_pass.done
        return sum(known[earlier] for earlier in range(partition))

    @staticmethod
    def _next_in_order(feed_pass: FeedPass, after: int) -> Source | None:
        partition = after + 1
        while partition in feed_pass.done:
            partition += 1
        source = feed_pass.sources.get(partition)
        return None if source is None or source.lost else source
