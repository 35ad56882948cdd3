"""The sidecar evaluator: evaluate each new checkpoint while the workers continue to train. Runs in its trainer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from tfspark.protocol.values import Json
from tfspark.training.build import BuildModel, call_build_model, set_precision
from tfspark.training.evaluation import Figure, LocalEvaluator
from tfspark.training.input.dataset import open_feed
from tfspark.training.jobs import job_done, posted_jobs, unless_broken_off

if TYPE_CHECKING:
    from tfspark.training.context import TrainingContext


def run_evaluator(build_model: BuildModel, params: object, context: TrainingContext) -> Json:
    """Evaluate as the driver's jobs say, until the job ``close``.

    After every epoch the chief sends its weights to the driver, the driver feeds the validation rows to this node only,
    and this node reports ``val_*``.

    Returns:
        ``{"epochs": [...], "history": {"val_loss": [...], ...}}``.
    """
    keras.utils.set_random_seed(context.seed)
    set_precision(context.settings)
    model = call_build_model(build_model, params)
    evaluator = LocalEvaluator(model, context, num_ranks=1)
    epochs: list[int] = []
    history: dict[str, list[Figure]] = {}
    context.report("tensorflow", seconds=context.age_s)
    for job in posted_jobs(context):
        if job["kind"] == "side_car":
            results = unless_broken_off(functools.partial(_evaluate, model, evaluator, context, job))
            if results:
                epochs.append(job["epoch"])
                context.report("validation", epoch=job["epoch"], metrics=results)
            for name, value in results.items():
                history.setdefault(name, []).append(value)
            job_done(context, job, results)
    return {"epochs": epochs, "history": history}


def _evaluate(
    model: keras.Model, evaluator: LocalEvaluator, context: TrainingContext, job: Json
) -> dict[str, Figure]:
    file = Path(context.scratch_dir, "weights.weights.h5")
    context.download(job["weights"], file)
    model.load_weights(file)
    feed = open_feed(context, "validation")
    feed.next_index = job["index"]
    results = evaluator.evaluate(feed, f"side-car-{job['index']}")
    return {f"val_{name}": value for name, value in results.items()}
