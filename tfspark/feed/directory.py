"""The feed directory: which source has rows, who reads it, and when an epoch is over.

It is part of the driver. Feed tasks announce their partition as a *source*. Readers in the trainers *lease* sources. At
the end of a pass, all readers agree on the number of steps. This module has only state and decisions: no sockets, no
Spark. The control plane calls every method under one lock and wakes waiting calls after each change. Replies are plain
dicts because they are sent as JSON.

A *stream* is what one call of ``TFCluster.train`` or ``evaluate`` feeds. A *pass* is one run over it: an epoch, counted
from 0.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum

from tfspark.feed.ledger import union
from tfspark.feed.ranges import Ranges
from tfspark.protocol.timing import SOURCE_SILENCE_S
from tfspark.protocol.values import Json


@dataclass
class Source:
    """One attempt of one feed task, which serves one partition.

    Attributes:
        partition: its position in the order in which the pass is served.
        name: its number in the DataFrame, for messages.
        attempt: the task's identifier of this attempt; the same one comes again if the reply to a call was lost.
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
    """State of a pass.

    | state | next | when |
    |---|---|---|
    | SERVING | SERVED | Spark has finished every partition |
    | SERVING, SERVED | LACKS_ROWS | a reader was lost, with rows that must be served again |
    | LACKS_ROWS | SERVING | the partitions with missing rows were opened again |
    | SERVED | OVER | the coordinator of the readers' steps has taken every step |
    """

    SERVING = "serving"
    LACKS_ROWS = "lacks rows"
    SERVED = "served"
    OVER = "over"


@dataclass(frozen=True)
class Keep:
    """How readers store the rows they receive.

    Attributes:
        key: a part of the files' names.
        lasting: whether later trainings may read the files.
        stale: files that no training will read any more.
    """

    key: str
    lasting: bool = False
    stale: tuple[str, ...] = ()


@dataclass
class FeedPass:
    """One run over a stream.

    Attributes:
        keep: under which name the readers store the received rows on their nodes; None: they do not.
        offer: files with the rows of an earlier training that readers may read instead, one per reader.
        found: reader -> numbers of the offered files that it can read.
        given: reader -> the file that it reads instead of Spark's rows.
        stored: reader -> the file in which it has stored all rows it received.
        layout: how Spark has divided its rows, for checkpoints.
        used: rows that need not be served because an earlier incarnation has trained on them: the partition's own
            number -> intervals.
        delivered: partition -> reader -> rows that it reported as received.
        abandoned: nobody reads the rest, so sources are told to stop.
        cut: a reader has left the stream before it had all rows.
        broken_off: the driver has broken it off before all readers had ended it.
    """

    layout: Json = field(default_factory=dict)
    used: Mapping[int, list[list[int]]] = field(default_factory=dict)
    keep: Keep | None = None
    offer: Mapping[int, str] = field(default_factory=dict)
    found: dict[int, list[int]] = field(default_factory=dict)
    given: Mapping[int, str] = field(default_factory=dict)
    stored: dict[int, str] = field(default_factory=dict)
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
    broken_off: bool = False


_FORGOTTEN = FeedPass(state=PassState.OVER)
"""State of all passes that ended long ago; there may be millions of them."""


@dataclass
class Stream:
    """What is fed under one name, to how many readers, and its progress.

    Attributes:
        awaited: highest number of passes that a reader has asked for.
        broken_off: why the driver feeds no more of it, if a call ended by an exception.
        num_forgotten: number of passes for which only the rows of each reader are known, as ``totals`` over all of
            them.
    """

    description: Json
    num_readers: int
    ordered: bool
    coordinated: bool = False
    passes: list[FeedPass] = field(default_factory=list)
    sample: str | None = None
    closed: bool = False
    broken_off: str = ""
    pulls: int = 0
    awaited: int = 0
    left: set[int] = field(default_factory=set)
    num_forgotten: int = 0
    totals: Counter[int] = field(default_factory=Counter)


class FeedDirectory:
    """The driver's state of streams, sources, leases and agreements."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._streams: dict[str, Stream] = {}
        self._by_id: dict[str, tuple[Stream, FeedPass, Source]] = {}
        self._lost: set[int] = set()
        self._clock = clock

    # --- calls of the driver -------------------------------------------------------------------------

    def open_stream(
        self,
        name: str,
        description: Json,
        num_readers: int,
        ordered: bool = False,
        coordinated: bool = False,
    ) -> None:
        """Declare a stream before its first pass; `coordinated`: a coordinator ends each pass with `end_pass`."""
        self._streams[name] = Stream(description, num_readers, ordered, coordinated)

    @property
    def stream_names(self) -> list[str]:
        """Names of all streams that were opened and not dropped."""
        return list(self._streams)

    def drop_stream(self, stream: str) -> None:
        """Forget a stream that is over. Late calls for it are answered as for a stream that is closed."""
        book = self._streams.pop(stream, None)
        for feed_pass in [] if book is None else book.passes:
            for source in feed_pass.all_sources:
                self._by_id.pop(source, None)

    def skip_passes(self, stream: str, count: int) -> None:
        """Number the next pass at least `count`: an earlier incarnation of the cluster had the passes before it."""
        book = self._streams[stream]
        while len(book.passes) < count:
            book.passes.append(
                FeedPass(state=PassState.OVER, ended=dict.fromkeys(range(book.num_readers), 0))
            )

    def open_pass(
        self,
        stream: str,
        keep: Keep | None = None,
        used: Mapping[int, list[list[int]]] | None = None,
        offer: Mapping[int, str] | None = None,
        given: Mapping[int, str] | None = None,
        layout: Json | None = None,
    ) -> int:
        """Start the next pass and return its number.

        Args:
            stream: name of the stream.
            keep: let the readers store the rows they receive.
            used: rows not to serve; see `FeedPass`.
            offer: files that readers may be able to read instead; see `takes_offer`.
            given: files that the readers read instead, as they have stored them.
            layout: how Spark had divided the rows of these files.
        """
        book = self._streams[stream]
        given = given or {}
        book.passes.append(
            FeedPass(
                layout=layout or {},
                used=used or {},
                keep=keep,
                offer=offer or {},
                given=given,
                stored=dict(given),
            )
        )
        self._forget_old(book)
        return len(book.passes) - 1

    def _forget_old(self, book: Stream) -> None:
        """Forget details of a pass after two later ones have started, unless the readers have stored its rows."""
        while book.num_forgotten < len(book.passes) - 2:
            old = book.passes[book.num_forgotten]
            book.totals.update(old.ended)
            for source in old.all_sources:
                self._by_id.pop(source, None)
            kept = FeedPass(old.layout, ended=old.ended, stored=old.stored, state=PassState.OVER)
            book.passes[book.num_forgotten] = kept if old.stored else _FORGOTTEN
            book.num_forgotten += 1

    def num_passes(self, stream: str) -> int:
        """Return how many passes were started, which is the number of the next one."""
        return len(self._streams[stream].passes)

    def sizes(self, stream: str, index: int) -> dict[int, int]:
        """Return the partition's own number -> number of rows, for partitions that Spark has computed completely."""
        book = self._streams.get(stream)
        if book is None or index >= len(book.passes):
            return {}
        feed_pass = book.passes[index]
        known = feed_pass.counted | feed_pass.done
        return {s.name: known[s.partition] for s in feed_pass.sources.values() if s.partition in known}

    def note_layout(self, stream: str, index: int, layout: Json) -> None:
        """Record how Spark has divided the rows of a pass."""
        self._streams[stream].passes[index].layout = layout

    def layout(self, stream: str, index: int) -> Json:
        """Return how Spark has divided the rows of a pass; empty if unknown."""
        return self._streams[stream].passes[index].layout if self.has_pass(stream, index) else {}

    def leave_out(self, stream: str, index: int, whole: Mapping[int, int], order: Sequence[int]) -> None:
        """Mark partitions as served, because an earlier incarnation has trained on all their rows.

        Args:
            stream: name of the stream.
            index: number of the pass.
            whole: the partition's own number -> number of rows.
            order: the partitions' own numbers in the order of the pass, if that order is different.
        """
        positions = {name: position for position, name in enumerate(order)} or {name: name for name in whole}
        self._streams[stream].passes[index].done.update(
            {positions[name]: rows for name, rows in whole.items() if name in positions}
        )

    def served(self, stream: str, index: int) -> list[int]:
        """Return, in ascending order, the partitions of the pass for which Spark needs to run no more tasks."""
        return sorted(self._streams[stream].passes[index].done)

    def finish_pass(self, stream: str, index: int) -> int:
        """Record that Spark has finished every partition of the pass; return the number of rows it served."""
        feed_pass = self._streams[stream].passes[index]
        if feed_pass.state is PassState.SERVING:
            feed_pass.state = PassState.SERVED
        return sum(feed_pass.done.values())

    def unfinished(self, stream: str, index: int) -> list[int]:
        """Return the partitions that a task has started and not ended, although all partitions are needed."""
        book = self._streams[stream]
        feed_pass = book.passes[index]
        is_wanted = not (book.closed or feed_pass.abandoned)
        return sorted(feed_pass.sources.keys() - feed_pass.done.keys()) if is_wanted else []

    def abandon_pass(self, stream: str, index: int) -> None:
        """Record that nobody will read the rest of the pass; its sources are told to stop."""
        self._streams[stream].passes[index].abandoned = True

    def close_stream(self, stream: str) -> None:
        """Record that no more passes will follow; readers and sources that still run are told to stop."""
        self._streams[stream].closed = True

    def close_all(self) -> list[str]:
        """Close every stream; return their names."""
        for stream in self._streams:
            self.close_stream(stream)
        return self.stream_names

    def break_off(self, why: str, stream: str | None = None) -> None:
        """Close all streams because the driver feeds no more; readers that are in step end at the same step.

        Args:
            why: what ended the driver's call, for the readers' errors.
            stream: close only this one.
        """
        for book in [book for name, book in self._streams.items() if stream in (None, name)]:
            for feed_pass in book.passes[book.num_forgotten :]:
                feed_pass.broken_off = not (book.closed or self._all_ended(book, feed_pass))
            book.broken_off = book.broken_off or ("" if book.closed else why)
            book.closed = True

    @staticmethod
    def _all_ended(book: Stream, feed_pass: FeedPass) -> bool:
        return len(book.left | feed_pass.ended.keys()) == book.num_readers

    def rows_received(self, stream: str, index: int) -> dict[int, int]:
        """Return reader -> number of rows it received, for readers that ended the pass or left the stream."""
        book = self._streams[stream]
        return {**dict.fromkeys(book.left, 0), **book.passes[index].ended}

    def unread(self, stream: str, index: int) -> bool:
        """Return whether all readers have left the stream, and at least one of them did so before it ended the pass."""
        book = self._streams[stream]
        feed_pass = book.passes[index]
        at_work = book.num_readers - len(feed_pass.ended)
        return len(book.left) == book.num_readers and (feed_pass.cut or at_work > 0)

    def is_awaited(self, stream: str) -> bool:
        """Return whether a reader has asked for a pass after the last one that was started."""
        book = self._streams[stream]
        return book.awaited > len(book.passes)

    def forget_asking(self, stream: str) -> None:
        """Forget earlier requests: a reader that only wanted the first row has not asked for a pass."""
        book = self._streams[stream]
        book.awaited = len(book.passes)

    def all_left(self, stream: str) -> bool:
        """Return whether all readers have left the stream."""
        book = self._streams.get(stream)
        return book is not None and len(book.left) == book.num_readers

    def stored(self, stream: str, index: int) -> dict[int, str]:
        """Return reader -> file with all rows that it received in a pass; empty unless every reader has stored them."""
        book = self._streams[stream]
        stored = book.passes[index].stored
        return dict(stored) if len(stored) == book.num_readers else {}

    def has_looked(self, stream: str, index: int) -> bool:
        """Return whether every reader has said which of the offered files it can read."""
        book = self._streams[stream]
        return len(book.passes[index].found) == book.num_readers

    def takes_offer(self, stream: str, index: int) -> bool:
        """Give each reader an offered file if all of them can be read; otherwise withdraw the offer.

        In an ordered stream each reader needs the file with its own number.
        """
        book = self._streams[stream]
        feed_pass = book.passes[index]
        found = feed_pass.found if self.has_looked(stream, index) else {}
        own_first = {rank: sorted(numbers, key=rank.__ne__) for rank, numbers in found.items()}
        if book.ordered:
            own_first = {rank: [rank] if rank in numbers else [] for rank, numbers in found.items()}
        given = {rank: feed_pass.offer[number] for rank, number in matched(own_first).items()}
        feed_pass.given = given if len(given) == book.num_readers else {}
        feed_pass.stored = dict(feed_pass.given)
        feed_pass.offer = {}
        return bool(feed_pass.given)

    def sample(self, stream: str) -> str | None:
        """Return the first row of the stream, as passed to `offer_sample`."""
        return self._streams[stream].sample

    def has_sample(self, stream: str) -> bool:
        """Return whether any row of the stream has been seen."""
        return self._streams[stream].sample is not None

    # --- calls of feed tasks ----------------------------------------------------------------------

    def source_up(
        self, stream: str, index: int, partition: int, location: str, host: str, name: int, attempt: str = ""
    ) -> Json:
        """Register a source; the reply may also tell it to wait, or that it is not needed.

        A second attempt of a partition waits until every reader of the first attempt has reported which rows it
        received. Then it serves only the rest. If the rows may be in other places now, nobody knows which rows those
        are: the pass ends, and the reply is ``moved``.
        """
        if stream not in self._streams:
            return {"action": "stop", "rows": 0}
        book = self._streams[stream]
        feed_pass = book.passes[index]
        if book.closed or feed_pass.abandoned or partition in feed_pass.done:
            return {"action": "stop", "rows": feed_pass.done.get(partition, 0)}
        earlier = feed_pass.sources.get(partition)
        if earlier is not None and attempt and earlier.attempt == attempt:
            return self._serve(book, feed_pass, earlier)  # The reply to the same call was lost.
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
        """Store the first row of the stream: the trainers take shapes and types from it."""
        book = self._streams.get(stream)
        if book is not None and book.sample is None and not book.broken_off:
            book.sample = sample
        return {}

    def source_alive(self, source: str, rows: int | None = None, pulls: int = 0) -> Json:
        """Record a source's heartbeat; reply whether to continue, the stream's number of pulls, and the lost readers.

        Args:
            source: the source.
            rows: number of rows of its partition; None until Spark has delivered the last one.
            pulls: number of pulls so far.
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
        """Return whether a source still serves: it was not served to its end, and not given up as lost."""
        if source not in self._by_id:
            return {"there": False}
        book, feed_pass, entry = self._by_id[source]
        over = book.closed or feed_pass.abandoned or entry.lost or entry.partition in feed_pass.done
        return {"there": not over and self._clock() - entry.heard <= SOURCE_SILENCE_S}

    def source_failed(self, source: str) -> Json:
        """Record that a source has ended too early."""
        if source in self._by_id:
            self._by_id[source][2].lost = True
        return {}

    def partition_done(self, stream: str, index: int, partition: int, rows: int, stopped: str = "") -> Json:
        """Record that all rows of a partition were served and acknowledged.

        Args:
            stream: name of the stream.
            index: number of the pass.
            partition: the partition.
            rows: its number of rows.
            stopped: the source, if it was stopped with rows left. In that case the partition is not done, and the reply
                says whether another attempt must serve it.
        """
        if stream not in self._streams:
            return {"retry": False}
        book = self._streams[stream]
        feed_pass = book.passes[index]
        if stopped:
            wanted = not book.closed and not feed_pass.abandoned
            return {"retry": wanted and stopped in self._by_id and self._by_id[stopped][2].lost}
        feed_pass.done[partition] = rows
        return {"retry": False}

    # --- calls of readers -------------------------------------------------------------------------

    def describe(self, stream: str) -> Json:
        """Return the stream's description and its first row, or ``wait``."""
        book = self._streams.get(stream)
        if book is None:
            return {"status": "wait"}
        needs_sample = bool(book.description.get("needs_sample"))
        if needs_sample and book.sample is None and not book.closed:
            book.awaited = max(book.awaited, 1)
            return {"status": "wait", "open_ended": bool(book.description.get("open_ended"))}
        if needs_sample and book.sample is None and book.broken_off:
            return {"status": "broken_off", "why": book.broken_off}
        return {"status": "ok", "description": book.description, "sample": book.sample}

    def lease(
        self,
        stream: str,
        index: int,
        rank: int,
        host: str,
        held: list[str],
        after: int,
        found: list[int] | None = None,
    ) -> Json:
        """Lease a source to a reader. Other replies: ``wait``, ``stored``, or ``end`` when the pass has no more rows.

        The reply also says how to ``keep`` the rows. With ``look`` it has the files to look for (``offer``), with
        ``stored`` the file to read (``given``), and whether in another order (``mixed``) than they were stored in.

        Args:
            stream: name of the stream.
            index: number of the pass.
            rank: the reader.
            host: the reader's host. Sources on the same host come first, then those with the fewest readers.
            held: sources that the reader has already leased.
            after: for an ordered stream, the last partition the reader has finished; -1 at the start.
            found: numbers of the offered files that the reader can read; None if it has not looked.
        """
        if stream not in self._streams:
            return {"status": "closed", "passes": index + 1}
        book = self._streams[stream]
        book.awaited = max(book.awaited, index + 1)
        if index >= len(book.passes):
            return self._closed(book) if book.closed else {"status": "wait", "passes": len(book.passes)}
        if book.closed or rank in self._lost:
            return self._closed(book)
        feed_pass = book.passes[index]
        if feed_pass.given:
            return {"status": "stored", "given": feed_pass.given[rank], "mixed": not feed_pass.found}
        if feed_pass.offer:
            if found is not None:
                feed_pass.found[rank] = found
            if rank not in feed_pass.found:
                offer = {str(number): path for number, path in feed_pass.offer.items()}
                return {"status": "look", "offer": offer}
            return {"status": "wait"}
        keep = None if feed_pass.keep is None else asdict(feed_pass.keep)
        # A lease that the reader does not hold was in a reply that it never received.
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
                "keep": keep,
            }
        is_served = feed_pass.state in (PassState.SERVED, PassState.OVER)
        return {"status": "end" if is_served else "wait", "keep": keep}

    @classmethod
    def _closed(cls, book: Stream) -> Json:
        return {"status": "closed", "passes": len(book.passes), **cls._why(book)}

    @staticmethod
    def _why(book: Stream | None) -> Json:
        """Return why the driver feeds no more of a stream, if it has broken it off."""
        return {"broken_off": book.broken_off} if book is not None and book.broken_off else {}

    def release(self, source: str, rank: int, delivered: list[list[int]], gone: bool) -> Json:
        """End a lease: record what the reader received of the source, and whether the source was lost."""
        if source not in self._by_id:
            return {}  # The pass was forgotten; the reply to the same call was lost.
        _, feed_pass, entry = self._by_id[source]
        if rank not in self._lost:
            readers = feed_pass.delivered.setdefault(entry.partition, {})
            readers.setdefault(rank, Ranges()).add_all(delivered)
        entry.readers.discard(rank)
        if gone and entry.partition not in feed_pass.done:
            entry.lost = True
        return {}

    def agree(
        self, stream: str, index: int, rank: int, steps: int, ended: bool, rows: int, stored: str = ""
    ) -> Json:
        """Announce the number of steps of which a reader is sure; return the number of steps the pass will have.

        Readers call this while they are blocked and when they have ended. ``steps`` of the reply is a number that every
        reader must reach; it is final once all have ended. A call whose reply was late is repeated, so an old call may
        arrive after later ones; it does not reduce a reader's steps.
        """
        if rank in self._lost or stream not in self._streams:
            return {"steps": steps, "final": True, "closed": True}
        feed_pass = self._streams[stream].passes[index]
        feed_pass.announced[rank] = max(steps, feed_pass.announced.get(rank, 0))
        if ended:
            feed_pass.ended[rank] = max(rows, feed_pass.ended.get(rank, 0))
        if stored:
            feed_pass.stored[rank] = stored
        book = self._streams[stream]
        return {
            "steps": max(feed_pass.announced.values()),
            "final": self._all_ended(book, feed_pass),
            "closed": book.closed and not feed_pass.broken_off,
            **(self._why(book) if feed_pass.broken_off else {}),
        }

    def has_pass(self, stream: str, index: int) -> bool:
        """Return whether a pass was started."""
        return stream in self._streams and index < len(self._streams[stream].passes)

    def describe_rows(self, stream: str) -> Json:
        """Return the stream's description, with or without its first row."""
        return self._streams[stream].description

    def most_rows(self, stream: str) -> int:
        """Return the largest number of rows that one reader had in all passes; 0 after a reader has left."""
        book = self._streams.get(stream)
        if book is None or book.left:
            return 0
        totals = Counter[int](book.totals)
        for feed_pass in book.passes[book.num_forgotten :]:
            totals.update(feed_pass.ended)
        return max(totals.values(), default=0)

    def cut_short(self, stream: str, index: int, rank: int, rows: int) -> None:
        """Record that a reader wants no more rows of a pass than it has."""
        if self.has_pass(stream, index) and rank not in self._streams[stream].passes[index].ended:
            feed_pass = self._streams[stream].passes[index]
            feed_pass.ended[rank], feed_pass.cut = rows, True

    def leave(self, rank: int, stream: str | None = None) -> Json:
        """Record that a reader wants no more rows of a stream (None: of any stream); the other readers get the rest."""
        for name, book in self._streams.items():
            if stream in (None, name) and rank < book.num_readers:
                book.left.add(rank)
        return {}

    # --- readers that are lost ---------------------------------------------------------------------

    def lose_reader(self, rank: int) -> None:
        """Forget what a lost reader received in unfinished passes: nobody knows on which rows it trained.

        A new reader, with its own number, takes its place. It and the other readers read the rows that are served
        again.
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
        """Let the coordinator of the readers' steps end a pass; return which of its readers were lost meanwhile.

        The reply also says why no more rows will follow, if the driver has broken off the pass.

        Args:
            stream: name of the stream.
            index: number of the pass.
            seen: readers whose steps have returned.
            ended: readers that have no more rows. The pass is over if none of these is lost.
        """
        if self.has_pass(stream, index) and self._lost.isdisjoint(ended):
            self._streams[stream].passes[index].state = PassState.OVER
        goes_on = self.has_pass(stream, index) and not self._streams[stream].passes[index].broken_off
        return {
            "lost": sorted(self._lost.intersection(seen)),
            **({} if goes_on else self._why(self._streams.get(stream))),
        }

    def is_over(self, stream: str, index: int) -> bool:
        """Return whether the coordinator has ended a pass; True if the stream has no coordinator."""
        book = self._streams[stream]
        return book.passes[index].state is PassState.OVER or not book.coordinated

    def lacks_rows(self, stream: str, index: int) -> bool:
        """Return whether a reader was lost and `reopen` has not yet looked for its rows."""
        return self._streams[stream].passes[index].state is PassState.LACKS_ROWS

    def is_settled(self, stream: str, index: int) -> bool:
        """Return whether every reader that is up has reported what it received from the sources so far."""
        return not any(source.readers for source in self._streams[stream].passes[index].sources.values())

    def reopen(self, stream: str, index: int) -> bool:
        """After all partitions were served, open those with missing rows again; return whether there are any.

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
        """Return the number of rows in all partitions before this one; a reader asks only after their end."""
        known = feed_pass.counted | feed_pass.done
        return sum(known[earlier] for earlier in range(partition))

    @staticmethod
    def _next_in_order(feed_pass: FeedPass, after: int) -> Source | None:
        partition = after + 1
        while partition in feed_pass.done:
            partition += 1
        source = feed_pass.sources.get(partition)
        return None if source is None or source.lost else source


def matched(found: Mapping[int, Sequence[int]]) -> dict[int, int]:
    """Return reader -> file, for as many readers as possible, no file twice.

    Augmenting paths, for example in Ahuja, Magnanti and Orlin, Network Flows, 1993, section 12.3.

    Args:
        found: reader -> the files that it can read.
    """
    readers: dict[int, int] = {}

    def take(reader: int, tried: set[int]) -> bool:
        for file in found[reader]:
            if file not in tried:
                tried.add(file)
                if file not in readers or take(readers[file], tried):
                    readers[file] = reader
                    return True
        return False

    for reader in found:
        take(reader, set())
    return {reader: file for file, reader in readers.items()}
