"""Measure the seconds of each phase of the quick start, from the command to the results.

    python benchmarks/quickstart.py [--set train.epochs=3 ...]

Options are passed on to ``tfspark run configs/mnist_cnn.yaml``.

Needs data/mnist_5k, so that no download is measured: ``scripts/prepare_data mnist_5k``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prepared import ROOT, prepared


def main() -> None:
    prepared("mnist_5k")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as runs:
        command = [
            sys.executable,
            "-m",
            "tfspark.cli",
            "run",
            "configs/mnist_cnn.yaml",
            "--set",
            f"output.dir={runs}",
        ]
        began = time.monotonic()
        done = subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"expected tfspark run to succeed, it ended with {done.returncode}: see above")
        total = time.monotonic() - began
        results = json.loads(next(Path(runs).glob("*/results.json")).read_text())
    seconds: dict[str, float] = results["seconds"]
    epochs = [value for name, value in seconds.items() if name.startswith("epoch ")]
    named = {name: value for name, value in seconds.items() if not name.startswith("epoch ")}
    named["first epoch"], named["later epochs"] = epochs[0], sum(epochs[1:])
    for name, value in named.items():
        print(f"{name:<28}{value:8.1f} s")
    print(f"{'imports, pictures, the rest':<28}{total - sum(named.values()):8.1f} s")
    print(f"{'total':<28}{total:8.1f} s   test {results['test']}")


if __name__ == "__main__":
    main()
