"""
`search`: nv_search as a select of a model.

The rows that `nv_search` finds are joined to the model's by primary key, so whatever a select can do with a model, its relationships included, is
done with what was found. What `where` asks for goes into nv_search's own filter, since filtered afterwards it would leave fewer than k: when the
statement is compiled, the criteria of the select around are written as text, and every value in them is an argument of Postgres's `format`, which
quotes it.

In:  a model and a question      Out: a select of (object, score), best first
"""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import sqlalchemy
from sqlalchemy import (
    REAL,
    BindParameter,
    ColumnElement,
    Enum,
    Float,
    Select,
    String,
    Table,
    Text,
    and_,
    func,
    inspect,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg import PGCompiler_psycopg, PGDialect_psycopg
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.sqltypes import TupleType
from sqlalchemy.types import NullType, TypeEngine

from nv_embed.errors import InvalidInput
from nv_embed.sqlalchemy.embedding import declared, quoted, relation_name
from nv_embed.sqlalchemy.question import Question, VectorText, embedded

T = TypeVar("T")

FOUND = "nv_embed_found"


def search(
    entity: type[T],
    question: str | Sequence[float],
    *,
    k: int = 10,
    target: str | None = None,
    dim: int | None = None,
    rescore: bool = True,
    oversample: float = 4,
) -> Select[T, float]:
    """The k objects that are nearest to a question, best first, each with its score, the cosine similarity.

    `where` filters what is searched: by the columns of the model's table, and by others through `any()`, `has()` or `exists()`.

    Args:
        entity: a mapped class.
        question: a text, or a vector as wide as the stored ones.
        target: the embedding; its table's only one unless given.
        dim, rescore, oversample: as `nv_search` takes them.
    Raises:
        InvalidInput: there is no such embedding.
    """
    mapper: Mapper[T] = inspect(entity)
    table, name = _find(mapper, target)
    if isinstance(question, str):
        vector = embedded(Question(question, relation_name(table), name, is_by_name=False))
    else:
        vector = sqlalchemy.cast(literal(question, VectorText()), VectorText())
    settings: dict[str, ColumnElement[Any]] = {
        "k": literal(k),
        "target": literal(name),
        "rescore": literal(rescore),
        "oversample": sqlalchemy.cast(oversample, REAL),
    }
    if dim is not None:
        settings["dim"] = literal(dim)
    found = _Call(table, vector, settings).table_valued("hit", "score", name=FOUND)
    keys = [literal_column(f"({FOUND}.hit).{quoted(column.name)}", column.type).label(column.key) for column in table.primary_key]
    hits = select(*keys, literal_column(f"{FOUND}.score", Float()).label("score")).select_from(found).subquery()
    own_keys = [mapper.get_property_by_column(column).class_attribute for column in table.primary_key]
    joined = and_(*(own == hits.c[column.key] for own, column in zip(own_keys, table.primary_key, strict=True)))
    return select(entity, hits.c.score).join(hits, joined).order_by(hits.c.score.desc(), *own_keys)


def _find(mapper: Mapper[Any], target: str | None) -> tuple[Table, str]:
    """The table and the target of a model's embedding, of those that it inherits too."""
    found = {name: table for table in mapper.tables if isinstance(table, Table) for name in declared(table)}
    if target is None and len(found) == 1:
        target = next(iter(found))
    if target not in found:
        known = ", ".join(found) or "none: give it an embedded_column()"
        wanted = "more than one embedding, or none" if target is None else f"no embedding '{target}'"
        raise InvalidInput(f"{mapper.class_.__name__} has {wanted}", hint=f"target is one of {known}")
    return found[target], target


class _Call(FunctionElement[Any]):
    """nv_search in a FROM.

    Not cached: its text depends on the values that the select around is filtered by.
    """

    name = "nv_search"
    inherit_cache = False

    def __init__(self, table: Table, vector: ColumnElement[Any], settings: dict[str, ColumnElement[Any]]) -> None:
        super().__init__(vector)
        self.table = table
        self.vector = vector
        self.settings = settings


@compiles(_Call)
def _compile_call(call: _Call, compiler: SQLCompiler, **_: Any) -> str:
    criteria = cast("Select[Any]", compiler.stack[-2]["selectable"])._where_criteria
    settings = {**call.settings, **({"filter": _filter(call.table, criteria)} if criteria else {})}
    arguments = [f"NULL::{compiler.preparer.format_table(call.table)}", compiler.process(call.vector)]
    return f"nv_search({', '.join([*arguments, *(f'{name} => {compiler.process(value)}' for name, value in settings.items())])})"


class _Filter(PGCompiler_psycopg):
    """Writes a filter with holes for `format` where values are; the values are then the dialect's `arguments`."""

    def visit_bindparam(self, bindparam: BindParameter[Any], *_: Any, **__: Any) -> str:
        if not bindparam.expanding:
            return self._hole(bindparam)
        values = [self._listed(value, bindparam.type) for value in bindparam.effective_value or ()]
        return f"({', '.join(values) or 'SELECT NULL WHERE false'})"

    def _listed(self, value: Any, kind: TypeEngine[Any]) -> str:
        if isinstance(kind, TupleType):
            return f"({', '.join(self._hole(literal(part, of)) for part, of in zip(value, kind.types, strict=True))})"
        return self._hole(literal(value, kind))

    def _hole(self, value: BindParameter[Any]) -> str:
        arguments = cast(_FilterDialect, self.dialect).arguments
        arguments.append(value)
        hole = f"%{len(arguments)}$L"
        if isinstance(value.type, NullType):
            return hole
        return str(self.render_bind_cast(value.type, value.type.dialect_impl(self.dialect), hole))  # type: ignore[no-untyped-call]


class _FilterDialect(PGDialect_psycopg):
    statement_compiler = _Filter

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arguments: list[BindParameter[Any]] = []


def _filter(table: Table, criteria: Sequence[ColumnElement[Any]]) -> ColumnElement[str]:
    """What nv_search is to filter by, as an expression that Postgres writes its text by."""
    criterion = and_(*criteria)
    others = {str(each) for each in criterion._from_objects if each is not table}
    if others:
        raise InvalidInput(
            f"search() of {table.name} is filtered by {', '.join(sorted(others))}, but filters before it finds the nearest",
            hint="ask by any(), has() or exists(), or filter what was found: select from search(…).subquery()",
        )
    # As the WHERE of a select from its table, so that subqueries refer to that. A percent sign is doubled, as psycopg wants it, and `format` too.
    dialect = _FilterDialect()
    everything = select(sqlalchemy.true()).select_from(table)
    before = str(everything.where(literal_column("true")).compile(dialect=dialect)).removesuffix("true")
    template = str(everything.where(criterion).compile(dialect=dialect)).removeprefix(before)
    return func.format(literal(template), *(_typed(value, dialect) for value in dialect.arguments), type_=Text())


def _typed(value: BindParameter[Any], dialect: _FilterDialect) -> ColumnElement[Any]:
    """As an argument of `format`, which takes any type, but one that is known."""
    if isinstance(value.type, NullType | String) and not isinstance(value.type, Enum):
        return sqlalchemy.cast(value, Text())
    if value.type.dialect_impl(dialect).render_bind_cast:
        return value
    return sqlalchemy.cast(value, value.type)
