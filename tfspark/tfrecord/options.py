"""The options of the data source, checked when they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfspark.errors import ConfigError
from tfspark.tfrecord.damage import FAILFAST, Damage
from tfspark.tfrecord.files import GZIP
from tfspark.tfrecord.infer import INFER_SAMPLES

_NAMES = ("path", "paths", "mode", "compression", "inferSamples", "splitBytes", "recordType")
_RECORD_TYPES = {"example": False, "bytearray": True}
_COMPRESSIONS = {"gzip": GZIP, "none": "", "uncompressed": ""}


@dataclass(frozen=True)
class Options:
    """The values of ``.option(...)``; docs/tfrecord.md has the table.

    Attributes:
        mode: ``FAILFAST`` or ``DROPMALFORMED``.
        compression: ``"gzip"``, ``""`` for none; None: detect it on read, do not compress on write.
        infer_samples: number of records that schema inference reads.
        raw: return every record as bytes, in the column `RAW_COLUMN`.
        split_bytes: size of a partition; None: chosen by the size of the dataset; 0: never split a file.
    """

    mode: str = FAILFAST
    compression: str | None = None
    infer_samples: int = INFER_SAMPLES
    split_bytes: int | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        """Reject an unknown mode."""
        Damage("", self.mode)


def parse_options(given: Mapping[str, str]) -> Options:
    """Parse the options that Spark passes; their case does not matter.

    Raises:
        ConfigError: an option is unknown, or its value is not allowed.
    """
    known = {name.lower(): name for name in _NAMES}
    unknown = sorted(name for name in given if name.lower() not in known)
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(unknown)}; expected options of the tfrecord source: {', '.join(_NAMES)}"
        )
    values = {name.lower(): value for name, value in given.items()}
    return Options(
        mode=values.get("mode", FAILFAST).upper(),
        compression=_compression(values.get("compression")),
        infer_samples=_integer("inferSamples", values.get("infersamples"), 1) or INFER_SAMPLES,
        split_bytes=_integer("splitBytes", values.get("splitbytes"), 0),
        raw=_is_raw(values.get("recordtype", "Example")),
    )


def _is_raw(value: str) -> bool:
    if value.lower() not in _RECORD_TYPES:
        raise ConfigError(f"expected option recordType to be Example or ByteArray, got {value!r}")
    return _RECORD_TYPES[value.lower()]


def _compression(value: str | None) -> str | None:
    if value is not None and value.lower() not in _COMPRESSIONS:
        raise ConfigError(
            f"expected option compression to be one of {', '.join(_COMPRESSIONS)}, got {value!r}"
        )
    return None if value is None else _COMPRESSIONS[value.lower()]


def _integer(name: str, value: str | None, least: int) -> int | None:
    if value is None:
        return None
    if not value.strip().isdigit() or int(value) < least:
        raise ConfigError(f"expected option {name} to be a whole number of at least {least}, got {value!r}")
    return int(value)
