"""Choose the parameters of a shipped experiment by validation rows, which are neither trained on nor tested.

    python benchmarks/choose.py diamonds model.params.dropout=0,0.1 train.epochs=5,10

Plain Keras trains with every combination, on the same rows and with the same seed, and is measured on the validation
rows: those of the experiment, or a tenth of the training rows. The best one alone is measured on the test rows.

Needs the experiment's data set below data/: ``scripts/prepare_data NAME``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from typing import Any

from prepared import ROOT

from models import JOBS, measured, read, trained_by_plain_keras

LESS_IS_BETTER = ("mae", "mse", "rmse", "loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("grid", nargs="*", help="KEY=VALUE,VALUE...: keys as those of tfspark run --set")
    parser.add_argument("--set", nargs="+", default=[], help="further options of all")
    options = parser.parse_args()
    job = JOBS[options.job]
    _, module, found, train, validation, test = read(job, tuple(options.set))
    if validation is None:
        _, module, found, train, validation, test = read(job, (*options.set, "data.validation=0.1"))
    results = []
    for values in itertools.product(*(choices(part) for part in options.grid)):
        changed = changed_by(job.config, (*options.set, *values))
        params = {**found, **changed.model.params}
        model = trained_by_plain_keras(changed, module, params, train)
        results.append((measured(model, validation, job.metric), values, model))
        print(f"validation {job.metric} {results[-1][0]:.4f}  {' '.join(values)}", flush=True)
    _, values, model = (min if job.metric in LESS_IS_BETTER else max)(results, key=lambda result: result[0])
    print(f"chosen: {' '.join(values)}; test {job.metric} {measured(model, test, job.metric):.4f}")


def choices(part: str) -> list[str]:
    key, _, values = part.partition("=")
    return [f"{key}={value}" for value in values.split(",")]


def changed_by(config: str, changes: tuple[str, ...]) -> Any:
    from tfspark.experiment.config import load_config

    with contextlib.chdir(ROOT):
        return load_config(f"configs/{config}.yaml", changes)


if __name__ == "__main__":
    main()
