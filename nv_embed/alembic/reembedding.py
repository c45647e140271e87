"""
Re-embeddings: an embedding's move to another model, dimension, storage or source, by a migration.

`op.reembed` says what the vectors are to be, and does what is left to be done: it begins a re-embedding or goes on with the one that is under way,
takes back one that came from just there, or finds that all is done. So one call is the way there and, with other arguments, the way back; a
migration that was killed is simply run again. All of it is outside of a transaction, because workers must see it.
"""

import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from alembic.operations import Operations
from alembic.util import CommandError

from nv_embed import indexes, reembed
from nv_embed.alembic import session
from nv_embed.alembic.operation import TableOperation, ask, literal, run, run_each
from nv_embed.alembic.watcher import Lines, log

ALL = "FROM nv_embed.reembedding_status AS r WHERE r.relation = @relation@::regclass AND r.target = @target@"
OPEN = f"{ALL} AND r.ended_at IS NULL"
CUT_OVER = f"SELECT nv_embed.cut_over(r.id) {OPEN} AND r.state NOT IN ('live', 'rolled_back')"
INDEX_STEPS = f"SELECT nv_embed.reembedding_index_steps(r.id) {OPEN} AND r.state = 'indexing'"
FINISH = f"SELECT nv_embed.finish(r.id) {OPEN} AND r.state IN ('live', 'rolled_back')"
WANTED = ("model", "dim", "storage", "source", "chunk_tokens", "chunk_overlap", "rows_per_s", "min_overlap", "min_recall")
LAST = (
    "SELECT r.state FROM nv_embed.reembedding_status AS r WHERE r.relation = @relation@::regclass AND r.target = @target@ ORDER BY r.id DESC LIMIT 1"
)


@Operations.register_operation("reembed")
@dataclass
class Reembed(TableOperation):
    name = "reembed"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None
    model: str | None = None
    dim: int | None = None
    storage: str | None = None
    source: str | None = None
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    existing_model: str | None = None
    existing_dim: int | None = None
    existing_storage: str | None = None
    existing_source: str | None = None
    existing_chunk_tokens: int | None = None
    existing_chunk_overlap: int | None = None
    rows_per_s: float | None = None
    min_overlap: float | None = None
    min_recall: float | None = None
    wait: bool = True
    cut_over: bool = True
    finish: bool = False

    def reverse(self) -> "Reembed":
        return Reembed(
            self.table,
            self.target,
            schema=self.schema,
            model=self.existing_model,
            dim=self.existing_dim,
            storage=self.existing_storage,
            source=self.existing_source,
            chunk_tokens=self.existing_chunk_tokens,
            chunk_overlap=self.existing_chunk_overlap,
            existing_model=self.model,
            existing_dim=self.dim,
            existing_storage=self.storage,
            existing_source=self.source,
            existing_chunk_tokens=self.chunk_tokens,
            existing_chunk_overlap=self.chunk_overlap,
            rows_per_s=self.rows_per_s,
            finish=self.finish,
        )

    @classmethod
    def reembed(
        cls,
        operations: Operations,
        table: str,
        target: str = "embedding",
        *,
        schema: str | None = None,
        model: str | None = None,
        dim: int | None = None,
        storage: str | None = None,
        source: str | None = None,
        chunk_tokens: int | None = None,
        chunk_overlap: int | None = None,
        existing_model: str | None = None,
        existing_dim: int | None = None,
        existing_storage: str | None = None,
        existing_source: str | None = None,
        existing_chunk_tokens: int | None = None,
        existing_chunk_overlap: int | None = None,
        rows_per_s: float | None = None,
        min_overlap: float | None = None,
        min_recall: float | None = None,
        wait: bool = True,
        cut_over: bool = True,
        finish: bool = False,
    ) -> None:
        """Have an embedding's vectors by this model, in these dimensions, of this type, while searches go on: `nv_embed.reembed` and what follows.

        What the migration has done before is committed. A re-embedding that was cut over and not finished is taken back where it came from just
        there, and finished where the vectors are to go elsewhere.

        Args:
            model, dim, storage, source, chunk_tokens, chunk_overlap: None keeps what is; another model comes in its native dimension, and
                chunk_tokens 0 embeds rows whole.
            existing_…: what there was, for the way back.
            rows_per_s: how many rows workers may take of it, all together; None for no limit.
            min_overlap, min_recall: the least share of nearest neighbours that stay, and of canaries that are found, to be ready with; None for none.
            wait: until workers have filled the vectors; else the re-embedding is only begun, and `cut_over_reembedding` in a later revision goes on.
            cut_over: when all is ready.
            finish: drop the vectors of before at once; else they are kept for a quick way back until `finish_reembedding`, or the next re-embedding.
        Raises:
            DBAPIError: it goes elsewhere already.
            CommandError: an index could not be built.
        """
        operations.invoke(
            cls(
                table,
                target,
                schema=schema,
                model=model,
                dim=dim,
                storage=storage,
                source=source,
                chunk_tokens=chunk_tokens,
                chunk_overlap=chunk_overlap,
                existing_model=existing_model,
                existing_dim=existing_dim,
                existing_storage=existing_storage,
                existing_source=existing_source,
                existing_chunk_tokens=existing_chunk_tokens,
                existing_chunk_overlap=existing_chunk_overlap,
                rows_per_s=rows_per_s,
                min_overlap=min_overlap,
                min_recall=min_recall,
                wait=wait,
                cut_over=cut_over,
                finish=finish,
            )
        )


@Operations.implementation_for(Reembed)
def move(operations: Operations, operation: Reembed) -> None:
    with operations.get_context().autocommit_block():
        wanted = {name: getattr(operation, name) for name in WANTED}
        run(operations, _file("settle", operation, **wanted))
        if operation.wait:
            _wait(operations, operation)
        if operation.wait and operation.cut_over:
            run(operations, _filled(CUT_OVER, operation))
        if operation.finish:
            run(operations, _filled(FINISH, operation))


@Operations.register_operation("cut_over_reembedding")
@dataclass
class CutOverReembedding(TableOperation):
    name = "cut_over_reembedding"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None

    def reverse(self) -> "RollBackReembedding":
        return RollBackReembedding(self.table, self.target, schema=self.schema)

    @classmethod
    def cut_over_reembedding(cls, operations: Operations, table: str, target: str = "embedding", *, schema: str | None = None) -> None:
        """Wait for a re-embedding that an earlier revision has begun, build its indexes and have it answer; nothing where it answers already.

        Raises:
            CommandError: none is under way, or an index could not be built.
        """
        operations.invoke(cls(table, target, schema=schema))


@Operations.implementation_for(CutOverReembedding)
def cut_over(operations: Operations, operation: CutOverReembedding) -> None:
    with operations.get_context().autocommit_block():
        if not operations.get_context().as_sql:
            _check_under_way(operations, operation)
        _wait(operations, operation)
        run(operations, _filled(CUT_OVER, operation))


@Operations.register_operation("roll_back_reembedding")
@dataclass
class RollBackReembedding(TableOperation):
    name = "roll_back_reembedding"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None

    def reverse(self) -> CutOverReembedding:
        return CutOverReembedding(self.table, self.target, schema=self.schema)

    @classmethod
    def roll_back_reembedding(cls, operations: Operations, table: str, target: str = "embedding", *, schema: str | None = None) -> None:
        """The way back of `cut_over_reembedding`: the vectors of before answer, with all that was written since, and the re-embedding begins anew.

        One that was finished stays so: the way back of the `op.reembed` that began it makes the vectors of before anew.
        """
        operations.invoke(cls(table, target, schema=schema))


@Operations.implementation_for(RollBackReembedding)
def roll_back(operations: Operations, operation: RollBackReembedding) -> None:
    with operations.get_context().autocommit_block():
        run(operations, _file("back_to_ready", operation))


@Operations.register_operation("finish_reembedding")
@dataclass
class FinishReembedding(TableOperation):
    """There is no way back: `op.reembed` makes anew what this drops, and so its own way back does."""

    name = "finish_reembedding"

    table: str
    target: str = "embedding"
    _: KW_ONLY
    schema: str | None = None

    @classmethod
    def finish_reembedding(cls, operations: Operations, table: str, target: str = "embedding", *, schema: str | None = None) -> None:
        """Drop the vectors that do not answer any more since a re-embedding was cut over; nothing where there are none.

        A downgrade needs nothing for it: that of `op.reembed` makes the vectors of before anew.
        """
        operations.invoke(cls(table, target, schema=schema))


@Operations.implementation_for(FinishReembedding)
def finish(operations: Operations, operation: FinishReembedding) -> None:
    run(operations, _filled(FINISH, operation))


def _check_under_way(operations: Operations, operation: TableOperation) -> None:
    """Or cut over already."""
    if ask(operations, _filled(LAST, operation)).scalar() in (None, "cancelled", "rolled_back"):
        raise CommandError(f"no re-embedding of {operation.relation} is under way: an earlier revision needs op.reembed(…, wait=False)")


def _wait(operations: Operations, operation: TableOperation) -> None:
    """Until the re-embedding that is under way, if one is, can be cut over."""
    run(operations, _file("fill_few", operation))
    if operations.get_context().as_sql:
        run(operations, _file("await", operation))
        run_each(operations, _filled(INDEX_STEPS, operation))
        run(operations, _file("await", operation))
        return
    with session.pair(operations) as (connection, watching):
        found = reembed.find_open(connection, operation.relation, operation.target)
        if found is None or found.state in ("live", "rolled_back"):
            return
        log.info(
            "re-embedding %s of %s: from %s, %s dimensions, %s to %s, %s dimensions, %s",
            *(found.id, operation.relation, found.from_model, found.from_dim, found.from_storage, found.to_model, found.to_dim, found.to_storage),
        )
        try:
            reembed.drive(connection, watching, found.id, Lines(operation.relation))
        except (indexes.Busy, indexes.Unfinished) as error:
            raise CommandError(f"the re-embedding of {operation.relation} stopped at an index: {error}; run the migration again") from error
        except reembed.Ended as ended:
            raise CommandError(str(ended)) from ended


def _file(name: str, operation: TableOperation, **values: object) -> str:
    return _filled((Path(__file__).parent / f"{name}.sql").read_text(), operation, **values)


def _filled(statement: str, operation: TableOperation, **values: object) -> str:
    """A statement with literals for its @names@; @table@ is the table itself."""
    literals = {name: literal(value) for name, value in {"relation": operation.relation, "target": operation.target, **values}.items()}
    return re.sub(r"@(\w+)@", lambda found: {**literals, "table": operation.relation}[found[1]], statement)
