"""The state of offers, partitions that wait for their results, and of readers that leave a stream."""

from __future__ import annotations

from support.clock import Clock

from tfspark.feed.directory import FeedDirectory
from tfspark.feed.offers import Offers
from tfspark.protocol.timing import SOURCE_SILENCE_S


def test_take_gives_each_offer_to_one_reader_and_prefers_offers_of_its_host() -> None:
    offers = Offers(Clock())
    far = offers.offer("train", "grpc://b:1", "b")["offer"]
    near = offers.offer("train", "grpc://a:1", "a")["offer"]

    assert offers.take("other", 0, "a") is None
    assert offers.take("train", 0, "a") == {"status": "partition", "offer": near, "location": "grpc://a:1"}
    assert (offers.take("train", 1, "a") or {})["offer"] == far
    assert offers.take("train", 2, "a") is None
    assert offers.take("train", 0, "a", [near]) is None
    assert (offers.take("train", 0, "a") or {})["offer"] == near, (
        "the reader does not hold its offer: the answer was lost"
    )
    assert offers.alive(near) == {"taken": True, "stop": False, "idle_s": 0.0}


def test_take_does_not_give_a_silent_offer() -> None:
    clock = Clock()
    offers = Offers(clock)
    silent = offers.offer("train", "grpc://a:1", "a")["offer"]
    clock.now += SOURCE_SILENCE_S

    assert offers.take("train", 0, "a") is None
    assert offers.alive(silent)["idle_s"] == SOURCE_SILENCE_S
    assert (offers.take("train", 0, "a") or {})["offer"] == silent, "it has called again"


def test_drop_of_a_reader_stops_only_the_offers_that_it_had_taken() -> None:
    offers = Offers(Clock())
    names = [offers.offer("train", f"grpc://a:{i}", "a")["offer"] for i in range(2)]
    taken = (offers.take("train", 5, "a") or {})["offer"]

    offers.drop(5)

    assert {name: offers.alive(name)["stop"] for name in names} == {name: name == taken for name in names}
    offers.done(taken)
    assert taken not in offers


def directory_with_a_pass(num_readers: int = 2) -> FeedDirectory:
    directory = FeedDirectory(Clock())
    directory.open_stream("train", {}, num_readers)
    directory.open_pass("train")
    return directory


def test_pass_is_unread_after_all_readers_have_left_before_its_end() -> None:
    directory = directory_with_a_pass()
    directory.cut_short("train", 0, 0, 10)
    directory.leave(0, "train")
    assert not directory.unread("train", 0), "the other reader reads the rest"

    directory.leave(1, "train")

    assert directory.unread("train", 0)
    assert directory.all_left("train")
    assert directory.rows_received("train", 0) == {0: 10, 1: 0}


def test_pass_that_was_read_to_its_end_is_not_unread_after_all_readers_have_left() -> None:
    directory = directory_with_a_pass()
    for rank in (0, 1):
        directory.agree("train", 0, rank, steps=0, ended=True, rows=5)
        directory.cut_short("train", 1, rank, 0)
        directory.leave(rank, "train")

    assert not directory.unread("train", 0)
    assert directory.rows_received("train", 0) == {0: 5, 1: 5}


def test_agreement_is_final_without_a_reader_that_has_left() -> None:
    directory = directory_with_a_pass()
    assert not directory.agree("train", 0, 0, steps=3, ended=True, rows=5)["final"]
    directory.leave(1)
    assert directory.agree("train", 0, 0, steps=3, ended=True, rows=5)["final"]


def test_all_left_is_false_for_a_stream_that_was_never_opened() -> None:
    assert not FeedDirectory(Clock()).all_left("train")
