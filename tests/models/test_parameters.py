"""Parameters of model modules: defaults, values that are accepted, and values that are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from tfspark.parameters import (
    above_0,
    at_least_0,
    choice,
    flag,
    fraction,
    is_number,
    is_text,
    named,
    param,
    read_params,
    several,
    shape,
    whole,
)


@dataclasses.dataclass(frozen=True)
class Params:
    units: int = whole(32, 1)
    most: int | None = whole(None, 0)
    noise: float = at_least_0(0.0)
    rate: float = above_0(0.1)
    dropout: float = fraction(0.5)
    cell: str = choice("gru", ["gru", "lstm"])
    skip: bool = flag(True)
    size: tuple[int, ...] | None = shape(None, "[height, width]", 2)
    words: tuple[str, ...] = several((), "a list of words", is_text)
    means: Mapping[str, float] = named("columns, each with a number", is_number)
    even: int = param(2, "an even number", lambda value: value % 2 == 0)


def test_read_params_when_nothing_is_given_has_the_defaults() -> None:
    assert read_params(Params, {}) == Params()
    assert Params().means == {}


def test_read_params_when_values_are_in_range_takes_them_and_turns_lists_into_tuples() -> None:
    given = {
        "units": 1,
        "most": None,
        "noise": 0,
        "dropout": 0,
        "size": [3, 4],
        "words": ["a"],
        "means": {"x": 1},
    }
    found = read_params(Params, given)
    assert (found.units, found.most, found.size, found.words) == (1, None, (3, 4), ("a",))
    assert found.means == {"x": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"units": 0}, "units must be a whole number, 1 or more. Received: units=0"),
        ({"units": True}, "units must be a whole number, 1 or more. Received: units=True"),
        ({"units": None}, "units must be a whole number, 1 or more. Received: units=None"),
        ({"units": 1.0}, "units must be a whole number, 1 or more. Received: units=1.0"),
        ({"noise": -0.1}, "noise must be a number, 0 or more. Received: noise=-0.1"),
        ({"noise": False}, "noise must be a number, 0 or more. Received: noise=False"),
        ({"rate": 0}, "rate must be a number above 0. Received: rate=0"),
        ({"dropout": 1.0}, "dropout must be a number in [0, 1). Received: dropout=1.0"),
        ({"cell": "rnn"}, "cell must be one of gru, lstm. Received: cell='rnn'"),
        ({"cell": ["gru"]}, "cell must be one of gru, lstm. Received: cell=['gru']"),
        ({"skip": 1}, "skip must be true or false. Received: skip=1"),
        ({"size": [3]}, "size must be [height, width]. Received: size=[3]"),
        ({"size": [3, 0]}, "size must be [height, width]. Received: size=[3, 0]"),
        ({"words": "text"}, "words must be a list of words. Received: words='text'"),
        ({"words": ["a", 1]}, "words must be a list of words. Received: words=['a', 1]"),
        ({"means": {1: 1}}, "means must be columns, each with a number. Received: means={1: 1}"),
        ({"means": {"x": "1"}}, "means must be columns, each with a number. Received: means={'x': '1'}"),
        ({"even": 3}, "even must be an even number. Received: even=3"),
        ({"unit": 3}, "unknown model parameter 'unit': did you mean 'units'?"),
        (
            {"unit": 3, "sell": 1},
            "did you mean 'units'?; unknown model parameter 'sell': did you mean 'cell'?",
        ),
        ({"zzz": 3}, "unknown model parameter 'zzz': known are units, most, noise, rate"),
    ],
)
def test_read_params_when_a_value_is_wrong_says_what_it_must_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared
        read_params(Params, given)
    assert message in str(caught.value)
