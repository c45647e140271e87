"""
The column of an embedding's vectors.

Its type carries the declaration, so it is at home wherever a type is: a declarative model, a Core table, a dataclass, an SQLModel. What can be asked
of the column is here too: `Doc.embedding.similar_to("who built it?")` is a distance, to order and to filter by.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Column, ColumnElement, Dialect, Float, cast, func, literal_column
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.sql.base import SchemaEventTarget
from sqlalchemy.types import TypeDecorator, TypeEngine

from nv_embed.errors import InvalidInput
from nv_embed.sqlalchemy.embedding import Embedding, EmbeddingIndex, declare
from nv_embed.sqlalchemy.question import asked
from nv_embed.sqlalchemy.vector import read, written

STORAGES: dict[str, Callable[[int | None], TypeEngine[Any]]] = {"halfvec": HALFVEC, "vector": VECTOR}


class Embedded(TypeDecorator[list[float]]):
    """The type of a column that `nv_embed` keeps embedded.

    Args:
        source: a template over the table's columns, `{title}: {body}`, by the names that they have in the database.
        dim: components of a vector.
        model: the sidecar's default unless given.
        mode: who embeds what SQL writes: sync, async or off; the install's default unless given. Flushes leave rows to the worker where it is async.
        storage: halfvec or vector.
        truncate: NONE, START or END.
        indexes: that the vectors are to have.
    """

    impl = HALFVEC
    cache_ok = True

    def __init__(
        self,
        source: str,
        *,
        dim: int,
        model: str | None = None,
        mode: str | None = None,
        storage: str = "halfvec",
        truncate: str = "NONE",
        indexes: Iterable[EmbeddingIndex] = (),
    ) -> None:
        super().__init__(dim)
        self.dim = dim
        self.embedding = Embedding(source, dim=dim, model=model, mode=mode, storage=_known(storage), truncate=truncate, indexes=tuple(indexes))

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(STORAGES[self.embedding.storage](self.dim))

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str | None]:  # noqa: ARG002
        return written

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], list[float] | None]:  # noqa: ARG002
        return read

    class Comparator(TypeDecorator.Comparator[list[float]]):
        """What an attribute or a column of this type can do beside pgvector's own `cosine_distance` and the like."""

        def similar_to(self, question: str | Sequence[float], *, dim: int | None = None, storage: str | None = None) -> ColumnElement[float]:
            """How far each row is from a question: the cosine distance, 0 for the same direction and 1 for nothing in common.

            Ordered by, ascending, it reads the index that `nv_embed.create_index_sql` makes with the same `dim` and `storage`, where there is one.

            Args:
                question: a text, which is embedded once a statement by the model of the live vectors; or a vector as wide as the stored ones.
                dim: compare so many first components; all unless given.
                storage: of that index: halfvec or vector; the column's own for all components, else halfvec.
            """
            kind, column = self.type, self.expr
            assert isinstance(kind, Embedded)
            width = kind.dim if dim is None else dim
            if not 1 <= width <= kind.dim:
                raise InvalidInput(f"{width} is not a number of dimensions of {column}", hint=f"it has {kind.dim}")
            stored = _known(storage or (kind.embedding.storage if width == kind.dim else "halfvec"))
            # As wide as the live vectors are: metadata may be older.
            vector = cast(asked(column, question), STORAGES[kind.embedding.storage](None))
            return _prefix(column, kind, width, stored).op("<=>", return_type=Float())(_prefix(vector, kind, width, stored))

    comparator_factory = Comparator

    def _set_parent(self, parent: SchemaEventTarget, outer: bool = False, **options: Any) -> None:
        super()._set_parent(parent, outer, **options)
        assert isinstance(parent, Column)
        parent._on_table_attach(lambda column, table: declare(table, replace(self.embedding, target=column.name)))


def embedded_column(
    source: str,
    *,
    dim: int,
    model: str | None = None,
    mode: str | None = None,
    storage: str = "halfvec",
    truncate: str = "NONE",
    indexes: Iterable[EmbeddingIndex] = (),
    **column: Any,
) -> MappedColumn[Any]:
    """`mapped_column` of type `Embedded`; further arguments are `mapped_column`'s."""
    kind = Embedded(source, dim=dim, model=model, mode=mode, storage=storage, truncate=truncate, indexes=indexes)
    return mapped_column(kind, **{"nullable": True, **column})


def _known(storage: str) -> str:
    if storage not in STORAGES:
        raise InvalidInput(f"storage '{storage}' is unknown", hint=f"storage is one of {', '.join(STORAGES)}")
    return storage


def _prefix(of: ColumnElement[Any], kind: Embedded, dim: int, storage: str) -> ColumnElement[Any]:
    """Just the expression that an index is on: Postgres compares them as they are written."""
    whole = dim == kind.dim
    if whole and storage == kind.embedding.storage:
        return of
    return cast(of if whole else func.subvector(of, literal_column("1"), literal_column(str(dim))), STORAGES[storage](dim))
