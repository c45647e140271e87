"""
`nv-embed reembed`, `cut-over`, `roll-back`, `finish`, `cancel`: an embedding's move to another model, dimension or storage.

`reembed` says what it will take, asks, and then watches: workers fill the next generation, this program builds its indexes and cuts over. It may be
interrupted at any time, and goes on from there when it is called again.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nv_embed.cli import index
from nv_embed.cli.failure import Failure
from nv_embed.cli.index import INTERRUPTED
from nv_embed.cli.status import JsonOption

if TYPE_CHECKING:
    import psycopg
    from rich.progress import Progress as Bar

    from nv_embed.cli.screen import Screen
    from nv_embed.reembed import Estimate, Status, Wanted, Watcher

TableArgument = Annotated[str, typer.Argument(help="A table that is auto-embedded, as SQL reads its name.")]
TargetOption = Annotated[str, typer.Option(help="The embedding's column.")]
UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="NV_EMBED_DATABASE_URL",
        help="The database, as the table's owner: postgresql://user:password@host:port/name.  [default: the private one]",
        show_default=False,
    ),
]


class Storage(StrEnum):
    halfvec = "halfvec"
    vector = "vector"


def reembed(
    table: TableArgument,
    target: TargetOption = "embedding",
    model: Annotated[str | None, typer.Option(help="The model to go to.  [default: the present one]", show_default=False)] = None,
    dim: Annotated[
        int | None, typer.Option(help="Dimensions.  [default: the present ones, or another model's native ones]", show_default=False)
    ] = None,
    storage: Annotated[Storage | None, typer.Option(help="The type of the column.  [default: the present one]", show_default=False)] = None,
    source: Annotated[
        str | None, typer.Option(help="What to embed, as '{title}: {body}'.  [default: what is embedded now]", show_default=False)
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens of a piece at most; 0 embeds rows whole.  [default: as now]", show_default=False),
    ] = None,
    chunk_overlap: Annotated[
        int | None, typer.Option(min=0, help="Tokens that a piece repeats of the one before.  [default: as now]", show_default=False)
    ] = None,
    rows_per_s: Annotated[
        float | None,
        typer.Option(min=0.001, help="Rows a second that workers may take of it, all together.  [default: no limit]", show_default=False),
    ] = None,
    min_overlap: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least share of nearest neighbours that the new vectors keep.  [default: no limit]", show_default=False),
    ] = None,
    min_recall: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least share of the canaries that the new vectors find.  [default: no limit]", show_default=False),
    ] = None,
    goes_over: Annotated[bool, typer.Option("--cut-over/--no-cut-over", help="Cut over when all is ready.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    memory: index.MemoryOption = None,
    workers: index.WorkersOption = None,
    database_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move a table's vectors to another model, dimension, storage or source, into pieces or out of them, while they go on answering."""
    from nv_embed import reembed as library
    from nv_embed.cli.screen import console, errors
    from nv_embed.indexes import Resources

    wanted = library.Wanted(
        table, target, model, dim, storage and storage.value, rows_per_s, min_overlap, min_recall, source, chunk_tokens, chunk_overlap
    )
    screen = errors if as_json else console
    with _connected(database_url) as (connection, watching), _going_on(table):
        id = _find_or_begin(connection, wanted, screen, yes)
        with _watcher(screen) as watcher:
            now = library.drive(connection, watching, id, watcher, Resources(memory, workers))
        if now.state == "ready":
            index.print_line(screen, f"verified: {_measured(now)}")
        if goes_over and now.state == "ready":
            library.cut_over(connection, id)
        _print_end(library.status(connection, id), as_json)


def cut_over(table: TableArgument, target: TargetOption = "embedding", database_url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Have searches answered by the vectors that a re-embedding has made ready."""
    from nv_embed.reembed import cut_over as step

    _step(step, table, target, database_url, as_json)


def roll_back(table: TableArgument, target: TargetOption = "embedding", database_url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Take a cut-over back; nothing that was written since is lost."""
    from nv_embed.reembed import roll_back as step

    _step(step, table, target, database_url, as_json)


def finish(table: TableArgument, target: TargetOption = "embedding", database_url: UrlOption = None, as_json: JsonOption = False) -> None:
    """End a re-embedding that was cut over or rolled back: drop the vectors that do not answer any more."""
    from nv_embed.reembed import finish as step

    _step(step, table, target, database_url, as_json)


def cancel(table: TableArgument, target: TargetOption = "embedding", database_url: UrlOption = None, as_json: JsonOption = False) -> None:
    """End a re-embedding before its cut-over: drop the vectors that it has made."""
    from nv_embed.reembed import cancel as step

    _step(step, table, target, database_url, as_json)


def _step(step: "Callable[[psycopg.Connection[Any], int], None]", table: str, target: str, database_url: str | None, as_json: bool) -> None:
    from nv_embed.reembed import find_open, status

    with _connected(database_url) as (connection, _):
        found = find_open(connection, table, target)
        if found is None:
            raise Failure(f"no re-embedding of {table} is under way: nv-embed reembed {table} begins one")
        step(connection, found.id)
        _print_end(status(connection, found.id), as_json)


def _find_or_begin(connection: "psycopg.Connection[Any]", wanted: "Wanted", screen: "Screen", sure: bool) -> int:
    from nv_embed.reembed import alter, begin, estimate, find_open

    found = find_open(connection, wanted.relation, wanted.target)
    if found is not None:
        _check_same(connection, found, wanted)
        alter(connection, found.id, wanted)
        index.print_line(screen, f"Re-embedding {found.id} of {found.relation} to {_vectors(found)} goes on.")
        return found.id
    _print_estimate(estimate(connection, wanted), screen)
    if not sure:
        if not sys.stdin.isatty():
            raise Failure("nobody is there to be asked: give --yes")
        typer.confirm("Begin?", abort=True)
    return begin(connection, wanted)


def _check_same(connection: "psycopg.Connection[Any]", found: "Status", wanted: "Wanted") -> None:
    """What is asked for beside a re-embedding that is under way must be that one."""
    from nv_embed.reembed import differences

    differs = [f"--{name.replace('_', '-')}" for name in differences(connection, found, wanted)]
    if differs:
        going = _vectors(found)
        raise Failure(
            f"{found.relation} is being re-embedded to {going}, not to this {', '.join(differs)}: nv-embed cancel {wanted.relation} ends that"
        )


@contextmanager
def _connected(database_url: str | None) -> "Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]":
    dsn = database_url or index.private_dsn()
    with index.connect(dsn) as connection, index.connect(dsn) as watching:
        yield connection, watching


@contextmanager
def _going_on(table: str) -> Iterator[None]:
    """Whatever ends the watching ends nothing else."""
    from nv_embed.indexes import Busy, Unfinished
    from nv_embed.interrupts import interrupted_by_termination
    from nv_embed.reembed import Ended

    try:
        with interrupted_by_termination():
            yield
    except (Busy, Ended) as error:
        raise Failure(str(error)) from None
    except (Unfinished, KeyboardInterrupt) as ended:
        if isinstance(ended, Unfinished) and not isinstance(ended.cause, KeyboardInterrupt):
            raise Failure(index.why(ended)) from None
        print(f"nv-embed: interrupted: workers go on, and so does nv-embed reembed {table} when it is called again", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


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


class Bars(index.Bars):
    """On a terminal: a bar for the rows, then those of the indexes."""

    def __init__(self, screen: "Screen", bar: "Bar") -> None:
        super().__init__(screen, bar)
        self._rows = bar.add_task("", total=None, share="")

    def status(self, status: "Status") -> None:
        self._bar.tasks[self._bar.task_ids.index(self._rows)].total = status.rows
        self._bar.update(self._rows, completed=status.embedded or 0, description=f"filling{_remark(status)}", share=_filled(status))

    def begin(self, number: int, count: int, statement: str) -> None:
        if self._rows in self._bar.task_ids:
            self._bar.remove_task(self._rows)
        super().begin(number, count, statement)


class Lines(index.Lines):
    """Elsewhere: a line for each tenth of the rows."""

    def status(self, status: "Status") -> None:
        tenths = None if not status.rows else (status.embedded or 0) * 10 // status.rows
        now = ("filling", tenths, status.workers == 0, status.failed)
        if now != self._said:
            self._said = now
            index.print_line(self._screen, f"filling{_remark(status)}: {_filled(status)}")


def _remark(status: "Status") -> str:
    if status.workers == 0:
        return ", but no worker runs (nv-embed worker --database-url …)"
    return f", {status.failed:,} failed" if status.failed else ""


def _filled(status: "Status") -> str:
    if status.rows is None or status.embedded is None:
        return "counting rows"
    parts = [f"{status.embedded:,} of {status.rows:,} rows"]
    if status.rate:
        parts.append(f"{status.rate:,.0f} a second")
    if status.eta is not None:
        parts.append(f"{index.span(status.eta.total_seconds())} left")
    return ", ".join(parts)


def _measured(status: "Status") -> str:
    parts = ["every row has its vector"]
    if status.overlap is not None:
        parts.append(f"{status.overlap:.0%} of nearest neighbours stay")
    if status.recall is not None:
        parts.append(f"{status.recall:.0%} of canaries are found")
    return ", ".join(parts)


def _vectors(status: "Status") -> str:
    pieces = "" if status.to_chunk_tokens is None else f", in pieces of {status.to_chunk_tokens} tokens"
    return f"{status.to_model}, {status.to_dim} dimensions, {status.to_storage}{pieces}"


def _print_estimate(estimate: "Estimate", screen: "Screen") -> None:
    if estimate.is_cut:
        model = [("model", "not asked: the vectors are cut to size in the database")]
    else:
        model = [
            ("tokens", "not known" if estimate.tokens is None else f"about {estimate.tokens:,}"),
            ("time", "not known" if estimate.seconds is None else f"about {index.span(estimate.seconds)} of the sidecar's, by a sample"),
        ]
    rows = "not counted yet" if estimate.rows is None else f"{estimate.rows:,}"
    vectors = "not known" if estimate.vector_bytes is None else index.size(estimate.vector_bytes)
    space = f"{vectors} for vectors and {index.size(estimate.index_bytes)} for indexes, until finish"
    for name, value in [("rows", rows), *model, ("space", space)]:
        index.print_line(screen, f"{name:8}{value}")


def _print_end(status: "Status", as_json: bool) -> None:
    if as_json:
        index.print_json({**asdict(status), "eta": None})
        return
    going = _vectors(status)
    table = status.relation
    typer.echo(
        {
            "ready": f"{table} is ready for {going}: nv-embed cut-over {table}, or nv-embed cancel {table}.",
            "live": f"{table} answers by {going}. nv-embed finish {table} drops the vectors before, nv-embed roll-back {table} goes back to them.",
            "finished": f"{table}: finished.",
            "rolled_back": f"{table} answers by the vectors before{'' if status.has_ended else f'. nv-embed finish {table} drops the others'}.",
            "cancelled": f"{table}: cancelled.",
        }.get(status.state, f"{table}: {status.state}.")
    )
