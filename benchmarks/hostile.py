"""Send hostile calls to the driver's server, while a real node sends heartbeats.

    python benchmarks/hostile.py [--calls 100000]

The kinds take turns: a call without a token, with another cluster's token, with an action that does not exist, with a
body that is not JSON, with JSON of wrong keys, and a heartbeat from an attempt that is over. Prints the number of
answered calls of each kind, which must be 0 (a heartbeat from an old attempt gets the answer "stop"), and the duration
of the node's own calls meanwhile.

Needs no data.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections import Counter

import pyarrow as pa
import pyarrow.flight as flight

THREADS = 2
FORMS = [b"[1]", b"7", b'{"node": "x"}', b'{"node": 99, "attempt": 1, "log": []}', b'{"stream": {}}', b"null"]


def main() -> None:
    from tfspark.cluster.control import ControlPlane
    from tfspark.cluster.state.registry import Registry
    from tfspark.protocol.roles import plan_nodes
    from tfspark.protocol.wire import ActionClient, new_secret

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    calls = parser.parse_args().calls
    secret, nodes = new_secret(), plan_nodes(1)
    registry = Registry(nodes, 30.0, {})
    control = ControlPlane(
        ("127.0.0.1", "127.0.0.1"), secret, nodes, registry, lambda event, fields: None, None
    )
    made, answered, delays = Counter[str](), Counter[str](), list[float]()
    over = threading.Event()
    node = ActionClient(control.location, secret)
    node.call("register", node=0, host="host", port=1, versions={})

    def beat() -> None:
        while not over.wait(0.1):
            began = time.monotonic()
            if node.call("heartbeat", node=0, attempt=1, log=[])["stop"]:
                raise AssertionError("the node was told to stop")
            delays.append(time.monotonic() - began)

    def attack(seed: int) -> None:
        rng = random.Random(seed)
        with flight.connect(control.location) as client:
            for number in range(calls // THREADS):
                kind, token, action, body = hostile(number, secret.token, rng)
                headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
                made[kind] += 1
                try:
                    options = flight.FlightCallOptions(timeout=20, headers=headers)
                    (reply,) = client.do_action(flight.Action(action, body), options)
                    stop = json.loads(reply.body.to_pybytes()).get("stop")
                    answered["told to stop" if stop else kind] += 1
                except (flight.FlightError, pa.ArrowException):
                    continue

    threads = [threading.Thread(target=attack, args=(seed,)) for seed in range(THREADS)]
    beating = threading.Thread(target=beat)
    began = time.monotonic()
    for thread in (beating, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    beating.join()
    took = time.monotonic() - began
    node.close()
    control.close()
    print(f"{sum(made.values()):,} calls in {took:.0f} s: {dict(made)}")
    print(f"answered: {dict(answered) or 'none'}; failed: {registry.failed}")
    print(f"the node's own {len(delays)} calls: slowest {max(delays) * 1000:.0f} ms")


def hostile(number: int, token: str, rng: random.Random) -> tuple[str, str | None, str, bytes]:
    """Return (kind, token, action, body) of a call."""
    heartbeat = json.dumps({"node": 0, "attempt": 1, "log": []}).encode()
    kinds = (
        ("without a token", None, "heartbeat", heartbeat),
        ("another cluster's token", f"{rng.getrandbits(256):064x}", "heartbeat", heartbeat),
        ("no such action", token, f"action{rng.getrandbits(32)}", heartbeat),
        ("no JSON", token, "heartbeat", rng.randbytes(rng.randrange(1, 2000)) + b"\xff"),
        ("another form", token, rng.choice(["heartbeat", "lease", "agree", "sum"]), rng.choice(FORMS)),
        ("an old attempt", token, "heartbeat", b'{"node": 0, "attempt": 0, "log": []}'),
    )
    return kinds[number % len(kinds)]


if __name__ == "__main__":
    main()
