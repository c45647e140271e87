"""
nv_hybrid_search(): rows by meaning and by words, fused by their ranks.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from conftest import Connection
from installs import BOTH, EXTENSION, LIBRARY
from vectors import one, question

from nv_embed.client import Client

pytestmark = BOTH

TEXTS = {
    1: ("Dynamo", "the dynamo was built by a clever instrument maker"),
    2: ("Bread", "bread rises because yeast makes gas"),
    3: ("Violin", "a violin has four strings"),
    4: ("Dough", "yeast and flour and water"),
    5: ("Numbers", "part number AX-4711 is made of steel"),
    6: ("Numbers", "part number AX-4712 is made of steel"),
}


@pytest.fixture
def docs(db: Connection, client: Client) -> Connection:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title varchar(80), body text, lang text DEFAULT 'en')")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384, mode => 'off')")
    for key, (title, body) in TEXTS.items():
        vector = client.embed([f"{title}: {body}"], dim=384)[0].tolist()
        db.execute("INSERT INTO docs (id, title, body, embedding) VALUES (%s, %s, %s, %s)", [key, title, body, str(vector)])
    return db


def search(db: Connection, client: Client, query: str, arguments: str = "") -> list[tuple[Any, ...]]:
    return db.execute(
        f"SELECT (hit).id, score, dense_rank, text_rank FROM nv_hybrid_search(NULL::docs, %s, embedding => %s{arguments})",
        [query, question(client, query)],
    ).fetchall()


def test_the_score_is_the_sum_of_reciprocal_ranks_in_both_lists(docs: Connection, client: Client) -> None:
    asked = "yeast in flour"
    rows = search(docs, client, asked, ", rrf_k => 10")
    dense = [key for (key,) in docs.execute("SELECT (hit).id FROM nv_search(NULL::docs, %s::vector, k => 40)", [question(client, asked)])]
    read = "SELECT id, to_tsvector('english', title || ': ' || body) AS d, to_tsquery('english', 'yeast | flour') AS q FROM docs"
    words = [key for (key,) in docs.execute(f"SELECT id FROM ({read}) AS s WHERE d @@ q ORDER BY ts_rank(d, q, 1) DESC, id")]
    assert {key for key, *_ in rows} == {*dense, *words}
    for key, score, dense_rank, text_rank in rows:
        assert dense_rank == (dense.index(key) + 1 if key in dense else None)
        assert text_rank == (words.index(key) + 1 if key in words else None)
        assert score == pytest.approx(sum(1 / (10 + rank) for rank in (dense_rank, text_rank) if rank is not None))
    assert rows == sorted(rows, key=lambda row: (-row[1], row[0]))
    assert rows[0][0] == 4


def test_a_word_that_no_vector_knows_is_found(docs: Connection, client: Client) -> None:
    assert search(docs, client, "AX-4712", ", k => 1")[0][0] == 6


def test_a_row_without_a_vector_is_found_by_its_words(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs VALUES (7, 'New', 'the zymurgist waits for a vector')")
    assert (7, None, 1) in [(key, dense, text) for key, _, dense, text in search(docs, client, "zymurgist")]


def test_words_of_any_kind_are_data(docs: Connection, client: Client) -> None:
    for query in ("it's \\ | & ! <-> ( ' :*", "", "the of and", "'); DROP TABLE docs; --", "a:b & c | !d <2> e"):
        assert len(search(docs, client, query + " violin", ", k => 2")) == 2
        assert len(docs.execute("SELECT * FROM nv_hybrid_search(NULL::docs, %s, embedding => %s)", [query, question(client, "x")]).fetchall()) == 6
    assert one(docs, "SELECT count(*) FROM docs") == 6


def test_a_filter_holds_for_both_lists_and_may_name_the_table(docs: Connection, client: Client) -> None:
    docs.execute("UPDATE docs SET lang = 'de' WHERE id IN (2, 6)")
    assert {key for key, *_ in search(docs, client, "part of bread", ", filter => 'docs.lang = ''de'' -- only'")} == {2, 6}
    assert search(docs, client, "bread", ", filter => 'lang = ''xx'''") == []


def test_a_filter_means_the_tables_that_it_names(docs: Connection, client: Client) -> None:
    for name in ("dense", "matched", "fused", "d", "m", "s", "f"):
        docs.execute(f"CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} VALUES (2)")
        assert [key for key, *_ in search(docs, client, "yeast", f", filter => 'id IN (SELECT id FROM {name})'")] == [2]
        assert [key for key, *_ in search(docs, client, "yeast", f", filter => 'EXISTS (SELECT FROM {name} WHERE {name}.id = docs.id)'")] == [2]


def test_more_rows_than_there_can_be_are_all(docs: Connection, client: Client) -> None:
    assert len(search(docs, client, "yeast", ", k => 2147483647, oversample => 10000")) == 6


def test_the_configuration_is_the_one_of_the_index_unless_it_is_named(docs: Connection, client: Client) -> None:
    docs.execute("SET default_text_search_config = 'simple'")
    assert [text for key, _, _, text in search(docs, client, "violins") if key == 3] == [None]
    assert [text for key, _, _, text in search(docs, client, "violins", ", config => 'english'") if key == 3] == [1]
    docs.execute("CREATE INDEX ON docs USING gin (to_tsvector('english', lang))")  # of another column: it says nothing
    assert [text for key, _, _, text in search(docs, client, "violins") if key == 3] == [None]
    docs.execute(one(docs, "SELECT nv_embed.create_text_index_sql('docs', config => 'english', concurrently => false)"))
    assert [text for key, _, _, text in search(docs, client, "violins") if key == 3] == [1]


def test_a_text_index_is_used(docs: Connection, client: Client) -> None:
    docs.execute(one(docs, "SELECT nv_embed.create_text_index_sql('docs', config => 'english', concurrently => false)"))
    docs.execute("SET LOCAL enable_seqscan = off")
    scans = "SELECT pg_stat_get_xact_numscans(indexrelid) FROM pg_index WHERE indrelid = 'docs'::regclass AND NOT indisprimary"
    search(docs, client, "violins")
    assert one(docs, scans) >= 2


def test_a_column_of_ones_own_can_hold_the_words(docs: Connection, client: Client) -> None:
    docs.execute("ALTER TABLE docs ADD COLUMN words tsvector GENERATED ALWAYS AS (to_tsvector('simple', body)) STORED")
    assert [text for key, _, _, text in search(docs, client, "Numbers", ", document => 'words', config => 'simple'") if text] == []
    assert [key for key, _, _, text in search(docs, client, "violin", ", document => 'words -- mine', config => 'simple'") if text] == [3]


def test_where_enough_rows_have_all_the_words_those_with_some_are_not_ranked(docs: Connection, client: Client) -> None:
    docs.execute("INSERT INTO docs SELECT n, 'x', 'part number of steel' FROM generate_series(10, 60) AS n")
    docs.execute("INSERT INTO docs VALUES (70, 'steel', 'steel steel steel')")
    assert 70 in [key for key, *_, text in search(docs, client, "steel violin", ", k => 100") if text]
    found = search(docs, client, "steel part number", ", k => 10")
    assert {key for key, *_, text in found if text} <= {5, 6, *range(10, 61)}
    assert [text for *_, text in search(docs, client, "steel violin", ", k => 100") if text]


@EXTENSION
def test_the_question_is_embedded_by_the_live_model(docs: Connection) -> None:
    rows = docs.execute("SELECT (hit).id FROM nv_hybrid_search(NULL::docs, 'who built the dynamo', k => 1)").fetchall()
    assert rows == [(1,)]


@LIBRARY
def test_without_plpython_the_vector_is_asked_for(docs: Connection) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="has no PL/Python"):
        docs.execute("SELECT * FROM nv_hybrid_search(NULL::docs, 'dynamo')")


@pytest.mark.parametrize(
    ("arguments", "sqlstate", "says"),
    [
        ("'x', k => -1", "22023", "k is -1"),
        ("'x', rrf_k => -1", "22023", "rrf_k is -1"),
        ("'x', rrf_k => NULL", "22023", "rrf_k is null"),
        ("'x', oversample => 0", "22023", "oversample is 0"),
        ("NULL", "22004", "query is null"),
        ("'x', target => 'other'", "42704", "not auto-embedded"),
        ("'x', config => 'klingon'", "42704", "klingon"),
        ("'x', dim => 128", "22023", "was not trained for 128"),
        ("'x', document => 'id'", "42883", "operator does not exist"),
    ],
)
def test_a_search_that_cannot_work_says_why(docs: Connection, client: Client, arguments: str, sqlstate: str, says: str) -> None:
    with pytest.raises(psycopg.Error) as raised, docs.transaction():
        docs.execute(f"SELECT * FROM nv_hybrid_search(NULL::docs, {arguments}, embedding => '{question(client, 'x')}')")
    assert (raised.value.sqlstate, says in str(raised.value)) == (sqlstate, True)


def test_k_of_zero_and_an_empty_table_find_nothing(docs: Connection, client: Client) -> None:
    assert search(docs, client, "yeast", ", k => 0") == []
    docs.execute("TRUNCATE docs")
    assert search(docs, client, "yeast") == []


def test_rows_of_others_are_not_found_told_or_counted(connect: Callable[..., Connection], client: Client) -> None:
    owner, caller = connect(), connect("app")
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, tenant text); GRANT SELECT ON docs TO app")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'off')")
    vector = str(client.embed(["secret yeast"], dim=384)[0].tolist())
    owner.execute(
        "INSERT INTO docs SELECT n, 'secret yeast', CASE WHEN n <= 3 THEN 'app' ELSE 'other' END, %s FROM generate_series(1, 60) AS n", [vector]
    )
    owner.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON docs USING (tenant = current_user)")
    owner.execute(one(owner, "SELECT nv_embed.create_text_index_sql('docs', config => 'english', concurrently => false)"))
    owner.execute(one(owner, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
    for query, arguments in (("yeast", ""), ("yeast", ", k => 60"), ("nothing", ", filter => 'body IS NOT NULL'")):
        rows = search(caller, client, query, arguments)
        assert [key for key, *_ in rows] == [1, 2, 3]
        assert {rank for _, _, dense, text in rows for rank in (dense, text) if rank} <= {1, 2, 3}
    with pytest.raises(psycopg.Error) as raised:
        search(caller, client, "yeast", ", filter => '(body || id || tenant)::int > 0'")
    assert "app" in str(raised.value)
    assert "other" not in str(raised.value)
    assert len(search(owner, client, "yeast", ", k => 100")) == 60
