"""Read an experiment from YAML: defaults, then the file, then ``--set`` options.

Called on the driver by ``tfspark run`` before anything else starts; the run gets the `Experiment`. Imports
neither Spark nor TensorFlow, so a mistake is reported within a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tfspark.errors import ConfigError
from tfspark.experiment.config_problems import report_errors
from tfspark.experiment.config_schema import (
    Callbacks,
    Checkpoint,
    Cluster,
    Data,
    EarlyStopping,
    Experiment,
    Export,
    Feature,
    Label,
    Model,
    Optimizer,
    Output,
    ReduceLROnPlateau,
    Source,
    Train,
)
from tfspark.experiment.secrets import refuse_redacted, without_secrets
from tfspark.experiment.yaml_source import Document, Dumper, Key, override, parse_document, put, read_document
from tfspark.shipped import find_shipped

__all__ = [
    "Callbacks",
    "Checkpoint",
    "Cluster",
    "Data",
    "EarlyStopping",
    "Experiment",
    "Export",
    "Feature",
    "Label",
    "Model",
    "Optimizer",
    "Output",
    "ReduceLROnPlateau",
    "Source",
    "Train",
    "config_from_options",
    "load_config",
    "resolved_yaml",
]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment.

    Args:
        path: a YAML file; an included one is found by its name, too, for example ``configs/mnist_cnn.yaml``.
        overrides: ``a.b=value`` each, the value in YAML; a later one overrides an earlier one.

    Returns:
        The experiment. Paths of data that exist below the working directory are absolute.

    Raises:
        ConfigError: lists every problem with its file and line, or its option.
    """
    return _finished(read_document(find_shipped(str(path))), overrides)


def config_from_options(given: Mapping[Key, Any], overrides: Sequence[str] = ()) -> Experiment:
    """Create an experiment without a file; see `load_config`.

    Args:
        given: key -> value, used literally; names of columns and paths may have any characters.
        overrides: ``a.b=value`` each, the value in YAML.
    """
    document = parse_document("{}", "the command line")
    for key, value in given.items():
        put(document, key, value, document.path)
    return _finished(document, overrides)


def _finished(document: Document, overrides: Sequence[str]) -> Experiment:
    override(document, overrides, takes_dots=_is_settings)
    refuse_redacted(document.values)
    experiment = _validate(document)
    if experiment is None or document.problems:
        raise ConfigError(_message(document))
    return experiment


def resolved_yaml(experiment: Experiment) -> str:
    """Return the experiment with all defaults as YAML; `load_config` reads it back as an equal experiment.

    Secrets are removed; the user must pass them again.
    """
    values = without_secrets(experiment.model_dump(by_alias=True))
    return str(yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110))


def _validate(document: Document) -> Experiment | None:
    try:
        experiment = Experiment.model_validate(document.values)
    except ValidationError as error:
        report_errors(error, document)
        return None
    return experiment.model_copy(update={"data": _with_absolute_paths(experiment.data)})


def _is_settings(key: Key) -> bool:
    """Whether the keys below `key` are Spark's names, which have dots."""
    return key == ("cluster", "spark") or (key[0] == "data" and key[-1] == "options")


def _with_absolute_paths(data: Data) -> Data:
    splits = {
        name: split.model_copy(update={"path": _absolute(split.path)})
        for name, split in (("validation", data.validation), ("test", data.test))
        if isinstance(split, Source)
    }
    return data.model_copy(update={"path": _absolute(data.path), **splits})


def _absolute(path: str | None) -> str | None:
    """Return the absolute path if it exists (of a glob, the part before it); otherwise leave it to Spark."""
    if path is None or "://" in path:
        return path
    certain = re.split(r"[*?\[{]", path)[0]
    here = path if certain == path else os.path.dirname(certain)
    return str(Path.cwd() / path) if here and os.path.exists(here) else path


def _message(document: Document) -> str:
    problems = sorted(document.problems, key=lambda problem: _line(problem.place))
    if len(problems) == 1:
        return str(problems[0])
    return "\n  ".join([f"{len(problems)} problems in {document.path}:", *map(str, problems)])


def _line(place: str) -> tuple[bool, int]:
    """Return a sort key: by line, then the options in their order."""
    line = place.rpartition(":")[2]
    is_option = place.startswith("--set")
    return is_option, 0 if is_option or not line.isdigit() else int(line)
