"""
The command line: `nv-embed`.

One file a command, or a small group of them. A command's own imports are inside of it: `nv-embed --help` needs neither gRPC nor psycopg. Results go
to stdout, what is said about them to stderr. The exit status is 0, 1 when it failed (one line on stderr says why and what to do) or 2 for wrong
usage.
"""

import logging
import os
import sys
from typing import Annotated

import typer

from nv_embed import __version__
from nv_embed.cli import demo, doctor, embed, eval, index, install, reembed, serve, status, token, up, worker
from nv_embed.cli.failure import explain

app = typer.Typer(
    name="nv-embed",
    help="Text embeddings where the data lives: PostgreSQL with an embedding model beside it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(up.up)
app.command()(up.down)
app.command()(status.dsn)
app.command()(status.status)
app.command()(doctor.doctor)
app.command()(demo.demo)
app.command()(embed.embed)
app.command(context_settings=serve.PASS_THROUGH, add_help_option=False)(serve.serve)
app.command()(worker.worker)
app.add_typer(token.app, name="token")
app.command()(install.install)
app.command()(index.index)
app.command()(reembed.reembed)
app.command()(reembed.cut_over)
app.command()(reembed.roll_back)
app.command()(reembed.finish)
app.command()(reembed.cancel)
app.command()(eval.eval)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nv-embed {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Text embeddings where the data lives: PostgreSQL with an embedding model beside it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The program. Failures that people can act upon are one line; anything else is a fault of ours and shows its traceback."""
    # gRPC writes to stderr what it makes of a handshake; we say that in one line ourselves.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # So does psycopg, of a connection that Ctrl-C has met in the middle of a statement.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    try:
        app(prog_name="nv-embed")
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"nv-embed: {line}", file=sys.stderr)
        sys.exit(1)
