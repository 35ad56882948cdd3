"""Find and remove secrets: passwords, tokens and keys among the settings of Spark and of data sources. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfspark.errors import ConfigError

REDACTED = "*********(redacted)"
"""Spark's own text in place of a secret."""
SECTIONS = ("options", "spark")
"""Mappings whose keys are settings of Spark or of a data source; other mappings have the user's own names."""
_NAME = re.compile(
    r"(?i)secret|password|passwd|passphrase|token|credential|access[._-]?key|account[._-]?key|api[._-]?key"
    r"|private[._-]?key|fs\.azure\.sas"
)
_VALUE = re.compile(r"(?i)(password|passwd|pwd|secret|token|sig)=[^&;\s]|://[^/@\s:]+:[^/@\s]+@")


def is_secret(name: str, value: Any) -> bool:
    """Return whether a setting is a secret, or an address that contains one."""
    is_flag = (
        value is None or isinstance(value, bool | int | float) or str(value).lower() in ("true", "false", "")
    )
    return not is_flag and bool(_NAME.search(name) or _VALUE.search(str(value)))


def without_secrets(values: Any, inside: str = "") -> Any:
    """Return the values of an experiment with secrets replaced by `REDACTED`."""
    if isinstance(values, Mapping):
        return {
            name: REDACTED
            if inside in SECTIONS and is_secret(str(name), value)
            else without_secrets(value, str(name))
            for name, value in values.items()
        }
    return values


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which the values of secret ``key=value`` arguments are replaced by `REDACTED`."""
    shown = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        shown.append(f"{name}={REDACTED}" if equals and is_secret(name, value) else argument)
    return shown


def refuse_redacted(values: Any, key: tuple[str, ...] = ()) -> None:
    """Reject an experiment that was read from a run's record and still lacks its secrets.

    Raises:
        ConfigError: names the first missing secret.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            refuse_redacted(value, (*key, str(name)))
    elif values == REDACTED:
        name = ".".join(key)
        raise ConfigError(
            f"expected the value of {name}, got {REDACTED}: a run's record keeps no secrets; pass it again: "
            f"--set {name}=..."
        )
