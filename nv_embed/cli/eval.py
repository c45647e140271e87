"""
`nv-embed eval`: how well collections with known answers are searched, through SQL.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nv_embed.cli.failure import Failure
from nv_embed.cli.status import JsonOption

if TYPE_CHECKING:
    from nv_embed.demo.screen import Screen
    from nv_embed.evaluation.collection import Collection
    from nv_embed.evaluation.cross import Matrix
    from nv_embed.evaluation.run import Evaluation, Options

INTERRUPTED = 130


def eval(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR…", help="Folders in BEIR's layout, or folders that hold such; or mteb:NAME, fetched by the package mteb.", show_default=False
        ),
    ],
    dims: Annotated[
        str | None, typer.Option(metavar="N,N", help="Dimensions to search by.  [default: all that the model was trained for]", show_default=False)
    ] = None,
    storage: Annotated[str, typer.Option(metavar="T,T", help="Types of the indexed vectors: halfvec, vector, bit.")] = "halfvec,bit",
    split: Annotated[str, typer.Option(help="Which queries: those of qrels/SPLIT.tsv.")] = "test",
    database_url: Annotated[
        str | None,
        typer.Option(envvar="NV_EMBED_DATABASE_URL", help="The database.  [default: that of `nv-embed up`]", show_default=False, show_envvar=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="One that the sidecar serves.  [default: its first]", show_default=False)] = None,
    chunk_tokens: Annotated[
        str, typer.Option(metavar="N,N", help="Embed documents in pieces of so many tokens at most; 0: whole, the end cut off. 0,240 measures both.")
    ] = "0",
    chunk_overlap: Annotated[int, typer.Option(min=0, help="Tokens that a piece repeats of the one before.")] = 0,
    queries: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask the queries of this folder, which has the same ids.", show_default=False)
    ] = None,
    cross: Annotated[bool, typer.Option("--cross", help="Ask the queries of each folder on the documents of each; needs equal ids.")] = False,
    pooled: Annotated[bool, typer.Option("--pool", help="Search the documents of all folders in one table.")] = False,
    limit_queries: Annotated[int | None, typer.Option(min=1, help="At most so many queries of each folder.", show_default=False)] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the documents and their vectors in the database.")] = False,
    reuse: Annotated[
        str | None, typer.Option(metavar="SCHEMA", help="Use what --keep left in this schema, and leave it.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw quality over the bytes of a vector.", show_default=False, dir_okay=False)
    ] = None,
) -> None:
    """Measure search on collections with known answers: quality, time and bytes."""
    from nv_embed.evaluation.plans import STORAGES
    from nv_embed.evaluation.run import Options

    options = Options(
        dims=_numbers("--dims", dims, 1) if dims else (),
        storages=_choices("--storage", storage, STORAGES),
        model=model,
        chunk_tokens=_numbers("--chunk-tokens", chunk_tokens, 0),
        chunk_overlap=chunk_overlap,
        keep=keep,
        reuse=reuse,
    )
    _check_together(options, queries, cross, pooled, plot)
    if plot is not None:
        from nv_embed.evaluation.plot import plot as draw  # now, because a missing package is better noticed before the work than after
    from nv_embed.demo.screen import Screen
    from nv_embed.interrupts import interrupted_by_termination

    screen = Screen(to_stderr=as_json)
    try:
        with interrupted_by_termination():
            collections = _collections(sources, split, queries, pooled, limit_queries)
            evaluation, matrices = _evaluate(screen, database_url, collections, options, cross)
    except KeyboardInterrupt:
        from nv_embed.cli.screen import note

        note("nv-embed: interrupted")
        raise typer.Exit(INTERRUPTED) from None
    if plot is not None:
        draw(evaluation.measured, plot)
    if as_json:
        _print_json(evaluation, matrices)
    else:
        _print(screen, evaluation, matrices)


def _check_together(options: "Options", queries: Path | None, cross: bool, pooled: bool, plot: Path | None) -> None:
    """Refuse options that make no sense beside one another."""
    if sum(map(bool, (queries, cross, pooled))) > 1:
        raise typer.BadParameter("--queries, --cross and --pool exclude each other")
    if cross and options.chunk_tokens != (0,):
        raise typer.BadParameter("--cross embeds documents whole: leave --chunk-tokens out")
    if cross and plot is not None:
        raise typer.BadParameter("--cross has no picture: leave --plot out")
    if any(0 < each <= options.chunk_overlap for each in options.chunk_tokens):
        raise typer.BadParameter("a piece must be longer than what it repeats: give a smaller --chunk-overlap")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {plot.parent} for the picture")


def _evaluate(
    screen: "Screen", database_url: str | None, collections: "Sequence[Collection]", options: "Options", cross: bool
) -> "tuple[Evaluation, list[Matrix]]":
    import psycopg

    from nv_embed.cli.private import servers
    from nv_embed.evaluation import cross as crossing
    from nv_embed.evaluation.run import evaluate

    with psycopg.connect(database_url or servers().dsn(), autocommit=True) as connection:
        if cross:
            return crossing.evaluate(connection, screen, collections, options)
        return evaluate(connection, screen, collections, options), []


def _collections(sources: Sequence[str], split: str, queries: Path | None, pooled: bool, limit: int | None) -> "list[Collection]":
    from nv_embed.evaluation.collection import called, folders, pool, read, read_queries
    from nv_embed.evaluation.tasks import PREFIX, read_task

    collections = []
    for source in sources:
        if source.startswith(PREFIX):
            collections.append(read_task(source.removeprefix(PREFIX), split))
        elif not Path(source).is_dir():
            raise typer.BadParameter(f"there is no folder {source}")
        else:
            collections += [read(folder, split) for folder in folders(Path(source))]
    if queries is not None:
        texts = read_queries(queries)
        collections = [each.asked_by(called(queries), texts) for each in collections]
    if limit is not None:
        collections = [each.first(limit) for each in collections]
    names = [each.name for each in collections]
    if len(set(names)) < len(names):
        raise Failure(f"two folders have the same name, among {', '.join(names)}: evaluate them one by one")
    return pool(collections) if pooled else collections


def _print_json(evaluation: "Evaluation", matrices: "Sequence[Matrix]") -> None:
    import orjson

    from nv_embed.evaluation import report

    typer.echo(orjson.dumps(report.as_json(evaluation, matrices), option=orjson.OPT_INDENT_2).decode())


def _print(screen: "Screen", evaluation: "Evaluation", matrices: "Sequence[Matrix]") -> None:
    from nv_embed.evaluation import report

    for measured in evaluation.measured if not matrices else []:
        screen.heading(report.heading(evaluation, measured))
        screen.line()
        screen.table(report.columns(measured), report.rows(measured), numbers=True)
        screen.line()
        for remark in report.remarks(evaluation, measured):
            screen.line(remark)
    for matrix in matrices:
        screen.heading(f"Recall@5, exact, {matrix.dim} dimensions, {evaluation.model.name}: lines are the queries' languages, columns the documents'")
        screen.line()
        screen.table(report.matrix_columns(matrix), report.matrix_rows(matrix), numbers=True)
        screen.line()
        screen.line(f"Mean of the same language {matrix.same_language:.3f}, of different ones {matrix.cross_lingual:.3f}.")
    if evaluation.schema is not None:
        screen.line()
        screen.line(f"Documents and vectors stay in schema {evaluation.schema}: `--reuse {evaluation.schema}` searches them again.")


def _numbers(option: str, value: str, least: int) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(each) for each in value.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < least:
        raise typer.BadParameter(f"'{value}' is no list of numbers from {least} on: write {option} 384,256")
    return numbers


def _choices(option: str, value: str, allowed: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(value.split(",")))
    for each in chosen:
        if each not in allowed:
            raise typer.BadParameter(f"'{each}' is none of {', '.join(allowed)}: write {option} {','.join(allowed)}")
    return chosen
