"""The user's function: find out its kind, and pickle it for the trainers. Runs on the driver."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

from pyspark import cloudpickle

from tfspark.errors import ConfigError
from tfspark.protocol.settings import Hooks


def is_main_fun(main_fun: Callable[..., object]) -> bool:
    """Return True for ``main_fun(args, ctx)``, False for ``build_model(args)`` and ``build_model()``.

    Raises:
        ConfigError: the function does not take zero, one or two arguments.
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


def registered_beside(main_fun: Callable[..., object]) -> dict[str, object]:
    """Return the objects that the function's module has registered with Keras, by registered name.

    A module that is pickled by value does not run again where it is unpickled, so nothing would be registered there.
    Then the model that the trainer saves could not be loaded.
    """
    if "keras" not in sys.modules:
        return {}
    known = sys.modules["keras"].saving.get_custom_objects()
    module = getattr(main_fun, "__module__", None)
    return {name: value for name, value in known.items() if getattr(value, "__module__", None) == module}


def pickled(main_fun: Callable[..., object], args: object, hooks: Hooks) -> bytes:
    """Pickle the user's function for the trainers.

    Raises:
        ConfigError: the function, its arguments or an object it refers to cannot be pickled.
    """
    try:
        code: bytes = cloudpickle.dumps((main_fun, args, hooks, registered_beside(main_fun)))
    except Exception as error:
        raise ConfigError(
            f"expected a function and arguments that can be pickled, got {error}; create models, sessions and "
            "files inside the function instead of referring to ones of the driver"
        ) from error
    return code
