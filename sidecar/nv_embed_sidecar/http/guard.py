"""
What holds for every request, whatever it asks for.

It is counted; whoever does not take its answer is let go after a time, and what nobody foresaw ends with a line in the log that quotes nothing.

In:  an ASGI application      Out: the same, guarded
"""

import asyncio
import logging
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nv_embed_sidecar.metrics import Metrics

log = logging.getLogger(__name__)

SEND_S = 60.0
"""For a piece of an answer to be taken."""


class Guard:
    """
    Args:
        calls: the paths that are counted by their names; all others are `other`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, calls: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._calls = frozenset(calls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._metrics.request("http", scope["path"] if scope["path"] in self._calls else "other") as outcome:

            async def send_in_time(message: Message) -> None:
                if message["type"] == "http.response.start":
                    outcome.code = str(message["status"])
                async with asyncio.timeout(SEND_S):
                    await send(message)

            try:
                await self._app(scope, receive, send_in_time)
            except TimeoutError:
                log.warning("a caller did not take its answer for %g s and is let go", SEND_S)
            except Exception as error:
                log.error("a request failed unexpectedly: %s", type(error).__name__, exc_info=True)
