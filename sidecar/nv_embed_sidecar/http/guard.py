"""
What holds for every request, whatever it asks for.

It is counted and, where there are tokens, refused without one, and what nobody foresaw ends with a line in the log that quotes nothing.

In:  an ASGI application      Out: the same, guarded
"""

import logging
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nv_embed.errors import EmbedError
from nv_embed.tracing import Tracing
from nv_embed_sidecar import spans
from nv_embed_sidecar.http import failures
from nv_embed_sidecar.metrics import Metrics
from nv_embed_sidecar.tokens import Tokens

log = logging.getLogger(__name__)

HOLDER = "nv_embed.holder"
"""Where a request's scope says whose token it carries."""

OUTCOME = "nv_embed.outcome"
"""Where it says how the request ends."""

OPEN = ("/v1/health/live", "/v1/health/ready", "/openapi.json")
"""What is answered without a token: whatever probes it cannot keep a secret, and learns nothing else."""

UNSEEN = ("/v1/health/live", "/v1/health/ready", "/v1/metrics", "/ui/load", "/ui/database")
"""What leaves no span: whatever asks for these does so all the time."""


class Guard:
    """
    Args:
        calls: the paths that are counted by their names; all others are `other`.
        shown: further paths that are answered without a token.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, tracing: Tracing, tokens: Tokens | None, calls: Collection[str], shown: Collection[str] = ()
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._tokens = tokens
        self._calls = frozenset(calls)
        self._open = frozenset((*OPEN, *shown))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = scope["path"] if scope["path"] in self._calls else "other"
        tracing = Tracing() if call in UNSEEN else self._tracing
        with self._metrics.request("http", call) as outcome, spans.http(tracing, scope, Headers(scope=scope), call, outcome):
            scope[OUTCOME] = outcome

            async def send_noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    outcome.code = str(message["status"])
                await send(message)

            try:
                await self._answer(scope, receive, send_noting)
            except Exception as error:
                outcome.error = type(error).__name__
                log.error("a request failed unexpectedly: %s", outcome.error, exc_info=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._tokens is not None and scope["path"] not in self._open:
                holder = scope[HOLDER] = self._tokens.holder(Headers(scope=scope).get("authorization"))
                holder.spend_request()
        except EmbedError as error:
            scope[OUTCOME].error = type(error).__name__
            await failures.response(error, is_of_nim=False)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
