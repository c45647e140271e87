"""
The HTTP server: uvicorn in a thread of its own, and connections that must not be held for nothing.

A connection has some seconds to say what it wants, and before that for TLS's handshake; its headers have a bound; whoever does not take its answer is
let go after a time. Where more are open than there is room for, those go first that have said nothing yet, the oldest before the others: whoever
opens many and says nothing keeps nobody out.

In:  an ASGI application and an address      Out: answers, until it is told to stop
"""

import asyncio
import logging
import resource
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

HEADERS_S = 10.0
SEND_S = 60.0
"""For a piece of an answer to be taken."""

KEEP_ALIVE_S = 75.0
MAX_HEADER_BYTES = 64 * 1024
BACKLOG = 1024
CLOSE_S = 5.0
FILES_A_CONNECTION = 4
"""Of those that the process may open: as many arrive as are there, and half are left to everything else."""


class Entrance(socket.socket):
    """What listens. Whom it accepts has some seconds to become a connection, which by TLS is after the handshake. Where more than `most` are about
    to, the oldest goes.

    Args:
        opened: whose place it takes.
    """

    def __init__(self, opened: socket.socket, most: int) -> None:
        super().__init__(opened.family, opened.type, opened.proto, opened.detach())
        self._most = most
        self._arriving: dict[int, tuple[socket.socket, asyncio.TimerHandle]] = {}

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, address = super().accept()
        number = accepted.fileno()
        self.let_in(number)  # that the number is free says that another one has ended
        self._arriving[number] = accepted, asyncio.get_running_loop().call_later(HEADERS_S, self._turn_away, number)
        if len(self._arriving) > self._most:
            self._turn_away(next(iter(self._arriving)))
        return accepted, address

    def let_in(self, number: int) -> None:
        """The socket of this number is a connection's now."""
        if (arriving := self._arriving.pop(number, None)) is not None:
            arriving[1].cancel()

    def _turn_away(self, number: int) -> None:
        accepted, timer = self._arriving.pop(number)
        timer.cancel()
        _hang_up(accepted)


class Connection(H11Protocol):
    """One connection, which is let go where no whole request's headers come in time, or what is sent is not taken."""

    most: ClassVar[int] = 2048
    entrance: ClassVar[Entrance]
    silent: ClassVar[dict["Connection", asyncio.TimerHandle]]
    """Those that say nothing at the moment, the one that has for longest first. Of one listener."""

    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.entrance.let_in(transport.get_extra_info("socket").fileno())
        # Whatever waits to be sent pauses writing, and so has its time, also once nothing else keeps the connection open. By TLS 0 would be "always".
        transport.set_write_buffer_limits(high=1, low=0)
        self._listen(HEADERS_S)
        if len(self.connections) > self.most:
            next(iter(self.silent))._let_go()

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._listen(HEADERS_S)
        super().data_received(data)
        if self.transport.is_closing():  # what came was refused
            self._listen(HEADERS_S)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._stop_listening()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self.loop.call_later(SEND_S, self._not_taken)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_sending()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._listen(KEEP_ALIVE_S)
            self._is_idle = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_listening()
        self._stop_sending()
        super().connection_lost(exc)

    def _listen(self, seconds: float) -> None:
        self._stop_listening()
        self._is_idle = False
        self.silent[self] = self.loop.call_later(seconds, self._let_go)

    def _stop_listening(self) -> None:
        if (timer := self.silent.pop(self, None)) is not None:
            timer.cancel()

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _not_taken(self) -> None:
        log.warning("a caller did not take its answer for %g s and is let go", SEND_S)
        self._let_go()

    def _let_go(self) -> None:
        """Count it no more, and be rid of it: closed, it would wait for what is not taken, and by TLS one closed twice cannot be aborted."""
        self._stop_listening()
        self.connections.discard(self)
        _hang_up(self.transport.get_extra_info("socket"))


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
        most = min(Connection.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // FILES_A_CONNECTION)
        entrance = Entrance(opened, most)
        config = uvicorn.Config(
            app,
            http=type("Connection", (Connection,), {"silent": {}, "entrance": entrance, "most": most}),
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
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [entrance]}, name="http", daemon=True)

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


def _hang_up(connected: Any) -> None:
    """End a connection under whatever holds its socket, which finds that it can neither be read nor written."""
    with suppress(OSError):  # it has ended
        connected.shutdown(socket.SHUT_RDWR)
