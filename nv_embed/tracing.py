"""
Spans, and where they go.

A `Tracing` is handed to whoever does something worth seeing. Without a collector it does nothing, and OpenTelemetry's SDK is never imported. With
one, spans are sent by OTLP over gRPC, in batches, beside the work: their queue is bounded, and while the collector is away they are dropped. What
says more, such as the sampler or the collector's headers, is the SDK's own environment, `OTEL_*`.

A span says what was done and for how long, in numbers and names that are our own. An error is its class: messages quote what they choke on.

In:  work      Out: spans
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Thread
from time import time_ns
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import nv_embed
from nv_embed.errors import InvalidInput

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

Value = str | int | float | bool | list[str] | list[int]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

CLOSE_S = 5.0
"""For the last spans to be sent."""

ERROR_TYPE = "error.type"


@dataclass(frozen=True)
class Place:
    """Where in a trace something is done, for whoever records it later and elsewhere."""

    tracing: "Tracing"
    context: "Context"

    def record(self, name: str, begun_ns: int, ended_ns: int, error: str | None, attributes: Mapping[str, Value]) -> None:
        """A span that has ended already, below this place."""
        from opentelemetry.trace import Status, StatusCode

        tracer = self.tracing.tracer
        assert tracer is not None
        span = tracer.start_span(name, self.context, attributes=attributes, start_time=begun_ns)
        if error is not None:
            span.set_attribute(ERROR_TYPE, error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)


class Tracing:
    """Makes spans, if it has a tracer.

    Args:
        tracer: what makes them.
        close: sends those that are not sent yet, within so many seconds.
    """

    def __init__(self, tracer: "Tracer | None" = None, close: Callable[[float], None] = lambda _: None) -> None:
        self.tracer = tracer
        self._close = close

    def close(self) -> None:
        self._close(CLOSE_S)

    def span(self, name: str, begun_ns: int | None = None, **attributes: Value) -> "AbstractContextManager[Span | None]":
        """Something done here and now, as a part of what is current. Attributes have `nv_embed.` put before their names."""
        return nullcontext() if self.tracer is None else self._current(self.tracer, name, begun_ns, attributes)

    def record(self, name: str, begun_ns: int, **attributes: Value) -> None:
        """The same for what has just been done."""
        if (place := self.place()) is not None:
            place.record(name, begun_ns, time_ns(), None, named(attributes))

    def place(self) -> Place | None:
        """Here; None where nothing is recorded."""
        if self.tracer is None:
            return None
        from opentelemetry import context, trace

        return Place(self, context.get_current()) if trace.get_current_span().is_recording() else None

    def tell(self, **attributes: Value) -> None:
        """What the current span is to say too."""
        if self.tracer is not None:
            from opentelemetry import trace

            trace.get_current_span().set_attributes(named(attributes))

    @contextmanager
    def _current(self, tracer: "Tracer", name: str, begun_ns: int | None, attributes: Mapping[str, Value]) -> "Iterator[Span | None]":
        from opentelemetry.trace import Status, StatusCode

        with tracer.start_as_current_span(
            name, attributes=named(attributes), start_time=begun_ns, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute(ERROR_TYPE, type(error).__name__)
                span.set_status(Status(StatusCode.ERROR))
                raise


def named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"nv_embed.{name}": value for name, value in attributes.items()}


def collector(given: str | None) -> str | None:
    """Where spans go: what was given, else what OpenTelemetry's environment says, else nowhere.

    Raises:
        InvalidInput: it is no address of a collector, or speaks another protocol.
    """
    said = given or next((value for name in ENDPOINTS if (value := os.environ.get(name))), None)
    if said is None or (not given and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"):
        return None
    parts = urlsplit(said)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"'{said}' is not where a collector can be", hint="give http://host:4317, or https:// for TLS")
    protocol = next((value for name in PROTOCOLS if (value := os.environ.get(name))), "grpc")
    if protocol != "grpc":
        raise InvalidInput(
            f"spans are sent by OTLP over grpc, and OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}",
            hint="leave it out and give the collector's port for gRPC, usually 4317, or set OTEL_TRACES_EXPORTER=none",
        )
    return said


def opened(service: str, given: str | None) -> Tracing:
    """What makes a program's spans, and sends them.

    Args:
        service: how the program is called, unless OTEL_SERVICE_NAME says it.
        given: the collector; what OpenTelemetry's environment says unless given.
    Raises:
        InvalidInput: the collector that was given cannot be one, or what is needed for it is not installed. Where the environment names one, which is
            often set for all programs of a machine, that is a warning, and there are no traces.
    """
    try:
        return _opened(service, given)
    except InvalidInput as error:
        if given is not None:
            raise
        log.warning("no traces: %s", error)
        return Tracing()


def _opened(service: str, given: str | None) -> Tracing:
    endpoint = collector(given)
    if endpoint is None:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidInput(f"traces need the Python package {error.name}", hint="pip install 'nv-embed[tracing]'") from None
    says = {"service.name": service, "service.version": nv_embed.__version__, **OTELResourceDetector().detect().attributes}
    provider = TracerProvider(resource=Resource.create(says), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))

    def close(seconds: float) -> None:
        # By itself it would wait for half a minute for a collector that is away.
        closing = Thread(target=provider.shutdown, name="last-spans", daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            exporter.shutdown()

    return Tracing(provider.get_tracer("nv_embed", nv_embed.__version__), close)
