"""The exceptions that tfspark raises on purpose.

TfsparkError
├── ConfigError       a YAML file, an argument or a setting is wrong; nothing was started
├── DataError         a row, a column or a file does not match its declaration
├── ReservationError  the cluster could not be reserved: slots, versions, a missing node
├── NodeFailedError   a node failed while it ran; has role, host, traceback and log tail
├── BrokenOffError    the driver's call ended by an exception, so its workers stop the work for it
└── DeadlineError     a named wait exceeded its deadline

Every message has three parts: what was expected, what tfspark got, what to do.
"""

from __future__ import annotations


class TfsparkError(Exception):
    """Base class of all errors raised by tfspark itself."""


def in_words(error: BaseException) -> str:
    """Return an error's message with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


class ConfigError(TfsparkError, ValueError):
    """A configuration, an argument or a setting is wrong; nothing was started."""


class DataError(TfsparkError, ValueError):
    """A row, a column or a file does not match its declaration."""


class ReservationError(TfsparkError, RuntimeError):
    """The cluster could not be reserved: too few slots, different versions, a missing node."""


class DeadlineError(TfsparkError, TimeoutError):
    """A named wait exceeded its deadline."""


class BrokenOffError(TfsparkError):
    """The driver's call ended by an exception, so the workers end what they did for it, all at the same step."""


class NodeFailedError(TfsparkError, RuntimeError):
    """A node failed while it ran.

    Attributes:
        node: name of the node, for example ``"worker 1"``.
        host: host name or address of the executor.
        cause: why the node failed, in one line.
        remote_traceback: the traceback of the remote process; empty if there is none.
        log_tail: the last lines that the remote process wrote.
    """

    def __init__(
        self, node: str, host: str, cause: str, remote_traceback: str = "", log_tail: tuple[str, ...] = ()
    ):
        self.node = node
        self.host = host
        self.cause = cause
        self.remote_traceback = remote_traceback
        self.log_tail = log_tail
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [f"{self.node} on {self.host} failed: {self.cause}"]
        if self.remote_traceback:
            parts.append(f"--- traceback on {self.node} ---\n{self.remote_traceback.rstrip()}")
        if self.log_tail:
            lines = "\n".join(self.log_tail)
            parts.append(f"--- last {len(self.log_tail)} log lines of {self.node} ---\n{lines}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[type[NodeFailedError], tuple[str, str, str, str, tuple[str, ...]]]:
        return (type(self), (self.node, self.host, self.cause, self.remote_traceback, self.log_tail))
