"""
The sidecar's certificate.

Certificate, key and the authority of clients are read from files, and again when the files have changed: what was renewed is shown to the next
connection without a restart. Every new set is tried before it is used, by a handshake in memory with a client that trusts this very certificate, so
OpenSSL says itself that a key is another certificate's or that a certificate has expired. What cannot be used is not: the one before is kept, and
the log says so once.

In:  PEM files      Out: credentials for gRPC, and a context for other servers
"""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from nv_embed.errors import EmbedError

log = logging.getLogger(__name__)

MINIMUM = ssl.TLSVersion.TLSv1_2

Stamps = tuple[tuple[int, ...] | None, ...]


class BadCertificate(EmbedError):
    """A certificate, a key or an authority cannot be used."""


@dataclass(frozen=True)
class _Loaded:
    """What the files held, which fits together."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class Certificates:
    """The files of a server's side of TLS.

    Args:
        certificate: with its chain, its own first.
        key: without a passphrase.
        client_ca: who signs the certificates that clients must show; None: they need none.
    Raises:
        BadCertificate: a file cannot be read, they do not fit together, or the certificate is not valid now.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._loaded = self._load()

    def for_grpc(self) -> grpc.ServerCredentials:
        """Credentials of one gRPC port. Each needs its own: gRPC asks once for each connection, and is told only of what it does not have yet."""
        shown = self._loaded

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            now = self._now()
            if now is shown:
                return None
            shown = now
            return now.configuration()

        return grpc.dynamic_ssl_server_credentials(shown.configuration(), renewed, self._client_ca is not None)  # type: ignore[arg-type]  # None is: nothing new

    def ssl_context(self) -> ssl.SSLContext:
        """A context for a server of another kind, asyncio's for instance: TLS 1.2 or later, client certificates as for gRPC, renewed as for gRPC."""
        context = self._context()
        # It runs for each connection, whether the client names a server or not.
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> None:
        del server_name, context
        connection.context = self._now().context

    def _now(self) -> _Loaded:
        """What the files hold now, if it can be used."""
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._loaded = self._load()
                except (BadCertificate, OSError) as error:
                    log.warning("%s; the certificate that was used before stays", error)
                else:
                    log.info("%s was renewed", self._certificate)
            return self._loaded

    def _look(self) -> Stamps:
        return tuple(_stamp(path) for path in (self._certificate, self._key, self._client_ca) if path is not None)

    def _load(self) -> _Loaded:
        certificate, key = _content(self._certificate), _content(self._key)
        client_ca = None if self._client_ca is None else _content(self._client_ca)
        context = self._context()
        try:
            _shake_hands(context, certificate)
        except ssl.SSLCertVerificationError as error:
            raise BadCertificate(f"{self._certificate} cannot be used: {error.verify_message}", hint="have another one issued") from None
        except ssl.SSLError as error:
            raise BadCertificate(f"{self._certificate} cannot be used: {error.reason or error}", hint="have another one issued") from None
        return _Loaded(certificate, key, client_ca, context)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = MINIMUM
        self._fill(context)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _fill(self, context: ssl.SSLContext) -> None:
        try:
            # A passphrase that is asked for is not given: asking for it on a terminal would stop a service at its start.
            context.load_cert_chain(self._certificate, self._key, password=lambda: b"")
        except ssl.SSLError as error:
            raise BadCertificate(
                f"{self._certificate} and {self._key} cannot be used: {_why(error)}",
                hint="give a PEM certificate and its own key, without a passphrase",
            ) from None
        if self._client_ca is None:
            return
        try:
            context.load_verify_locations(self._client_ca)
        except ssl.SSLError:
            raise BadCertificate(f"{self._client_ca} has no PEM certificate", hint="give that of the authority that signs for clients") from None


def _why(error: ssl.SSLError) -> str:
    return {
        "KEY_VALUES_MISMATCH": "the key is another certificate's",
        "NO_START_LINE": "there is no PEM in one of them",
        None: "there is no PEM in one of them, or a passphrase is wanted",
    }.get(error.reason, error.reason)


def _shake_hands(server_side: ssl.SSLContext, trusted: bytes) -> None:
    """A handshake up to where a client has verified the certificate.

    Raises:
        ssl.SSLError: it would not, though it trusts this very one.
    """
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_side.load_verify_locations(cadata=trusted.decode("ascii", errors="replace"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCertificate(f"cannot read {path}: {error.strerror}", hint="name a PEM file that the sidecar's user may read") from None


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
