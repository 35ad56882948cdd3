"""The training state as arrays: everything that must be restored to continue as if never interrupted.

Runs in the trainer. A node saves what is specific to it: moving statistics, seeds of random layers, and metrics within
an epoch. The chief also saves the weights and optimizers, which are the same on all nodes. Each node reads and writes
its own component of a variable, without communication.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfspark.errors import ConfigError
from tfspark.protocol.values import Json
from tfspark.training.metric_states import is_of_rows_alone, watched_metrics

Arrays = dict[str, npt.NDArray[Any]]
METRICS = ("own/metrics", "own/metrics of all")
"""Groups of metric states: those that are sums over a node's rows, and those that every node has alike."""


def capture(model: keras.Model, is_chief: bool) -> Arrays:
    """Return a node's arrays: the chief's are complete, those of another node are only its own.

    Names are ``shared/<group>/<number>`` and ``own/<group>/<number>``.
    """
    groups = {**_own(model), **(_shared(model) if is_chief else {})}
    return {
        f"{group}/{number:04d}": np.array(_local(variable).numpy())
        for group, variables in groups.items()
        for number, variable in enumerate(variables)
    }


def restore(model: keras.Model, shared: Arrays, own: Arrays) -> None:
    """Put the arrays back into a built model.

    Args:
        model: built in the same way as when the state was saved.
        shared: the chief's arrays.
        own: this node's arrays; empty if the node did not exist when the state was saved.

    Raises:
        ConfigError: the arrays belong to another model.
    """
    for group, variables in _shared(model).items():
        _assign(group, variables, shared)
    for group, variables in _own(model).items():
        if group not in METRICS:
            _assign(group, variables, own or shared)


def learning_rates(model: keras.Model) -> dict[str, float]:
    """Return optimizer name in the model -> learning rate, for optimizers whose rate is a number."""
    return {
        name: float(rate.numpy())
        for name, optimizer in optimizers_of(model).items()
        if isinstance(rate := _rate_of(optimizer), keras.Variable)
    }


def keep_rates_that_were_changed(
    model: keras.Model, asked: dict[str, float], before: dict[str, float]
) -> None:
    """Set the learning rates that this run asks for, where they differ from those of the resumed run.

    Where both runs ask for the same rate, the checkpoint's rate stays, because a callback may have lowered it.
    """
    for name, rate in asked.items():
        if name in before and before[name] != rate:
            _local(_rate_of(optimizers_of(model)[name])).assign(rate)


def optimizers_of(model: keras.Model) -> dict[str, keras.optimizers.Optimizer]:
    """Return a model's optimizers by their names in it: that of ``compile``, and those of its own training step."""
    found = {n: value for n, value in vars(model).items() if isinstance(value, keras.optimizers.Optimizer)}
    return dict(sorted(found.items()))


def _rate_of(
    optimizer: keras.optimizers.Optimizer,
) -> keras.Variable | keras.optimizers.schedules.LearningRateSchedule:
    """Return the variable or schedule of the learning rate; a loss-scaling optimizer wraps the one that has it."""
    return getattr(optimizer, "inner_optimizer", optimizer)._learning_rate


def restore_metrics(model: keras.Model, own: Arrays) -> None:
    """Restore the metrics of an interrupted epoch."""
    for group in METRICS:
        _assign(group, _own(model)[group], own)


def with_metrics_of(own: Arrays, gone: Arrays) -> Arrays:
    """Return a node's arrays with the metric states of a removed node added, if they are sums over its rows."""
    return {
        name: value + gone[name] if name.startswith("own/metrics/") else value for name, value in own.items()
    }


def describe(model: keras.Model) -> list[Json]:
    """Return path, shape and type of every weight; a checkpoint fits models with the same list."""
    return [{"path": v.path, "shape": list(v.shape), "dtype": str(v.dtype)} for v in model.weights]


def _own(model: keras.Model) -> dict[str, list[keras.Variable]]:
    metrics = list(model.metrics_variables)
    known = set(map(id, metrics))
    kept = [variable for variable in model.non_trainable_variables if id(variable) not in known]
    of_all = {
        id(variable)
        for metric in watched_metrics(model)
        if not is_of_rows_alone(metric)
        for variable in metric.variables
    }
    return {
        "own/state": kept,
        "own/metrics": [variable for variable in metrics if id(variable) not in of_all],
        "own/metrics of all": [variable for variable in metrics if id(variable) in of_all],
    }


def _shared(model: keras.Model) -> dict[str, list[keras.Variable]]:
    optimizers = {
        f"shared/optimizer {name}": list(value.variables) for name, value in optimizers_of(model).items()
    }
    return {"shared/weights": list(model.trainable_variables), **optimizers}


def _local(variable: keras.Variable) -> tf.Variable:
    """Return this node's component of a variable."""
    value = variable.value
    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value


def _assign(group: str, variables: list[keras.Variable], arrays: Arrays) -> None:
    values = [arrays[name] for name in sorted(arrays) if name.rpartition("/")[0] == group]
    shapes, found = [tuple(v.shape) for v in variables], [value.shape for value in values]
    if shapes != found:
        raise ConfigError(
            f"expected a checkpoint of this model, whose {group} has shapes {shapes}, got {found}; resume with the "
            "model module and the parameters the checkpoint was made with"
        )
    for variable, value in zip(variables, values, strict=True):
        _local(variable).assign(value)


# --- callbacks -------------------------------------------------------------------------------------

WATCHED = ("monitor", "mode")
"""Attributes that say what a callback counts."""


def settings_of(callbacks: list[keras.callbacks.Callback]) -> Json:
    """Return the plain attributes of callbacks before training starts: settings, and counts that are zero."""
    return {key: _plain_of(callback) for key, callback in _by_kind(callbacks).items()}


def capture_callbacks(
    callbacks: list[keras.callbacks.Callback], settings: Json | None = None
) -> tuple[Json, Arrays]:
    """Return what callbacks count and remember: plain attributes, and lists of arrays such as the best weights.

    Attributes with a leading underscore are left out. So are attributes that have not changed since the beginning,
    because a resumed run may ask for other settings.

    Args:
        callbacks: the callbacks.
        settings: result of `settings_of` when the training began; None: unknown, return all attributes.
    """
    plain, arrays = Json(), Arrays()
    for key, callback in _by_kind(callbacks).items():
        kept = {name: value for name, value in vars(callback).items() if not name.startswith("_")}
        before, now = (settings or {}).get(key, {}), _plain_of(callback)
        plain[key] = {
            n: value for n, value in now.items() if n in WATCHED or n not in before or before[n] != value
        }
        for name, value in kept.items():
            if isinstance(value, list) and value and all(isinstance(each, np.ndarray) for each in value):
                arrays |= {f"callback/{key}/{name}/{i:04d}": each for i, each in enumerate(value)}
    return plain, arrays


def restore_callbacks(callbacks: list[keras.callbacks.Callback], plain: Json, arrays: Arrays) -> None:
    """Restore the result of `capture_callbacks`: the first callback of a kind gets the values of the first, and so on.

    Callbacks without saved values do not change, nor do those that watch another metric now: the best value of one
    metric says nothing about another. All nodes get the chief's values, and the chief has additional callbacks.
    """
    for key, callback in _by_kind(callbacks).items():
        kept = plain.get(key, {})
        if any(name in kept and kept[name] != getattr(callback, name, kept[name]) for name in WATCHED):
            continue
        for name, value in kept.items():
            setattr(callback, name, value)
        lists: dict[str, list[npt.NDArray[np.generic]]] = {}
        for array in sorted(array for array in arrays if array.startswith(f"callback/{key}/")):
            lists.setdefault(array.split("/")[2], []).append(arrays[array])
        for name, value in lists.items():
            setattr(callback, name, value)


def _by_kind(callbacks: list[keras.callbacks.Callback]) -> dict[str, keras.callbacks.Callback]:
    counts, keyed = Counter[str](), {}
    for callback in callbacks:
        kind = type(callback).__qualname__
        keyed[f"{kind} {counts[kind]}"] = callback
        counts[kind] += 1
    return keyed


def _plain_of(callback: keras.callbacks.Callback) -> Json:
    kept = {name: value for name, value in vars(callback).items() if not name.startswith("_")}
    return {name: _plain(value) for name, value in kept.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | np.number)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.number) else value


# --- files -----------------------------------------------------------------------------------------


def write_part(path: Path, arrays: Arrays, facts: Json) -> None:
    """Write arrays and facts into one ``.npz`` file; it can be read without unpickling."""
    members: dict[str, Any] = {**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    np.savez(path, **members)


def read_part(path: Path) -> tuple[Arrays, Json]:
    """Read a file of `write_part`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "facts"}
        facts: Json = json.loads(file["facts"].tobytes())
    return arrays, facts
