"""
Long texts in pieces: the chunk table in step with its rows, whatever happens to them.
"""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from chunks import OVERLAP, TOKENS, in_step, prose
from conftest import Connection
from counting import Counter
from vectors import one

from nv_embed.client import Client

TABLE = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, views int DEFAULT 0, tenant text DEFAULT current_user)"
DECLARE = f"SELECT nv_embed.auto_embed('docs', '{{title}}: {{body}}', dim => 384, chunk_tokens => {TOKENS}, chunk_overlap => {OVERLAP}"
ROWS = (
    "INSERT INTO docs SELECT n, 'title ' || n, (SELECT string_agg('w' || n || 'x' || m, ' ') FROM generate_series(1, 20 * n) AS m)"
    " FROM generate_series(1, 6) AS n"
)


@pytest.fixture(params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def docs(db: Connection, mode: str) -> Connection:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => '{mode}')")
    db.execute(ROWS)
    return db


def embed(db: Connection) -> None:
    """What a worker does; in mode sync nothing is left to do."""
    db.execute("SELECT nv_embed.embed_queued(g.id) FROM nv_embed.generation AS g WHERE g.chunks IS NOT NULL")


def numbers(db: Connection) -> tuple[int, ...]:
    """rows, embedded, pending, failed and blank, once it is certain that they are those of the table."""
    told = db.execute("SELECT rows, embedded, pending, failed, blank FROM nv_embed.status").fetchone()
    counted = db.execute(
        "SELECT count(*),"
        " count(*) FILTER (WHERE d.id IN (SELECT id FROM docs_embedding_chunk)"
        " AND NOT EXISTS (SELECT FROM nv_embed.job WHERE key = ARRAY[d.id::text] AND stale)),"
        " (SELECT count(*) FROM nv_embed.job WHERE retry_at IS DISTINCT FROM 'infinity'),"
        " (SELECT count(*) FROM nv_embed.job WHERE retry_at = 'infinity'),"
        " count(*) FILTER (WHERE concat(title, body) !~ '[^[:space:]]') FROM docs AS d"
    ).fetchone()
    assert told == counted
    assert one(db, "SELECT count(*) FROM docs_embedding_chunk AS c WHERE NOT EXISTS (SELECT FROM docs AS d WHERE d.id = c.id)") == 0
    return tuple(told or ())


def test_a_long_text_has_a_vector_for_each_of_its_pieces(docs: Connection, client: Client) -> None:
    embed(docs)
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
    embed(docs)
    in_step(docs, client)
    assert numbers(docs) == (38, 38, 0, 0, 0)


def test_a_new_text_replaces_all_pieces_of_the_text_before(docs: Connection, client: Client) -> None:
    embed(docs)
    docs.execute("UPDATE docs SET body = 'short now' WHERE id = 6")
    docs.execute("UPDATE docs SET body = %s WHERE id = 1", [prose(200, "long")])
    embed(docs)
    in_step(docs, client)
    assert one(docs, "SELECT count(*) FROM docs_embedding_chunk WHERE id = 6") == 1
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_what_leaves_the_text_as_it_is_asks_nobody_and_queues_nothing(docs: Connection, counter: Counter) -> None:
    embed(docs)
    docs.execute("SELECT nv_embed.configure(%s)", [counter.address])
    docs.execute("UPDATE docs SET views = views + 1; UPDATE docs SET body = body; UPDATE docs SET title = title WHERE id > 3")
    assert counter.pages == []
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_pieces_of_a_text_before_are_kept_for_a_worker_to_replace(db: Connection) -> None:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    embed(db)
    before = one(db, "SELECT count(*) FROM docs_embedding_chunk")
    db.execute("UPDATE docs SET body = 'another' WHERE id > 4")
    assert one(db, "SELECT count(*) FROM docs_embedding_chunk") == before
    assert numbers(db) == (6, 4, 2, 0, 0)


def test_a_blank_text_has_no_pieces(docs: Connection, client: Client) -> None:
    embed(docs)
    docs.execute("UPDATE docs SET title = NULL, body = ' ' WHERE id = 2; INSERT INTO docs (id) VALUES (7)")
    embed(docs)
    in_step(docs, client)
    assert numbers(docs) == (7, 5, 0, 0, 2)


def test_a_text_that_became_blank_while_it_waited_leaves_no_pieces(db: Connection, client: Client) -> None:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    embed(db)
    db.execute("UPDATE docs SET body = 'waits'; UPDATE docs SET title = '', body = '' WHERE id < 4")
    assert numbers(db) == (6, 0, 3, 0, 3)
    embed(db)
    in_step(db, client)
    assert numbers(db) == (6, 3, 0, 0, 3)


def test_pieces_go_with_their_rows(docs: Connection, client: Client) -> None:
    embed(docs)
    docs.execute("DELETE FROM docs WHERE id IN (1, 5)")
    in_step(docs, client)
    assert numbers(docs) == (4, 4, 0, 0, 0)
    docs.execute("UPDATE docs SET body = 'waits' WHERE id = 3; DELETE FROM docs WHERE id = 3")
    in_step(docs, client)
    docs.execute("TRUNCATE docs")
    assert one(docs, "SELECT count(*) FROM docs_embedding_chunk") == 0
    assert numbers(docs) == (0, 0, 0, 0, 0)
    docs.execute(ROWS)
    embed(docs)
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_a_row_that_changes_its_key_keeps_its_pieces_apart_from_all_others(docs: Connection, client: Client) -> None:
    embed(docs)
    docs.execute("UPDATE docs SET id = id + 100 WHERE id > 3")
    docs.execute("UPDATE docs SET id = 1000 - id")
    docs.execute("UPDATE docs SET id = id + 1, body = 'new words' WHERE id > 950")
    embed(docs)
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_keys_can_be_exchanged_in_one_statement(db: Connection, client: Client, mode: str) -> None:
    db.execute("CREATE TABLE docs (id int, title text, body text, tenant text, PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED)")
    db.execute(f"{DECLARE}, mode => '{mode}')")
    db.execute(ROWS)
    embed(db)
    db.execute("UPDATE docs SET id = 7 - id")
    embed(db)
    in_step(db, client)
    assert numbers(db) == (6, 6, 0, 0, 0)


def test_mode_off_takes_pieces_away_with_their_text_and_refresh_makes_them(docs: Connection, client: Client) -> None:
    embed(docs)
    docs.execute("SET LOCAL nv_embed.mode = 'off'")
    docs.execute("UPDATE docs SET body = 'another' WHERE id < 3; INSERT INTO docs VALUES (9, 'nine', 'nine'); DELETE FROM docs WHERE id = 6")
    assert numbers(docs) == (6, 3, 0, 0, 0)
    docs.execute("RESET nv_embed.mode")
    assert one(docs, "SELECT nv_embed.refresh('docs')") == 3
    embed(docs)
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
    embed(db)
    in_step(db, client)


def test_sync_for_one_transaction_settles_what_waited(db: Connection, client: Client) -> None:
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    db.execute("SET LOCAL nv_embed.mode = 'sync'")
    db.execute("UPDATE docs SET body = body || ' more'")
    in_step(db, client)
    assert numbers(db) == (6, 6, 0, 0, 0)


def test_a_rolled_back_change_leaves_the_pieces_as_they_were(docs: Connection, client: Client) -> None:
    embed(docs)
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
    db.execute('CREATE VIEW docs AS SELECT * FROM "Größe"."Doc s"; CREATE VIEW docs_embedding_chunk AS SELECT * FROM "Größe"."Doc s_embedding_chunk"')
    assert in_step(db, client, key=[f'"{column}"' for column in key]) > 8


def test_partitions_have_one_chunk_table(db: Connection, client: Client, mode: str) -> None:
    db.execute("CREATE TABLE docs (id int, title text, body text, tenant text, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (4)")
    db.execute(f"{DECLARE}, mode => '{mode}')")
    db.execute("CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (4) TO (1000)")
    db.execute(ROWS)
    db.execute("UPDATE docs SET id = id + 200 WHERE id = 2 OR id = 6; DELETE FROM docs WHERE id = 1")
    embed(db)
    in_step(db, client)
    assert numbers(db) == (5, 5, 0, 0, 0)


def test_rows_that_were_there_are_embedded_when_declared(db: Connection, client: Client, mode: str) -> None:
    db.execute(TABLE)
    db.execute(ROWS)
    db.execute(f"{DECLARE}, mode => '{mode}')")
    embed(db)
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


def test_vectors_of_a_declaration_before_are_adopted(docs: Connection, counter: Counter, client: Client) -> None:
    embed(docs)
    docs.execute("SELECT nv_embed.drop_auto_embed('docs')")
    docs.execute("SELECT nv_embed.configure(%s)", [counter.address])
    docs.execute(f"{DECLARE}, mode => 'sync')")
    assert sum(map(len, counter.pages)) == 1
    in_step(docs, client)
    assert numbers(docs) == (6, 6, 0, 0, 0)


def test_a_declaration_that_ends_leaves_the_table_to_its_owner_or_drops_it(docs: Connection) -> None:
    docs.execute("SELECT nv_embed.drop_auto_embed('docs')")
    docs.execute("DELETE FROM docs WHERE id = 1; INSERT INTO docs VALUES (1, 'a', 'b'); SET LOCAL ROLE app")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), docs.transaction():
        docs.execute("SELECT FROM docs_embedding_chunk")
    docs.execute("RESET ROLE")
    docs.execute(f"{DECLARE})")
    docs.execute("SELECT nv_embed.drop_auto_embed('docs', keep_vectors => false)")
    assert one(docs, "SELECT to_regclass('docs_embedding_chunk')") is None


@pytest.mark.parametrize(
    ("before", "arguments", "sqlstate", "says"),
    [
        ("SELECT", "chunk_tokens => 0", "22023", "chunk_tokens is 0"),
        ("SELECT", "chunk_tokens => 20, chunk_overlap => 20", "22023", "chunk_overlap 20"),
        ("SELECT", "chunk_overlap => 3", "22023", "chunk_tokens is null and chunk_overlap 3"),
        ("SELECT", "chunk_tokens => 100000", "22023", "max_tokens is 100000"),
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


def test_a_chunk_table_that_was_dropped_is_named(docs: Connection) -> None:
    docs.execute("DROP TABLE docs_embedding_chunk")
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r"the chunk table of public\.docs holds its vectors and is gone"), docs.transaction():
        docs.execute("DELETE FROM docs")
    docs.execute("SELECT nv_embed.drop_auto_embed('docs'); DELETE FROM docs")


def test_a_name_that_is_too_long_is_cut(db: Connection) -> None:
    name = "ü" * 31
    db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, body text)")
    db.execute(f"SELECT nv_embed.auto_embed('{name}', '{{body}}', dim => 384, chunk_tokens => 20)")
    assert one(db, "SELECT chunks::text FROM nv_embed.status") == f'"{"ü" * 28}_chunk"'


# Searching.


@pytest.fixture
def library(db: Connection) -> Connection:
    db.execute("CREATE TABLE library (id int PRIMARY KEY, body text, lang text DEFAULT 'en')")
    db.execute("SELECT nv_embed.auto_embed('library', '{body}', dim => 384, chunk_tokens => 12)")
    filler = "nothing of interest is written in this part of the long book at all "
    db.execute(
        "INSERT INTO library VALUES (1, %s), (2, %s), (3, %s)",
        [
            filler * 3 + "the dynamo was built by an instrument maker " + filler * 3,
            "bread rises because yeast makes gas " + filler * 2 + "dynamo engines hum",
            filler * 6,
        ],
    )
    return db


def test_a_search_finds_each_row_once_with_its_best_piece(library: Connection) -> None:
    rows = library.execute(
        "SELECT (hit).id, score, seq, start_char, end_char, content, (hit).body FROM nv_search(NULL::library, 'who built the dynamo', k => 10)"
    ).fetchall()
    assert sorted(key for key, *_ in rows) == [1, 2, 3]
    assert [score for _, score, *_ in rows] == sorted((score for _, score, *_ in rows), reverse=True)
    for key, score, seq, start, end, content, body in rows:
        assert content == body[start:end]
        best = library.execute(
            "SELECT seq, 1 - (embedding <=> nv_embed_query('who built the dynamo', 384)::halfvec) FROM library_embedding_chunk"
            " WHERE id = %s ORDER BY 2 DESC",
            [key],
        ).fetchone()
        assert best is not None
        assert (seq, pytest.approx(score, abs=1e-6)) == (best[0], best[1])
    assert rows[0][0] == 1
    assert "dynamo" in rows[0][5]


def test_a_search_by_a_vector_with_a_filter_keeps_k_rows(library: Connection) -> None:
    library.execute("INSERT INTO library SELECT n, repeat('dynamo ', 60), 'de' FROM generate_series(10, 30) AS n")
    found = library.execute(
        "SELECT (hit).id FROM nv_search(NULL::library, nv_embed_query('dynamo', 384), k => 2, filter => $$lang = 'en' AND id > 0$$)"
    ).fetchall()
    assert len(found) == 2
    assert {key for (key,) in found} <= {1, 2, 3}
    assert one(library, "SELECT count(*) FROM nv_search(NULL::library, 'dynamo', k => 0)") == 0


def test_a_search_reads_an_index_of_the_chunk_table(library: Connection) -> None:
    library.execute(
        "INSERT INTO library SELECT n, string_agg('w' || n || 'x' || m, ' ')"
        " FROM generate_series(10, 400) AS n, generate_series(1, 30) AS m GROUP BY n"
    )
    library.execute(
        "CREATE INDEX ON library_embedding_chunk USING hnsw (embedding halfvec_cosine_ops); ANALYZE library_embedding_chunk; ANALYZE library"
    )
    statement = one(library, "SELECT nv_embed.search_sql('library', nv_embed.live_generation('library', 'embedding'), 5, NULL, NULL)")
    library.execute("SET LOCAL cursor_tuple_fraction = 0.001")
    vector = one(library, "SELECT quote_literal(nv_embed_query('who built the dynamo', 384)::text)")
    plan = library.execute("EXPLAIN DECLARE pieces NO SCROLL CURSOR FOR " + statement.replace("$1", vector)).fetchall()
    assert any("library_embedding_chunk_embedding_idx" in line for (line,) in plan)
    assert one(library, "SELECT count(*) FROM nv_search(NULL::library, 'who built the dynamo', k => 5)") == 5


# Who may see and write.


@pytest.fixture
def shared(docs: Connection) -> Connection:
    """A table of two tenants, each of whom sees their own rows only."""
    embed(docs)
    docs.execute("DROP ROLE IF EXISTS tenant; CREATE ROLE tenant; GRANT SELECT, INSERT, UPDATE, DELETE ON docs TO tenant")
    docs.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON docs USING (tenant = current_user)")
    docs.execute("UPDATE docs SET tenant = 'tenant' WHERE id < 3")
    return docs


def test_a_role_sees_the_pieces_of_the_rows_that_it_sees(shared: Connection) -> None:
    shared.execute("SET LOCAL ROLE tenant")
    assert shared.execute("SELECT DISTINCT id FROM docs_embedding_chunk ORDER BY id").fetchall() == [(1,), (2,)]
    found = shared.execute("SELECT (hit).id FROM nv_search(NULL::docs, 'title', k => 10)").fetchall()
    assert {key for (key,) in found} == {1, 2}


def test_a_role_that_may_not_read_what_is_embedded_sees_no_piece(shared: Connection) -> None:
    shared.execute("REVOKE SELECT ON docs FROM tenant; GRANT SELECT (id, title, tenant) ON docs TO tenant; SET LOCAL ROLE tenant")
    assert one(shared, "SELECT count(*) FROM docs") == 2
    assert one(shared, "SELECT count(*) FROM docs_embedding_chunk") == 0


def test_a_role_without_rights_on_the_table_cannot_read_its_pieces(shared: Connection) -> None:
    shared.execute("REVOKE ALL ON docs FROM tenant; SET LOCAL ROLE tenant")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        shared.execute("SELECT count(*) FROM docs_embedding_chunk")


def test_whoever_writes_rows_needs_no_right_on_their_pieces(shared: Connection, client: Client) -> None:
    shared.execute("SET LOCAL ROLE tenant")
    shared.execute(
        "INSERT INTO docs (id, title, body) VALUES (20, 'mine', 'a b c'); UPDATE docs SET body = 'changed' WHERE id = 1;"
        " DELETE FROM docs WHERE id = 2"
    )
    shared.execute("RESET ROLE")
    embed(shared)
    in_step(shared, client)
    assert numbers(shared) == (6, 6, 0, 0, 0)


def test_a_role_cannot_write_pieces_of_rows_that_it_does_not_see_nor_take_any_away(shared: Connection) -> None:
    shared.execute("SET LOCAL ROLE tenant")
    piece = "INSERT INTO docs_embedding_chunk SELECT %s, 99, 0, 1, embedding FROM docs_embedding_chunk LIMIT 1"
    with pytest.raises(psycopg.errors.InsufficientPrivilege), shared.transaction():
        shared.execute(piece, [5])
    assert shared.execute("DELETE FROM docs_embedding_chunk").rowcount == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege), shared.transaction():
        shared.execute("UPDATE docs_embedding_chunk SET start_char = 0")
    shared.execute("RESET ROLE; REVOKE INSERT, UPDATE ON docs FROM tenant; SET LOCAL ROLE tenant")
    with pytest.raises(psycopg.errors.InsufficientPrivilege), shared.transaction():
        shared.execute(piece, [1])


@pytest.mark.parametrize(
    "altered",
    [
        "CREATE TRIGGER spy BEFORE DELETE ON docs_embedding_chunk FOR EACH ROW EXECUTE FUNCTION spy()",
        "CREATE RULE spy AS ON DELETE TO docs_embedding_chunk DO ALSO SELECT spied()",
        "CREATE TABLE spied_on () INHERITS (docs_embedding_chunk)",
        "ALTER TABLE docs_embedding_chunk ALTER id TYPE bigint",
    ],
)
def test_nothing_of_the_owners_runs_with_the_rights_of_the_triggers_owner(connect: Callable[..., Connection], altered: str) -> None:
    app = connect("app")
    app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, chunk_tokens => 20); INSERT INTO docs VALUES (1, 'a')")
    app.execute("CREATE TABLE seen (who text); GRANT INSERT ON seen TO PUBLIC")
    app.execute("CREATE FUNCTION spied() RETURNS void LANGUAGE sql AS 'INSERT INTO public.seen VALUES (current_user)'")
    app.execute("CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM public.spied(); RETURN OLD; END'")
    if "ALTER id" in altered:
        app.execute("DROP POLICY nv_embed_readable ON docs_embedding_chunk; DROP POLICY nv_embed_written ON docs_embedding_chunk")
    app.execute(altered)
    for change in ("DELETE FROM docs", "TRUNCATE docs", "UPDATE docs SET id = 2"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has been altered"):
            app.execute(change)
    assert one(app, "SELECT count(*) FROM seen") == 0
    assert one(app, "SELECT count(*) FROM docs WHERE id = 1") == 1


def test_the_counting_trigger_serves_no_other_table(connect: Callable[..., Connection]) -> None:
    app = connect("app")
    app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE other (seq int)")
    app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, chunk_tokens => 20)")
    generation = one(app, "SELECT id FROM nv_embed.generation")
    app.execute(
        f"CREATE TRIGGER mine AFTER INSERT ON other REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT"
        f" EXECUTE FUNCTION nv_embed.count_chunks({generation})"
    )
    with pytest.raises(psycopg.errors.UndefinedObject, match="belongs to no declaration"):
        app.execute("INSERT INTO other VALUES (0)")
    app.execute(f"CREATE TRIGGER mine AFTER INSERT ON docs_embedding_chunk FOR EACH STATEMENT EXECUTE FUNCTION nv_embed.count_chunks({generation})")
    with pytest.raises(psycopg.errors.UndefinedObject, match="belongs to no declaration"):
        app.execute("INSERT INTO docs VALUES (1, 'a')")


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
    for _ in range(400):
        if one(db, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", [pid]) == 1:
            return True
        threading.Event().wait(0.025)
    return False


@pytest.mark.parametrize("mode", ["sync", "async", "off"])
@pytest.mark.parametrize(
    "change", ["UPDATE docs SET body = 'quite another' WHERE id = 6", "DELETE FROM docs WHERE id = 6", "UPDATE docs SET id = 60 WHERE id = 6"]
)
def test_a_change_that_meets_a_worker_leaves_no_piece_of_the_text_before(
    connect: Callable[..., Connection], client: Client, mode: str, change: str
) -> None:
    db, worker, writer = connect(), connect(), connect()
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    worker.execute("BEGIN")
    embed(worker)
    writer.execute("SELECT set_config('nv_embed.mode', %s, false)", [mode])
    thread, raised = in_thread(lambda: writer.execute(change))
    assert waits_for_lock(db, writer.info.backend_pid)
    worker.execute("COMMIT")
    thread.join(30)
    assert not raised
    db.execute("SELECT nv_embed.refresh('docs')")
    embed(db)
    in_step(db, client)
    numbers(db)


def test_a_worker_leaves_rows_alone_that_a_transaction_is_changing(connect: Callable[..., Connection], client: Client) -> None:
    db, writer = connect(), connect()
    db.execute(TABLE)
    db.execute(f"{DECLARE}, mode => 'async')")
    db.execute(ROWS)
    writer.execute("BEGIN")
    writer.execute("UPDATE docs SET body = 'changed' WHERE id = 2; DELETE FROM docs WHERE id = 3")
    embed(db)
    assert numbers(db) == (6, 4, 2, 0, 0)
    writer.execute("COMMIT")
    embed(db)
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
    embed(db)
    old.execute("DELETE FROM docs WHERE id = 4; COMMIT")
    assert one(db, "SELECT count(*) FROM nv_search(NULL::docs, 'title', k => 10)") == 5
    db.execute("INSERT INTO docs VALUES (4, 'four', 'comes back')")
    assert one(db, "SELECT count(*) FROM docs_embedding_chunk WHERE id = 4") == 0
    embed(db)
    in_step(db, client)
    assert numbers(db) == (6, 6, 0, 0, 0)
