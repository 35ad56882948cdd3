"""When the state is saved at intervals of time: what workers decide when they meet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.clock import Clock

from tfspark.cluster.state.save_schedule import APART_S, SaveSchedule


def saved_at(every_s: float, step_s: float, lasts_s: float) -> list[float]:
    """Let a worker train for `lasts_s`; return when it saves, in seconds from the start."""
    clock, saved, number, steps = Clock(), list[float](), 0, 1
    meetings = SaveSchedule(every_s, clock)
    while clock.now - 100.0 < lasts_s:
        clock.now += steps * step_s
        decision = meetings.arrive(number, 0, 1)
        assert decision is not None
        number, steps = number + 1, decision["steps"]
        if decision["save"]:
            saved.append(clock.now - 100.0)
    return saved


@given(st.floats(0.001, 3.0), st.floats(1.0, 60.0))
def test_meetings_save_at_the_interval_to_within_the_time_between_two_meetings(
    step_s: float, every_s: float
) -> None:
    saved = saved_at(every_s, step_s, 10 * every_s)
    gaps = [b - a for a, b in zip([0.0, *saved], saved, strict=False)]
    apart_s = max(min(APART_S, every_s / 4), step_s)
    assert saved
    assert all(abs(gap - every_s) <= 1.5 * apart_s + step_s for gap in gaps), gaps


def test_meetings_adapt_to_steps_that_become_slower() -> None:
    clock = Clock()
    meetings = SaveSchedule(60.0, clock)
    steps, number = 1, 0
    for step_s in [0.001] * 20 + [1.0] * 3:
        clock.now += steps * step_s
        decision = meetings.arrive(number, 0, 1)
        assert decision is not None
        steps, number = decision["steps"], number + 1
    assert steps * 1.0 <= 2 * APART_S


def test_meetings_without_an_interval_save_only_when_asked_and_only_once() -> None:
    clock = Clock()
    meetings = SaveSchedule(0.0, clock)
    saves = []
    for number in range(6):
        if number == 3:
            meetings.save_soon()
        clock.now += 1000.0
        decision = meetings.arrive(number, 0, 1)
        assert decision is not None
        saves.append(decision["save"])
    assert saves == [False, False, False, True, False, False]


@given(st.permutations([0, 1, 2, 0, 1, 2, 2]))
def test_workers_that_meet_get_the_same_decision_in_any_order_and_if_they_ask_again(order: list[int]) -> None:
    meetings = SaveSchedule(1.0, Clock())
    answers = [(rank, meetings.arrive(0, rank, 3)) for rank in order]
    came: set[int] = set()
    for rank, answer in answers:
        came.add(rank)
        assert (answer is None) == (len(came) < 3)
    assert len({str(answer) for _, answer in answers if answer is not None}) == 1
    assert meetings.arrive(0, 1, 3) == answers[-1][1]
