"""Simulate network faults between real clients and real servers, drawn from a seed.

`FaultyCalls` is between a client and its connection: a call does not arrive, its reply is lost, or the call arrives
twice or late. `Proxy` is between the two sockets: bytes are late, a message is cut off, or the connection is reset.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pyarrow.flight as flight

CHUNK_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)
"""A value of SO_LINGER: a socket with it sends RST when it is closed."""


class FaultyCalls:
    """A FlightClient whose calls sometimes fail, as on a bad network.

    Args:
        client: makes the calls.
        chance: draws the faults.
        rate: share of the calls that have a fault.
    """

    def __init__(self, client: flight.FlightClient, chance: random.Random, rate: float):
        self._client = client
        self._chance = chance
        self._rate = rate
        self._before: deque[str] = deque(maxlen=APART)

    def do_action(self, action: flight.Action, options: flight.FlightCallOptions) -> Any:
        return self._faulty(lambda: list(self._client.do_action(action, options)))

    def do_get(self, ticket: flight.Ticket, options: flight.FlightCallOptions) -> Any:
        table = self._faulty(lambda: self._client.do_get(ticket, options).read_all())
        return _Read(table)

    def do_put(self, *args: Any) -> Any:
        return self._client.do_put(*args)

    def close(self) -> None:
        self._client.close()

    def _faulty(self, call: Callable[[], Any]) -> Any:
        fault = self._chance.choice(FAULTS) if self._chance.random() < self._rate else ""
        if fault == "answer is too late" and fault in self._before:
            # In a real network, a call waits half a minute for a late answer; after two, the network counts as down.
            fault = ""
        self._before.append(fault)
        if fault == "does not arrive":
            raise flight.FlightUnavailableError("the connection was reset before the call arrived")
        if fault == "late":
            time.sleep(self._chance.random() / 50)
        answer = call()
        if fault == "arrives twice":
            answer = call()
        if fault == "answer is lost":
            raise flight.FlightUnavailableError("the connection was reset before the answer arrived")
        if fault == "answer is too late":
            raise flight.FlightTimedOutError("the answer came too late")
        return answer


APART = 5
"""Minimum number of calls between two late answers. A repeated call then has at most one, beside other faults."""
FAULTS = ("does not arrive", "answer is lost", "answer is too late", "arrives twice", "late")


class _Read:
    def __init__(self, table: Any):
        self._table = table

    def read_all(self) -> Any:
        return self._table


class Proxy:
    """Forwards connections to a server, with faults; a context manager.

    Args:
        location: the server's.
        chance: draws the faults.
        rate: share of the pieces of data that have a fault.
        most: maximum number of resets. A network that stays broken is a different case.
    """

    def __init__(self, location: str, chance: random.Random, rate: float, most: int = 10):
        url = urlsplit(location)
        self._target = (url.hostname, url.port)
        self._chance = chance
        self._rate = rate
        self._left = most
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.location = f"grpc://127.0.0.1:{self._listening.getsockname()[1]}"
        self.num_resets = 0
        self._start(self._accept)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listening, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in list(self._threads):
            thread.join(10)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:  # The server has ended: reset the connection, as its host would do.
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    client.close()
                    continue
                self._sockets += [client, server]
                self._start(self._pass_on, client, server)
                self._start(self._pass_on, server, client)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                fault = self._chance.random() / self._rate if self._rate else 1.0
                if fault < 0.5 and self._left > 0:
                    self._left -= 1
                    self.num_resets += 1
                    target.sendall(data[: self._chance.randrange(len(data))])
                    for each in (source, target):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        each.shutdown(socket.SHUT_RDWR)
                        each.close()
                    return
                if fault < 1.0:
                    time.sleep(self._chance.random() / 50)
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
