"""The settings that the driver sends to every trainer of a cluster, in addition to the user's function."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tfspark.errors import ConfigError
from tfspark.protocol.values import Json, plain

Precision = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class Hooks:
    """Optional functions of a model module, used by tfspark's own loop.

    Attributes:
        features: ``features(batch)``: converts column name -> tensor ``(B, *shape)`` to the input of the model.
        callbacks: ``callbacks(params)``: returns more Keras callbacks, the same on every worker.
        export: ``export(model, directory)``: writes more files of the trained model beside the usual formats.
        draw: ``draw(model, x, y, directory)``: writes pictures from some rows of the last evaluation.
        draw_epoch: ``draw_epoch(model, epoch, directory)``: writes pictures after each epoch, counted from 1.
    """

    features: Callable[[Any], Any] | None = None
    callbacks: Callable[[Any], Any] | None = None
    export: Callable[[Any, str], None] | None = None
    draw: Callable[[Any, Any, Any, str], None] | None = None
    draw_epoch: Callable[[Any, int, str], None] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Plain values for the trainers, sent as JSON. `TFCluster.run` describes those that have the same names.

    Attributes:
        runs_main_fun: whether the user's function is a ``main_fun(args, ctx)``, not a ``build_model``.
        saves_state: whether the training state is saved, so that training can continue after a loss.
        seed: see `TFCluster.run`, as for all attributes that are not listed here.
        feed_timeout_s: ``feed_timeout``, seconds.
        heartbeat_timeout_s: ``heartbeat_timeout``, seconds.
        queues: names of the queues that a `main_fun` reads.
        default_fs: Hadoop's default file system, as Spark's driver has it.
        working_dir: working directory of Spark's driver.
        generation: number of models that were trained on the cluster before this one.
    """

    runs_main_fun: bool
    saves_state: bool = False
    seed: int = 0
    feed_timeout_s: float = 600.0
    heartbeat_timeout_s: float = 30.0
    optimizer: Mapping[str, Any] | None = None
    learning_rate: float | None = None
    schedule: Mapping[str, Any] | None = None
    mixed_precision: Precision | None = None
    callbacks: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_dir: str | None = None
    checkpoint_every_epochs: int = 0
    checkpoint_every_steps: int = 0
    checkpoint_every_seconds: float = 0.0
    master_node: str | None = None
    queues: Sequence[str] = ()
    default_fs: str = ""
    working_dir: str = ""
    generation: int = 0

    def as_plain(self) -> TrainerSettings:
        """Return the same settings as plain JSON values: NumPy numbers become Python numbers.

        Raises:
            ConfigError: a value cannot be written as JSON; the message names it.
        """
        names = [setting.name for setting in dataclasses.fields(self)]
        return TrainerSettings(
            **{name: as_plain(name.removesuffix("_s"), getattr(self, name)) for name in names}
        )

    def to_json(self) -> Json:
        """Return a form that can be written as JSON."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Json) -> TrainerSettings:
        """Create the settings from the result of `to_json`."""
        return cls(**data)


def as_plain(name: str, value: Any) -> Any:
    """Return a value as plain JSON: NumPy numbers become Python numbers.

    Raises:
        ConfigError: it cannot be written as JSON; the message has its name.
    """
    try:
        return json.loads(json.dumps(value, default=plain))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}; give plain values: trainers get them as JSON") from None
