"""
Embeddings in migrations: up, down, up again, and nothing left to say.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Connection
from installs import BOTH, Install
from projects import Project
from servers import Sidecar
from sqlalchemy import Column, Index, Integer, MetaData, Table, Text
from tables import described, differences
from vectors import one
from workers import working

from nv_embed.sqlalchemy import AutoEmbedding, Embedded, Embedding, EmbeddingIndex

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


def model(*columns: Any, source: str = "{title}: {body}", dim: int = 384, schema: str | None = None, **embedding: Any) -> MetaData:
    """A table of documents that are embedded whole."""
    metadata = MetaData()
    vectors = Column("embedding", Embedded(source, dim=dim, **embedding))
    Table("docs", metadata, Column("id", Integer, primary_key=True), Column("title", Text), Column("body", Text), vectors, *columns, schema=schema)
    return metadata


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
    assert project.diff() == []
    assert differences(after, described(db)) == []
    project.check()


def test_a_new_table_comes_with_its_embedding_and_its_indexes(make: Make, db: Connection) -> None:
    project = make(model(indexes=[EmbeddingIndex(), EmbeddingIndex(dim=384, storage="bit")]))
    text = project.autogenerate()
    assert "op.create_auto_embedding('docs', '{title}: {body}', dim=384)" in text
    assert "HALFVEC" not in text
    goes_there_and_back(project, db)
    assert one(db, "SELECT count(*) FROM nv_embed.vector_indexes('docs')") == 2
