"""Evaluations beside a training: each has its own deadline, however many are waiting."""

from __future__ import annotations

import threading
import time

import pytest

from tfspark.cluster.sidecar import SidecarEvaluator

EVALUATION_S = 0.1


def test_finish_when_many_evaluations_wait_gives_each_its_time() -> None:
    done = []

    def evaluate(epoch: int, weights: str) -> None:
        time.sleep(EVALUATION_S)
        done.append((epoch, weights))

    side_car = SidecarEvaluator(evaluate)
    for epoch in range(1, 11):
        side_car.weights_arrived(epoch, f"weights-{epoch}")
    assert side_car.finish(6 * EVALUATION_S)
    assert done == [(epoch, f"weights-{epoch}") for epoch in range(1, 11)]


def test_finish_when_an_evaluation_does_not_end_returns_after_its_time() -> None:
    goes_on = threading.Event()
    side_car = SidecarEvaluator(lambda epoch, weights: epoch < 3 or bool(goes_on.wait(60)))
    for epoch in range(1, 4):
        side_car.weights_arrived(epoch, "weights")
    began = time.monotonic()
    assert not side_car.finish(2 * EVALUATION_S)
    assert time.monotonic() - began < 10
    goes_on.set()
    side_car.abandon()


def test_finish_when_an_evaluation_raises_raises_its_error() -> None:
    def fail(epoch: int, weights: str) -> None:
        raise ValueError(f"no luck with {weights} of epoch {epoch}")

    side_car = SidecarEvaluator(fail)
    side_car.weights_arrived(1, "weights")
    with pytest.raises(ValueError, match="no luck with weights of epoch 1"):
        side_car.finish(10.0)
