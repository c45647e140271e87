"""
The extension in other schemas than public, and made anew in a living session.
"""

from collections.abc import Iterator

import pytest
from conftest import Connection
from servers import Sidecar
from vectors import one

from nv_embed.cluster import Cluster


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[Connection]:
    """A superuser's connection to a database without the extension."""
    cluster.create_database("empty")
    with cluster.connect("empty") as connection:
        yield connection
    with cluster.connect() as connection:
        connection.execute("DROP DATABASE empty WITH (FORCE)")


def use(db: Connection, schema: str) -> None:
    """The whole path, with a search_path that sees none of the extension's schemas."""
    db.execute("SET search_path = pg_catalog")
    db.execute("CREATE TABLE public.docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('public.docs', '{body}', dim => 768)")
    db.execute("INSERT INTO public.docs VALUES (1, 'yeast and flour'), (2, 'a violin')")
    db.execute("UPDATE public.docs SET body = 'a violin and its bow' WHERE id = 2")
    found = db.execute(f"SELECT (hit).id FROM {schema}.nv_search(NULL::public.docs, 'violin', k => 1)").fetchall()
    assert found == [(2,)]
    for arguments in ("dim => 384", "storage => 'vector'", "dim => 384, storage => 'bit'"):
        db.execute(one(db, f"SELECT nv_embed.create_index_sql('public.docs', {arguments})"))
    db.execute(one(db, "SELECT nv_embed.create_text_index_sql('public.docs', config => 'english')"))
    assert [dim for (dim,) in db.execute("SELECT dim FROM nv_embed.vector_indexes('public.docs')")] == [768, 384, 384]
    for search in ("nv_search", "nv_hybrid_search"):
        assert db.execute(f"SELECT (hit).id FROM {schema}.{search}(NULL::public.docs, 'violin', k => 1)").fetchall() == [(2,)]
    assert one(db, "SELECT count(*) FROM nv_embed.storage_report('public.docs')") == 16
    assert one(db, f"SELECT array_length({schema}.nv_embed(ARRAY['a', 'b'], 384), 1)") == 2
    assert one(db, f"SELECT {schema}.nv_truncate({schema}.nv_embed('x'), 384) IS NOT NULL") is True
    db.execute("DROP TABLE public.docs")


def test_everything_works_in_a_schema_of_ones_own(empty: Connection, sidecar: Sidecar) -> None:
    empty.execute('CREATE SCHEMA ai; CREATE SCHEMA "Vector Types"; CREATE EXTENSION vector SCHEMA "Vector Types"')
    empty.execute("CREATE EXTENSION nv_embed SCHEMA ai CASCADE")
    empty.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
    use(empty, "ai")


def test_an_extension_that_is_made_anew_serves_the_same_session(empty: Connection, sidecar: Sidecar) -> None:
    for _ in range(2):
        empty.execute("SET search_path = public")
        empty.execute("CREATE EXTENSION nv_embed CASCADE")
        empty.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
        use(empty, "public")
        empty.execute("DROP EXTENSION nv_embed")


def test_dropping_the_extension_keeps_the_tables_and_their_vectors(empty: Connection, sidecar: Sidecar) -> None:
    empty.execute("CREATE EXTENSION nv_embed CASCADE")
    empty.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
    empty.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    empty.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    empty.execute("INSERT INTO docs VALUES (1, 'yeast')")
    empty.execute("DROP EXTENSION nv_embed CASCADE")
    empty.execute("INSERT INTO docs VALUES (2, 'no longer embedded')")
    assert empty.execute("SELECT id, embedding IS NOT NULL FROM docs ORDER BY id").fetchall() == [(1, True), (2, False)]


def test_a_table_that_was_dropped_leaves_nothing_in_the_way_of_the_next(empty: Connection, sidecar: Sidecar) -> None:
    empty.execute("CREATE EXTENSION nv_embed CASCADE")
    empty.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
    for _ in range(2):
        use(empty, "public")
    empty.execute("SET search_path = public")
    empty.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    empty.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    assert empty.execute("SELECT relation::text FROM nv_embed.embedding").fetchall() == [("docs",)]
