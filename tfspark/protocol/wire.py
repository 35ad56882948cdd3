"""The wire protocol of all processes: JSON actions over Arrow Flight, authenticated by the cluster's token.

Control plane and feed use it. A call is a Flight ``DoAction``: its type is the name of the action, its body and reply
are JSON objects. Larger data is sent by ``DoGet`` and ``DoPut``. Every call has the cluster's random token in the
``authorization`` header; a call without it is rejected before its body is read. With TLS, all servers of a cluster
share one certificate that is made for this cluster, and clients trust no other. Received data is never unpickled.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.protocol.timing import CALL_TIMEOUT_S, CLOSE_S, UNREACHED_S
from tfspark.protocol.values import Json, plain

CALL_ATTEMPTS = 2
"""A call that timed out is repeated once: the caller itself may have been paused and lost the reply. All actions are
idempotent, so a repeated call is harmless."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0

MAX_MESSAGE_BYTES = 64 << 20
"""Maximum size of an action's body; rows, checkpoints and files are sent in pieces of a few MB."""

MAX_ROW_BYTES = 1 << 30
"""Maximum size of the body of `offer_sample`, which has one of the user's rows; readers get it by `describe`."""

_LAST = b"last"
"""Marks the end of an upload: to a gRPC server, the stream of a killed client looks like a complete one."""

_CHANNEL = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
"""gRPC settings of connections: never use a proxy, and reconnect soon. By default, gRPC first waits a second, and
longer each time a connection is reset while it is made. After a few resets this would exceed `UNREACHED_S`."""

_HEADER = "authorization"
_TLS_NAME = "tfspark"
_CLOCKS_APART = timedelta(days=1)
_VALID = timedelta(days=365)


@dataclass(frozen=True)
class Secret:
    """The credentials of one incarnation of a cluster.

    Attributes:
        token: 256 random bits.
        certificate: the certificate of all servers, PEM; empty: no TLS.
        key: the certificate's private key, PEM.
    """

    token: str = field(repr=False)
    certificate: str = ""
    key: str = field(default="", repr=False)


def new_secret(tls: bool = False) -> Secret:
    """Create the secret of one incarnation of a cluster."""
    return Secret(secrets.token_hex(32), *(_new_certificate() if tls else ()))


def _new_certificate() -> tuple[str, str]:
    """Return a self-signed certificate and its key. It names no host, so it is valid wherever servers run."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _TLS_NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_TLS_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return certificate.public_bytes(pem).decode(), private.decode()


class _TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Reject every call without the token."""

    def __init__(self, token: str):
        super().__init__()
        self._expected = f"Bearer {token}".encode()

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        del info
        given = headers.get(_HEADER, [""])[0]
        given_bytes = given if isinstance(given, bytes) else given.encode()
        if not hmac.compare_digest(given_bytes, self._expected):
            raise flight.FlightUnauthenticatedError("this call does not carry the cluster's token")


class ActionServer(flight.FlightServerBase):  # type: ignore[misc]
    """Flight server on an ephemeral port of `host`; it passes actions to the methods ``on_<action>``.

    Handlers take the request as a dict and return a dict; they run in gRPC's threads. The server starts when it is
    created; `close` stops it and may be called twice.

    Args:
        host: address to listen on.
        secret: the cluster's secret.
        reached_by: the address that clients use, if it differs, for example behind network address translation.
    """

    def __init__(self, host: str, secret: Secret, reached_by: str | None = None):
        self.host = reached_by or host
        self._closed = False
        self._scheme = "grpc+tls" if secret.certificate else "grpc"
        super().__init__(
            f"{self._scheme}://{_bracketed(host)}:0",
            middleware={"token": _TokenCheck(secret.token)},
            tls_certificates=[(secret.certificate, secret.key)] if secret.certificate else None,
        )

    @property
    def location(self) -> str:
        """The address to which clients connect."""
        return f"{self._scheme}://{_bracketed(self.host)}:{self.port}"

    def do_action(self, context: Any, action: Any) -> Iterator[flight.Result]:
        """Answer one action."""
        del context
        handler = getattr(self, f"on_{action.type}", None)
        if handler is None:
            raise flight.FlightServerError(f"unknown action {action.type!r}")
        _check_size(action.type, action.body.size)
        reply = handler(json.loads(action.body.to_pybytes() or b"{}"))
        return iter([flight.Result(pa.py_buffer(json.dumps(reply, default=plain).encode()))])

    def close(self) -> None:
        """Stop the server; return when current calls have ended, but at the latest after `CLOSE_S`."""
        if not self._closed:
            self._closed = True
            ending = threading.Thread(target=self.shutdown, name="tfspark-server-end", daemon=True)
            ending.start()
            ending.join(CLOSE_S)


class ActionClient:
    """Client of an `ActionServer`; can be used from several threads.

    Args:
        location: address of the server.
        secret: the cluster's secret.
        unreached_s: seconds for which to try again if the server cannot be reached.
    """

    def __init__(self, location: str, secret: Secret, unreached_s: float = UNREACHED_S):
        self.location = location
        self.secret = secret
        self._unreached_s = unreached_s
        self._headers = [(_HEADER.encode(), f"Bearer {secret.token}".encode())]
        tls = (
            {"tls_root_certs": secret.certificate, "override_hostname": _TLS_NAME}
            if secret.certificate
            else {}
        )
        self._client = flight.connect(location, generic_options=_CHANNEL, **tls)

    def call(
        self,
        action: str,
        timeout_s: float = CALL_TIMEOUT_S,
        attempts: int = CALL_ATTEMPTS,
        unreached_s: float | None = None,
        **request: Any,
    ) -> Json:
        """Send one action and return its reply.

        Args:
            action: name of the action.
            timeout_s: seconds for one attempt.
            attempts: number of attempts if that time is over.
            unreached_s: replaces the client's own value.
            request: the fields of the request.

        Raises:
            ValueError: the request is larger than `MAX_MESSAGE_BYTES`.
            pyarrow.flight.FlightError: the server is gone, rejected the call, or failed.
        """
        body = json.dumps(request, default=plain).encode()
        _check_size(action, len(body))

        def call() -> list[Any]:
            return list(self._client.do_action(flight.Action(action, body), self._options(timeout_s)))

        reply: Json = json.loads(self._repeated(call, attempts, unreached_s)[0].body.to_pybytes())
        return reply

    def get(self, ticket: Json, timeout_s: float = CALL_TIMEOUT_S) -> pa.Table:
        """Fetch the table that a ticket names."""
        encoded = flight.Ticket(json.dumps(ticket).encode())
        return self._repeated(
            lambda: self._client.do_get(encoded, self._options(timeout_s)).read_all(), CALL_ATTEMPTS
        )

    def put(
        self,
        header: Json,
        schema: pa.Schema,
        batches: Iterator[pa.RecordBatch] | Callable[[], Iterator[pa.RecordBatch]],
        timeout_s: float,
    ) -> None:
        """Send a stream of record batches under a JSON header.

        If `batches` is a function, it is called again when the connection is lost. So the server may receive an upload
        twice, and must treat both as one.
        """
        if callable(batches):
            self._repeated(lambda: self._put(header, schema, batches(), timeout_s), 1)
        else:
            self._put(header, schema, batches, timeout_s)

    def _put(
        self, header: Json, schema: pa.Schema, batches: Iterator[pa.RecordBatch], timeout_s: float
    ) -> None:
        descriptor = flight.FlightDescriptor.for_command(json.dumps(header).encode())
        writer, _ = self._client.do_put(descriptor, schema, self._options(timeout_s))
        with writer:
            for batch in batches:
                writer.write_batch(batch)
            writer.write_metadata(_LAST)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> ActionClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repeated(self, call: Callable[[], Any], attempts: int, unreached_s: float | None = None) -> Any:
        """Make a call; repeat it if it timed out, or for some time if the server cannot be reached."""
        until = time.monotonic() + (self._unreached_s if unreached_s is None else unreached_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except flight.FlightTimedOutError:
                attempts -= 1
                if attempts < 1:
                    raise
            except flight.FlightUnavailableError:
                if time.monotonic() + pause_s > until:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _options(self, timeout_s: float) -> flight.FlightCallOptions:
        return flight.FlightCallOptions(timeout=timeout_s, headers=self._headers)


def uploaded(reader: Any) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an upload.

    Args:
        reader: the reader that `ActionServer.do_put` was called with.

    Raises:
        ConnectionError: the client's end mark is missing.
    """
    last = None
    for chunk in reader:
        if chunk.data is not None:
            yield chunk.data
        last = chunk.app_metadata
    if last is None or last.to_pybytes() != _LAST:
        raise ConnectionError("expected an upload to end as a whole one does, its sender is gone")


def _check_size(action: str, num_bytes: int) -> None:
    most = MAX_ROW_BYTES if action == "offer_sample" else MAX_MESSAGE_BYTES
    if num_bytes > most:
        raise ValueError(
            f"expected at most {most >> 20} MB in a call of {action!r}, got {num_bytes >> 20} MB; write "
            "what is larger to files or to storage, and return where it is"
        )


def local_address_towards(location: str) -> str:
    """Return this machine's address on the interface that leads to `location`.

    Node and feed servers bind to it: the interface on which they reach Spark's driver, never all interfaces. No packet
    is
    sent: connecting a datagram socket only chooses the route.
    """
    url = urlsplit(location)
    family, _, _, _, address = socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
