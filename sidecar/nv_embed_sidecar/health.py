"""
The standard health service of gRPC.

Its own implementation in grpcio-health-checking sends to watchers under the lock that it takes when one of them goes, in the very thread that gets
what is sent on its way: a client that balances watches every sidecar, and one that went at the wrong moment stopped the sidecar for good. Here
nothing is sent under a lock that a watcher's end needs.

In:  what is served, and whether it is      Out: answers to Check and Watch
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

Send = Callable[[Any], None]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Whether services serve; all of them do, or none.

    Args:
        services: their full names; the whole server is one too.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset((health.OVERALL_HEALTH, *services))
        self._is_serving = True
        self._is_draining = False
        # For a moment only; what follows from a change is told under the other one.
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._watchers: dict[Send, str] = {}

    def Check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service is served here")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: Send) -> None:
        """The status now, and each one after it. Holds no thread."""
        with self._telling:
            with self._lock:
                is_over = self._is_draining
                if not is_over:
                    self._watchers[send] = request.service
            if is_over or not context.add_callback(lambda: self._forget(send)):
                self._forget(send)
                return
            send(health_pb2.HealthCheckResponse(status=self._status(request.service)))

    # gRPC then hands the function by which to send, and does not wait for the stream's end.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]
    Watch.experimental_thread_pool = None  # type: ignore[attr-defined]

    def set(self, is_serving: bool) -> None:
        """Say whether requests are answered from now on, until it drains."""
        with self._telling:
            if not self._is_draining:
                self._is_serving = is_serving
                self._tell()

    def drain(self) -> None:
        """Tell everyone that nothing is served any more, and end the streams: an open one would hold up every drain for its full time."""
        with self._telling:
            self._is_serving = False
            self._tell()
            with self._lock:
                self._is_draining = True
                left = list(self._watchers)
            for send in left:
                send(None)

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return SERVICE_UNKNOWN
        return SERVING if self._is_serving else NOT_SERVING

    def _tell(self) -> None:
        with self._lock:
            watchers = list(self._watchers.items())
        for send, service in watchers:
            send(health_pb2.HealthCheckResponse(status=self._status(service)))

    def _forget(self, send: Send) -> None:
        """A stream is over. gRPC calls this in the thread that serves all connections: nothing here may wait for that."""
        with self._lock:
            self._watchers.pop(send, None)
        send(None)
