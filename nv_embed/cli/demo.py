"""
`nv-embed demo`: from nothing to a search by meaning.
"""

from typing import Annotated

import typer


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the table and the servers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for programs.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many texts, the right answers first.", show_default="all")] = None,
    model: Annotated[str | None, typer.Option(help="What the sidecar serves, as for `up`.", show_default=False)] = None,
) -> None:
    """Search Python's documentation by meaning."""
    from nv_embed.demo.run import demo as run

    raise typer.Exit(run(keep=keep, json_output=as_json, limit=limit, model=model))
