"""A network of hosts on this machine: network namespaces that are joined by a bridge. Their links can be cut.

It needs root and iproute2; `network_refused` returns whether it is possible. It does not use the machine's own network:
the bridge has a separate namespace, too.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid

from support.standalone import Host

_SUBNET = "10.213.7"
_IP_S = 10.0


class Network:
    """A context manager: hosts exist inside ``with``.

    Args:
        num_hosts: number of hosts.

    Attributes:
        hosts: the addresses of the hosts, and prefixes that run a command on them.
        switch: the namespace of the bridge. `link_to` returns the name of a host's link in it.
    """

    def __init__(self, num_hosts: int):
        name = f"tfspark-{uuid.uuid4().hex[:6]}"
        self.switch = f"{name}-switch"
        self._names = [f"{name}-{number}" for number in range(num_hosts)]
        self.hosts = [
            Host(f"{_SUBNET}.{number + 1}", ("ip", "netns", "exec", host))
            for number, host in enumerate(self._names)
        ]

    def __enter__(self) -> Network:
        try:
            _ip("netns", "add", self.switch)
            _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "bridge", "up")
            for name, host in zip(self._names, self.hosts, strict=True):
                self._join(name, host.address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _join(self, name: str, address: str) -> None:
        link = link_to(address)
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", link, "netns", self.switch)
        _ip("-n", self.switch, "link", "set", link, "master", "bridge", "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")

    def __exit__(self, *_: object) -> None:
        there = namespaces()
        for name in (*self._names, self.switch):
            if name in there:
                _ip("netns", "delete", name)


def link_to(address: str) -> str:
    """Return the name of the link from the switch to a host."""
    return f"to-{address.rpartition('.')[2]}"


def set_link(switch: str, address: str, state: str) -> None:
    """Cut a host off, or connect it again.

    Args:
        switch: `Network.switch`.
        address: the host's address.
        state: ``down`` or ``up``.
    """
    _ip("-n", switch, "link", "set", link_to(address), state)


def namespaces() -> list[str]:
    """Return the names of this machine's network namespaces."""
    return [line.split()[0] for line in _ip("netns", "list").splitlines()]


def network_refused() -> str:
    """Return why this network is not possible here; empty if it is possible."""
    if shutil.which("ip") is None:
        return "there is no ip command (iproute2)"
    try:
        with Network(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=_IP_S, check=True)
    return done.stdout
