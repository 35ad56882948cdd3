"""Parameters of a model module: declared once, each with its range, and checked when they are read.

A model module declares the fields of a frozen dataclass, and `build_model(params)` reads them:

    @dataclasses.dataclass(frozen=True)
    class Params:
        units: int = whole(32, least=1)
        dropout: float = fraction(0.5)

    p = read_params(Params, {"units": 64})

Used on the driver and in trainers. This file needs only the standard library: copy it together with a model module to
use the module where tfspark is not installed.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Params = TypeVar("Params")
Check = Callable[[Any], bool]


def param(default: Any, expected: str, holds: Check) -> Any:
    """Declare a parameter of any kind.

    Args:
        default: its value if none is given; it is not checked.
        expected: description of valid values, which completes the sentence "... must be".
        holds: returns whether a value is valid.
    """
    return dataclasses.field(default=default, metadata={"expected": expected, "holds": holds})


def whole(default: int | None, least: int) -> Any:
    """Declare a whole number with a minimum; None is valid only if it is the default."""
    return param(
        default,
        f"a whole number, {least} or more",
        lambda value: is_whole(value, least) or (value is None and default is None),
    )


def at_least_0(default: float) -> Any:
    """Declare a number that is 0 or more."""
    return param(default, "a number, 0 or more", lambda value: is_number(value) and value >= 0)


def above_0(default: float) -> Any:
    """Declare a number above 0."""
    return param(default, "a number above 0", lambda value: is_number(value) and value > 0)


def fraction(default: float) -> Any:
    """Declare a number in [0, 1)."""
    return param(default, "a number in [0, 1)", lambda value: is_number(value) and 0 <= value < 1)


def choice(default: str, options: Sequence[str]) -> Any:
    """Declare one of several words."""
    return param(default, f"one of {', '.join(options)}", lambda value: value in list(options))


def flag(default: bool) -> Any:
    """Declare a boolean."""
    return param(default, "true or false", lambda value: isinstance(value, bool))


def shape(default: tuple[int, ...] | None, expected: str, length: int) -> Any:
    """Declare a list of `length` sizes; None is valid only if it is the default."""
    return param(
        default,
        expected,
        lambda value: (value is None and default is None) or (are(value, is_size) and len(value) == length),
    )


def several(default: tuple[Any, ...], expected: str, holds: Check) -> Any:
    """Declare a list; `holds` must be true for each value."""
    return param(default, expected, lambda values: are(values, holds))


def named(expected: str, holds: Check) -> Any:
    """Declare a dict from column names to values; empty by default. `holds` must be true for each value."""
    return dataclasses.field(
        default_factory=dict, metadata={"expected": expected, "holds": lambda value: _is_named(value, holds)}
    )


def read_params(known: type[Params], params: Mapping[str, Any]) -> Params:
    """Check `params` and fill in the defaults; a list becomes a tuple.

    Raises:
        ValueError: a name is unknown (the message has the most similar one), or a value is out of its range.
    """
    fields = {field.name: field for field in dataclasses.fields(known)}  # type: ignore[arg-type]
    if unknown := [_unknown(name, list(fields)) for name in params if name not in fields]:
        raise ValueError("; ".join(unknown))
    for name, value in params.items():
        if not fields[name].metadata["holds"](value):
            raise ValueError(
                f"{name} must be {fields[name].metadata['expected']}. Received: {name}={value!r}"
            )
    return known(**{name: tuple(v) if isinstance(v, list) else v for name, v in params.items()})


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number, not less than `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_size(value: object) -> bool:
    """Whether a value is a whole number above 0."""
    return is_whole(value, 1)


def is_number(value: object) -> bool:
    """Whether a value is a number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_above_0(value: object) -> bool:
    """Whether a value is a number above 0."""
    return is_number(value) and value > 0  # type: ignore[operator]


def is_text(value: object) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def are(values: object, holds: Check) -> bool:
    """Whether a value is a list or a tuple, and `holds` is true for each item."""
    return isinstance(values, list | tuple) and all(map(holds, values))


def _is_named(values: object, holds: Check) -> bool:
    return isinstance(values, Mapping) and all(map(is_text, values)) and all(map(holds, values.values()))


def _unknown(name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown model parameter {name!r}: {hint}"
