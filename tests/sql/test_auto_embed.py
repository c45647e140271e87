"""
Auto-embedded columns, mode sync: the vector is there when the statement ends.
"""

import math
import threading
from collections.abc import Callable

import psycopg
import pytest
from conftest import Connection
from counting import Counter
from installs import BOTH
from vectors import cosine, one, parsed

from nv_embed.client import PAGE_TEXTS, Client


@pytest.fixture
def docs(db: Connection) -> Connection:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text, views int DEFAULT 0)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    return db


def fresh(db: Connection, where: str = "true") -> int:
    """How many rows hold the vector of just their text; fails on one that holds another's."""
    rows = db.execute(f"SELECT id, embedding::text, concat(title, ': ', body) FROM docs WHERE {where} AND embedding IS NOT NULL").fetchall()
    expected = db.execute("SELECT v::text FROM unnest(nv_embed(%s::text[], 384)) AS v", [[text for *_, text in rows]]).fetchall()
    for (key, stored, _), (vector,) in zip(rows, expected, strict=True):
        assert cosine(parsed(stored), parsed(vector)) > 0.9999, key
    return len(rows)


def test_inserted_rows_have_their_vectors_when_the_statement_ends(docs: Connection) -> None:
    docs.execute("INSERT INTO docs SELECT n, 'title ' || n, 'body of ' || n FROM generate_series(1, 50) AS n")
    assert fresh(docs) == 50


@BOTH
def test_a_column_of_the_right_type_is_added(docs: Connection) -> None:
    column = "attrelid = 'docs'::regclass AND attname = 'embedding'"
    assert one(docs, f"SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE {column}") == "halfvec(384)"


def test_copy_embeds_its_rows(docs: Connection) -> None:
    with docs.cursor().copy("COPY docs (id, title, body) FROM STDIN") as copy:
        for n in range(1, 2501):
            copy.write_row((n, f"title {n}", f"body {n % 7}"))
    assert fresh(docs) == 2500


def test_an_update_of_the_text_renews_the_vector(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'first'), (2, 'b', 'second')")
    before = one(docs, "SELECT embedding::text FROM docs WHERE id = 1")
    docs.execute("UPDATE docs SET body = 'quite another thing' WHERE id = 1")
    assert one(docs, "SELECT embedding::text FROM docs WHERE id = 1") != before
    assert fresh(docs) == 2


def test_an_update_that_leaves_the_text_as_it_was_asks_nobody(docs: Connection, counter: Counter) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'first')")
    docs.execute("SELECT nv_embed.configure(%s)", [counter.address])
    docs.execute("UPDATE docs SET views = views + 1")
    docs.execute("UPDATE docs SET body = 'first'")
    docs.execute("UPDATE docs SET id = 7")
    assert counter.pages == []
    assert fresh(docs) == 1


def test_a_statement_of_many_rows_is_a_few_calls_and_sends_each_text_once(docs: Connection, counter: Counter) -> None:
    docs.execute("SELECT nv_embed.configure(%s)", [counter.address])
    docs.execute("INSERT INTO docs SELECT n, 'title', 'body ' || n FROM generate_series(1, 1000) AS n")
    pages = math.ceil(1000 / PAGE_TEXTS)
    assert len(counter.pages) == pages
    assert len({text for page in counter.pages for text in page}) == 1000
    docs.execute("UPDATE docs SET body = 'new ' || id WHERE id <= 10")
    assert len(counter.pages) == pages + 1
    assert sorted(counter.pages[-1]) == sorted(f"title: new {n}" for n in range(1, 11))


def test_null_columns_read_as_empty_and_blank_rows_have_no_vector(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, NULL, 'body'), (2, NULL, NULL), (3, ' ', E'\\t\\n'), (4, '', '')")
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NOT NULL ORDER BY id").fetchall() == [(1,)]
    assert fresh(docs) == 1


def test_a_text_that_becomes_blank_loses_its_vector(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'first'), (2, 'b', 'second')")
    docs.execute("UPDATE docs SET title = NULL, body = '' WHERE id = 1")
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NOT NULL").fetchall() == [(2,)]


def test_a_row_that_brings_its_vector_is_left_alone(docs: Connection) -> None:
    docs.execute("INSERT INTO docs (id, title, body, embedding) VALUES (1, 'a', 'b', nv_embed('own', 384)::halfvec)")
    docs.execute("UPDATE docs SET body = 'c', embedding = nv_embed('other', 384)::halfvec")
    stored = parsed(one(docs, "SELECT embedding::text FROM docs"))
    assert cosine(stored, parsed(one(docs, "SELECT nv_embed('other', 384)"))) > 0.9999


def test_a_vector_that_is_set_to_null_is_made_anew(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'first'), (2, 'b', 'second'), (3, NULL, NULL)")
    docs.execute("UPDATE docs SET embedding = NULL")
    assert fresh(docs) == 2
    docs.execute("UPDATE docs SET body = 'changed', embedding = NULL WHERE id = 1")
    assert fresh(docs) == 2


def test_an_upsert_of_whole_rows_keeps_every_row_searchable(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'first'), (2, 'b', 'second')")
    docs.execute(
        "INSERT INTO docs (id, title, body) VALUES (1, 'a', 'changed'), (2, 'b', 'second')"
        " ON CONFLICT (id) DO UPDATE SET title = excluded.title, body = excluded.body, embedding = excluded.embedding"
    )
    assert fresh(docs) == 2


def test_sessions_of_any_taste_find_rows_by_numbers_and_dates(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id float8, at timestamptz, span interval, body text, PRIMARY KEY (id, at, span))")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    db.execute("SET LOCAL extra_float_digits = 0; SET LOCAL datestyle = 'SQL, DMY'; SET LOCAL timezone = 'Asia/Kolkata'")
    db.execute("SET LOCAL intervalstyle = 'sql_standard'")
    db.execute("INSERT INTO docs VALUES (0.1::float8 + 0.2, '2026-02-03 04:05:06.789', '-1 year 2 days -3 hours', 'text')")
    assert one(db, "SELECT count(embedding) FROM docs") == 1


def test_sessions_of_any_taste_embed_one_text_and_their_triggers_see_their_own(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id bytea PRIMARY KEY, at timestamptz, span interval, touched text)")
    db.execute("CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := concat(NEW.at, NEW.id); RETURN NEW; END $$")
    db.execute("CREATE TRIGGER touch BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION touch()")
    db.execute("SELECT nv_embed.auto_embed('docs', '{at} {span} {id}', dim => 384)")
    db.execute("SET LOCAL datestyle = 'SQL, DMY'; SET LOCAL timezone = 'Asia/Kolkata'")
    db.execute("SET LOCAL intervalstyle = 'sql_standard'; SET LOCAL bytea_output = 'escape'")
    db.execute("INSERT INTO docs VALUES ('key', '2026-02-03 04:05:06Z', '-1 year 2 days -3 hours')")
    text = "2026-02-03 04:05:06+00 -1 years +2 days -03:00:00 \\x6b6579"
    for refreshed in (False, True):
        if refreshed:
            db.execute(
                "ALTER TABLE docs DISABLE TRIGGER USER; UPDATE docs SET embedding = NULL, touched = NULL; ALTER TABLE docs ENABLE TRIGGER USER"
            )
            assert one(db, "SELECT nv_embed.refresh('docs')") == 1
        stored, touched = db.execute("SELECT embedding::text, touched FROM docs").fetchone() or ()
        assert cosine(parsed(stored), parsed(one(db, "SELECT nv_embed(%s, 384)", [text]))) > 0.9999
        assert touched == "03/02/2026 09:35:06 ISTkey"


def test_a_row_is_held_from_when_its_text_is_compared_until_its_vector_is_written(connect: Callable[..., Connection]) -> None:
    writer, other = connect(), connect()
    writer.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    writer.execute("INSERT INTO docs VALUES (1, 'a'), (2, 'b')")
    declared = "nv_embed.find_embedding('docs', 'embedding'), nv_embed.live_generation('docs', 'embedding')"
    with writer.transaction():
        assert one(writer, f"SELECT nv_embed.unchanged({declared}, ARRAY['{{1}}', '{{2}}'], ARRAY['not a', 'b'])") == [2]
        assert other.execute("SELECT id FROM docs FOR UPDATE SKIP LOCKED").fetchall() == [(1,)]


def test_columns_of_any_collation_and_name_can_be_sources(db: Connection) -> None:
    db.execute("CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    db.execute('CREATE TABLE docs (id int PRIMARY KEY, title text COLLATE nocase, body text COLLATE "C", t int, f int, n int)')
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    db.execute("INSERT INTO docs VALUES (1, 'Hello', 'world')")
    db.execute("UPDATE docs SET title = 'HELLO'")
    assert fresh(db) == 1
    assert one(db, "SELECT (hit).body FROM nv_search(NULL::docs, 'world')") == "world"


def test_on_conflict_do_update_embeds_new_and_changed_rows(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'first'), (2, 'b', 'second')")
    docs.execute(
        "INSERT INTO docs VALUES (1, 'a', 'changed'), (2, 'b', 'second'), (3, 'c', 'new')"
        " ON CONFLICT (id) DO UPDATE SET title = excluded.title, body = excluded.body"
    )
    assert fresh(docs) == 3


def test_merge_embeds_new_and_changed_rows(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'first'), (2, 'b', 'second')")
    docs.execute(
        "MERGE INTO docs AS d USING (VALUES (1, 'changed'), (3, 'new')) AS s (id, body) ON d.id = s.id"
        " WHEN MATCHED THEN UPDATE SET body = s.body WHEN NOT MATCHED THEN INSERT (id, body) VALUES (s.id, s.body)"
    )
    assert fresh(docs) == 3


def test_keys_that_move_from_row_to_row_keep_each_vector_with_its_text(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'one'), (2, 'b', 'two'), (3, 'c', 'three')")
    docs.execute("ALTER TABLE docs DROP CONSTRAINT docs_pkey, ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED")
    # The new text of key 2 is what key 2 read before: paired by key, this row would seem unchanged.
    docs.execute("UPDATE docs SET id = id % 3 + 1, title = CASE id WHEN 1 THEN 'b' ELSE title END, body = CASE id WHEN 1 THEN 'two' ELSE body END")
    assert fresh(docs) == 3


def test_a_failing_sidecar_fails_the_statement_and_nothing_is_written(docs: Connection) -> None:
    with docs.transaction():
        docs.execute("SELECT nv_embed.configure('127.0.0.1:1')")
        with pytest.raises(psycopg.Error) as raised, docs.transaction():
            docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    assert raised.value.sqlstate == "58000"
    assert one(docs, "SELECT count(*) FROM docs") == 0


def test_an_overlong_text_fails_its_statement_whole(docs: Connection) -> None:
    with pytest.raises(psycopg.Error) as raised, docs.transaction():
        docs.execute("INSERT INTO docs VALUES (1, 'a', 'fine'), (2, 'b', repeat('word ', 9000))")
    assert raised.value.sqlstate == "22023"
    assert one(docs, "SELECT count(*) FROM docs") == 0


def test_truncate_end_lets_overlong_texts_in(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, truncate => 'END')")
    db.execute("INSERT INTO docs VALUES (1, repeat('word ', 9000))")
    assert one(db, "SELECT count(embedding) FROM docs") == 1


def test_rows_that_a_table_already_has_are_embedded_at_the_declaration(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    db.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 30) AS n")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    assert fresh(db) == 30


def test_many_existing_rows_are_left_to_refresh(db: Connection) -> None:
    notices: list[str] = []
    db.add_notice_handler(lambda notice: notices.append(notice.message_hint or ""))
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    db.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(1, 1001) AS n")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    assert one(db, "SELECT count(embedding) FROM docs") == 0
    assert "SELECT nv_embed.refresh('public.docs', 'embedding') does it here and now" in notices
    assert one(db, "SELECT nv_embed.refresh('docs')") == 1001
    assert one(db, "SELECT nv_embed.refresh('docs')") == 0
    assert fresh(db) == 1001


def test_a_column_of_the_right_type_is_adopted_with_its_vectors(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text, embedding halfvec(384))")
    db.execute("INSERT INTO docs VALUES (1, 'a', 'b', nv_embed('own', 384)::halfvec), (2, 'a', 'b', NULL)")
    said: list[str | None] = []
    db.add_notice_handler(lambda notice: said.append(notice.message_primary))
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    assert any("has vectors already" in (message or "") for message in said)
    assert fresh(db, "id = 2") == 1
    assert cosine(parsed(one(db, "SELECT embedding::text FROM docs WHERE id = 1")), parsed(one(db, "SELECT nv_embed('own', 384)"))) > 0.9999


def test_composite_keys_of_several_types_find_their_rows(db: Connection) -> None:
    db.execute("CREATE TYPE colour AS ENUM ('red', 'green')")
    db.execute("CREATE DOMAIN code AS text CHECK (VALUE <> '')")
    db.execute('CREATE TABLE "Odd ""Name" ("the Key" uuid, c colour, d code, "text {x}" text, PRIMARY KEY (c, "the Key", d))')
    db.execute("""SELECT nv_embed.auto_embed('"Odd ""Name"', 'text {the Key} {c}: {d}', target => 'my "vectors"', dim => 384)""")
    db.execute("""INSERT INTO "Odd ""Name" SELECT gen_random_uuid(), 'red', 'd' || n, 'x' FROM generate_series(1, 20) AS n""")
    rows = db.execute(
        '''SELECT "my ""vectors"""::text, nv_embed(concat('text ', "the Key", ' ', c, ': ', d), 384)::text FROM "Odd ""Name"'''
    ).fetchall()
    assert len(rows) == 20
    assert all(cosine(parsed(stored), parsed(expected)) > 0.9999 for stored, expected in rows)


def test_two_columns_of_a_table_can_be_embedded_apart(docs: Connection) -> None:
    docs.execute("SELECT nv_embed.auto_embed('docs', '{title}', target => 'title_embedding', dim => 512, storage => 'vector')")
    docs.execute("INSERT INTO docs VALUES (1, 'a title', 'a body')")
    docs.execute("UPDATE docs SET body = 'another body'")
    assert fresh(docs) == 1
    stored = parsed(one(docs, "SELECT title_embedding::text FROM docs"))
    assert cosine(stored, parsed(one(docs, "SELECT nv_embed('a title', 512)"))) > 1 - 1e-6


def test_triggers_of_the_user_see_their_own_search_path(db: Connection) -> None:
    db.execute("CREATE SCHEMA app; SET LOCAL search_path = app, public")
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text, touched int DEFAULT 0)")
    db.execute("CREATE FUNCTION bump(n int) RETURNS int LANGUAGE sql AS 'SELECT n + 1'")
    db.execute("CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.touched := bump(OLD.touched); RETURN NEW; END $$")
    db.execute("CREATE TRIGGER touch BEFORE UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION touch()")
    db.execute("INSERT INTO docs VALUES (1, 'there', 'before')")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    db.execute("INSERT INTO docs VALUES (2, 'a', 'b')")
    assert fresh(db) == 2
    assert db.execute("SELECT touched FROM docs ORDER BY id").fetchall() == [(1,), (1,)]


def test_a_text_that_a_trigger_rewrites_is_embedded_as_it_is_stored(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    db.execute(
        "CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN UPDATE docs SET body = 'rewritten' WHERE id = NEW.id; RETURN NULL; END $$"
    )
    db.execute("CREATE TRIGGER rewrite AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION rewrite()")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    db.execute("INSERT INTO docs VALUES (1, 'a', 'written')")
    assert one(db, "SELECT body FROM docs") == "rewritten"
    assert fresh(db) == 1


@pytest.mark.parametrize("partitions", ["", "PARTITION BY RANGE (id)"])
def test_a_trigger_that_rewrites_the_text_with_each_vector_is_an_error_and_one_that_does_not_is_none(db: Connection, partitions: str) -> None:
    db.execute(f"CREATE TABLE docs (id int PRIMARY KEY, title text, body text) {partitions}")
    if partitions:
        db.execute("CREATE TABLE docs_1 PARTITION OF docs DEFAULT")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    db.execute("CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := btrim(NEW.body); RETURN NEW; END $$")
    db.execute(f"CREATE TRIGGER tidy BEFORE INSERT OR UPDATE ON docs{'_1' if partitions else ''} FOR EACH ROW EXECUTE FUNCTION tidy()")
    db.execute("INSERT INTO docs SELECT n, 'a', ' b ' || n FROM generate_series(1, 3) AS n; UPDATE docs SET body = ' c ' WHERE id = 1")
    assert fresh(db) == 3
    db.execute(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN UPDATE docs SET body = replace(body, 'x', 'y') WHERE id = NEW.id; RETURN NULL; END $$"
    )
    db.execute("CREATE TRIGGER again AFTER UPDATE ON docs FOR EACH ROW WHEN (NEW.body LIKE '%x%') EXECUTE FUNCTION again()")
    db.execute("INSERT INTO docs VALUES (5, 'a', 'x'); UPDATE docs SET body = 'xx' WHERE id = 2")
    assert fresh(db) == 4
    db.execute("CREATE OR REPLACE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := NEW.body || '.'; RETURN NEW; END $$")
    for statement in ("INSERT INTO docs VALUES (4, 'a', 'd')", "UPDATE docs SET title = 'another' WHERE id = 2"):
        with pytest.raises(psycopg.errors.TriggeredDataChangeViolation, match="rewrites what is embedded"), db.transaction():
            db.execute(statement)
    assert fresh(db) == 4
    db.execute(f"DROP TRIGGER tidy ON docs{'_1' if partitions else ''}")
    db.execute(f"CREATE TRIGGER tidy BEFORE UPDATE OF body ON docs{'_1' if partitions else ''} FOR EACH ROW EXECUTE FUNCTION tidy()")
    db.execute("INSERT INTO docs VALUES (4, 'a', 'd'); UPDATE docs SET body = 'e' WHERE id = 4")
    assert one(db, "SELECT body FROM docs WHERE id = 4") == "e."
    assert fresh(db) == 5


def test_partitioned_tables_are_embedded_through_the_parent(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (10)")
    db.execute("CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (10) TO (20)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    db.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(0, 19) AS n")
    assert fresh(db) == 20


def test_rows_that_move_to_another_partition_among_others_that_stay_are_paired_with_themselves(db: Connection, counter: Counter) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (10)")
    db.execute("CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (10) TO (20)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    db.execute("INSERT INTO docs SELECT n, 't', 'body ' || n FROM generate_series(0, 9) AS n")
    db.execute("SELECT nv_embed.configure(%s)", [counter.address])
    db.execute(
        "UPDATE docs SET id = CASE id % 2 WHEN 0 THEN id + 10 ELSE id END,"
        " body = CASE id WHEN 2 THEN 'moved' WHEN 3 THEN 'stayed' WHEN 8 THEN 'body 1' ELSE body END"
    )
    assert db.execute("SELECT count(*) FROM docs_2").fetchall() == [(5,)]
    assert sorted(text for page in counter.pages for text in page) == ["t: body 1", "t: moved", "t: stayed"]
    assert fresh(db) == 10


def test_dropping_the_declaration_keeps_the_vectors_unless_told_otherwise(docs: Connection) -> None:
    docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    docs.execute("SELECT nv_embed.drop_auto_embed('docs')")
    docs.execute("INSERT INTO docs VALUES (2, 'c', 'd')")
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NOT NULL").fetchall() == [(1,)]
    docs.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    assert fresh(docs) == 2
    docs.execute("SELECT nv_embed.drop_auto_embed('docs', keep_vectors => false)")
    assert one(docs, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attname = 'embedding'") == 0
    assert one(docs, "SELECT count(*) FROM nv_embed.generation") == 0


@BOTH
@pytest.mark.parametrize(
    ("setup", "call", "sqlstate", "says"),
    [
        ("CREATE TABLE t (body text)", "'t', '{body}'", "42P16", "no primary key"),
        ("CREATE VIEW t AS SELECT 1 AS id, 'x' AS body", "'t', '{body}'", "42809", "not a table"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{bodi}'", "42703", "no column bodi"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', 'body'", "22023", "names no column"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{body'", "22023", "single brace"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', NULL", "22004", "source is null"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "NULL, '{body}'", "22004", "relation is null"),
        ("CREATE TABLE t (id int PRIMARY KEY, embedding text)", "'t', '{embedding}'", "22023", "the source column embedding holds vectors"),
        (
            "CREATE TABLE t (id int PRIMARY KEY, embedding halfvec(384), size text GENERATED ALWAYS AS (vector_dims(embedding)::text) STORED)",
            "'t', '{size}', dim => 384",
            "22023",
            "the source column size is generated from vectors, those of embedding",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY, body text); SELECT nv_embed.auto_embed('t', '{body}', dim => 384)",
            "'t', '{body} {embedding}', target => 'other', dim => 384",
            "22023",
            "the source column embedding holds vectors",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY, body text, later halfvec(384)); SELECT nv_embed.auto_embed('t', '{body} {later}', dim => 384)",
            "'t', '{body}', target => 'later', dim => 384",
            "22023",
            "column later is what embedding is embedded from",
        ),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{body}', dim => 100", "22023", "100"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{body}', model => 'gpt-9'", "42704", "gpt-9"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{body}', mode => 'later'", "22023", "mode 'later' is unknown"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{body}', mode => 'later'", "22023", "'later' is unknown"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{body}', storage => 'bit'", "22023", "storage 'bit' is unknown"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text)", "'t', '{body}', truncate => 'MIDDLE'", "22023", "truncate 'MIDDLE' is unknown"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text, embedding text)", "'t', '{body}'", "42804", "is a pg_catalog.text"),
        ("CREATE TABLE t (id int PRIMARY KEY, body text, embedding halfvec(512))", "'t', '{body}', dim => 384", "42804", "halfvec(512)"),
        (
            "CREATE TABLE p (id int PRIMARY KEY, body text) PARTITION BY RANGE (id); CREATE TABLE t PARTITION OF p FOR VALUES FROM (0) TO (9)",
            "'t', '{body}'",
            "0A000",
            "public.t is a partition",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY, body text); CREATE TABLE heir () INHERITS (t)",
            "'t', '{body}'",
            "0A000",
            "other tables inherit from public.t",
        ),
        ("CREATE TABLE t (id int[] PRIMARY KEY, body text)", "'t', '{body}'", "0A000", "contains an array"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_with_a_reason(db: Connection, setup: str, call: str, sqlstate: str, says: str) -> None:
    db.execute(setup)
    declared = one(db, "SELECT count(*) FROM nv_embed.embedding")
    with pytest.raises(psycopg.Error) as raised, db.transaction():
        db.execute(f"SELECT nv_embed.auto_embed({call})")
    assert raised.value.sqlstate == sqlstate
    assert says in (raised.value.diag.message_primary or "")
    assert one(db, "SELECT count(*) FROM nv_embed.embedding") == declared


@BOTH
def test_a_second_declaration_of_the_same_target_is_refused(docs: Connection) -> None:
    with pytest.raises(psycopg.Error) as raised:
        docs.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    assert raised.value.sqlstate == "42710"


def test_braces_in_a_template_are_doubled(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{{{body}}} 100% it''s', dim => 384)")
    db.execute("INSERT INTO docs VALUES (1, 'x')")
    stored, expected = one(db, "SELECT embedding::text FROM docs"), one(db, "SELECT nv_embed(%s, 384)", ["{x} 100% it's"])
    assert cosine(parsed(stored), parsed(expected)) > 0.9999


@BOTH
def test_a_column_that_is_gone_is_named_in_the_error(docs: Connection) -> None:
    docs.execute("ALTER TABLE docs DROP COLUMN embedding")
    with pytest.raises(psycopg.Error) as raised:
        docs.execute("INSERT INTO docs VALUES (1, 'a', 'b')")
    assert raised.value.sqlstate == "42703"
    assert "drop_auto_embed" in (raised.value.diag.message_hint or "")


def test_a_concurrent_change_during_refresh_never_gets_the_old_texts_vector(connect: Callable[..., Connection], client: Client) -> None:
    first, second = connect(), connect()
    first.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text, embedding halfvec(384))")
    first.execute("INSERT INTO docs SELECT n, 't', 'old ' || n FROM generate_series(1, 1500) AS n")
    first.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    # The second session changes a row and holds it; refresh has read the old text and waits for the row.
    second.execute("BEGIN; UPDATE docs SET body = 'new' WHERE id = 700")
    with connect().cursor() as waiting:
        done = threading.Thread(target=waiting.execute, args=["SELECT nv_embed.refresh('docs')"])
        done.start()
        while not one(first, "SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass
        second.execute("COMMIT")
        done.join()
    assert fresh(first) == 1500
