"""
The table of a store: its names, and the statements over it.

Names are composed as identifiers, values are parameters; documents travel as one parameter of JSON, which Postgres reads by the types of the table's
own columns.

In:  names, documents      Out: `Statement`s, and documents of their rows
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import orjson
from langchain_core.documents import Document
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer

from nv_embed.errors import InvalidInput
from nv_embed.langchain.filters import Filter
from nv_embed.langchain.operation import Statement
from nv_embed.langchain.values import checked, plain, written

OPTIONS = {"k": "int", "target": "name", "dim": "int", "rescore": "boolean", "oversample": "real", "rrf_k": "int", "config": "regconfig"}
"""Arguments of the functions that search, and their types."""


@dataclass(frozen=True)
class Table:
    """Where a store has its documents.

    Attributes:
        schema: None where `search_path` finds the table.
        id, content: columns; the first is the primary key, or unique.
        metadata: a jsonb column; None where there is none.
        columns: keys of the metadata that have a column of their own.
        target: the embedding's.
    """

    name: str
    schema: str | None = None
    id: str = "id"
    content: str = "content"
    metadata: str | None = "metadata"
    columns: tuple[str, ...] = ()
    target: str = "embedding"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if self.schema is None else (self.schema, self.name)

    @property
    def relation(self) -> str:
        """The table's name as SQL reads it, for a parameter."""
        return sql.Identifier(*self.names).as_string(None)

    @property
    def identifier(self) -> sql.SQL:
        """The same, in a statement."""
        return quoted(*self.names)

    def row(self, place: int, content: str, metadata: Mapping[str, Any], id: str | None) -> "Row":
        """A document as a row.

        Raises:
            InvalidInput: the table has no column for a key of the metadata, or Postgres no such text.
        """
        values: dict[str, Any] = {self.content: content, **{name: plain(metadata.get(name)) for name in self.columns}}
        rest = {key: value for key, value in metadata.items() if key not in self.columns}
        if self.metadata is not None:
            values[self.metadata] = rest
        elif rest:
            known = ", ".join(self.columns) or "none"
            raise InvalidInput(f"document {place + 1} has the metadata {', '.join(map(repr, rest))}", hint=f"the table has columns for {known}")
        if id is not None:
            values[self.id] = id
        row = Row(place, values)
        for value in values.values():
            if isinstance(value, str):
                checked(value, row.label)
        return row

    def add(self, rows: Sequence["Row"]) -> Statement:
        """Write rows of the same columns; those whose id is there already take the place of what is there. Answers with their ids, in order.

        Raises:
            InvalidInput: a document has what JSON has not.
        """
        names = list(rows[0].values)
        statement = file("add", table=self.identifier, columns=_listed(map(quoted, names)), otherwise=self._otherwise(names), id=quoted(self.id))
        return Statement(statement, [f"[{','.join(written(row.values, row.label) for row in rows)}]"])

    def _otherwise(self, names: Sequence[str]) -> sql.Composable:
        if self.id not in names:
            return sql.SQL("")
        updates = _listed(sql.SQL("{0} = EXCLUDED.{0}").format(quoted(name)) for name in names if name != self.id)
        return sql.SQL("ON CONFLICT ({}) DO UPDATE SET {}").format(quoted(self.id), updates)

    def get(self, ids: Sequence[str]) -> Statement:
        """The rows of these ids that there are, in no order."""
        columns = self._read(sql.SQL("t"))
        return Statement(sql.SQL("SELECT {} FROM {} AS t WHERE t.{} = ANY (%s)").format(columns, self.identifier, quoted(self.id)), [_array(ids)])

    def delete(self, ids: Sequence[str] | None) -> Statement:
        """Delete the rows of these ids; all where they are None."""
        if ids is None:
            return Statement(sql.SQL("DELETE FROM {}").format(self.identifier))
        return Statement(sql.SQL("DELETE FROM {} AS t WHERE t.{} = ANY (%s)").format(self.identifier, quoted(self.id)), [_array(ids)])

    def search(self, question: str | None, vector: Sequence[float] | None, asking: "Asking") -> Statement:
        """Ask nv_search or nv_hybrid_search. Answers with documents' columns, their vectors if they are wanted, and scores.

        Args:
            vector: of the question; None has the database embed it.
        """
        arguments = {name: value for name, value in asking.options.items() if value is not None}
        named = {name: f"%({name})s::{OPTIONS[name]}" for name in arguments}
        if asking.wanted is not None:
            named["filter"] = "format(%(template)s, VARIADIC %(holes)s::text[])"
            arguments |= {"template": asking.wanted.template, "holes": asking.wanted.arguments}
        if asking.hybrid and vector is not None:
            named["embedding"] = "%(vector)s::vector"
        arguments |= {"question": question, "vector": None if vector is None else written_vector(vector)}
        statement = file(
            "search",
            columns=self._read(sql.SQL("(f.hit)"), with_vectors=asking.with_vectors),
            function=sql.SQL("nv_hybrid_search" if asking.hybrid else "nv_search"),
            table=self.identifier,
            question=sql.SQL("%(question)s::text" if asking.hybrid or vector is None else "%(vector)s::vector"),
            options=_listed(sql.SQL(f"{name} => {value}") for name, value in named.items()),
        )
        # A prepared statement would keep reading the column that had the name before a cut-over: (f.hit) alone does not tie it to the table.
        return Statement(statement, arguments, prepare=False if asking.with_vectors else None)

    def ask(self, question: str) -> Statement:
        """The vector of a question by the model of the table's vectors, in text form."""
        return Statement(sql.SQL("SELECT nv_embed.embed_searched(%s, %s::regclass, %s, true)::text"), [question, self.relation, self.target])

    def documents(self, rows: Sequence[Sequence[Any]]) -> list[Document]:
        """Of rows as `get` and `search` read them. NULL in a column is a key that the metadata do not have."""
        return [self._document(*row) for row in rows]

    def _document(self, id: str, content: str | None, *values: Any) -> Document:
        rest = values[0] if self.metadata is not None else None
        columns = values[0 if self.metadata is None else 1 :]
        named = {name: value for name, value in zip(self.columns, columns, strict=False) if value is not None}
        return Document(id=id, page_content=content or "", metadata={**(rest or {}), **named})

    def _read(self, row: sql.SQL, *, with_vectors: bool = False) -> sql.Composed:
        names = [self.content, *([] if self.metadata is None else [self.metadata]), *self.columns]
        columns = [sql.SQL("{}.{}::text").format(row, quoted(self.id)), *(sql.SQL("{}.{}").format(row, quoted(name)) for name in names)]
        if with_vectors:
            columns.append(sql.SQL("{}.{}::text").format(row, quoted(self.target)))
        return _listed(columns)


@dataclass(frozen=True)
class Asking:
    """How a search is made.

    Attributes:
        wanted: what the rows must be; None where all pass.
        options: more of the function's arguments, of those in `OPTIONS`; None is its default.
        hybrid: by words too.
        with_vectors: whether vectors are wanted.
    """

    wanted: Filter | None
    options: Mapping[str, Any]
    hybrid: bool
    with_vectors: bool


@dataclass(frozen=True)
class Row:
    """A document as a row.

    Attributes:
        place: among the documents that are written, counted from 0.
        values: by the names of columns.
    """

    place: int
    values: dict[str, Any]

    @property
    def label(self) -> str:
        """How errors call it."""
        return f"document {self.place + 1}"


def quoted(*names: str) -> sql.SQL:
    """An identifier. psycopg wants percent signs doubled in a statement with parameters, and leaves those of identifiers as they are."""
    return sql.SQL(sql.Identifier(*names).as_string(None).replace("%", "%%"))


def written_vector(vector: Sequence[float]) -> str:
    """A vector in pgvector's text form, with as few digits as tell numbers of single precision apart."""
    return orjson.dumps(numpy.asarray(vector, dtype=numpy.float32), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def file(name: str, **parts: sql.Composable) -> sql.Composed:
    """The statement in the file of this name."""
    return sql.SQL(_text(name)).format(**parts)


@cache
def _text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.sql").read_text()


def _listed(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _array(values: Sequence[str]) -> str:
    """An array as a literal without a type, so that it takes that of the column it is compared with."""
    texts = [str(value) for value in values]
    return bytes(Transformer().get_dumper(texts, PyFormat.TEXT).dump(texts) or b"").decode()
