"""
Indexes of vectors.

Built concurrently, one statement a transaction, by connections of their own (`session.py`): so a build tells how far it is, keeps other builds of
the same vectors away, and leaves nothing behind when it is interrupted. One that is there already is left alone, so a migration that was killed
goes on.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from alembic.operations import Operations
from alembic.util import CommandError

from nv_embed import indexes
from nv_embed.alembic import session
from nv_embed.alembic.operation import TableOperation, call, literal, run_each
from nv_embed.alembic.watcher import Lines

OPTIONS = ("dim", "method", "storage", "m", "ef_construction", "lists")


class IndexOperation(TableOperation):
    dim: int | None
    method: str
    storage: str
    m: int | None
    ef_construction: int | None
    lists: int | None
    concurrently: bool

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OPTIONS}


@Operations.register_operation("create_embedding_index")
@dataclass
class CreateEmbeddingIndex(IndexOperation):
    name = "create_embedding_index"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None
    dim: int | None = None
    method: str = "hnsw"
    storage: str = "halfvec"
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None
    concurrently: bool = True

    def reverse(self) -> "DropEmbeddingIndex":
        return DropEmbeddingIndex(self.table, self.target, schema=self.schema, concurrently=self.concurrently, **self.options)

    @classmethod
    def create_embedding_index(
        cls,
        operations: Operations,
        table: str,
        target: str = "embedding",
        *,
        schema: str | None = None,
        dim: int | None = None,
        method: str = "hnsw",
        storage: str = "halfvec",
        m: int | None = None,
        ef_construction: int | None = None,
        lists: int | None = None,
        concurrently: bool = True,
    ) -> None:
        """Index an embedding's vectors: what `nv_embed.create_index_steps` says; nothing where that index is there.

        Args:
            dim: how many first components it holds; None for all.
            method: hnsw or ivfflat.
            storage: halfvec, vector or bit.
            m, ef_construction, lists: pgvector's; None leaves them to it.
            concurrently: while others write to the table. What the migration has done before is committed, as always with an `autocommit_block`.
        Raises:
            CommandError: somebody else builds one of these vectors, or the build failed; it can be run again.
        """
        operations.invoke(
            cls(
                table,
                target,
                schema=schema,
                dim=dim,
                method=method,
                storage=storage,
                m=m,
                ef_construction=ef_construction,
                lists=lists,
                concurrently=concurrently,
            )
        )


@Operations.implementation_for(CreateEmbeddingIndex)
def create(operations: Operations, operation: CreateEmbeddingIndex) -> None:
    steps = f"SELECT {call('create_index_steps', **operation.place, **operation.options, concurrently=operation.concurrently)}"
    context = operations.get_context()
    if not operation.concurrently:
        run_each(operations, steps)
        return
    with context.autocommit_block():
        if context.as_sql:
            run_each(operations, steps)
        else:
            _build(operations, operation)


def _build(operations: Operations, operation: CreateEmbeddingIndex) -> None:
    wanted = indexes.Wanted(operation.relation, operation.target, **operation.options)
    with session.pair(operations) as (connection, watching):
        try:
            indexes.build(connection, watching, wanted, Lines(operation.relation))
        except (indexes.Busy, indexes.Unfinished) as error:
            raise CommandError(f"no index of {operation.target} of {operation.relation} was built: {error}") from error


@Operations.register_operation("drop_embedding_index")
@dataclass
class DropEmbeddingIndex(IndexOperation):
    name = "drop_embedding_index"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None
    dim: int | None = None
    method: str = "hnsw"
    storage: str = "halfvec"
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None
    concurrently: bool = True

    def reverse(self) -> CreateEmbeddingIndex:
        return CreateEmbeddingIndex(self.table, self.target, schema=self.schema, concurrently=self.concurrently, **self.options)

    @classmethod
    def drop_embedding_index(
        cls,
        operations: Operations,
        table: str,
        target: str = "embedding",
        *,
        schema: str | None = None,
        dim: int | None = None,
        method: str = "hnsw",
        storage: str = "halfvec",
        m: int | None = None,
        ef_construction: int | None = None,
        lists: int | None = None,
        concurrently: bool = True,
    ) -> None:
        """Drop the index that `create_embedding_index` with the same arguments makes, whatever its name; nothing where there is none.

        Args:
            m, ef_construction, lists: what it was built with, for the way back.
            concurrently: without a lock that others wait for; the index of a partitioned table is dropped with one.
        """
        operations.invoke(
            cls(
                table,
                target,
                schema=schema,
                dim=dim,
                method=method,
                storage=storage,
                m=m,
                ef_construction=ef_construction,
                lists=lists,
                concurrently=concurrently,
            )
        )


@Operations.implementation_for(DropEmbeddingIndex)
def drop(operations: Operations, operation: DropEmbeddingIndex) -> None:
    relation, target = literal(operation.relation), literal(operation.target)
    how = "CASE c.relkind WHEN 'i' THEN ' CONCURRENTLY' ELSE '' END" if operation.concurrently else "''"
    dim = literal(operation.dim) if operation.dim is not None else f"(nv_embed.live_generation({relation}, {target})).dim"
    query = (
        f"SELECT format('DROP INDEX%s %s', {how}, nv_embed.qualified(i.index))"  # noqa: S608  # of literals
        f" FROM nv_embed.vector_indexes({relation}, {target}) AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.index"
        f" WHERE i.method = {literal(operation.method)} AND i.storage = {literal(operation.storage)} AND i.dim = {dim} AND NOT i.is_partial"
    )
    if not operation.concurrently:
        run_each(operations, query)
        return
    with operations.get_context().autocommit_block():
        run_each(operations, query)
