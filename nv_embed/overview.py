"""
What a person wants to see of a database: how far its embeddings are, and what a question finds at each width.

The sidecar's page shows it. The sidecar knows no database, and finds this module by its entry point. Everything is asked in read-only transactions
that have seconds, over a few connections, with the rights of the URL's role.

In:  a URL      Out: rows of values that JSON has
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import psycopg
import sqlalchemy
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from sqlalchemy.exc import TimeoutError as NoConnection

from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, InvalidInput, Overloaded, Unavailable
from nv_embed.jobs import KEEPALIVES

log = logging.getLogger(__name__)

Cursor = psycopg.Cursor[DictRow]
Row = Mapping[str, Any]

CONNECTIONS = 3
CONNECT_S = 5
WAIT_S = 5.0
"""For a connection to be free."""

STATEMENT_MS = 5000
FRESH_S = 1.0
"""For which an overview serves everybody who asks."""

MOST = 200
HITS = 8
KEY_CHARACTERS = 100
TEXT_CHARACTERS = 300

COMPONENT_BYTES = {"vector": 4, "halfvec": 2}
HEADER_BYTES = 8
"""Of a vector, in front of its components."""


class Asked(Protocol):
    """A search, the same at several widths."""

    @property
    def relation(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def vector(self) -> Sequence[float]: ...
    @property
    def dims(self) -> Sequence[int]: ...
    @property
    def rescore(self) -> bool: ...


class Overview:
    """A database, as it is shown. Any thread may ask.

    Args:
        url: of PostgreSQL; connected to when something is asked.
    Raises:
        InvalidInput: it is no such URL.
    """

    def __init__(self, url: str) -> None:
        try:
            conninfo_to_dict(url)
        except psycopg.Error:
            # What the parser says quotes the URL, which may have a password.
            raise InvalidInput("the database's URL is not one of PostgreSQL", hint="postgresql://role@host:port/database") from None
        self._engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: _connect(url),
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=WAIT_S,
            pool_pre_ping=True,
        )
        self._lock = threading.Lock()
        self._told: tuple[float, Mapping[str, Sequence[Row]]] | None = None

    def close(self) -> None:
        self._engine.dispose()

    def overview(self) -> Mapping[str, Sequence[Row]]:
        """How far embeddings are, and re-embeddings that go on. However many ask, the database is asked once a second at most."""
        with self._lock:
            if self._told is None or time.monotonic() - self._told[0] > FRESH_S:
                with self._transaction() as cursor:
                    told = {name: cursor.execute(_read(f"overview_{name}"), {"most": MOST}).fetchall() for name in ("embeddings", "reembeddings")}
                self._told = time.monotonic(), told
            return self._told[1]

    def model_of(self, relation: str, target: str) -> tuple[str, str, int]:
        """Model, revision and width of an embedding's live vectors.

        Raises:
            InvalidInput: there is no such embedding, or not for this role.
        """
        with self._transaction() as cursor:
            found = _embedding(cursor, relation, target)
        return found["model"], found["revision"], found["dim"]

    def search(self, asked: Asked) -> list[Row]:
        """What is nearest at each width, all in one snapshot.

        Raises:
            InvalidInput: the embedding's vectors are not those that the question was embedded for.
        """
        with self._transaction() as cursor:
            found = _embedding(cursor, asked.relation, asked.target)
            if (found["model"], found["revision"], found["dim"]) != (asked.model, asked.revision, asked.dim):
                raise InvalidInput("the embedding has gone over to other vectors in the meantime", hint="search again")
            find = _finder(cursor, found, asked)
            # The first search of a connection reads the catalog and compiles functions, which is no width's to answer for.
            _column(cursor, find, asked.dims[-1])
            return [{**_column(cursor, find, dim), "vector_bytes": _vector_bytes(found["storage"], dim)} for dim in asked.dims]

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        try:
            borrowed = self._engine.raw_connection()
        except NoConnection:
            raise Overloaded("all connections to the database are in use", hint="ask again in some seconds", retry_after_s=WAIT_S) from None
        except psycopg.Error as error:
            # It names hosts and roles, which are not for every reader of the page.
            log.warning("the page's database cannot be reached: %s", str(error).partition("\n")[0])
            raise Unavailable("the database cannot be reached", hint="the sidecar's log says why") from None
        try:
            connection: Any = borrowed.driver_connection
            with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
                cursor.execute(_read("overview_settings"), {"ms": str(STATEMENT_MS)})
                yield cursor
        except psycopg.Error as error:
            raise _told(error) from None
        finally:
            borrowed.close()


def open_database(url: str) -> Overview:
    """What the sidecar calls."""
    return Overview(url)


def _connect(url: str) -> psycopg.Connection[Any]:
    # No prepared statements, which a pooler between here and the server may not keep.
    connection = psycopg.connect(url, connect_timeout=CONNECT_S, application_name="nv_embed page", prepare_threshold=None, **KEEPALIVES)
    connection.read_only = True
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    return connection


def _embedding(cursor: Cursor, relation: str, target: str) -> DictRow:
    found = cursor.execute(_read("overview_embedding"), {"relation": relation, "target": target}).fetchone()
    if found is None:
        raise InvalidInput("there is no such embedding that this role may see", hint="choose one of nv_embed.status")
    return found


def _finder(cursor: Cursor, found: Row, asked: Asked) -> Callable[[int], list[DictRow]]:
    """What searches at a width. The parts of the statement are the server's own, quoted by it."""
    # Beside parameters a % is written twice, one of a name or a template too.
    parts = {name: sql.SQL(found[name].replace("%", "%%")) for name in ("relation", "functions", "pgvector", "key", "text")}
    statement = sql.SQL(_read("overview_search").decode()).format(**parts)
    vector = f"[{','.join(map(repr, asked.vector))}]"
    given = {"vector": vector, "k": HITS, "target": found["target"], "rescore": asked.rescore}
    limits = {"key_characters": KEY_CHARACTERS, "text_characters": TEXT_CHARACTERS}
    return lambda dim: cursor.execute(statement, {**given, **limits, "dim": dim}).fetchall()


def _column(cursor: Cursor, find: Callable[[int], list[DictRow]], dim: int) -> Row:
    try:
        with cursor.connection.transaction():
            begun = time.perf_counter()
            hits = find(dim)
            ms = (time.perf_counter() - begun) * 1000
    except psycopg.OperationalError as error:
        if cursor.connection.closed:
            raise
        return {"dim": dim, "error": str(_told(error))}
    except psycopg.Error as error:
        return {"dim": dim, "error": str(_told(error))}
    return {"dim": dim, "ms": ms, "hits": hits}


def _vector_bytes(storage: str, dim: int) -> int:
    return HEADER_BYTES + COMPONENT_BYTES[storage] * dim


def _told(error: psycopg.Error) -> EmbedError:
    """What a reader of the page is told of it."""
    # What the driver refuses before the server is asked has no fields.
    said = error.diag.message_primary or str(error)
    match error:
        case psycopg.DataError() if not error.diag.sqlstate:
            return InvalidInput(said, hint="choose one of nv_embed.status")
        case psycopg.errors.QueryCanceled() | psycopg.errors.LockNotAvailable():
            return DeadlineExceeded(
                f"the database took longer than {STATEMENT_MS // 1000} s", hint="an index may help: nv-embed index; or ask when it has less to do"
            )
        case psycopg.errors.InsufficientPrivilege():
            return InvalidInput(said, hint="grant it to the role of --ui-database-url, or name another role there")
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName() | psycopg.errors.UndefinedFunction():
            return InvalidInput("nv_embed is not in this database", hint="install it: nv-embed install --database-url …")
        case psycopg.errors.UndefinedColumn():
            return InvalidInput("this database has an older nv_embed than the sidecar", hint="update it: nv-embed install --database-url …")
        case psycopg.OperationalError() if not error.diag.sqlstate:
            return Unavailable("the connection to the database broke", hint="it is made anew when something is asked again")
    hint = error.diag.message_hint or ""
    return EngineFailure(said, hint=hint or "the database's log says more")


@cache
def _read(name: str) -> bytes:
    return Path(__file__).with_name(f"{name}.sql").read_bytes()
