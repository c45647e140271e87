"""
`nv-embed serve`: the sidecar.

The library never imports the sidecar, so this process becomes it: signals, output and exit status are the sidecar's own.
"""

import os
import sys

import typer

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def serve(context: typer.Context) -> None:
    """Serve models over gRPC: the sidecar. See `nv-embed serve --help`."""
    os.execv(sys.executable, [sys.executable, "-m", "nv_embed_sidecar", *context.args])  # noqa: S606 - the point is to become it
