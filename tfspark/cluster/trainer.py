"""The trainer: the only process that runs TensorFlow. Started by the node task, one per attempt.

It reads its orders from standard input, which then stays open as its lifeline: when the node task goes, for
whatever reason, the pipe closes and the trainer ends. On Linux the kernel kills it as well, in case no
Python thread can run.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow.flight as flight

from tfspark.cluster.context import TFContext
from tfspark.cluster.lifeline import die_with_parent
from tfspark.cluster.node import SHOW_STACKS, read_frame
from tfspark.cluster.wire import ActionClient, Secret
from tfspark.feed.graph_errors import as_data_error
from tfspark.training.on_import import correct_keras_when_imported

ALIVE_S = 2.0


def main() -> int:
    """Run the user's function on this node; return the exit code."""
    orders = sys.stdin.buffer
    faulthandler.register(SHOW_STACKS)
    die_with_parent()
    header = json.loads(read_frame(orders))
    code = read_frame(orders)
    with ActionClient(header["location"], Secret(**header["secret"])) as control:
        context = TFContext.from_orders(header, control)
        _watch_lifeline(orders)
        _say_alive(control, context)
        try:
            function, args, context.hooks, registered = pickle.loads(code)
            _register_with_keras(registered)
            result = run_user_function(function, args, context)
            control.call("trainer_ended", node=context.node.index, result=_as_json(result))
        except BaseException as raised:
            traceback.print_exc()
            context.tell_failure(as_data_error(raised))
            return 1
    return 0


def _register_with_keras(registered: dict[str, Any]) -> None:
    """Register classes and functions under the names they had on the driver."""
    if registered:
        import keras

        for name, value in registered.items():
            package, _, own_name = name.partition(">")
            keras.saving.register_keras_serializable(package, own_name)(value)


def run_user_function(function: Callable[..., Any], args: Any, context: TFContext) -> Any:
    """Call ``main_fun(args, ctx)``, or train the model that ``build_model`` returns."""
    if context.settings["wants_context"]:
        if isinstance(args, list):
            sys.argv = args  # As TensorFlowOnSpark did, for functions that parse a command line.
        correct_keras_when_imported()
        try:
            return function(args, context)
        except SystemExit as ended:
            if ended.code not in (None, 0):
                raise
            return None  # As absl's app.run ends a program that is done.
        finally:
            context.leave_feeds()
    from tfspark.training.loop import run_jobs

    return run_jobs(function, args, context)


def _watch_lifeline(orders: BinaryIO) -> None:
    """End this process when the node task closes the pipe or dies."""

    def watch() -> None:
        orders.read(1)
        os._exit(0)

    threading.Thread(target=watch, name="tfspark-lifeline", daemon=True).start()


def _say_alive(control: ActionClient, context: TFContext) -> None:
    """Tell the driver every few seconds that this process runs: the node task cannot know when it is stopped."""

    def beat() -> None:
        while True:
            with contextlib.suppress(
                flight.FlightError
            ):  # The node task finds out whether the driver is gone.
                control.call("trainer_alive", node=context.node.index, **context.pulse.to_json())
            time.sleep(ALIVE_S)

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
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow's servers and threads have no orderly end; everything of ours is closed by now.
    os._exit(code)
