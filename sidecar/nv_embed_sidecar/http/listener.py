"""
The HTTP server: uvicorn in a thread of its own, and connections that must not be held for nothing.

A connection has some seconds to say what it wants, and its headers have a bound. Where more are open than there is room for, those go first that have
said nothing yet, the oldest before the others: whoever opens many and says nothing keeps nobody out.

In:  an ASGI application and an address      Out: answers, until it is told to stop
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 10.0
KEEP_ALIVE_S = 75.0
MAX_HEADER_BYTES = 64 * 1024
BACKLOG = 1024
CLOSE_S = 5.0


class Connection(H11Protocol):
    """One connection, which is closed where no whole request's headers come in time."""

    most: ClassVar[int] = 2048
    silent: ClassVar[dict["Connection", asyncio.TimerHandle]]
    """Those that say nothing at the moment, the one that has for longest first. Of one listener."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._listen(HEADERS_S)
        if len(self.connections) > self.most:
            next(iter(self.silent)).transport.close()

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._listen(HEADERS_S)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_listening()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._listen(KEEP_ALIVE_S)
            self._is_idle = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_listening()
        super().connection_lost(exc)

    def _listen(self, seconds: float) -> None:
        self._stop_listening()
        self._is_idle = False
        self.silent[self] = self.loop.call_later(seconds, self.transport.close)

    def _stop_listening(self) -> None:
        if (timer := self.silent.pop(self, None)) is not None:
            timer.cancel()


class Listener:
    """The thread that serves.

    Args:
        opened: a socket that listens.
        drain_s: how long requests under way may take to finish at the end.
        on_end: called when none is under way any more.
    Attributes:
        address: where that is.
    """

    def __init__(
        self,
        app: Any,
        opened: socket.socket,
        address: str,
        drain_s: float,
        tls: ssl.SSLContext | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self._on_end = on_end
        self._drain_s = drain_s
        config = uvicorn.Config(
            app,
            http=type("Connection", (Connection,), {"silent": {}}),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=int(KEEP_ALIVE_S),
            timeout_graceful_shutdown=max(int(drain_s), 1),
            backlog=BACKLOG,
        )
        config.load()
        config.ssl = tls
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [opened]}, name="http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take no new connections, and let the requests under way finish."""
        self._server.should_exit = True

    def wait(self) -> None:
        self._thread.join(self._drain_s + CLOSE_S)
        self._on_end()


def bound(address: str) -> tuple[socket.socket, str]:
    """A socket at `host:port` or `unix:/path`, and the address with its real port.

    Raises:
        OSError: it is taken, or not to be had.
    """
    if address.startswith("unix:"):
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(Path(address.removeprefix("unix:"))))
        listening.listen(BACKLOG)
        return listening, address
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay only on sockets that say that they are TCP's.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host.strip("[]"), int(port)))
    # Now, and not when the thread gets to it: what is announced can be connected to.
    listening.listen(BACKLOG)
    return listening, f"{host}:{listening.getsockname()[1]}"
