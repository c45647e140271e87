"""
nv_search(): rows by meaning, with the caller's rights.
"""

from collections.abc import Callable

import psycopg
import pytest
from conftest import Connection
from installs import BOTH, EXTENSION, LIBRARY, Install
from vectors import one, question

from nv_embed.client import Client

pytestmark = BOTH

TEXTS = {
    1: "the dynamo was built by a clever instrument maker",
    2: "bread rises because yeast makes gas",
    3: "a violin has four strings",
    4: "yeast and flour and water",
}


@pytest.fixture
def docs(db: Connection, client: Client) -> Connection:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, lang text DEFAULT 'en')")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    for key, body in TEXTS.items():
        db.execute("INSERT INTO docs (id, body, embedding) VALUES (%s, %s, %s)", [key, body, passage(client, body)])
    return db


def passage(client: Client, text: str) -> str:
    return str(client.embed([text], dim=384)[0].tolist())


@EXTENSION
def test_the_nearest_row_comes_first_with_its_cosine_similarity(docs: Connection) -> None:
    rows = docs.execute("SELECT (hit).id, (hit).body, score FROM nv_search(NULL::docs, 'who built the first dynamo?', k => 2)").fetchall()
    assert rows[0][:2] == (1, TEXTS[1])
    assert rows[0][2] > rows[1][2]
    expected = one(docs, "SELECT 1 - (embedding <=> nv_embed_query('who built the first dynamo?', 384)::halfvec) FROM docs WHERE id = 1")
    assert rows[0][2] == pytest.approx(expected, abs=1e-9)


def test_a_vector_can_be_searched_by_too(docs: Connection, client: Client) -> None:
    asked = question(client, "who built the first dynamo?")
    rows = docs.execute("SELECT (hit).id, (hit).body, score FROM nv_search(NULL::docs, %s::vector, k => 2)", [asked]).fetchall()
    assert rows[0][:2] == (1, TEXTS[1])
    assert rows[0][2] > rows[1][2]
    expected = one(docs, "SELECT 1 - (embedding <=> %s::halfvec) FROM docs WHERE id = 1", [asked])
    assert rows[0][2] == pytest.approx(expected, abs=1e-9)


@LIBRARY
def test_without_plpython_a_literal_is_a_vector(docs: Connection, client: Client) -> None:
    assert one(docs, f"SELECT (hit).id FROM nv_search(NULL::docs, '{question(client, 'violin')}', k => 1)") == 3
    with pytest.raises(psycopg.Error, match="invalid input syntax for type vector"):
        docs.execute("SELECT FROM nv_search(NULL::docs, 'violin')")


def test_a_filter_keeps_k_rows_that_pass_it(docs: Connection, client: Client) -> None:
    docs.execute("UPDATE docs SET lang = 'de' WHERE id IN (3, 4)")
    search = "SELECT (hit).id FROM nv_search(NULL::docs, %s::vector, k => 2, filter => $$lang = 'de' -- only german$$)"
    assert docs.execute(search, [question(client, "yeast")]).fetchall() == [(4,), (3,)]


def test_rows_without_a_vector_are_never_found(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (5, '')")
    assert one(docs, "SELECT count(*) FROM nv_search(NULL::docs, %s::vector, k => 100)", [question(client, "yeast")]) == 4


def test_k_of_zero_finds_nothing_and_an_empty_table_is_fine(docs: Connection, client: Client) -> None:
    asked = question(client, "yeast")
    assert one(docs, "SELECT count(*) FROM nv_search(NULL::docs, %s::vector, k => 0)", [asked]) == 0
    docs.execute("TRUNCATE docs")
    assert one(docs, "SELECT count(*) FROM nv_search(NULL::docs, %s::vector)", [asked]) == 0


@pytest.mark.parametrize(
    ("call", "sqlstate", "says"),
    [
        ("nv_search(NULL::docs, {x}, k => -1)", "22023", "k is -1"),
        ("nv_search(NULL::docs, {x}, k => NULL)", "22023", "k is null"),
        ("nv_search(NULL::int, {x})", "22023", "needs a row of a table"),
        ("nv_search(NULL::docs, {x}, target => 'other')", "42704", "not auto-embedded"),
        ("nv_search(NULL::plain, {x})", "42704", "not auto-embedded"),
        ("nv_search(NULL::docs, {x}, k => 1, oversample => 0.5)", "22023", "oversample is 0.5"),
        ("nv_search(NULL::docs, {x}, k => 1, oversample => 'NaN')", "22023", "oversample is NaN"),
        ("nv_search(NULL::docs, {x}, rescore => NULL)", "22023", "rescore is null"),
        ("nv_search(NULL::docs, {x}, dim => 128)", "22023", "was not trained for 128 dimensions, but for 2048, 1024, 768, 512, 384"),
        ("nv_search(NULL::docs, {x}, dim => 768)", "22023", "holds 384 dimensions, not 768"),
        ("nv_search(NULL::docs, {x}, dim => 0)", "22023", "holds 384 dimensions, not 0"),
        ("nv_search(NULL::docs, array_fill(0, ARRAY[384])::vector)", "22023", "all zeros"),
        ("nv_search(NULL::docs, '[1,2,3]'::vector)", "22023", "searched by has 3 dimensions, not 384"),
    ],
)
def test_a_search_that_cannot_work_says_why(docs: Connection, install: Install, client: Client, call: str, sqlstate: str, says: str) -> None:
    docs.execute("CREATE TABLE plain (id int)")
    asked = ["'x'", f"'{question(client, 'x')}'::vector"] if install.kind == "extension" else [f"'{question(client, 'x')}'"]
    for x in asked:
        with pytest.raises(psycopg.Error) as raised, docs.transaction():
            docs.execute(f"SELECT * FROM {call.format(x=x)}")
        assert raised.value.sqlstate == sqlstate
        assert says in str(raised.value)


VALUES = "(SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE n IS NOT NULL)"


@pytest.fixture
def indexed(connect: Callable[..., Connection]) -> Connection:
    db = connect()
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    db.execute(f"INSERT INTO docs SELECT n, 'text', {VALUES}::vector::halfvec FROM generate_series(1, 1000) AS n")
    db.execute("CREATE INDEX docs_hnsw ON docs USING hnsw (embedding halfvec_cosine_ops)")
    return db


def test_an_index_gives_k_rows_beyond_its_first_candidates_and_through_a_filter(
    indexed: Connection, connect: Callable[..., Connection], client: Client
) -> None:
    fresh = connect()  # a session in which pgvector is not loaded yet
    fresh.execute("SET enable_seqscan = off; SET enable_sort = off")
    asked = question(client, "text")
    assert one(fresh, "SELECT count(*) FROM nv_search(NULL::docs, %s::vector, k => 100)", [asked]) == 100
    assert one(fresh, "SELECT count(*) FROM nv_search(NULL::docs, %s::vector, k => 5, filter => 'id > 990')", [asked]) == 5


def test_search_and_filter_have_the_callers_rights_only(connect: Callable[..., Connection], client: Client) -> None:
    owner, caller = connect(), connect("app")
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE secret (x int)")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    asked = [question(client, "x")]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        caller.execute("SELECT * FROM nv_search(NULL::docs, %s::vector)", asked)
    owner.execute("GRANT SELECT ON docs TO app")
    assert caller.execute("SELECT * FROM nv_search(NULL::docs, %s::vector)", asked).fetchall() == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        caller.execute("SELECT * FROM nv_search(NULL::docs, %s::vector, filter => 'EXISTS (SELECT FROM secret)')", asked)


def test_row_level_security_holds_in_search(connect: Callable[..., Connection], client: Client) -> None:
    owner, caller = connect(), connect("app")
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, tenant text); GRANT SELECT ON docs TO app")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    owner.execute("INSERT INTO docs VALUES (1, 'yeast', 'app', %(v)s), (2, 'yeast', 'other', %(v)s)", {"v": passage(client, "yeast")})
    owner.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON docs USING (tenant = current_user)")
    asked = [question(client, "yeast")]
    assert caller.execute("SELECT (hit).id FROM nv_search(NULL::docs, %s::vector)", asked).fetchall() == [(1,)]


@EXTENSION
def test_another_revision_of_the_model_is_refused(docs: Connection) -> None:
    docs.execute("UPDATE nv_embed.generation SET revision = 'another'")
    for statement in ("SELECT * FROM nv_search(NULL::docs, 'x')", "INSERT INTO docs VALUES (9, 'text')"):
        with pytest.raises(psycopg.Error) as raised, docs.transaction():
            docs.execute(statement)
        assert raised.value.sqlstate == "42704"
        assert "another" in str(raised.value)
