"""The user's function: what kind it is, and how it travels to the trainers. Runs on the driver."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pyspark import cloudpickle

from tfspark.cluster.context import Hooks
from tfspark.errors import ConfigError


def wants_context(main_fun: Callable[..., Any]) -> bool:
    """Tell ``main_fun(args, ctx)`` from ``build_model(args)`` and ``build_model()``.

    Raises:
        ConfigError: the function takes neither none, one nor two arguments.
    """
    if not callable(main_fun):
        raise ConfigError(
            f"expected a function main_fun(args, ctx) or build_model(params), got {type(main_fun).__name__}"
        )
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(main_fun).parameters.values()
    required = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    if len(required) > 2:
        names = ", ".join(p.name for p in required)
        raise ConfigError(
            f"expected main_fun(args, ctx), build_model(params) or build_model(), got a function of ({names})"
        )
    return len(required) == 2


def pickled(main_fun: Callable[..., Any], args: Any, hooks: Hooks) -> bytes:
    """Pickle the user's function for the trainers.

    Raises:
        ConfigError: it, its arguments or something it refers to cannot be pickled.
    """
    try:
        code: bytes = cloudpickle.dumps((main_fun, args, hooks))
    except Exception as error:
        raise ConfigError(
            f"expected a function and arguments that can be pickled, got {error}; create models, sessions and "
            "files inside the function instead of referring to ones of the driver"
        ) from error
    return code
