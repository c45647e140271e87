"""
nv_embed.storage_report(): what vectors cost, as Postgres measures it.
"""

from collections.abc import Callable

import numpy
import psycopg
import pytest
from conftest import Connection
from installs import BOTH, EXTENSION
from vectors import one

pytestmark = EXTENSION  # the statements are the same in both installs: a few tests run on the library too

ROWS, DIM = 300, 2048


def filled(db: Connection, arguments: str = "", partition: str = "") -> None:
    db.execute(f"CREATE TABLE docs (id int PRIMARY KEY, body text) {partition}")
    if partition:
        db.execute(
            "CREATE TABLE docs_a PARTITION OF docs FOR VALUES FROM (0) TO (100); CREATE TABLE docs_b PARTITION OF docs FOR VALUES FROM (100) TO (300)"
        )
    db.execute(f"SELECT nv_embed.auto_embed('docs', '{{body}}', dim => {DIM}, mode => 'off'{arguments})")
    random = numpy.random.default_rng(5)
    table = "docs_embedding_chunk (id, seq, start_char, end_char" if arguments else "docs (id, body"
    if arguments:
        db.execute(f"INSERT INTO docs SELECT n, 'x' FROM generate_series(0, {ROWS // 3 - 1}) AS n")
    for number in range(ROWS):
        vector = str(random.standard_normal(DIM).astype(numpy.float16).tolist())
        values = (number // 3, number % 3, 0, 1, vector) if arguments else (number, "text", vector)
        db.execute(f"INSERT INTO {table}, embedding) VALUES ({', '.join(['%s'] * len(values))})", values)


def report(db: Connection) -> dict[tuple[str, int | None, str | None], tuple[int, float, float | None]]:
    rows = db.execute("SELECT part, dim, storage, bytes, bytes_per_row, times_smaller FROM nv_embed.storage_report('docs')").fetchall()
    return {(part, dim, storage): (size, float(a_row), None if times is None else float(times)) for part, dim, storage, size, a_row, times in rows}


@pytest.mark.parametrize("partition", ["", "PARTITION BY RANGE (id)"])
def test_the_parts_are_what_postgres_says_of_their_size(db: Connection, partition: str) -> None:
    filled(db, partition=partition)
    for arguments in ("dim => 384", "storage => 'bit'"):
        db.execute(one(db, f"SELECT nv_embed.create_index_sql('docs', {arguments}, concurrently => false)"))
    found = report(db)
    leaves = "SELECT coalesce(t.relid, 'docs') FROM (SELECT 1) AS s LEFT JOIN pg_partition_tree('docs') AS t ON t.isleaf"
    assert found["total", None, None][0] == one(db, f"SELECT sum(pg_total_relation_size(r)) FROM ({leaves}) AS s (r)")
    assert found["table", None, None][0] + found["toast", None, None][0] == one(db, f"SELECT sum(pg_table_size(r)) FROM ({leaves}) AS s (r)")
    for dim, storage in ((384, "halfvec"), (2048, "bit")):
        size = one(db, "SELECT bytes FROM nv_embed.vector_indexes('docs') WHERE dim = %s AND storage = %s", [dim, storage])
        assert found["index", dim, storage][0] == size
    assert found["total", None, None][1] == pytest.approx(found["total", None, None][0] / ROWS, abs=0.1)


@BOTH
def test_vectors_of_other_dims_and_types_are_measured_too(db: Connection) -> None:
    filled(db)
    found = report(db)
    assert found["vectors", 2048, "halfvec"] == (one(db, "SELECT sum(pg_column_size(embedding)) FROM docs"), 4100.0, 2.0)
    assert found["possible vectors", 2048, "vector"][2] == 1.0
    expected = one(db, "SELECT sum(pg_column_size(subvector(embedding, 1, 384)::halfvec(384))) FROM docs")
    assert found["possible vectors", 384, "halfvec"][0] == expected
    assert found["possible vectors", 384, "halfvec"][2] == pytest.approx(8200 / (expected / ROWS), abs=0.1)
    assert {dim for part, dim, _ in found if part == "possible vectors"} == {2048, 1024, 768, 512, 384}


def test_pieces_are_counted_to_their_rows(db: Connection) -> None:
    filled(db, ", chunk_tokens => 12")
    found = report(db)
    assert found["vectors", 2048, "halfvec"][:2] == (4100 * ROWS, 4100 * 3)
    assert found["total", None, None][0] == one(db, "SELECT pg_total_relation_size('docs_embedding_chunk')")


def test_an_empty_table_has_a_report(db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', mode => 'off')")
    assert db.execute("SELECT part, bytes, bytes_per_row FROM nv_embed.storage_report('docs') WHERE part = 'total'").fetchall() == [
        ("total", one(db, "SELECT pg_total_relation_size('docs')"), None)
    ]


def test_only_the_owner_is_told(connect: Callable[..., Connection]) -> None:
    owner, caller = connect(), connect("app")
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); GRANT SELECT ON docs TO app")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', mode => 'off')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner"):
        caller.execute("SELECT * FROM nv_embed.storage_report('docs')")
