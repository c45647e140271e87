"""
What a trace shows of a call: a span of its own at whichever door it came in by, and below it where its time went.

A batch serves many calls, and each of them gets a span of it: one looks at a call, and most viewers show no links. Batches have numbers, by which the
calls are found that shared one. The engine's thread only notes times; the spans are made of them in the thread that answers the call.

In:  calls, batches      Out: spans
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from time import time_ns
from typing import TYPE_CHECKING, Any

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.tracing import ERROR_TYPE, Place, Tracing, Value, named

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from nv_embed_sidecar.metrics import Outcome
    from nv_embed_sidecar.queues import Batch

SERVICE = pb.DESCRIPTOR.services_by_name["Embedder"].full_name

FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses of gRPC that are a server's fault, not its caller's."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})

_numbers = count(1)


class Way:
    """A request's way through its queue and the engine."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._waits_since: int | None = time_ns()
        self._spans: list[tuple[str, int, int, str | None, Mapping[str, Value]]] = []

    @classmethod
    def of(cls, tracing: Tracing) -> "Way | None":
        """One that begins here, if what happens here is recorded."""
        place = tracing.place()
        return None if place is None else cls(place)

    def taken(self, at_ns: int) -> None:
        """Texts of it have left the queue for the engine."""
        since, self._waits_since = self._waits_since, None
        if since is not None:
            self._spans.append(("queue", since, at_ns, None, {}))

    def computed(self, begun_ns: int, ended_ns: int, error: str | None, says: Mapping[str, Value], *, waits: bool) -> None:
        """A batch with texts of it has been computed; whether others still wait."""
        self._spans.append(("engine", begun_ns, ended_ns, error, says))
        self._waits_since = ended_ns if waits else None

    def close(self) -> None:
        """Record it, as far as it went."""
        if self._waits_since is not None:
            self.taken(time_ns())
        spans, self._spans = self._spans, []
        for name, begun_ns, ended_ns, error, says in spans:
            self._place.record(name, begun_ns, ended_ns, error, named(says))


@contextmanager
def computing(batch: "Batch", fill: float) -> Iterator[None]:
    """Around the engine's work: each call that has texts in the batch learns what it waited for, and what it was computed with."""
    ways = [(request, positions, request.way) for request, positions in batch.parts if request.way is not None]
    if not ways:
        yield
        return
    begun, error = time_ns(), None
    for _, _, way in ways:
        way.taken(begun)
    try:
        yield
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        ended = time_ns()
        says: dict[str, Value] = {
            "batch.number": next(_numbers),
            "batch.calls": len(batch.parts),
            "batch.texts": batch.texts,
            "batch.tokens": sum(len(ids) for ids in batch.ids()),
            "batch.fill": round(fill, 4),
        }
        for request, positions, way in ways:
            way.computed(begun, ended, error, {**says, "texts": len(positions)}, waits=bool(request.waiting))


@contextmanager
def rpc(tracing: Tracing, call: str, metadata: Iterable[tuple[str, str | bytes]], outcome: "Outcome") -> Iterator[None]:
    """Around a call over gRPC, of which the outcome is known at the end."""
    if tracing.tracer is None:
        yield
        return
    carrier = {key: value for key, value in metadata if isinstance(value, str)}
    method = f"{SERVICE}/{call}"
    with _serving(tracing, method, carrier, {"rpc.system.name": "grpc", "rpc.method": method}) as span:
        try:
            yield
        finally:
            span.set_attribute("rpc.response.status_code", outcome.code)
            _end(span, outcome, is_fault=outcome.code in FAULTS)


@contextmanager
def http(tracing: Tracing, scope: Mapping[str, Any], headers: Mapping[str, str], route: str, outcome: "Outcome") -> Iterator[None]:
    """Around a request over HTTP. Its path is not said: whoever mistakes an address may have put anything there."""
    if tracing.tracer is None:
        yield
        return
    method = scope["method"] if scope["method"] in METHODS else "_OTHER"
    says = {"http.request.method": method, "http.route": route, "url.scheme": scope["scheme"]}
    with _serving(tracing, f"{method} {route}", headers, says) as span:
        try:
            yield
        finally:
            if outcome.code.isdigit():
                span.set_attribute("http.response.status_code", int(outcome.code))
            _end(span, outcome, is_fault=outcome.code.startswith("5"))


@contextmanager
def _serving(tracing: Tracing, name: str, carrier: Mapping[str, str], says: Mapping[str, str]) -> "Iterator[Span]":
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind

    assert tracing.tracer is not None
    parent = propagate.extract(carrier)
    with tracing.tracer.start_as_current_span(
        name, parent, SpanKind.SERVER, attributes=says, record_exception=False, set_status_on_exception=False
    ) as span:
        yield span


def _end(span: "Span", outcome: "Outcome", *, is_fault: bool) -> None:
    from opentelemetry.trace import Status, StatusCode

    if outcome.error is not None:
        span.set_attribute(ERROR_TYPE, outcome.error)
    if is_fault:
        span.set_status(Status(StatusCode.ERROR))
