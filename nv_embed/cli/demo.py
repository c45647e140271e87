"""
`nv-embed demo`: from nothing to a search by meaning.
"""

from typing import Annotated

import typer

from nv_embed.cli.status import JsonOption


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the table and the servers when it is over.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many texts.  [default: all]", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="What the sidecar serves, as for `up`.  [default: as for up]", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Search Python's documentation by meaning."""
    from nv_embed.demo.run import demo as run_demo

    raise typer.Exit(run_demo(keep=keep, json_output=as_json, limit=limit, model=model))
