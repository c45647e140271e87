"""
How much requests may hold together.

In:  what one wants      Out: that much, or a refusal
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nv_embed.errors import Overloaded

PAUSE_S = 1.0


class Room:
    """Units, bytes or requests, that are held and given back. Used from one event loop.

    Who wants more than there is gets in when nobody else holds any, so that nothing waits for ever.

    Args:
        what: as a refusal calls it.
    """

    def __init__(self, units: int, what: str) -> None:
        self._units = self._left = units
        self._what = what

    @contextmanager
    def held(self, units: int) -> Iterator[None]:
        """Hold so many.

        Raises:
            Overloaded: there are not so many left.
        """
        units = min(units, self._units)
        if units > self._left:
            raise Overloaded(self._what, hint="ask again later, or for less at a time", retry_after_s=PAUSE_S)
        self._left -= units
        try:
            yield
        finally:
            self._left += units


class Held(Response):
    """An answer that holds something until it has been sent, or nobody takes it any more."""

    def __init__(self, answer: Response, release: Callable[[], None]) -> None:
        self.background = None
        self.status_code = answer.status_code
        self._answer = answer
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            self._release()
