"""`ClusterOptions`: all arguments of `TFCluster.run`, checked when they are created. Runs on the driver."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tfspark.cluster.inputs import InputMode, default_fs
from tfspark.cluster.state.recovery import MAX_RESTARTS, RESTART_WINDOW_S, Recovery
from tfspark.cluster.state.restarts import RestartBudget
from tfspark.cluster.state.size import REPLACEMENT_TIMEOUT_S, Preserved, Size
from tfspark.driver_python import module_paths
from tfspark.errors import ConfigError
from tfspark.protocol.roles import plan_nodes
from tfspark.protocol.settings import Hooks, Precision, TrainerSettings
from tfspark.protocol.timing import HEARTBEAT_TIMEOUT_S

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

INDEPENDENT_TIMEOUT_S = 600.0
INDEPENDENT_SILENCE_S = 600.0
"""A process of `TFParallel` may hold the interpreter's lock for half of this, for example to unpickle gigabytes."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The arguments of `TFCluster.run`, where they are described, and values that follow from them.

    Attributes:
        runs_main_fun: whether the function takes a context.
        independent: whether the nodes do not know each other, as with `TFParallel`.
        all_at_once: whether no node starts before all have registered.

    Raises:
        ConfigError: an argument is out of range, or two arguments contradict each other.
    """

    runs_main_fun: bool
    num_executors: int = 1
    num_ps: int = 0
    tensorboard: bool = False
    input_mode: InputMode | None = None
    log_dir: str | None = None
    driver_ps_nodes: bool = False
    master_node: str | None = None
    reservation_timeout: float = 600.0
    queues: Sequence[str] = ()
    eval_node: bool = False
    seed: int = 0
    feed_timeout: float = 600.0
    heartbeat_timeout: float = HEARTBEAT_TIMEOUT_S
    optimizer: Mapping[str, object] | None = None
    learning_rate: float | None = None
    schedule: Mapping[str, object] | None = None
    mixed_precision: Precision | None = None
    callbacks: Mapping[str, object] | None = None
    checkpoint_dir: str | None = None
    checkpoint_every_epochs: int = 0
    checkpoint_every_steps: int = 0
    checkpoint_every_seconds: float = 0.0
    max_restarts: int | None = None
    restart_window: float = RESTART_WINDOW_S
    min_executors: int | None = None
    resize_keeps: Preserved = "global_batch"
    replacement_timeout: float = REPLACEMENT_TIMEOUT_S
    resume: str | None = None
    tls: bool = False
    allow_plaintext: bool = False
    warm: bool = True
    hooks: Hooks = field(default_factory=Hooks)
    independent: bool = False
    all_at_once: bool = True

    def __post_init__(self) -> None:
        """Check the arguments; see the class."""
        if self.master_node not in (None, "chief", "master"):
            raise ConfigError(f"expected master_node='chief', 'master' or None, got {self.master_node!r}")
        plan_nodes(self.num_executors, self.num_ps, self.eval_node)
        self._check_roles()
        self._check_recovery()
        self.size.check(self.restarts)

    @classmethod
    def for_independent(cls, num_nodes: int, all_at_once: bool) -> ClusterOptions:
        """Return the options of nodes that do not know each other; see `TFParallel.run`."""
        return cls(
            runs_main_fun=True,
            num_executors=num_nodes,
            input_mode=InputMode.TENSORFLOW,
            reservation_timeout=INDEPENDENT_TIMEOUT_S,
            feed_timeout=INDEPENDENT_SILENCE_S,
            independent=True,
            all_at_once=all_at_once,
        )

    def _check_roles(self) -> None:
        if self.num_ps and self.runs_main_fun:
            raise ConfigError(
                f"expected build_model(params) with num_ps={self.num_ps}, got a main_fun(args, ctx): with parameter "
                "servers tfspark trains the model that build_model returns; give such a function, or leave num_ps out"
            )
        if (self.hooks.draw or self.hooks.draw_epoch) and self.log_dir is None:
            raise ConfigError("expected log_dir with hooks that draw: pictures go to log_dir/pictures")
        if self.eval_node and self.log_dir is None and not self.runs_main_fun:
            raise ConfigError("expected log_dir with eval_node=True: the weights to evaluate pass through it")

    def _check_recovery(self) -> None:
        numbers = {
            "max_restarts": self.restarts,
            "checkpoint_every_steps": self.checkpoint_every_steps,
            "checkpoint_every_seconds": self.checkpoint_every_seconds,
        }
        for name, value in numbers.items():
            if value < 0:
                raise ConfigError(f"expected {name} >= 0, got {value}")
        if not self.runs_main_fun:
            return
        if self.saves_within_epochs or self.resume:
            raise ConfigError(
                "expected no checkpoint_every_steps, checkpoint_every_seconds or resume with main_fun(args, ctx), "
                "whose state tfspark does not know: save and load checkpoints in it (ctx.checkpoint_dir), or give a "
                "build_model"
            )
        if self.restarts and self.input_mode is not InputMode.TENSORFLOW:
            raise ConfigError(
                f"expected input_mode=InputMode.TENSORFLOW with max_restarts={self.restarts} and a "
                "main_fun(args, ctx): tfspark cannot tell which fed rows its checkpoints already include; let it "
                "read files, or give a build_model"
            )

    @property
    def restarts(self) -> int:
        """Number of times the cluster may be restarted: `max_restarts`, or its default."""
        if self.max_restarts is not None:
            return self.max_restarts
        return 0 if self.runs_main_fun else MAX_RESTARTS

    @property
    def size(self) -> Size:
        """How many nodes the cluster wants, and how many are enough."""
        return Size(
            self.num_executors,
            self.num_executors if self.min_executors is None else self.min_executors,
            self.num_ps,
            self.eval_node,
            self.resize_keeps,
            self.replacement_timeout,
            self.num_ps if self.driver_ps_nodes else 0,
        )

    @property
    def may_restart(self) -> bool:
        """Whether work may be repeated after a loss, or continues an earlier run."""
        return bool(self.restarts or self.saves_within_epochs or self.resume)

    @property
    def saves_within_epochs(self) -> bool:
        """Whether the state is saved between two ends of epochs, too."""
        return bool(self.checkpoint_every_steps or self.checkpoint_every_seconds)

    @property
    def feeds(self) -> bool:
        """Whether Spark feeds rows, as far as this is known before the first call."""
        return self.input_mode is InputMode.SPARK or (self.input_mode is None and not self.runs_main_fun)

    @property
    def run_directory(self) -> Path | None:
        """`log_dir` as an absolute path."""
        return None if self.log_dir is None else Path(self.log_dir).absolute()

    @property
    def tensorboard_dir(self) -> str | None:
        """Directory that TensorBoard shows; None: TensorBoard does not run."""
        return os.path.abspath(self.log_dir or "tensorboard") if self.tensorboard else None

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Directories in which the driver's program finds its own modules."""
        return tuple(module_paths())

    def recovery(self) -> Recovery | None:
        """Return what a restart needs; None: the first failure ends the run.

        Raises:
            ConfigError: `resume` has no checkpoint.
        """
        if not self.may_restart:
            return None
        budget = RestartBudget(self.restarts, self.restart_window)
        resumed = None if self.resume is None else Path(self.resume).absolute()
        return Recovery(budget, self.run_directory, resumed)

    def trainer_settings(self, spark: SparkSession) -> TrainerSettings:
        """Return the settings that are sent to the trainers.

        Raises:
            ConfigError: an argument cannot be written as JSON; the message names it.
        """
        settings = TrainerSettings(
            runs_main_fun=self.runs_main_fun,
            saves_state=self.may_restart and not self.runs_main_fun,
            seed=self.seed,
            feed_timeout_s=self.feed_timeout,
            heartbeat_timeout_s=self.heartbeat_timeout,
            optimizer=self.optimizer and dict(self.optimizer),
            learning_rate=self.learning_rate,
            schedule=self.schedule and dict(self.schedule),
            mixed_precision=self.mixed_precision,
            callbacks=dict(self.callbacks or {}),
            checkpoint_dir=self.checkpoint_dir,
            checkpoint_every_epochs=self.checkpoint_every_epochs,
            checkpoint_every_steps=self.checkpoint_every_steps,
            checkpoint_every_seconds=self.checkpoint_every_seconds,
            master_node=self.master_node,
            queues=list(self.queues),
            default_fs=default_fs(spark),
            working_dir=os.getcwd(),
        )
        return settings.as_plain()
