"""Profile the CPU time of the feed: stacks of Spark's JVM, its feed tasks and the trainers, while rows are drained.

    pip install py-spy
    python benchmarks/profile_feed.py            prints the largest parts, draws feed_profile.png

py-spy samples Python processes, including C and C++ below Python; the Flight Recorder samples the JVM. Waiting threads
are skipped. Rows are those of `feed.py --kinds float`: 784 float32 and a label.

Needs no data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import feed
import numpy as np
import psutil
from pyspark import cloudpickle
from trainers import TRAINER, all_processes

Stacks = Counter[tuple[str, ...]]
"""Stack, outermost frame first -> samples."""
RATE_HZ = 100
WAITS = ("read ", "poll ", "epoll_wait ", "clock_nanosleep ", "syscall ")
LOCK = "PyThread_acquire_lock_timed"
OUTER = ("ReaderInputStream.read", "FeedTask.__call__", "PassReader._run", "drain ")
"""Frames that call the work of the feed. Stacks are cut here, because all stacks are alike above."""
EVENTS = "jdk.ExecutionSample,jdk.NativeMethodSample"
PASSES = 40
SHOWN_SHARE = 0.004
DEEPEST = 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    if shutil.which("py-spy") is None:
        sys.exit("expected py-spy on the PATH; pip install py-spy")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    cloudpickle.register_pickle_by_value(feed)  # Trainers cannot import this module.
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        spark = feed.local_session(4)
        try:
            table = feed.rows_of("float", options.rows, np.random.default_rng(0))
            feed.write_parquet(Path(directory, "rows"), table, 8)
            rows = spark.read.parquet(str(Path(directory, "rows")))
            profiles = profile(spark, rows, feed.columns_of("float", table), options.seconds, Path(directory))
        finally:
            spark.stop()
    for name, stacks in profiles.items():
        print_largest(name, stacks)
    draw(profiles, Path(__file__).with_name("feed_profile.png"))


def profile(spark: Any, rows: Any, columns: Any, seconds: int, directory: Path) -> dict[str, Stacks]:
    """Feed the rows repeatedly; return the stacks of each kind of process."""
    from tfspark import TFCluster

    first_pass_done = threading.Event()  # The first pass starts processes and imports modules.
    with (
        ThreadPoolExecutor(1) as pool,
        TFCluster.run(
            spark,
            feed.drain,
            {"passes": PASSES},
            num_executors=2,
            observer=lambda event, _: first_pass_done.set() if event == "fed" else None,
        ) as cluster,
    ):
        sampled = pool.submit(lambda: first_pass_done.wait(60) and sample_all(seconds, directory))
        cluster.train(rows, PASSES, columns=columns, batch_size=2 * feed.BATCH_ROWS)
        return dict(sampled.result() or {})


def sample_all(seconds: int, directory: Path) -> dict[str, Stacks]:
    """Sample all processes at the same time."""
    pids = busy_pids()
    (jvm,) = pids["JVM"]
    run = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["jcmd", str(jvm), "JFR.start", "name=feed", "settings=profile"], **run)
    files = {
        pid: (name, directory / f"{pid}.txt") for name in ("feed tasks", "trainers") for pid in pids[name]
    }
    spies = [
        subprocess.Popen(
            f"py-spy record --native -f raw -r {RATE_HZ} -d {seconds} -o {path} -p {pid}".split(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pid, (_, path) in files.items()
    ]
    errors = [spy.communicate(timeout=seconds + 60)[1] for spy in spies]
    recording = directory / "jvm.jfr"
    subprocess.run(["jcmd", str(jvm), "JFR.dump", "name=feed", f"filename={recording}"], **run)
    stacks = {"Spark's JVM": jvm_stacks(recording)}
    for (name, path), error in zip(files.values(), errors, strict=True):
        if not path.exists():
            raise RuntimeError(f"py-spy: {error}")
        stacks.setdefault(name, Counter()).update(python_stacks(path.read_text()))
    return stacks


def busy_pids() -> dict[str, list[int]]:
    """Return the JVM, the Python workers of feed tasks and the trainers that used the CPU in the last two seconds."""
    before = {
        process: sum(process.cpu_times()[:2]) for process in all_processes() if process.pid != os.getpid()
    }
    time.sleep(2)
    found: dict[str, list[int]] = {"JVM": [], "feed tasks": [], "trainers": []}
    for process, used in before.items():
        try:
            line, busy = " ".join(process.cmdline()), sum(process.cpu_times()[:2]) - used
        except psutil.NoSuchProcess:
            continue
        if "java" in line.split(" ")[0]:
            found["JVM"].append(process.pid)
        elif busy > 0.1:
            found["trainers" if TRAINER in line else "feed tasks"].append(process.pid)
    return found


def python_stacks(text: str) -> Stacks:
    """Parse py-spy's lines: frames, separated by semicolons, and a count."""
    stacks: Stacks = Counter()
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        stack = inner(tuple(plain(frame) for frame in frames.split(";")))
        if not (stack[-1].startswith(WAITS) or any(frame.startswith(LOCK) for frame in stack)):
            stacks[stack] += int(count)
    return stacks


def plain(frame: str) -> str:
    """Return function and file of a frame, without line number and template arguments."""
    name, _, place = frame.rpartition(" (")
    place = place.rstrip(")").split(":")[0]
    return f"{name.split('<')[0].split('(')[0]} ({'/'.join(place.split('/')[-2:])})"


def jvm_stacks(recording: Path) -> Stacks:
    """Parse the samples of a Flight Recorder recording."""
    told = subprocess.run(
        f"jfr print --json --stack-depth 64 --events {EVENTS} {recording}".split(),
        check=True,
        capture_output=True,
        text=True,
    )
    stacks: Stacks = Counter()
    for event in json.loads(told.stdout)["recording"]["events"]:
        trace = event["values"]["stackTrace"]
        frames = [frame["method"] for frame in trace["frames"]] if trace else []
        names = [f"{method['type']['name'].split('/')[-1]}.{method['name']}" for method in frames]
        if event["type"] == "jdk.NativeMethodSample" and names and is_wait(names[0]):
            continue
        stacks[inner(tuple(reversed(names)))] += 1
    return stacks


def inner(stack: tuple[str, ...]) -> tuple[str, ...]:
    """Return a stack without the callers of the feed's work, and without frames that have no name."""
    first = next((i for i, frame in enumerate(stack) if any(outer in frame for outer in OUTER)), 0)
    return tuple(frame for frame in stack[first:] if not frame.startswith("0x")) or stack[-1:]


def is_wait(name: str) -> bool:
    """Return whether a native method waits: its samples are not CPU time."""
    return any(word in name.lower() for word in ("poll", "wait", "accept", "read", "park"))


def print_largest(name: str, stacks: Stacks) -> None:
    """Print the functions that used the most time, and the functions below which the time was used."""
    total = sum(stacks.values())
    within: Counter[str] = Counter()
    itself: Counter[str] = Counter()
    for stack, count in stacks.items():
        itself[stack[-1]] += count
        within.update(dict.fromkeys(stack, count))
    print(f"\n{name}: {total} samples")
    for title, counts, many in (("in itself", itself, 15), ("with all it calls", within, 45)):
        print(f"  {title}")
        for frame, count in counts.most_common(many):
            print(f"    {count / total:5.1%}  {frame}")


def draw(profiles: dict[str, Stacks], picture: Path) -> None:
    """Draw the stacks, with callers above the functions that they call; the width is the time."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, panels = pyplot.subplots(
        len(profiles), 1, figsize=(16, 5.5 * len(profiles)), layout="constrained"
    )
    for panel, (name, stacks) in zip(panels, profiles.items(), strict=True):
        total = sum(stacks.values())
        deepest = draw_level(panel, stacks, 0.0, total, 0)
        panel.set(xlim=(0, 1), ylim=(min(deepest, DEEPEST) + 1, 0), title=name)
        panel.axis("off")
    figure.savefig(picture, dpi=80)
    Image.open(picture).quantize(64).save(picture, optimize=True)


def draw_level(panel: Any, stacks: Stacks, left: float, total: int, depth: int) -> int:
    """Draw the outermost frames of stacks and, below each, the functions that it calls; return the depth."""
    groups: dict[str, Stacks] = {}
    for stack, count in stacks.items():
        if stack:
            groups.setdefault(stack[0], Counter())[stack[1:]] += count
    deepest = depth
    for frame, inner in sorted(groups.items()):
        share = sum(inner.values()) / total
        if share >= SHOWN_SHARE and depth < DEEPEST:
            colour = (1.0, 0.55 + 0.4 * (zlib.crc32(frame.encode()) % 100) / 100, 0.4)
            panel.barh(depth + 0.5, share, left=left, height=0.95, color=colour, edgecolor="white")
            label = frame[: int(share * 210)]
            if len(label) > 3:
                panel.text(
                    left + 0.001, depth + 0.5, label, va="center", fontsize=7, clip_on=True, parse_math=False
                )
            deepest = max(deepest, draw_level(panel, inner, left, total, depth + 1))
        left += share
    return deepest


if __name__ == "__main__":
    main()
