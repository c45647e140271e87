"""
Embeddings as SQLAlchemy's metadata declares them.

What `nv_embed.auto_embed` takes is a value here, `Embedding`, and so is an index of its vectors. A column of type `Embedded` (`column.py`) carries
one; an embedding in pieces, whose vectors lie in a table of their own, is an `AutoEmbedding` among the arguments of its table. `declared` reads both,
for whatever makes a database what the metadata says: `create_all` here, migrations in `nv_embed.alembic`.
"""

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, event, text
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.sql.base import SchemaEventTarget
from sqlalchemy.sql.schema import SchemaItem

KEY = "nv_embed"


@dataclass(frozen=True)
class EmbeddingIndex:
    """An index of an embedding's vectors, as `nv_embed.create_index_sql` takes it.

    Attributes:
        dim: how many first components it holds; None for all.
        method: hnsw or ivfflat.
        storage: halfvec, vector or bit.
        m, ef_construction, lists: pgvector's; None leaves them to it.
    """

    dim: int | None = None
    method: str = "hnsw"
    storage: str = "halfvec"
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None


@dataclass(frozen=True)
class Embedding:
    """An embedding, as `nv_embed.auto_embed` takes it.

    Attributes:
        source: a template over the table's columns, `{title}: {body}`.
        target: the column of the vectors, or the name of an embedding in pieces.
        dim: None for the model's native width.
        model: None for the sidecar's default, whichever that is when the embedding is made.
        mode: sync, async or off; None for the install's default.
        storage: halfvec or vector.
        chunk_tokens: tokens of a piece at most; None where rows are embedded whole.
        indexes: that its vectors are to have.
    """

    source: str
    target: str = "embedding"
    dim: int | None = None
    model: str | None = None
    mode: str | None = None
    storage: str = "halfvec"
    chunk_tokens: int | None = None
    chunk_overlap: int = 0
    truncate: str = "NONE"
    indexes: tuple[EmbeddingIndex, ...] = ()


class AutoEmbedding(SchemaItem):
    """An embedding of a table that is no column of it: one in pieces. Goes among the arguments of a `Table`, or into `__table_args__`.

    Args:
        embedding: what to declare.
    """

    def __init__(self, embedding: Embedding) -> None:
        self.embedding = embedding

    def _set_parent(self, parent: SchemaEventTarget, **_: Any) -> None:
        assert isinstance(parent, Table)
        declare(parent, self.embedding)


def declare(table: Table, embedding: Embedding) -> None:
    """Add an embedding to a table's metadata; `create_all` makes it with the table."""
    table.info[KEY] = {**declared(table), embedding.target: embedding}


def declared(table: Table) -> dict[str, Embedding]:
    """The embeddings of a table by their targets, in the order in which they were declared."""
    return dict(table.info.get(KEY, {}))


def source_columns(source: str) -> list[str]:
    """The columns that a template reads, in its order."""
    return [name for name in re.findall(r"\{\{|\}\}|\{([^{}]+)\}", source) if name]


def quoted(name: str) -> str:
    """An identifier, in quotes where it needs them."""
    dialect = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]  # others double percent signs
    return str(dialect.identifier_preparer.quote(name))


def relation_name(table: Table) -> str:
    """A table's name as SQL reads it, with its schema where it has one."""
    return ".".join(quoted(name) for name in (table.schema, table.name) if name is not None)


CREATE = text(
    "SELECT nv_embed.auto_embed(CAST(:relation AS regclass), :source, target => :target, dim => :dim, model => :model,"
    " mode => coalesce(:mode, nv_embed.default_mode()), storage => :storage, chunk_tokens => :chunk_tokens, chunk_overlap => :chunk_overlap,"
    " truncate => :truncate)"
)
CREATE_INDEX = text(
    "SELECT nv_embed.create_index_sql(CAST(:relation AS regclass), :target, :dim, :method, :storage, false, :m, :ef_construction, :lists)"
)
DROP = text(
    "SELECT nv_embed.drop_auto_embed(e.relation, e.target, keep_vectors => false) FROM nv_embed.embedding AS e"
    " WHERE e.relation = CAST(:relation AS regclass) AND e.chunk_tokens IS NOT NULL"
)


# Of all tables, since one that `to_metadata` copies has its information but not its listeners.
@event.listens_for(Table, "after_create")
def _create(table: Table, connection: Connection, **_: Any) -> None:
    relation = relation_name(table)
    for embedding in declared(table).values():
        options = {name: value for name, value in vars(embedding).items() if name != "indexes"}
        connection.execute(CREATE, {"relation": relation, **options})
        for index in embedding.indexes:
            statement = connection.execute(CREATE_INDEX, {"relation": relation, "target": embedding.target, **vars(index)}).scalar_one()
            connection.exec_driver_sql(statement)


@event.listens_for(Table, "before_drop")
def _drop(table: Table, connection: Connection, **_: Any) -> None:
    """Chunk tables do not go with the table; columns do."""
    if any(embedding.chunk_tokens for embedding in declared(table).values()):
        connection.execute(DROP, {"relation": relation_name(table)})
