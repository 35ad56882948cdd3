"""The trainer: the only process that runs TensorFlow. Each attempt of a node has its own; see `tfspark.node.launch`.

It reads its orders from standard input, which then stays open as its lifeline. When the node task ends for any reason,
the pipe closes and the trainer ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow.flight as flight

from tfspark.errors import BrokenOffError
from tfspark.migrate.context import TFContext
from tfspark.node.launch import read_frame
from tfspark.node.lifeline import die_with_parent, die_with_writer
from tfspark.node.task import SHOW_STACKS
from tfspark.protocol.timing import TRAINER_HEARTBEAT_S
from tfspark.protocol.wire import ActionClient, Secret
from tfspark.training.input.graph_errors import as_data_error
from tfspark.training.late_variables import LateVariables
from tfspark.training.on_import import correct_keras_when_imported

logger = logging.getLogger("tfspark")


def main(orders: BinaryIO, port: int, node_task: socket.socket | None = None) -> int:
    """Run the user's function on this node; return the exit code.

    Args:
        orders: standard input.
        port: descriptor of the socket that holds the port of TensorFlow's server.
        node_task: in a fork of the warm parent, the connection to the node task.
    """
    faulthandler.register(SHOW_STACKS)
    header = {**json.loads(read_frame(orders)), "port_fd": port}
    code = read_frame(orders)
    die_with_writer(orders)
    late = None if node_task is None else LateVariables(node_task)
    with ActionClient(header["location"], Secret(**header["secret"])) as control:
        context = TFContext.from_orders(header, control)
        _say_alive(control, context)
        try:
            function, args, context.hooks, registered = pickle.loads(code)
            _register_with_keras(registered)
            if late is not None and context.settings.runs_main_fun:
                late.watch_until_used(context)
            elif late is not None:
                late.end()
            result = _run_user_function(function, args, context)
            control.call("trainer_ended", node=context.node.index, result=_as_json(result))
        except BaseException as raised:
            traceback.print_exc()
            context.tell_failure(as_data_error(raised))
            return 1
    return 0


def _register_with_keras(registered: dict[str, Any]) -> None:
    """Register classes and functions under their names on the driver."""
    if registered:
        import keras

        for name, value in registered.items():
            package, _, own_name = name.partition(">")
            keras.saving.register_keras_serializable(package, own_name)(value)


def _run_user_function(function: Callable[..., Any], args: Any, context: TFContext) -> Any:
    """Call ``main_fun(args, ctx)``, or train the model that ``build_model`` returns."""
    if context.settings.runs_main_fun:
        if isinstance(args, list):
            sys.argv = args  # As in TensorFlowOnSpark, for functions that parse it.
        correct_keras_when_imported()
        try:
            return function(args, context)
        except SystemExit as ended:
            if ended.code not in (None, 0):
                raise
            return None  # absl's app.run ends a finished program in this way.
        except BrokenOffError as error:
            logger.warning("%s", error)
            return None  # The driver's program knows.
        finally:
            context.leave_feeds()
    from tfspark.training.loop import run_jobs

    return run_jobs(function, args, context)


def _say_alive(control: ActionClient, context: TFContext) -> None:
    """Report every few seconds that this process runs: the node task cannot detect that it is stopped."""

    def beat() -> None:
        while True:
            with contextlib.suppress(flight.FlightError):  # The node task detects whether the driver is gone.
                control.call("trainer_alive", node=context.node.index, **context.activity.to_json())
            time.sleep(TRAINER_HEARTBEAT_S)

    threading.Thread(target=beat, name="tfspark-alive", daemon=True).start()


def _as_json(result: Any) -> Any:
    try:
        json.dumps(result)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"main_fun returned a value that cannot travel to the driver ({error}); expected JSON: "
            "numbers, strings, lists, dicts; convert arrays with .tolist(), save models with ctx.export"
        ) from None
    return result


if __name__ == "__main__":
    die_with_parent()
    code = main(sys.stdin.buffer, int(sys.argv[2].removeprefix("port=")))
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow's servers and threads do not end by themselves; everything of tfspark is closed by now.
    os._exit(code)
