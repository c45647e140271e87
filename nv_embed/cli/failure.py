"""
Failures in one line.

What went wrong and what to do about it, for the errors that a user can do something about.
"""

from typing import TYPE_CHECKING

from nv_embed.errors import EmbedError
from nv_embed.home import NotSetUp

if TYPE_CHECKING:
    import psycopg


class Failure(Exception):
    """A command that cannot do its work; the message is the line that people read."""


def explain(error: Exception) -> str | None:
    """The line for an expected failure; None for a fault of our own."""
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is missing: run `make setup`"
    # Imported now, because most commands never get here.
    import psycopg

    from nv_embed.cluster import ClusterFailed
    from nv_embed.evaluation.errors import EvaluationFailed
    from nv_embed.install import InstallRefused
    from nv_embed.sidecar_process import SidecarFailed

    if isinstance(error, EmbedError | NotSetUp | Failure | ClusterFailed | SidecarFailed | InstallRefused | EvaluationFailed):
        return _one_line(str(error))
    if isinstance(error, psycopg.Error):
        return _one_line(_postgres_says(error))
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _postgres_says(error: "psycopg.Error") -> str:
    """Message, detail and hint of a server's error; of a connection that failed, its first reason."""
    message, detail, hint = error.diag.message_primary, error.diag.message_detail, error.diag.message_hint
    if message:
        said = f"{message}: {detail.removesuffix('.')}" if detail else message
        return f"{said} ({hint})" if hint else said
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())
