"""The ``tfspark`` command."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tfspark.errors import ConfigError, TfsparkError, in_words

app = typer.Typer(
    name="tfspark",
    help="Train Keras models across a Spark cluster, where the data already is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SIGNALLED = 128
"""Added to a signal's number it is the exit code, as shells have it."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
ENDING_S = 10.0
AGAIN_S = 0.05


@app.command()
def run(
    config: Annotated[
        str | None, typer.Argument(help="A YAML experiment, e.g. configs/mnist_cnn.yaml.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: --set train.epochs=5.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with an interrupted run: its directory, e.g. runs/mnist_cnn-20261121-031607."
        ),
    ] = None,
    worker_logs: Annotated[bool, typer.Option(help="Print what the workers write.")] = False,
) -> None:
    """Run an experiment: train, evaluate, export, report."""
    with _in_words():
        from tfspark.experiment.config import load_config
        from tfspark.experiment.resume import config_of

        if config is None and resume is None:
            raise ConfigError(
                "expected a YAML experiment or --resume with a run directory, got neither; run `tfspark run "
                "experiment.yaml`, or `tfspark run --resume RUN_DIR` to go on with a run that was interrupted"
            )
        path = config if config is not None else config_of(Path(str(resume)))
        experiment = load_config(path, set_ or [])  # Mistakes show before anything heavy is imported.
        from tfspark.experiment.run import run_experiment

        run_experiment(experiment, show_worker_logs=worker_logs, resume=resume)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A model module: a Python file with build_model(params).")],
    data: Annotated[str, typer.Option(help="Path of the rows.")],
    features: Annotated[list[str], typer.Option(help="A feature column; repeat for several.")],
    label: Annotated[str | None, typer.Option(help="The label column.")] = None,
    classes: Annotated[str | None, typer.Option(help="Number of classes, a list of them, or infer.")] = None,
    format_: Annotated[str, typer.Option("--format", help="Format of the rows.")] = "tfrecord",
    epochs: Annotated[int, typer.Option(help="Passes over the rows.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows per step over all workers.")] = 64,
    executors: Annotated[int, typer.Option(help="Nodes; each holds one of Spark's task slots.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key of an experiment: --set data.test=0.2.")
    ] = None,
    worker_logs: Annotated[bool, typer.Option(help="Print what the workers write.")] = False,
) -> None:
    """Train a model module without a YAML file; made for spark-submit."""
    with _in_words():
        from tfspark.experiment.config import config_from_options
        from tfspark.experiment.yaml_source import parse_value

        given: dict[tuple[str | int, ...], Any] = {
            ("name",): Path(model).stem,
            ("model", "module"): model,
            ("data", "path"): data,
            ("data", "format"): format_,
            ("data", "batch_size"): batch_size,
            ("cluster", "executors"): executors,
            ("train", "epochs"): epochs,
            **{("data", "features", name): {} for name in features},
            **({} if label is None else {("data", "label", "column"): label}),
            **({} if classes is None else {("data", "label", "classes"): parse_value(classes)}),
        }
        experiment = config_from_options(given, set_ or [])
        from tfspark.experiment.run import run_experiment

        run_experiment(experiment, show_worker_logs=worker_logs)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A run directory, a .keras file or a SavedModel's directory.")],
    data: Annotated[str, typer.Option(help="Path of the rows.")],
    output: Annotated[str, typer.Option(help="Directory to write; it must not be there.")],
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the rows; by default that of the run, or parquet."),
    ] = None,
    output_format: Annotated[str, typer.Option(help="parquet, json, csv, orc or tfrecord.")] = "parquet",
    features: Annotated[
        list[str] | None,
        typer.Option(help="A feature column; repeat for several. By default as the run has them."),
    ] = None,
    nulls: Annotated[str, typer.Option(help="Rows with a null feature: error, skip or keep.")] = "error",
    master: Annotated[str | None, typer.Option(help="Spark's master; by default that of the run.")] = None,
    conf: Annotated[list[str] | None, typer.Option("--conf", help="A setting of Spark's.")] = None,
) -> None:
    """Write rows with a trained model's predictions."""
    with _in_words():
        from tfspark.experiment.use import predict_files

        cluster = _chosen_cluster(master, conf)
        count = predict_files(model, data, output, format_, output_format, features, nulls, cluster)
        typer.echo(f"{count:,} rows in {output}")


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run directory.")],
    data: Annotated[str, typer.Option(help="Path of the rows, which have the label.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of the rows; by default that of the run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Directory of the results; by default in the run directory.")
    ] = None,
    master: Annotated[str | None, typer.Option(help="Spark's master; by default that of the run.")] = None,
    conf: Annotated[list[str] | None, typer.Option("--conf", help="A setting of Spark's.")] = None,
) -> None:
    """Evaluate a run's model on other rows: metrics and pictures."""
    with _in_words():
        from tfspark.experiment.use import evaluate_files

        metrics, place = evaluate_files(run, data, format_, output, _chosen_cluster(master, conf))
        for name, value in metrics.items():
            typer.echo(f"{name:<24} {value:.4f}")
        typer.echo(f"results in {place}")


def _chosen_cluster(master: str | None, conf: list[str] | None) -> Any:
    """Return the section `cluster` of ``--master`` and ``--conf``; None: neither was given."""
    from tfspark.experiment.config_schema import Cluster

    if master is None and not conf:
        return None
    settings = dict(setting.partition("=")[::2] for setting in conf or [])
    return _cluster(Cluster, master=master, spark=settings)


@app.command()
def chaos(
    faults: Annotated[list[str] | None, typer.Argument(help="Which faults; all if none is named.")] = None,
    master: Annotated[
        str | None, typer.Option(help="Spark's master; under spark-submit it is known.")
    ] = "local[4]",
    conf: Annotated[
        list[str] | None,
        typer.Option("--conf", help="A setting of Spark's: --conf spark.executor.memory=2g."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="The feed's timeout in s; half of it is how long a hang goes unnoticed.")
    ] = 40.0,
) -> None:
    """Break things on purpose, and see whether training on this cluster survives."""
    with _in_words():
        from tfspark import chaos as faults_of
        from tfspark.experiment.config_schema import Cluster
        from tfspark.experiment.session import spark_session

        settings = dict(setting.partition("=")[::2] for setting in conf or [])
        console = Console()
        wanted = _cluster(Cluster, master=master, executors=2, spark=settings)
        with spark_session("chaos", wanted) as spark:
            outcomes = faults_of.certify(
                spark,
                faults or list(faults_of.FAULTS),
                timeout,
                lambda outcome: console.print(faults_of.line_of(outcome), highlight=False, soft_wrap=True),
            )
        survived = sum(not outcome.wrong for outcome in outcomes)
        console.print(f"{survived} of {len(outcomes)} faults ended as they should")
        if survived < len(outcomes):
            sys.exit(1)


def _cluster(make: Callable[..., Any], **given: Any) -> Any:
    """Make the section `cluster` of options of the command line.

    Raises:
        ConfigError: one is wrong.
    """
    from pydantic import ValidationError

    try:
        return make(**given)
    except ValidationError as error:
        (first, *_) = error.errors()
        raise ConfigError(
            f"expected --{first['loc'][0]} to be Spark's master, such as local[4] or spark://host:7077, got "
            f"{first['input']!r}"
        ) from None


@app.command(name="submit-script")
def submit_script() -> None:
    """Print the path of the script to give to spark-submit."""
    typer.echo(str(Path(__file__).with_name("submit.py")))


@app.command(name="prepare-data")
def prepare_data(
    names: Annotated[list[str], typer.Argument(help="Names of data sets, e.g. mnist_5k.")],
    root: Annotated[Path, typer.Option(help="Directory of all data sets.")] = Path("data"),
) -> None:
    """Fetch real data sets and write them as TFRecord files."""
    with _in_words():
        from tfspark.experiment.datasets import prepare

        for name in names:
            typer.echo(str(prepare(name, root)))


def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    Exit codes: 0 done; 1 the run failed; 2 the configuration or the command line is wrong; 130 ended by SIGINT
    (Ctrl-C), 143 by SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Names may have letters that the locale has not.
            stream.reconfigure(errors="backslashreplace")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # Model modules may import Keras on the driver, too.
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    sys.unraisablehook = interrupt.lost
    app(args=arguments)


@contextmanager
def _in_words() -> Iterator[None]:
    """Show errors of tfspark as one message, not as a traceback, and end with an exit code."""
    try:
        yield
    except TfsparkError as error:
        Console(stderr=True).print(f"error: {in_words(error)}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        failure = f"error: expected to write {error.filename or 'a file'}, the system said: {error.strerror}"
        advice = "make room there, or choose another place"
        Console(stderr=True).print(f"{failure}; {advice}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print("interrupted: all processes of the run were ended")
        sys.exit(SIGNALLED + (interrupt.args[0] if interrupt.args else signal.SIGINT))


class _Interrupt:
    """Turns the first signal into a KeyboardInterrupt that carries its number.

    Those that follow within `ENDING_S` are ignored: an impatient second one would break off the ending. One that
    comes while a finalizer runs, where Python drops what is raised, is sent again.
    """

    def __init__(self) -> None:
        self._came = -ENDING_S

    def __call__(self, number: int, frame: Any) -> None:
        del frame
        if time.monotonic() - self._came < ENDING_S:
            return
        self._came = time.monotonic()
        # What breaks from here on, in the middle of a call to Spark, is no news.
        logging.disable()
        threading.excepthook = lambda broken: None
        raise KeyboardInterrupt(number)

    def lost(self, dropped: sys.UnraisableHookArgs) -> None:
        """Send the signal again whose exception Python has dropped."""
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            self._came = -ENDING_S
            threading.Timer(AGAIN_S, os.kill, (os.getpid(), dropped.exc_value.args[0])).start()
        else:
            sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()
