"""
What all operations have in common: how a script says them, and how their SQL is written and run.

Literals are written into the statements, in a database as on paper: what `--sql` prints is what would have been run.
"""

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations
from psycopg import sql
from sqlalchemy import Connection, CursorResult

from nv_embed.sqlalchemy.embedding import quoted

LINE = 100
"""Characters from which on a rendered call takes a line for each argument."""

HIDDEN = {"nv_embed.hidden": True}
"""Of a field that autogenerate knows of, and no script says."""


@dataclass
class Operation(MigrateOperation):
    """A value of which a script makes a call; its fields are the call's arguments, the keyword-only ones by their names.

    Attributes:
        name: of the call.
        note: what a script says above it.
    """

    name: ClassVar[str]
    note: str | None = field(default=None, metadata=HIDDEN, kw_only=True)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return (self.name, *(value for _, value in self.arguments()))

    def arguments(self) -> Iterator[tuple[Field[Any], Any]]:
        """The fields that a script says, with their values: those that are not what they are by default."""
        for each in fields(self):
            value = getattr(self, each.name)
            if not each.metadata.get("nv_embed.hidden") and (each.default is MISSING or value != each.default):
                yield each, value


class TableOperation(Operation):
    """An operation on a table's embedding."""

    table: str
    target: str
    schema: str | None

    @property
    def relation(self) -> str:
        """The table's name, as SQL reads it."""
        return ".".join(quoted(name) for name in (self.schema, self.table) if name is not None)

    @property
    def place(self) -> dict[str, Any]:
        """The first two arguments of most functions."""
        return {"relation": self.relation, "target": self.target}


@renderers.dispatch_for(Operation)
def render(context: AutogenContext, operation: Operation) -> list[str]:
    """A call, below its note."""
    arguments = [f"{each.name}={value!r}" if each.kw_only else repr(value) for each, value in operation.arguments()]
    head = f"{context.opts['alembic_module_prefix'] or ''}{operation.name}("
    call = f"{head}{', '.join(arguments)})"
    if len(call) > LINE:
        call = "\n".join([head, *(f"    {argument}," for argument in arguments), ")"])
    return [*([f"# {operation.note}"] if operation.note else []), call]


def literal(value: Any) -> str:
    return sql.Literal(value).as_string(None)


def call(function: str, **arguments: Any) -> str:
    """A call of a function of nv_embed's; an argument that is None is left to the function."""
    named = ", ".join(f"{name} => {literal(value)}" for name, value in arguments.items() if value is not None)
    return f"nv_embed.{function}({named})"


def run(operations: Operations, statement: str) -> None:
    context = operations.get_context()
    if context.as_sql:
        context.impl.static_output(f"{statement.strip().removesuffix(';')};")
    else:
        ask(operations, statement)


def run_each(operations: Operations, query: str) -> None:
    r"""Run the statements that a query returns, each by itself; on paper that is psql's `\gexec`."""
    context = operations.get_context()
    if context.as_sql:
        context.impl.static_output(rf"{query.strip()} \gexec")
        return
    for (statement,) in ask(operations, query).all():
        run(operations, statement)


def ask(operations: Operations, query: str) -> "CursorResult[*tuple[Any, ...]]":
    """What a statement answers that is sent as it is: no percent sign in it stands for an argument."""
    return connected(operations).exec_driver_sql(query, execution_options={"no_parameters": True})


def connected(operations: Operations) -> Connection:
    """The connection that the migration runs in."""
    connection = operations.get_context().connection
    assert connection is not None
    return connection
