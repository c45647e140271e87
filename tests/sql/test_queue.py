"""
What each event leaves in the queue and in the numbers of nv_embed.status, mode async.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from conftest import Connection
from installs import BOTH, EXTENSION
from vectors import one

from nv_embed.client import Client
from nv_embed.cluster import Cluster

pytestmark = BOTH

DOCS = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, views int DEFAULT 0)"
DECLARE = "SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384, mode => 'async')"

OWN = "array_fill(0.5::real, ARRAY[384])::halfvec"
"""A vector that a writer brings along."""


@pytest.fixture
def docs(db: Connection) -> Connection:
    db.execute(DOCS)
    db.execute(DECLARE)
    return db


def queued(db: Connection) -> list[str]:
    """Keys of the jobs, oldest first."""
    return [key for (key,) in db.execute("SELECT array_to_string(key::text[], '|') FROM nv_embed.job ORDER BY id")]


def settle(db: Connection, client: Client) -> None:
    """Give every queued row a vector, as a worker does."""
    for generation, key, id in db.execute(
        "SELECT generation, key, id FROM nv_embed.job WHERE retry_at IS DISTINCT FROM 'infinity' ORDER BY id"
    ).fetchall():
        read = db.execute("SELECT text, digest FROM nv_embed.read(%s, %s, 1000000)", [generation, [key]]).fetchone()
        text, digest = read or (None, None)
        vector = None if text is None else str(client.embed([text], dim=384)[0].tolist())
        db.execute("SELECT nv_embed.write_back(%s, %s, %s::bigint[], %s, %s::text[])", [generation, [key], [id], [digest], [vector]])


def numbers(db: Connection) -> dict[str, Any]:
    """The numbers of nv_embed.status, once it is certain that they are those of the table."""
    told = db.execute("SELECT rows, embedded, pending, failed, blank, coverage FROM nv_embed.status").fetchone()
    assert told is not None
    counted = db.execute(
        "SELECT count(*),"
        " count(*) FILTER (WHERE d.embedding IS NOT NULL AND NOT EXISTS (SELECT FROM nv_embed.job WHERE key = ARRAY[d.id::text]::text AND stale)),"
        " (SELECT count(*) FROM nv_embed.job WHERE retry_at IS DISTINCT FROM 'infinity'),"
        " (SELECT count(*) FROM nv_embed.job WHERE retry_at = 'infinity'),"
        " count(*) FILTER (WHERE concat(title, body) !~ '[^[:space:]]') FROM docs AS d"
    ).fetchone()
    assert told[:5] == counted
    return dict(zip(("rows", "embedded", "pending", "failed", "blank", "coverage"), told, strict=True))


def test_an_insert_queues_its_rows_and_asks_nobody(docs: Connection) -> None:
    docs.execute("SELECT nv_embed.configure('127.0.0.1:1')")
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    assert queued(docs) == ["1", "2"]
    assert numbers(docs) == {"rows": 2, "embedded": 0, "pending": 2, "failed": 0, "blank": 0, "coverage": 0.0}


def test_copy_queues_its_rows(docs: Connection) -> None:
    with docs.cursor().copy("COPY docs (id, title, body) FROM STDIN") as copy:
        for n in range(1, 2501):
            copy.write_row((n, f"title {n}", "body"))
    assert len(queued(docs)) == 2500
    assert numbers(docs)["pending"] == 2500


def test_rows_without_content_and_rows_with_a_vector_are_not_queued(docs: Connection) -> None:
    docs.execute(f"INSERT INTO docs (id, title, body, embedding) VALUES (1, ' ', NULL, NULL), (2, 'a', 'b', {OWN})")
    assert queued(docs) == []
    assert numbers(docs) == {"rows": 2, "embedded": 1, "pending": 0, "failed": 0, "blank": 1, "coverage": 1.0}


def test_an_update_of_the_text_queues_the_row_and_keeps_its_vector_meanwhile(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    settle(docs, client)
    assert numbers(docs)["embedded"] == 2
    docs.execute("UPDATE docs SET body = 'new' WHERE id = 2")
    assert queued(docs) == ["2"]
    assert one(docs, "SELECT embedding IS NOT NULL FROM docs WHERE id = 2")
    assert numbers(docs) == {"rows": 2, "embedded": 1, "pending": 1, "failed": 0, "blank": 0, "coverage": 0.5}
    settle(docs, client)
    assert numbers(docs)["coverage"] == 1.0


@pytest.mark.parametrize("change", ["views = views + 1", "body = body", "title = title, views = 7"])
def test_an_update_that_leaves_the_text_as_it_was_queues_nothing(docs: Connection, change: str, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    settle(docs, client)
    docs.execute(f"UPDATE docs SET {change}")
    assert queued(docs) == []
    assert numbers(docs)["embedded"] == 1


def test_a_row_that_changes_while_it_waits_is_one_job_and_goes_to_the_end(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    docs.execute("UPDATE docs SET body = 'new' WHERE id = 1")
    docs.execute("UPDATE docs SET body = 'newer' WHERE id = 1")
    assert queued(docs) == ["2", "1"]
    assert numbers(docs)["pending"] == 2


def test_sessions_of_any_taste_queue_a_row_by_one_key(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id bytea, at timestamptz, span interval, n float8, body text, PRIMARY KEY (id, at, span, n))")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    db.execute("INSERT INTO docs VALUES ('\\x00ff5c', '2026-02-03 04:05:06.789', '-1 year 2 days -3 hours', 0.1::float8 + 0.2, 'text')")
    queued = one(db, "SELECT key FROM nv_embed.job")
    db.execute("SET LOCAL bytea_output = 'escape'; SET LOCAL datestyle = 'SQL, DMY'; SET LOCAL timezone = 'Asia/Kolkata'")
    db.execute("SET LOCAL intervalstyle = 'sql_standard'; SET LOCAL extra_float_digits = 0")
    db.execute("UPDATE docs SET body = 'another'")
    assert db.execute("SELECT key FROM nv_embed.job").fetchall() == [(queued,)]
    db.execute("DELETE FROM nv_embed.job; SELECT nv_embed.refresh('docs')")
    assert db.execute("SELECT key FROM nv_embed.job").fetchall() == [(queued,)]
    db.execute("DELETE FROM docs")
    assert one(db, "SELECT count(*) FROM nv_embed.job") == 0


def test_a_text_that_becomes_blank_needs_no_vector_and_loses_the_one_it_had(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    docs.execute("UPDATE docs SET title = '', body = NULL WHERE id = 1")
    assert queued(docs) == ["2"]
    settle(docs, client)
    docs.execute("UPDATE docs SET title = '', body = NULL WHERE id = 2")
    assert queued(docs) == ["2"]
    settle(docs, client)
    assert one(docs, "SELECT count(embedding) FROM docs") == 0
    assert numbers(docs) == {"rows": 2, "embedded": 0, "pending": 0, "failed": 0, "blank": 2, "coverage": 1.0}


def test_a_row_that_is_given_a_vector_awaits_none_any_more(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    docs.execute(f"UPDATE docs SET embedding = {OWN}")
    assert queued(docs) == []
    docs.execute(f"UPDATE docs SET body = 'new', embedding = ({OWN} + {OWN})")
    assert queued(docs) == []
    assert numbers(docs)["embedded"] == 1


def test_a_vector_that_is_set_to_null_is_made_anew(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd'), (3, '', '')")
    settle(docs, client)
    docs.execute("UPDATE docs SET body = 'new' WHERE id = 1")
    docs.execute("UPDATE docs SET embedding = NULL")
    assert sorted(queued(docs)) == ["1", "2"]
    assert numbers(docs)["embedded"] == 0
    settle(docs, client)
    assert numbers(docs)["embedded"] == 2


def test_a_deleted_row_awaits_nothing(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 'a', 'b' FROM generate_series(1, 5) AS n")
    docs.execute("DELETE FROM docs WHERE id <= 2")
    assert queued(docs) == ["3", "4", "5"]
    settle(docs, client)
    docs.execute("DELETE FROM docs WHERE id = 3")
    assert numbers(docs) == {"rows": 2, "embedded": 2, "pending": 0, "failed": 0, "blank": 0, "coverage": 1.0}


def test_truncate_empties_the_queue_and_the_numbers(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 'a', 'b' FROM generate_series(1, 5) AS n")
    settle(docs, client)
    docs.execute("UPDATE docs SET body = 'new' WHERE id < 3")
    docs.execute("TRUNCATE docs")
    assert queued(docs) == []
    assert numbers(docs) == {"rows": 0, "embedded": 0, "pending": 0, "failed": 0, "blank": 0, "coverage": 1.0}
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    assert numbers(docs)["pending"] == 1


def test_jobs_follow_their_rows_to_other_keys(docs: Connection) -> None:
    docs.execute("INSERT INTO docs SELECT n, 'a', 'b' || n FROM generate_series(1, 4) AS n")
    docs.execute("DELETE FROM nv_embed.job WHERE key IN ('{2}', '{4}')")
    docs.execute("INSERT INTO nv_embed.tally (generation, jobs) SELECT id, -2 FROM nv_embed.generation")
    docs.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey, ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED")
    docs.execute("UPDATE docs SET id = id % 4 + 1")
    assert sorted(queued(docs)) == ["2", "4"]
    assert numbers(docs)["pending"] == 2


def test_a_row_with_another_key_and_another_text_is_queued_by_its_new_key(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    settle(docs, client)
    docs.execute("UPDATE docs SET id = 10, body = 'new' WHERE id = 1")
    docs.execute("UPDATE docs SET id = 20 WHERE id = 2")
    assert queued(docs) == ["10"]
    assert numbers(docs)["embedded"] == 1
    settle(docs, client)
    assert numbers(docs)["embedded"] == 2


def test_upserts_and_merges_queue_new_and_changed_rows(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    settle(docs, client)
    docs.execute(
        "INSERT INTO docs VALUES (1, 'a', 'changed'), (2, 'c', 'd'), (3, 'e', 'new')"
        " ON CONFLICT (id) DO UPDATE SET title = excluded.title, body = excluded.body"
    )
    assert sorted(queued(docs)) == ["1", "3"]
    settle(docs, client)
    docs.execute(
        "MERGE INTO docs AS d USING (VALUES (2, 'changed'), (4, 'new')) AS s (id, body) ON d.id = s.id"
        " WHEN MATCHED THEN UPDATE SET body = s.body WHEN NOT MATCHED THEN INSERT (id, body) VALUES (s.id, s.body)"
    )
    assert sorted(queued(docs)) == ["2", "4"]
    assert numbers(docs)["rows"] == 4


def test_what_is_rolled_back_was_never_queued(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    docs.execute("SAVEPOINT here; INSERT INTO docs VALUES (2, 'c', 'd'); UPDATE docs SET body = 'x' WHERE id = 1; ROLLBACK TO here")
    assert queued(docs) == ["1"]
    assert numbers(docs)["pending"] == 1


def test_the_mode_of_a_transaction_goes_before_the_declared_one(docs: Connection) -> None:
    docs.execute("SET LOCAL nv_embed.mode = 'off'; INSERT INTO docs VALUES (2, 'c', 'd')")
    assert queued(docs) == []
    assert numbers(docs) == {"rows": 1, "embedded": 0, "pending": 0, "failed": 0, "blank": 0, "coverage": 0.0}
    docs.execute("SET LOCAL nv_embed.mode = ''; INSERT INTO docs VALUES (3, 'e', 'f')")
    assert queued(docs) == ["3"]
    with pytest.raises(psycopg.Error) as raised, docs.transaction():
        docs.execute("SET LOCAL nv_embed.mode = 'later'; INSERT INTO docs VALUES (4, 'g', 'h')")
    assert raised.value.sqlstate == "22023"


@EXTENSION
def test_a_row_can_be_embedded_at_once_although_the_declared_mode_is_async(docs: Connection) -> None:
    docs.execute("SET LOCAL nv_embed.mode = 'sync'; INSERT INTO docs VALUES (1, 'a', 'b')")
    assert queued(docs) == []
    assert numbers(docs)["embedded"] == 1


def test_a_text_that_changes_in_mode_off_keeps_no_vector_of_the_one_before(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    settle(docs, client)
    docs.execute("SET LOCAL nv_embed.mode = 'off'; UPDATE docs SET body = 'new' WHERE id = 1; UPDATE docs SET views = 3")
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NULL").fetchall() == [(1,)]
    assert queued(docs) == []
    docs.execute("SET LOCAL nv_embed.mode = ''")
    assert one(docs, "SELECT nv_embed.refresh('docs')") == 1
    assert queued(docs) == ["1"]


@EXTENSION
def test_a_sync_update_settles_what_waited(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    docs.execute("SET LOCAL nv_embed.mode = 'sync'; UPDATE docs SET body = 'new'")
    assert queued(docs) == []
    assert numbers(docs)["embedded"] == 1


def test_refresh_queues_what_lacks_a_vector_once(docs: Connection) -> None:
    docs.execute(
        "SET LOCAL nv_embed.mode = 'off'; INSERT INTO docs SELECT n, 'a', 'b' FROM generate_series(1, 30) AS n; SET LOCAL nv_embed.mode = ''"
    )
    assert one(docs, "SELECT nv_embed.refresh('docs')") == 30
    assert one(docs, "SELECT nv_embed.refresh('docs')") == 0
    assert numbers(docs)["pending"] == 30


def test_refresh_in_mode_off_does_what_is_declared(docs: Connection) -> None:
    docs.execute("SET LOCAL nv_embed.mode = 'off'; INSERT INTO docs VALUES (1, 'a', 'b')")
    assert one(docs, "SELECT nv_embed.refresh('docs')") == 1
    assert queued(docs) == ["1"]


@EXTENSION
def test_what_triggers_do_not_see_is_found_by_refresh(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b'), (2, 'c', 'd')")
    settle(docs, client)
    docs.execute("SET LOCAL session_replication_role = replica")
    docs.execute("INSERT INTO docs VALUES (3, 'e', 'f'); DELETE FROM docs WHERE id = 1; UPDATE docs SET embedding = NULL WHERE id = 2")
    docs.execute("SET LOCAL session_replication_role = origin")
    assert queued(docs) == []
    assert one(docs, "SELECT nv_embed.refresh('docs')") == 2
    assert queued(docs) == ["2", "3"]
    assert numbers(docs) == {"rows": 2, "embedded": 0, "pending": 2, "failed": 0, "blank": 0, "coverage": 0.0}


@EXTENSION
def test_the_mode_can_be_changed_at_any_time(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    docs.execute("SELECT nv_embed.alter_auto_embed('docs', mode => 'sync')")
    docs.execute("INSERT INTO docs VALUES (2, 'c', 'd')")
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NOT NULL").fetchall() == [(2,)]
    assert queued(docs) == ["1"]
    assert one(docs, "SELECT mode FROM nv_embed.status") == "sync"


def test_dropping_the_declaration_takes_its_jobs_along(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    docs.execute("SELECT nv_embed.drop_auto_embed('docs')")
    docs.execute("INSERT INTO docs VALUES (2, 'a', 'b')")
    assert queued(docs) == []
    assert one(docs, "SELECT count(*) FROM nv_embed.tally") == 0


def test_a_trigger_that_no_declaration_made_is_refused(docs: Connection) -> None:
    """It would run what its owner likes with the rights of the extension's."""
    id = one(docs, "SELECT id FROM nv_embed.embedding")
    docs.execute("CREATE TABLE other (id int PRIMARY KEY, title text, body text, embedding halfvec(384))")
    docs.execute(
        f"CREATE TRIGGER forged AFTER INSERT ON other REFERENCING NEW TABLE AS new_rows EXECUTE FUNCTION nv_embed.queue_written_rows('{id}')"
    )
    docs.execute(f"CREATE TRIGGER nameless AFTER INSERT ON docs EXECUTE FUNCTION nv_embed.queue_written_rows('{id}')")
    docs.execute("CREATE TEMP VIEW new_rows AS SELECT 1 AS id, 'a' AS title, 'b' AS body, NULL::halfvec AS embedding")
    for table in ("other", "docs"):
        with pytest.raises(psycopg.Error, match="belongs to no declaration"), docs.transaction():
            docs.execute(f"INSERT INTO {table} VALUES (1, 'a', 'b')")


def test_a_cast_of_the_users_is_never_called_with_the_owners_rights(docs: Connection) -> None:
    docs.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    docs.execute("CREATE FUNCTION spy(mood) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'called as %', current_user; END $$")
    docs.execute("CREATE CAST (mood AS text) WITH FUNCTION spy(mood) AS IMPLICIT")
    docs.execute("CREATE TABLE moods (m mood PRIMARY KEY, body text)")
    docs.execute("SELECT nv_embed.auto_embed('moods', '{m} {body}', dim => 384, mode => 'async')")
    docs.execute("INSERT INTO moods VALUES ('ok', 'fine'); UPDATE moods SET body = 'well'; DELETE FROM moods")


def test_a_writer_needs_no_right_on_the_queue(connect: Callable[..., Connection]) -> None:
    owner, app = connect(), connect("app")
    owner.execute(DOCS)
    owner.execute(DECLARE)
    owner.execute("GRANT INSERT, UPDATE, DELETE, SELECT ON docs TO app")
    app.execute("INSERT INTO docs VALUES (1, 'a', 'b'); UPDATE docs SET id = 2, body = 'c'")
    assert app.execute("SELECT * FROM nv_embed.job").fetchall() == []
    assert queued(owner) == ["2"]


def test_a_claim_reads_the_front_of_the_queue_by_its_index_and_leaves_the_indexes_alone(docs: Connection) -> None:
    docs.execute("INSERT INTO docs SELECT n, 'a', 'b' FROM generate_series(1, 20000) AS n; ANALYZE nv_embed.job")
    id = one(docs, "SELECT id FROM nv_embed.generation")
    plan = str(
        one(
            docs,
            f"EXPLAIN (FORMAT JSON) SELECT ctid FROM nv_embed.job WHERE generation = {id} AND retry_at IS NULL"
            " AND (leased_until IS NULL OR leased_until <= now()) ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED",
        )
    )
    assert "'Index Name': 'job_fresh'" in plan
    assert "Sort" not in plan
    assert "Seq Scan" not in plan
    before = one(docs, "SELECT pg_stat_get_xact_tuples_hot_updated('nv_embed.job'::regclass)")
    assert len(docs.execute("SELECT FROM nv_embed.claim(ARRAY[%s]::bigint[], 1000, '1 min')", [id]).fetchall()) == 1000
    assert one(docs, "SELECT pg_stat_get_xact_tuples_hot_updated('nv_embed.job'::regclass)") - before > 800


def test_new_work_goes_before_retries_and_each_generation_has_its_share(docs: Connection) -> None:
    docs.execute("CREATE TABLE other (id int PRIMARY KEY, body text)")
    docs.execute("SELECT nv_embed.auto_embed('other', '{body}', dim => 384, mode => 'async')")
    docs.execute("INSERT INTO docs SELECT n, 'a', 'b' FROM generate_series(1, 100) AS n; INSERT INTO other VALUES (1, 'late')")
    ids = [id for (id,) in docs.execute("SELECT id FROM nv_embed.generation ORDER BY id")]
    docs.execute("UPDATE nv_embed.job SET retry_at = now() - interval '1 h', attempts = 1 WHERE key = '{1}' AND generation = %s", [ids[0]])
    claimed = docs.execute("SELECT generation, key FROM nv_embed.claim(%s::bigint[], 10, '1 min')", [ids]).fetchall()
    assert sorted(claimed) == [*((ids[0], f"{{{n}}}") for n in sorted(range(2, 11), key=str)), (ids[1], "{1}")]
    rest = docs.execute("SELECT generation, key FROM nv_embed.claim(%s::bigint[], 1000, '1 min')", [ids]).fetchall()
    assert rest[-1] == (ids[0], "{1}")
    assert len(rest) == 91


def test_status_and_failures_show_what_their_reader_owns(connect: Callable[..., Connection], cluster: Cluster, own_database: str) -> None:
    owner, app = connect(), connect("app")
    owner.execute(DOCS)
    owner.execute(DECLARE)
    owner.execute("INSERT INTO docs VALUES (1, 'a', 'b'); UPDATE nv_embed.job SET retry_at = 'infinity'; GRANT SELECT ON docs TO app")
    assert app.execute("SELECT FROM nv_embed.status").fetchall() == []
    assert app.execute("SELECT FROM nv_embed.failures").fetchall() == []
    assert one(app, "SELECT nv_embed.retry()") == 0
    with cluster.connect(own_database) as superuser:
        superuser.execute("ALTER TABLE docs OWNER TO app")
    assert app.execute("SELECT rows, failed FROM nv_embed.status").fetchall() == [(1, 1)]
    assert one(app, "SELECT nv_embed.retry()") == 1


def test_only_those_who_see_the_queue_can_wait_for_it(connect: Callable[..., Connection]) -> None:
    owner, app = connect(), connect("app")
    owner.execute(DOCS)
    owner.execute(DECLARE)
    owner.execute("GRANT SELECT, INSERT ON docs TO app")
    app.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="role app does not see"):
        app.execute("SELECT nv_embed.wait('docs')")
    assert one(owner, "SELECT nv_embed.wait('docs', timeout => '0')") is False


def test_who_drops_a_declaration_waits_for_nobody_who_writes_to_another_table(connect: Callable[..., Connection]) -> None:
    owner, writer = connect(), connect()
    for table in ("docs", "other"):
        owner.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)")
        owner.execute("SELECT nv_embed.auto_embed(%s, '{body}', dim => 384, mode => 'async')", [table])
        owner.execute(f"INSERT INTO {table} VALUES (1, 'x'); INSERT INTO {table} VALUES (2, 'y')")
    tried = "SELECT n / 1e5 AS seed, setseed(n / 1e5), random() FROM generate_series(1, 100000) AS n"
    folding = one(writer, f"SELECT seed FROM ({tried}) AS s WHERE random < 0.001 LIMIT 1")
    with writer.transaction():
        writer.execute("SELECT setseed(%s)", [folding])
        writer.execute("INSERT INTO docs VALUES (3, 'z')")
        assert one(writer, "SELECT count(*) FROM nv_embed.tally WHERE generation = (SELECT min(id) FROM nv_embed.generation)") == 1
        owner.execute("SET lock_timeout = '5 s'")
        owner.execute("SELECT nv_embed.drop_auto_embed('other')")
    assert owner.execute("SELECT relation::text, rows FROM nv_embed.status").fetchall() == [("docs", 3)]
