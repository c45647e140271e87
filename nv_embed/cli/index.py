"""
`nv-embed index`: an index of an embedding's vectors, built concurrently, with progress.

On a terminal a bar shows what is done of the phase under way; elsewhere a line tells of each phase and of every tenth of it. Both say whom a build
waits for, since nothing else keeps one waiting as long as somebody's forgotten transaction. Ctrl-C and SIGTERM cancel the build and clear away what
it leaves.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nv_embed.cli.failure import Failure, explain
from nv_embed.cli.status import JsonOption

if TYPE_CHECKING:
    import psycopg
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from nv_embed.cli.screen import Screen
    from nv_embed.indexes import Blocker, Built, Index, Progress, Resources, Unfinished, Wanted, Watcher

INTERRUPTED = 130


class Storage(StrEnum):
    halfvec = "halfvec"
    vector = "vector"
    bit = "bit"


class Method(StrEnum):
    hnsw = "hnsw"
    ivfflat = "ivfflat"


MemoryOption = Annotated[
    str | None, typer.Option(help="Memory for building, such as 2GB.  [default: the server's maintenance_work_mem]", show_default=False)
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that help to build.  [default: the server's max_parallel_maintenance_workers]", show_default=False),
]


def index(
    table: Annotated[str, typer.Argument(help="A table that is auto-embedded, as SQL reads its name.")],
    target: Annotated[str, typer.Option(help="The embedding's column.")] = "embedding",
    dim: Annotated[int | None, typer.Option(help="Index so many first dimensions.  [default: all]", show_default=False)] = None,
    storage: Annotated[Storage, typer.Option(help="What the index holds.")] = Storage.halfvec,
    method: Annotated[Method, typer.Option(help="The kind of index.")] = Method.hnsw,
    database_url: Annotated[
        str | None,
        typer.Option(
            envvar="NV_EMBED_DATABASE_URL",
            help="The database, as the table's owner: postgresql://user:password@host:port/name.  [default: the private one]",
            show_default=False,
        ),
    ] = None,
    memory: MemoryOption = None,
    workers: WorkersOption = None,
    m: Annotated[int | None, typer.Option(help="Of hnsw: edges of a node.  [default: 16]", show_default=False)] = None,
    ef_construction: Annotated[
        int | None, typer.Option(help="Of hnsw: nodes in view while one is added; more make a better graph.  [default: 64]", show_default=False)
    ] = None,
    lists: Annotated[int | None, typer.Option(help="Of ivfflat: lists.  [default: by the number of rows]", show_default=False)] = None,
    concurrently: Annotated[bool, typer.Option("--concurrently/--no-concurrently", help="Let others write meanwhile.")] = True,
    only_list: Annotated[bool, typer.Option("--list", help="Build nothing; list the indexes that there are.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build an index of a table's vectors, or of their first dimensions."""
    from nv_embed.indexes import Resources, Wanted, list_indexes

    dsn = database_url or private_dsn()
    if only_list:
        with connect(dsn) as connection:
            _print_list(table, list_indexes(connection, table, target), as_json)
        return
    begun = time.monotonic()
    wanted = Wanted(table, target, dim, method.value, storage.value, concurrently, m, ef_construction, lists)
    built = _build(dsn, wanted, Resources(memory, workers), as_json)
    _print_built(built, round(time.monotonic() - begun, 1), as_json)


def _build(dsn: str, wanted: "Wanted", resources: "Resources", as_json: bool) -> "Built":
    from nv_embed.cli.screen import console, errors
    from nv_embed.indexes import Busy, Unfinished, build
    from nv_embed.interrupts import interrupted_by_termination

    try:
        with (
            interrupted_by_termination(),
            connect(dsn) as connection,
            connect(dsn) as watching,
            _watcher(errors if as_json else console) as watcher,
        ):
            return build(connection, watching, wanted, watcher, resources)
    except Busy as busy:
        raise Failure(str(busy)) from None
    except Unfinished as ended:
        if not isinstance(ended.cause, KeyboardInterrupt):
            raise Failure(why(ended)) from None
        print(f"nv-embed: {why(ended)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("nv-embed: interrupted", file=sys.stderr)
    raise typer.Exit(INTERRUPTED)


def why(ended: "Unfinished") -> str:
    """In one line: what ended a build, and what it has left."""
    reason = explain(ended.cause) if isinstance(ended.cause, Exception) else "interrupted"
    parts = [reason or str(ended.cause)]
    if ended.dropped:
        parts.append(f"the unfinished index {', '.join(ended.dropped)} is dropped")
    if ended.left:
        parts.append(
            f"the unfinished index {', '.join(ended.left)} is still there, since its table is in use: run the command again, which drops it first"
        )
    if ended.kept:
        parts.append(f"{ended.kept} statements are done, and the next run goes on from there")
    return "; ".join(parts)


def private_dsn() -> str:
    from nv_embed.cli.private import servers

    return servers().dsn()


def connect(dsn: str) -> "psycopg.Connection[Any]":
    import psycopg

    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="nv-embed index")
    except psycopg.ProgrammingError as error:
        raise typer.BadParameter(str(error), param_hint="--database-url") from None


@contextmanager
def _watcher(screen: "Screen") -> "Iterator[Watcher]":
    if not screen.is_terminal:
        yield Lines(screen)
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[share]}"), TimeElapsedColumn())
    with Bar(*columns, console=screen, transient=True) as bar:
        yield Bars(screen, bar)


class Bars:
    """On a terminal: what runs, and a bar below it."""

    def __init__(self, screen: "Screen", bar: "Bar") -> None:
        self._screen = screen
        self._bar = bar
        self._task: TaskID | None = None

    def begin(self, number: int, count: int, statement: str) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        print_line(self._screen, _numbered(number, count, statement))
        self._task = self._bar.add_task("", total=None, share="")

    def progress(self, progress: "Progress") -> None:
        assert self._task is not None
        # When all is counted, hnsw has yet to write its graph: nobody knows how long that takes.
        counted = progress.share is not None and progress.share < 1
        total, done = (1.0, progress.share) if counted else (None, 0.0)
        # Not update(total=None), which leaves the total as it is.
        self._bar.tasks[self._bar.task_ids.index(self._task)].total = total
        self._bar.update(self._task, completed=done, description=_doing(progress), share=_counted(progress))

    def remark(self, text: str) -> None:
        print_line(self._screen, text)


class Lines:
    """Elsewhere: what runs, and a line for each phase, each tenth of it, and each transaction that is waited for."""

    def __init__(self, screen: "Screen") -> None:
        self._screen = screen
        self._said: tuple[object, ...] = ()

    def begin(self, number: int, count: int, statement: str) -> None:
        self._said = ()
        print_line(self._screen, _numbered(number, count, statement))

    def progress(self, progress: "Progress") -> None:
        tenths = None if progress.unit == "transactions" or progress.share is None else int(progress.share * 10)
        pid = None if progress.blocker is None else progress.blocker.pid
        now = (progress.phase, tenths, pid)
        if (progress.phase or pid is not None) and now != self._said:
            self._said = now
            print_line(self._screen, "  " + ", ".join(part for part in (_doing(progress), _counted(progress)) if part))

    def remark(self, text: str) -> None:
        print_line(self._screen, f"  {text}")


def print_line(screen: "Screen", line: str) -> None:
    from rich.text import Text

    screen.print(Text(line))
    screen.file.flush()  # whoever reads a file of ours wants to see how far we are


def _numbered(number: int, count: int, statement: str) -> str:
    return statement if count == 1 else f"{number}/{count} {statement}"


def _doing(progress: "Progress") -> str:
    phase = progress.phase or "" if progress.blocker is None else progress.phase or "waiting"
    return phase if progress.blocker is None else f"{phase}: {_waits_for(progress.blocker)}"


def _waits_for(blocker: "Blocker") -> str:
    if blocker.pid == 0:
        return "for a prepared transaction (see pg_prepared_xacts)"
    who = f"for process {blocker.pid}" + (f" of {blocker.role}" if blocker.role else "")
    if blocker.since is None:
        return who
    seconds = max((datetime.now(UTC) - blocker.since).total_seconds(), 0)
    return f"{who}, in a transaction since {blocker.since.astimezone():%H:%M:%S} ({span(seconds)})"


def _counted(progress: "Progress") -> str:
    if progress.share is None:
        return ""
    if progress.unit == "transactions":
        return f"{progress.done} of {progress.total} transactions have ended"
    return f"{int(progress.share * 100)} % of {progress.total:,} {progress.unit}"


def span(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s" if minutes else f"{whole} s"


def _print_built(built: "Built", seconds: float, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(built), "seconds": seconds})
        return
    extent = f"{built.rows:,} rows, {size(built.bytes)}"
    typer.echo(f"{built.index} is there already: {extent}." if built.was_there else f"{built.index} built in {seconds:,.1f} s: {extent}.")


def _print_list(table: str, found: "Sequence[Index]", as_json: bool) -> None:
    if as_json:
        print_json([asdict(each) for each in found])
        return
    if not found:
        typer.echo(f"There is no index of the vectors of {table}.")
        return
    from rich.table import Table

    from nv_embed.cli.screen import console

    shown = Table("index", "method", "dim", "storage", "state", "size", box=None, pad_edge=False, header_style="bold")
    for each in found:
        state = "unfinished" if not each.is_valid else "partial" if each.is_partial else "complete"
        shown.add_row(each.index, each.method, str(each.dim), each.storage, state, size(each.bytes))
    console.print(shown)


def print_json(value: object) -> None:
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GB"
