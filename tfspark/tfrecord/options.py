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
    """What ``.option(...)`` can say; docs/tfrecord.md has the table.

    Attributes:
        mode: ``FAILFAST`` or ``DROPMALFORMED``.
        compression: ``"gzip"``, ``""`` for none; None to find out on read, and not to compress on write.
        infer_samples: records that schema inference looks at.
        raw: give out every record as the bytes it is, in the column `RAW_COLUMN`.
        split_bytes: size of a partition; None to choose by the size of the dataset; 0 never to split a file.
    """

    mode: str = FAILFAST
    compression: str | None = None
    infer_samples: int = INFER_SAMPLES
    split_bytes: int | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown mode."""
        Damage("", self.mode)


def parse_options(given: Mapping[str, str]) -> Options:
    """Read the options as Spark passes them, whatever their case.

    Raises:
        ConfigError: an option is unknown or its value is none of those allowed.
    """
    known = {name.lower(): name for name in _NAMES}
    unknown = sorted(name for name in given if name.lower() not in known)
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(unknown)}; the tfrecord source knows {', '.join(_NAMES)}"
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
        raise ConfigError(f"option recordType must be Example or ByteArray; received {value!r}")
    return _RECORD_TYPES[value.lower()]


def _compression(value: str | None) -> str | None:
    if value is not None and value.lower() not in _COMPRESSIONS:
        raise ConfigError(f"option compression must be one of {', '.join(_COMPRESSIONS)}; received {value!r}")
    return None if value is None else _COMPRESSIONS[value.lower()]


def _integer(name: str, value: str | None, least: int) -> int | None:
    if value is None:
        return None
    if not value.strip().isdigit() or int(value) < least:
        raise ConfigError(f"option {name} must be a whole number of at least {least}; received {value!r}")
    return int(value)
