"""
Indexes of vectors, built where one can watch.

The statements are the database's own (`sql/functions/index.sql`). Each runs by itself, because CREATE INDEX CONCURRENTLY takes no company, in a
thread; meanwhile a second connection asks how far it is and whom it waits for. So everything is told by one thread, which is the one that Ctrl-C
reaches.

In:  two connections in autocommit mode      Out: `Built`, and on the way there whatever a `Watcher` is told
"""

import math
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, Protocol

import psycopg

Connection = psycopg.Connection[Any]

LOOK_S = 0.2

# A build takes as long as it takes, whatever limit a role has for its queries. pgvector tells by NOTICE when memory is short. By the pages of a table
# Postgres decides how many processes build, and those of vectors in TOAST it does not count.
SESSION = "SET statement_timeout = 0; SET client_min_messages = notice; SET min_parallel_table_scan_size = 0"

# An index cannot be dropped before those who use its table end: what made the build wait may make this wait too, and we do not wait for long.
CLEAR_AWAY = """
    SELECT setting, set_config('lock_timeout', least(nullif(setting::int, 0), 5000)::text, false) FROM pg_settings WHERE name = 'lock_timeout'
"""
CLEARED_AWAY = "SELECT set_config('lock_timeout', %s, false)"

SEGMENT = "/PostgreSQL."
"""How the server calls shared memory, in whatever language."""

OUT_OF_MEMORY = "no longer fits into maintenance_work_mem"
ROOM = 1.1
"""The memory to advise, over what the part that was built so far lets expect."""

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Wanted:
    """An index to build.

    Attributes:
        relation: the table's name, as SQL reads it.
        dim: how many first components it holds; None for all.
        method: hnsw or ivfflat.
        storage: halfvec, vector or bit.
        m, ef_construction, lists: pgvector's, of hnsw and of ivfflat; None for what it takes.
    """

    relation: str
    target: str = "embedding"
    dim: int | None = None
    method: str = "hnsw"
    storage: str = "halfvec"
    concurrently: bool = True
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None


@dataclass(frozen=True)
class Resources:
    """What a build may take; None for what the server gives.

    Attributes:
        memory: maintenance_work_mem, as Postgres reads it.
        workers: max_parallel_maintenance_workers, which are the processes that help the first.
    """

    memory: str | None = None
    workers: int | None = None


SERVERS = Resources()


@dataclass(frozen=True)
class Index:
    """An index of an embedding's vectors."""

    index: str
    method: str
    dim: int
    storage: str
    is_valid: bool
    is_partial: bool
    bytes: int


@dataclass(frozen=True)
class Built:
    """An index that is complete.

    Attributes:
        rows: it had when it was built, or last vacuumed.
        was_there: nothing had to be done.
    """

    index: str
    dim: int
    rows: int
    bytes: int
    was_there: bool


@dataclass(frozen=True)
class Blocker:
    """Whose transaction a statement waits for.

    Attributes:
        pid: of its process; 0 for a prepared transaction.
        role, since: None where we may not see them.
    """

    pid: int
    role: str | None
    since: datetime | None


@dataclass(frozen=True)
class Progress:
    """How far a statement is.

    Attributes:
        phase: Postgres's and pgvector's word for what goes on; None where they have none.
        unit: of done and total: transactions, rows or blocks; None where nothing is counted.
    """

    phase: str | None
    unit: str | None
    done: int | None
    total: int | None
    blocker: Blocker | None

    @property
    def share(self) -> float | None:
        """From 0 to 1, of this phase."""
        return None if self.done is None or not self.total else min(self.done / self.total, 1.0)


class Watcher(Protocol):
    def begin(self, number: int, count: int, statement: str) -> None:
        """The first, second, … of so many statements."""

    def progress(self, progress: Progress) -> None: ...

    def remark(self, text: str) -> None:
        """What the server has said."""


@dataclass(frozen=True)
class _Notice:
    """What the server says by the way; it is only good for reading while it is said."""

    message: str
    detail: str | None
    hint: str | None

    def __str__(self) -> str:
        return f"{self.message}{f': {self.detail}' if self.detail else ''}{f' ({self.hint})' if self.hint else ''}"


class Busy(Exception):
    """Somebody builds an index of these vectors already."""


class Unfinished(Exception):
    """A build ended before its time; the cause is an error of the server's, or KeyboardInterrupt.

    Attributes:
        dropped: what was unfinished, and is gone.
        left: what is unfinished, and still there.
        kept: how many statements need not be run again.
    """

    def __init__(self, cause: BaseException, dropped: Sequence[str], left: Sequence[str], kept: int) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.dropped = dropped
        self.left = left
        self.kept = kept


def list_indexes(connection: Connection, relation: str, target: str) -> list[Index]:
    rows = connection.execute(
        "SELECT index::text, method, dim, storage, is_valid, is_partial, bytes FROM nv_embed.vector_indexes(%s::regclass, %s)", [relation, target]
    )
    return [Index(*row) for row in rows]


def build(connection: Connection, watching: Connection, wanted: Wanted, watcher: Watcher, resources: Resources = SERVERS) -> Built:
    """Build an index, or find it built.

    Args:
        connection: for the statements; it serves nothing else afterwards.
        watching: for looks at them, of the same role.
    Raises:
        Busy
        Unfinished: it has begun, and was interrupted or failed.
        psycopg.Error: it has not begun.
    """

    def steps() -> list[str]:
        query = "SELECT nv_embed.create_index_steps(%s::regclass, %s, %s, %s, %s, %s, %s, %s, %s)"
        return [step for (step,) in connection.execute(query, astuple(wanted))]

    count = build_steps(connection, watching, (wanted.relation, wanted.target), steps, watcher, resources)
    row = connection.execute(
        "SELECT index::text, dims, rows, bytes FROM nv_embed.find_index(%s::regclass, %s, %s, %s, %s)",
        [wanted.relation, wanted.target, wanted.dim, wanted.method, wanted.storage],
    ).fetchone()
    assert row is not None
    index, dim, rows, size = row
    return Built(index, dim, rows, size, was_there=count == 0)


def build_steps(
    connection: Connection,
    watching: Connection,
    embedding: tuple[str, str],
    steps: Callable[[], list[str]],
    watcher: Watcher,
    resources: Resources = SERVERS,
) -> int:
    """Run the statements that build indexes of an embedding's vectors. Returns how many there were.

    Args:
        embedding: its table, as SQL reads it, and its target.
        steps: asks, over `connection`, which statements are left to be run.
    The others, and what is raised, are `build`'s.
    """
    connection.execute(SESSION)
    for name, value in (("maintenance_work_mem", resources.memory), ("max_parallel_maintenance_workers", resources.workers)):
        if value is not None:
            connection.execute("SELECT set_config(%s, %s, false)", [name, str(value)])
    return _Build(connection, watching, embedding, steps, watcher).run()


class _Build:
    def __init__(
        self, connection: Connection, watching: Connection, embedding: tuple[str, str], steps: Callable[[], list[str]], watcher: Watcher
    ) -> None:
        self._connection = connection
        self._watching = watching
        self._embedding = embedding
        self._steps = steps
        self._watcher = watcher
        self._notices: queue.SimpleQueue[_Notice] = queue.SimpleQueue()
        self._memory = int(self._ask("SELECT pg_size_bytes(current_setting('maintenance_work_mem'))"))
        connection.add_notice_handler(lambda said: self._notices.put(_Notice(said.message_primary or "", said.message_detail, said.message_hint)))

    def run(self) -> int:
        steps = self._steps()
        if steps:
            builder = self._ask("SELECT nv_embed.reserve_index(%s::regclass, %s)", *self._embedding)
            if builder is not None:
                raise Busy(f"process {builder} builds an index of {self._embedding[0]} already: wait for it to end")
            steps = self._steps()  # the one before us may have ended in between
        count = len(steps)
        try:
            self._run(steps)
        except Unfinished as ended:
            if not _lacks_shared_memory(ended.cause) or ended.left:
                raise
            self._connection.execute("SET max_parallel_maintenance_workers = 0")
            self._watcher.remark(
                "shared memory is too small for several processes, so one builds alone: give the server more of it (docker run --shm-size)"
            )
            self._run(self._steps())
        return count

    def _run(self, steps: Sequence[str]) -> None:
        for number, step in enumerate(steps, 1):
            try:
                self._watcher.begin(number, len(steps), step)
                self._execute(step)
            except (psycopg.Error, KeyboardInterrupt) as error:
                dropped, left = self._clear_away() if step.startswith("CREATE INDEX CONCURRENTLY ") else ([], [])
                raise Unfinished(error, dropped, left, number - 1) from error

    def _execute(self, statement: str) -> None:
        running = _Statement(self._connection, statement)
        running.start()
        try:
            while not running.ended.wait(LOOK_S):
                self._look()
            self._look()
        except KeyboardInterrupt:
            # Again and again: what is cancelled before it has begun goes on.
            while not running.ended.is_set():
                self._connection.cancel_safe(timeout=5)
                running.ended.wait(1)
            raise
        if running.error is not None:
            raise running.error

    def _look(self) -> None:
        progress = self._progress()
        while not self._notices.empty():
            self._watcher.remark(self._said(self._notices.get(), progress))
        if progress is not None:
            self._watcher.progress(progress)

    def _progress(self) -> Progress | None:
        """None where it cannot be had, which is no reason to give up a build."""
        with suppress(psycopg.Error):
            row = self._watching.execute("SELECT * FROM nv_embed.index_progress(%s)", [self._connection.info.backend_pid]).fetchone()
            if row is not None:
                phase, unit, done, total, pid, role, since = row
                return Progress(phase, unit, done, total, None if pid is None else Blocker(pid, role, since))
        return None

    def _said(self, notice: _Notice, progress: Progress | None) -> str:
        """With the remedy in terms of what we take."""
        if OUT_OF_MEMORY not in notice.message:
            return str(notice)
        return f"{notice.message}: the rest takes many times longer; interrupt it and give --memory {self._enough(progress)} to build it in memory"

    def _enough(self, progress: Progress | None) -> str:
        """The memory that the whole graph takes, by the share of the table that has filled what there was."""
        share = progress.share if progress else None
        megabytes = self._memory / MEGABYTE
        return f"{math.ceil(megabytes / share * ROOM)}MB" if share else f"of more than {megabytes:.0f}MB"

    def _clear_away(self) -> tuple[list[str], list[str]]:
        """Drop what a build has left. Returns what was dropped, and what could not be."""
        dropped: list[str] = []
        left: list[str] = []
        with suppress(psycopg.Error, KeyboardInterrupt):  # whoever interrupts this too is told what is left
            patience = self._ask(CLEAR_AWAY)
            drops = [step for step in self._steps() if step.startswith("DROP INDEX ")]
            left.extend(drop.removeprefix("DROP INDEX CONCURRENTLY ") for drop in drops)
            for drop in drops:
                self._watcher.begin(1, 1, drop)
                self._execute(drop)
                dropped.append(left.pop(0))
            self._connection.execute(CLEARED_AWAY, [patience])
        return dropped, left

    def _ask(self, query: Any, *arguments: Any) -> Any:
        row = self._connection.execute(query, arguments or None).fetchone()
        assert row is not None
        return row[0]


def _lacks_shared_memory(error: BaseException) -> bool:
    """Where several processes build, what they build is in shared memory."""
    return isinstance(error, psycopg.errors.DiskFull) and SEGMENT in str(error)


class _Statement(threading.Thread):
    """A statement under way. A daemon: nobody waits for a server that does not answer.

    Attributes:
        ended: set at its end; a join() that Ctrl-C interrupts would take the thread for one that has ended.
    """

    def __init__(self, connection: Connection, statement: str) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.error: psycopg.Error | None = None
        self._connection = connection
        self._statement = statement

    def run(self) -> None:
        try:
            self._connection.execute(self._statement.encode())
        except psycopg.Error as error:
            self.error = error
        finally:
            self.ended.set()
