"""
Keys of many types: rows are found by the index of their primary key.
"""

import pytest
from conftest import Connection
from installs import BOTH
from vectors import one

pytestmark = BOTH

TYPES = (
    "int",
    "text",
    'text COLLATE "C"',
    'text COLLATE "de-x-icu"',
    "varchar(40)",
    "char(40)",
    "numeric(10, 2)",
    "timestamptz(3)",
    "cidr",
    "regclass",
    "mood",
    "code",
    "short_code",
)


@pytest.mark.parametrize("type", TYPES)
def test_rows_are_found_by_the_index_of_their_key(db: Connection, type: str) -> None:
    db.execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN code AS text; CREATE DOMAIN short_code AS varchar(20) COLLATE \"de-x-icu\"")
    db.execute(f"CREATE TABLE docs (id {type} PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    generation = one(db, "SELECT id FROM nv_embed.generation")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', 'pieces', dim => 384, mode => 'async', chunk_tokens => 20)")
    db.execute("PREPARE lock_step (bigint, text, bigint) AS " + one(db, "SELECT nv_embed.lock_step_sql(%s, true)", [generation]))
    db.execute("PREPARE read (text[], int) AS " + one(db, "SELECT nv_embed.read_sql(%s)", [generation]))
    same_key = one(db, "SELECT nv_embed.same_key_sql('docs', 't', 'c')")
    # Where no index can be used, there is nothing else to be had for it.
    for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin"):
        db.execute(f"SET LOCAL enable_{way} = off")
    for statement in (
        "EXECUTE lock_step (1, NULL, 10)",
        "EXECUTE read (ARRAY['a'], 1)",
        f"SELECT FROM docs AS t JOIN docs_pieces_chunk AS c ON {same_key}",
    ):
        plan = [line for (line,) in db.execute(f"EXPLAIN (COSTS OFF) {statement}").fetchall()]
        assert any("Index Cond" in line for line in plan), plan
