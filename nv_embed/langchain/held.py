"""
What makes the vectors of a table, as the database declares it, for stores that bring vectors along.

In:  a table      Out: `Held`, unchanged until the transaction ends
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nv_embed.client import Client
from nv_embed.errors import InvalidInput
from nv_embed.langchain.embeddings import embed
from nv_embed.langchain.operation import Operation, Statement
from nv_embed.langchain.table import Table, file

MISSING = object()


@dataclass(frozen=True)
class Held:
    """A declaration, and its live generation.

    Attributes:
        mode: what is declared: sync, async or off.
        session_mode: what `SET nv_embed.mode` says; None where it was not set.
        literals, columns: the template: the text before each column; the last column may be None.
        is_in_pieces: whether the vectors are in a table of their own.
        is_plain: whether all columns of the template are read as they were written.
    """

    mode: str
    session_mode: str | None
    truncate: str
    model: str
    revision: str
    dim: int
    literals: Sequence[str]
    columns: Sequence[str | None]
    is_in_pieces: bool
    is_plain: bool

    @property
    def takes_vectors(self) -> bool:
        """Whether rows may bring theirs. In pieces, told to wait, or of texts that only Postgres can tell, they are left to the database."""
        return self.is_plain and not self.is_in_pieces and self.mode != "off" and self.session_mode in (None, "sync")

    def text(self, values: Mapping[str, Any]) -> str | None:
        """What is embedded of a row; None where it has no content, or not all of its text is here.

        Args:
            values: by the names of columns.
        """
        parts = [None if name is None else values.get(name, MISSING) for name in self.columns]
        if any(not isinstance(part, str | None) for part in parts):
            return None
        if not "".join(part or "" for part in parts).strip():
            return None
        return "".join(literal + (part or "") for literal, part in zip(self.literals, parts, strict=True))

    def embed(self, client: Client, texts: list[str], input_type: str) -> list[list[float]]:
        """The vectors of texts by the live model, [len(texts), dim]. Raises an `EmbedError`."""
        return embed(client, texts, input_type, model=self.model, dim=self.dim, truncate=self.truncate, revision=self.revision)


def hold(table: Table, *, is_by_name: bool) -> Operation[Held]:
    """Ask, and hold the table until the transaction ends.

    Args:
        is_by_name: whether the vectors' column will be read or written by its name.
    Raises:
        InvalidInput: the column is not auto-embedded.
    """
    rows = yield Statement(file("hold"), {"relation": table.relation, "target": table.target, "is_by_name": is_by_name})
    if not rows:
        raise InvalidInput(
            f"column {table.target} of {table.relation} is not auto-embedded",
            hint=f"declare it: SELECT nv_embed.auto_embed('{table.relation}', '{{{table.content}}}', target => '{table.target}')",
        )
    return Held(*rows[0])
