"""
Autogenerate: from the embeddings of the metadata and those of a database to operations.

It runs after Alembic's own comparison, which knows of tables, columns and indexes alone. What that says of things that are nv_embed's is taken out:
columns of vectors, chunk tables, shadow columns, indexes. What is left to say is put in where it belongs: what drops an index or builds one
concurrently, or moves vectors, commits what was done before, so it goes first or last; the rest stays with its table.

In:  Alembic's operations      Out: the same, with ours among them
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pgvector.sqlalchemy  # noqa: F401  # so that its types are known when a table is read
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation
from alembic.operations.ops import (
    AddColumnOp,
    AlterColumnOp,
    CreateTableOp,
    DropColumnOp,
    DropIndexOp,
    DropTableOp,
    ModifyTableOps,
    UpgradeOps,
)
from alembic.util import DispatchPriority
from sqlalchemy import Column
from sqlalchemy import Table as MetadataTable
from sqlalchemy.schema import SchemaItem

from nv_embed.alembic import catalog
from nv_embed.alembic.catalog import Catalog, Present, Table
from nv_embed.alembic.embedding import AlterAutoEmbedding, CreateAutoEmbedding
from nv_embed.alembic.index import CreateEmbeddingIndex, DropEmbeddingIndex
from nv_embed.alembic.reembedding import Reembed
from nv_embed.alembic.watcher import log
from nv_embed.sqlalchemy import Embedding, EmbeddingIndex, declared
from nv_embed.sqlalchemy.embedding import KEY, source_columns

RenderItem = Callable[[str, Any, AutogenContext], str | Literal[False]]

MADE_ANEW = "A column that was embedded goes: searches find nothing here until the vectors are made anew."
COMMITS = "Commits what was done before: best in a revision of its own."


@comparators.dispatch_for("schema", qualifier="postgresql", priority=DispatchPriority.LAST)
def compare(context: AutogenContext, upgrade: UpgradeOps, schemas: set[str | None]) -> None:
    assert context.connection is not None
    found = catalog.read(context.connection, context.connection.dialect.default_schema_name)
    _Comparison(context, upgrade, found, schemas).run()
    context.opts["render_item"] = _importing(context.opts.get("render_item"))


def _importing(render_item: RenderItem | None) -> RenderItem:
    """Has a script that says a type of pgvector's import it, and leaves the saying to whoever says it now."""

    def render(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
        if kind == "type" and type(item).__module__.startswith("pgvector."):
            context.imports.add("import pgvector.sqlalchemy")
        return False if render_item is None else render_item(kind, item, context)

    return render


@dataclass
class Edit:
    """What becomes of a table's embeddings.

    Attributes:
        first, last: before and after all else that a revision does.
        middle: with what else becomes of the table, in this order.
    """

    first: list[MigrateOperation] = field(default_factory=list)
    middle: list[MigrateOperation] = field(default_factory=list)
    last: list[MigrateOperation] = field(default_factory=list)


class _Comparison:
    def __init__(self, context: AutogenContext, upgrade: UpgradeOps, found: Catalog, schemas: set[str | None]) -> None:
        self._context = context
        self._upgrade = upgrade
        self._found = found
        self._schemas = schemas
        self._metadata = {self._key(table.schema, table.name): table for table in context.sorted_tables}
        self._created = {self._key(each.schema, each.table_name): each for each in upgrade.ops if isinstance(each, CreateTableOp)}

    def run(self) -> None:
        self._forget_what_is_ours()
        dropped = [each for each in self._upgrade.ops if isinstance(each, DropTableOp)]
        edits = [self._of_dropped(each) for each in dropped]
        for table in self._metadata.values():
            if self._is_compared(table):
                edits.append(self._of_table(table))
        if not self._found.is_installed and any(edit.middle for edit in edits):
            log.warning("nv_embed is not in this database: an earlier revision needs op.create_extension_nv_embed() or op.install_nv_embed_library()")
        self._upgrade.ops[:0] = [each for edit in edits for each in edit.first]
        self._upgrade.ops += [each for edit in edits for each in edit.last]

    def _key(self, schema: str | None, name: str) -> Table:
        assert self._context.connection is not None
        return (None if schema == self._context.connection.dialect.default_schema_name else schema, name)

    def _is_compared(self, table: MetadataTable) -> bool:
        """Whether Alembic has compared it too: a project may leave schemas and tables out."""
        schema, name = self._key(table.schema, table.name)
        return (
            schema in self._schemas
            and self._context.run_name_filters(name, "table", {"schema_name": schema})
            and self._context.run_object_filters(table, name, "table", False, None)
        )

    # What Alembic says of things that are nv_embed's.

    def _forget_what_is_ours(self) -> None:
        kept = []
        for each in self._upgrade.ops:
            if isinstance(each, DropTableOp | ModifyTableOps) and self._is_ours(self._key(each.schema, each.table_name)):
                continue
            if isinstance(each, ModifyTableOps):
                each.ops = list(self._modifications(each))
                if each.is_empty():
                    continue
            kept.append(each)
        self._upgrade.ops[:] = kept

    def _is_ours(self, table: Table) -> bool:
        return table not in self._metadata and (table[0] == catalog.SCHEMA or table in self._found.chunks)

    def _modifications(self, modified: ModifyTableOps) -> Iterator[MigrateOperation]:
        key = self._key(modified.schema, modified.table_name)
        present = self._found.tables.get(key, Present())
        table = self._metadata.get(key)
        wanted = {} if table is None else declared(table)
        named = set() if table is None else _index_names(table)
        dropped_with_them = present.shadow_columns | _columns(present.embeddings)
        for each in modified.ops:
            if isinstance(each, DropIndexOp) and each.index_name in (present.indexes.keys() | present.shadow_indexes) - named:
                continue
            if isinstance(each, DropColumnOp) and each.column_name in dropped_with_them:
                continue
            if isinstance(each, AlterColumnOp) and each.column_name in _columns(wanted):
                each.modify_type = None
                if not each.has_changes():
                    continue
            yield each

    # What becomes of embeddings.

    def _of_dropped(self, dropped: DropTableOp) -> Edit:
        """They go before their table, and come back after it."""
        present = self._found.tables.get(self._key(dropped.schema, dropped.table_name), Present())
        embeddings = present.indexed()
        before: list[MigrateOperation] = []
        for embedding in embeddings.values():
            place = _Place(dropped.schema, dropped.table_name, embedding.target)
            before += [_drop_index(place, index, concurrently=False) for index in _written(embedding)]
            before.append(_create(place, embedding).reverse())
        position = self._upgrade.ops.index(dropped)
        bare = dropped.reverse()
        bare.columns = _without(bare.columns, present.shadow_columns | _columns(embeddings))
        self._upgrade.ops[position : position + 1] = [*before, bare.reverse()]
        return Edit(middle=before)

    def _of_table(self, table: MetadataTable) -> Edit:
        schema, name = key = self._key(table.schema, table.name)
        wanted, present = declared(table), self._found.tables.get(key, Present()).indexed(but=_index_names(table))
        created = self._created.get(key)
        added = set() if created else self._take_added_columns(key, _columns(wanted) - _columns(present))
        edit = Edit()
        for target in [*(each for each in present if each not in wanted), *wanted]:
            place = _Place(table.schema, name, target)
            if target not in wanted:
                self._drop(edit, place, present[target], keep_vectors=target in table.columns)
            elif target not in present:
                column_stays = target in table.columns and created is None and target not in added
                self._add(edit, place, wanted[target], column_stays, is_new=created is not None)
            else:
                self._change(edit, place, present[target], wanted[target], {column.name for column in table.columns})
        edit.middle += list(_comments(table, edit.middle))
        if created is not None:
            created.columns = _without(created.columns, _columns(wanted))
            created.info = {key: value for key, value in created.info.items() if key != KEY}
            position = self._upgrade.ops.index(created) + 1
            self._upgrade.ops[position:position] = edit.middle
        elif edit.middle:
            self._insert(schema, name, edit.middle)
        return edit

    def _take_added_columns(self, key: Table, targets: set[str]) -> set[str]:
        """The columns that an embedding adds, and not Alembic."""
        taken = set()
        for modified in self._modified(key):
            taken |= {each.column.name for each in modified.ops if isinstance(each, AddColumnOp)} & targets
            modified.ops = [each for each in modified.ops if not (isinstance(each, AddColumnOp) and each.column.name in targets)]
        self._upgrade.ops[:] = [each for each in self._upgrade.ops if not (isinstance(each, ModifyTableOps) and each.is_empty())]
        return taken

    def _modified(self, key: Table) -> list[ModifyTableOps]:
        return [each for each in self._upgrade.ops if isinstance(each, ModifyTableOps) and self._key(each.schema, each.table_name) == key]

    def _insert(self, schema: str | None, name: str, operations: list[MigrateOperation]) -> None:
        """After columns have been added that may be sources, before indexes that may be of vectors, and before columns are dropped."""
        modified = self._modified((schema, name))
        if not modified:
            self._upgrade.ops.append(ModifyTableOps(name, operations, schema=schema))
            return
        before = [each for each in modified[0].ops if isinstance(each, AddColumnOp | AlterColumnOp | DropIndexOp)]
        modified[0].ops = [*before, *operations, *(each for each in modified[0].ops if each not in before)]

    def _drop(self, edit: Edit, place: "_Place", embedding: Embedding, keep_vectors: bool) -> None:
        edit.first += [_drop_index(place, index) for index in _written(embedding)]
        edit.middle.append(_create(place, embedding, column_stays=keep_vectors).reverse())
        log.info("Detected removed embedding '%s'", place)

    def _add(self, edit: Edit, place: "_Place", embedding: Embedding, column_stays: bool, is_new: bool = False) -> None:
        edit.middle.append(_create(place, embedding, column_stays=column_stays))
        indexes = [_create_index(place, index, concurrently=not is_new) for index in embedding.indexes]
        (edit.middle if is_new else edit.last).extend(indexes)
        log.info("Detected added embedding '%s'", place)

    def _change(self, edit: Edit, place: "_Place", present: Embedding, wanted: Embedding, columns: set[str]) -> None:
        if not set(source_columns(present.source)) <= columns:
            # Its vectors could not be kept in step until those of another source are there.
            self._make_anew(edit, place, present, wanted)
            return
        moves = self._moves(present, wanted)
        differs = {name: getattr(wanted, name) for name in ("mode", "truncate") if getattr(wanted, name) not in (None, getattr(present, name))}
        if differs:
            existing = {f"existing_{name}": getattr(present, name) for name in differs}
            edit.middle.append(AlterAutoEmbedding(place.table, place.target, schema=place.schema, **differs, **existing))
            log.info("Detected changed embedding '%s': %s", place, ", ".join(differs))
        if moves:
            existing = {f"existing_{name}": getattr(present, name) for name in moves}
            if "chunk_tokens" in moves:
                existing["existing_chunk_tokens"] = present.chunk_tokens or 0
            edit.last.append(replace(Reembed(place.table, place.target, schema=place.schema, **moves, **existing), note=COMMITS))
            log.info("Detected changed embedding '%s': %s", place, ", ".join(moves))
        self._change_indexes(edit, place, present, wanted, moves.get("dim") or present.dim)

    def _make_anew(self, edit: Edit, place: "_Place", present: Embedding, wanted: Embedding) -> None:
        again = replace(wanted, model=wanted.model or present.model, dim=wanted.dim or (present.dim if wanted.model is None else None))
        edit.first += [_drop_index(place, index) for index in _written(present)]
        dropped = _create(place, present).reverse()
        edit.middle += [replace(dropped, note=MADE_ANEW), _create(place, again)]
        edit.last += [_create_index(place, index) for index in wanted.indexes]
        log.info("Detected changed embedding '%s': it is made anew", place)

    def _moves(self, present: Embedding, wanted: Embedding) -> dict[str, Any]:
        """What a re-embedding is to change. None in the metadata is whatever is."""
        assert self._context.connection is not None
        moves: dict[str, Any] = {}
        if wanted.model not in (None, present.model) and catalog.whole_name(self._context.connection, str(wanted.model)) != present.model:
            moves = {"model": wanted.model, "dim": wanted.dim}
        elif wanted.dim not in (None, present.dim):
            moves = {"dim": wanted.dim}
        moves |= {name: getattr(wanted, name) for name in ("storage", "source", "chunk_overlap") if getattr(wanted, name) != getattr(present, name)}
        return moves if wanted.chunk_tokens == present.chunk_tokens else {**moves, "chunk_tokens": wanted.chunk_tokens or 0}

    def _change_indexes(self, edit: Edit, place: "_Place", present: Embedding, wanted: Embedding, dim: int | None) -> None:
        """Those that the vectors have, as a re-embedding leaves them, against those that they are to have."""
        assert isinstance(present.dim, int)
        left = [index for index in present.indexes if index.dim == present.dim or not isinstance(dim, int) or (index.dim or 0) <= dim]
        has = {(dim if index.dim == present.dim else index.dim, index.method, index.storage): index for index in left}
        wants = {(index.dim or dim, index.method, index.storage): index for index in wanted.indexes}
        for index in present.indexes:
            key = (dim if index.dim == present.dim else index.dim, index.method, index.storage)
            if key not in wants or index not in left or _is_built_otherwise(index, wants[key]):
                edit.first.append(_drop_index(place, replace(index, dim=None if index.dim == present.dim else index.dim)))
                log.info("Detected removed index of embedding '%s'", place)
        for key, index in wants.items():
            if key not in has or _is_built_otherwise(has[key], index):
                edit.last.append(_create_index(place, index))
                log.info("Detected added index of embedding '%s'", place)


def _index_names(table: MetadataTable) -> set[str]:
    """Of indexes that are a project's own: Alembic makes and compares them."""
    return {str(index.name) for index in table.indexes}


@dataclass(frozen=True)
class _Place:
    schema: str | None
    table: str
    target: str

    def __str__(self) -> str:
        return ".".join(name for name in (self.schema, self.table, self.target) if name is not None)


def _create(place: _Place, embedding: Embedding, column_stays: bool = False) -> CreateAutoEmbedding:
    options = {name: value for name, value in vars(embedding).items() if name not in ("source", "target", "indexes")}
    return CreateAutoEmbedding(place.table, embedding.source, place.target, schema=place.schema, column_stays=column_stays, **options)


def _create_index(place: _Place, index: EmbeddingIndex, concurrently: bool = True) -> CreateEmbeddingIndex:
    return CreateEmbeddingIndex(place.table, place.target, schema=place.schema, concurrently=concurrently, **vars(index))


def _drop_index(place: _Place, index: EmbeddingIndex, concurrently: bool = True) -> DropEmbeddingIndex:
    return DropEmbeddingIndex(place.table, place.target, schema=place.schema, concurrently=concurrently, **vars(index))


def _written(embedding: Embedding) -> list[EmbeddingIndex]:
    """A database's indexes as metadata would say them: those of all components without a number."""
    return [replace(index, dim=None) if index.dim == embedding.dim else index for index in embedding.indexes]


def _is_built_otherwise(present: EmbeddingIndex, wanted: EmbeddingIndex) -> bool:
    return any(getattr(wanted, name) not in (None, getattr(present, name)) for name in ("m", "ef_construction", "lists"))


def _comments(table: MetadataTable, operations: Sequence[MigrateOperation]) -> Iterator[AlterColumnOp]:
    """What the metadata say of columns that embeddings add, and not Alembic."""
    for each in operations:
        if isinstance(each, CreateAutoEmbedding) and not each.column_stays and each.target in table.columns:
            comment = table.columns[each.target].comment
            if comment is not None:
                yield AlterColumnOp(table.name, each.target, schema=table.schema, modify_comment=comment, existing_comment=None)


def _columns(embeddings: dict[str, Embedding]) -> set[str]:
    """Of vectors; those of pieces lie in a table of their own."""
    return {target for target, each in embeddings.items() if each.chunk_tokens is None}


def _without(items: Sequence[SchemaItem], columns: set[str]) -> list[SchemaItem]:
    return [item for item in items if not (isinstance(item, Column) and item.name in columns)]
