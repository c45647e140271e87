"""
What a trace shows of the sidecar's calls, as a collector gets it.
"""

import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from collector import Collector, collecting
from nv_embed_sidecar.engines import Engine
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.logs import Json
from nv_embed_sidecar.models import Models
from nv_embed_sidecar.server import Server
from nv_embed_sidecar.settings import Settings
from program import eventually
from services import CountingEngine, FailingEngine, connected, model, refused

from nv_embed import tracing
from nv_embed.client import Client
from nv_embed.errors import InvalidInput
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.tracing import Tracing

SECRET = "Xylophonquark"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
METHOD = "nv_embed.v1.Embedder/Embed"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with collecting() as running:
        yield running


@pytest.fixture
def traced(collector: Collector) -> Iterator[Tracing]:
    opened = tracing.opened("nv-embed-sidecar", collector.endpoint)
    yield opened
    opened.close()


def server(engine: Engine, traced: Tracing) -> Server:
    return Server(Models([model(engine)]), Settings(listen=("127.0.0.1:0",), http=("127.0.0.1:0",), drain_s=5), tracing=traced)


@pytest.fixture
def served(traced: Tracing) -> Iterator[Server]:
    running = server(FakeEngine(), traced)
    running.start()
    yield running
    running.stop()


def embed(served: Server, *texts: str, traceparent: str = SAMPLED, dim: int = 384) -> pb.EmbedResponse:
    with connected(served) as stub:
        return stub.Embed(pb.EmbedRequest(texts=texts, dim=dim), metadata=(("traceparent", traceparent),))


def test_a_call_over_grpc_shows_where_its_time_went(served: Server, collector: Collector) -> None:
    embed(served, "one two three", SECRET)
    spans = collector.named(METHOD, "tokenise", "queue", "engine", trace=TRACE)
    call = spans.pop(METHOD)
    assert (call.service, call.parent, call.is_error) == ("nv-embed-sidecar", SPAN, False)
    assert call.says == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "nv_embed.model": "fake",
        "nv_embed.dim": 384,
        "nv_embed.input_type": "passage",
        "nv_embed.priority": "bulk",
        "nv_embed.texts": 2,
        "nv_embed.tokens": spans["engine"].says["nv_embed.batch.tokens"],
    }
    assert {span.parent for span in spans.values()} == {call.id}
    assert all(span.is_inside(call) for span in spans.values())
    assert spans["tokenise"].ended_ns <= spans["queue"].begun_ns
    assert spans["queue"].ended_ns == spans["engine"].begun_ns
    batch = {key: value for key, value in spans["engine"].says.items() if key not in ("nv_embed.batch.number", "nv_embed.batch.fill")}
    tokens = spans["tokenise"].says["nv_embed.tokens"]
    assert batch == {"nv_embed.batch.calls": 1, "nv_embed.batch.texts": 2, "nv_embed.batch.tokens": tokens, "nv_embed.texts": 2}
    assert 0 < spans["engine"].says["nv_embed.batch.fill"] <= 1


def test_a_call_over_http_shows_the_same(served: Server, collector: Collector) -> None:
    url = f"http://{served.http_addresses[0]}/v1/embeddings"
    said = {"model": "fake", "input": ["one", SECRET], "input_type": "query", "dimensions": 384}
    assert httpx.post(url, json=said, headers={"traceparent": SAMPLED}).status_code == 200
    spans = collector.named("POST /v1/embeddings", "tokenise", "queue", "engine", trace=TRACE)
    call = spans.pop("POST /v1/embeddings")
    assert call.parent == SPAN
    assert {span.parent for span in spans.values()} == {call.id}
    assert all(span.is_inside(call) for span in spans.values())
    expected = {"http.request.method": "POST", "http.route": "/v1/embeddings", "http.response.status_code": 200, "url.scheme": "http"}
    assert expected.items() <= call.says.items()
    assert call.says["nv_embed.input_type"] == "query"
    assert call.says["nv_embed.priority"] == "interactive"


def test_no_attribute_holds_a_text_whatever_happens(served: Server, collector: Collector) -> None:
    url = f"http://{served.http_addresses[0]}"
    embed(served, SECRET)
    refused(lambda: embed(served, f"{SECRET} " * 100))
    refused(lambda: embed(served, SECRET, dim=7))
    httpx.post(f"{url}/v1/embeddings", json={"model": "fake", "input": f"{SECRET} " * 100})
    httpx.post(f"{url}/v1/embeddings", json={SECRET: SECRET})
    httpx.get(f"{url}/v1/{SECRET}")
    httpx.get(f"{url}/v1/models/{SECRET}")
    collector.wait(lambda spans: sum("rpc.method" in span.says or "http.route" in span.says for span in spans) == 7)
    assert all(SECRET.encode() not in request.SerializeToString() for request in collector.sent)


def test_a_refused_call_says_by_which_error_and_whose_fault(served: Server, collector: Collector) -> None:
    refused(lambda: embed(served, "one", dim=7))
    url = f"http://{served.http_addresses[0]}/v1/embeddings"
    httpx.post(url, json={"model": "fake", "input": "one", "dimensions": 7}, headers={"traceparent": SAMPLED})
    spans = collector.named(METHOD, "POST /v1/embeddings", trace=TRACE)
    assert spans[METHOD].says["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert spans["POST /v1/embeddings"].says["http.response.status_code"] == 400
    for span in spans.values():
        assert span.says["error.type"] == "InvalidInput"
        assert not span.is_error


def test_a_batch_that_fails_is_an_error_of_the_engine_and_of_the_call(traced: Tracing, collector: Collector) -> None:
    running = server(FailingEngine(ValueError(SECRET)), traced)
    running.start()
    try:
        refused(lambda: embed(running, "one two three"))
    finally:
        running.stop()
    spans = collector.named(METHOD, "engine", trace=TRACE)
    assert (spans["engine"].is_error, spans["engine"].says["error.type"]) == (True, "ValueError")
    assert (spans[METHOD].is_error, spans[METHOD].says["error.type"]) == (True, "EngineFailure")


def test_calls_that_share_a_batch_have_its_number_each(traced: Tracing, collector: Collector) -> None:
    engine = CountingEngine()
    running = server(engine, traced)
    running.start()
    others = {f"{number:032x}": f"00-{number:032x}-{SPAN}-01" for number in (1, 2)}
    try:
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(embed, running, "first")
            engine.texts.get(timeout=30)
            calls = [pool.submit(embed, running, "other", traceparent=said) for said in others.values()]
            assert eventually(lambda: running.scheduler.waiting_texts() == 2)
            for _ in range(2):
                engine.turnstile.put(None)
            for call in (first, *calls):
                call.result(timeout=30)
    finally:
        running.stop()
    engines = [collector.named(METHOD, "engine", "queue", trace=trace)["engine"] for trace in others]
    assert len({span.says["nv_embed.batch.number"] for span in engines}) == 1
    assert [(span.says["nv_embed.batch.calls"], span.says["nv_embed.batch.texts"], span.says["nv_embed.texts"]) for span in engines] == [
        (2, 2, 1)
    ] * 2


def test_a_call_that_waits_in_vain_shows_its_waiting(traced: Tracing, collector: Collector) -> None:
    engine = CountingEngine()
    running = server(engine, traced)
    running.start()
    try:
        with ThreadPoolExecutor(1) as pool, connected(running) as stub:
            first = pool.submit(embed, running, "first", traceparent=f"00-{1:032x}-{SPAN}-01")
            engine.texts.get(timeout=30)
            request = pb.EmbedRequest(texts=["late"])
            refused(lambda: stub.Embed(request, timeout=0.2, metadata=(("traceparent", SAMPLED),)))
            engine.turnstile.put(None)
            first.result(timeout=30)
    finally:
        running.stop()
    spans = collector.named(METHOD, "queue", trace=TRACE)
    # Which of the two is known first, that the caller is gone or that its time is over, is chance.
    assert spans[METHOD].says["rpc.response.status_code"] in {"CANCELLED", "DEADLINE_EXCEEDED"}
    assert spans["queue"].ended_ns - spans["queue"].begun_ns > 50_000_000
    assert "engine" not in spans


def test_requests_of_a_stream_are_parts_of_its_call(served: Server, collector: Collector) -> None:
    with connected(served) as stub:
        requests = (pb.EmbedRequest(texts=[text]) for text in ("one", "two"))
        assert len(list(stub.EmbedStream(requests, metadata=(("traceparent", SAMPLED),)))) == 2
    spans = collector.wait(lambda spans: any(span.name.endswith("EmbedStream") for span in spans), TRACE)
    (call,) = (span for span in spans if span.parent == SPAN)
    assert sorted(span.name for span in spans if span.parent == call.id) == ["engine", "engine", "queue", "queue", "tokenise", "tokenise"]


@pytest.mark.parametrize("traceparent", ["nonsense", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}", "00-" + "f" * 4000])
def test_a_malformed_parent_is_none(served: Server, collector: Collector, traceparent: str) -> None:
    assert len(embed(served, "one", traceparent=traceparent).tokens) == 1
    assert collector.named(METHOD)[METHOD].parent == ""


def test_whoever_is_not_sampled_leaves_no_span(served: Server, collector: Collector) -> None:
    embed(served, "one", traceparent=UNSAMPLED)
    embed(served, "one", traceparent=f"00-{1:032x}-{SPAN}-01")
    collector.named(METHOD, trace=f"{1:032x}")
    assert collector.spans(TRACE) == []


def test_probes_and_scrapes_leave_no_span(served: Server, collector: Collector) -> None:
    url = f"http://{served.http_addresses[0]}/v1"
    for path in ("health/live", "health/ready", "metrics", "models"):
        assert httpx.get(f"{url}/{path}").status_code == 200
    collector.named("GET /v1/models")
    assert [span.name for span in collector.spans()] == ["GET /v1/models"]


def test_a_client_hands_on_the_current_span(served: Server, collector: Collector, traced: Tracing) -> None:
    with Client(served.addresses[0]) as client, traced.span("application") as span:
        assert span is not None
        client.embed(["one"])
    spans = collector.named("application", METHOD, "engine")
    assert spans[METHOD].parent == spans["application"].id
    assert {span.trace for span in spans.values()} == {spans["application"].trace}


def test_a_line_of_the_log_names_the_current_span(traced: Tracing, collector: Collector) -> None:
    record = logging.LogRecord("nv_embed_sidecar.x", logging.WARNING, __file__, 1, "said", (), None)
    with traced.span("work"):
        said = json.loads(Json().format(record))
    span = collector.named("work")["work"]
    assert (said["trace_id"], said["span_id"]) == (span.trace, span.id)
    assert "trace_id" not in json.loads(Json().format(record))


@pytest.mark.parametrize("endpoint", ["localhost:4317", "collector", "http://", "ftp://collector:4317"])
def test_an_endpoint_that_can_be_none_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidInput, match=r"http://host:4317"):
        tracing.opened("nv-embed-sidecar", endpoint)


def test_the_environment_of_opentelemetry_is_honoured(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-sidecar")
    opened = tracing.opened("nv-embed-sidecar", None)
    with opened.span("work"):
        pass
    opened.close()
    assert [(span.service, span.name) for span in collector.spans()] == [("my-sidecar", "work")]
    assert collector.headers["api-key"] == "abc"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert tracing.opened("nv-embed-sidecar", None).tracer is None
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with pytest.raises(InvalidInput, match="4317"):
        tracing.opened("nv-embed-sidecar", collector.endpoint)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InvalidInput, match=r"nv-embed\[tracing\]"):
        tracing.opened("nv-embed-sidecar", "http://127.0.0.1:4317")


def test_an_environment_that_was_set_for_others_stops_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    assert tracing.opened("nv-embed-sidecar", None).tracer is None
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing.opened("nv-embed-worker", None).tracer is None
    assert ["4317" in caplog.messages[0], "nv-embed[tracing]" in caplog.messages[1]] == [True, True]


def test_a_collector_that_is_away_costs_no_call_anything(collector: Collector) -> None:
    with collecting() as gone:
        endpoint = gone.endpoint
    away = tracing.opened("nv-embed-sidecar", endpoint)
    running = server(FakeEngine(), away)
    running.start()
    try:
        with grpc.insecure_channel(running.addresses[0]) as channel:
            stub = channel.unary_unary(f"/{METHOD}", pb.EmbedRequest.SerializeToString, pb.EmbedResponse.FromString)
            for _ in range(100):
                assert stub(pb.EmbedRequest(texts=["one"]), timeout=5).dim == 2048
    finally:
        running.stop()
        away.close()
