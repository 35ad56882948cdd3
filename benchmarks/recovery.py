"""Measure the seconds from the loss of a process to its detection, and to the next step of the training.

    python benchmarks/recovery.py [--times 3] [--rows 20000]
    python benchmarks/recovery.py --parameter-server [--times 3] [--rows 80000]

Two workers on this machine train a small network on rows from Spark, with a checkpoint of the state every 10 steps. In
the middle of an epoch one worker's trainer is killed (SIGKILL). With a parameter server the other worker continues
meanwhile, so the longest time without a step is measured, from the kill to the end of the epoch.

Needs no data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from itertools import pairwise
from typing import Any

from trainers import trainers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--parameter-server", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from feed import local_session

    spark = local_session(4)
    lose, rows = (
        (lose_one_of_parameter_servers, 80_000) if options.parameter_server else (lose_a_trainer, 20_000)
    )
    seconds = [lose(spark, options.rows or rows) for _ in range(options.times)]
    print(f"{'':<36}{'median':>8}{'each':>28}")
    for name in seconds[0]:
        values = [one[name] for one in seconds]
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"{name:<36}{statistics.median(values):>6.1f} s{each:>28}")
    spark.stop()


def lose_a_trainer(spark: Any, num_rows: int) -> dict[str, float]:
    from tfspark import TFCluster

    at: dict[str, float] = {}
    took: dict[str, float] = {}

    def observe(event: str, fields: Any) -> None:
        now = time.monotonic()
        if event == "state" and fields["step"] == 50 and not at:
            at["killed"] = now
            trainers()["worker 1"].kill()
        elif "killed" in at and event in ("restarting", "reserved", "tensorflow", "restored", "step"):
            if event in at and event in ("restarting", "reserved", "step"):
                return
            if event == "step" and "restored" not in at:  # The worker sent this event before the kill.
                return
            at[event] = now  # The last report of each node counts.
            took.update({f"{event} {name}": value for name, value in fields.items() if name.endswith("s")})

    rows = made_up(spark, num_rows)
    with TFCluster.run(
        spark, build_model, num_executors=2, checkpoint_every_steps=10, observer=observe
    ) as cluster:
        cluster.train(rows, 2, batch_size=64)
    rows.unpersist()
    up = at["tensorflow"] - took["tensorflow seconds"]
    return {
        "detection": at["restarting"] - at["killed"],
        "pause": took["restarting pause_s"],
        "end of the others, new reservation": at["reserved"] - at["restarting"] - took["restarting pause_s"],
        "fork": up - at["reserved"],
        "strategy": took["tensorflow seconds"],
        "model": at["restored"] - took["restored seconds"] - at["tensorflow"],
        "variables (checkpoint beside)": took["restored build_s"],
        "restore": took["restored seconds"] - took["restored build_s"],
        "first step": at["step"] - at["restored"],
        "killed to next step": at["step"] - at["killed"],
    }


def lose_one_of_parameter_servers(spark: Any, num_rows: int) -> dict[str, float]:
    from tfspark import TFCluster

    at: dict[str, float] = {}
    steps: list[float] = []

    def observe(event: str, fields: Any) -> None:
        now = time.monotonic()
        if event == "step" and not at:
            at["killed"] = now
            trainers()["worker 1"].kill()
        elif event in ("replacing", "replaced", "epoch"):
            at.setdefault(event, now)
        if event in ("step", "epoch") and at.get("epoch", now) == now:
            steps.append(now)

    rows = made_up(spark, num_rows)
    with TFCluster.run(spark, build_model, num_executors=3, num_ps=1, observer=observe) as cluster:
        cluster.train(rows, 1, batch_size=64)
    rows.unpersist()
    return {
        "killed to detected": at["replacing"] - at["killed"],
        "detected to replaced": at["replaced"] - at["replacing"],
        "replaced to end of epoch": at["epoch"] - at["replaced"],
        "longest without a step": max(later - earlier for earlier, later in pairwise(steps)),
    }


def build_model() -> Any:
    import keras

    layers = [keras.layers.Input((32,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    return model


def made_up(spark: Any, num_rows: int) -> Any:
    from pyspark.sql import functions as sf

    features = sf.array(*[sf.rand(seed).cast("float") for seed in range(32)])
    return (
        spark.range(0, num_rows, 1, 8)
        .select(features.alias("features"), sf.rand(99).alias("label"))
        .persist()
    )


if __name__ == "__main__":
    main()
