"""
Embeddings: declared, changed where that needs no new vectors, and dropped.

The column of the vectors is the embedding's: it comes and goes with it, unless a script says that vectors are kept.
"""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from alembic.operations import Operations

from nv_embed.alembic.operation import HIDDEN, TableOperation, call, run

OPTIONS = ("dim", "model", "mode", "storage", "chunk_tokens", "chunk_overlap", "truncate")


@Operations.register_operation("create_auto_embedding")
@dataclass
class CreateAutoEmbedding(TableOperation):
    """`column_stays`: the column was there before, and stays when this is undone."""

    name = "create_auto_embedding"

    table: str
    source: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None
    dim: int | None = None
    model: str | None = None
    mode: str | None = None
    storage: str = "halfvec"
    chunk_tokens: int | None = None
    chunk_overlap: int = 0
    truncate: str = "NONE"
    column_stays: bool = field(default=False, metadata=HIDDEN)

    def reverse(self) -> "DropAutoEmbedding":
        options = {name: getattr(self, name) for name in OPTIONS}
        return DropAutoEmbedding(self.table, self.target, schema=self.schema, keep_vectors=self.column_stays, existing_source=self.source, **options)

    @classmethod
    def create_auto_embedding(
        cls,
        operations: Operations,
        table: str,
        source: str,
        target: str = "embedding",
        *,
        schema: str | None = None,
        dim: int | None = None,
        model: str | None = None,
        mode: str | None = None,
        storage: str = "halfvec",
        chunk_tokens: int | None = None,
        chunk_overlap: int = 0,
        truncate: str = "NONE",
    ) -> None:
        """Keep a text column searchable by meaning: `nv_embed.auto_embed`, which adds the column of the vectors, or takes over one of just that type.

        Args:
            source: a template over the table's columns, `{title}: {body}`.
            target: the column of the vectors, or the name of an embedding in pieces.
            dim: None for the model's native width.
            model: None for the sidecar's default.
            mode: sync, async or off; None for the install's default.
            storage: halfvec or vector.
            chunk_tokens: tokens of a piece at most; None where rows are embedded whole.
            truncate: NONE, START or END.
        """
        operations.invoke(
            cls(
                table,
                source,
                target,
                schema=schema,
                dim=dim,
                model=model,
                mode=mode,
                storage=storage,
                chunk_tokens=chunk_tokens,
                chunk_overlap=chunk_overlap,
                truncate=truncate,
            )
        )


@Operations.implementation_for(CreateAutoEmbedding)
def create(operations: Operations, operation: CreateAutoEmbedding) -> None:
    options = {name: getattr(operation, name) for name in OPTIONS}
    run(operations, f"SELECT {call('auto_embed', **operation.place, source=operation.source, **options)}")


@Operations.register_operation("drop_auto_embedding")
@dataclass
class DropAutoEmbedding(TableOperation):
    name = "drop_auto_embedding"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None
    keep_vectors: bool = False
    existing_source: str | None = None
    dim: int | None = None
    model: str | None = None
    mode: str | None = None
    storage: str = "halfvec"
    chunk_tokens: int | None = None
    chunk_overlap: int = 0
    truncate: str = "NONE"

    def reverse(self) -> CreateAutoEmbedding:
        if self.existing_source is None:
            raise ValueError(f"what is embedded into {self.target} of {self.relation} is not known: give drop_auto_embedding its existing_source")
        options: dict[str, Any] = {name: getattr(self, name) for name in OPTIONS}
        return CreateAutoEmbedding(self.table, self.existing_source, self.target, schema=self.schema, column_stays=self.keep_vectors, **options)

    @classmethod
    def drop_auto_embedding(
        cls,
        operations: Operations,
        table: str,
        target: str = "embedding",
        *,
        schema: str | None = None,
        keep_vectors: bool = False,
        existing_source: str | None = None,
        dim: int | None = None,
        model: str | None = None,
        mode: str | None = None,
        storage: str = "halfvec",
        chunk_tokens: int | None = None,
        chunk_overlap: int = 0,
        truncate: str = "NONE",
    ) -> None:
        """Embed a table no longer: `nv_embed.drop_auto_embed`.

        Args:
            keep_vectors: leave the column, or the chunk table, with what is in it.
            existing_source, dim, model, mode, storage, chunk_tokens, chunk_overlap, truncate: what there was; nothing but the way back is made of it.
        """
        operations.invoke(
            cls(
                table,
                target,
                schema=schema,
                keep_vectors=keep_vectors,
                existing_source=existing_source,
                dim=dim,
                model=model,
                mode=mode,
                storage=storage,
                chunk_tokens=chunk_tokens,
                chunk_overlap=chunk_overlap,
                truncate=truncate,
            )
        )


@Operations.implementation_for(DropAutoEmbedding)
def drop(operations: Operations, operation: DropAutoEmbedding) -> None:
    run(operations, f"SELECT {call('drop_auto_embed', **operation.place, keep_vectors=operation.keep_vectors)}")


@Operations.register_operation("alter_auto_embedding")
@dataclass
class AlterAutoEmbedding(TableOperation):
    name = "alter_auto_embedding"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None
    mode: str | None = None
    truncate: str | None = None
    existing_mode: str | None = None
    existing_truncate: str | None = None

    def reverse(self) -> "AlterAutoEmbedding":
        return AlterAutoEmbedding(
            self.table,
            self.target,
            schema=self.schema,
            mode=self.existing_mode,
            truncate=self.existing_truncate,
            existing_mode=self.mode,
            existing_truncate=self.truncate,
        )

    @classmethod
    def alter_auto_embedding(
        cls,
        operations: Operations,
        table: str,
        target: str = "embedding",
        *,
        schema: str | None = None,
        mode: str | None = None,
        truncate: str | None = None,
        existing_mode: str | None = None,
        existing_truncate: str | None = None,
    ) -> None:
        """Change what needs no new vectors: `nv_embed.alter_auto_embed`.

        Args:
            mode, truncate: None leaves what is.
            existing_mode, existing_truncate: what there was, for the way back.
        """
        operations.invoke(
            cls(
                table,
                target,
                schema=schema,
                mode=mode,
                truncate=truncate,
                existing_mode=existing_mode,
                existing_truncate=existing_truncate,
            )
        )


@Operations.implementation_for(AlterAutoEmbedding)
def alter(operations: Operations, operation: AlterAutoEmbedding) -> None:
    run(operations, f"SELECT {call('alter_auto_embed', **operation.place, mode=operation.mode, truncate=operation.truncate)}")
