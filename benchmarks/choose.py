"""Choose the parameters of one of tfspark's experiments by validation rows, which are neither training nor test rows.

    python benchmarks/choose.py diamonds model.params.dropout=0,0.1 model.params.hidden=[64],[128,64]

Plain Keras trains with every combination, on the same rows and with the same seed. It is measured on the validation
rows after each epoch, so the number of epochs is chosen, too, up to that of the experiment. The validation rows are
those of the experiment, or a tenth of the training rows if it has none. For sunspots, they are the last months before
the test rows. For breast cancer, only the test rows have malignant rows: half of the test rows are validation rows, and
the other half is the test. The measure of a GAN is the distance of its samples from these rows, see `gans.Judge`.

Only the chosen parameters are measured on the test rows. Plain Keras trains with them as in the experiment: on all
training rows if the experiment has no validation rows.

Needs the experiment's data set below data/: ``scripts/prepare_data NAME``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import statistics
import zlib
from typing import Any

import yaml
from gans import Judge
from prepared import ROOT

from models import JOBS, Job, reached_on_test, read, trained_by_plain_keras

LESS_IS_BETTER = ("mae", "mse", "rmse", "loss", "distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("grid", nargs="*", help="KEY=VALUE,VALUE...: keys as those of tfspark run --set")
    parser.add_argument("--set", nargs="+", default=[], help="further options of all")
    options = parser.parse_args()
    job = JOBS[options.job]
    runs = [(*run, *options.set) for run in job.runs or [()]]
    # Spark reads the rows again only for different options of the data.
    rows_of = functools.cache(rows_to_choose_by)
    found = []
    for values in itertools.product(*(choices(part) for part in options.grid)):
        of_data = tuple(value for value in values if value.startswith("data."))
        by_run = [each_epoch(job, (*run, *values), *rows_of(job, (*run, *of_data))) for run in runs]
        by_epoch = [statistics.mean(figures) for figures in zip(*by_run, strict=True)]
        figure = (min if job.metric in LESS_IS_BETTER else max)(by_epoch)
        found.append((figure, (*values, f"train.epochs={by_epoch.index(figure) + 1}")))
        print(f"validation {job.metric} {figure:.4f}  {' '.join(found[-1][1])}", flush=True)
    _, values = (min if job.metric in LESS_IS_BETTER else max)(found)
    tested = [test_figure(job, (*run, *values)) for run in runs]
    each = f" ({', '.join(f'{figure:.4f}' for figure in tested)})" if len(tested) > 1 else ""
    print(f"chosen: {' '.join(values)}; test {job.metric} {statistics.mean(tested):.4f}{each}")


def choices(part: str) -> list[str]:
    """Return the options of one dimension of the grid: ``a=1,2`` -> ``a=1``, ``a=2``."""
    key, _, values = part.partition("=")
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
            for value in yaml.safe_load(f"[{values}]")]  # fmt: skip


def rows_to_choose_by(job: Job, changes: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the module, the parameters from `adapt`, training rows, validation rows, and the judge of a GAN."""
    _, module, params, train, validation, test = read(job, changes)
    if job.halves_test:
        validation = halves(test)[0]
    elif validation is None:
        _, module, params, train, validation, _ = read(job, (*changes, *job.choosing))
    return module, params, train, validation, Judge(*train) if job.metric == "distance" else None


def each_epoch(
    job: Job,
    changes: tuple[str, ...],
    module: Any,
    found: dict[str, Any],
    train: Any,
    validation: Any,
    judge: Judge | None,
) -> list[float]:
    """Train a model; return the metrics of the validation rows after each epoch."""
    from tfspark.experiment.config import load_config

    with contextlib.chdir(ROOT):
        experiment = load_config(f"configs/{job.config}.yaml", changes)
    params = {**found, **experiment.model.params}
    if judge is not None:
        distances: list[float] = []
        measure = judge.after_each_epoch(validation[0], distances)
        trained_by_plain_keras(experiment, module, params, train, further=[measure])
        return distances
    model = trained_by_plain_keras(experiment, module, params, train, validation)
    return [float(figure) for figure in model.history.history[f"val_{job.metric}"]]


def test_figure(job: Job, changes: tuple[str, ...]) -> float:
    experiment, module, params, train, _, test = read(job, changes)
    model = trained_by_plain_keras(experiment, module, params, train)
    return reached_on_test(job, model, train, halves(test)[1] if job.halves_test else test)


def halves(rows: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """Divide rows by their content: equal rows of several tests are in the same half."""
    x, y = rows
    is_second = [zlib.crc32(row.tobytes()) % 2 == 1 for row in x]
    return [
        tuple(part[[second == half for second in is_second]] for part in (x, y)) for half in (False, True)
    ]


if __name__ == "__main__":
    main()
