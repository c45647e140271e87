"""
nv_search() over pieces: each row once, with the best of its pieces.
"""

import pytest
from chunks import embed
from conftest import Connection
from installs import BOTH, EXTENSION
from vectors import one, question

from nv_embed.client import Client

pytestmark = BOTH


@pytest.fixture
def book(db: Connection, client: Client) -> Connection:
    db.execute("CREATE TABLE book (id int PRIMARY KEY, body text, lang text DEFAULT 'en')")
    db.execute("SELECT nv_embed.auto_embed('book', '{body}', dim => 384, chunk_tokens => 12)")
    filler = "nothing of interest is written in this part of the long book at all "
    db.execute(
        "INSERT INTO book VALUES (1, %s), (2, %s), (3, %s)",
        [
            filler * 3 + "the dynamo was built by an instrument maker " + filler * 3,
            "bread rises because yeast makes gas " + filler * 2 + "dynamo engines hum",
            filler * 6,
        ],
    )
    embed(db, client, 12, 0)
    return db


def test_a_search_finds_each_row_once_with_its_best_piece(book: Connection, client: Client) -> None:
    asked = question(client, "who built the dynamo")
    rows = book.execute(
        "SELECT (hit).id, score, seq, start_char, end_char, content, (hit).body FROM nv_search(NULL::book, %s::vector, k => 10)", [asked]
    ).fetchall()
    assert sorted(key for key, *_ in rows) == [1, 2, 3]
    assert [score for _, score, *_ in rows] == sorted((score for _, score, *_ in rows), reverse=True)
    for key, score, seq, start, end, content, body in rows:
        assert content == body[start:end]
        best = book.execute(
            "SELECT seq, 1 - (embedding <=> %s::halfvec) FROM book_embedding_chunk WHERE id = %s ORDER BY 2 DESC", [asked, key]
        ).fetchone()
        assert best is not None
        assert (seq, pytest.approx(score, abs=1e-6)) == (best[0], best[1])
    assert rows[0][0] == 1
    assert "dynamo" in rows[0][5]


def test_a_search_by_a_vector_with_a_filter_keeps_k_rows(book: Connection, client: Client) -> None:
    book.execute("INSERT INTO book SELECT n, repeat('dynamo ', 60), 'de' FROM generate_series(10, 30) AS n")
    embed(book, client, 12, 0)
    asked = question(client, "dynamo")
    found = book.execute("SELECT (hit).id FROM nv_search(NULL::book, %s::vector, k => 2, filter => $$lang = 'en' AND id > 0$$)", [asked]).fetchall()
    assert len(found) == 2
    assert {key for (key,) in found} <= {1, 2, 3}
    assert one(book, "SELECT count(*) FROM nv_search(NULL::book, %s::vector, k => 0)", [asked]) == 0


def test_a_search_reads_an_index_of_the_chunk_table(book: Connection, client: Client) -> None:
    book.execute(
        "INSERT INTO book SELECT n, string_agg('w' || n || 'x' || m, ' ') FROM generate_series(10, 400) AS n, generate_series(1, 30) AS m GROUP BY n"
    )
    embed(book, client, 12, 0)
    book.execute("CREATE INDEX ON book_embedding_chunk USING hnsw (embedding halfvec_cosine_ops)")
    asked = question(client, "who built the dynamo")
    plan = book.execute("SELECT nv_embed.explain_search(NULL::book, %s::vector, k => 5)", [asked]).fetchall()
    assert any("Index Scan using book_embedding_chunk_embedding_idx" in line for (line,) in plan)
    assert one(book, "SELECT count(*) FROM nv_search(NULL::book, %s::vector, k => 5)", [asked]) == 5


@EXTENSION
def test_a_search_in_words_gives_the_piece_too(book: Connection) -> None:
    rows = book.execute("SELECT (hit).id, content FROM nv_search(NULL::book, 'who built the dynamo', k => 1)").fetchall()
    assert [key for key, _ in rows] == [1]
    assert "dynamo" in rows[0][1]
