"""
Documents in a database: copied into a table that embeds itself, in a schema of the evaluation's own.

A table is named by what is in it: its documents, the model and how they are embedded. So one that was kept is known again.

In:  documents      Out: a `Table` with a vector for each
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import psycopg
from psycopg import sql

from nv_embed.evaluation.collection import Document
from nv_embed.evaluation.errors import EvaluationFailed
from nv_embed.evaluation.languages import SNOWBALL
from nv_embed.evaluation.results import WHOLE
from nv_embed.evaluation.served import Model
from nv_embed.evaluation.statements import Connection, plain, statement
from nv_embed.interrupts import uninterrupted

PAGE_ROWS = 256
PAGE_CHARS = 250_000
LOADED = "loaded by nv-embed eval"


class Screen(Protocol):
    """Where an evaluation tells how far it is."""

    def done(self, text: str) -> None: ...

    def failed(self, text: str) -> None: ...

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]: ...


@dataclass(frozen=True)
class Embedding:
    """How documents are embedded.

    Attributes:
        chunk_tokens: of a piece at most; 0 where a document is embedded whole, its end cut off.
    """

    model: Model
    storage: str
    chunk_tokens: int = 0
    chunk_overlap: int = 0

    @property
    def name(self) -> str:
        return f"pieces of {self.chunk_tokens}" if self.chunk_tokens else WHOLE


@dataclass(frozen=True)
class Table:
    """Embedded documents.

    Attributes:
        name: of the collections whose documents it has.
        relation: its own, as SQL reads it.
        holder: the table that has the vectors: itself or its chunk table.
        rows: documents.
        vectors: of them or their pieces.
        load_s: what copying and embedding took; None where it was there already.
    """

    name: str
    identifier: sql.Identifier
    relation: str
    holder: str
    embedding: Embedding
    rows: int
    vectors: int
    load_s: float | None


@contextmanager
def own_schema(connection: Connection, screen: Screen, reused: str | None, *, keep: bool) -> Iterator[str]:
    """A schema that no other evaluation uses, dropped in the end unless it shall be kept; or one that was kept."""
    name = reused or f"nv_embed_eval_{secrets.token_hex(4)}"
    create = "CREATE SCHEMA IF NOT EXISTS {}" if reused else "CREATE SCHEMA {}"
    connection.execute(sql.SQL(create).format(sql.Identifier(name)))
    try:
        yield name
    finally:
        if not (keep or reused):
            _drop(connection, screen, name)


def _drop(connection: Connection, screen: Screen, schema: str) -> None:
    # A connection of its own, because the evaluation's may be in the middle of something, or broken.
    with uninterrupted():
        dsn, password = connection.info.dsn, connection.info.password
        connection.close()
        try:
            with psycopg.connect(dsn, password=password or None, autocommit=True) as fresh:
                for (relation,) in fresh.execute(plain("made"), {"schema": schema}).fetchall():
                    fresh.execute(statement("drop", relation=sql.Literal(relation)))
                fresh.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
        except psycopg.Error as error:
            screen.failed(f"schema {schema}, with what is in it, is still there: {' '.join(str(error).split())}")


def load(connection: Connection, screen: Screen, schema: str, name: str, documents: Mapping[str, Document], embedding: Embedding) -> Table:
    """Embed documents, unless the schema has them already.

    Raises:
        EvaluationFailed: not every document with content got a vector.
    """
    table = f"docs_{fingerprint(documents, embedding)}"
    relation = sql.Identifier(schema, table).as_string(connection)
    load_s = None
    if not _is_loaded(connection, relation):
        load_s = _load(connection, screen, sql.Identifier(schema, table), relation, documents, embedding)
    rows, embedded, blank, failed, holder, message = connection.execute(plain("loaded"), {"relation": relation}).fetchall()[0]
    if embedded + blank < rows:
        why = f"{failed:,} failed, the first with: {message}" if failed else "an nv_embed.mode other than sync is set here"
        raise EvaluationFailed(f"{rows - embedded - blank:,} of {rows:,} documents of {name} have no vector: {why}")
    vectors = connection.execute(sql.SQL("SELECT count(embedding) FROM {}").format(sql.SQL(holder))).fetchall()[0][0]
    if load_s is not None:
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.SQL(relation), sql.Literal(LOADED)))
    of = f"{name}: {rows:,} documents, {vectors:,} vectors, {embedding.name}"
    screen.done(f"{of}, embedded in {load_s:.1f} s: {rows / load_s:,.1f} documents/s" if load_s else f"{of}, were there already")
    return Table(name, sql.Identifier(schema, table), relation, holder, embedding, rows, vectors, load_s)


def fingerprint(documents: Mapping[str, Document], embedding: Embedding) -> str:
    how = (embedding.model.name, embedding.model.revision, embedding.storage, embedding.chunk_tokens, embedding.chunk_overlap)
    return hashlib.sha256(json.dumps([how, documents]).encode()).hexdigest()[:12]


def _is_loaded(connection: Connection, relation: str) -> bool:
    return connection.execute("SELECT obj_description(to_regclass(%s), 'pg_class') = %s", [relation, LOADED]).fetchall()[0][0] is True


def _load(
    connection: Connection, screen: Screen, table: sql.Identifier, relation: str, documents: Mapping[str, Document], embedding: Embedding
) -> float:
    connection.execute(statement("drop", relation=sql.Literal(relation)))
    connection.execute(statement("table", table=table))
    connection.execute(
        plain("declare"),
        {
            "relation": relation,
            "model": embedding.model.name,
            "storage": embedding.storage,
            "chunk_tokens": embedding.chunk_tokens or None,
            "chunk_overlap": embedding.chunk_overlap if embedding.chunk_tokens else 0,
        },
    )
    configs = configurations(connection)
    begun = time.perf_counter()
    with screen.progress(len(documents), "documents") as update:
        done = 0
        for page in pages(documents):
            with connection.cursor().copy(statement("load", table=table)) as target:
                for id, document in page:
                    target.write_row((id, document.title, document.text, configuration(document.language, configs)))
            done += len(page)
            update(done)
    load_s = time.perf_counter() - begun
    # A statement trigger writes each row twice: what it has left is cleared away before anything is measured.
    connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.SQL(relation)))
    return load_s


def pages(documents: Mapping[str, Document]) -> Iterator[list[tuple[str, Document]]]:
    """What is copied at a time: so many rows, or so long ones, that one sees it going on."""
    page: list[tuple[str, Document]] = []
    chars = 0
    for id, document in documents.items():
        page.append((id, document))
        chars += len(document.text)
        if len(page) == PAGE_ROWS or chars >= PAGE_CHARS:
            yield page
            page, chars = [], 0
    if page:
        yield page


def configurations(connection: Connection) -> set[str]:
    """The text search configurations that this server has."""
    return {row[0] for row in connection.execute("SELECT cfgname FROM pg_ts_config")}


def configuration(language: str, configs: set[str]) -> str:
    """That of a language; one without has its words as they are."""
    name = SNOWBALL.get(language, "simple")
    return name if name in configs else "simple"
