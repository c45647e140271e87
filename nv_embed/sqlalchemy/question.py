"""
Questions in statements.

A question's vector is a scalar of the statement: `coalesce(VECTOR, (SELECT embed_searched(QUESTION, 'docs')))`. The database embeds the question,
once a statement, unless the session has a sidecar of its own (`session.py`): then the vector comes with the parameters. The statement is the same
either way, and an index's order can be read by it.

In:  a column and a text      Out: an expression of the vector's type
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import BindParameter, Column, ColumnElement, String, Table, cast, func, literal, select
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement

from nv_embed.errors import InvalidInput
from nv_embed.sqlalchemy import vector
from nv_embed.sqlalchemy.embedding import relation_name


@dataclass(frozen=True)
class Question:
    """What a statement asks.

    Attributes:
        relation, target: the embedding whose model is to embed it.
        is_by_name: whether it is compared with the column of that name, which must then be that of the generation that the transaction sees.
    """

    text: str
    relation: str
    target: str
    is_by_name: bool


_answers: ContextVar[Mapping[Question, str | None]] = ContextVar("nv_embed_answers", default=MappingProxyType({}))


class Answer(BindParameter[Any]):
    """A question's vector as a parameter: NULL unless the session has it."""

    inherit_cache = True

    def __init__(self, question: Question) -> None:
        super().__init__(None, callable_=lambda: _answers.get().get(question), type_=VectorText(), unique=True)
        self.question = question


class VectorText(VECTOR):
    """A vector that is written already."""

    cache_ok = True

    def bind_processor(self, dialect: Any) -> Any:  # noqa: ARG002
        return vector.written


def asked(column: ColumnElement[Any], question: str | Sequence[float]) -> ColumnElement[Any]:
    """The vector of a question, to be compared with a column's; of type vector, as wide as it is."""
    if not isinstance(question, str):
        return cast(literal(question, VectorText()), VECTOR())
    table, target = _place(column)
    return embedded(Question(question, relation_name(table), target, is_by_name=True))


def embedded(question: Question) -> ColumnElement[Any]:
    """The vector of a question, of type vector."""
    relation = cast(literal(question.relation, String()), REGCLASS)
    call = func.nv_embed.embed_searched(literal(question.text, String()), relation, question.target, question.is_by_name)
    return func.coalesce(cast(Answer(question), VECTOR()), select(call).scalar_subquery(), type_=VECTOR())


def questions(statement: ClauseElement) -> set[Question]:
    """What a statement asks."""
    return {element.question for element in visitors.iterate(statement) if isinstance(element, Answer)}


@contextmanager
def answered(answers: Mapping[Question, str | None]) -> Iterator[None]:
    """Have statements that are executed in here take these vectors, in text form."""
    token = _answers.set(answers)
    try:
        yield
    finally:
        _answers.reset(token)


def _place(column: ColumnElement[Any]) -> tuple[Table, str]:
    """The table and the name of a column, of an alias's too."""
    for base in column.base_columns:
        if isinstance(base, Column) and isinstance(base.table, Table):
            return base.table, base.name
    raise InvalidInput(f"{column} is no column of a table", hint="ask the column itself, or give the vector of the question")
