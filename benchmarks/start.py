"""Measure the seconds and the memory of the start of clusters, with and without the warm parent.

    python benchmarks/start.py [--times 3]

Needs no data. Each application is a separate process with a new Spark session on ``local[6]``. It starts clusters of
two nodes, one after another. Then it runs five clusters that build a model, train it on 2,000 rows for one epoch and
shut down. At the end, four nodes wait while it adds up their memory. Applications with and without the warm parent run
in turn. In between, the benchmark measures the import of TensorFlow and Keras in a new interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from trainers import pss, trainers, warm_parents

CLUSTERS = 4
LOOPS = 5
MB = 1 << 20
IMPORTS = "import tensorflow, keras, pyarrow.flight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument(
        "--application", choices=("warm", "cold"), help="run one and print its figures as JSON"
    )
    options = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if options.application:
        print(json.dumps(application(options.application == "warm")))
        return
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.times):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True, stderr=subprocess.DEVNULL)
        found["import of TensorFlow, Keras, pyarrow"].append(time.monotonic() - began)
        for kind in ("cold", "warm"):
            for name, value in of_an_application(kind).items():
                found[f"{kind}: {name}"].append(value)
    print(f"{'':<58}{'median':>8}   each")
    for name, values in sorted(found.items()):
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:<58}{statistics.median(values):>8.2f}   {each}")


def of_an_application(kind: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--application", kind],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def application(is_warm: bool) -> dict[str, float]:
    """Return the figures of one application: seconds, and MB."""
    from feed import local_session

    from tfspark import TFCluster

    spark = local_session(6)
    until_user_code = [start_a_cluster(spark, is_warm) for _ in range(CLUSTERS)]
    rows = spark.range(0, 2000, 1, 4).selectExpr("array(rand(1), rand(2), rand(3)) AS x", "rand(4) AS label")
    rows.persist().count()
    loops = []
    for _ in range(LOOPS):
        began = time.monotonic()
        with TFCluster.run(spark, build_model, None, 2, warm=is_warm) as cluster:
            cluster.train(rows, 1, batch_size=64)
        loops.append(time.monotonic() - began)
    memory = memory_of_four(spark, is_warm)
    spark.stop()
    return {
        "run to user code on both nodes, first cluster": until_user_code[0],
        "run to user code on both nodes, later clusters": statistics.median(until_user_code[1:]),
        "run, train 2,000 rows, shutdown, after the first": statistics.median(loops[1:]),
        "four trainers and what they stand on, MB (PSS)": memory,
    }


def start_a_cluster(spark: Any, is_warm: bool) -> float:
    """Return the seconds from `TFCluster.run` until the function runs on the last of two nodes."""
    from tfspark import TFCluster

    began = time.time()
    with TFCluster.run(spark, say_when, None, 2, warm=is_warm) as cluster:
        reached = cluster.shutdown()
    return float(max(reached.values())) - began


def memory_of_four(spark: Any, is_warm: bool) -> float:
    """Return the memory of four trainers that have built a strategy, and of their warm parent, in MB."""
    from tfspark import TFCluster

    found: list[float] = []
    ready: set[str] = set()

    def observe(event: str, fields: Any) -> None:
        if event == "ready":
            ready.add(str(fields["node"]))

    with TFCluster.run(spark, wait_a_little, None, 4, warm=is_warm, observer=observe) as cluster:
        while len(ready) < 4:
            time.sleep(0.1)
        found.append(sum(pss(process) for process in [*trainers().values(), *warm_parents()]) / MB)
        cluster.shutdown()
    return found[0]


def say_when(args: Any, ctx: Any) -> float:
    """Return the time at which this function runs and TensorFlow can be used."""
    import tensorflow  # noqa: F401

    return time.time()


def wait_a_little(args: Any, ctx: Any) -> None:
    """Use TensorFlow as in a training, then wait for the measurement."""
    with ctx.strategy.scope():
        build_model()
    ctx.report("ready")
    time.sleep(10)


def build_model() -> Any:
    import keras

    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    return model


if __name__ == "__main__":
    main()
