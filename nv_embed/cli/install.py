"""
`nv-embed install`: nv_embed into a database of your own, as the extension or as the library.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import psycopg


def install(
    database_url: Annotated[
        str, typer.Option(help="The database: postgresql://user:password@host:port/name; a superuser's, with --library its owner's.")
    ],
    library: Annotated[
        bool, typer.Option("--library", help="For managed PostgreSQL: needs pgvector, but neither PL/Python nor a superuser; workers embed.")
    ] = False,
    schema: Annotated[str | None, typer.Option(help="With --library: where nv_search() goes; public unless given.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="The sidecar, host:port or unix:/path: as that server reaches it; with --library, as we and the workers do.")
    ] = None,
) -> None:
    """Install nv_embed into a database of yours, or update it."""
    if library:
        _install_library(database_url, schema, endpoint)
    elif schema is not None:
        raise typer.BadParameter("is for --library; the extension's is CREATE EXTENSION nv_embed SCHEMA …", param_hint="--schema")
    else:
        _install_extension(database_url, endpoint)


def _install_extension(database_url: str, endpoint: str | None) -> None:
    from nv_embed.cli.failure import Failure
    from nv_embed.install import ExtensionMissing
    from nv_embed.install import install as install_extension

    with _connect(database_url, autocommit=True) as connection:
        try:
            installed = install_extension(connection, endpoint)
        except ExtensionMissing as missing:
            raise Failure(
                f"{missing}: on its machine, run `make -C extension install PG_CONFIG=…` of this repository, or give --library, which needs none"
            ) from None
    typer.echo(f"nv_embed {installed.version} {_change(installed.version, installed.before)}.")
    if endpoint is None and installed.before is None:
        typer.echo("Say where its sidecar is: SELECT nv_embed.configure('host:port');")


def _install_library(database_url: str, schema: str | None, endpoint: str | None) -> None:
    from nv_embed.library import install as install_library
    from nv_embed.library import served

    models = served(endpoint)
    installed = install_library(_connect(database_url, autocommit=False), schema, endpoint, models)
    change = "brought up to date" if installed.has_changed and installed.before == installed.version else _change(installed.version, installed.before)
    typer.echo(f"nv_embed {installed.version} {change}, as a library: schema nv_embed, and nv_search() in {installed.schema}.")
    for model in models:
        typer.echo(f"It knows model {model.name} with {_listed([*model.trained_dims, *model.declared_dims])} dimensions.")
    if not installed.has_worker_role:
        typer.echo("There is no role nv_embed_worker, which this role may not make: workers run as this role, or as owners of the tables.")
    if installed.before is None:
        typer.echo(
            "Declare a table: SELECT nv_embed.auto_embed('docs', '{body}'); and start a worker: nv-embed worker --database-url …"
            if endpoint
            else "Say which models there are: run this again with --endpoint HOST:PORT of a sidecar."
        )


def _connect(database_url: str, *, autocommit: bool) -> "psycopg.Connection[Any]":
    import psycopg

    try:
        return psycopg.connect(database_url, autocommit=autocommit, connect_timeout=10)
    except psycopg.ProgrammingError as error:
        raise typer.BadParameter(str(error), param_hint="--database-url") from None


def _change(version: str, before: str | None) -> str:
    return {None: "installed", version: "is there already"}.get(before, f"updated from {before}")


def _listed(numbers: list[int]) -> str:
    *most, last = (str(number) for number in numbers)
    return f"{', '.join(most)} or {last}" if most else last
