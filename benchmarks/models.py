"""Measure the quality of tfspark's models, trained by two workers through the feed: the table of docs/models.md.

    python benchmarks/models.py [--jobs mnist sunspots ...] [--seeds 42 1 2] [--set train.epochs=3 ...]
                                [--plain | --trees]

Each figure is that of `tfspark run` with the experiment of `configs/`, on its test rows. With `--plain`, it is that of
plain Keras in this process: the same training and test rows, parameters, batch size and epochs, without workers. With
`--trees`, it is that of gradient-boosted trees of Spark MLlib on the rows of tables.

Needs the data sets of the jobs below data/: ``scripts/prepare_data NAME``; `tfspark run` fetches them automatically.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gans import Judge
from prepared import ROOT, prepared

FOLDS = range(1, 6)


@dataclass(frozen=True)
class Job:
    """One line of the table.

    Attributes:
        config: the experiment.
        metric: name of the metric of the test rows. "distance" is the distance of a GAN's 10,000 samples from the test
            rows, see `gans.Judge`.
        runs: options of each run; if empty, there is one run for each seed.
        choosing: options only for `choose.py`: the source of the validation rows, if the experiment has none.
        halves_test: whether `choose.py` uses half of the test rows as validation rows, and the other half as test rows.
    """

    config: str
    metric: str
    runs: tuple[tuple[str, ...], ...] = ()
    choosing: tuple[str, ...] = ("data.validation=0.1",)
    halves_test: bool = False


def folds() -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            f"data.path=data/breast_cancer/fold_{fold}/train",
            f"data.test={{path: data/breast_cancer/fold_{fold}/test}}",
        )
        for fold in FOLDS
    )


JOBS = {
    "mnist": Job("mnist_full", "accuracy"),
    "rotten_tomatoes": Job("rnn_rotten_tomatoes", "accuracy"),
    "imdb": Job("rnn_imdb", "accuracy"),
    "sunspots": Job("rnn_sunspots", "rmse", choosing=("data.validation=0.16",)),
    "breast_cancer": Job("autoencoder_breast_cancer", "auc", folds(), choosing=(), halves_test=True),
    "autoencoder_mnist": Job("autoencoder_mnist", "mse"),
    "gan_mnist": Job("gan_mnist", "distance", (("data.test={path: data/mnist_full/test}",),)),
    "gan_digits": Job("gan_digits", "distance", (("data.test=0.2",),)),
    "diamonds": Job("mlp_diamonds", "mae"),
    "diamonds_cut": Job("mlp_diamonds_cut", "accuracy"),
    "pasted_digits": Job("unet_pasted_digits", "mean_iou"),
    "digit_lines": Job("rnn_digit_lines", "accuracy"),
}
TREES = ("diamonds", "diamonds_cut")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument(
        "--set", nargs="+", default=[], help="further options of each run, as those of tfspark run"
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--plain", action="store_true", help="plain Keras in this process instead")
    other.add_argument("--trees", action="store_true", help="trees of Spark MLlib instead, for tables")
    options = parser.parse_args()
    print(f"{'experiment':<28}{'metric':>10}{'mean':>9}{'seconds':>9}  each")
    for name in options.jobs:
        job = JOBS[name]
        began = time.monotonic()
        reach = reached_by_plain_keras if options.plain else reached_by_trees if options.trees else reached
        runs = job.runs or [(f"seed={seed}",) for seed in options.seeds]
        values = [reach(job, (*changes, *options.set)) for changes in runs]
        seconds = (time.monotonic() - began) / len(values)
        each = ", ".join(f"{value:.4g}" for value in values)
        mean = statistics.mean(values)
        print(f"{job.config:<28}{job.metric:>10}{mean:>9.4g}{seconds:>9.0f}  {each}", flush=True)


def reached(job: Job, changes: tuple[str, ...]) -> float:
    """Run an experiment; return its test metric."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as runs:
        command = [sys.executable, "-m", "tfspark.cli", "run", f"configs/{job.config}.yaml"]
        for change in (*changes, f"output.dir={runs}"):
            command += ["--set", change]
        done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"expected configs/{job.config}.yaml to run, it ended with {done.returncode}: see above")
        if job.metric == "distance":
            import keras

            _, _, _, train, _, test = read(job, changes)
            model = keras.models.load_model(next(Path(runs).glob("*/export/model.keras")))
            return reached_on_test(job, model, train, test)
        results = json.loads(next(Path(runs).glob("*/results.json")).read_text())
    return float(results["test"][job.metric])


def reached_by_plain_keras(job: Job, changes: tuple[str, ...]) -> float:
    """Run an experiment without a cluster; return the test metric."""
    experiment, module, params, train, _, test = read(job, changes)
    model = trained_by_plain_keras(experiment, module, params, train)
    return reached_on_test(job, model, train, test)


def read(job: Job, changes: tuple[str, ...]) -> tuple[Any, ...]:
    """Return an experiment, its module, its parameters, and its training, validation and test rows."""
    from tfspark.experiment.config import load_config
    from tfspark.experiment.modules import load_model_module

    with contextlib.chdir(ROOT):
        experiment = load_config(f"configs/{job.config}.yaml", changes)
        for source in (experiment.data, experiment.data.validation_source, experiment.data.test_source):
            prepared(place_of(source or experiment.data))
        module = load_model_module(experiment.model.module)
        return experiment, module, *rows_of(experiment, module)


def place_of(source: Any) -> str:
    """Return the directory of a source's files below ``data/``."""
    return str((ROOT / source.path).relative_to(ROOT / "data"))


def trained_by_plain_keras(
    experiment: Any,
    module: Any,
    params: dict[str, Any],
    train: Any,
    validation: Any = None,
    further: Sequence[Any] = (),
) -> Any:
    """Return the trained model; its `history` has the metrics of each epoch. `further` are more callbacks."""
    import keras

    keras.utils.set_random_seed(experiment.seed)
    model = module.build_model(params)
    callbacks = [*(module.callbacks(params) if module.callbacks else []), *further]
    size, epochs = experiment.data.batch_size, experiment.train.epochs
    model.fit(
        *train, batch_size=size, epochs=epochs, callbacks=callbacks, verbose=0,
        validation_data=validation, validation_batch_size=256,
    )  # fmt: skip
    return model


def reached_on_test(job: Job, model: Any, train: Any, test: Any) -> float:
    """Return the job's metric of the test rows. For a GAN, print the confidence of its judge, too."""
    if job.metric != "distance":
        return measured(model, test, job.metric)
    distance, confidence = Judge(*train).figures(model, test[0])
    print(f"mean confidence {confidence:.3f}", end=", ")
    return distance


def measured(model: Any, rows: Any, metric: str) -> float:
    return float(model.evaluate(*rows, batch_size=256, verbose=0, return_dict=True)[metric])


def reached_by_trees(job: Job, changes: tuple[str, ...]) -> float:
    """Train boosted trees on an experiment's rows with the depth that validates best; return the test metric."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import GBTClassifier, OneVsRest
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
    from pyspark.ml.feature import StringIndexer, VectorAssembler
    from pyspark.ml.regression import GBTRegressor

    from tfspark.experiment.config import load_config
    from tfspark.experiment.rows import load_rows
    from tfspark.experiment.session import spark_session

    with contextlib.chdir(ROOT):
        experiment = load_config(f"configs/{job.config}.yaml", changes)
        prepared(place_of(experiment.data))
        with spark_session(experiment.name, experiment.cluster) as spark:
            rows = load_rows(spark, experiment)
            label = rows.columns.label.name
            train, validation, test = (df.persist() for df in (rows.train, rows.validation, rows.test))
            texts = [name for name, kind in train.dtypes if kind == "string"]
            numbers = [name for name, kind in train.dtypes if kind != "string" and name != label]
            indexed = [StringIndexer(inputCol=name, outputCol=f"{name} index") for name in texts]
            together = VectorAssembler(
                inputCols=[*numbers, *(f"{name} index" for name in texts)], outputCol="all"
            )
            options = {"featuresCol": "all", "labelCol": label}
            if rows.columns.num_classes is None:
                measure = RegressionEvaluator(labelCol=label, metricName=job.metric)
            else:
                measure = MulticlassClassificationEvaluator(labelCol=label, metricName=job.metric)
            found = []
            for depth in (5, 8):
                if rows.columns.num_classes is None:
                    trees: Any = GBTRegressor(**options, maxDepth=depth, maxIter=40, seed=experiment.seed)
                else:
                    one = GBTClassifier(**options, maxDepth=depth, maxIter=20, seed=experiment.seed)
                    trees = OneVsRest(classifier=one, **options)
                model = Pipeline(stages=[*indexed, together, trees]).fit(train)
                found.append([measure.evaluate(model.transform(df)) for df in (validation, test)])
                print(f"depth {depth}: validation {found[-1][0]:.4g}, test {found[-1][1]:.4g}", end=", ")
    best = max(found) if measure.isLargerBetter() else min(found)
    return float(best[1])


def rows_of(experiment: Any, module: Any) -> tuple[dict[str, Any], Any, Any, Any]:
    """Read and divide the rows with Spark as `tfspark run` does; return the parameters and the rows as tensors."""
    from tfspark.experiment.rows import load_rows
    from tfspark.experiment.run import model_params
    from tfspark.experiment.session import spark_session

    with spark_session(experiment.name, experiment.cluster) as spark:
        rows = load_rows(spark, experiment)
        params = model_params(experiment, rows)
        params = module.adapt(params, rows.train) if module.adapt else params
        parts = (rows.train, rows.validation, rows.test)
        return params, *(df and tensors(df.toArrow(), rows.columns, module.features) for df in parts)


def tensors(table: Any, columns: Any, features: Any) -> tuple[Any, Any]:
    """Return features and labels in the form for Keras; if the features are the target, return them twice."""
    import tensorflow as tf

    from tfspark.feed.arrays import to_numpy
    from tfspark.feed.reader import WEIGHT
    from tfspark.training.input.elements import flattened, joined, to_element

    arrays = flattened(to_numpy(table.combine_chunks().to_batches()[0], columns), columns)
    rows = joined({name: tf.constant(values) for name, values in arrays.items()}, columns)
    x, y, _ = to_element({**rows, WEIGHT: tf.ones(len(table))}, columns, features)
    # NumPy arrays: `fit` shuffles their rows, and `choose.py` selects rows by a mask.
    return tf.nest.map_structure(
        lambda tensor: tensor if tensor.dtype == tf.string else tensor.numpy(), (x, y)
    )


if __name__ == "__main__":
    main()
