"""Free ports of this machine."""

from __future__ import annotations

import socket


def free_ports() -> list[str]:
    """Return two ports on which nothing listens."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
