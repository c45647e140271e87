"""
What a client shows a sidecar, and what it trusts.

A token goes in each call's metadata, since gRPC's own way to add one refuses channels without TLS, unix sockets too; so it is here that a token is
kept from going anywhere in the clear. Certificates are PEM: the text itself, as a database has it, or the path of a file, as people have it.

In:  what somebody gave      Out: gRPC's credentials and metadata, and what a failed handshake means
"""

import os
import re
from collections.abc import Mapping
from typing import TypedDict

import grpc

from nv_embed.addresses import is_local
from nv_embed.errors import InvalidInput

Pem = str | os.PathLike[str]

SYSTEM = "system"
"""As a `ca`: the authorities that gRPC brings along, or those of GRPC_DEFAULT_SSL_ROOTS_FILE_PATH."""

TOKEN = re.compile(r"[!-~]{1,4096}")
BEGIN = "-----BEGIN "
TRUE = {"1", "true", "yes", "on"}

HANDSHAKES = (
    ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "its certificate has expired", "renew it; the sidecar takes it without a restart"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not by the authority that is trusted", "give as ca who has signed the sidecar's certificate"),
    ("Hostname Verification", "its certificate is for other names than the endpoint's", "use a name of the certificate's, or have another issued"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS", "start it with --tls-cert and --tls-key, or leave ca and tls out"),
)
"""What gRPC says, and what that means."""


class Credentials(TypedDict, total=False):
    """What `Client` takes of them."""

    token: str | None
    ca: Pem | None
    certificate: Pem | None
    key: Pem | None
    tls: bool
    token_without_tls: bool


def channel_credentials(endpoint: str, ca: Pem | None, certificate: Pem | None, key: Pem | None, *, tls: bool) -> grpc.ChannelCredentials | None:
    """How a channel to an endpoint is encrypted; None for not at all, as on a unix socket.

    Raises:
        InvalidInput: a file cannot be read, something is no PEM, or one thing needs another.
    """
    if (certificate is None) != (key is None):
        raise InvalidInput("a certificate and its key go together", hint="give both, or neither")
    if endpoint.startswith("unix:") or (ca is None and not tls):
        if certificate is not None and not endpoint.startswith("unix:"):
            raise InvalidInput("a certificate is shown by TLS only", hint="give as ca who has signed the sidecar's certificate, or 'system'")
        return None
    if "," in endpoint:
        raise InvalidInput("by TLS a sidecar is known by its name, and a list has none", hint="give one name that resolves to all of them")
    roots = None if ca is None or ca == SYSTEM else _pem("ca", ca, "CERTIFICATE")
    chain = None if certificate is None else _pem("certificate", certificate, "CERTIFICATE")
    return grpc.ssl_channel_credentials(roots, None if key is None else _pem("key", key, "PRIVATE KEY"), chain)


def token_metadata(endpoint: str, token: str | None, *, encrypted: bool, token_without_tls: bool) -> tuple[tuple[str, str], ...]:
    """What calls carry of a token.

    Raises:
        InvalidInput: it is no token, or would go over the network in the clear.
    """
    if token is None:
        return ()
    if not TOKEN.fullmatch(token):
        raise InvalidInput(
            "the token is empty or has characters that no token has", hint="give it as `nv-embed token add` printed it, without a line end"
        )
    if not (encrypted or token_without_tls or is_local(endpoint)):
        raise InvalidInput(
            "the token would go over the network unencrypted",
            hint="give as ca who has signed the sidecar's certificate; token_without_tls says that the network is private",
        )
    return (("authorization", f"Bearer {token}"),)


def why_unconnected(details: str, *, encrypted: bool) -> tuple[str, str]:
    """What is wrong and what to do, where a connection did not come about. Addresses, which gRPC tells, stay out of it."""
    for said, means, hint in HANDSHAKES:
        if said in details:
            return means, hint
    # The other side took the connection and closed it before anything was said. Why is in its log at best: TLS is told to nobody who cannot speak it.
    if "failed to connect" in details and "Socket closed" in details:
        if encrypted:
            return "it closed the connection during the handshake", "does it want a certificate and key, and are those shown still valid?"
        return "it closed the connection at once, as one does that expects TLS", "give as ca who has signed its certificate"
    return "the connection failed", "is it running? `nv-embed doctor` tells"


def from_environment(environ: Mapping[str, str] = os.environ) -> Credentials:
    """What the environment says: NV_EMBED_TOKEN_FILE, NV_EMBED_CA, NV_EMBED_CERTIFICATE, NV_EMBED_KEY, NV_EMBED_TOKEN_WITHOUT_TLS.

    Raises:
        InvalidInput: the token's file cannot be read.
    """
    file = environ.get("NV_EMBED_TOKEN_FILE")
    return Credentials(
        token=read_token(file) if file else None,
        ca=environ.get("NV_EMBED_CA") or None,
        certificate=environ.get("NV_EMBED_CERTIFICATE") or None,
        key=environ.get("NV_EMBED_KEY") or None,
        token_without_tls=environ.get("NV_EMBED_TOKEN_WITHOUT_TLS", "").lower() in TRUE,
    )


def read_token(path: str | os.PathLike[str]) -> str:
    """The token that a file holds, alone.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        return _read(path).strip()
    except OSError as error:
        raise InvalidInput(
            f"cannot read the token in {os.fspath(path)}: {error.strerror}", hint="name a file that holds what `nv-embed token add` printed"
        ) from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{os.fspath(path)} holds no token", hint="name a file that holds what `nv-embed token add` printed") from None


def _pem(name: str, given: Pem, kind: str) -> bytes:
    """PEM of some kind. What is wrong with it is told without any of it: it may be a key."""
    content = os.fspath(given)
    if BEGIN not in content:
        try:
            content = _read(content)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is neither PEM nor the path of a PEM file"
            raise InvalidInput(f"cannot read the {name}: {why}", hint="give a path, or the PEM text itself") from None
    if not re.search(f"{BEGIN}[A-Z ]*{kind}-----", content):
        raise InvalidInput(f"the {name} has no PEM {kind.lower()}", hint="give a path, or the PEM text itself")
    return content.encode()


def _read(path: str | os.PathLike[str]) -> str:
    with open(path) as file:  # noqa: PTH123 - pathlib would cost a backend 10 ms at its first call, and nothing else in there needs it
        return file.read()
