"""
nv_embed(), nv_embed_query(), nv_count_tokens() and nv_chunk() against a real sidecar.
"""

import itertools
import math
from collections.abc import Callable

import numpy
import psycopg
import pytest
from conftest import Connection
from counting import Counter
from vectors import cosine, one, parsed

from nv_embed.client import PAGE_TEXTS, Client


def test_a_text_becomes_a_unit_vector_of_the_dimension_asked_for(db: Connection) -> None:
    vector = parsed(one(db, "SELECT nv_embed('hello', 384)"))
    assert vector is not None
    assert vector.shape == (384,)
    assert abs(numpy.linalg.norm(vector) - 1) < 1e-3


def test_no_dimension_means_the_native_width(db: Connection) -> None:
    assert one(db, "SELECT vector_dims(nv_embed('hello'))") == 2048


def test_sql_returns_bit_for_bit_what_the_client_gets(db: Connection, client: Client) -> None:
    texts = ["the first dynamo", "naïve café 東京 🌍", "a\ttab and a\nline"]
    direct = client.embed(texts, dim=512)
    for text, expected in zip(texts, direct, strict=True):
        found = parsed(one(db, "SELECT nv_embed(%s, 512)", [text]))
        assert found is not None
        assert numpy.array_equal(found.astype(numpy.float32), expected)


def test_an_array_keeps_its_order_and_its_nulls(db: Connection) -> None:
    texts = [None, *[f"text number {n}" for n in range(1000)], None]
    vectors = one(db, "SELECT nv_embed(%s::text[], 384)::text[]", [texts])
    assert len(vectors) == 1002
    assert vectors[0] is None
    assert vectors[-1] is None
    for n in (0, 255, 256, 999):
        single = parsed(one(db, "SELECT nv_embed(%s, 384)", [f"text number {n}"]))
        assert cosine(parsed(vectors[n + 1]), single) > 1 - 1e-6


def test_an_empty_array_gives_an_empty_array(db: Connection) -> None:
    assert one(db, "SELECT nv_embed(ARRAY[]::text[])::text[]") == []


def test_an_array_of_nulls_gives_nulls(db: Connection) -> None:
    assert one(db, "SELECT nv_embed(ARRAY[NULL, NULL]::text[])::text[]") == [None, None]


@pytest.mark.parametrize("call", ["nv_embed(NULL::text)", "nv_embed(NULL::text[])", "nv_embed_query(NULL)", "nv_count_tokens(NULL)"])
def test_null_in_gives_null_out(db: Connection, call: str) -> None:
    assert one(db, f"SELECT {call} IS NULL") is True


def test_a_query_is_embedded_with_the_prompt_for_queries(db: Connection, client: Client) -> None:
    expected = client.embed(["what is a dynamo"], input_type="query")[0]
    found = parsed(one(db, "SELECT nv_embed_query('what is a dynamo')"))
    assert cosine(found, expected) > 1 - 1e-6
    passage = parsed(one(db, "SELECT nv_embed('what is a dynamo')"))
    assert cosine(found, passage) < 1 - 1e-3


def test_order_by_a_question_uses_the_index_and_asks_once(connect: Callable[..., Connection], counter: Counter) -> None:
    db = connect()
    db.execute("CREATE TABLE v AS SELECT n AS id, nv_embed('number ' || n, 384)::vector(384) AS e FROM generate_series(1, 20) AS n")
    db.execute("CREATE INDEX v_hnsw ON v USING hnsw (e vector_cosine_ops)")
    db.execute("SELECT nv_embed.configure(%s)", [counter.address])
    query = "SELECT id FROM v ORDER BY e <=> nv_embed_query('which is number 7', 384) LIMIT 3"
    by_sorting = db.execute(query).fetchall()
    db.execute("SET enable_seqscan = off")
    assert any("v_hnsw" in line for (line,) in db.execute("EXPLAIN " + query))
    assert db.execute(query).fetchall() == by_sorting
    assert counter.pages == [["which is number 7"]]


def test_a_thousand_texts_are_a_few_pages(db: Connection, counter: Counter) -> None:
    db.execute("SELECT nv_embed.configure(%s)", [counter.address])
    texts = [f"text {n}" for n in range(1000)]
    assert one(db, "SELECT cardinality(nv_embed(%s::text[], 384))", [texts]) == 1000
    assert len(counter.pages) == math.ceil(1000 / PAGE_TEXTS)
    assert sorted(text for page in counter.pages for text in page) == sorted(texts)


@pytest.mark.parametrize(
    ("call", "sqlstate", "says"),
    [
        ("nv_embed('x', 100)", "22023", "2048, 1024, 768, 512, 384"),
        ("nv_embed('x', 0)", "22023", "0 is not a number of dimensions"),
        ("nv_embed('x', -1)", "22023", "-1 is not a number of dimensions"),
        ("nv_embed('x', model => 'gpt-9')", "42704", "gpt-9"),
        ("nv_embed('x', input_type => 'document')", "22023", "input_type 'document' is unknown"),
        ("nv_embed('x', truncate => 'MIDDLE')", "22023", "truncate 'MIDDLE' is unknown"),
        ("nv_embed(repeat('word ', 9000))", "22023", "8192"),
        ("nv_embed(repeat('x', 20 * 1024 * 1024))", "22023", "20,971,520 bytes exceed the limit of 4,194,304 bytes"),
        ("nv_embed(ARRAY['fine', NULL, repeat('word ', 9000)])", "22023", "text 3: "),
        ("nv_embed(ARRAY[['a'], ['b']])", "22023", "more than one dimension"),
        ("nv_chunk('some text', 0)", "22023", "max_tokens is 0"),
        ("nv_chunk('some text', 10, 10)", "22023", "overlap 10"),
        ("nv_chunk('some text', NULL)", "22023", "max_tokens is null"),
    ],
)
def test_bad_input_is_one_readable_error_and_the_session_goes_on(db: Connection, call: str, sqlstate: str, says: str) -> None:
    with db.transaction():
        with pytest.raises(psycopg.Error) as raised, db.transaction():
            db.execute(f"SELECT {call}")
        assert raised.value.sqlstate == sqlstate
        assert raised.value.diag.message_primary is not None
        assert says in raised.value.diag.message_primary + (raised.value.diag.message_hint or "")
        assert "\n" not in raised.value.diag.message_primary
        assert raised.value.diag.message_hint
        assert one(db, "SELECT vector_dims(nv_embed('still here', 384))") == 384


def test_an_overlong_text_may_be_cut_at_either_end(db: Connection) -> None:
    long = "start " + "word " * 9000 + "end"
    kept_start = parsed(one(db, "SELECT nv_embed(%s, 384, truncate => 'END')", [long]))
    kept_end = parsed(one(db, "SELECT nv_embed(%s, 384, truncate => 'START')", [long]))
    assert cosine(kept_start, kept_end) < 1 - 1e-9


def test_tokens_are_counted_as_the_model_sees_them(db: Connection, client: Client) -> None:
    assert one(db, "SELECT nv_count_tokens('one two three')") == client.count_tokens(["one two three"])[0]


def test_chunks_fit_cover_the_text_and_name_their_characters(db: Connection) -> None:
    text = "Überall sind Wörter. " * 200
    rows = db.execute("SELECT seq, start_char, end_char, content, nv_count_tokens(content) FROM nv_chunk(%s, 50, 10)", [text]).fetchall()
    assert len(rows) > 4
    assert [row[0] for row in rows] == list(range(len(rows)))
    assert all(text[start:end] == content and tokens <= 50 for _, start, end, content, tokens in rows)
    assert rows[0][1] == 0
    assert rows[-1][2] >= len(text.rstrip())
    assert all(later[1] < earlier[2] for earlier, later in itertools.pairwise(rows))


def test_models_tell_their_dimensions_and_limits(db: Connection) -> None:
    row = db.execute("SELECT name, native_dim, trained_dims, declared_dims, max_tokens, is_default FROM nv_embed.models()").fetchone()
    assert row == ("fake", 2048, [2048, 1024, 768, 512, 384], [], 8192, True)


def test_health_answers(db: Connection) -> None:
    row = db.execute("SELECT serving, message FROM nv_embed.health()").fetchone()
    assert row == (True, "SERVING")


def test_truncating_equals_embedding_at_the_smaller_dimension(db: Connection) -> None:
    for dim in (1024, 768, 512, 384):
        shorter = parsed(one(db, "SELECT nv_truncate(nv_embed('a text'), %s)", [dim]))
        direct = parsed(one(db, "SELECT nv_embed('a text', %s)", [dim]))
        assert numpy.allclose(shorter, direct, atol=1e-6)
        half = parsed(one(db, "SELECT nv_truncate(nv_embed('a text')::halfvec, %s)", [dim]))
        assert cosine(half, direct) > 0.9999


@pytest.mark.parametrize("dim", ["0", "4", "-1", "NULL"])
def test_truncating_to_no_width_of_the_vector_is_an_error(db: Connection, dim: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        db.execute(f"SELECT nv_truncate('[1,2,3]'::vector, {dim})")
    assert raised.value.sqlstate == "22023"


def test_a_truncated_vector_can_be_indexed(db: Connection) -> None:
    db.execute("CREATE TABLE v (e vector(2048))")
    db.execute("CREATE INDEX v_short ON v USING hnsw ((nv_truncate(e, 384)::vector(384)) vector_cosine_ops)")
    db.execute("SET LOCAL enable_seqscan = off")
    plan = db.execute("EXPLAIN SELECT 1 FROM v ORDER BY nv_truncate(e, 384)::vector(384) <=> nv_embed_query('q', 384) LIMIT 1").fetchall()
    assert any("v_short" in line for (line,) in plan)
