"""Handle a record that cannot be read: fail, or drop and count it.

Used by the task that reads a file. The two modes have Spark's names. Spark's third one (`PERMISSIVE`) does not
exist here: a record that cannot be decoded has no row to put nulls into.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from tfspark.errors import ConfigError, DataError

FAILFAST = "FAILFAST"
DROPMALFORMED = "DROPMALFORMED"

_log = logging.getLogger("tfspark.tfrecord")


class BadRecords(Exception):  # noqa: N818 - a verdict passed up to the damage policy, never to the user
    """Some records of a block cannot become rows.

    Attributes:
        rows: indices of the records within their block, ascending.
        reason: what was expected, what it got and what to do, in one line.
    """

    def __init__(self, rows: Iterable[int], reason: str):
        """Store the rows and the reason."""
        self.rows = [int(row) for row in rows]
        self.reason = reason
        super().__init__(reason)


@dataclass
class Damage:
    """The damage policy for one file, and the number of dropped records.

    Attributes:
        file: name of the file, for messages.
        mode: ``FAILFAST`` or ``DROPMALFORMED``.
        num_records: records dropped so far; a run of unreadable bytes counts as one.
    """

    file: str
    mode: str = FAILFAST
    num_records: int = 0
    _first: str = ""

    def __post_init__(self) -> None:
        """Reject an unknown mode."""
        if self.mode not in (FAILFAST, DROPMALFORMED):
            raise ConfigError(
                f"expected option mode to be {FAILFAST} or {DROPMALFORMED}, got {self.mode!r}; set one of these (a "
                "record that cannot be decoded has no columns to leave null)"
            )

    @property
    def drops(self) -> bool:
        """Whether damaged records are dropped."""
        return self.mode == DROPMALFORMED

    def hit(self, offset: int, reason: str, num_records: int = 1) -> None:
        """Count damage at a byte offset, or raise.

        Raises:
            DataError: in mode ``FAILFAST``; names the file and the offset.
        """
        place = f"{self.file}, byte {offset}: {reason}"
        if not self.drops:
            raise DataError(f"{place}; or read with option mode={DROPMALFORMED} to skip and count")
        self._first = self._first or place
        self.num_records += num_records

    def report(self) -> None:
        """Write one line to the log of the task if records were dropped."""
        if self.num_records:
            _log.warning("dropped %d malformed TFRecords; the first: %s", self.num_records, self._first)
