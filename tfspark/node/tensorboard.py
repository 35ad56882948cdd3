"""TensorBoard beside the chief: its node task starts and ends it. This process does not import TensorFlow.

TensorBoard runs as ``python -m tfspark.node.tensorboard``, which first makes sure that it ends with its parent.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import TracebackType

STOP_GRACE_S = 3.0


class TensorBoard:
    """A TensorBoard process; a context manager.

    This process binds the port from the start and shares it, so the address is known at once and no other process can
    take it. The page answers some seconds later.

    Args:
        log_dir: directory with event files; need not exist yet.
        host: address to listen on.
    """

    def __init__(self, log_dir: str, host: str):
        self._port = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind((host, int(os.environ.get("TENSORBOARD_PORT", "0"))))
        self.url = f"http://{host}:{self._port.getsockname()[1]}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, log_dir, host, str(self._port.getsockname()[1])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._port.close()


def main(log_dir: str, host: str, port: str) -> None:
    """Run TensorBoard in this process until it is ended."""
    from tfspark.node.lifeline import die_with_parent

    die_with_parent()
    from tensorboard.main import run_main

    sys.argv = [
        "tensorboard",
        f"--logdir={log_dir}",
        f"--host={host}",
        f"--port={port}",
        "--reuse_port=true",
        "--load_fast=false",  # The fast loader is a separate process, which would survive a kill.
        "--reload_multifile=true",
    ]
    run_main()


if __name__ == "__main__":
    main(*sys.argv[1:])
