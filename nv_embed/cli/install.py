"""
`nv-embed install`: the extension into a database of your own.
"""

from typing import Annotated

import typer


def install(
    database_url: Annotated[str, typer.Option(help="The database: postgresql://user:password@host:port/name; a superuser's.")],
    endpoint: Annotated[str | None, typer.Option(help="The sidecar as that server reaches it: host:port, or unix:/path.")] = None,
) -> None:
    """Install the extension into a database of yours, or update it."""
    import psycopg

    from nv_embed.cli.failure import Failure
    from nv_embed.install import ExtensionMissing
    from nv_embed.install import install as install_extension

    try:
        connection = psycopg.connect(database_url, autocommit=True, connect_timeout=10)
    except psycopg.ProgrammingError as error:
        raise typer.BadParameter(str(error), param_hint="--database-url") from None
    with connection:
        try:
            installed = install_extension(connection, endpoint)
        except ExtensionMissing as missing:
            raise Failure(f"{missing}: on its machine, run `make -C extension install PG_CONFIG=…` of this repository") from None
    change = {None: "installed", installed.version: "is there already"}.get(installed.before, f"updated from {installed.before}")
    typer.echo(f"nv_embed {installed.version} {change}.")
    if endpoint is None and installed.before is None:
        typer.echo("Say where its sidecar is: SELECT nv_embed.configure('host:port');")
