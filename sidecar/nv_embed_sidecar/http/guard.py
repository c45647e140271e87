"""
What holds for every request, whatever it asks for.

Whoever does not take its answer is let go after a time, and what nobody foresaw ends with a line in the log that quotes nothing.

In:  an ASGI application      Out: the same, guarded
"""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

SEND_S = 60.0
"""For a piece of an answer to be taken."""


class Guard:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_S):
                await send(message)

        try:
            await self._app(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("a caller did not take its answer for %g s and is let go", SEND_S)
        except Exception as error:
            log.error("a request failed unexpectedly: %s", type(error).__name__, exc_info=True)
