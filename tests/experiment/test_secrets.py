"""The record of a run contains no passwords. Loading it says which values the user must give again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tfspark.errors import ConfigError
from tfspark.experiment.config import config_from_options, load_config, resolved_yaml
from tfspark.experiment.rundir import RunDirectory
from tfspark.experiment.secrets import REDACTED, arguments_without_secrets, is_secret

GIVEN = {
    ("name",): "secrets",
    ("model", "module"): "models/cnn.py",
    ("model", "params", "token"): "a word of the model's own",
    ("data", "path"): "rows",
    ("data", "format"): "jdbc",
    ("data", "options", "password"): "hunter2",
    ("data", "options", "url"): "jdbc:postgresql://db/rows?user=a&password=hunter2",
    ("data", "options", "dbtable"): "digits",
    ("data", "features", "x"): {},
    ("cluster", "spark", "spark.hadoop.fs.s3a.secret.key"): "hunter2",
    ("cluster", "spark", "spark.authenticate.secret"): "hunter2",
    ("cluster", "spark", "spark.executor.memory"): "2g",
}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("password", "x", True),
        ("spark.hadoop.fs.azure.account.key.a.dfs.core.windows.net", "x", True),
        ("spark.hadoop.fs.s3a.access.key", "x", True),
        ("spark.kubernetes.authenticate.oauthToken", "x", True),
        ("data.options.apiKey", "x", True),
        ("path", "s3://key:word@bucket/rows", True),
        ("url", "https://host/rows?sig=abc", True),
        ("url", "jdbc:postgresql://db/rows", False),
        ("spark.network.crypto.enabled", "true", False),
        ("spark.authenticate.secret.enabled", "true", False),
        ("train.epochs", "5", False),
        ("password", None, False),
    ],
)
def test_secrets_are_recognised_by_name_or_value(name: str, value: str | None, expected: bool) -> None:
    assert is_secret(name, value) is expected


def test_record_of_a_run_has_no_secrets_and_says_which_to_give_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = resolved_yaml(config_from_options(GIVEN))
    assert "hunter2" not in text
    assert text.count(REDACTED) == 4
    assert [word for word in ("digits", "2g", "a word of the model's own") if word not in text] == []
    record = tmp_path / "config.yaml"
    record.write_text(text)
    with pytest.raises(ConfigError, match=r"expected the value of \S+, got .*redacted.*--set \S+="):
        load_config(record)
    again = [f"{'.'.join(key)}={value}" for key, value in GIVEN.items() if "hunter2" in str(value)]
    assert load_config(record, again) == config_from_options(GIVEN)

    monkeypatch.setattr(sys, "argv", ["tfspark", "run", "a.yaml", "--set", "data.options.password=hunter2"])
    directory = RunDirectory(tmp_path, "secrets")
    directory.write_versions()
    assert (
        json.loads((directory.path / "versions.json").read_text())["argv"][-1]
        == f"data.options.password={REDACTED}"
    )


def test_arguments_without_secrets_are_unchanged() -> None:
    words = ["tfspark", "run", "a.yaml", "--set", "train.epochs=5", "--resume", "runs/a=b"]
    assert arguments_without_secrets(words) == words
