"""
Operations, and who runs them.

An operation is a generator: it yields statements and calls, is sent their answers, and returns a result. So each is written once, and runs on a
connection of either kind of psycopg's. It is one transaction; within one of the caller's, a savepoint.

In:  an operation, and where the database is      Out: its result, or one of the errors of `errors.py`
"""

import asyncio
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import psycopg
from langchain_core.runnables import run_in_executor
from psycopg import AsyncCursor, Cursor, sql
from psycopg.rows import tuple_row

from nv_embed.errors import TABLE, InvalidInput

T = TypeVar("T")

KEPT_CONNECTIONS = 8
"""How many are kept open for the next calls. A new one has to load what calls the sidecar, which takes as long as some fifty searches."""

BY_SQLSTATE = {error.sqlstate: error for error in TABLE}


@dataclass(frozen=True)
class Statement:
    """SQL; the answer is its rows.

    Attributes:
        arguments: None of a text in which a percent sign is no more than that.
        prepare: False of one that must not be prepared; None leaves it to the connection.
    """

    text: sql.SQL | sql.Composed
    arguments: Sequence[Any] | Mapping[str, Any] | None = ()
    prepare: bool | None = None


@dataclass(frozen=True)
class Call:
    """What blocks, such as a call to the sidecar; the answer is what it returns."""

    function: Callable[[], Any]


Operation = Generator[Statement | Call, Any, T]


class Pool(Protocol):
    """As `psycopg_pool.ConnectionPool` is one."""

    def connection(self) -> AbstractContextManager["psycopg.Connection[Any]"]: ...

    def close(self) -> None: ...


class AsyncPool(Protocol):
    """As `psycopg_pool.AsyncConnectionPool` is one."""

    def connection(self) -> AbstractAsyncContextManager["psycopg.AsyncConnection[Any]"]: ...

    async def close(self) -> None: ...


Database = str | psycopg.Connection[Any] | Pool | psycopg.AsyncConnection[Any] | AsyncPool


class Runner:
    """Runs operations on a database.

    Args:
        database: a DSN, whose connections are opened when they are needed, and kept; a connection, on which there is one operation at a time; or
            a pool.
    """

    def __init__(self, database: Database) -> None:
        self.is_async = inspect.iscoroutinefunction(getattr(database, "close", None))
        self._source: Any = _source(database)
        if isinstance(self._source, _Kept):
            weakref.finalize(self, self._source.close)  # nobody closes a store of LangChain's

    def run(self, operation: Operation[T]) -> T:
        """Run an operation.

        Raises:
            InvalidInput: the database is one for coroutines.
            EmbedError, psycopg.Error: nothing of the operation has happened.
        """
        if self.is_async:
            raise InvalidInput(
                "this store has an asynchronous connection", hint="await the method whose name begins with an a, or give a psycopg.Connection"
            )
        with _errors(), self._source.connection() as connection, connection.transaction():
            cursor = Cursor(connection, row_factory=tuple_row)
            answer: Any = None
            while True:
                try:
                    step = operation.send(answer)
                except StopIteration as end:
                    return cast("T", end.value)
                if isinstance(step, Call):
                    answer = step.function()
                else:
                    cursor.execute(step.text, step.arguments, prepare=step.prepare)
                    answer = cursor.fetchall() if cursor.description else []

    async def arun(self, operation: Operation[T]) -> T:
        """Run an operation from a coroutine: in a thread, unless the connection is an asynchronous one. Errors as for `run`."""
        if not self.is_async:
            return await run_in_executor(None, self.run, operation)
        with _errors():
            async with self._source.connection() as connection, connection.transaction():
                cursor = AsyncCursor(connection, row_factory=tuple_row)
                answer: Any = None
                while True:
                    try:
                        step = operation.send(answer)
                    except StopIteration as end:
                        return cast("T", end.value)
                    if isinstance(step, Call):
                        answer = await asyncio.to_thread(step.function)
                    else:
                        await cursor.execute(step.text, step.arguments, prepare=step.prepare)
                        answer = await cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Close the connections that a DSN has opened; what else was given is the caller's."""
        if isinstance(self._source, _Kept):
            self._source.close()


def _source(database: Database) -> "_Kept | _One | _AsyncOne | Pool | AsyncPool":
    if isinstance(database, str):
        return _Kept(database.replace("postgresql+psycopg://", "postgresql://", 1))  # as SQLAlchemy and others of LangChain's stores write it
    if isinstance(database, psycopg.Connection):
        return _One(database)
    return _AsyncOne(database) if isinstance(database, psycopg.AsyncConnection) else database


class _Kept:
    """Connections to a DSN: as many as there are operations at a time, some of them kept for the next."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: list[psycopg.Connection[Any]] = []

    @contextmanager
    def connection(self) -> Iterator["psycopg.Connection[Any]"]:
        connection = self._take() or psycopg.connect(self._dsn, autocommit=True)
        try:
            yield connection
        finally:
            if connection.closed or len(self._idle) >= KEPT_CONNECTIONS:
                connection.close()
            else:
                self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> "psycopg.Connection[Any] | None":
        """One that still answers: a server that was restarted has cut off all of them."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            try:
                connection.execute("")
            except psycopg.OperationalError:
                connection.close()
            else:
                return connection


class _One:
    """One connection, lent to one thread at a time: transactions cannot overlap on it."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator["psycopg.Connection[Any]"]:
        with self._lock:
            yield self._connection


class _AsyncOne:
    """One asynchronous connection, lent to one task at a time."""

    def __init__(self, connection: "psycopg.AsyncConnection[Any]") -> None:
        self._connection = connection
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator["psycopg.AsyncConnection[Any]"]:
        async with self._lock:
            yield self._connection


@contextmanager
def _errors() -> Iterator[None]:
    """Raise what the sidecar has refused inside of the database as what it is outside."""
    try:
        yield
    except psycopg.Error as error:
        kind = BY_SQLSTATE.get(error.sqlstate or "")
        # Others of these states are Postgres's own too: of a disk that is full, of a type that there is not.
        if kind is None or (kind is not InvalidInput and "PL/Python" not in (error.diag.context or "")):
            raise
        raise kind(error.diag.message_primary or str(error), hint=error.diag.message_hint or "") from error
