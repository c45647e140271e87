"""
Sockets, health, reflection, and a clean end.

In:  settings and loaded models      Out: a server that answers until it is told to stop
"""

import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from nv_embed.errors import EmbedError
from nv_embed.limits import MAX_MESSAGE_BYTES
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import add_EmbedderServicer_to_server
from nv_embed.tracing import Tracing
from nv_embed_sidecar.access import Access
from nv_embed_sidecar.health import Health
from nv_embed_sidecar.http.app import Bounds, Door, make
from nv_embed_sidecar.http.database import Database, find_database
from nv_embed_sidecar.http.listener import Listener, bound
from nv_embed_sidecar.http.page import SHELL, Page
from nv_embed_sidecar.intake import Intake, RequestLimits
from nv_embed_sidecar.metrics import Metrics
from nv_embed_sidecar.models import Models
from nv_embed_sidecar.queues import Limits
from nv_embed_sidecar.scheduler import Patience, Scheduler
from nv_embed_sidecar.service import Service
from nv_embed_sidecar.settings import Settings

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Embedder"].full_name
SOCKET_MODE = 0o666
CANCEL_S = 5.0

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # A second sidecar on the same port must fail, not share its calls at random.
    ("grpc.so_reuseport", 0),
    # Clients look whether this machine is still there while they wait for an answer.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Now and then they connect anew, and find sidecars that were added behind a name. What is under way ends first.
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 3_600_000),
)


class CannotStart(EmbedError):
    """An address is taken or not one of this machine, or a file cannot be written."""


class Server:
    """The running sidecar.

    Args:
        on_failure: called when nothing will be computed any more; what serves then is to be stopped.
        access: who may call; as the settings have it unless given.
        tracing: what makes the spans of calls; none are made unless given.
    Attributes:
        addresses, http_addresses: where it listens, with real port numbers.
        access: who may call, at whichever of its doors.
        intake, scheduler: what its calls come in by, and wait in.
        failure: why nothing will be computed any more.
    """

    def __init__(
        self,
        models: Models,
        settings: Settings,
        on_failure: Callable[[], None] = lambda: None,
        access: Access | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.failure: str | None = None
        self.access = Access.of(settings) if access is None else access
        self._is_serving = False
        self._on_failure = on_failure
        self._health = Health([SERVICE])
        self.drain_s = settings.drain_s
        # Waiting requests hold threads: three eighths may be bulk, three queries, and one streams. The last eighth answers health, and refuses.
        share = settings.rpc_threads // 8
        bounds = Bounds()
        # Those over HTTP hold none.
        requests = 3 * share + (bounds.requests if settings.http else 0)
        limits = Limits(settings.max_queue_texts, settings.max_queue_tokens, requests=requests)
        patience = Patience(hang_s=settings.hang_s)
        metrics = Metrics(models)
        self.scheduler = Scheduler(limits, self._set_health, self._failed, batch_tokens=settings.batch_tokens, patience=patience, observer=metrics)
        metrics.watch(self.scheduler, lambda: self._is_serving)
        request_limits = RequestLimits(settings.max_request_texts, settings.max_request_bytes, settings.max_text_bytes)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(settings.rpc_threads, thread_name_prefix="rpc"),
            interceptors=self.access.interceptors(metrics),
            options=OPTIONS,
        )
        self.intake = Intake(models, self.scheduler, request_limits, metrics, tracing)
        add_EmbedderServicer_to_server(Service(self.intake, self.scheduler, 3 * share, share, self.access.tokens), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.addresses = tuple(_listen(self._server, address, self.access) for address in settings.listen)
        url = settings.ui_database_url
        self._database: Database | None = None if url is None else find_database(url.get_secret_value())
        self._has_page = settings.ui
        self._http = [self._over_http(address, bounds) for address in settings.http]
        self.http_addresses = tuple(listener.address for listener in self._http)
        self.access.warn((*self.addresses, *self.http_addresses))

    def start(self) -> None:
        self.scheduler.start()
        self._set_health(True)
        self._server.start()
        for listener in self._http:
            listener.start()
        for address in (*self.addresses, *self.http_addresses):
            if address.startswith("unix:"):
                # Who may connect is decided by the directory: Postgres runs as another user.
                Path(address.removeprefix("unix:")).chmod(SOCKET_MODE)

    def stop(self) -> None:
        """Refuse new calls, let those under way finish for at most `drain_s`, and end."""
        stopped = self._server.stop(self.drain_s)
        for listener in self._http:
            listener.close()
        # Behind it: who hears that nothing is served any more is not taken in again.
        self._is_serving = False
        self._health.drain()
        # Bounded, because the end must not hang on what gRPC counts.
        stopped.wait(self.drain_s + CANCEL_S)
        for listener in self._http:
            listener.wait()
        if self._database is not None:
            self._database.close()
        self.scheduler.close()

    def _over_http(self, address: str, bounds: Bounds) -> Listener:
        opened, real = _bind(address)
        door = Door(self.intake, self.access.tokens, is_live=lambda: self.failure is None, is_ready=lambda: self._is_serving, bounds=bounds)
        page = Page(door, self._database) if self._has_page else None
        app = make(door) if page is None else make(door, page.add_to, SHELL)

        def end() -> None:
            door.close()
            if page is not None:
                page.close()

        return Listener(app, opened, real, self.drain_s, self.access.ssl_context(address), on_end=end)

    def _failed(self, reason: str) -> None:
        self.failure = reason
        self._on_failure()

    def _set_health(self, healthy: bool) -> None:
        self._is_serving = healthy
        self._health.set(healthy)


def announce(server: Server, models: Models, ready_file: Path | None) -> str:
    """The line that says what is served where; the same as JSON in `ready_file`, which appears whole or not at all."""
    names = [model.name for model in models]
    if ready_file is not None:
        said = {
            "pid": os.getpid(),
            "addresses": list(server.addresses),
            "http": list(server.http_addresses),
            "models": names,
            "drain_s": server.drain_s,
        }
        new = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps(said))
            new.replace(ready_file)
        except OSError as error:
            raise CannotStart(f"cannot write {ready_file}: {error.strerror}", hint="name a file in a folder that this user may write to") from error
    http = f", and over HTTP on {', '.join(server.http_addresses)}" if server.http_addresses else ""
    return f"nv_embed_sidecar: serving {', '.join(names)} on {', '.join(server.addresses)}{http}"


def _listen(server: grpc.Server, address: str, access: Access) -> str:
    """Bind one address, and say it with its real port.

    Raises:
        CannotStart: it is taken, or not to be had.
    """
    if address.startswith("unix:") and not _is_free(Path(address.removeprefix("unix:"))):
        raise _taken(address)
    try:
        credentials = access.credentials(address)
        port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _taken(address) from error
    host, colon, wanted = address.rpartition(":")
    return f"{host}{colon}{port}" if wanted == "0" and not address.startswith("unix:") else address


def _bind(address: str) -> tuple[socket.socket, str]:
    """The same for HTTP."""
    if address.startswith("unix:") and not _is_free(Path(address.removeprefix("unix:"))):
        raise _taken(address)
    try:
        return bound(address)
    except OSError as error:
        raise _taken(address) from error


def _taken(address: str) -> CannotStart:
    return CannotStart(f"cannot listen on {address}", hint="is another program listening there, and may this user?")


def _is_free(path: Path) -> bool:
    """Whether nothing is at a socket's path, or only what a killed sidecar left: gRPC would take the path from one that still listens."""
    if not path.exists():
        return True
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return True
        except OSError:
            return False
    return False


def check_addresses(addresses: Sequence[str]) -> None:
    """Refuse what is no address before a model is loaded for it.

    Raises:
        CannotStart: an address is neither `host:port` nor `unix:/path`.
    """
    for address in addresses:
        _, colon, port = address.rpartition(":")
        if not address.startswith("unix:/") and not (colon and port.isdigit() and int(port) < 65536):
            raise CannotStart(f"'{address}' is not an address", hint="give host:port, host:0 for any free port, or unix:/path")
