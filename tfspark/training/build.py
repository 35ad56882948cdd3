"""Check the model of a ``build_model`` function, set its optimizer, compute its checksum. Runs in the trainer."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import keras
import numpy as np
import numpy.typing as npt
from keras.src.backend.common import global_state

from tfspark.errors import ConfigError
from tfspark.protocol.settings import TrainerSettings
from tfspark.protocol.values import Json

BuildModel = Callable[..., keras.Model]


def call_build_model(build_model: BuildModel, params: object) -> keras.Model:
    """Call the user's function and check what it returns.

    Raises:
        ConfigError: it did not return a compiled model.
    """
    takes_params = len(inspect.signature(build_model).parameters) > 0
    model = build_model(params) if takes_params else build_model()
    name = getattr(build_model, "__name__", "build_model")
    if not isinstance(model, keras.Model):
        raise ConfigError(
            f"expected {name} to return a compiled keras.Model, it returned {type(model).__name__}; end it with "
            "'return model'"
        )
    if not model.compiled:
        raise ConfigError(
            f"expected {name} to return a compiled keras.Model, the model is not compiled; call "
            "model.compile(optimizer=..., loss=..., metrics=[...]) before returning it"
        )
    return model


@contextmanager
def named_as_alone() -> Iterator[None]:
    """Give models that are built in the block the names they have when nothing else is built in this process.

    Keras numbers its names: a second copy of a model has the metric ``mean_io_u_1`` instead of ``mean_io_u``.
    """
    counts = global_state.get_global_attribute("object_name_uids") or {}
    before = defaultdict(int, counts)
    yield
    global_state.set_global_attribute("object_name_uids", before)


def check_synchronous(model: keras.Model) -> None:
    """Reject settings that synchronous steps do not support.

    Raises:
        ConfigError: the model was compiled with such a setting.
    """
    is_sparse = any(getattr(part, "sparse", False) for part in getattr(model, "inputs", None) or [])
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    norms = [name for name in ("clipnorm", "global_clipnorm") if getattr(optimizer, name, None)]
    if is_sparse and norms and model.distribute_strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            f"expected no {norms[0]} with sparse inputs under several workers: the gradient comes in parts of each "
            "worker's rows, whose norm is not that of their sum; feed dense rows, or use clipvalue"
        )
    if model.jit_compile is True:
        raise ConfigError(
            "expected a model compiled without jit_compile=True: XLA compiles neither the exchange of gradients on CPUs"
            " nor batches with padding rows; leave it out"
        )


def set_optimizer(model: keras.Model, settings: TrainerSettings) -> None:
    """Replace the model's optimizer or its learning rate if the settings say so.

    Raises:
        ConfigError: Keras does not know the optimizer or one of its arguments.
    """
    wanted, rate = settings.optimizer, settings.learning_rate
    if wanted is not None:
        config = dict(wanted)
        name = config.pop("name")
        try:
            optimizer = keras.optimizers.get({"class_name": name, "config": config})
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"expected a Keras optimizer and its arguments, got {wanted}: {error}"
            ) from None
        _use_optimizer(model, optimizer)
    if rate is not None:
        model.optimizer.learning_rate = rate
    if settings.schedule is not None:
        _set_schedule(model, _make_schedule(dict(settings.schedule)))


def _set_schedule(model: keras.Model, schedule: keras.optimizers.schedules.LearningRateSchedule) -> None:
    """Let the learning rate of a model's optimizer follow a schedule.

    The model gets a new optimizer of the same kind. Assigning a schedule to an optimizer whose rate is a variable
    removes this variable from its list, and TensorFlow refuses to save such a list.
    """
    old = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # A loss-scaling optimizer wraps it.
    _use_optimizer(model, type(old).from_config({**old.get_config(), "learning_rate": schedule}))


def _use_optimizer(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compile a model again with another optimizer.

    Raises:
        ConfigError: the model overrides `compile`, so this is not possible.
    """
    before = model.optimizer
    compiled = {**model.get_compile_config(), "optimizer": keras.optimizers.serialize(optimizer)}
    with warnings.catch_warnings(action="ignore"):  # Keras warns about what it does not support.
        model.compile_from_config(compiled)
    if model.optimizer is before:
        raise ConfigError(
            f"expected a model that can be compiled with another optimizer or schedule, {type(model).__name__} has a "
            "compile() of its own; give it compile_from_config(), too, or choose the optimizer in build_model"
        )


def _make_schedule(wanted: Json) -> keras.optimizers.schedules.LearningRateSchedule:
    """Create a learning rate schedule from its ``name`` and the arguments of its class.

    Raises:
        ConfigError: Keras does not know it or one of its arguments.
    """
    arguments = dict(wanted)
    name = "".join(part.capitalize() for part in str(arguments.pop("name")).split("_"))
    try:
        return getattr(keras.optimizers.schedules, name)(**arguments)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"expected a schedule of keras.optimizers.schedules and its arguments, got {wanted}: {error}"
        ) from None


def set_precision(settings: TrainerSettings) -> None:
    """Set the precision in which models that are built from now on compute."""
    if settings.mixed_precision:
        keras.mixed_precision.set_global_policy(f"mixed_{settings.mixed_precision}")


def copy_optimizer(
    target: keras.Model,
    source: keras.Model,
    values_of: Callable[[Sequence[keras.Variable]], list[npt.NDArray[np.generic]]] | None = None,
) -> None:
    """Copy the state of `source`'s optimizers to `target`, so that a saved model can be trained further.

    A model with its own training step may have more optimizers than the compiled one; it builds them itself.

    Args:
        target: a built model.
        source: a model of the same kind; optimizers that were never used are not copied.
        values_of: returns the values of an optimizer's variables; default: the plain values.
    """
    read = values_of or (lambda variables: [keras.ops.convert_to_numpy(v) for v in variables])
    for name, optimizer in vars(source).items():
        if isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
            copy = getattr(target, name)
            copy.build(target.trainable_variables)  # No effect if it is built already.
            for variable, value in zip(copy.variables, read(optimizer.variables), strict=True):
                variable.assign(value)


def weights_digest(model: keras.Model) -> str:
    """Return a checksum over all weights. It is equal on two workers exactly if their weights are equal."""
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
