"""Environment variables that a program sets after a fork of the warm parent has already imported TensorFlow.

Runs in forked trainers. Many programs set such a variable at the top of their function or module, before they import
TensorFlow. In a fork this would have no effect. So the trainer asks its node task for a cold start, where it has one.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from tfspark.node.environment import OF_ONE_TRAINER
from tfspark.node.warm import send

if TYPE_CHECKING:
    from tfspark.training.context import TrainingContext

READ_AT_IMPORT = (
    *("TF_", "XLA_", "KERAS_", "CUDA_", "NVIDIA_", "AUTOGRAPH_", "PROTOCOL_BUFFERS_", "ARROW_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MALLOC_", "LD_"),
)
"""Prefixes of variables that TensorFlow, Keras, NumPy, Arrow and the libraries below them read only once."""


class LateVariables:
    """Watches the environment until TensorFlow is used.

    Args:
        node_task: the connection to the node task.
    """

    def __init__(self, node_task: socket.socket):
        self._node_task = node_task
        self._context: TrainingContext | None = None
        self._watches = True
        sys.addaudithook(self._notice)

    def watch_until_used(self, context: TrainingContext) -> None:
        """Watch a `main_fun` until it uses TensorFlow or takes rows: after that it cannot start again."""
        self._context = context

    def end(self) -> None:
        """Stop watching."""
        self._watches = False

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("os.putenv", "os.unsetenv") or not self._watches:
            return
        name = os.fsdecode(arguments[0])
        wanted = os.fsdecode(arguments[1]) if event == "os.putenv" else None
        is_read_at_import = name.startswith(READ_AT_IMPORT) and name not in OF_ONE_TRAINER
        if is_read_at_import and wanted != os.environ.get(name) and not self._is_used():
            reason = f"the program sets {name}, which is read when TensorFlow is imported"
            send(
                self._node_task,
                {"cold": f"{reason}; spark.executorEnv.{name} would reach a warm parent, too"},
            )
            os._exit(0)

    def _is_used(self) -> bool:
        from tensorflow.python.eager import context as eager

        runtime = eager.context_safe()
        takes_rows = self._context is not None and self._context.takes_rows
        return takes_rows or (runtime is not None and runtime._initialized)
