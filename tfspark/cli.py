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
"""The exit code after a signal is this plus the signal's number, as in shells."""
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
        typer.Option(help="Continue an interrupted run: its directory, e.g. runs/mnist_cnn-20261121-031607."),
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
                "experiment.yaml`, or `tfspark run --resume RUN_DIR` to continue an interrupted run"
            )
        path = config if config is not None else config_of(Path(str(resume)))
        experiment = load_config(path, set_ or [])  # Report mistakes before large packages are imported.
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
    output: Annotated[str, typer.Option(help="Directory to write; it must not exist.")],
    format_: Annotated[
        str | None,
        typer.Option("--format", help="Format of the rows; by default that of the run, or parquet."),
    ] = None,
    output_format: Annotated[str, typer.Option(help="parquet, json, csv, orc or tfrecord.")] = "parquet",
    features: Annotated[
        list[str] | None,
        typer.Option(help="A feature column; repeat for several. By default those of the run."),
    ] = None,
    nulls: Annotated[str, typer.Option(help="Rows with a null feature: error, skip or keep.")] = "error",
    master: Annotated[str | None, typer.Option(help="Spark's master; by default that of the run.")] = None,
    conf: Annotated[list[str] | None, typer.Option("--conf", help="A Spark setting.")] = None,
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
    conf: Annotated[list[str] | None, typer.Option("--conf", help="A Spark setting.")] = None,
) -> None:
    """Evaluate a run's model on other rows: metrics and pictures."""
    with _in_words():
        from tfspark.experiment.use import evaluate_files

        metrics, place = evaluate_files(run, data, format_, output, _chosen_cluster(master, conf))
        for name, value in metrics.items():
            typer.echo(f"{name:<24} {value:.4f}")
        typer.echo(f"results in {place}")


def _chosen_cluster(master: str | None, conf: list[str] | None) -> Any:
    """Return a section `cluster` with the values of ``--master`` and ``--conf``; None: neither was given."""
    from tfspark.experiment.config_schema import Cluster

    if master is None and not conf:
        return None
    settings = dict(setting.partition("=")[::2] for setting in conf or [])
    return _cluster(Cluster, master=master, spark=settings)


@app.command()
def chaos(
    faults: Annotated[list[str] | None, typer.Argument(help="Names of faults; by default all.")] = None,
    master: Annotated[
        str | None, typer.Option(help="Spark's master; spark-submit overrides it.")
    ] = "local[4]",
    conf: Annotated[
        list[str] | None,
        typer.Option("--conf", help="A Spark setting: --conf spark.executor.memory=2g."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="The feed's timeout in s; a hang is detected after half of it.")
    ] = 40.0,
) -> None:
    """Cause failures on purpose, and test whether training on this cluster survives them."""
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
        console.print(f"{survived} of {len(outcomes)} faults ended as expected")
        if survived < len(outcomes):
            sys.exit(1)


def _cluster(make: Callable[..., Any], **given: Any) -> Any:
    """Create the section `cluster` from options of the command line.

    Raises:
        ConfigError: an option is wrong.
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
        if isinstance(stream, io.TextIOWrapper):  # Names may have characters that the locale cannot encode.
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
        advice = "free space there, or choose another directory"
        Console(stderr=True).print(f"{failure}; {advice}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print("interrupted: all processes of the run were ended")
        sys.exit(SIGNALLED + (interrupt.args[0] if interrupt.args else signal.SIGINT))


class _Interrupt:
    """Converts the first signal to a KeyboardInterrupt with the signal's number.

    Further signals within `ENDING_S` are ignored: a second one would interrupt the shutdown. If a signal arrives while
    a finalizer runs, Python drops the exception, so the signal is sent again.
    """

    def __init__(self) -> None:
        self._came = -ENDING_S

    def __call__(self, number: int, frame: Any) -> None:
        del frame
        if time.monotonic() - self._came < ENDING_S:
            return
        self._came = time.monotonic()
        # From here on, calls to Spark fail because of the interrupt: hide their errors.
        logging.disable()
        threading.excepthook = lambda broken: None
        raise KeyboardInterrupt(number)

    def lost(self, dropped: sys.UnraisableHookArgs) -> None:
        """Send the signal again if Python has dropped its exception."""
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            self._came = -ENDING_S
            threading.Timer(AGAIN_S, os.kill, (os.getpid(), dropped.exc_value.args[0])).start()
        else:
            sys.__unraisablehook__(dropped)


if __name__ == "__main__":
    main()
