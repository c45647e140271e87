"""
Embeddings in migrations: up, down, up again, and nothing left to say.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from conftest import Connection
from installs import BOTH, EXTENSION, Install
from pgvector.sqlalchemy import HALFVEC
from projects import Project
from servers import Sidecar
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine
from sqlalchemy.pool import NullPool
from tables import described, differences
from vectors import one
from workers import working

from nv_embed.sqlalchemy import AutoEmbedding, Embedded, Embedding, EmbeddingIndex
from nv_embed.sqlalchemy.embedding import declare

pytestmark = BOTH

Make = Callable[..., Project]


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    return connect()


@pytest.fixture
def make(install: Install, own_database: str, tmp_path: Path) -> Make:
    """A project of a model: a metadata, and options for its env.py."""

    def make_project(metadata: MetaData, name: str = "project", **options: Any) -> Project:
        return Project(tmp_path / name, install.dsn(own_database), metadata, options)

    return make_project


def model(*more: Any, schema: str | None = None, **embedding: Any) -> MetaData:
    """A table of documents with a title and a body; embedded whole where it is said how."""
    metadata = MetaData()
    embedded = [Column("embedding", Embedded(**{"source": "{title}: {body}", "dim": 384, **embedding}))] if embedding else []
    Table("docs", metadata, Column("id", Integer, primary_key=True), Column("title", Text), Column("body", Text), *embedded, *more, schema=schema)
    return metadata


def pieces(**embedding: Any) -> AutoEmbedding:
    return AutoEmbedding(Embedding(**{"source": "{body}", "target": "parts", "dim": 384, "chunk_tokens": 8, **embedding}))


def evolve(project: Project, metadata: MetaData) -> str:
    """Change a project's model, and have Alembic write the revision; its text."""
    project.metadata = metadata
    return project.autogenerate()


def goes_there_and_back(project: Project, db: Connection) -> None:
    """Up, down and up again, with nothing left to say and the same tables each time."""
    before = described(db)
    project.upgrade()
    assert project.diff() == []
    after = described(db)
    project.downgrade("-1")
    assert differences(before, described(db)) == []
    project.upgrade()
    assert differences(after, described(db)) == []
    project.check()


def test_a_new_table_comes_with_its_embedding_and_its_indexes(make: Make, db: Connection) -> None:
    project = make(model(dim=384, indexes=[EmbeddingIndex(), EmbeddingIndex(dim=384, storage="bit")]))
    text = project.autogenerate()
    assert "op.create_auto_embedding('docs', '{title}: {body}', dim=384)" in text
    assert "HALFVEC" not in text
    goes_there_and_back(project, db)
    assert one(db, "SELECT count(*) FROM nv_embed.vector_indexes('docs')") == 2


def vectors() -> "Column[Any]":
    return Column("embedding", HALFVEC(384))


CHANGES = {
    "an embedding for a table": (model(), model(dim=512, mode="async"), "create_auto_embedding('docs', '{title}: {body}', dim=512, mode='async')"),
    "an index for an embedding": (model(dim=768), model(dim=768, indexes=[EmbeddingIndex(dim=384)]), "create_embedding_index('docs', dim=384)"),
    "an index no longer": (model(dim=384, indexes=[EmbeddingIndex(m=8)]), model(dim=384), "drop_embedding_index('docs', m=8)"),
    "another graph": (
        model(dim=384, indexes=[EmbeddingIndex(m=8)]),
        model(dim=384, indexes=[EmbeddingIndex(m=4)]),
        "create_embedding_index('docs', m=4)",
    ),
    "mode": (model(dim=384, mode="async"), model(dim=384, mode="off"), "alter_auto_embedding('docs', mode='off', existing_mode='async')"),
    "truncate": (model(dim=384), model(dim=384, truncate="END"), "alter_auto_embedding('docs', truncate='END', existing_truncate='NONE')"),
    "source and columns": (
        model(Column("lead", Text), source="{lead}"),
        model(Column("intro", Text), source="{intro}"),
        "# A column that was embedded goes",
    ),
    "an embedding no longer": (model(dim=384, indexes=[EmbeddingIndex()]), model(), "drop_auto_embedding("),
    "vectors without an embedding": (model(dim=384), model(vectors()), "keep_vectors=True"),
    "vectors without an embedding and its index": (model(dim=384, indexes=[EmbeddingIndex()]), model(vectors()), "drop_embedding_index('docs')"),
    "pieces": (model(), model(pieces()), "create_auto_embedding('docs', '{body}', 'parts', dim=384, chunk_tokens=8)"),
    "no more pieces": (model(pieces()), model(), "drop_auto_embedding("),
    "no more table": (model(pieces(), dim=384, indexes=[EmbeddingIndex()]), MetaData(), "op.drop_table('docs')"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_model_becomes_a_revision_that_runs(make: Make, db: Connection, change: str) -> None:
    before, after, expected = CHANGES[change]
    project = make(before)
    project.autogenerate()
    project.upgrade()
    assert expected in evolve(project, after)
    goes_there_and_back(project, db)


MOVES = {
    "dimensions": (
        model(dim=384, indexes=[EmbeddingIndex()]),
        model(dim=512, indexes=[EmbeddingIndex()]),
        "op.reembed('docs', dim=512, existing_dim=384)",
    ),
    "fewer dimensions": (model(dim=512), model(dim=384), "op.reembed('docs', dim=384, existing_dim=512)"),
    "type": (model(dim=384), model(dim=384, storage="vector"), "op.reembed('docs', storage='vector', existing_storage='halfvec')"),
    "source": (
        model(dim=384, indexes=[EmbeddingIndex()]),
        model(dim=384, source="{body}", indexes=[EmbeddingIndex()]),
        "op.reembed('docs', source='{body}', existing_source='{title}: {body}')",
    ),
    "pieces instead of whole rows": (model(dim=384), model(pieces(target="embedding")), "chunk_tokens=8,"),
    "whole rows instead of pieces": (model(pieces(target="embedding")), model(dim=384), "chunk_tokens=0,"),
    "longer pieces": (
        model(pieces(indexes=(EmbeddingIndex(),))),
        model(pieces(chunk_tokens=9, chunk_overlap=2, indexes=(EmbeddingIndex(),))),
        "existing_chunk_overlap=0,",
    ),
    "pieces that overlap": (
        model(pieces()),
        model(pieces(chunk_overlap=2)),
        "op.reembed('docs', 'parts', chunk_overlap=2, existing_chunk_overlap=0)",
    ),
    "wider pieces": (model(pieces()), model(pieces(dim=512)), "op.reembed('docs', 'parts', dim=512, existing_dim=384)"),
    "dimensions and a prefix": (
        model(dim=512, indexes=[EmbeddingIndex(dim=384), EmbeddingIndex()]),
        model(dim=768, indexes=[EmbeddingIndex(dim=512)]),
        "drop_embedding_index(",
    ),
}


@pytest.mark.parametrize("move", MOVES)
def test_other_vectors_become_a_reembedding(make: Make, db: Connection, sidecar: Sidecar, move: str) -> None:
    before, after, expected = MOVES[move]
    project = make(before)
    project.autogenerate()
    project.upgrade()
    db.execute("INSERT INTO docs SELECT n, 'title ' || n, 'body' FROM generate_series(1, 30) AS n")
    with working(project.dsn, sidecar.address):
        assert expected in evolve(project, after)
        start = columns(db), pieces_of(db)
        project.upgrade()
        assert project.diff() == []
        project.downgrade("-1")
        assert (columns(db), pieces_of(db)) == start
        project.upgrade()
        project.check()
        (target,) = db.execute("SELECT target FROM nv_embed.embedding").fetchone() or ()
        assert one(db, "SELECT nv_embed.wait('docs', %s, timeout => '30 s')", [target])
    assert db.execute("SELECT rows, embedded FROM nv_embed.status").fetchall() == [(30, 30)]


def columns(db: Connection) -> list[Any]:
    return db.execute(
        "SELECT attname, atttypmod FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attname"
    ).fetchall()


def pieces_of(db: Connection) -> list[Any]:
    return db.execute("SELECT chunk_tokens, chunk_overlap FROM nv_embed.generation WHERE state = 'live'").fetchall()


@pytest.mark.parametrize("each", [True, False])
def test_a_database_without_rows_needs_no_worker_in_one_transaction_or_several(make: Make, db: Connection, each: bool) -> None:
    project = make(model(dim=384, indexes=[EmbeddingIndex()]), transaction_per_migration=each)
    project.autogenerate()
    project.write("op.reembed('docs', dim=512, existing_dim=384)", "op.reembed('docs', dim=384, existing_dim=512)")
    project.write("op.reembed('docs', dim=768, existing_dim=512)", "op.reembed('docs', dim=512, existing_dim=768)")
    project.upgrade()
    assert db.execute("SELECT dim, is_valid FROM nv_embed.vector_indexes('docs')").fetchall() == [(768, True)]
    assert len(columns(db)) == 5  # the vectors of before are kept
    project.write("op.finish_reembedding('docs')")
    project.upgrade()
    assert len(columns(db)) == 4
    project.downgrade()
    assert one(db, "SELECT to_regclass('docs') IS NULL AND NOT EXISTS (SELECT FROM nv_embed.embedding)")


def test_nothing_is_said_while_a_reembedding_is_under_way(make: Make, db: Connection, sidecar: Sidecar) -> None:
    project = make(model(dim=384, indexes=[EmbeddingIndex()]))
    project.autogenerate()
    project.upgrade()
    db.execute("INSERT INTO docs VALUES (1, 'title', 'body')")
    project.write("op.reembed('docs', dim=512, existing_dim=384, wait=False)", "op.reembed('docs', dim=384, existing_dim=512)")
    project.upgrade()
    assert project.diff() == []
    with working(project.dsn, sidecar.address):
        project.write("op.cut_over_reembedding('docs')", "op.roll_back_reembedding('docs')")
        project.upgrade()
        project.metadata = model(dim=512, indexes=[EmbeddingIndex()])
        assert project.diff() == []
        project.downgrade("-1")
        assert one(db, "SELECT state FROM nv_embed.reembedding_status WHERE ended_at IS NULL") in ("planned", "backfilling", "indexing", "ready")
        project.upgrade()
        assert project.diff() == []
        project.downgrade("r1")
    project.metadata = model(dim=384, indexes=[EmbeddingIndex()])
    assert project.diff() == []
    assert len(columns(db)) == 4


def test_schemas_of_others_are_left_alone(make: Make, db: Connection) -> None:
    db.execute("CREATE SCHEMA shelf")
    shelf = {"schema": "shelf", "dim": 384, "indexes": [EmbeddingIndex()]}
    project = make(model(pieces(), **shelf), include_schemas=True, version_table_schema="shelf")
    assert "op.create_auto_embedding('docs', '{title}: {body}', schema='shelf', dim=384)" in project.autogenerate()
    goes_there_and_back(project, db)
    assert "op.drop_embedding_index('docs', schema='shelf')" in evolve(project, model(pieces(), schema="shelf", dim=384))
    goes_there_and_back(project, db)
    assert "op.drop_table('docs', schema='shelf')" in evolve(project, MetaData())
    goes_there_and_back(project, db)


def test_what_env_py_leaves_out_is_left_alone(make: Make, db: Connection) -> None:
    project = make(model(pieces(), dim=384))
    project.autogenerate()
    project.upgrade()
    project.metadata = model(dim=512)
    project.options = {"include_object": lambda item, name, kind, reflected, other: name != "docs"}
    assert project.diff() == []


def test_a_comment_on_the_column_comes_with_it(make: Make, db: Connection) -> None:
    commented = Column("embedding", Embedded("{body}", dim=384), comment="by meaning")
    project = make(model(commented))
    assert "comment='by meaning'" in project.autogenerate()
    goes_there_and_back(project, db)
    assert "op.reembed(" in evolve(project, model(Column("embedding", Embedded("{title}", dim=384), comment="by meaning")))
    project.upgrade()
    assert project.diff() == []


def test_types_are_compared_and_other_changes_of_the_column_said(make: Make, db: Connection) -> None:
    project = make(model(dim=384), compare_type=True)
    project.autogenerate()
    goes_there_and_back(project, db)
    db.execute("COMMENT ON COLUMN docs.embedding IS 'by meaning'")
    assert [diff[0] for (diff,) in project.diff()] == ["modify_comment"]


def test_the_model_may_be_named_in_short_or_not_at_all(make: Make, db: Connection) -> None:
    project = make(model(dim=384, model="fake"))
    project.autogenerate()
    project.upgrade()
    for same in (model(dim=384), model(dim=384, model="fake"), model(dim=None, model="fake"), model(dim=384, mode=None)):
        project.metadata = same
        assert project.diff() == []


def test_one_that_came_by_sql_is_known(make: Make, db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384)")
    db.execute(one(db, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
    project = make(model(dim=384, indexes=[EmbeddingIndex()]))
    assert project.diff() == []


def test_create_all_leaves_nothing_to_say(make: Make, db: Connection) -> None:
    metadata = model(pieces(), dim=384, indexes=[EmbeddingIndex(m=8)])
    project = make(metadata)
    metadata.create_all(create_engine(project.url, poolclass=NullPool))
    assert project.diff() == []


def test_a_column_that_is_there_is_taken_over_and_given_back(make: Make, db: Connection) -> None:
    project = make(model(vectors()))
    assert "import pgvector.sqlalchemy" in project.autogenerate()
    project.upgrade()
    assert "op.create_auto_embedding(" in evolve(project, model(dim=384))
    goes_there_and_back(project, db)
    project.downgrade("-1")
    assert len(columns(db)) == 4


def test_an_index_of_a_partitioned_table_is_built_by_its_partitions(make: Make, db: Connection) -> None:
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text) PARTITION BY RANGE (id)")
    db.execute(
        "CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (1) TO (10); CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (10) TO (20)"
    )
    project = make(MetaData())
    project.write("op.create_auto_embedding('docs', '{body}', dim=384)", "op.drop_auto_embedding('docs')")
    project.write("op.create_embedding_index('docs')", "op.drop_embedding_index('docs')")
    before = described(db)
    project.upgrade()
    assert one(db, "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid::regclass::text LIKE '%halfvec_hnsw'") == 3
    project.upgrade()
    project.downgrade()
    assert differences(before, described(db)) == []


@EXTENSION  # whose owner may write to pg_index
def test_a_half_built_index_is_built_anew(make: Make, db: Connection) -> None:
    project = make(model(dim=384))
    project.autogenerate()
    project.upgrade()
    db.execute(one(db, "SELECT nv_embed.create_index_sql('docs')"))
    db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'docs_embedding_384_halfvec_hnsw'::regclass")
    assert "op.create_embedding_index('docs')" in evolve(project, model(dim=384, indexes=[EmbeddingIndex()]))
    project.upgrade()
    assert db.execute("SELECT index::text, is_valid FROM nv_embed.vector_indexes('docs')").fetchall() == [("docs_embedding_384_halfvec_hnsw", True)]


def test_a_schema_that_is_the_default_one_may_be_said(make: Make, db: Connection) -> None:
    project = make(model(schema="public", dim=384, indexes=[EmbeddingIndex()]))
    assert "HALFVEC" not in project.autogenerate()
    goes_there_and_back(project, db)
    assert "op.reembed('docs', schema='public', source='{body}'" in evolve(project, model(schema="public", source="{body}"))
    goes_there_and_back(project, db)


def test_a_table_is_dropped_in_the_midst_of_a_reembedding(make: Make, db: Connection) -> None:
    project = make(model(dim=384))
    project.autogenerate()
    project.upgrade()
    db.execute("SELECT nv_embed.reembed('docs', dim => 512)")
    assert "embedding_g" not in evolve(project, MetaData())
    project.upgrade()
    project.downgrade("-1")
    project.metadata = model(dim=384)
    assert project.diff() == []


def test_names_are_quoted_wherever_they_stand(make: Make, db: Connection) -> None:
    metadata = MetaData()
    vectors = Column("embedding: all", Embedded("{It's 5%}: \\x", dim=384))
    columns = [Column("Key", Integer, primary_key=True, autoincrement=False), Column("It's 5%", Text), vectors]
    table = Table("Docs' :n %s", metadata, *columns)
    declare(table, Embedding("{It's 5%}", "by piece", 384, chunk_tokens=8, indexes=(EmbeddingIndex(),)))
    project = make(metadata)
    project.autogenerate()
    goes_there_and_back(project, db)
    project.downgrade()
    db.execute("DROP TABLE alembic_version")
    project.psql(project.printed(command.upgrade, "head"))
    assert project.diff() == []
