"""
The table of a new store: made, declared and indexed, as far as that is not done.

In:  a table, what to declare      Out: an operation
"""

from dataclasses import dataclass

from psycopg import sql

from nv_embed.langchain.operation import Operation, Statement
from nv_embed.langchain.table import Table, file


@dataclass(frozen=True)
class Declaration:
    """As `nv_embed.auto_embed` takes it.

    Attributes:
        mode: None for the install's default.
    """

    model: str | None
    dim: int | None
    mode: str | None
    storage: str
    truncate: str


def create(table: Table, declaration: Declaration, *, index: bool) -> Operation[None]:
    """Make what is not there. Programs that start at the same time wait for each other."""
    embedding = {"relation": table.relation, "target": table.target}
    yield Statement(sql.SQL("SELECT pg_advisory_xact_lock(hashtextextended('nv_embed.langchain ' || %s, 0))"), [table.relation])
    if (yield Statement(sql.SQL("SELECT to_regclass(%s)"), [table.relation])) == [(None,)]:
        yield Statement(file("create", table=table.identifier))
    yield Statement(file("declare"), {**embedding, **vars(declaration)})
    if index:
        steps = yield Statement(sql.SQL("SELECT nv_embed.create_index_steps(%(relation)s::regclass, %(target)s, concurrently => false)"), embedding)
        for (step,) in steps:
            yield Statement(sql.SQL(step), None)
