"""
`nv-embed dsn` and `nv-embed status`: where the private servers are, and how they are.
"""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nv_embed.cli.private import Look

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


def dsn() -> None:
    """Print the URL of the private database."""
    from nv_embed.cli.private import servers

    typer.echo(servers().dsn())


def status(as_json: JsonOption = False) -> None:
    """Say what runs, and where. Exits with 1 when not all of it does."""
    from nv_embed.cli.private import NOT_UP, look, servers

    found = look(servers())
    if as_json:
        import orjson

        typer.echo(orjson.dumps(found.as_json(), option=orjson.OPT_INDENT_2).decode())
    elif found.postmaster is None and found.serving is None:
        typer.echo(NOT_UP[0].upper() + NOT_UP[1:] + ".")
    else:
        _print_table(found)
    if not found.up:
        raise typer.Exit(1)


def _print_table(found: "Look") -> None:
    from rich.table import Table
    from rich.text import Text

    from nv_embed.cli.screen import console

    table = Table("", "state", "process", "up for", "what", "where", box=None, pad_edge=False, header_style="bold")
    facts = found.as_json()
    postgres, sidecar = facts["postgres"], facts["sidecar"]
    extensions = ", ".join(f"{name} {version}" for name, version in postgres["extensions"].items())
    if found.postmaster is None:
        table.add_row("PostgreSQL", Text("stopped", style="red"), "", "", "", postgres["data_dir"])
    else:
        answers = Text("runs", style="green") if postgres["version"] else Text("does not answer", style="red")
        version = f"{(postgres['version'] or '?').split()[0]} ({extensions or 'without nv_embed'})"
        table.add_row("PostgreSQL", answers, str(postgres["pid"]), _span(postgres["uptime_s"]), version, f"127.0.0.1:{postgres['port']}")
    if found.serving is None:
        table.add_row("sidecar", Text("stopped", style="red"), "", "", "", "")
    else:
        well = Text("serves", style="green") if found.healthy else Text("not well", style="red")
        where = ", ".join((facts["endpoint"], *(f"http://{address}" for address in sidecar["http"])))
        table.add_row("sidecar", well, str(sidecar["pid"]), _span(sidecar["uptime_s"]), ", ".join(sidecar["models"]), where)
    console.print(table)
    if found.serving is not None and not found.healthy:
        typer.echo(f"\nThe sidecar says: {found.health}")
    typer.echo(f"\ndata  {postgres['data_dir']}\nlogs  {found.servers.cluster.log.parent}")


def _span(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds % 60:02} s" if minutes else f"{seconds} s"
