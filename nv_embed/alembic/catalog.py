"""
What a database has of embeddings, in the words of the metadata.

In:  a connection      Out: `Catalog`: embeddings by their tables, and what nv_embed has made beside what a project's models say
"""

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, text

from nv_embed.sqlalchemy import Embedding, EmbeddingIndex

SCHEMA = "nv_embed"

Table = tuple[str | None, str]
"""A table's schema, None for the default one, and name: as Alembic's comparison names it."""

IS_INSTALLED = text("SELECT to_regclass('nv_embed.embedding') IS NOT NULL AND to_regclass('nv_embed.reembedding') IS NOT NULL")

EMBEDDINGS = text("""
    SELECT n.nspname, c.relname, e.source, e.target, g.dim, g.model, e.mode, g.storage, e.chunk_tokens, e.chunk_overlap, e.truncate,
        s.nspname, k.relname
    FROM nv_embed.embedding AS e
    JOIN nv_embed.generation AS g ON g.embedding = e.id AND g.state = 'live'
    JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_class AS k ON k.oid = g.chunks
    LEFT JOIN pg_catalog.pg_namespace AS s ON s.oid = k.relnamespace
    ORDER BY e.id
""")

INDEXES = text("""
    SELECT n.nspname, c.relname, e.target, x.relname, i.dim, i.method, i.storage, array_to_string(x.reloptions, ' '), i.is_valid, i.is_partial
    FROM nv_embed.embedding AS e
    JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL nv_embed.vector_indexes(e.relation, e.target) AS i
    JOIN pg_catalog.pg_class AS x ON x.oid = i.index
    ORDER BY i.dim DESC, x.relname
""")

# Columns of generations that are not live, and the indexes on them.
SHADOWS = text("""
    SELECT DISTINCT n.nspname, c.relname, a.attname, x.relname
    FROM nv_embed.generation AS g
    JOIN nv_embed.embedding AS e ON e.id = g.embedding
    JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = g.target AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_depend AS d
        ON d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = a.attnum
    LEFT JOIN pg_catalog.pg_class AS x ON x.oid = d.objid AND x.relkind IN ('i', 'I')
    WHERE g.state IN ('next', 'previous') AND g.chunks IS NULL
""")

SHADOW_CHUNKS = text("""
    SELECT n.nspname, c.relname
    FROM nv_embed.generation AS g
    JOIN pg_catalog.pg_class AS c ON c.oid = g.chunks
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE g.state <> 'live'
""")

IDENTIFY = text("SELECT model FROM nv_embed.identify(NULL, :model)")


@dataclass
class Present:
    """A table's embeddings.

    Attributes:
        embeddings: by their targets, without indexes.
        indexes: by their names, each with its target; None for one that is not complete.
        shadow_columns, shadow_indexes: of a re-embedding that has not ended.
    """

    embeddings: dict[str, Embedding] = field(default_factory=dict)
    indexes: dict[str, tuple[str, EmbeddingIndex | None]] = field(default_factory=dict)
    shadow_columns: set[str] = field(default_factory=set)
    shadow_indexes: set[str] = field(default_factory=set)

    def indexed(self, but: Collection[str] = ()) -> dict[str, Embedding]:
        """The embeddings with their indexes, but for those of these names."""
        complete = [(target, index) for name, (target, index) in self.indexes.items() if index is not None and name not in but]
        return {
            target: replace(embedding, indexes=tuple(index for of, index in complete if of == target))
            for target, embedding in self.embeddings.items()
        }


@dataclass
class Catalog:
    is_installed: bool = False
    tables: defaultdict[Table, Present] = field(default_factory=lambda: defaultdict(Present))
    chunks: set[Table] = field(default_factory=set)


def read(connection: Connection, default_schema: str | None) -> Catalog:
    catalog = Catalog(bool(connection.execute(IS_INSTALLED).scalar_one()))
    if not catalog.is_installed:
        return catalog

    def named(schema: str, name: str) -> Table:
        return (None if schema == default_schema else schema, name)

    for schema, table, source, target, dim, model, mode, storage, tokens, overlap, truncate, chunk_schema, chunks in connection.execute(EMBEDDINGS):
        embedding = Embedding(source, target, dim, model, mode, storage, tokens, overlap, truncate)
        catalog.tables[named(schema, table)].embeddings[target] = embedding
        if chunks is not None:
            catalog.chunks.add(named(chunk_schema, chunks))
    catalog.chunks |= {named(schema, chunks) for schema, chunks in connection.execute(SHADOW_CHUNKS)}
    for schema, table, target, name, dim, method, storage, options, is_valid, is_partial in connection.execute(INDEXES):
        if not is_partial:
            index = EmbeddingIndex(dim, method, storage, **_options(options or ""))
            catalog.tables[named(schema, table)].indexes[name] = (target, index if is_valid else None)
    for schema, table, column, shadow_index in connection.execute(SHADOWS):
        present = catalog.tables[named(schema, table)]
        present.shadow_columns.add(column)
        present.shadow_indexes |= {shadow_index} - {None}
    return catalog


def whole_name(connection: Connection, model: str) -> str:
    """Of a model that is served, or known to the library."""
    return str(connection.execute(IDENTIFY, {"model": model}).scalar_one())


def _options(options: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"\b(m|ef_construction|lists)=(\d+)", options)}
