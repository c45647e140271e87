"""
Indexes of pgvector's in the metadata of a project, written in all the ways that people write them: said once, and not again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Connection
from installs import Install
from pgvector.sqlalchemy import BIT, HALFVEC, VECTOR
from projects import Project
from sqlalchemy import Column, Index, Integer, MetaData, Table, Text, cast, func, text
from vectors import one

from nv_embed.sqlalchemy import Embedded

EMBEDDED = Embedded("{body}", dim=512)


def vectors(type_: Any, **index: Any) -> Callable[[Callable[[Column[Any]], Any]], MetaData]:
    def make(expression: Callable[[Column[Any]], Any]) -> MetaData:
        metadata = MetaData()
        column = Column("embedding", type_)
        table = Table("docs", metadata, Column("id", Integer, primary_key=True), Column("body", Text), column)
        Index("docs_by_meaning", expression(table.c.embedding), _table=table, postgresql_using="hnsw", **index)
        return metadata

    return make


def ops(name: str, key: str = "x") -> dict[str, Any]:
    return {"postgresql_ops": {key: name}}


SHAPES = {
    "the column": vectors(VECTOR(512), **ops("vector_cosine_ops", "embedding"))(lambda column: column),
    "the column, with options": vectors(HALFVEC(512), **ops("halfvec_l2_ops", "embedding"), postgresql_with={"m": 8})(lambda column: column),
    "a cast": vectors(VECTOR(512), **ops("halfvec_cosine_ops"))(lambda column: cast(column, HALFVEC(512)).label("x")),
    "a cast by func": vectors(VECTOR(512), **ops("halfvec_cosine_ops"))(lambda column: func.cast(column, HALFVEC(512)).label("x")),
    "a prefix": vectors(EMBEDDED, **ops("halfvec_cosine_ops"))(lambda column: cast(func.subvector(column, 1, 384), HALFVEC(384)).label("x")),
    "a prefix in words": vectors(EMBEDDED)(lambda _: text("(subvector(embedding,1,256)::halfvec(256)) halfvec_cosine_ops")),
    "a prefix in words with a cast": vectors(EMBEDDED)(lambda _: text("CAST(subvector(embedding, 1, 256) AS halfvec(256)) halfvec_cosine_ops")),
    "a prefix in words and ops": vectors(EMBEDDED)(lambda _: text("((subvector(embedding, 1, 256))::halfvec(256)) halfvec_l2_ops")),
    "bits": vectors(EMBEDDED, **ops("bit_hamming_ops"))(lambda column: cast(func.binary_quantize(column), BIT(512)).label("x")),
    "bits in words": vectors(EMBEDDED)(lambda _: text("(binary_quantize(embedding)::bit(512)) bit_hamming_ops")),
}


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    return connect()


# Alembic says that it cannot compare the words of those whose operator class is among them.
@pytest.mark.filterwarnings("ignore:Expression .* operator clause")
@pytest.mark.parametrize("shape", SHAPES)
def test_an_index_is_made_once(install: Install, own_database: str, tmp_path: Path, db: Connection, shape: str) -> None:
    project = Project(tmp_path / "project", install.dsn(own_database), SHAPES[shape])
    project.autogenerate()
    project.upgrade()
    assert one(db, "SELECT to_regclass('docs_by_meaning') IS NOT NULL")
    assert project.diff() == []
    project.check()
    project.downgrade()
