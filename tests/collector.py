"""
A collector of traces: OTLP's own service over gRPC, on any free port, which keeps what it is sent.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer, add_TraceServiceServicer_to_server

WAIT_S = 30.0


@dataclass(frozen=True)
class Seen:
    """A span as it was sent."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    begun_ns: int
    ended_ns: int
    is_error: bool
    says: dict[str, Any]

    def is_inside(self, other: "Seen") -> bool:
        return other.begun_ns <= self.begun_ns <= self.ended_ns <= other.ended_ns


@dataclass
class Collector(TraceServiceServicer):
    """
    Attributes:
        sent: requests as they came, whose bytes may be looked through.
        headers: metadata of the last of them.
    """

    address: str = ""
    sent: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: dict[str, str | bytes] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        self.headers = dict(context.invocation_metadata())
        self.sent.append(request)
        return ExportTraceServiceResponse()

    def spans(self, trace: str | None = None) -> list[Seen]:
        found = [
            _seen(_value(next(said.value for said in resource.resource.attributes if said.key == "service.name")), span)
            for request in self.sent
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return [span for span in found if trace in (None, span.trace)]

    def wait(self, true: Callable[[list[Seen]], bool], trace: str | None = None) -> list[Seen]:
        """The spans, once there are those that are waited for."""
        deadline = time.monotonic() + WAIT_S
        while not true(spans := self.spans(trace)):
            assert time.monotonic() < deadline, spans
            time.sleep(0.02)
        return spans

    def named(self, *names: str, trace: str | None = None) -> dict[str, Seen]:
        """One span of each name, once all are there."""
        spans = self.wait(lambda spans: set(names) <= {span.name for span in spans}, trace)
        return {span.name: span for span in spans}


def _seen(service: str, span: Any) -> Seen:
    says = {said.key: _value(said.value) for said in span.attributes}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return Seen(service, span.name, *ids, span.start_time_unix_nano, span.end_time_unix_nano, span.status.code == 2, says)


def _value(value: Any) -> Any:
    if value.WhichOneof("value") == "array_value":
        return [_value(part) for part in value.array_value.values]
    return getattr(value, value.WhichOneof("value"))


@contextmanager
def collecting() -> Iterator[Collector]:
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
