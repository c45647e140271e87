"""
Who may call at all.

Tokens and certificates are asked for at every door of the sidecar; here is what gRPC does with them. With tokens nothing is answered without one,
but the health service: whatever probes it cannot keep a secret, and learns nothing else.

In:  settings      Out: tokens, certificates, and a guard before gRPC's services
"""

import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health

from nv_embed.addresses import is_local
from nv_embed.errors import Unauthenticated
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed_sidecar.credentials import Certificates
from nv_embed_sidecar.metrics import Metrics
from nv_embed_sidecar.service import abort, authorization
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokens import Tokens

log = logging.getLogger(__name__)

OPEN = f"/{health.SERVICE_NAME}/"

_SERVICE = pb.DESCRIPTOR.services_by_name["Embedder"]
CALLS = {f"/{_SERVICE.full_name}/{method.name}": method.name for method in _SERVICE.methods}
"""What is counted by its name; whatever else somebody calls is `other`."""


@dataclass(frozen=True)
class Access:
    """What callers must show.

    Attributes:
        tokens: one of which each call carries; None: calls carry none.
        certificates: what TCP addresses are encrypted with; None: they are not.
    """

    tokens: Tokens | None = None
    certificates: Certificates | None = None

    @classmethod
    def of(cls, settings: Settings) -> "Access":
        """As the settings have it.

        Raises:
            BadTokens, BadCertificate: a file cannot be used.
        """
        tokens = None if settings.tokens is None else Tokens(settings.tokens)
        if settings.tls_cert is None or settings.tls_key is None:
            return cls(tokens)
        return cls(tokens, Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca))

    def interceptors(self, metrics: Metrics) -> "list[grpc.ServerInterceptor[Any, Any]]":
        return [] if self.tokens is None else [Guard(self.tokens, metrics)]

    def credentials(self, address: str) -> grpc.ServerCredentials | None:
        """What gRPC encrypts an address with; None for nothing. A unix socket is the machine's own, and its folder says who may connect."""
        return None if self.certificates is None or address.startswith("unix:") else self.certificates.for_grpc()

    def ssl_context(self, address: str) -> ssl.SSLContext | None:
        """The same for a server of another kind."""
        return None if self.certificates is None or address.startswith("unix:") else self.certificates.ssl_context()

    def warn(self, addresses: Iterable[str]) -> None:
        """Say in the log where tokens can be read on their way."""
        if self.tokens is None or self.certificates is not None:
            return
        for address in addresses:
            if not is_local(address):
                log.warning("tokens and texts come to %s unencrypted: give --tls-cert and --tls-key, or listen on 127.0.0.1", address)


class Guard(grpc.ServerInterceptor):  # type: ignore[type-arg]  # at run time it takes no types
    """Refuses calls without a token, and counts them as the service counts the others."""

    def __init__(self, tokens: Tokens, metrics: Metrics) -> None:
        self._tokens = tokens
        self._metrics = metrics

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith(OPEN):
            return continuation(handler_call_details)
        try:
            self._tokens.holder(authorization(handler_call_details.invocation_metadata))
        except Unauthenticated as error:
            with self._metrics.request("grpc", CALLS.get(handler_call_details.method, "other")) as outcome:
                outcome.code = error.grpc_code
            return _refusing(error)
        return continuation(handler_call_details)


def _refusing(error: Unauthenticated) -> Any:
    def refuse(requests: object, context: grpc.ServicerContext) -> Any:
        del requests
        abort(context, error)

    # For calls of every kind: one that takes a single request would wait until that has come.
    return grpc.stream_stream_rpc_method_handler(refuse)
