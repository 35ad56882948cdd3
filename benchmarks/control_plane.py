"""Load the driver's server with many nodes: real clients on this machine register and send a heartbeat each second.

    python benchmarks/control_plane.py [--nodes 10 100 1000] [--seconds 60]

Each node has its own connection. With every second heartbeat, the node's trainer also sends a report. Meanwhile, the
driver waits as in a training: first for all nodes, then for the end of a job; it checks the state after each change. A
heartbeat is late if its answer arrives more than a second after the heartbeat was due. The CPU time is that of the
serving process; the clients run in a separate process.

Needs no data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

CLIENT_THREADS = 32
WAIT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        print(json.dumps(beat(*options.clients, options.nodes[0], options.seconds)))
        return
    heads = ("nodes", "registered", "beats", "late", "slowest", "lost", "CPU", "of a core", "memory")
    print("".join(f"{head:>12}" for head in heads))
    for nodes in options.nodes:
        told = serve(nodes, options.seconds)
        print("".join(f"{told[head]:>12}" for head in heads), flush=True)


def serve(num_nodes: int, seconds: float) -> dict[str, Any]:
    from tfspark.cluster.control import ControlPlane
    from tfspark.cluster.state.registry import Registry
    from tfspark.protocol.roles import plan_nodes
    from tfspark.protocol.wire import new_secret

    secret, nodes = new_secret(), plan_nodes(num_nodes)
    registry = Registry(nodes, 30.0, {})
    control = ControlPlane(
        ("127.0.0.1", "127.0.0.1"), secret, nodes, registry, lambda event, fields: None, None
    )
    me = psutil.Process()
    before, began = me.cpu_times(), time.monotonic()
    command = [sys.executable, __file__, "--nodes", str(num_nodes), "--seconds", str(seconds)]
    command += ["--clients", control.location, secret.token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
        control.wait(lambda state: not state.registry.missing(), WAIT_S, "the nodes to register")
        job = control.post_job("train")

        def trained(_: object) -> bool:
            results = control.job_results(job)
            return all(node.index in results for node in nodes)

        control.wait(trained, seconds + WAIT_S, "the nodes to beat for their time")
        out, _ = clients.communicate(timeout=WAIT_S)
    after, took = me.cpu_times(), time.monotonic() - began
    told = json.loads(out.splitlines()[-1])
    registry.check()
    lost = sum(node.failure is not None for node in registry.nodes.values())
    control.close()
    cpu_s = after.user + after.system - before.user - before.system
    return {
        "nodes": num_nodes,
        "registered": f"{told['registered_s']:.2f} s",
        "beats": told["beats"],
        "late": told["late"],
        "slowest": f"{told['slowest_s']:.2f} s",
        "lost": lost,
        "CPU": f"{cpu_s:.1f} s",
        "of a core": f"{100 * cpu_s / took:.0f} %",
        "memory": f"{me.memory_info().rss >> 20} MB",
    }


def beat(location: str, token: str, num_nodes: int, seconds: float) -> dict[str, Any]:
    """Simulate all nodes: register each, then send a heartbeat for each once a second, spread over the second."""
    from tfspark.protocol.wire import ActionClient, Secret

    began = time.monotonic()
    clients = [ActionClient(location, Secret(token)) for _ in range(num_nodes)]

    def register(node: int) -> None:
        clients[node].call("register", node=node, host=f"host-{node}", port=7000, versions={})

    with ThreadPoolExecutor(CLIENT_THREADS) as pool:
        list(pool.map(register, range(num_nodes)))
    registered_s = time.monotonic() - began
    delays: list[float] = []

    def beats_of(thread: int) -> None:
        mine = range(thread, num_nodes, CLIENT_THREADS)
        first = time.monotonic()
        for second in range(int(seconds)):
            for number, node in enumerate(mine):
                due = first + second + number / max(len(mine), 1)
                time.sleep(max(0.0, due - time.monotonic()))
                clients[node].call("heartbeat", node=node, attempt=1, log=[])
                delays.append(time.monotonic() - due)
                if second % 2:
                    clients[node].call("trainer_alive", node=node, steps=second, activity="busy")

    threads = [
        threading.Thread(target=beats_of, args=(number,)) for number in range(min(CLIENT_THREADS, num_nodes))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for node in range(num_nodes):
        clients[node].call("job_done", job=1, node=node, result={})
    return {
        "registered_s": registered_s,
        "beats": len(delays),
        "late": sum(delay > 1 for delay in delays),
        "slowest_s": max(delays),
    }


if __name__ == "__main__":
    main()
