"""
Workers: the real sidecar, the real database, and what goes wrong between them.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy
import psycopg
import pytest
from chunks import OVERLAP, TOKENS, in_step
from conftest import Connection
from counting import Counter, counted
from installs import BOTH, Install, install_library
from program import eventually
from psycopg.types.json import Jsonb
from servers import Sidecar, running_sidecar
from vectors import cosine, one, parsed
from workers import drain, working

from nv_embed.client import Client
from nv_embed.cluster import Cluster
from nv_embed.jobs import Queue, connect
from nv_embed.lanes import FIRST_JOBS, Lane
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub
from nv_embed.worker import Settings, Worker

pytestmark = BOTH

DOCS = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text)"
DECLARE = "SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384, mode => 'async')"
PIECES = (
    f"SELECT nv_embed.auto_embed('docs', '{{title}}: {{body}}', dim => 384, mode => 'async', chunk_tokens => {TOKENS}, chunk_overlap => {OVERLAP})"
)


@dataclass
class Site:
    """A database with workers on it."""

    connect: Callable[..., Connection]
    dsn: str
    endpoint: str

    def worker(self, endpoint: str | None = None, **settings: Any) -> AbstractContextManager[Worker]:
        return working(self.dsn, endpoint or self.endpoint, **settings)

    def drain(self, endpoint: str | None = None, **settings: Any) -> Worker:
        return drain(self.dsn, endpoint or self.endpoint, **settings)


@pytest.fixture
def site(install: Install, own_database: str, connect: Callable[..., Connection], sidecar: Sidecar) -> Site:
    return Site(connect, install.dsn(own_database), sidecar.address)


@pytest.fixture
def embedder(cluster: Cluster, install: Install, own_database: str, site: Site) -> Iterator[Site]:
    """The same database, for workers of a role that may do no more than embed."""
    with cluster.connect(own_database) as superuser:
        if not superuser.execute("SELECT FROM pg_roles WHERE rolname = 'nv_embed_worker'").rowcount:
            superuser.execute("CREATE ROLE nv_embed_worker NOLOGIN")
        superuser.execute("DROP ROLE IF EXISTS embedder; CREATE ROLE embedder LOGIN PASSWORD 'embedder' IN ROLE nv_embed_worker")
        yield Site(site.connect, install.dsn(own_database, "embedder"), site.endpoint)
        superuser.execute("DROP OWNED BY embedder; DROP ROLE embedder")


@pytest.fixture
def docs(site: Site) -> Connection:
    db = site.connect()
    db.execute(DOCS)
    db.execute(DECLARE)
    return db


def fresh(db: Connection, client: Client) -> int:
    """How many rows hold the vector of just their text; fails on one that holds another's."""
    rows = db.execute("SELECT id, concat(title, ': ', body), embedding::text FROM docs WHERE embedding IS NOT NULL").fetchall()
    expected = client.embed([text for _, text, _ in rows], dim=384)
    for (key, _, stored), vector in zip(rows, expected, strict=True):
        assert cosine(parsed(stored), vector) > 0.9999, key
    return len(rows)


def status(db: Connection) -> tuple[int, int, int, int]:
    row = db.execute("SELECT rows, embedded, pending, failed FROM nv_embed.status").fetchone()
    assert row is not None
    return row


def test_a_worker_embeds_what_is_queued_and_what_comes(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 1500) AS n")
    with site.worker():
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        assert fresh(docs, client) == 1500
        docs.execute("UPDATE docs SET body = 'new ' || id WHERE id % 3 = 0")
        docs.execute("DELETE FROM docs WHERE id % 7 = 0")
        docs.execute("UPDATE docs SET title = NULL, body = NULL WHERE id = 1")
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert fresh(docs, client) == 1500 - 214 - 1
    assert status(docs) == (1286, 1285, 0, 0)


def test_an_idle_worker_hears_of_a_job_at_once(docs: Connection, site: Site) -> None:
    with site.worker(poll_s=60.0):
        assert eventually(lambda: one(docs, "SELECT count(*) FROM nv_embed.worker WHERE is_waiting") == 1)
        for n in range(5):
            begun = time.monotonic()
            docs.execute("INSERT INTO docs VALUES (%s, 'a', 'b')", [n])
            assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
            assert time.monotonic() - begun < 20
    assert one(docs, "SELECT count(*) FROM nv_embed.worker") == 0


def looks(db: Connection, function: str) -> int:
    """How often workers called a function; a worker tells of the last ones when it ends."""
    return one(db, "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_user_functions WHERE schemaname = 'nv_embed' AND funcname = %s", [function])


def test_a_job_is_looked_for_by_one_lane_and_not_by_all(docs: Connection, site: Site, cluster: Cluster, own_database: str) -> None:
    with cluster.connect(own_database) as superuser:
        superuser.execute(f"ALTER DATABASE {own_database} SET track_functions = 'pl'")
    with site.worker(poll_s=60.0, lanes=8):
        for n in range(20):
            docs.execute("INSERT INTO docs VALUES (%s, 'a', 'b')", [n])
            assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert 20 < looks(docs, "claim") < 5 * 20


def test_all_lanes_take_a_part_of_much_at_once_before_the_first_has_done_its(docs: Connection, site: Site, sidecar: Sidecar) -> None:
    all_have_some = threading.Event()

    def waits(_: Sequence[str]) -> None:
        assert all_have_some.wait(30)

    with counted(sidecar.address, waits) as server, site.worker(server.address, poll_s=60.0, lanes=3):
        assert eventually(lambda: one(docs, "SELECT count(*) FROM nv_embed.worker WHERE is_waiting") == 1)
        docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 1000) AS n")
        try:
            assert eventually(lambda: one(docs, "SELECT count(*) FROM nv_embed.job WHERE leased_until > now()") >= 3 * FIRST_JOBS, 15)
        finally:
            all_have_some.set()
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")


def test_a_backfill_that_is_held_back_is_looked_at_by_one_lane(docs: Connection, site: Site, cluster: Cluster, own_database: str) -> None:
    with cluster.connect(own_database) as superuser:
        superuser.execute(f"ALTER DATABASE {own_database} SET track_functions = 'pl'")
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 60) AS n")
    site.drain()
    docs.execute("SELECT nv_embed.reembed('docs', dim => 512, rows_per_s => 20)")
    begun = time.monotonic()
    with site.worker(poll_s=60.0, lanes=8):
        assert eventually(lambda: one(docs, "SELECT count(*) FROM nv_embed.backfill") == 0)
    took_s = time.monotonic() - begun
    assert took_s > 1.5  # what a second allows may be taken at once
    assert looks(docs, "backfill_step") < 8 + 5 * took_s


def test_a_table_that_is_written_to_all_the_time_is_embedded_anew_all_the_same(docs: Connection, site: Site) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 300) AS n")
    site.drain()
    over = threading.Event()

    def write(writer: Connection) -> None:
        for n in count(1000):
            if over.is_set():
                break
            writer.execute("INSERT INTO docs VALUES (%s, 'new', 'body')", [n])

    writer = threading.Thread(target=write, args=[site.connect()])
    with site.worker(lanes=1):
        writer.start()
        docs.execute("SELECT nv_embed.reembed('docs', dim => 512)")
        try:
            assert eventually(lambda: one(docs, "SELECT count(*) FROM nv_embed.backfill") == 0)
        finally:
            over.set()
            writer.join(60)


def test_a_backfill_goes_on_though_every_batch_is_full(docs: Connection, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 50) AS n")
    site.drain()
    monkeypatch.setattr("nv_embed.lanes.FIRST_JOBS", 4)
    monkeypatch.setattr("nv_embed.lanes.MOST_JOBS", 4)
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1001, 6000) AS n")
    docs.execute("SELECT nv_embed.reembed('docs', dim => 512)")
    with site.worker(lanes=1):
        assert eventually(lambda: one(docs, "SELECT count(*) FROM nv_embed.backfill") == 0, 10)
        assert one(docs, "SELECT count(*) FROM nv_embed.job AS j JOIN nv_embed.generation AS g ON g.id = j.generation WHERE g.state = 'live'") > 4


def test_vectors_of_both_storages_come_out_as_the_sidecar_gives_them(site: Site, client: Client) -> None:
    db = site.connect()
    for storage, furthest in [("halfvec", 1e-3), ("vector", 1e-7)]:
        db.execute(f"CREATE TABLE {storage}s (id uuid DEFAULT gen_random_uuid(), part text DEFAULT 'x', body text, PRIMARY KEY (id, part))")
        db.execute(f"SELECT nv_embed.auto_embed('{storage}s', '{{body}}', dim => 512, mode => 'async', storage => '{storage}')")
        db.execute(f"INSERT INTO {storage}s (body) VALUES ('one'), ('two')")
        site.drain()
        for body, stored in db.execute(f"SELECT body, embedding::text FROM {storage}s"):
            assert numpy.abs(parsed(stored) - client.embed([body], dim=512)[0]).max() < furthest


def test_rows_that_a_large_table_has_are_queued_in_steps_and_counted(site: Site, client: Client) -> None:
    db = site.connect()
    db.execute(DOCS)
    db.execute("INSERT INTO docs SELECT n, 't', nullif('body ' || n % 50, 'body 0') FROM generate_series(1, 5000) AS n")
    db.execute(DECLARE)
    assert db.execute("SELECT rows, embedded, pending, backfilling FROM nv_embed.status").fetchone() == (None, None, 0, True)
    assert not one(db, "SELECT nv_embed.wait('docs', timeout => '0 s')")
    db.execute("INSERT INTO docs VALUES (0, 'before', 'x'), (6000, 'behind', 'y')")
    site.drain()
    assert one(db, "SELECT nv_embed.wait('docs', timeout => '0 s')")
    assert status(db) == (5002, 5002, 0, 0)
    assert fresh(db, client) == 5002


# Under C text puts 'B' before 'a', and citext puts it after it.
@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ('id citext COLLATE "C" PRIMARY KEY', "(ARRAY['a', 'B', 'c', 'D', 'e', 'F', 'g'])[n]"),
        ("id ltree PRIMARY KEY", "('top.' || n)::ltree"),
        ('tenant int DEFAULT 1, id citext COLLATE "C", PRIMARY KEY (tenant, id)', "(ARRAY['a', 'B', 'c', 'D', 'e', 'F', 'g'])[n]"),
        ("id ltree, part int DEFAULT 1, day date DEFAULT '2026-02-28', PRIMARY KEY (part, day, id)", "('top.' || n)::ltree"),
        ("id ltree, part int DEFAULT 1, day date DEFAULT '2026-02-28', PRIMARY KEY (id, part, day)", "('top.' || n)::ltree"),
    ],
)
def test_every_row_is_queued_in_the_order_of_a_key_of_an_extensions_type(site: Site, columns: str, key: str) -> None:
    db = site.connect()
    extension = "ltree" if "ltree" in columns else "citext"
    if not db.execute("SELECT FROM pg_available_extensions WHERE name = %s", [extension]).rowcount:
        pytest.skip(f"{extension} is not installed")
    db.execute(f"CREATE SCHEMA kinds; CREATE EXTENSION {extension} SCHEMA kinds; SET search_path = public, kinds")
    db.execute(f"CREATE TABLE docs ({columns}, body text)")
    db.execute(f"INSERT INTO docs (id, body) SELECT {key}, 'body' FROM generate_series(1, 7) AS n")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    generation = one(db, "SELECT id FROM nv_embed.generation")
    db.execute("DELETE FROM nv_embed.job")
    db.execute("INSERT INTO nv_embed.backfill (generation) VALUES (%s) ON CONFLICT DO NOTHING", [generation])
    steps = [one(db, "SELECT nv_embed.backfill_step(%s, 2)", [generation]) for _ in range(6)]
    assert steps == [0, 2, 2, 2, 1, None]
    assert one(db, "SELECT count(*) FROM nv_embed.job") == 7


def test_a_table_whose_rows_cannot_be_counted_holds_up_no_other(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    db = site.connect()
    for name in ("broken", "whole"):
        db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, body text); INSERT INTO {name} SELECT n, 'body' FROM generate_series(1, 1001) AS n")
        db.execute(f"SELECT nv_embed.auto_embed('{name}', '{{body}}', dim => 384, mode => 'async')")
    db.execute("ALTER TABLE broken DROP COLUMN embedding")
    site.drain()
    assert "public.broken" in caplog.text
    assert db.execute("SELECT embedded, pending FROM nv_embed.status WHERE relation = 'whole'::regclass").fetchone() == (1001, 0)


def test_one_poison_row_among_many_fails_alone_and_can_be_mended(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 10000) AS n")
    docs.execute("UPDATE docs SET body = repeat('word ', 9000) WHERE id = 7777")
    worker = site.drain()
    assert (worker.counts.embedded, worker.counts.failed) == (9999, 1)
    assert status(docs) == (10000, 9999, 0, 1)
    failure = docs.execute("SELECT relation::text, target, key, error, attempts FROM nv_embed.failures").fetchone()
    assert failure == ("docs", "embedding", ["7777"], "InvalidInput", 1)
    assert "8192 tokens" in one(docs, "SELECT message FROM nv_embed.failures")
    assert not one(docs, "SELECT nv_embed.wait('docs')")
    assert one(docs, "SELECT nv_embed.retry('docs')") == 1
    site.drain()
    assert status(docs)[3] == 1
    docs.execute("UPDATE docs SET body = 'mended' WHERE id = 7777")
    assert status(docs) == (10000, 9999, 1, 0)
    site.drain()
    assert status(docs) == (10000, 10000, 0, 0)
    assert fresh(docs, client) == 10000


def test_a_row_that_fails_keeps_no_vector_of_its_text_before(docs: Connection, site: Site) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    site.drain()
    docs.execute("UPDATE docs SET body = repeat('word ', 9000) WHERE id = 2")
    assert one(docs, "SELECT count(embedding) FROM docs") == 2
    site.drain()
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NULL").fetchall() == [(2,)]
    assert status(docs) == (2, 1, 0, 1)
    assert one(docs, "SELECT jsonb_array_length(history) FROM nv_embed.failures") == 1


def test_a_text_of_too_many_bytes_fails_without_being_sent(docs: Connection, site: Site, counter: Counter) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', repeat('x', 5000000)), (2, 'c', 'd')")
    site.drain(counter.address)
    assert status(docs) == (2, 1, 0, 1)
    assert "bytes" in one(docs, "SELECT message FROM nv_embed.failures")
    assert [text for page in counter.pages for text in page] == ["c: d"]


def test_a_sidecar_that_refuses_for_a_while_costs_no_attempt(docs: Connection, site: Site, sidecar: Sidecar, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 300) AS n")
    until = time.monotonic() + 4

    def overloaded(_: Sequence[str]) -> Any:
        if time.monotonic() < until:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, "too much waits", (("nv-embed-retry-after-s", "0.2"),)
        return None

    # Leases are renewed every 3 s; of jobs that were given back meanwhile nobody must have one when the sidecar is well again.
    with counted(sidecar.address, overloaded) as server, site.worker(server.address, lease_s=12.0):
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '10 s')")
        assert server.refused > 3
    assert fresh(docs, client) == 300


def test_a_text_on_which_the_engine_fails_is_found_and_tried_again(docs: Connection, site: Site, sidecar: Sidecar, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 100) AS n")
    docs.execute("UPDATE docs SET body = 'curse' WHERE id = 50")

    def failing(texts: Sequence[str]) -> Any:
        return (grpc.StatusCode.INTERNAL, "the engine failed on a batch", ()) if "t: curse" in texts else None

    with counted(sidecar.address, failing) as server:
        site.drain(server.address)
        assert status(docs) == (100, 99, 1, 0)
        assert docs.execute("SELECT key, attempts, retry_at > now(), retry_at < 'infinity' FROM nv_embed.job").fetchall() == [("{50}", 1, True, True)]
        for attempt in range(2, 6):
            docs.execute("UPDATE nv_embed.job SET retry_at = now()")
            site.drain(server.address)
            assert one(docs, "SELECT attempts FROM nv_embed.job") == attempt
        assert status(docs) == (100, 99, 0, 1)
        assert one(docs, "SELECT jsonb_array_length(history) FROM nv_embed.failures") == 5
    assert one(docs, "SELECT nv_embed.retry()") == 1
    site.drain()
    assert fresh(docs, client) == 100


def test_texts_that_take_too_long_together_are_divided_and_one_that_does_alone_is_tried_again(docs: Connection, site: Site, sidecar: Sidecar) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 8) AS n; UPDATE docs SET body = 'endless' WHERE id = 3")
    over = threading.Event()

    def waits(texts: Sequence[str]) -> None:
        if len(texts) > 2 or "t: endless" in texts:
            over.wait(10)

    with counted(sidecar.address, waits) as server, site.worker(server.address, lanes=1, timeout_s=1.0):
        try:
            failed = "SELECT key, history -> 0 ->> 'error' FROM nv_embed.job WHERE retry_at < 'infinity'"
            assert eventually(lambda: docs.execute(failed).fetchall() == [("{3}", "DeadlineExceeded")] and status(docs) == (8, 7, 1, 0))
        finally:
            over.set()


@pytest.fixture
def generous(folder: Path) -> Iterator[Sidecar]:
    """A sidecar that allows dimensions that its model was not trained for."""
    with running_sidecar(folder, "--model", "fake", "--dims", "256", name="generous.sock") as running:
        yield running


def test_a_table_waits_while_its_dimensions_are_not_served_and_keeps_its_vectors(
    site: Site, install: Install, sidecar: Sidecar, generous: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    db = site.connect()
    if install.kind == "library":
        install_library(site.dsn, generous.address)
    else:
        db.execute("SELECT nv_embed.configure(%s)", [generous.address])
    db.execute(DOCS)
    db.execute(DECLARE.replace("384", "256"))
    db.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 20) AS n")
    site.drain(generous.address)
    assert status(db) == (20, 20, 0, 0)
    db.execute("UPDATE docs SET body = 'new ' || id")
    site.drain()
    assert "public.docs waits for model fake" in caplog.text
    assert "at 256 dimensions" in caplog.text
    assert (status(db), one(db, "SELECT count(embedding) FROM docs")) == ((20, 0, 20, 0), 20)
    # One takes the place of the other in the middle of the work.
    with grpc.insecure_channel(sidecar.address) as other, counted(generous.address) as front, site.worker(front.address, lanes=1):
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        front.stub = EmbedderStub(other)
        db.execute("UPDATE docs SET body = 'newer ' || id")
        assert eventually(lambda: "was not trained for 256 dimensions" in caplog.text)
    assert (status(db), one(db, "SELECT count(embedding) FROM docs")) == ((20, 0, 20, 0), 20)


@pytest.mark.parametrize("change", ["dim => 512", "source => '{body}'"], ids=["cut", "queued"])
def test_a_backfill_goes_on_though_no_sidecar_answers(site: Site, folder: Path, change: str) -> None:
    db = site.connect()
    db.execute(DOCS)
    db.execute(DECLARE.replace("384", "768"))
    db.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 50) AS n")
    site.drain()
    db.execute(f"SELECT nv_embed.reembed('docs', {change})")
    with site.worker(f"unix:{folder / 'nowhere.sock'}", lanes=1):
        assert eventually(lambda: one(db, "SELECT count(*) FROM nv_embed.backfill") == 0)
    assert one(db, "SELECT count(*) FROM nv_embed.job") == (0 if "dim" in change else 50)


def test_a_row_that_changes_while_it_is_embedded_gets_the_vector_of_its_new_text(
    docs: Connection, site: Site, sidecar: Sidecar, client: Client
) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 20) AS n")
    calls = count(1)  # a worker has two lanes

    def meanwhile(_: Sequence[str]) -> None:
        if (call := next(calls)) <= 3:
            with site.connect() as other:
                other.execute("UPDATE docs SET body = 'changed ' || %s WHERE id <= 5", [call])
                other.execute("DELETE FROM docs WHERE id = %s", [10 + call])
                other.execute("UPDATE docs SET id = id + 1000 WHERE id = %s", [15 + call])

    with counted(sidecar.address, meanwhile) as server, site.worker(server.address):
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert fresh(docs, client) == 17
    assert status(docs) == (17, 17, 0, 0)


def test_a_row_that_somebody_holds_is_left_for_later_and_nobody_waits_for_it(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 20) AS n")
    holder = site.connect()
    with site.worker():
        holder.execute("BEGIN; SELECT FROM docs WHERE id = 7 FOR UPDATE")
        assert eventually(lambda: status(docs) == (20, 19, 1, 0))
        holder.execute("COMMIT")
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert fresh(docs, client) == 20


def test_one_that_ends_with_the_queue_waits_for_a_row_that_somebody_holds_for_a_moment(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 20) AS n")
    holder = site.connect()
    holder.execute("BEGIN; SELECT FROM docs WHERE id = 7 FOR UPDATE")
    released = threading.Timer(1.5, holder.execute, ["COMMIT"])
    released.start()
    site.drain()
    released.join()
    assert fresh(docs, client) == 20


def test_one_that_ends_with_the_queue_does_not_wait_for_ever(docs: Connection, site: Site) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 20) AS n")
    holder = site.connect()
    holder.execute("BEGIN; SELECT FROM docs WHERE id = 7 FOR UPDATE")
    site.drain(timeout_s=3.0)
    assert status(docs) == (20, 19, 1, 0)


def test_a_worker_that_dies_loses_nothing(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 50) AS n")
    claimed = docs.execute("SELECT * FROM nv_embed.claim(ARRAY(SELECT id FROM nv_embed.generation), 30, '1 hour')").fetchall()
    assert len(claimed) == 30
    site.drain()
    assert status(docs) == (50, 20, 30, 0)
    docs.execute("UPDATE nv_embed.job SET leased_until = leased_until - interval '1 hour'")
    with site.worker():
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert fresh(docs, client) == 50


def test_a_database_whose_host_has_vanished_holds_a_lane_for_seconds(site: Site) -> None:
    with connect(site.dsn) as connection, socket.socket(fileno=os.dup(connection.fileno())) as opened:
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5


def test_a_job_that_another_worker_looks_at_is_given_back_all_the_same(docs: Connection, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nv_embed.jobs.RELEASE_PAUSES_S", (0.0, *[0.05] * 100))
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    queue = Queue(site.connect())
    jobs = queue.claim([one(docs, "SELECT id FROM nv_embed.generation")], 1, 60.0)
    looking = site.connect()
    looking.execute("BEGIN; SELECT FROM nv_embed.job FOR UPDATE")
    thread = threading.Thread(target=queue.release, args=[jobs])
    thread.start()
    tried = "SELECT state = 'idle' AND query LIKE '%%release%%' FROM pg_stat_activity WHERE pid = %s"
    assert eventually(lambda: one(docs, tried, [queue.connection.info.backend_pid]))
    looking.execute("COMMIT")
    thread.join(30)
    assert one(docs, "SELECT leased_until <= clock_timestamp() FROM nv_embed.job")


@pytest.mark.parametrize(
    ("declare", "held"),
    [
        (DECLARE, "docs WHERE id = 1"),
        (DECLARE, "docs, nv_embed.job WHERE docs.id = 1 AND key = '{1}'"),
        (PIECES, "nv_embed.job WHERE key = '{1}'"),
    ],
    ids=("a row", "a row and its job", "the job of pieces"),
)
def test_what_somebody_holds_for_a_moment_is_written_without_another_call(
    site: Site, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, declare: str, held: str
) -> None:
    monkeypatch.setattr("nv_embed.rows.HELD_PAUSES_S", [0.02] * 200)
    docs, holder = site.connect(), site.connect()
    docs.execute(DOCS)
    docs.execute(declare)

    def hold(_: Sequence[str]) -> None:
        if not holder.info.transaction_status:
            holder.execute(f"BEGIN; SELECT FROM {held} FOR UPDATE")

    with counted(sidecar.address, hold) as server, site.worker(server.address, lanes=1):
        docs.execute("INSERT INTO docs VALUES (1, 'a', 'held'), (2, 'a', 'free')")
        assert eventually(lambda: docs.execute("SELECT key FROM nv_embed.job").fetchall() == [("{1}",)])
        holder.execute("COMMIT")
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '10 s')")
        assert sorted(text for page in server.pages for text in page) == ["a: free", "a: held"]


def rewrite(db: Connection, text: str) -> None:
    """Have every UPDATE of the table rewrite what is embedded."""
    db.execute(f"""
        CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := {text}; RETURN NEW; END $$;
        CREATE TRIGGER rewrite BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION rewrite()
    """)


def test_a_row_that_a_trigger_rewrites_with_its_vector_is_embedded_again(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 't', 'ABC'), (2, 't', 'same')")
    rewrite(docs, "replace(NEW.body, 'ABC', 'another')")
    site.drain()
    assert status(docs) == (2, 1, 1, 0)
    assert docs.execute("SELECT key, stale, attempts, history -> 0 ->> 'error' FROM nv_embed.job").fetchall() == [("{1}", True, 1, "TextRewritten")]
    docs.execute("UPDATE nv_embed.job SET retry_at = now()")
    site.drain()
    assert fresh(docs, client) == 2
    assert status(docs) == (2, 2, 0, 0)


@pytest.mark.parametrize("text", ["NEW.body || '!'", "NEW.body || CASE WHEN NEW.embedding IS NULL THEN '' ELSE '!' END"])
def test_a_row_that_a_trigger_rewrites_each_time_fails_in_the_end_and_keeps_no_vector(
    docs: Connection, site: Site, client: Client, text: str
) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 't', 'ABC')")
    rewrite(docs, text)
    for attempts in range(1, 6):
        site.drain()
        assert one(docs, "SELECT attempts FROM nv_embed.job") == attempts
        docs.execute("UPDATE nv_embed.job SET retry_at = now() WHERE retry_at < 'infinity'")
    assert status(docs) == (1, 0, 0, 1)
    assert one(docs, "SELECT embedding IS NULL FROM docs")
    error, message, attempts = docs.execute("SELECT error, message, attempts FROM nv_embed.failures").fetchone() or ()
    assert (error, attempts) == ("TextRewritten", 5)
    assert message == "a trigger of the table rewrites what is embedded while its vector is written"
    docs.execute("DROP TRIGGER rewrite ON docs; SELECT nv_embed.retry()")
    site.drain()
    assert (fresh(docs, client), status(docs)) == (1, (1, 1, 0, 0))


def test_a_text_that_a_trigger_rewrites_until_it_is_right_may_be_tried_again_after_it_failed(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 't', 'ABC')")
    rewrite(docs, "replace(NEW.body, 'ABC', 'another')")
    docs.execute("UPDATE nv_embed.job SET history = '[1, 2, 3, 4, 5]'")  # it failed, and nv_embed.retry() was called
    site.drain()
    assert one(docs, "SELECT attempts FROM nv_embed.job") == 1


def test_connections_that_are_cut_are_made_again(docs: Connection, site: Site, client: Client) -> None:
    cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'nv-embed worker' AND datname = current_database()"
    with site.worker():
        for n in range(5):
            docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(%s::int, %s::int) AS n", [200 * n + 1, 200 * n + 200])
            docs.execute(cut)
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '60 s')")
    assert fresh(docs, client) == 1000
    assert status(docs) == (1000, 1000, 0, 0)


def test_several_workers_share_the_work_and_do_none_of_it_twice(docs: Connection, site: Site, counter: Counter, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 3000) AS n")
    with site.worker(counter.address), site.worker(counter.address), site.worker(counter.address):
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '60 s')")
    sent = [text for page in counter.pages for text in page]
    assert len(sent) == len(set(sent)) == 3000
    assert fresh(docs, client) == 3000


def test_embeddings_that_share_a_model_are_sent_together(site: Site, counter: Counter) -> None:
    db = site.connect()
    for name in ("one", "two", "three"):
        db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, body text)")
        db.execute(f"SELECT nv_embed.auto_embed('{name}', '{{body}}', dim => 384, mode => 'async')")
        db.execute(f"INSERT INTO {name} VALUES (1, 'a {name}'), (2, 'b {name}')")
    site.drain(counter.address, lanes=1)
    assert [len(page) for page in counter.pages] == [6]
    assert db.execute("SELECT sum(embedded) FROM nv_embed.status").fetchone() == (6,)


def test_a_table_that_refuses_its_vectors_has_its_rows_fail_and_holds_up_no_other(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("CREATE TABLE strict (id int PRIMARY KEY, body text)")
    docs.execute("SELECT nv_embed.auto_embed('strict', '{body}', dim => 384, mode => 'async')")
    docs.execute("ALTER TABLE strict ADD CHECK (id <> 3 OR embedding IS NULL)")
    docs.execute("INSERT INTO strict SELECT n, 'body' FROM generate_series(1, 10) AS n; INSERT INTO docs VALUES (1, 'a', 'b')")
    site.drain()
    assert docs.execute("SELECT embedded, pending FROM nv_embed.status WHERE relation = 'strict'::regclass").fetchone() == (9, 1)
    for _ in range(4):
        docs.execute("UPDATE nv_embed.job SET retry_at = now()")
        site.drain()
    assert docs.execute("SELECT embedded, failed FROM nv_embed.status WHERE relation = 'strict'::regclass").fetchone() == (9, 1)
    assert one(docs, "SELECT error FROM nv_embed.failures") == "CheckViolation"
    assert fresh(docs, client) == 1


REFUSALS = {
    "RAISE EXCEPTION": "RAISE EXCEPTION 'no vector for %', NEW.id",
    "check option": "RAISE EXCEPTION 'no vector for %', NEW.id USING ERRCODE = '44000'",
    "program limit": "RAISE EXCEPTION 'no vector for %', NEW.id USING ERRCODE = '54000'",
    "foreign code": "RAISE EXCEPTION 'no vector for %', NEW.id USING ERRCODE = '38000'",
    "prerequisite": "RAISE EXCEPTION 'no vector for %', NEW.id USING ERRCODE = '55000'",
    "cancelled": "RAISE EXCEPTION 'no vector for %', NEW.id USING ERRCODE = '57014'",
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_trigger_that_refuses_a_vector_concerns_its_row_alone_whatever_it_raises(docs: Connection, site: Site, refusal: str) -> None:
    docs.execute(f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {refusal}; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE OF embedding ON docs FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION refuse();
        INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 10) AS n
    """)
    site.drain()
    assert status(docs) == (10, 9, 1, 0)
    docs.execute("UPDATE nv_embed.job SET retry_at = now(), attempts = 4")
    assert site.drain().counts.failed == 1
    assert status(docs) == (10, 9, 0, 1)
    assert docs.execute("SELECT key, message FROM nv_embed.failures").fetchall() == [(["1"], "no vector for 1")]


def test_a_row_that_cannot_be_read_fails_alone(site: Site, cluster: Cluster, own_database: str) -> None:
    db = site.connect()
    db.execute("CREATE TYPE state AS ENUM ('whole', 'damaged'); CREATE TABLE damaged (id int PRIMARY KEY, body text, state state)")
    db.execute("SELECT nv_embed.auto_embed('damaged', '{body}, {state}', dim => 384, mode => 'async')")
    db.execute("INSERT INTO damaged SELECT n, 'body', CASE n WHEN 3 THEN 'damaged' ELSE 'whole' END::state FROM generate_series(1, 10) AS n")
    with cluster.connect(own_database) as superuser:
        superuser.execute("SET allow_system_table_mods = on; DELETE FROM pg_enum WHERE enumlabel = 'damaged'")
    site.drain()
    assert status(db) == (10, 9, 1, 0)
    db.execute("UPDATE nv_embed.job SET retry_at = now(), attempts = 4")
    site.drain()
    assert status(db) == (10, 9, 0, 1)
    assert "invalid internal value for enum" in one(db, "SELECT message FROM nv_embed.failures")


@pytest.mark.parametrize("attempts", [0, 4])
def test_a_vector_that_its_table_does_not_let_go_of_stays_and_its_row_fails_alone(docs: Connection, site: Site, attempts: int) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 10) AS n")
    site.drain()
    docs.execute("""
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a vector is kept'; END $$;
        CREATE TRIGGER keep BEFORE UPDATE OF embedding ON docs FOR EACH ROW WHEN (NEW.embedding IS NULL) EXECUTE FUNCTION keep();
        UPDATE docs SET body = repeat('x', 5000000) WHERE id = 1;
        UPDATE docs SET body = repeat('word ', 9000) WHERE id = 2;
        UPDATE docs SET body = 'new' WHERE id > 5
    """)
    docs.execute("UPDATE nv_embed.job SET attempts = %s", [attempts])
    assert site.drain().counts.failed == (2 if attempts else 0)
    assert docs.execute("SELECT key FROM nv_embed.job ORDER BY key").fetchall() == [("{1}",), ("{2}",)]
    said = [message for (message,) in docs.execute("SELECT history -> -1 ->> 'message' FROM nv_embed.job ORDER BY key")]
    assert "bytes exceed" in said[0]
    assert "8192 tokens" in said[1]
    assert all(message.endswith("; its vector cannot be taken away: a vector is kept") for message in said)
    assert one(docs, "SELECT count(embedding) FROM docs") == 10
    assert status(docs) == ((10, 8, 0, 2) if attempts else (10, 8, 2, 0)), "those vectors are of other texts"


def test_a_vector_that_a_trigger_silently_keeps_counts_as_one_of_another_text(docs: Connection, site: Site) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 't', 'body')")
    site.drain()
    docs.execute("""
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.embedding := OLD.embedding; RETURN NEW; END $$;
        CREATE TRIGGER keep BEFORE UPDATE OF embedding ON docs FOR EACH ROW WHEN (NEW.embedding IS NULL) EXECUTE FUNCTION keep();
        UPDATE docs SET body = repeat('x', 5000000)
    """)
    site.drain()
    assert status(docs) == (1, 0, 0, 1)


def test_a_table_that_may_be_read_only_holds_up_no_other_though_a_text_of_it_is_at_fault(
    docs: Connection, embedder: Site, caplog: pytest.LogCaptureFixture
) -> None:
    docs.execute("GRANT SELECT ON docs TO embedder; INSERT INTO docs VALUES (1, 'a', repeat('x', 5000000))")
    docs.execute("CREATE TABLE other (id int PRIMARY KEY, body text); GRANT SELECT, UPDATE ON other TO embedder")
    docs.execute("SELECT nv_embed.auto_embed('other', '{body}', dim => 384, mode => 'async'); INSERT INTO other VALUES (1, 'a')")
    embedder.drain()
    assert "public.docs" in caplog.text
    assert docs.execute("SELECT relation::text, embedded, pending FROM nv_embed.status ORDER BY 1").fetchall() == [("docs", 0, 1), ("other", 1, 0)]


def test_a_worker_role_needs_few_rights_and_says_which_are_missing(
    docs: Connection, embedder: Site, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    embedder.drain()
    assert "permission denied" in caplog.text or "GRANT" in caplog.text
    assert status(docs) == (1, 0, 1, 0)
    docs.execute("GRANT SELECT, UPDATE (embedding) ON docs TO embedder")
    embedder.drain()
    assert fresh(docs, client) == 1


def test_rows_that_the_worker_may_not_see_are_an_error_and_stay_queued(docs: Connection, embedder: Site, caplog: pytest.LogCaptureFixture) -> None:
    docs.execute("GRANT SELECT, UPDATE (embedding) ON docs TO embedder; ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    embedder.drain()
    assert "row-level security" in caplog.text
    assert status(docs) == (1, 0, 1, 0)


@pytest.fixture
def own(site: Site) -> Connection:
    """A connection of the ordinary role `app`, to whom the table docs belongs."""
    app = site.connect("app")
    app.execute(DOCS)
    app.execute(DECLARE)
    return app


def test_the_owner_of_a_table_can_run_a_worker_of_its_own(own: Connection, site: Site, install: Install, client: Client) -> None:
    site.connect().execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    site.connect().execute("SELECT nv_embed.auto_embed('other', '{body}', dim => 384, mode => 'async'); INSERT INTO other VALUES (1, 'x')")
    with Site(site.connect, install.dsn(own.info.dbname, "app"), site.endpoint).worker(poll_s=60.0):
        assert eventually(lambda: one(own, "SELECT count(*) FROM nv_embed.worker WHERE is_waiting AND role_name = 'app'") == 1)
        own.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 300) AS n")
        assert one(own, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        assert eventually(lambda: one(own, "SELECT rate FROM nv_embed.status") > 0)
    assert fresh(own, client) == 300
    assert one(own, "SELECT count(*) FROM nv_embed.worker") == 0
    assert one(site.connect(), "SELECT pending FROM nv_embed.status WHERE relation = 'other'::regclass") == 1


def test_a_role_that_may_not_embed_for_a_table_changes_nothing_of_its_rate_and_wakes_no_one_for_ever(own: Connection, site: Site) -> None:
    owner = site.connect()
    owner.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    owner.execute("SELECT nv_embed.auto_embed('other', '{body}', dim => 384, mode => 'async')")
    rates = {str(id): 7 for (id,) in owner.execute("SELECT id FROM nv_embed.generation")}
    own.execute("SELECT nv_embed.beat(NULL, 'here', true, %s)", [Jsonb(rates)])
    assert owner.execute("SELECT relation::text, rate FROM nv_embed.status ORDER BY 1").fetchall() == [("docs", 7), ("other", 0)]
    for statement in (
        "INSERT INTO nv_embed.worker (name, role_name) VALUES ('me', 'postgres')",
        "UPDATE nv_embed.worker SET role_name = 'postgres'",
        "UPDATE nv_embed.worker SET seen_at = now() + interval '1 year'",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            own.execute(statement)
    owner.execute("LISTEN nv_embed_job")
    writes = ("INSERT INTO other VALUES (1, 'x')", "UPDATE other SET body = 'y'")
    for write, is_heard in zip(writes, (True, False), strict=True):
        owner.execute(write)
        assert bool(list(owner.notifies(timeout=0, stop_after=1))) is is_heard
        owner.execute("UPDATE nv_embed.worker SET seen_at = now() - interval '2 min'")
    own.execute("SELECT nv_embed.beat(NULL, 'there', true, '{}')")
    assert own.execute("SELECT name FROM nv_embed.worker").fetchall() == [("there",)]


def test_lines_that_another_role_keeps_locked_hold_no_worker_up(own: Connection, site: Site) -> None:
    worker = site.connect()
    own.execute("INSERT INTO docs VALUES (1, 't', 'x'); INSERT INTO docs VALUES (2, 't', 'y')")
    own.execute("SELECT nv_embed.beat(NULL, 'dead', false, '{}')")
    first = one(worker, "SELECT nv_embed.beat(NULL, 'here', true, '{}')")
    worker.execute("UPDATE nv_embed.worker SET seen_at = now() - interval '2 min'; SET lock_timeout = '5 s'")
    own.execute("BEGIN; DELETE FROM nv_embed.worker; DELETE FROM nv_embed.tally")
    assert one(worker, "SELECT nv_embed.beat(%s, 'here', true, '{}')", [first]) != first
    own.execute("ROLLBACK")
    worker.execute("SELECT nv_embed.beat(NULL, 'there', true, '{}')")
    assert worker.execute("SELECT name FROM nv_embed.worker ORDER BY 1").fetchall() == [("here",), ("there",)]
    assert one(worker, "SELECT count(*) FROM nv_embed.tally") == 1
    assert status(own) == (2, 0, 2, 0)


@pytest.mark.parametrize("rates", ["[1]", '{"7": "abc"}', '{"7": null}', '{"7": [1]}', '{"7": -1}', '{"7": 1e300}'])
def test_a_rate_that_is_no_number_of_rows_is_refused(own: Connection, rates: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        own.execute("SELECT nv_embed.beat(NULL, 'here', false, %s)", [rates])


def test_a_rate_of_next_to_nothing_is_none(own: Connection, site: Site) -> None:
    own.execute("INSERT INTO docs VALUES (1, 't', 'x')")
    own.execute("SELECT nv_embed.beat(NULL, 'here', false, jsonb_build_object(id::text, 1e-400)) FROM nv_embed.generation")
    assert site.connect().execute("SELECT pending, rate, eta FROM nv_embed.status").fetchall() == [(1, 0, None)]


@pytest.mark.parametrize("then", ["", "SELECT nv_embed.refresh('docs')"])
def test_rows_that_a_declaration_does_not_see_in_its_snapshot_are_embedded_all_the_same(site: Site, client: Client, then: str) -> None:
    db, writer = site.connect(), site.connect()
    db.execute(DOCS)
    with db.transaction():
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        writer.execute("INSERT INTO docs VALUES (1, 't', 'x')")
        db.execute(DECLARE)
        db.execute(then)
    site.drain()
    assert (fresh(db, client), status(db)) == (1, (1, 1, 0, 0))


def test_a_refresh_in_a_snapshot_that_sees_all_rows_ends_a_backfill(site: Site) -> None:
    db = site.connect()
    db.execute("SET default_transaction_isolation = 'repeatable read'")
    db.execute(DOCS)
    db.execute(DECLARE)
    assert one(db, "SELECT backfilling FROM nv_embed.status") is True
    db.execute("SELECT nv_embed.refresh('docs')")
    assert one(db, "SELECT backfilling FROM nv_embed.status") is False


def test_rows_that_a_truncate_does_not_see_in_its_snapshot_are_counted_no_more(docs: Connection, site: Site) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 't', 'x'), (2, 't', 'y')")
    site.drain()
    with docs.transaction():
        docs.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        site.connect().execute("INSERT INTO docs VALUES (3, 't', 'z'), (4, 't', ' ')")
        docs.execute("TRUNCATE docs")
    site.drain()
    assert status(docs) == (0, 0, 0, 0)
    assert one(docs, "SELECT coverage FROM nv_embed.status") == 1


def test_a_table_that_has_become_slow_to_write_is_held_for_moments_only(docs: Connection, site: Site) -> None:
    with site.worker(lanes=1):
        for first, last in ((1, 600), (601, 601)):
            docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(%s::int, %s::int) AS n", [first, last])
            assert one(docs, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        # As a graph of vectors makes it.
        docs.execute("""
            CREATE FUNCTION take_its_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$;
            CREATE TRIGGER take_its_time BEFORE UPDATE OF embedding ON docs FOR EACH ROW EXECUTE FUNCTION take_its_time();
            INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1000, 1400) AS n
        """)
        assert one(docs, "SELECT nv_embed.wait('docs', timeout => '60 s')")
    assert one(docs, "SELECT max(count) FROM (SELECT count(*) FROM docs WHERE id >= 1000 GROUP BY xmin) AS at_once") <= 8


def test_a_writer_in_the_middle_of_a_transaction_is_never_in_a_deadlock_with_a_worker(docs: Connection, site: Site, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 3) AS n")
    generation, keys = one(docs, "SELECT id FROM nv_embed.generation"), ["{1}", "{2}", "{3}"]
    ids = [id for _, _, id, _ in docs.execute("SELECT * FROM nv_embed.claim(ARRAY[%s]::bigint[], 3, '1 min') ORDER BY key", [generation])]
    digests = [digest for (digest,) in docs.execute("SELECT digest FROM nv_embed.read(%s, %s, 1000) ORDER BY place", [generation, keys])]
    vectors = [str(client.embed(["x"], dim=384)[0].tolist())] * 3
    writer = site.connect()
    writer.execute("BEGIN; UPDATE docs SET body = 'changed' WHERE id = 2; INSERT INTO docs VALUES (4, 'a', 'b')")
    docs.execute("SET statement_timeout = '5 s'")
    written = docs.execute("SELECT * FROM nv_embed.write_back(%s, %s, %s::bigint[], %s, %s::text[])", [generation, keys, ids, digests, vectors])
    assert written.fetchall() == [(2, [2])]
    docs.execute("SELECT nv_embed.fail(%s, ARRAY['{2}'], %s::bigint[], 'Error', ARRAY['no'], NULL)", [generation, [ids[1]]])
    writer.execute("UPDATE docs SET body = 'changed' WHERE id = 1; COMMIT")
    assert docs.execute("SELECT key, attempts, retry_at FROM nv_embed.job ORDER BY key").fetchall() == [
        ("{1}", 0, None),
        ("{2}", 0, None),
        ("{4}", 0, None),
    ]


def test_a_lane_that_dies_ends_the_worker_with_an_error(docs: Connection, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(lane: Lane, call: Callable[[], None]) -> bool:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(Lane, "step", dies)
    with pytest.raises(RuntimeError, match="a lane has died"):
        Worker(Settings(site.dsn, (site.endpoint,))).run()


# Texts in pieces.


@pytest.fixture
def book(site: Site) -> Connection:
    db = site.connect()
    db.execute(DOCS)
    db.execute(PIECES)
    return db


def pieces_of(words: int) -> str:
    return f"(SELECT string_agg('w' || n || 'x' || m, ' ') FROM generate_series(1, {words}) AS m)"


def test_a_worker_cuts_long_texts_and_embeds_the_pieces(book: Connection, site: Site, client: Client) -> None:
    book.execute(f"INSERT INTO docs SELECT n, 't', {pieces_of(100)} FROM generate_series(1, 300) AS n")
    with site.worker():
        assert one(book, "SELECT nv_embed.wait('docs', timeout => '60 s')")
        assert in_step(book, client) > 1500
        book.execute("UPDATE docs SET body = 'new ' || body WHERE id % 3 = 0; DELETE FROM docs WHERE id % 7 = 0")
        book.execute("UPDATE docs SET title = NULL, body = NULL WHERE id = 1; UPDATE docs SET id = 1000 + id WHERE id = 2")
        assert one(book, "SELECT nv_embed.wait('docs', timeout => '60 s')")
    in_step(book, client)
    assert status(book) == (258, 257, 0, 0)


def test_a_text_that_cannot_be_cut_fails_alone_and_keeps_no_piece(book: Connection, site: Site, client: Client) -> None:
    book.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 20) AS n")
    site.drain()
    book.execute("UPDATE docs SET body = repeat('x', 5000000) WHERE id = 7; UPDATE docs SET body = 'other' WHERE id = 8")
    assert site.drain().counts.failed == 1
    assert one(book, "SELECT count(*) FROM docs_embedding_chunk WHERE id = 7") == 0
    assert book.execute("SELECT key, error FROM nv_embed.failures").fetchall() == [(["7"], "InvalidInput")]
    assert status(book) == (20, 19, 0, 1)
    book.execute("UPDATE docs SET body = 'mended' WHERE id = 7")
    site.drain()
    in_step(book, client)
    assert status(book) == (20, 20, 0, 0)


def test_a_piece_on_which_the_engine_fails_concerns_its_row_only(book: Connection, site: Site, sidecar: Sidecar, client: Client) -> None:
    book.execute(f"INSERT INTO docs SELECT n, 't', {pieces_of(60)} FROM generate_series(1, 30) AS n")

    def failing(texts: Sequence[str]) -> Any:
        return (grpc.StatusCode.INTERNAL, "the engine failed on a batch", ()) if any("w11x40" in text for text in texts) else None

    with counted(sidecar.address, failing) as server:
        site.drain(server.address)
        assert status(book) == (30, 29, 1, 0)
        assert book.execute("SELECT key, attempts FROM nv_embed.job").fetchall() == [("{11}", 1)]
    book.execute("UPDATE nv_embed.job SET retry_at = now()")
    site.drain()
    in_step(book, client)


def test_a_row_in_pieces_that_changes_while_it_is_embedded_gets_those_of_its_new_text(
    book: Connection, site: Site, sidecar: Sidecar, client: Client
) -> None:
    book.execute(f"INSERT INTO docs SELECT n, 't', {pieces_of(60)} FROM generate_series(1, 20) AS n")
    calls = count(1)  # a worker has two lanes

    def meanwhile(_: Sequence[str]) -> None:
        if (call := next(calls)) <= 3:
            with site.connect() as other:
                other.execute("UPDATE docs SET body = 'changed ' || body WHERE id <= 5")
                other.execute("DELETE FROM docs WHERE id = %s", [10 + call])
                other.execute("UPDATE docs SET id = id + 1000 WHERE id = %s", [15 + call])

    with counted(sidecar.address, meanwhile) as server, site.worker(server.address):
        assert one(book, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    in_step(book, client)
    assert status(book) == (17, 17, 0, 0)


def test_whole_rows_and_pieces_that_share_a_model_are_sent_together(site: Site, counter: Counter) -> None:
    db = site.connect()
    db.execute(DOCS)
    db.execute(DECLARE)
    db.execute(PIECES.replace("dim", "target => 'passage', dim"))
    db.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    site.drain(counter.address, lanes=1)
    assert [sorted(page) for page in counter.pages] == [["a: b", "a: b", "c: d", "c: d"]]


def test_a_worker_role_embeds_pieces_with_what_is_granted_on_the_table_alone(book: Connection, embedder: Site, client: Client) -> None:
    book.execute(f"INSERT INTO docs SELECT n, 't', {pieces_of(60)} FROM generate_series(1, 5) AS n")
    book.execute("GRANT SELECT ON docs TO embedder")
    embedder.drain()
    in_step(book, client)
    assert status(book) == (5, 5, 0, 0)
