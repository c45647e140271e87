"""
Long texts in pieces: the chunk table in step with its rows, whatever happens to them.
"""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from chunks import OVERLAP, TOKENS, embed, in_step, prose
from conftest import Connection
from counting import Counter
from installs import BOTH, EXTENSION, Install
from program import eventually
from vectors import one, question

from nv_embed.client import Client

TABLE = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, views int DEFAULT 0, tenant text DEFAULT current_user)"
DECLARE = f"SELECT nv_embed.auto_embed('docs', '{{title}}: {{body}}', dim => 384, chunk_tokens => {TOKENS}, chunk_overlap => {OVERLAP}"
ROWS = (
    "INSERT INTO docs SELECT n, 'title ' || n, (SELECT string_agg('w' || n || 'x' || m, ' ') FROM generate_series(1, 20 * n) AS m)"
    " FROM generate_series(1, 6) AS n"
)


pytestmark = BOTH


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest, install: Install) -> str:
    if (request.param, install.kind) == ("sync", "library"):
        pytest.skip("nothing can be embedded inside of this server")
    return str(request.param)


@pytest.fixture
def docs(db: Connection, mode: str) -> Connection:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => '{mode}')")
    db.execute(ROWS)
    return db


def numbers(db: Connection) -> tuple[int, ...]:
    """rows, embedded, pending, failed and blank, once it is certain that they are those of the table."""
    told = db.execute("SELECT rows, embedded, pending, failed, blank FROM nv_embed.status").fetchone()
    counted = db.execute(
        "SELECT count(*),"
        " count(*) FILTER (WHERE d.id IN (SELECT id FROM docs_embedding_chunk)"
        " AND NOT EXISTS (SELECT FROM nv_embed.job WHERE key = ARRAY[d.id::text]::text AND stale)),"
        " (SELECT count(*) FROM nv_embed.job WHERE retry_at IS DISTINCT FROM 'infinity'),"
        " (SELECT count(*) FROM nv_embed.job WHERE retry_at = 'infinity'),"
        " count(*) FILTER (WHERE concat(title, body) !~ '[^[:space:]]') FROM docs AS d"
    ).fetchone()
    assert told == counted
    assert one(db, "SELECT count(*) FROM docs_embedding_chunk AS c WHERE NOT EXISTS (SELECT FROM docs AS d WHERE d.id = c.id)") == 0
    return tuple(told or ())


def test_a_long_text_has_a_vector_for_each_of_its_pieces(docs: Connection, client: Client) -> None:
    embed(docs, client)
    assert in_step(docs, client) > 20
    assert numbers(docs) == (6, 6, 0, 0, 0)
    assert one(docs, "SELECT count(*) FROM information_schema.columns WHERE table_name = 'docs'") == 5


def test_an_insert_by_copy_upsert_and_merge_has_its_pieces(docs: Connection, client: Client) -> None:
    with docs.cursor().copy("COPY docs (id, title, body) FROM STDIN") as copy:
        for n in range(10, 40):
            copy.write_row((n, f"title {n}", prose(n, "copied")))
    docs.execute("INSERT INTO docs VALUES (1, 'upsert', 'other words'), (50, 'new', 'words') ON CONFLICT (id) DO UPDATE SET body = excluded.body")
    docs.execute(
        "MERGE INTO docs AS d USING (VALUES (2, 'merged'), (60, 'added')) AS s (id, body) ON d.id = s.id"
        " WHEN MATCHED THEN UPDATE SET body = s.body WHEN NOT MATCHED THEN INSERT (id, body) VALUES (s.id, s.body)"
    )
    embed(docs, client)
    in_step(docs, client)
    assert numbers(docs) == (38, 38, 0, 0, 0)


def test_a_new_text_replaces_all_pieces_of_the_text_before(docs: Connection, client: Client) -> None:
    embed(docs, client)
    docs.execute("UPDATE docs SET body = 'short now' WHERE id = 6")
    docs.execute("UPDATE docs SET body = %s WHERE id = 1", [prose(200, "long")])
    embed(docs, client)
    in_step(docs, client)
    assert one(docs, "SELECT count(*) FROM docs_embedding_chunk WHERE id = 6") == 1
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_what_leaves_the_text_as_it_is_asks_nobody_and_queues_nothing(docs: Connection, counter: Counter, client: Client) -> None:
    embed(docs, client)
    docs.execute("SELECT nv_embed.configure(%s)", [counter.address])
    docs.execute("UPDATE docs SET views = views + 1; UPDATE docs SET body = body; UPDATE docs SET title = title WHERE id > 3")
    assert counter.pages == []
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_pieces_of_a_text_before_are_kept_for_a_worker_to_replace(db: Connection, client: Client) -> None:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    embed(db, client)
    before = one(db, "SELECT count(*) FROM docs_embedding_chunk")
    db.execute("UPDATE docs SET body = 'another' WHERE id > 4")
    assert one(db, "SELECT count(*) FROM docs_embedding_chunk") == before
    assert numbers(db) == (6, 4, 2, 0, 0)


def test_a_blank_text_has_no_pieces(docs: Connection, client: Client) -> None:
    embed(docs, client)
    docs.execute("UPDATE docs SET title = NULL, body = ' ' WHERE id = 2; INSERT INTO docs (id) VALUES (7)")
    embed(docs, client)
    in_step(docs, client)
    assert numbers(docs) == (7, 5, 0, 0, 2)


def test_a_text_that_became_blank_while_it_waited_leaves_no_pieces(db: Connection, client: Client) -> None:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    embed(db, client)
    db.execute("UPDATE docs SET body = 'waits'; UPDATE docs SET title = '', body = '' WHERE id < 4")
    assert numbers(db) == (6, 0, 3, 0, 3)
    embed(db, client)
    in_step(db, client)
    assert numbers(db) == (6, 3, 0, 0, 3)


def test_pieces_go_with_their_rows(docs: Connection, client: Client) -> None:
    embed(docs, client)
    docs.execute("DELETE FROM docs WHERE id IN (1, 5)")
    in_step(docs, client)
    assert numbers(docs) == (4, 4, 0, 0, 0)
    docs.execute("UPDATE docs SET body = 'waits' WHERE id = 3; DELETE FROM docs WHERE id = 3")
    in_step(docs, client)
    docs.execute("TRUNCATE docs")
    assert one(docs, "SELECT count(*) FROM docs_embedding_chunk") == 0
    assert numbers(docs) == (0, 0, 0, 0, 0)
    docs.execute(ROWS)
    embed(docs, client)
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_a_row_that_changes_its_key_keeps_its_pieces_apart_from_all_others(docs: Connection, client: Client) -> None:
    embed(docs, client)
    docs.execute("UPDATE docs SET id = id + 100 WHERE id > 3")
    docs.execute("UPDATE docs SET id = 1000 - id")
    docs.execute("UPDATE docs SET id = id + 1, body = 'new words' WHERE id > 950")
    embed(docs, client)
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_keys_can_be_exchanged_in_one_statement(db: Connection, client: Client, mode: str) -> None:
    db.execute("CREATE TABLE docs (id int, title text, body text, tenant text, PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED)")
    db.execute(f"{DECLARE}, mode => '{mode}')")
    db.execute(ROWS)
    embed(db, client)
    db.execute("UPDATE docs SET id = 7 - id")
    embed(db, client)
    in_step(db, client)
    assert numbers(db) == (6, 6, 0, 0, 0)


def test_mode_off_takes_pieces_away_with_their_text_and_refresh_makes_them(docs: Connection, client: Client) -> None:
    embed(docs, client)
    docs.execute("SET LOCAL nv_embed.mode = 'off'")
    docs.execute("UPDATE docs SET body = 'another' WHERE id < 3; INSERT INTO docs VALUES (9, 'nine', 'nine'); DELETE FROM docs WHERE id = 6")
    assert numbers(docs) == (6, 3, 0, 0, 0)
    docs.execute("RESET nv_embed.mode")
    assert one(docs, "SELECT nv_embed.refresh('docs')") == 3
    embed(docs, client)
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_a_job_that_waits_outlives_mode_off(db: Connection, client: Client) -> None:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    db.execute("SET LOCAL nv_embed.mode = 'off'")
    db.execute("UPDATE docs SET body = 'another' WHERE id < 3; UPDATE docs SET id = 70 WHERE id = 6")
    assert numbers(db) == (6, 0, 6, 0, 0)
    db.execute("RESET nv_embed.mode")
    embed(db, client)
    in_step(db, client)


@EXTENSION
def test_sync_for_one_transaction_settles_what_waited(db: Connection, client: Client) -> None:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    db.execute("SET LOCAL nv_embed.mode = 'sync'")
    db.execute("UPDATE docs SET body = body || ' more'")
    in_step(db, client)
    assert numbers(db) == (6, 6, 0, 0, 0)


def test_a_rolled_back_change_leaves_the_pieces_as_they_were(docs: Connection, client: Client) -> None:
    embed(docs, client)
    docs.execute("SAVEPOINT before; UPDATE docs SET body = 'gone'; DELETE FROM docs WHERE id = 1; ROLLBACK TO before")
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ('part uuid DEFAULT gen_random_uuid(), "Über Tag" date DEFAULT \'2026-02-28\', PRIMARY KEY ("Über Tag", part)', ["Über Tag", "part"]),
        ('name varchar(20) COLLATE "C" DEFAULT md5(random()::text)::varchar(20) PRIMARY KEY', ["name"]),
        ("amount numeric(10, 2) DEFAULT random() * 1000, at timestamptz DEFAULT clock_timestamp(), PRIMARY KEY (at, amount)", ["at", "amount"]),
    ],
)
def test_any_key_and_any_name_will_do(db: Connection, client: Client, columns: str, key: list[str]) -> None:
    db.execute(f'CREATE SCHEMA "Größe"; CREATE TABLE "Größe"."Doc s" (title text, body text, {columns})')
    db.execute(
        f"SELECT nv_embed.auto_embed('\"Größe\".\"Doc s\"', '{{title}}: {{body}}', dim => 384, chunk_tokens => {TOKENS}, chunk_overlap => {OVERLAP})"
    )
    db.execute("INSERT INTO \"Größe\".\"Doc s\" (title, body) SELECT 't', repeat('word ' || n || ' ', 40) FROM generate_series(1, 5) AS n")
    db.execute("UPDATE \"Größe\".\"Doc s\" SET body = 'short' WHERE body LIKE 'word 3%'")
    db.execute('DELETE FROM "Größe"."Doc s" WHERE body LIKE \'word 4%\'')
    embed(db, client)
    db.execute('CREATE VIEW docs AS SELECT * FROM "Größe"."Doc s"; CREATE VIEW docs_embedding_chunk AS SELECT * FROM "Größe"."Doc s_embedding_chunk"')
    assert in_step(db, client, key=[f'"{column}"' for column in key]) > 8


def test_partitions_have_one_chunk_table(db: Connection, client: Client, mode: str) -> None:
    db.execute("CREATE TABLE docs (id int, title text, body text, tenant text, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (4)")
    db.execute(f"{DECLARE}, mode => '{mode}')")
    db.execute("CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (4) TO (1000)")
    db.execute(ROWS)
    db.execute("UPDATE docs SET id = id + 200 WHERE id = 2 OR id = 6; DELETE FROM docs WHERE id = 1")
    embed(db, client)
    in_step(db, client)
    assert numbers(db) == (5, 5, 0, 0, 0)


def test_rows_that_were_there_are_embedded_when_declared(db: Connection, client: Client, mode: str) -> None:
    db.execute(TABLE)
    db.execute(ROWS)
    db.execute(f"{DECLARE}, mode => '{mode}')")
    embed(db, client)
    in_step(db, client)
    assert numbers(db) == (6, 6, 0, 0, 0)


def test_rows_of_a_large_table_are_counted_and_queued_in_steps(db: Connection) -> None:
    db.execute(TABLE)
    db.execute("INSERT INTO docs SELECT n, 'title', 'text of ' || n FROM generate_series(1, 2500) AS n")
    db.execute(f"{DECLARE}, mode => 'async')")
    id = one(db, "SELECT id FROM nv_embed.generation")
    while one(db, "SELECT nv_embed.backfill_step(%s, 1000)", [id]) is not None:
        pass
    assert numbers(db) == (2500, 0, 2500, 0, 0)


@EXTENSION
def test_vectors_of_a_declaration_before_are_adopted(docs: Connection, counter: Counter, client: Client) -> None:
    embed(docs, client)
    docs.execute("SELECT nv_embed.drop_auto_embed('docs')")
    docs.execute("SELECT nv_embed.configure(%s)", [counter.address])
    docs.execute(f"{DECLARE}, mode => 'sync')")
    assert sum(map(len, counter.pages)) == 1
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_a_declaration_that_ends_leaves_the_table_to_its_owner_or_drops_it(docs: Connection) -> None:
    docs.execute("SELECT nv_embed.drop_auto_embed('docs')")
    docs.execute("DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (1, 'a', 'b')")
    assert not one(docs, "SELECT has_table_privilege('app', 'docs_embedding_chunk', 'SELECT, INSERT, DELETE')")
    docs.execute(f"{DECLARE})")
    docs.execute("SELECT nv_embed.drop_auto_embed('docs', keep_vectors => false)")
    assert one(docs, "SELECT to_regclass('docs_embedding_chunk')") is None


@pytest.mark.parametrize(
    ("before", "arguments", "sqlstate", "says"),
    [
        ("SELECT", "chunk_tokens => 0", "22023", "chunk_tokens is 0"),
        ("SELECT", "chunk_tokens => 20, chunk_overlap => 20", "22023", "chunk_overlap 20"),
        ("SELECT", "chunk_overlap => 3", "22023", "chunk_tokens is null and chunk_overlap 3"),
        ("CREATE TABLE docs_embedding_chunk (id int, seq int)", "chunk_tokens => 20", "42P07", "is no chunk table"),
        ("ALTER TABLE docs RENAME id TO seq", "chunk_tokens => 20", "42701", "two columns seq"),
    ],
)
def test_a_declaration_that_cannot_be_says_why(db: Connection, before: str, arguments: str, sqlstate: str, says: str) -> None:
    db.execute(TABLE)
    db.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    db.execute(before)
    with pytest.raises(psycopg.Error, match=says) as error, db.transaction():
        db.execute(f"SELECT nv_embed.auto_embed('docs', '{{body}}', dim => 384, {arguments})")
    assert error.value.sqlstate == sqlstate
    assert one(db, "SELECT count(*) FROM nv_embed.embedding") == 0


def test_pieces_of_a_table_that_was_dropped_are_not_taken_for_another_ones(docs: Connection, client: Client) -> None:
    embed(docs, client)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist), docs.transaction():
        docs.execute("DROP TABLE docs")
    docs.execute("DROP TABLE docs CASCADE")
    docs.execute(TABLE)
    with pytest.raises(psycopg.errors.DuplicateTable, match="is left of a table that was dropped"), docs.transaction():
        docs.execute(f"{DECLARE})")
    docs.execute("DROP TABLE docs_embedding_chunk")
    docs.execute(f"{DECLARE})")
    docs.execute(ROWS)
    embed(docs, client)
    in_step(docs, client)
    docs.execute("DROP TABLE docs, docs_embedding_chunk")


@EXTENSION
def test_pieces_that_the_model_cannot_read_are_refused(db: Connection) -> None:
    db.execute(TABLE)
    db.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    with pytest.raises(psycopg.Error, match="max_tokens is 100000, and the model reads 8192"):
        db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, chunk_tokens => 100000)")


def test_a_chunk_table_that_was_dropped_is_named(docs: Connection) -> None:
    docs.execute("DROP TABLE docs_embedding_chunk")
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r"the chunk table of public\.docs holds its vectors and is gone"), docs.transaction():
        docs.execute("DELETE FROM docs")
    docs.execute("SELECT nv_embed.drop_auto_embed('docs'); DELETE FROM docs")


def test_a_key_that_is_renamed_is_renamed_in_the_chunk_table_too(docs: Connection, client: Client) -> None:
    docs.execute("ALTER TABLE docs RENAME id TO number")
    for change in ("DELETE FROM docs", "INSERT INTO docs VALUES (9, 'a', 'b')", "UPDATE docs SET body = 'c'"):
        with pytest.raises(psycopg.errors.UndefinedColumn, match="has no column number") as error, docs.transaction():
            docs.execute(change)
        assert "ALTER TABLE public.docs_embedding_chunk RENAME" in (error.value.diag.message_hint or "")
    docs.execute(
        "ALTER TABLE docs_embedding_chunk RENAME id TO number; UPDATE docs SET body = 'c' WHERE number = 6; DELETE FROM docs WHERE number = 5"
    )
    embed(docs, client)
    in_step(docs, client, key=["number"])


def test_a_name_that_is_too_long_is_cut(db: Connection) -> None:
    name = "ü" * 31
    db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, body text)")
    db.execute(f"SELECT nv_embed.auto_embed('{name}', '{{body}}', dim => 384, chunk_tokens => 20)")
    assert one(db, "SELECT chunks::text FROM nv_embed.status") == f'"{"ü" * 28}_chunk"'


# Two at a time.


def in_thread(call: Callable[[], Any]) -> "tuple[threading.Thread, list[Any]]":
    """Runs beside; what it raised is in the list."""
    raised: list[Any] = []

    def run() -> None:
        try:
            call()
        except psycopg.Error as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def waits_for_lock(db: Connection, pid: int) -> bool:
    return eventually(lambda: one(db, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [pid]) == 1)


@pytest.mark.parametrize("mode", ["sync", "async", "off"])
@pytest.mark.parametrize(
    "change", ["UPDATE docs SET body = 'quite another' WHERE id = 6", "DELETE FROM docs WHERE id = 6", "UPDATE docs SET id = 60 WHERE id = 6"]
)
def test_a_change_that_meets_a_worker_leaves_no_piece_of_the_text_before(
    install: Install, connect: Callable[..., Connection], client: Client, mode: str, change: str
) -> None:
    if (mode, install.kind) == ("sync", "library"):
        pytest.skip("nothing can be embedded inside of this server")
    db, worker, writer = connect(), connect(), connect()
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    worker.execute("BEGIN")
    embed(worker, client)
    writer.execute("SELECT set_config('nv_embed.mode', %s, false)", [mode])
    thread, raised = in_thread(lambda: writer.execute(change))
    assert waits_for_lock(db, writer.info.backend_pid)
    worker.execute("COMMIT")
    thread.join(30)
    assert not raised
    db.execute("SELECT nv_embed.refresh('docs')")
    embed(db, client)
    in_step(db, client)
    numbers(db)


def test_a_worker_leaves_rows_alone_that_a_transaction_is_changing(connect: Callable[..., Connection], client: Client) -> None:
    db, writer = connect(), connect()
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    writer.execute("BEGIN")
    writer.execute("UPDATE docs SET body = 'changed' WHERE id = 2; DELETE FROM docs WHERE id = 3")
    embed(db, client)
    assert numbers(db) == (6, 4, 2, 0, 0)
    writer.execute("COMMIT")
    embed(db, client)
    in_step(db, client)
    assert numbers(db) == (5, 5, 0, 0, 0)


def test_a_delete_with_an_old_snapshot_leaves_no_pieces_for_a_row_that_comes_back(connect: Callable[..., Connection], client: Client) -> None:
    db, old = connect(), connect()
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'off')")
    db.execute(ROWS)
    old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    one(old, "SELECT count(*) FROM docs")
    db.execute("SET nv_embed.mode = 'async'; SELECT nv_embed.refresh('docs')")
    embed(db, client)
    old.execute("DELETE FROM docs WHERE id = 4; COMMIT")
    assert one(db, "SELECT count(*) FROM nv_search(NULL::docs, %s::vector, k => 10)", [question(client, "title")]) == 5
    db.execute("INSERT INTO docs VALUES (4, 'four', 'comes back')")
    assert one(db, "SELECT count(*) FROM docs_embedding_chunk WHERE id = 4") == 0
    embed(db, client)
    in_step(db, client)
    assert numbers(db) == (6, 6, 0, 0, 0)
