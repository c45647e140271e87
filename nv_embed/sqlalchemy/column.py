"""
The column of an embedding's vectors.

Its type carries the declaration, so it is at home wherever a type is: a declarative model, a Core table, a dataclass, an SQLModel. In Python a vector
is a list of floats, whichever pgvector-python is installed.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Column, Dialect
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.sql.base import SchemaEventTarget
from sqlalchemy.types import TypeDecorator, TypeEngine

from nv_embed.sqlalchemy.embedding import Embedding, EmbeddingIndex, declare

STORAGES: dict[str, Callable[[int | None], TypeEngine[Any]]] = {"halfvec": HALFVEC, "vector": VECTOR}


class Embedded(TypeDecorator[list[float]]):
    """The type of a column that `nv_embed` keeps embedded.

    Args:
        source: a template over the table's columns, `{title}: {body}`, by the names that they have in the database.
        dim: components of a vector.
        model: the sidecar's default unless given.
        mode: who embeds what SQL writes: sync, async or off; the install's default unless given.
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
        self.embedding = Embedding(source, dim=dim, model=model, mode=mode, storage=storage, truncate=truncate, indexes=tuple(indexes))

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(STORAGES[self.embedding.storage](self.embedding.dim))

    def process_result_value(self, value: Any, dialect: Dialect) -> list[float] | None:  # noqa: ARG002
        return as_list(value)

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


def as_list(value: Any) -> list[float] | None:
    """A vector as pgvector-python gives it, in any of its versions: a list, an array of NumPy's, or an object of its own."""
    if value is None or isinstance(value, list):
        return value
    if hasattr(value, "to_list"):
        value = value.to_list()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    return [float(component) for component in value]
