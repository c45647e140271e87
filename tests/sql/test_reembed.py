"""
Re-embedding: from one generation to the next while rows are read and written, and back.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy
import psycopg
import pytest
from conftest import Connection
from counting import Counter
from installs import BOTH, EXTENSION, Install
from program import eventually
from servers import Sidecar
from vectors import cosine, one, parsed
from workers import drain, working

from nv_embed.client import Client
from nv_embed.cluster import Cluster
from nv_embed.jobs import Queue

pytestmark = BOTH

DOCS = "CREATE TABLE docs (id int PRIMARY KEY, body text)"


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    connection = connect()
    connection.execute(DOCS)
    return connection


@pytest.fixture
def dsn(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


def declare(db: Connection, dim: int = 384, rows: int = 50, mode: str = "async", storage: str = "halfvec") -> None:
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => %s, mode => %s, storage => %s)", [dim, mode, storage])
    db.execute("INSERT INTO docs SELECT n, 'body ' || n FROM generate_series(1, %s) AS n", [rows])


def reembed(db: Connection, **options: Any) -> int:
    named = "".join(f", {name} => %s" for name in options)
    return int(one(db, f"SELECT nv_embed.reembed('docs'{named})", list(options.values())))


def state(db: Connection) -> str:
    return str(one(db, "SELECT state FROM nv_embed.reembedding_status ORDER BY id DESC LIMIT 1"))


def advance(db: Connection, id: int, wanted: str = "ready") -> None:
    """As the command line does it."""
    deadline = time.monotonic() + 60
    while (now := one(db, "SELECT nv_embed.advance_reembedding(%s)", [id])) != wanted:
        assert time.monotonic() < deadline, now
        for (step,) in db.execute("SELECT nv_embed.reembedding_index_steps(%s)", [id]).fetchall() if now == "indexing" else []:
            db.execute(step)
        time.sleep(0.05)


def right(db: Connection, client: Client, dim: int, column: str = "embedding") -> int:
    """How many rows hold the vector of just their text at that width; fails on one that holds another's."""
    rows = db.execute(f"SELECT id, body, {column}::text FROM docs WHERE {column} IS NOT NULL").fetchall()
    expected = client.embed([text for _, text, _ in rows], dim=dim)
    for (key, _, stored), vector in zip(rows, expected, strict=True):
        found = parsed(stored)
        assert found is not None
        assert len(found) == dim
        assert cosine(found, vector) > 0.999, key
    return len(rows)


def search(db: Connection, client: Client, text: str, dim: int, k: int = 1) -> list[tuple[int, float]]:
    asked = str(client.embed([text], dim=dim)[0].tolist())
    return db.execute("SELECT (hit).id, score FROM nv_search(NULL::docs, %s::vector, k => %s)", [asked, k]).fetchall()


def columns(db: Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attnum > 0 AND NOT attisdropped")]


def test_a_table_goes_to_another_width_while_the_old_one_answers(db: Connection, dsn: str, sidecar: Sidecar, client: Client) -> None:
    declare(db)
    drain(dsn, sidecar.address)
    db.execute(one(db, "SELECT nv_embed.create_index_sql('docs', concurrently => false, m => 8)"))
    id = reembed(db, dim=512)
    assert state(db) == "backfilling"
    db.execute("UPDATE docs SET body = 'changed' WHERE id = 7; DELETE FROM docs WHERE id = 8; INSERT INTO docs VALUES (100, 'new'), (101, ' ')")
    assert search(db, client, "body 9", 384)[0][0] == 9
    with working(dsn, sidecar.address):
        advance(db, id)
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        assert right(db, client, 384) == 50
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
        assert (right(db, client, 512), search(db, client, "changed", 512)[0][0]) == (50, 7)
        assert db.execute("SELECT dim, rows, embedded, pending, coverage FROM nv_embed.status").fetchall() == [(512, 51, 50, 0, 1.0)]
        assert db.execute("SELECT dim, is_valid FROM nv_embed.vector_indexes('docs')").fetchall() == [(512, True)]
        (options,) = db.execute("SELECT reloptions FROM pg_class JOIN nv_embed.vector_indexes('docs') ON index = oid").fetchone() or ()
        assert options == ["m=8"]
    db.execute("SELECT nv_embed.finish(%s)", [id])
    assert (state(db), columns(db)) == ("finished", ["id", "body", "embedding"])
    assert one(db, "SELECT index::text FROM nv_embed.vector_indexes('docs')") == "docs_embedding_512_halfvec_hnsw"
    db.execute("UPDATE docs SET body = 'again' WHERE id = 1")
    drain(dsn, sidecar.address)
    assert right(db, client, 512) == 50
    assert one(db, "SELECT count(*) FROM nv_embed.generation") == 1


def test_a_narrower_generation_of_the_same_model_is_cut_without_a_call(
    db: Connection, dsn: str, sidecar: Sidecar, counter: Counter, client: Client
) -> None:
    declare(db, dim=2048, rows=1200)
    db.execute("INSERT INTO docs VALUES (5000, ''), (5001, NULL)")
    drain(dsn, sidecar.address)
    id = reembed(db, dim=384, storage="vector")
    with working(dsn, counter.address):
        advance(db, id)
    assert counter.pages == []
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert right(db, client, 384) == 1200
    assert db.execute("SELECT storage, rows, embedded, blank, pending FROM nv_embed.status").fetchall() == [("vector", 1202, 1200, 2, 0)]


@pytest.mark.parametrize("collation", ["default", "C", "de-x-icu"])
def test_keys_of_any_collation_are_cut(db: Connection, dsn: str, counter: Counter, client: Client, collation: str) -> None:
    db.execute(f'ALTER TABLE docs ALTER id TYPE text COLLATE "{collation}"')
    declare(db, dim=512)
    drain(dsn, counter.address)
    counter.pages.clear()
    id = reembed(db, dim=384)
    with working(dsn, counter.address):
        advance(db, id)
    assert counter.pages == []
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert right(db, client, 384) == 50


def test_a_row_whose_vector_is_stale_is_embedded_and_not_cut(db: Connection, dsn: str, sidecar: Sidecar, counter: Counter, client: Client) -> None:
    declare(db, dim=512)
    drain(dsn, sidecar.address)
    db.execute("UPDATE docs SET body = 'changed ' || id WHERE id <= 3")
    id = reembed(db, dim=384)
    with working(dsn, counter.address):
        advance(db, id)
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert {text for page in counter.pages for text in page} == {"changed 1", "changed 2", "changed 3"}
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert right(db, client, 384) == 50


def test_a_row_that_a_trigger_rewrites_while_it_is_cut_is_embedded_and_not_cut(db: Connection, dsn: str, sidecar: Sidecar, client: Client) -> None:
    declare(db, dim=512, rows=20)
    drain(dsn, sidecar.address)
    db.execute("""
        CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := replace(NEW.body, 'body', 'another'); RETURN NEW; END $$;
        CREATE TRIGGER rewrite BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION rewrite();
        UPDATE docs SET body = body WHERE id <= 10
    """)
    drain(dsn, sidecar.address)
    id = reembed(db, dim=384)
    drain(dsn, sidecar.address)
    drain(dsn, sidecar.address)  # what cutting queued
    advance(db, id)
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert one(db, "SELECT body FROM docs WHERE id = 20") == "another 20"
    assert right(db, client, 384) == 20
    assert db.execute("SELECT embedded, pending, failed FROM nv_embed.status").fetchall() == [(20, 0, 0)]


def test_rolling_back_has_every_row_that_was_written_since(db: Connection, dsn: str, sidecar: Sidecar, client: Client) -> None:
    declare(db)
    drain(dsn, sidecar.address)
    id = reembed(db, dim=512)
    with working(dsn, sidecar.address):
        advance(db, id)
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
        db.execute("UPDATE docs SET body = 'changed' WHERE id = 7; INSERT INTO docs VALUES (100, 'new'); UPDATE docs SET id = 200 WHERE id = 1")
        db.execute("SELECT nv_embed.roll_back(%s)", [id])
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        assert right(db, client, 384) == 51
        assert db.execute("SELECT dim, rows, embedded, pending FROM nv_embed.status").fetchall() == [(384, 51, 51, 0)]
    with pytest.raises(psycopg.errors.ObjectInUse, match="is rolled_back"):
        reembed(db, dim=512)
    db.execute("SELECT nv_embed.finish(%s)", [id])
    assert (state(db), columns(db)) == ("rolled_back", ["id", "body", "embedding"])
    again = reembed(db, dim=512)
    db.execute("SELECT nv_embed.cancel(%s)", [again])
    assert (state(db), columns(db)) == ("cancelled", ["id", "body", "embedding"])
    db.execute("INSERT INTO docs VALUES (300, 'after all')")
    drain(dsn, sidecar.address)
    assert right(db, client, 384) == 52


def test_a_reader_whose_snapshot_is_older_reads_the_generation_of_its_snapshot(
    db: Connection, connect: Callable[..., Connection], dsn: str, sidecar: Sidecar, client: Client
) -> None:
    declare(db)
    drain(dsn, sidecar.address)
    first, second = connect(), connect()
    first.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
    id = reembed(db, dim=512)
    with working(dsn, sidecar.address):
        advance(db, id)
    second.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    for reader in (first, second):
        assert search(reader, client, "body 9", 384)[0] == (9, pytest.approx(1, abs=1e-3))
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="512 dimensions, not 384"), reader.transaction():
            search(reader, client, "body 9", 512)
        assert search(reader, client, "body 9", 384, k=3)[0][0] == 9
    second.execute("COMMIT")
    assert search(second, client, "body 9", 512)[0] == (9, pytest.approx(1, abs=1e-3))
    second.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
    first.execute("COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
    db.execute("SELECT nv_embed.roll_back(%s)", [id])
    assert search(first, client, "body 9", 512)[0] == (9, pytest.approx(1, abs=1e-3))
    first.execute("COMMIT")
    db.execute("SELECT nv_embed.finish(%s)", [id])
    with pytest.raises(psycopg.errors.SerializationFailure, match="re-embedding"):
        search(second, client, "body 9", 512)
    second.execute("ROLLBACK")
    assert search(second, client, "body 9", 384)[0] == (9, pytest.approx(1, abs=1e-3))


def test_a_writer_whose_snapshot_is_older_is_told_to_try_again(
    db: Connection, connect: Callable[..., Connection], dsn: str, sidecar: Sidecar, client: Client
) -> None:
    declare(db)
    drain(dsn, sidecar.address)
    writer = connect()
    writer.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
    id = reembed(db, dim=512)
    with pytest.raises(psycopg.errors.SerializationFailure, match="re-embedding"):
        writer.execute("INSERT INTO docs VALUES (100, 'new')")
    writer.execute("ROLLBACK; INSERT INTO docs VALUES (100, 'new')")
    with working(dsn, sidecar.address):
        advance(db, id)
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert right(db, client, 512) == 51


@EXTENSION
def test_in_mode_sync_no_worker_is_needed_and_no_statement_waits_for_two_models(db: Connection, counter: Counter, client: Client) -> None:
    db.execute("SELECT nv_embed.configure(%s)", [counter.address])
    declare(db, mode="sync")
    id = reembed(db, dim=512)
    counter.pages.clear()
    db.execute("INSERT INTO docs VALUES (100, 'new'); UPDATE docs SET body = 'changed' WHERE id = 7")
    assert counter.pages == [["new"], ["changed"]]
    assert right(db, client, 384) == 51
    assert one(db, "SELECT nv_embed.refresh('docs')") == 0
    advance(db, id)
    db.execute("UPDATE docs SET body = 'changed again' WHERE id = 7; INSERT INTO docs VALUES (101, 'newer')")
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert right(db, client, 512) == 52
    db.execute("UPDATE docs SET body = 'changed once more' WHERE id = 7; DELETE FROM docs WHERE id = 8")
    assert right(db, client, 512) == 51
    db.execute("SELECT nv_embed.roll_back(%s)", [id])
    assert right(db, client, 384) == 51


def test_a_cut_over_is_refused_while_rows_lack_their_vectors(db: Connection, dsn: str, sidecar: Sidecar) -> None:
    declare(db)
    drain(dsn, sidecar.address)
    id = reembed(db, dim=512)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="is backfilling"):
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
    with working(dsn, sidecar.address):
        advance(db, id)
    db.execute("INSERT INTO docs VALUES (100, 'awaits both')")
    db.execute("INSERT INTO docs SELECT 101, 'brings one along', embedding FROM docs WHERE id = 1")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not every row") as raised:
        db.execute("SELECT nv_embed.cut_over(%s, '0.2 s')", [id])
    assert raised.value.diag.message_detail == "1 wait for a worker, 0 failed, 0 were never queued."
    assert (state(db), one(db, "SELECT dim FROM nv_embed.status")) == ("ready", 384)
    db.execute("DELETE FROM docs WHERE id = 101")
    db.execute("SELECT nv_embed.cut_over(%s, '0.2 s')", [id])
    assert one(db, "SELECT dim FROM nv_embed.status") == 512


def test_rows_without_a_text_hold_up_no_cut_over(db: Connection, connect: Callable[..., Connection], dsn: str, sidecar: Sidecar) -> None:
    declare(db)
    db.execute("INSERT INTO docs SELECT 100, ' ', array_fill(0.5::real, ARRAY[384])::halfvec")
    id = reembed(db, dim=512)
    with working(dsn, sidecar.address):
        advance(db, id)
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    # One generation is ahead of the other at taking the vectors away.
    db.execute("UPDATE docs SET body = NULL WHERE id <= 3")
    queue, following = Queue(connect()), one(db, "SELECT max(id) FROM nv_embed.generation")
    (generation,) = (generation for generation in queue.work() if generation.id == following)
    texts = queue.read(following, queue.claim([following], 10, 60.0), 1000)
    assert queue.write_back(generation, texts, numpy.empty((0, 512), numpy.float32)).settled == 3
    db.execute("SELECT nv_embed.cut_over(%s, '0.2 s')", [id])
    assert db.execute("SELECT dim, rows, embedded, pending, blank, coverage FROM nv_embed.status").fetchall() == [(512, 51, 47, 0, 4, 1.0)]
    drain(dsn, sidecar.address)
    db.execute("SELECT nv_embed.roll_back(%s, '0.2 s')", [id])
    assert db.execute("SELECT dim, rows, embedded, pending, blank, coverage FROM nv_embed.status").fetchall() == [(384, 51, 48, 0, 3, 1.0)]


def test_nobody_can_hold_a_cut_over_up_by_calling_what_it_calls(
    db: Connection, connect: Callable[..., Connection], dsn: str, sidecar: Sidecar
) -> None:
    declare(db)
    id = reembed(db, dim=512)
    with working(dsn, sidecar.address):
        advance(db, id)
    with connect("app").transaction() as transaction:
        transaction.connection.execute("SELECT nv_embed.declare_live(id) FROM nv_embed.embedding")
        db.execute("SET lock_timeout = '5 s'")
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert one(db, "SELECT dim FROM nv_embed.status") == 512


def test_a_declaration_can_be_dropped_while_its_table_is_re_embedded(db: Connection, dsn: str, sidecar: Sidecar) -> None:
    declare(db)
    reembed(db, dim=512)
    db.execute("SELECT nv_embed.drop_auto_embed('docs')")
    assert columns(db) == ["id", "body", "embedding"]
    assert one(db, "SELECT count(*) FROM nv_embed.reembedding") == 0
    db.execute("INSERT INTO docs VALUES (100, 'nobody embeds it')")
    drain(dsn, sidecar.address)


def test_a_partitioned_table_is_re_embedded_by_its_parent(db: Connection, dsn: str, sidecar: Sidecar, client: Client) -> None:
    db.execute("DROP TABLE docs; CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE low PARTITION OF docs FOR VALUES FROM (0) TO (25); CREATE TABLE high PARTITION OF docs FOR VALUES FROM (25) TO (1000)")
    declare(db, dim=512)
    drain(dsn, sidecar.address)
    for (step,) in db.execute("SELECT nv_embed.create_index_steps('docs', dim => 384)").fetchall():
        db.execute(step)
    id = reembed(db, dim=768)
    with working(dsn, sidecar.address):
        advance(db, id)
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert right(db, client, 768) == 50
    db.execute("SELECT nv_embed.finish(%s)", [id])
    assert db.execute("SELECT index::text, dim, is_valid FROM nv_embed.vector_indexes('docs')").fetchall() == [
        ("docs_embedding_384_halfvec_hnsw", 384, True)
    ]
    assert search(db, client, "body 40", 768)[0][0] == 40


def test_what_cannot_be_done_is_said(db: Connection, dsn: str, sidecar: Sidecar) -> None:
    declare(db)
    for options, error, said in (
        ({}, psycopg.errors.InvalidParameterValue, "are such already"),
        ({"dim": 123}, psycopg.errors.InvalidParameterValue, "123"),
        ({"model": "unheard-of"}, psycopg.errors.UndefinedObject, "unheard-of"),
        ({"storage": "bit"}, psycopg.errors.InvalidParameterValue, "storage 'bit' is unknown"),
        ({"dim": 512, "rows_per_s": 0}, psycopg.errors.InvalidParameterValue, "rows_per_s is 0"),
    ):
        with pytest.raises(error, match=said):
            reembed(db, **options)
    with pytest.raises(psycopg.errors.UndefinedObject, match="there is no re-embedding 99"):
        db.execute("SELECT nv_embed.cut_over(99)")
    id = reembed(db, dim=512, start=False)
    assert (state(db), columns(db)) == ("planned", ["id", "body", "embedding"])
    with pytest.raises(psycopg.errors.ObjectInUse, match=f"re-embedding {id} of public.docs is planned"):
        reembed(db, dim=768)
    assert one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) == "backfilling"
    db.execute("SELECT nv_embed.cancel(%s)", [id])
    for function in ("cancel", "cut_over", "roll_back", "finish"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=f"re-embedding {id} is cancelled"):
            db.execute(f"SELECT nv_embed.{function}(%s)", [id])


def test_column_privileges_come_along(db: Connection, dsn: str, sidecar: Sidecar) -> None:
    declare(db)
    drain(dsn, sidecar.address)
    db.execute("GRANT SELECT (id, embedding) ON docs TO PUBLIC; GRANT UPDATE (embedding) ON docs TO app WITH GRANT OPTION")
    before = one(db, "SELECT attacl::text FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attname = 'embedding'")
    id = reembed(db, dim=512)
    with working(dsn, sidecar.address):
        advance(db, id)
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert one(db, "SELECT attacl::text FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attname = 'embedding'") == before


@pytest.mark.parametrize("place", ["PLAIN", "MAIN"])
def test_vectors_that_are_kept_in_the_row_stay_there(db: Connection, dsn: str, sidecar: Sidecar, place: str) -> None:
    declare(db, dim=2048)
    db.execute(f"ALTER TABLE docs ALTER COLUMN embedding SET STORAGE {place}")
    drain(dsn, sidecar.address)
    id = reembed(db, dim=1024)
    with working(dsn, sidecar.address):
        advance(db, id)
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    assert one(db, "SELECT count(*) FROM docs") > 0
    assert one(db, "SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'docs'::regclass") == 0


def test_workers_take_no_more_of_a_backfill_than_is_allowed(db: Connection, dsn: str, sidecar: Sidecar) -> None:
    declare(db, rows=400)
    drain(dsn, sidecar.address)
    for storage, dim in (("halfvec", 512), ("vector", 512)):  # embedded, then cut
        id = reembed(db, dim=dim, storage=storage, rows_per_s=100)
        begun = time.monotonic()
        with working(dsn, sidecar.address):
            advance(db, id)
        assert 2.5 < time.monotonic() - begun < 30  # what a second allows may be taken at once
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
        db.execute("SELECT nv_embed.finish(%s)", [id])


def test_readers_and_writers_go_through_cut_overs_unharmed(
    db: Connection, connect: Callable[..., Connection], dsn: str, sidecar: Sidecar, client: Client
) -> None:
    declare(db, rows=200)
    drain(dsn, sidecar.address)
    asked = {dim: str(client.embed(["body 9"], dim=dim)[0].tolist()) for dim in (384, 512)}
    over, hits, failures = threading.Event(), [0, 0], []

    def read(reader: Connection) -> None:
        while not over.is_set():
            with reader.transaction():
                reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                dim = one(reader, "SELECT dim FROM nv_embed.generation WHERE state = 'live'")
                found = reader.execute("SELECT (hit).id, score FROM nv_search(NULL::docs, %s::vector, k => 1)", [asked[dim]]).fetchone()
            assert found == (9, pytest.approx(1, abs=1e-3)), (dim, found)
            hits[dim == 512] += 1

    def write(writer: Connection) -> None:
        for n in range(1_000_000):
            if over.wait(0.002):
                break
            writer.execute("INSERT INTO docs VALUES (%s, 'new ' || %s)", [1000 + n, n])
            writer.execute("UPDATE docs SET body = body || '!' WHERE id = %s", [20 + n % 150])

    def guarded(work: Callable[[Connection], None], connection: Connection) -> None:
        try:
            work(connection)
        except (AssertionError, psycopg.Error) as error:
            failures.append(error)
            over.set()

    threads = [threading.Thread(target=guarded, args=(work, connect())) for work in (read, read, write)]
    with working(dsn, sidecar.address):
        for thread in threads:
            thread.start()
        try:
            for dim, end in ((512, "finish"), (384, "roll_back"), (384, "finish"), (512, "finish")):
                id = reembed(db, dim=dim)
                advance(db, id)
                db.execute("SELECT nv_embed.cut_over(%s)", [id])
                if end == "roll_back":
                    db.execute("SELECT nv_embed.roll_back(%s)", [id])
                time.sleep(0.3)  # until no reader has a snapshot from before
                db.execute("SELECT nv_embed.finish(%s)", [id])
        finally:
            over.set()
            for thread in threads:
                thread.join(60)
        assert failures == []
        assert min(hits) > 5
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert right(db, client, 512) == one(db, "SELECT count(*) FROM docs")


@EXTENSION
def test_a_query_of_ones_own_in_a_snapshot_from_before_a_cut_over_is_told_to_try_again(
    db: Connection, connect: Callable[..., Connection], dsn: str, sidecar: Sidecar
) -> None:
    """The column's name is the new vectors' already, and the question would be embedded by the model of the old ones."""
    declare(db)
    drain(dsn, sidecar.address)
    id = reembed(db, dim=512)
    with working(dsn, sidecar.address):
        advance(db, id)
    query = b"SELECT id FROM docs ORDER BY embedding <=> nv_embed_query('body 9', 'docs'::regclass)::halfvec LIMIT 1"
    reader, late = connect(), connect()
    assert reader.execute(query).fetchone() is not None
    for each in (reader, late):
        each.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
    db.execute("SELECT nv_embed.cut_over(%s)", [id])
    with pytest.raises(psycopg.errors.SerializationFailure, match="re-embedding of public"):
        reader.execute(query)
    reader.execute("ROLLBACK")
    assert reader.execute(query).fetchone() is not None
    with pytest.raises(psycopg.errors.SerializationFailure, match="re-embedding of public"):
        late.execute("SELECT * FROM nv_embed.hold_embedding('docs', 'embedding')")
    late.execute("ROLLBACK; BEGIN")
    held = "SELECT model, dim, columns FROM nv_embed.hold_embedding('docs', 'embedding')"
    assert late.execute(held).fetchone() == ("fake", 512, ["body"])
    with pytest.raises(psycopg.errors.LockNotAvailable), db.transaction():
        db.execute("SET LOCAL lock_timeout = '50ms'; LOCK docs IN ACCESS EXCLUSIVE MODE")
    late.execute("ROLLBACK")
    assert late.execute("SELECT * FROM nv_embed.hold_embedding('docs', 'other')").fetchall() == []


def verified(db: Connection, id: int) -> Any:
    return db.execute("SELECT state, overlap, recall FROM nv_embed.reembedding_status WHERE id = %s", [id]).fetchone()


def awaited(db: Connection, table: str) -> bool:
    """Whether anybody waits for a lock on a table."""
    return bool(one(db, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = %s::regclass)", [table]))


def test_readers_do_not_wait_while_pieces_that_go_are_being_indexed(db: Connection, connect: Callable[..., Connection]) -> None:
    declare(db, rows=10)
    id = reembed(db, chunk_tokens=8)
    chunks = one(db, "SELECT chunks::text FROM nv_embed.generation WHERE chunks IS NOT NULL")
    indexing, cancelling, reader = connect(), connect(), connect()
    indexing.execute(f"BEGIN; LOCK TABLE {chunks} IN SHARE UPDATE EXCLUSIVE MODE")  # as CREATE INDEX CONCURRENTLY and VACUUM do
    ending = threading.Thread(target=cancelling.execute, args=("SELECT nv_embed.cancel(%s)", [id]))
    ending.start()
    try:
        assert eventually(lambda: awaited(reader, chunks))
        reader.execute("SET lock_timeout = '10 s'")
        for _ in range(20):
            assert one(reader, "SELECT count(*) FROM docs") == 10
    finally:
        indexing.execute("COMMIT")
        ending.join(60)
    assert not ending.is_alive()
    assert state(db) == "cancelled"


def test_a_worker_that_waits_for_a_table_holds_nothing_that_its_holder_takes_away(db: Connection, connect: Callable[..., Connection]) -> None:
    declare(db, rows=10)
    reembed(db, chunk_tokens=8)
    generation = one(db, "SELECT max(id) FROM nv_embed.generation")
    while one(db, "SELECT nv_embed.backfill_step(%s)", [generation]) is not None:
        pass
    keys, ids = db.execute("SELECT array_agg(key), array_agg(id) FROM nv_embed.claim(ARRAY[%s]::bigint[], 5, '1 min')", [generation]).fetchone() or ()
    db.execute("INSERT INTO nv_embed.backfill (generation) VALUES (%s)", [generation])
    write = "SELECT nv_embed.write_back_chunks(%s, %s, %s, %s::bytea[], '{}'::int[], '{}'::int[], '{}'::int[], '{}'::text[])"
    waits_holding_nothing(db, connect, generation, write, [generation, keys, ids, [None] * len(keys)])
    waits_holding_nothing(db, connect, generation, "SELECT nv_embed.backfill_step(%s)", [generation])


@EXTENSION
def test_who_embeds_what_is_queued_holds_nothing_either(db: Connection, connect: Callable[..., Connection], sidecar: Sidecar) -> None:
    db.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
    declare(db, rows=10)
    generation = one(db, "SELECT id FROM nv_embed.generation")
    waits_holding_nothing(db, connect, generation, "SELECT nv_embed.embed_queued(%s)", [generation])
    assert one(db, "SELECT count(embedding) FROM docs") == 10


def waits_holding_nothing(db: Connection, connect: Callable[..., Connection], generation: int, call: str, arguments: list[Any]) -> None:
    """Have a call wait for the table, and whoever has that take the jobs away."""
    holder = connect()
    holder.execute("BEGIN; LOCK TABLE docs IN ACCESS EXCLUSIVE MODE")
    worker = threading.Thread(target=connect().execute, args=(call.encode(), arguments))
    worker.start()
    try:
        assert eventually(lambda: awaited(db, "docs"))
        holder.execute("SET LOCAL lock_timeout = '10 s'")
        holder.execute("DELETE FROM nv_embed.job WHERE generation = %s", [generation])
        holder.execute("DELETE FROM nv_embed.backfill WHERE generation = %s", [generation])
    finally:
        holder.execute("ROLLBACK")
        worker.join(60)
    assert not worker.is_alive()


@EXTENSION
def test_an_autovacuum_of_the_table_holds_up_no_re_embedding(db: Connection, cluster: Cluster, own_database: str) -> None:
    declare(db, rows=20000)
    with cluster.connect(own_database) as superuser:
        superuser.execute("ALTER SYSTEM SET autovacuum_naptime = '1 s'")
        superuser.execute("SELECT pg_reload_conf()")
        try:
            # It begins at once, and takes minutes.
            db.execute("ALTER TABLE docs SET (autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_threshold = 1)")
            db.execute("UPDATE docs SET body = body || '!'")
            vacuuming = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND query LIKE '%VACUUM%public.docs%')"
            assert eventually(lambda: bool(one(db, vacuuming)), 120)
            db.execute("SELECT nv_embed.lock_briefly(ARRAY['docs'::regclass], '30 s')")
        finally:
            superuser.execute("ALTER SYSTEM RESET autovacuum_naptime")
            superuser.execute("SELECT pg_reload_conf()")


def test_neighbours_that_do_not_stay_keep_it_from_being_ready(db: Connection, dsn: str, sidecar: Sidecar) -> None:
    declare(db, rows=300)
    drain(dsn, sidecar.address)
    db.execute(one(db, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
    id = reembed(db, storage="vector", min_overlap=0.9)
    with working(dsn, sidecar.address):
        advance(db, id, "verifying")
    # Every row has the vector of another one.
    column = columns(db)[-1]
    db.execute(f"UPDATE docs SET {column} = o.{column} FROM docs AS o WHERE o.id = (docs.id * 7) %% 300 + 1".replace("%%", "%"))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"an overlap of 0\.\d+ is under 0.9") as raised:
        one(db, "SELECT nv_embed.advance_reembedding(%s)", [id])
    assert "of the ten nearest of 100 rows" in (raised.value.diag.message_detail or "")
    assert verified(db, id) == ("verifying", None, None)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="is verifying"):
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
    db.execute("SELECT nv_embed.alter_reembedding(%s, min_overlap => 0)", [id])
    assert one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) == "ready"
    assert 0 <= verified(db, id)[1] < 0.9


@pytest.mark.parametrize("is_indexed", [True, False])
def test_vectors_that_are_right_keep_their_neighbours(db: Connection, dsn: str, sidecar: Sidecar, is_indexed: bool) -> None:
    declare(db, rows=300)
    drain(dsn, sidecar.address)
    if is_indexed:
        db.execute(one(db, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
    id = reembed(db, storage="vector", min_overlap=0.9)
    with working(dsn, sidecar.address):
        advance(db, id)
    state, overlap, recall = verified(db, id)
    assert (state, recall) == ("ready", None)
    assert overlap > 0.95


@EXTENSION
def test_canaries_that_are_not_found_keep_it_from_being_ready(db: Connection, connect: Callable[..., Connection], dsn: str, sidecar: Sidecar) -> None:
    declare(db, rows=40)
    drain(dsn, sidecar.address)
    for key in (7, 9):
        db.execute("SELECT nv_embed.add_canary('docs', 'embedding', %s, %s)", [f"body {key}", str(key)])
    id = reembed(db, dim=512, min_recall=1)
    with working(dsn, sidecar.address):
        advance(db, id)
    assert verified(db, id)[2] == 1
    db.execute("SELECT nv_embed.cancel(%s)", [id])
    db.execute("SELECT nv_embed.add_canary('docs', 'embedding', 'something else', '1000')")
    id = reembed(db, dim=512, min_recall=0.9)
    with (
        working(dsn, sidecar.address),
        pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"a recall of 0\.667 is under 0\.9") as raised,
    ):
        advance(db, id)
    assert "Canaries missed: 'something else'." in (raised.value.diag.message_detail or "")
    app = connect("app")
    assert app.execute("SELECT * FROM nv_embed.canary").fetchall() == []
    assert app.execute("SELECT * FROM nv_embed.reembedding_status").fetchall() == []
    assert one(db, "SELECT nv_embed.drop_canaries('docs', question => 'something else')") == 1
    assert one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) == "ready"


def test_verification_that_cannot_be_is_refused(db: Connection, install: Install) -> None:
    declare(db, rows=3)
    for options, says in ({"min_overlap": 2.0}, "min_overlap is 2"), ({"min_recall": -1.0}, "min_recall -1"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=says):
            reembed(db, dim=512, **options)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="there are no canaries"):
        reembed(db, dim=512, min_recall=0.5)
    assert one(db, "SELECT count(*) FROM nv_embed.reembedding") == 0
    if install.kind == "library":
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="no canary can be asked"):
            db.execute("SELECT nv_embed.add_canary('docs', 'embedding', 'question', '1')")
        return
    for arguments, says in (
        ("'question', '1', '2'", "has 1 columns, not 2"),
        ("' ', '1'", "a canary is a question"),
        ("'question', NULL", "a canary is"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=says):
            db.execute(f"SELECT nv_embed.add_canary('docs', 'embedding', {arguments})".encode())


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"source": "{body}, once more"}),
        ({}, {"chunk_tokens": 8, "chunk_overlap": 2}),
        ({"chunk_tokens": 8}, {"chunk_tokens": 0}),
        ({"chunk_tokens": 8}, {"dim": 512}),
        ({"chunk_tokens": 8}, {"chunk_tokens": 16, "source": "about {body}", "storage": "vector"}),
    ],
    ids=["another source", "into pieces", "out of pieces", "pieces to another width", "other pieces of other texts"],
)
def test_texts_and_pieces_change_while_the_old_ones_answer_and_come_back(
    db: Connection, dsn: str, sidecar: Sidecar, client: Client, first: dict[str, Any], then: dict[str, Any]
) -> None:
    named = "".join(f", {name} => {value}" for name, value in first.items())
    db.execute(f"SELECT nv_embed.auto_embed('docs', '{{body}}', dim => 384, mode => 'async'{named})".encode())
    db.execute("INSERT INTO docs SELECT n, repeat('word' || n || ' ', 20) FROM generate_series(1, 30) AS n")
    drain(dsn, sidecar.address)
    before = declared(db)
    id = reembed(db, **then)
    write(db, 100)
    with working(dsn, sidecar.address):
        advance(db, id)
        write(db, 200)
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        assert (declared(db), made_of(db, client)) == (before, 33)
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
        after = declared(db)
        assert after != before
        write(db, 300)
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        assert made_of(db, client) == 35
        db.execute("SELECT nv_embed.roll_back(%s)", [id])
        assert (declared(db), made_of(db, client)) == (before, 35)
        db.execute("SELECT nv_embed.finish(%s)", [id])
        id = reembed(db, **then)
        advance(db, id)
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
    db.execute("SELECT nv_embed.finish(%s)", [id])
    write(db, 400)
    drain(dsn, sidecar.address)
    assert (declared(db), made_of(db, client)) == (after, 37)
    assert db.execute("SELECT rows, embedded, pending, coverage FROM nv_embed.status").fetchall() == [(38, 37, 0, 1.0)]
    assert one(db, "SELECT count(*) FROM pg_class WHERE relname LIKE 'docs_embedding%' AND relkind = 'r'") == (after[1] is not None)
    db.execute("SELECT nv_embed.drop_auto_embed('docs', keep_vectors => false)")
    assert columns(db) == ["id", "body"]
    assert one(db, "SELECT count(*) FROM pg_class WHERE relname LIKE 'docs_%' AND relkind = 'r'") == 0


def write(db: Connection, key: int) -> None:
    """Two rows that stay and one that has no content are written, one is changed, one is moved, two go."""
    db.execute(
        "INSERT INTO docs VALUES (%s, 'new ' || %s), (%s, repeat('long ', 30)), (%s, ' '), (%s, 'short-lived')", [key, key, key + 1, key + 2, key + 3]
    )
    db.execute("UPDATE docs SET body = body || ' changed' WHERE id = %s", [key // 100])
    db.execute("UPDATE docs SET id = %s WHERE id = %s", [key + 5, key // 100 + 10])
    db.execute("DELETE FROM docs WHERE id IN (%s, %s)", [key + 3, key - 98])


def declared(db: Connection) -> tuple[Any, ...]:
    """What is declared, which is what is live."""
    found = db.execute("SELECT source, chunk_tokens, chunk_overlap FROM nv_embed.embedding").fetchone()
    live = "SELECT source, chunk_tokens, chunk_overlap, dim, storage FROM nv_embed.generation WHERE state = 'live'"
    assert found is not None
    row = db.execute(live).fetchone()
    assert row is not None
    assert row[:3] == found
    return row


def made_of(db: Connection, client: Client) -> int:
    """How many rows are found by just their text, or their first piece; fails on one that is not."""
    source, chunk_tokens, overlap, dim, _ = declared(db)
    rendered = one(db, "SELECT nv_embed.rendered(%s, 'docs')", [source])
    rows = db.execute(f"SELECT id, {rendered} FROM docs WHERE body <> ' '".encode()).fetchall()
    for key, told in rows:
        piece = told
        if chunk_tokens:
            first = client.chunk(told, chunk_tokens, overlap=overlap)[0]
            piece = told[first.start_char : first.end_char]
        asked = str(client.embed([piece], dim=dim)[0].tolist())
        found = db.execute("SELECT (hit).id, score FROM nv_search(NULL::docs, %s::vector, k => 50)", [asked]).fetchall()
        assert dict(found)[key] == pytest.approx(1, abs=2e-3), (key, told)
    assert one(db, "SELECT count(*) FROM nv_search(NULL::docs, %s::vector, k => 100)", [asked]) == len(rows)
    return len(rows)


def test_a_table_of_another_owner_is_no_chunk_table(db: Connection, connect: Callable[..., Connection]) -> None:
    """Rows' pieces are taken away with the rights of whoever installed nv_embed."""
    db.execute("CREATE TABLE victim (id int PRIMARY KEY, embedding halfvec(384)); INSERT INTO victim VALUES (1)")
    app = connect("app")
    app.execute("CREATE TABLE bait (id int PRIMARY KEY, body text)")
    app.execute("SELECT nv_embed.auto_embed('bait', '{body}', dim => 384, mode => 'off')")
    app.execute("INSERT INTO bait VALUES (1, 'text')")
    app.execute(
        "INSERT INTO nv_embed.generation (embedding, model, revision, dim, storage, target, state, source, chunks)"
        " SELECT id, 'fake', '1', 384, 'halfvec', 'embedding', 'previous', '{body}', 'victim' FROM nv_embed.embedding"
    )
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"chunk table .* has been altered"):
        app.execute("DELETE FROM bait")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"chunk table .* has been altered"):
        app.execute("TRUNCATE bait")
    assert one(db, "SELECT count(*) FROM victim") == 1


def test_a_range_is_the_next_rows_leased_and_workers_have_what_is_beyond_it(db: Connection, dsn: str, client: Client, counter: Counter) -> None:
    declare(db, rows=30)
    drain(dsn, counter.address)
    counter.pages.clear()
    id = reembed(db, dim=512)
    generation = one(db, "SELECT to_generation FROM nv_embed.reembedding WHERE id = %s", [id])
    claim = "SELECT keys, ids, is_last FROM nv_embed.claim_range(%s, 10, '1 hour')"
    assert db.execute(claim, [generation]).fetchone() == ([], [], False)  # the first step counts
    row = db.execute(claim, [generation]).fetchone()
    assert row is not None
    keys, ids, is_last = row
    assert (keys, is_last) == ([f"{{{n}}}" for n in range(1, 11)], False)

    drain(dsn, counter.address)
    assert sorted(text for page in counter.pages for text in page) == sorted(f"body {n}" for n in range(11, 31))
    assert db.execute(claim, [generation]).fetchone() == ([], [], True)
    assert one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) == "backfilling"  # a range is not done because it was handed out

    assert one(db, "SELECT nv_embed.release(%s, %s, %s, '0')", [generation, keys, ids]) == list(range(1, 11))
    drain(dsn, counter.address)
    assert len([text for page in counter.pages for text in page]) == 30
    assert one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) != "backfilling"
    assert right(db, client, 512, f"embedding_g{generation}") == 30


def test_a_range_obeys_the_limit_of_rows_a_second(db: Connection) -> None:
    """A limit of less than one row a second is one too: it goes on when the time of a row is over."""
    declare(db, rows=30)
    id = reembed(db, dim=512, rows_per_s=0.01)
    generation = one(db, "SELECT max(id) FROM nv_embed.generation")
    taken: list[list[str]] = []
    for passed in ("0 s", "0 s", "101 s", "0 s", "1 hour", "0 s"):
        db.execute("UPDATE nv_embed.reembedding SET allowed_at = allowed_at - %s::interval WHERE id = %s", [passed, id])
        keys, is_last = db.execute("SELECT keys, is_last FROM nv_embed.claim_range(%s, 10, '1 hour')", [generation]).fetchone() or ()
        assert not is_last
        taken.append(keys)
    assert taken == [[], [], ["{1}"], [], ["{2}"], []]


def test_nobody_begins_or_limits_a_re_embedding_of_anothers_generation(db: Connection, connect: Callable[..., Connection], install: Install) -> None:
    declare(db, rows=30)
    reembed(db, dim=512)
    victims = [id for (id,) in db.execute("SELECT id FROM nv_embed.generation ORDER BY id")]
    app = connect("app")
    app.execute("CREATE TABLE own (id int PRIMARY KEY, body text)")
    embedding = one(app, "SELECT nv_embed.auto_embed('own', '{body}', dim => 384, mode => 'async')")
    own = one(app, "SELECT id FROM nv_embed.generation WHERE embedding = %s", [embedding])
    begin = "INSERT INTO nv_embed.reembedding (embedding, from_generation, to_generation, rows_per_s) VALUES (%s, %s, %s, 1e-9) RETURNING id"
    for from_generation, to_generation in ((own, victims[1]), (victims[0], own), (victims[0], victims[1]), (own, own + 1)):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(begin, [embedding, from_generation, to_generation])
    # Had there been such a row, it would limit nothing.
    planted = one(db, begin, [embedding, own, victims[1]])
    app.execute("UPDATE nv_embed.reembedding SET state = 'backfilling' WHERE id = %s", [planted])
    assert one(db, "SELECT is_limited FROM nv_embed.work() WHERE generation = %s", [victims[1]]) is False
    assert one(db, "SELECT nv_embed.allowance(%s, 10)", [victims[1]]) == 10


def test_vectors_that_are_only_cut_need_nobody_to_claim_them(db: Connection, dsn: str, client: Client) -> None:
    declare(db, dim=512, rows=30)
    drain(dsn, client.endpoint)
    reembed(db, dim=384)
    generation = one(db, "SELECT max(id) FROM nv_embed.generation")
    claim = "SELECT keys, is_last FROM nv_embed.claim_range(%s, 10, '1 hour')"
    assert eventually(lambda: db.execute(claim, [generation]).fetchone() == ([], True))
    assert one(db, "SELECT count(*) FROM nv_embed.job WHERE generation = %s", [generation]) == 0
    assert right(db, client, 384, f"embedding_g{generation}") == 30
