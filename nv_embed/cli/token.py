"""
`nv-embed token`: the file of tokens that a sidecar lets in.

A token is printed once, alone on stdout, when it is made; the file has its hash.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

FileOption = Annotated[Path, typer.Option("--file", help="The file that `nv-embed serve --tokens` names.")]
NameArgument = Annotated[str, typer.Argument(help="Who holds it: letters, digits, _ and -.")]

app = typer.Typer(help="Make, list and remove the tokens that a sidecar lets in.", no_args_is_help=True)


@app.command()
def add(
    name: NameArgument,
    file: FileOption,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests that its holder may send.  [default: any]", show_default=False)
    ] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens of their texts.  [default: any]", show_default=False)] = None,
) -> None:
    """Make a token and print it, this once. A sidecar that serves from the file lets it in within a second."""
    from nv_embed import tokens

    typer.echo(tokens.add(file, name, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute))


@app.command("list")
def list_(file: FileOption, as_json: Annotated[bool, typer.Option("--json", help="A JSON document, for programs.")] = False) -> None:
    """Say who holds a token."""
    from nv_embed import tokens

    entries = tokens.read(file)
    if as_json:
        import orjson

        known = [{"name": name, **{key: value for key, value in asdict(entry).items() if key != "sha256"}} for name, entry in entries.items()]
        typer.echo(orjson.dumps(known, option=orjson.OPT_INDENT_2).decode())
        return
    from rich.table import Table

    from nv_embed.cli.screen import console

    table = Table("name", "requests a minute", "tokens a minute", box=None, pad_edge=False, header_style="bold")
    for name, entry in entries.items():
        table.add_row(name, *("any" if limit is None else f"{limit:,}" for limit in (entry.requests_per_minute, entry.tokens_per_minute)))
    console.print(table)


@app.command()
def remove(name: NameArgument, file: FileOption) -> None:
    """Take a token out of the file. A sidecar that serves from it lets it in no more within a second."""
    from nv_embed import tokens

    tokens.remove(file, name)
