"""
What makes the vectors of a column, as the database declares it.

Metadata may be older than the database, or newer; vectors must be those of the generation that is live. So whoever brings vectors along asks, and
holds the table: no cut-over comes between the answer and the end of the transaction.

In:  a session, an embedding      Out: its template, and the model to ask
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

HOLD = text("SELECT * FROM nv_embed.hold_embedding(CAST(:relation AS regclass), :target, :is_by_name)")


@dataclass(frozen=True)
class Held:
    """A declaration, and its live generation.

    Attributes:
        mode: what is declared: sync, async or off.
        session_mode: what `SET nv_embed.mode` says; None where it was not set.
        literals, columns: the template: the text before each column; the last column may be None.
        is_async: whether the database is talked to by an asyncio driver.
    """

    mode: str
    session_mode: str | None
    truncate: str
    model: str
    revision: str
    dim: int
    storage: str
    literals: Sequence[str]
    columns: Sequence[str | None]
    is_async: bool


def hold(session: Session, relation: str, target: str, bind: dict[str, Any], *, is_by_name: bool = True) -> Held | None:
    """Ask, and hold the table until the transaction ends; None where the column is not auto-embedded.

    Args:
        relation: the table's name, as SQL reads it.
        bind: which database it is in, as `Session.execute` takes it.
        is_by_name: whether the column will be read or written by its name.
    Raises:
        sqlalchemy.exc.DBAPIError: of SQLSTATE 40001, where by that name the transaction would meet vectors that its snapshot does not have.
    """
    arguments = {"relation": relation, "target": target, "is_by_name": is_by_name}
    row = session.execute(HOLD, arguments, bind_arguments=bind).one_or_none()
    return None if row is None else Held(**row._mapping, is_async=session.get_bind(**bind).dialect.is_async)
