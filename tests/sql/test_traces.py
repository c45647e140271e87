"""
Traces through the database: from a session or a worker to the sidecar's engine.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from collector import Collector, Seen, collecting
from conftest import Connection
from installs import BOTH, Install
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from servers import Sidecar, running_sidecar
from vectors import one
from workers import drain

from nv_embed import tracing

SECRET = "Xylophonquark"
SPAN = "b7ad6b7169203331"
METHOD = "nv_embed.v1.Embedder/Embed"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield running


@pytest.fixture(scope="module")
def traced(folder: Path, collector: Collector) -> Iterator[Sidecar]:
    """A sidecar that tells the collector."""
    with running_sidecar(folder, "--model", "fake", "--otlp", collector.endpoint, name="traced.sock") as running:
        yield running


@pytest.fixture
def session(db: Connection, traced: Sidecar) -> Connection:
    db.execute("SELECT nv_embed.configure(%s)", [traced.address])
    return db


@pytest.fixture
def trace(request: pytest.FixtureRequest) -> str:
    """A trace of the test's own."""
    return f"{abs(hash(request.node.nodeid)) + 1:032x}"


def parent(trace: str, flags: str = "01") -> str:
    return f"00-{trace}-{SPAN}-{flags}"


def set_trace(session: Connection, traceparent: str) -> None:
    session.execute("SELECT set_config('nv_embed.traceparent', %s, true)", [traceparent])


def engine_of(collector: Collector, trace: str) -> tuple[Seen, Seen]:
    """The call and the engine's part of it."""
    spans = collector.named(METHOD, "tokenise", "queue", "engine", trace=trace)
    call, engine = spans[METHOD], spans["engine"]
    assert engine.parent == call.id
    assert engine.is_inside(call)
    return call, engine


def test_a_statement_is_followed_from_its_setting_to_the_engine(session: Connection, collector: Collector, trace: str) -> None:
    session.execute(f"SET LOCAL nv_embed.traceparent = '{parent(trace)}'")
    assert one(session, f"SELECT nv_embed('{SECRET}', 384) IS NOT NULL")
    call, engine = engine_of(collector, trace)
    assert call.parent == SPAN
    assert engine.says["nv_embed.texts"] == 1
    assert all(SECRET.encode() not in request.SerializeToString() for request in collector.sent)


def test_a_query_inside_a_search_is_followed_too(session: Connection, collector: Collector, trace: str) -> None:
    session.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    session.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    session.execute("INSERT INTO docs VALUES (1, 'one')")
    set_trace(session, parent(trace))
    assert one(session, "SELECT (hit).id FROM nv_search(NULL::docs, 'who?', k => 1)") == 1
    call, _ = engine_of(collector, trace)
    assert (call.says["nv_embed.input_type"], call.says["nv_embed.priority"]) == ("query", "interactive")


def test_rows_that_a_trigger_embeds_are_followed(session: Connection, collector: Collector, trace: str) -> None:
    session.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    session.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    session.execute(f"INSERT INTO docs SELECT n, 'row ' || n FROM generate_series(1, 3) AS n /*traceparent='{parent(trace)}'*/")
    call, _ = engine_of(collector, trace)
    assert call.says["nv_embed.texts"] == 3


def test_each_statement_of_a_session_has_its_own_trace(session: Connection, collector: Collector, trace: str) -> None:
    other = f"{int(trace, 16) + 1:032x}"
    for said in (trace, other):
        one(session, f"SELECT nv_embed('one', 384) IS NOT NULL /*traceparent='{parent(said)}'*/")
    one(session, "SELECT nv_embed('none', 384) IS NOT NULL")
    one(session, f"SELECT nv_embed('last', 384) IS NOT NULL /*traceparent='{parent(f'{int(trace, 16) + 2:032x}')}'*/")
    engine_of(collector, f"{int(trace, 16) + 2:032x}")
    for said in (trace, other):
        assert [span.name for span in collector.spans(said)].count(METHOD) == 1


@pytest.mark.parametrize("said", ["nonsense", "00-1-2-3", "00-" + "x" * 5000, "é\n", "\x01"])
def test_a_malformed_trace_is_ignored(session: Connection, collector: Collector, trace: str, said: str) -> None:
    set_trace(session, said)
    assert one(session, f"SELECT vector_dims(nv_embed('one', 384)) /*traceparent='{parent(trace)}'*/") == 384
    set_trace(session, parent(trace))
    one(session, "SELECT nv_embed('two', 384) IS NOT NULL")
    engine_of(collector, trace)
    assert [span.name for span in collector.spans(trace)].count(METHOD) == 1


def test_what_is_not_sampled_is_not_recorded(session: Connection, collector: Collector, trace: str) -> None:
    set_trace(session, parent(trace, "00"))
    one(session, "SELECT nv_embed('one', 384) IS NOT NULL")
    later = f"{int(trace, 16) + 1:032x}"
    set_trace(session, parent(later))
    one(session, "SELECT nv_embed('one', 384) IS NOT NULL")
    engine_of(collector, later)
    assert collector.spans(trace) == []


def test_sqlalchemys_comments_are_read(
    install: Install, connect: Callable[..., Connection], own_database: str, traced: Sidecar, collector: Collector
) -> None:
    """By OpenTelemetry's own instrumentation, which has not declared SQLAlchemy 2.1 yet."""
    connect().execute("SELECT nv_embed.configure(%s)", [traced.address])
    provider = TracerProvider(shutdown_on_exit=False)
    url = sqlalchemy.make_url("postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url, creator=lambda: psycopg.connect(install.dsn(own_database)))
    instrumentor = SQLAlchemyInstrumentor()
    instrumentor.instrument(engine=engine, tracer_provider=provider, enable_commenter=True, skip_dep_check=True)
    try:
        with provider.get_tracer("application").start_as_current_span("page") as page, engine.connect() as connection:
            vector = connection.execute(sqlalchemy.text("SELECT nv_embed(:text, 384)::text"), {"text": SECRET}).scalar_one()
    finally:
        instrumentor.uninstrument()
        engine.dispose()
    assert vector.startswith("[")
    call, _ = engine_of(collector, f"{page.get_span_context().trace_id:032x}")
    assert call.parent not in ("", f"{page.get_span_context().span_id:016x}")  # its parent is the statement's span, inside the page's


@BOTH
def test_a_workers_batch_and_the_sidecars_work_share_a_trace(
    install: Install, own_database: str, connect: Callable[..., Connection], traced: Sidecar, collector: Collector
) -> None:
    connection = connect()
    connection.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
    connection.execute("SELECT nv_embed.auto_embed('notes', '{body}', dim => 384, mode => 'async')")
    connection.execute("INSERT INTO notes SELECT n, %s || n FROM generate_series(1, 20) AS n", [SECRET])
    opened = tracing.opened("nv-embed-worker", collector.endpoint)
    before = {span.id for span in collector.spans()}
    drain(install.dsn(own_database), traced.address, lanes=1, tracing=opened)
    opened.close()
    batches = collector.wait(lambda spans: any(span.name == "batch" and span.id not in before for span in spans))
    batch = next(span for span in batches if span.name == "batch" and span.id not in before)
    assert (batch.service, batch.says) == ("nv-embed-worker", {"nv_embed.rows": 20, "nv_embed.relations": ["public.notes"]})
    parts = collector.named("claim", "read", "call", "write", METHOD, "engine", trace=batch.trace)
    assert all(parts[name].parent == batch.id and parts[name].is_inside(batch) for name in ("claim", "read", "call", "write"))
    assert parts["write"].says["nv_embed.rows"] == 20
    assert (parts[METHOD].service, parts[METHOD].parent) == ("nv-embed-sidecar", parts["call"].id)
    assert parts["engine"].parent == parts[METHOD].id
    assert all(SECRET.encode() not in request.SerializeToString() for request in collector.sent)
