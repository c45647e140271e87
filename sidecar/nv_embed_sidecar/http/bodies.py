"""
Reading bodies from whoever sends them.

A body that says that it is too large is refused before a byte of it is read, one that does not say so as soon as it is. All that are being worked on
have a bound together, and each has its time.

In:  a request      Out: its body
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from nv_embed_sidecar.http.failures import TooLarge, TooSlow, Unprocessable
from nv_embed_sidecar.http.room import Room


class Bodies:
    """The bodies that are here. Used from one event loop.

    Args:
        most_bytes: of one.
        room: for all together.
        time_s: for one to come in.
    """

    def __init__(self, most_bytes: int, room: Room, time_s: float) -> None:
        self._most = most_bytes
        self._room = room
        self._time_s = time_s

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, for as long as it is worked on.

        Raises:
            TooLarge, TooSlow, Overloaded: it is not taken.
        """
        with self._room.held(self._size(request)):
            yield await self._in_time(request)

    def _size(self, request: Request) -> int:
        """How much room a body is given: as much as it says that it has, and where it comes in chunks, which say nothing, as much as one may have."""
        said = request.headers.get("content-length")
        if said is None or "transfer-encoding" in request.headers:
            return self._most
        if not said.isascii() or not said.isdigit():
            raise Unprocessable("Content-Length is not a number", hint="send the number of bytes of the body")
        if int(said) > self._most:
            raise self._too_large()
        return int(said)

    async def _in_time(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self._time_s):
                return await self._read(request)
        except TimeoutError:
            raise TooSlow(f"the body did not come within {self._time_s:g} s", hint="send it faster, or less of it") from None

    async def _read(self, request: Request) -> bytes:
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._most:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body exceeds the limit of {self._most:,} bytes", hint="send the texts in several requests")


async def until_gone(request: Request) -> None:
    """Return when the caller of a request that was read has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
